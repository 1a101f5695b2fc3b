//! A relay between a client and Redis that can hold back what Redis says and cut connections: what happens between a
//! command and its reply.

use std::sync::Arc;

use carpool_queue::Connection;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub struct Relay {
    port: u16,
    held: Arc<watch::Sender<bool>>,
    cuts: Arc<watch::Sender<u32>>,
}

impl Relay {
    pub async fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Self {
            port: listener.local_addr().unwrap().port(),
            held: Arc::new(watch::Sender::new(false)),
            cuts: Arc::new(watch::Sender::new(0)),
        };
        let (held, cuts) = (relay.held.clone(), relay.cuts.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", upstream)).await.unwrap();
                let mut cut = cuts.subscribe();
                let held = held.subscribe();
                tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        _ = cut.changed() => {}
                        () = pass(client, server, held) => {}
                    }
                });
            }
        });
        relay
    }

    pub fn connection(&self) -> Connection {
        Connection::from_url(&format!("redis://127.0.0.1:{}", self.port)).unwrap()
    }

    /// From now on Redis hears everything but is not heard.
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// What Redis has said meanwhile arrives now.
    pub fn let_go(&self) {
        self.held.send_replace(false);
    }

    /// Cuts all connections, and what was held back is lost; new ones work.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
        self.held.send_replace(false);
    }
}

async fn pass(client: TcpStream, server: TcpStream, mut held: watch::Receiver<bool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = async {
        let mut buffer = vec![0; 65_536];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            let free = held.wait_for(|held| !held).await.is_ok();
            if !free || to_client.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => {}
        () = back => {}
    }
}
