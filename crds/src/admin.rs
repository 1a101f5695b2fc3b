//! The name of a process and the address of its admin port, as it tells them to others.

use std::{io, net::SocketAddr, path::Path};

use serde::{Deserialize, Serialize};

/// The header of each answer of an admin port that carries the process' own name. Addresses are given to another
/// process once the first has gone; a name is not.
pub const NAME_HEADER: &str = "carpool-name";

/// The address of an admin port whose number the system chose. Only the process that listens knows it, so it writes
/// this to the file that `--admin-address-file` names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminAddress {
    /// The process' name.
    pub name: String,
    /// The address of its admin port.
    pub address: SocketAddr,
}

impl AdminAddress {
    /// Writes the address to a file. Readers see all of it or nothing.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(new, file)
    }

    /// Reads the address from a file; `None` before it is written.
    #[must_use]
    pub fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
    }
}
