//! The limits of HTTP connections. Those of bodies are in `body.rs` and `body_budget.rs`, as they follow the model's.

use std::time::Duration;

use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::conn::auto,
};

/// The time that a client may take from its connection to its first request.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The time for which an HTTP/1 connection is kept between requests. Whoever pools connections should be the one who
/// closes them, or a request crosses the closing on its way; Google Cloud's load balancers keep them longest, 600 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(620);

/// The time for which a client may leave what was sent to it unread or unacknowledged, or take for the head of a
/// further request, up to twice.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_mins(1);

/// The time after which an HTTP/2 client that is silent is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The time that such a client has to answer.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// The bytes that a request's head may have. Envoy, and so most gateways, lets 60 KiB through. By HTTP/1 they are those
/// of its buffer, which every slow client fills.
const HEAD_BYTES: u32 = 64 << 10;

/// The requests that one HTTP/2 connection may have open. gRPC's clients make one connection for all that a process
/// asks, and let what is beyond wait; twice as many as hyper's own limit, as the queue takes batches of up to 1024
/// rows.
const STREAMS: u32 = 400;

/// The streams that a client may have reset before they were looked at, beyond which the connection ends: those of
/// CVE-2023-44487 cost the server work and the client nothing. A client that gives up at its deadline resets streams
/// that have been looked at.
const RESET_UNSEEN: usize = 20;

/// The streams that may be reset for mistakes of the client, beyond which the connection ends (RUSTSEC-2024-0003).
const RESET_FOR_MISTAKES: usize = 256;

/// The builder of connections with these limits. Those of `h2` that have no setting are held to by its own: of
/// CONTINUATION frames (CVE-2024-27316), of empty DATA frames, and of answers to PING and SETTINGS, of which one waits
/// at a time.
pub(super) fn http() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(HEAD_BYTES as usize);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_header_list_size(HEAD_BYTES)
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESET_UNSEEN)
        .max_local_error_reset_streams(RESET_FOR_MISTAKES);
    http
}
