//! The tasks that every process of ours has, whatever it is for: it raises its limit of open files, listens, takes
//! connections, answers HEAD and OPTIONS, and follows its configuration file.

mod accept;
mod follow;
mod listen;
pub mod methods;
mod open_files;

pub use accept::Acceptor;
pub use follow::{follow_file, follow_files};
pub use listen::{ListenAddress, ListenAddressError};
pub use open_files::raise_open_files;
