//! An open connection to Redis.

mod largest;

use redis::aio::MultiplexedConnection;

pub(crate) use largest::largest_value;

/// An open connection to Redis. Clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) redis: MultiplexedConnection,
    /// The connection's number among those that its `ConnectionManager` has opened.
    pub(crate) generation: u64,
}
