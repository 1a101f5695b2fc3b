//! Connections: taken, by TLS or without, and bounded in time and memory, whatever the client does.

mod answer;
mod limits;
mod progress;
mod transport;
mod unread;

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use carpool_process::Acceptor;
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, sleep_until},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub use self::unread::{Size, Unread};
use self::{
    answer::Answer,
    limits::{HEAD_TIMEOUT, WRITE_TIMEOUT},
    progress::Progress,
    transport::{Socket, Transport},
};
use crate::{payload::Payload, tls};

/// A way in: how the connections of one port are served.
pub struct Way {
    own: Arc<str>,
    tls: Option<tls::Current>,
    unread: Unread,
    head_timeout: Duration,
    write_timeout: Duration,
}

impl Way {
    /// Makes a way in for a proxy called `own`, by TLS or without. Its answers count as `unread` until they are taken.
    pub fn new(own: Arc<str>, tls: Option<tls::Current>, unread: Unread) -> Self {
        Self {
            own,
            tls,
            unread,
            head_timeout: HEAD_TIMEOUT,
            write_timeout: WRITE_TIMEOUT,
        }
    }

    /// Takes connections, HTTP/1.1 and HTTP/2, until told to stop, and answers every request with `answer`, which is
    /// told the client. The value that is given back closes the connections.
    pub async fn accept<A, F>(
        self,
        listener: TcpListener,
        answer: A,
        stop: CancellationToken,
    ) -> GracefulShutdown
    where
        A: Fn(Arc<str>, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response<Payload>, Infallible>> + Send + 'static,
    {
        let http = Arc::new(limits::http());
        let connections = GracefulShutdown::new();
        let mut acceptor = Acceptor::new(listener);
        loop {
            let stream = tokio::select! {
                stream = acceptor.accept() => stream,
                () = stop.cancelled() => return connections,
            };
            // Errors are left aside, for these fail only on a connection that is already gone.
            let _ = stream.set_nodelay(true);
            let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(self.write_timeout));
            let connection = Connection {
                http: Arc::clone(&http),
                client: client(stream.peer_addr(), &self.own),
                answer: answer.clone(),
                watcher: connections.watcher(),
                progress: Arc::new(Progress::new(self.unread.clone())),
                head_deadline: Instant::now() + self.head_timeout,
                write_timeout: self.write_timeout,
            };
            match &self.tls {
                None => drop(tokio::spawn(connection.serve(stream))),
                Some(current) => {
                    let acceptor = TlsAcceptor::from(Arc::clone(&current.borrow()));
                    let stop = stop.clone();
                    tokio::spawn(connection.shake_hands(acceptor, stream, stop));
                }
            }
        }
    }
}

/// A connection that is about to be served.
struct Connection<A> {
    http: Arc<auto::Builder<TokioExecutor>>,
    client: Arc<str>,
    answer: A,
    watcher: Watcher,
    progress: Arc<Progress>,
    /// The time by which the first request's head must be there.
    head_deadline: Instant,
    write_timeout: Duration,
}

impl<A, F> Connection<A>
where
    A: Fn(Arc<str>, Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Response<Payload>, Infallible>> + Send + 'static,
{
    /// Serves a connection by TLS, once the client has agreed on it.
    async fn shake_hands(self, acceptor: TlsAcceptor, stream: TcpStream, stop: CancellationToken) {
        let agreed = tokio::select! {
            agreed = acceptor.accept(stream) => agreed,
            () = sleep_until(self.head_deadline) => return,
            // Nothing has been asked for yet.
            () = stop.cancelled() => return,
        };
        match agreed {
            Ok(stream) => self.serve(stream).await,
            Err(error) => {
                tracing::debug!(%error, client = &*self.client, "a client and TLS did not agree");
            }
        }
    }

    /// Serves a connection to its end, which comes early where the client makes no progress.
    async fn serve<S: Socket>(self, stream: S) {
        let Self {
            http,
            client,
            answer,
            watcher,
            progress,
            head_deadline,
            write_timeout,
        } = self;
        let service = service_fn(|request: Request<Incoming>| {
            let asked = progress.asked(request.version());
            let answered = answer(Arc::clone(&client), request);
            async { answered.await.map(|response| Answer::of(response, asked)) }
        });
        let transport = Transport::new(stream, Arc::clone(&progress));
        let connection = http.serve_connection(TokioIo::new(transport), service);
        let mut connection = pin!(watcher.watch(connection));
        // HTTP/1's own timer starts only once the client has chosen between HTTP/1 and HTTP/2, and is for idle ones.
        let mut ended = tokio::select! {
            biased;
            ended = &mut connection => Some(ended),
            () = progress.spoken() => None,
            () = sleep_until(head_deadline) => return,
        };
        while ended.is_none() {
            ended = tokio::select! {
                biased;
                ended = &mut connection => Some(ended),
                () = sleep(write_timeout) => None,
            };
            if ended.is_none() && progress.has_stalled() {
                tracing::debug!(
                    client = &*client,
                    "a connection that makes no progress is closed"
                );
                return;
            }
        }
        if let Some(Err(error)) = ended {
            tracing::debug!(%error, "a connection broke");
        }
    }
}

/// The client at the other end of a connection: its IP address, or `own` where that is this very machine or pod, for a
/// loopback address says nothing elsewhere.
fn client(peer: io::Result<SocketAddr>, own: &Arc<str>) -> Arc<str> {
    match peer.map(|peer| peer.ip().to_canonical()) {
        Ok(peer) if !peer.is_loopback() => peer.to_string().into(),
        // A client that is already gone asks for nothing.
        Ok(_) | Err(_) => Arc::clone(own),
    }
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
