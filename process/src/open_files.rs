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
    // Where the system refuses, the process runs as before, with fewer connections.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// How many files this process may have open, in words.
pub(crate) fn limit() -> String {
    getrlimit(Resource::Nofile)
        .current
        .map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}
