//! Answers on their way out, in parts that are known to be taken or not.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Response;
use hyper::body::{Body, Frame, SizeHint};
use tonic::Status;

use super::{
    progress::{Asked, Unsent},
    unread::Size,
};
use crate::payload::Payload;

/// The most bytes of a part, so that a client that takes a long answer slowly is told from one that takes none of it.
const PART: usize = 64 << 10;

/// The body of an answer that is being sent.
pub struct Answer {
    /// The parts to come; `None` where they are not held for this client.
    payload: Option<Payload>,
    /// The bytes that the payload has given and that were too many for one part.
    rest: Bytes,
    /// The bytes that are counted as held and not in a part yet.
    counted: u64,
    /// The mark of an answer of which a further part waits until the client takes more.
    due: Option<Unsent>,
    asked: Asked,
}

impl Answer {
    /// Makes the answer to a request of what is to be sent.
    pub fn of(mut response: Response<Payload>, mut asked: Asked) -> Response<Self> {
        asked.answered();
        let size = response.extensions_mut().remove::<Size>();
        response.map(|payload| {
            let size = size.map_or_else(|| payload.size_hint().lower(), |Size(size)| size);
            let held = asked.holds(size);
            Self {
                payload: held.then_some(payload),
                rest: Bytes::new(),
                counted: if held { size } else { 0 },
                due: Some(asked.sends(0)),
                asked,
            }
        })
    }

    fn part(&mut self, mut bytes: Bytes) -> Frame<Bytes> {
        if bytes.len() > PART {
            self.rest = bytes.split_off(PART);
        }
        let length = bytes.len() as u64;
        let counted = self.counted.min(length);
        self.counted -= counted;
        self.asked.grows(length - counted);
        let unsent = self.asked.sends(length);
        self.due = Some(self.asked.sends(0));
        Frame::data(Bytes::from_owner(Part {
            bytes,
            _unsent: unsent,
        }))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        this.due = None;
        let Some(payload) = &mut this.payload else {
            let message = "answers before this one have not been taken";
            return Poll::Ready(Some(Err(Status::resource_exhausted(message))));
        };
        if !this.rest.is_empty() {
            let rest = std::mem::take(&mut this.rest);
            return Poll::Ready(Some(Ok(this.part(rest))));
        }
        Pin::new(payload).poll_frame(context).map(|frame| {
            frame.map(|frame| {
                let sent = frame?.into_data().map(|bytes| this.part(bytes));
                Ok(sent.unwrap_or_else(|trailers| trailers))
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        let ended = |payload: &Payload| payload.is_end_stream();
        self.rest.is_empty() && self.payload.as_ref().is_some_and(ended)
    }

    fn size_hint(&self) -> SizeHint {
        let Some(payload) = &self.payload else {
            return SizeHint::default();
        };
        let mut hint = payload.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.asked.gives_back(self.counted);
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
