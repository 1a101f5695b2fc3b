//! The limit of open files, of which every connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one. The soft one is 1024 on most machines, for the sake of programs
/// that call `select`; nothing here does.
pub fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    // Refused by the system, the process runs as before, with fewer connections.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// The number of files that this process may have open, in words.
pub(crate) fn limit() -> String {
    getrlimit(Resource::Nofile)
        .current
        .map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}
