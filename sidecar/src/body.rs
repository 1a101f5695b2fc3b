//! Request bodies: their type, and their bytes within limits and deadline.

use std::{ops::Deref, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap,
    header::{CONTENT_TYPE, EXPECT},
};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{body_budget::BodyBudget, compression::Coding, error::Error, proxy::Proxy};

/// Bodies from this size on are read and written by another thread, so that they hold no other request up.
const OFF_REACTOR: usize = 64 << 10;

/// The time for which the rest of a refused body is read.
const LINGER: Duration = Duration::from_secs(2);

/// The type of a body, in lower case and without parameters; `None` where none is given.
pub fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?;
    // Bytes that are no text are no known type either.
    let value = value.to_str().unwrap_or("unreadable");
    let essence = value.split(';').next().unwrap_or(value);
    Some(essence.trim().to_ascii_lowercase())
}

/// Refuses a body of another type than JSON; one of no type is taken for JSON.
pub fn check_json(headers: &HeaderMap) -> Result<(), Error> {
    let expected = "application/json";
    match media_type(headers) {
        Some(given) if given != expected => Err(Error::MediaType { expected, given }),
        _ => Ok(()),
    }
}

/// A request's body. Its bytes count against the budget until it is dropped.
#[derive(Debug)]
pub struct Body {
    bytes: Vec<u8>,
    budget: BodyBudget,
}

impl Body {
    /// Makes a body without bytes, which are to count against a budget.
    pub fn new(budget: &BodyBudget) -> Self {
        Self {
            bytes: Vec::new(),
            budget: budget.clone(),
        }
    }

    /// Makes a body without bytes, which are to count against the budget of this one.
    pub fn empty(&self) -> Self {
        Self::new(&self.budget)
    }

    /// Appends a part, if there is room for it in a body of `limit` bytes and beside all the others.
    pub fn push(&mut self, part: &[u8], limit: u64) -> Result<(), Error> {
        let bytes = part.len() as u64;
        if self.bytes.len() as u64 + bytes > limit {
            return Err(Error::TooLarge { limit });
        }
        if !self.budget.take(bytes, limit) {
            return Err(Error::Busy);
        }
        self.bytes.extend_from_slice(part);
        Ok(())
    }
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<Body> for Bytes {
    /// Slices of the body count against the budget as long as one of them is left.
    fn from(body: Body) -> Self {
        Self::from_owner(body)
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes.len() as u64);
    }
}

/// A request's body that has not been read yet.
pub struct IncomingBody {
    body: Incoming,
    /// Whether the client asked if it may send the body, and waits for an answer, which a read gives.
    expects_continue: bool,
}

impl IncomingBody {
    /// Takes the body of the request with these headers.
    pub fn new(headers: &HeaderMap, body: Incoming) -> Self {
        Self {
            body,
            expects_continue: headers.contains_key(EXPECT),
        }
    }

    /// Reads what is left of a refused body, for a while: a client that is still writing, and whose connection is
    /// closed on it, never sees why.
    pub async fn discard(mut self) {
        if self.expects_continue {
            return;
        }
        // Neither the end of the time nor that of the connection changes the answer.
        let _ = timeout(LINGER, async {
            while let Some(Ok(_)) = self.body.frame().await {}
        })
        .await;
    }
}

/// Reads the whole body of a request that came at `arrival`, decompressed.
pub async fn read(
    proxy: &Proxy,
    headers: &HeaderMap,
    incoming: &mut IncomingBody,
    arrival: Instant,
) -> Result<Body, Error> {
    let coding = Coding::of_request(headers)?;
    // The settings are read and let go of: a slow body may outlast a revision.
    let (limit, deadline) = {
        let served = proxy.served();
        (served.max_request_bytes, arrival + served.timeout)
    };
    if incoming.body.size_hint().lower() > limit {
        return Err(Error::TooLarge { limit });
    }
    incoming.expects_continue = false;
    let mut body = Body::new(&proxy.body_budget);
    let whole = async {
        while let Some(frame) = incoming.body.frame().await {
            let frame = frame
                .map_err(|error| Error::Malformed(format!("failed to read the body: {error}")))?;
            // Trailers are no part of the body.
            if let Some(part) = frame.data_ref() {
                body.push(part, limit)?;
            }
        }
        Ok(())
    };
    timeout_at(deadline, whole)
        .await
        .unwrap_or(Err(Error::Deadline))?;
    match coding {
        // However few bytes there are, they may stand for many.
        Some(coding) => off_reactor(usize::MAX, move || coding.decode(&body, limit)).await,
        None => Ok(body),
    }
}

/// Runs work that takes long for many bytes: here if they are few, else on another thread.
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
