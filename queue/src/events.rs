//! Events by which one request can be followed. Each has the request's uuid in the field `id`, and the level DEBUG.

use tracing::{Level, Span, debug, enabled};
use uuid::Uuid;

use crate::{Job, id::EntryId};

/// The target of these events, by which a filter picks them.
macro_rules! target {
    () => {
        "carpool_queue"
    };
}

/// Whether any subscriber takes these events.
pub(crate) fn are_wanted() -> bool {
    enabled!(target: target!(), Level::DEBUG)
}

/// Reports that Redis has a proxy's request in its stream.
pub(crate) fn enqueued(span: &Span, id: Uuid, entry: EntryId) {
    debug!(target: target!(), parent: span, %id, %entry, "request enqueued");
}

/// Reports that a worker has taken a request.
pub(crate) fn fetched(worker: &str, job: &Job) {
    let trace = job.trace.as_deref();
    debug!(target: target!(), id = %job.id, entry = %job.id.entry, worker, trace, "request fetched");
}

/// Reports that a worker has answered a request.
pub(crate) fn answered(worker: &str, id: Uuid) {
    debug!(target: target!(), %id, worker, "request answered");
}

/// Reports that an answer has come to the proxy whose client waits for it.
pub(crate) fn received(span: &Span, id: Uuid) {
    debug!(target: target!(), parent: span, %id, "answer received");
}
