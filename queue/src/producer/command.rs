//! What the writing task is asked to do.

use std::time::Duration;

use uuid::Uuid;

use super::in_flight::Cancelled;
use crate::SubmitError;

/// What a client is told to wait when Redis can't be reached.
const RETRY_UNREACHABLE: Duration = Duration::from_secs(1);

/// What is asked of the task.
pub(super) enum Command {
    Enqueue(Uuid),
    Cancel(Cancelled),
    /// Finish, take the replies stream away and end.
    Stop,
}

pub(super) fn unreachable(_: Duration) -> SubmitError {
    SubmitError::Unreachable {
        retry_after: RETRY_UNREACHABLE,
    }
}
