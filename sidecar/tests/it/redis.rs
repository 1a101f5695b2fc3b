//! A redis-server for one test.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
};

/// A port that nothing listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A running redis-server; dropped, it is killed.
pub struct Redis {
    server: Child,
    /// The port that the server listens on.
    pub port: u16,
}

impl Redis {
    /// Starts a server on this port and waits until it takes connections.
    pub fn start(port: u16) -> Self {
        let mut server = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("redis-server must be installed");
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        lines
            .find(|line| {
                line.as_ref()
                    .unwrap()
                    .contains("Ready to accept connections")
            })
            .expect("redis-server must start")
            .unwrap();
        Self { server, port }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
