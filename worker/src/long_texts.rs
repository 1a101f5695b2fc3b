//! Requests of long texts, which are read one by one beside the batches: short ones don't wait for them.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use carpool_queue::{Failure, FailureKind, Job, JobId};
use tokio::{
    task::{JoinError, JoinHandle},
    time::{Instant, timeout_at},
};

use crate::{assemble::Assembler, item::Item};

/// The bytes above which a body of text takes longer than a few milliseconds to read.
const LONG: usize = 8 << 10;

/// The longest that a batch waits for texts that are being read. Most are read by then, which keeps batches full.
pub const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// A request as it came, with the time.
pub struct Fetched {
    /// The request.
    pub job: Job,
    /// The time at which the request was taken from the queue.
    pub at: Instant,
}

/// A request that was read, and how long that took.
pub struct Decoded {
    /// The request as it came.
    pub fetched: Fetched,
    /// The item that the request holds, or why it holds none.
    pub item: Result<Item, Failure>,
    /// The time that reading the request took.
    pub took: Duration,
}

/// A request that is being read.
struct Running {
    fetched: Fetched,
    started: Instant,
    task: JoinHandle<(Result<Item, Failure>, Duration)>,
}

/// The requests that have yet to be read, oldest first.
#[derive(Default)]
pub struct LongTexts {
    waiting: VecDeque<Fetched>,
    running: Option<Running>,
}

impl LongTexts {
    /// Whether a request is one that others should not wait for. A suspect is not: others wait for it in any case.
    pub fn is_long(assembler: &Assembler, job: &Job) -> bool {
        assembler.takes_text() && job.body.len() > LONG && job.quarantine.is_none()
    }

    /// Puts a request at the end of those to be read.
    pub fn push(&mut self, fetched: Fetched) {
        self.waiting.push_back(fetched);
    }

    /// The number of requests that have yet to be read.
    pub fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.running.is_some())
    }

    /// Whether no request has yet to be read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes out the requests that have yet to be read.
    pub fn drain(&mut self) -> Vec<JobId> {
        let running = self.running.take().map(|running| running.fetched);
        let all = running.into_iter().chain(self.waiting.drain(..));
        all.map(|fetched| fetched.job.id).collect()
    }

    /// Waits until the next request is read, no longer than `until`. Where others wait, [`LONGEST_WAIT`] is not spent
    /// on the same request twice.
    pub async fn next(
        &mut self,
        assembler: &Arc<Assembler>,
        until: Instant,
        others_wait: bool,
    ) -> Result<Option<Decoded>, JoinError> {
        if self.running.is_none()
            && let Some(fetched) = self.waiting.pop_front()
        {
            let (assembler, body) = (Arc::clone(assembler), fetched.job.body.clone());
            let left = (fetched.at + fetched.job.deadline).into_std();
            let task = tokio::task::spawn_blocking(move || {
                let started = std::time::Instant::now();
                let item = if left > started {
                    assembler.item(body)
                } else {
                    Err(expired())
                };
                (item, started.elapsed())
            });
            self.running = Some(Running {
                fetched,
                started: Instant::now(),
                task,
            });
        }
        let Some(mut running) = self.running.take() else {
            return Ok(None);
        };
        let until = if others_wait {
            until.min(running.started + LONGEST_WAIT)
        } else {
            until
        };
        let Ok(read) = timeout_at(until, &mut running.task).await else {
            self.running = Some(running);
            return Ok(None);
        };
        let (item, took) = read?;
        Ok(Some(Decoded {
            fetched: running.fetched,
            item,
            took,
        }))
    }
}

/// Makes the failure of a request that nobody waits for any more.
pub fn expired() -> Failure {
    Failure {
        kind: FailureKind::Expired,
        message: "the deadline passed before the request ran".to_owned(),
    }
}
