//! The bodies of answers.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};

/// The body of an answer.
pub enum Payload {
    /// Bytes that are all there, such as those of JSON.
    Whole(Full<Bytes>),
    /// Parts that are all there, sent one after another without being copied together.
    Parts(VecDeque<Bytes>),
    /// Frames as they come, which end with trailers.
    Frames(tonic::body::Body),
}

impl Default for Payload {
    fn default() -> Self {
        Self::Whole(Full::default())
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Whole(Full::from(bytes))
    }
}

impl From<Vec<Bytes>> for Payload {
    fn from(parts: Vec<Bytes>) -> Self {
        // An empty frame would end an HTTP/1 body in chunks.
        Self::Parts(parts.into_iter().filter(|part| !part.is_empty()).collect())
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Self {
        Self::Whole(Full::from(text))
    }
}

impl From<tonic::body::Body> for Payload {
    fn from(frames: tonic::body::Body) -> Self {
        Self::Frames(frames)
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Pin::new(bytes)
                .poll_frame(context)
                .map_err(|never| match never {}),
            Self::Parts(parts) => Poll::Ready(parts.pop_front().map(|part| Ok(Frame::data(part)))),
            Self::Frames(frames) => Pin::new(frames).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_end_stream(),
            Self::Parts(parts) => parts.is_empty(),
            Self::Frames(frames) => frames.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => bytes.size_hint(),
            Self::Parts(parts) => {
                SizeHint::with_exact(parts.iter().map(|part| part.len() as u64).sum())
            }
            Self::Frames(frames) => frames.size_hint(),
        }
    }
}
