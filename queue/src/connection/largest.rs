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
    use std::{net::TcpListener, process::Stdio, time::Duration};

    use tokio::{
        io::{AsyncBufReadExt, BufReader},
        process::Command,
    };

    use super::*;
    use crate::Endpoint;

    #[tokio::test]
    async fn redis_says_how_much_it_takes_unless_the_user_may_not_ask() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let folder = tempfile::tempdir().unwrap();
        let mut server = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--save", "", "--proto-max-bulk-len", "2mb"])
            .args(["--user", "little", "on", "nopass", "+@all", "-config"])
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(server.stdout.take().unwrap()).lines();
        loop {
            let line = log.next_line().await.unwrap();
            let line = line.expect("redis-server starts");
            if line.contains("Ready to accept connections") {
                break;
            }
        }
        for (user, largest) in [("", Some(2 << 20)), ("little:any@", None)] {
            let url = format!("redis://{user}127.0.0.1:{port}");
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
