//! The bounds on a call's messages while they are received.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tonic::Status;

use crate::{body_budget::BodyBudget, error::Error};

/// The bytes of a call that count against the budget of all bodies. They count no longer once this is dropped.
#[derive(Debug, Clone)]
pub struct Held(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    budget: BodyBudget,
    limit: u64,
    bytes: AtomicU64,
}

impl Held {
    /// Counts nothing yet. `limit` is the largest message.
    pub fn new(budget: &BodyBudget, limit: u64) -> Self {
        Self(Arc::new(Inner {
            budget: budget.clone(),
            limit,
            bytes: AtomicU64::new(0),
        }))
    }

    fn take(&self, bytes: u64) -> Result<(), Error> {
        let Inner { budget, limit, .. } = &*self.0;
        if !budget.take(bytes, *limit) {
            return Err(Error::Busy);
        }
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Counts a message no longer. One that came compressed has more bytes than were counted for it.
    pub fn give_back(&self, message: usize) {
        let message = message as u64;
        let less = |held: u64| Some(held.saturating_sub(message));
        let held = self
            .0
            .bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .unwrap_or_default();
        self.0.budget.give_back(held.min(message));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.budget.give_back(*self.bytes.get_mut());
    }
}

/// A call's body, whose messages are refused as soon as their length is known to be too much.
pub struct Metered {
    body: Incoming,
    held: Held,
    framing: Framing,
}

impl Metered {
    /// Reads a call's body, whose bytes count as `held`.
    pub fn new(body: Incoming, held: Held) -> Self {
        Self {
            body,
            held,
            framing: Framing::default(),
        }
    }
}

impl Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(Status::from_error(error.into())))),
            None => return Poll::Ready(None),
        };
        let counted = frame.data_ref().map_or(Ok(()), |data| {
            this.framing.passed(data, this.held.0.limit)?;
            this.held.take(data.len() as u64)
        });
        Poll::Ready(Some(
            counted
                .map(|()| frame)
                .map_err(|error| Status::from(&error)),
        ))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The place in a sequence of messages, each after a byte of flags and its length in four bytes, big-endian.
#[derive(Debug, Default)]
struct Framing {
    prefix: [u8; 5],
    /// The bytes of the prefix that are there.
    has: usize,
    /// The bytes of the message that are not there yet.
    left: u64,
}

impl Framing {
    fn passed(&mut self, mut data: &[u8], limit: u64) -> Result<(), Error> {
        while let Some((first, rest)) = data.split_first() {
            if self.left > 0 {
                let part = usize::try_from(self.left).unwrap_or(usize::MAX);
                let part = part.min(data.len());
                self.left -= part as u64;
                data = &data[part..];
                continue;
            }
            self.prefix[self.has] = *first;
            self.has += 1;
            data = rest;
            if let (5, [_, length @ ..]) = (self.has, self.prefix) {
                self.has = 0;
                self.left = u32::from_be_bytes(length).into();
                if self.left > limit {
                    return Err(Error::TooLarge { limit });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let sized = usize::try_from(length).unwrap();
        [&[0][..], &length.to_be_bytes(), &vec![7; sized]].concat()
    }

    #[test]
    fn lengths_are_found_however_the_bytes_are_cut() {
        let messages = [message(3), message(0), message(300)].concat();
        for size in [1, 2, 5, 7, 1000] {
            let mut framing = Framing::default();
            for part in messages.chunks(size) {
                framing.passed(part, 300).unwrap();
            }
            assert_eq!((framing.has, framing.left), (0, 0), "in parts of {size}");
        }
        let mut framing = Framing::default();
        framing.passed(&message(3), 300).unwrap();
        let error = framing.passed(&message(301)[..5], 300).unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit: 300 }), "{error}");
    }

    #[test]
    fn bytes_count_until_they_are_given_back() {
        let budget = BodyBudget::default();
        let held = Held::new(&budget, 1 << 20);
        held.take(64 << 20).unwrap();
        assert!(matches!(held.take(1), Err(Error::Busy)));
        held.give_back(1 << 20);
        held.take(1 << 20).unwrap();
        // A message that came compressed.
        held.give_back(1 << 30);
        held.take(64 << 20).unwrap();
        drop(held);
        Held::new(&budget, 1 << 20).take(64 << 20).unwrap();
    }
}
