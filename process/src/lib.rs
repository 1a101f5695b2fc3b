//! What every process of ours does, whatever it is for: it raises its limit of open files, takes connections, and
//! answers HEAD and OPTIONS.

mod accept;
pub mod methods;
mod open_files;

pub use accept::Acceptor;
pub use open_files::raise_open_files;
