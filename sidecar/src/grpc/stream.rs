//! `ModelStreamInfer`: every message of a stream is a request of its own, answered in its turn.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::StatusCode;
use tokio::time::Instant;
use tonic::{Request, Status, Streaming};

use super::{
    Call,
    codec::{Answer, StreamAnswer},
    held::Held,
    infer,
};
use crate::{metrics::Kind, proxy::Proxy};

/// The messages of one stream that are under way at a time, so that they can share a batch.
const UNDER_WAY: usize = 32;

/// The answers of a stream.
pub type Answers = Pin<Box<dyn Stream<Item = Result<StreamAnswer, Status>> + Send>>;

/// Answers the messages of a stream in their order. One that fails says so in its answer, and the stream goes on.
pub fn answers(
    proxy: Arc<Proxy>,
    call: Call,
    held: Held,
    request: Request<Streaming<Bytes>>,
) -> Answers {
    let (metadata, _, messages) = request.into_parts();
    let headers = Arc::new(metadata.into_headers());
    let answers = messages.map(move |message| {
        let (proxy, headers) = (Arc::clone(&proxy), Arc::clone(&headers));
        let call = Call {
            arrival: Instant::now(),
            ..call.clone()
        };
        let held = held.clone();
        async move {
            let message = message?;
            held.give_back(message.len());
            let mut open = proxy.metrics.open(Kind::Infer);
            let mut followed = infer::followed(&headers);
            let answered = infer::message_of(&proxy, &call, &headers, &mut followed, message).await;
            open.answered(match &answered {
                Ok(_) => StatusCode::OK,
                Err((error, _)) => error.status().0,
            });
            Ok(match answered {
                Ok(answer) => StreamAnswer {
                    error: String::new(),
                    answer,
                },
                Err((error, id)) => StreamAnswer {
                    error: error.to_string(),
                    answer: Answer::new("", "", id, Bytes::new()),
                },
            })
        }
    });
    Box::pin(answers.buffered(UNDER_WAY))
}
