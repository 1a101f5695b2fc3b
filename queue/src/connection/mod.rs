//! An open connection.

mod largest;

use redis::aio::MultiplexedConnection;

pub(crate) use largest::largest_value;

/// An open connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) redis: MultiplexedConnection,
    /// Which of a link's connections this is.
    pub(crate) generation: u64,
}
