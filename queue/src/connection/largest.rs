//! The largest value that Redis takes.

use std::collections::HashMap;

use super::Connection;

const SETTING: &str = "proto-max-bulk-len";

/// Returns the most bytes of one argument, such as a body: a longer one would end the connection. `None` where Redis
/// does not tell, as to a user without `CONFIG`, or has no such bound.
pub(crate) async fn largest_value(connection: &Connection) -> Option<u64> {
    let settings: HashMap<String, u64> = redis::cmd("CONFIG")
        .arg("GET")
        .arg(SETTING)
        .query_async(&mut connection.redis.clone())
        .await
        .ok()?;
    settings.get(SETTING).copied()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use carpool_testkit::RedisServer;

    use super::*;
    use crate::Endpoint;

    #[tokio::test]
    async fn redis_says_how_much_it_takes_unless_the_user_may_not_ask() {
        let user = ["--user", "little", "on", "nopass", "+@all", "-config"];
        let bound = ["--proto-max-bulk-len", "2mb"];
        let server = RedisServer::start_with(bound.into_iter().chain(user));
        for (user, largest) in [("", Some(2 << 20)), ("little:any@", None)] {
            let url = format!("redis://{user}127.0.0.1:{}", server.port);
            let endpoint = Endpoint::from_url(&url).unwrap();
            let redis = endpoint.open(Duration::from_secs(5)).await.unwrap();
            let connection = Connection {
                redis,
                generation: 0,
            };
            assert_eq!(largest_value(&connection).await, largest);
        }
    }
}
