//! Answers on their way to Redis.

use crate::{JobId, Outcome};

/// An answer on its way to Redis.
pub(super) struct PendingAnswer {
    pub(super) id: JobId,
    pub(super) outcome: Outcome,
    /// Whether the answer goes into the entry, however large: Redis had no memory for a key of its own, but takes an
    /// answer that frees memory.
    pub(super) inline: bool,
}

/// Large answers that had no room in Redis.
pub(super) type Unsent = Vec<PendingAnswer>;

impl From<(JobId, Outcome)> for PendingAnswer {
    fn from((id, outcome): (JobId, Outcome)) -> Self {
        Self {
            id,
            outcome,
            inline: false,
        }
    }
}

impl PendingAnswer {
    pub(super) fn is_large(&self) -> bool {
        self.outcome.is_large() && !self.inline
    }

    /// Returns about how many bytes the answer takes in a script's call.
    pub(super) fn size(&self) -> usize {
        if self.is_large() {
            0
        } else {
            self.outcome.size()
        }
    }
}
