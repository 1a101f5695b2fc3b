//! Answers on their way out, in parts that are known to be taken or not.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use hyper::body::{Body, Frame, SizeHint};

use super::progress::{Asked, Unsent};
use crate::payload::Payload;

/// The most bytes of a part, so that a client that takes a long answer slowly is told from one that takes none of it.
const PART: usize = 64 << 10;

/// The body of an answer that is being sent.
pub struct Answer {
    payload: Payload,
    /// The bytes that the payload has given and that were too many for one part.
    rest: Bytes,
    asked: Asked,
}

impl Answer {
    /// Makes the answer to a request of what is to be sent.
    pub fn of(response: Response<Payload>, mut asked: Asked) -> Response<Self> {
        asked.answered();
        response.map(|payload| Self {
            payload,
            rest: Bytes::new(),
            asked,
        })
    }

    fn part(&mut self, mut bytes: Bytes) -> Frame<Bytes> {
        if bytes.len() > PART {
            self.rest = bytes.split_off(PART);
        }
        let unsent = self.asked.sends();
        Frame::data(Bytes::from_owner(Part {
            bytes,
            _unsent: unsent,
        }))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = self.get_mut();
        if !this.rest.is_empty() {
            let rest = std::mem::take(&mut this.rest);
            return Poll::Ready(Some(Ok(this.part(rest))));
        }
        let frame = ready!(Pin::new(&mut this.payload).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            let sent = frame?.into_data().map(|bytes| this.part(bytes));
            Ok(sent.unwrap_or_else(|trailers| trailers))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.payload.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.payload.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

/// A part of an answer. Its bytes are let go of once they have left, or nobody is there to take them.
struct Part {
    bytes: Bytes,
    _unsent: Unsent,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
