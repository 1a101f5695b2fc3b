//! A relay between a client and Redis that can hold back replies and cut connections between a command and its reply.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU16, Ordering},
};

use carpool_queue::Endpoint;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub struct Relay {
    port: u16,
    upstream: Arc<AtomicU16>,
    held: Arc<watch::Sender<bool>>,
    cuts: Arc<watch::Sender<u32>>,
    /// The words of a client after which replies of Redis are held back.
    last_words: Arc<Mutex<Option<&'static str>>>,
    /// The words of a client whose connection is cut for them.
    fatal_words: Arc<Mutex<Option<&'static str>>>,
}

impl Relay {
    pub async fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Self {
            port: listener.local_addr().unwrap().port(),
            upstream: Arc::new(AtomicU16::new(upstream)),
            held: Arc::new(watch::Sender::new(false)),
            cuts: Arc::new(watch::Sender::new(0)),
            last_words: Arc::default(),
            fatal_words: Arc::default(),
        };
        let (held, cuts) = (relay.held.clone(), relay.cuts.clone());
        let (last_words, fatal_words) = (relay.last_words.clone(), relay.fatal_words.clone());
        let upstream = relay.upstream.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", upstream.load(Ordering::Relaxed)))
                    .await
                    .unwrap();
                let mut cut = cuts.subscribe();
                let (held, last_words) = (held.clone(), last_words.clone());
                let fatal_words = fatal_words.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        _ = cut.changed() => {}
                        () = pass(client, server, &held, &last_words, &fatal_words) => {}
                    }
                });
            }
        });
        relay
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::from_url(&format!("redis://127.0.0.1:{}", self.port)).unwrap()
    }

    /// Leads new connections to another server; the old ones stay.
    pub fn lead_to(&self, upstream: u16) {
        self.upstream.store(upstream, Ordering::Relaxed);
    }

    /// Holds back the replies of Redis, which still gets all commands.
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// Holds back the replies of Redis from when a client says these words.
    pub fn hold_from(&self, words: &'static str) {
        *self.last_words.lock().unwrap() = Some(words);
    }

    /// Whether replies are held back now.
    pub fn holds(&self) -> bool {
        *self.held.borrow()
    }

    /// Cuts a client's connection whenever it says these words.
    pub fn cut_at(&self, words: &'static str) {
        *self.fatal_words.lock().unwrap() = Some(words);
    }

    /// Passes on the replies that were held back, and all later ones.
    pub fn let_go(&self) {
        self.held.send_replace(false);
    }

    /// Cuts all connections, so that replies which were held back are lost; new ones work.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
        self.held.send_replace(false);
    }
}

async fn pass(
    client: TcpStream,
    server: TcpStream,
    held: &watch::Sender<bool>,
    last_words: &Mutex<Option<&'static str>>,
    fatal_words: &Mutex<Option<&'static str>>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async {
        let mut buffer = vec![0; 65_536];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            let said = String::from_utf8_lossy(&buffer[..count]);
            let fatal = *fatal_words.lock().unwrap();
            if fatal.is_some_and(|words| said.contains(words)) {
                return;
            }
            let heard = last_words
                .lock()
                .unwrap()
                .take_if(|words| said.contains(*words));
            if heard.is_some() {
                held.send_replace(true);
            }
            if to_server.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    let back = async {
        let mut held = held.subscribe();
        let mut buffer = vec![0; 65_536];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            let free = held.wait_for(|held| !held).await.is_ok();
            if !free || to_client.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = there => {}
        () = back => {}
    }
}
