//! How a process says who it is and where its admin port is.

use std::{io, net::SocketAddr, path::Path};

use serde::{Deserialize, Serialize};

/// The header of each answer of an admin port that carries the process' own name. Addresses are given to another
/// process once the first has gone; a name is not.
pub const NAME_HEADER: &str = "carpool-name";

/// Where a process whose admin port the system chose serves it. Only the process that listens knows the port, so it
/// writes this to the file that `--admin-address-file` names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminAddress {
    /// The process' name.
    pub name: String,
    /// Where its admin port is.
    pub address: SocketAddr,
}

impl AdminAddress {
    /// Writes it. Readers see all of it or nothing.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(new, file)
    }

    /// Reads it, once it is written.
    #[must_use]
    pub fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
    }
}
