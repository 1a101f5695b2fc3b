//! The bytes of a connection, and what the end of those that come in means.
//!
//! A client that asks by HTTP/1.1 may shut its side down and still read the answer. One that is gone closes its side,
//! too, and both look the same until something is sent to it. So an interim answer is: `100 Continue`, which every
//! client of HTTP/1.1 skips (RFC 9110, section 15.2), and whose answer from a system that no longer has the connection
//! is a reset.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;

use super::progress::Progress;

/// The interim answer that tells a client that has closed one side from one that has closed both.
const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The time between two looks at a connection whose client has closed one side: no event tells of a reset from there
/// on.
const LOOK: Duration = Duration::from_millis(50);

/// A stream of bytes over TCP.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// The TCP connection below.
    fn tcp(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Socket for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// The bytes of a connection.
pub struct Transport<S> {
    stream: S,
    progress: Arc<Progress>,
    /// Whether bytes may have been given to be written that are not on their way.
    writing: bool,
    ended: Option<Ended>,
}

/// The state of a connection whose client has closed its side.
struct Ended {
    next_look: Pin<Box<Sleep>>,
    asked: bool,
}

impl<S: Socket> Transport<S> {
    /// Takes a connection over.
    pub fn new(stream: S, progress: Arc<Progress>) -> Self {
        Self {
            stream,
            progress,
            writing: false,
            ended: None,
        }
    }

    /// Holds the end back for as long as the client waits for an answer.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.progress.is_open() && !self.writing {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = self.stream.tcp().take_error()? {
                return Poll::Ready(Err(error));
            }
            let ended = self.ended.get_or_insert_with(|| Ended {
                next_look: Box::pin(sleep(LOOK)),
                asked: false,
            });
            if !ended.asked && !self.writing && self.progress.waits() {
                match Pin::new(&mut self.stream).poll_write(context, INTERIM) {
                    Poll::Ready(Ok(written)) if written == INTERIM.len() => ended.asked = true,
                    // A part of it would spoil the answer.
                    Poll::Ready(Ok(_)) => {
                        return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {}
                }
            }
            if ended.asked
                && let Poll::Ready(Err(error)) = Pin::new(&mut self.stream).poll_flush(context)
            {
                return Poll::Ready(Err(error));
            }
            ready!(ended.next_look.as_mut().poll(context));
            ended.next_look.set(sleep(LOOK));
        }
    }
}

impl<S: Socket> AsyncRead for Transport<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ended.is_none() {
            let (before, room) = (buffer.filled().len(), buffer.remaining());
            ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
            if buffer.filled().len() > before || room == 0 {
                this.progress.received();
                return Poll::Ready(Ok(()));
            }
        }
        this.poll_end(context)
    }
}

impl<S: Socket> AsyncWrite for Transport<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.writing = true;
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.writing = true;
        Pin::new(&mut this.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(context))?;
        // HTTP flushes only once it has given all that it has.
        this.writing = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
