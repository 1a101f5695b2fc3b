//! Request bodies: their type, and their bytes within the limit and the deadline.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap,
    header::{CONTENT_TYPE, EXPECT},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::Error;

/// From this size on a body is read and written by another thread, so that it holds no other request up.
const OFF_REACTOR: usize = 64 << 10;

/// How long the rest of a body that is too large is read: a client that is still writing, and whose
/// connection is closed on it, never sees why.
const LINGER: Duration = Duration::from_secs(2);

/// The type of a body, in lower case and without parameters; `None` where none is given.
pub fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?;
    // Bytes that are no text are no known type either.
    let value = value.to_str().unwrap_or("unreadable");
    let essence = value.split(';').next().unwrap_or(value);
    Some(essence.trim().to_ascii_lowercase())
}

/// Reads a whole body of at most `limit` bytes.
pub async fn read(
    headers: &HeaderMap,
    body: Incoming,
    limit: u64,
    deadline: Instant,
) -> Result<Bytes, Error> {
    let too_large = Error::TooLarge { limit };
    if body.size_hint().lower() > limit {
        // A client that asked first hasn't begun, and a read would tell it to.
        if !headers.contains_key(EXPECT) {
            discard(body).await;
        }
        return Err(too_large);
    }
    let mut body = body;
    let whole = Limited::new(&mut body, usize::try_from(limit).unwrap_or(usize::MAX)).collect();
    match timeout_at(deadline, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            discard(body).await;
            Err(too_large)
        }
        Ok(Err(error)) => Err(Error::Malformed(format!(
            "failed to read the body: {error}"
        ))),
        Err(_) => Err(Error::Deadline),
    }
}

async fn discard(mut body: Incoming) {
    // Neither the end of the time nor of the connection changes the answer.
    let _ = timeout(LINGER, async {
        while let Some(Ok(_)) = body.frame().await {}
    })
    .await;
}

/// Does what takes long for many bytes: here if they are few, else on another thread.
pub async fn off_reactor<T, F>(bytes: usize, work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    if bytes <= OFF_REACTOR {
        return work();
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Internal(format!("failed to process the request: {error}")))?
}
