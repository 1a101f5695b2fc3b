//! Commands to the task that writes.

use std::time::Duration;

use uuid::Uuid;

use super::in_flight::Cancelled;
use crate::SubmitError;

/// Time after which a client should try again when Redis can't be reached.
const RETRY_UNREACHABLE: Duration = Duration::from_secs(1);

/// A command to the task that writes.
pub(super) enum Command {
    Enqueue(Uuid),
    Cancel(Cancelled),
    /// A stop: the task removes the replies stream and ends.
    Stop,
}

pub(super) fn unreachable(_: Duration) -> SubmitError {
    SubmitError::Unreachable {
        retry_after: RETRY_UNREACHABLE,
    }
}
