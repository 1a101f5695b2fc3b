//! The largest value that Redis takes.

use std::collections::HashMap;

use super::Live;

const SETTING: &str = "proto-max-bulk-len";

/// The most bytes of one argument, such as a body: a longer one would end the connection. `None` where Redis won't say,
/// as to a user without `CONFIG`, or has no such bound.
pub(crate) async fn largest_value(live: &Live) -> Option<u64> {
    let settings: HashMap<String, u64> = redis::cmd("CONFIG")
        .arg("GET")
        .arg(SETTING)
        .query_async(&mut live.redis.clone())
        .await
        .ok()?;
    settings.get(SETTING).copied()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use carpool_testkit::RedisServer;

    use super::*;
    use crate::{Connection, connection::Link};

    #[tokio::test]
    async fn redis_says_how_much_it_takes_unless_the_user_may_not_ask() {
        let user = ["--user", "little", "on", "nopass", "+@all", "-config"];
        let bound = ["--proto-max-bulk-len", "2mb"];
        let server = RedisServer::start_with(bound.into_iter().chain(user));
        for (user, largest) in [("", Some(2 << 20)), ("little:any@", None)] {
            let url = format!("redis://{user}127.0.0.1:{}", server.port);
            let connection = Connection::from_url(&url).unwrap();
            let link = Link::new(connection, Duration::from_secs(5));
            assert_eq!(largest_value(&link.get().await.unwrap()).await, largest);
        }
    }
}
