//! The intake: from the queue in Redis into the wait queue, and answers back.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use carpool_queue::{Failure, Job, QueueError};
use tokio::time::Instant;

use super::{Service, join_failed};
use crate::{
    assemble::Assembler,
    fatal::Fatal,
    item::Item,
    long_texts::{self, Fetched, LongTexts},
    metrics::Hop,
    wait_queue::Pending,
};

/// The bytes of bodies up to which tensors are assembled here rather than on a thread of their own: handing them over
/// takes as long.
const TENSORS_INLINE: usize = 64 << 10;
/// The bytes of bodies up to which texts are assembled here: tokenizing takes a hundred times as long.
const TEXT_INLINE: usize = 1 << 10;

impl Service {
    /// Takes requests, waiting for the first one.
    pub(super) async fn fetch(&mut self, wait: Duration) -> Result<(), Fatal> {
        let capacity = self.capacity();
        let fetched = self.consumer.fetch_within(capacity, wait).await;
        self.take_result(fetched, capacity, "failed to fetch").await
    }

    /// Writes the answers that are ready, and asks for no requests.
    pub(super) async fn flush_answers(&mut self) -> Result<(), Fatal> {
        self.exchange(0).await
    }

    /// Writes the answers that are ready, and takes up to `capacity` requests that are in the queue already.
    pub(super) async fn exchange(&mut self, capacity: usize) -> Result<(), Fatal> {
        if self.answers.is_empty() && capacity == 0 {
            return Ok(());
        }
        let answers = std::mem::take(&mut self.answers);
        for (_, outcome) in &answers {
            self.metrics.answered(outcome);
        }
        let started = Instant::now();
        let exchanged = self.consumer.exchange(answers, capacity).await;
        let took = started.elapsed();
        self.metrics.hop(Hop::Exchange, took);
        if exchanged.is_ok() {
            self.timing.exchanged(took);
        }
        self.drop_abandoned();
        self.take_result(exchanged, capacity, "failed to answer")
            .await
    }

    /// Takes out the requests whose clients have left before they ran.
    fn drop_abandoned(&mut self) {
        let abandoned = self.consumer.abandoned();
        if !abandoned.is_empty() {
            let count = self.waiting.remove(|id| abandoned.contains(id));
            self.metrics.abandoned(count);
        }
    }

    /// Takes in the requests that the queue gave. Redis' trouble is waited out with the model loaded; only a revision
    /// that is another model by now ends the service.
    async fn take_result(
        &mut self,
        given: Result<Vec<Job>, QueueError>,
        asked: usize,
        failed: &str,
    ) -> Result<(), Fatal> {
        match given {
            Ok(jobs) => self.take_jobs(jobs, asked).await,
            Err(error @ QueueError::ArtifactChanged { .. }) => Err(Fatal::of_queue(&error)),
            Err(error) => {
                let error = error.to_string();
                if self.trouble.as_ref() != Some(&error) {
                    tracing::warn!(error, "{failed}");
                    self.trouble = Some(error);
                }
                Ok(())
            }
        }
    }

    /// Assembles requests and puts them into the wait queue, long texts last. `asked` is the number of requests asked
    /// for.
    async fn take_jobs(&mut self, jobs: Vec<Job>, asked: usize) -> Result<(), Fatal> {
        if self.trouble.take().is_some() {
            tracing::info!("Redis serves again");
        }
        self.timing.fetched(jobs.len(), asked);
        if !jobs.is_empty() {
            self.metrics.fetched(jobs.len());
        }
        let at = Instant::now();
        let (long, short): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .partition(|job| LongTexts::is_long(&self.assembler, job));
        if !short.is_empty() {
            self.assemble(short, at).await?;
        }
        for job in long {
            self.long_texts.push(Fetched { job, at });
        }
        self.collect_long_texts(true).await
    }

    /// Puts the long texts that are read, or are about to be, into the wait queue.
    pub(super) async fn collect_long_texts(&mut self, others_wait: bool) -> Result<(), Fatal> {
        let until = Instant::now() + long_texts::LONGEST_WAIT;
        let assembler = Arc::clone(&self.assembler);
        while let Some(decoded) = self
            .long_texts
            .next(&assembler, until, others_wait)
            .await
            .map_err(|error| join_failed(&error))?
        {
            self.metrics.hop(Hop::Assemble, decoded.took);
            self.admit(decoded.fetched, decoded.item);
        }
        Ok(())
    }

    async fn assemble(&mut self, jobs: Vec<Job>, at: Instant) -> Result<(), Fatal> {
        let bodies: Vec<Bytes> = jobs.iter().map(|job| job.body.clone()).collect();
        let bytes: usize = bodies.iter().map(Bytes::len).sum();
        let inline = if self.assembler.takes_text() {
            TEXT_INLINE
        } else {
            TENSORS_INLINE
        };
        let items = if bytes <= inline {
            assemble(&self.assembler, bodies)
        } else {
            let assembler = Arc::clone(&self.assembler);
            tokio::task::spawn_blocking(move || assemble(&assembler, bodies))
                .await
                .map_err(|error| join_failed(&error))?
        };
        let took = at.elapsed();
        self.metrics.hop(Hop::Assemble, took);
        self.timing.assembled(took);
        for (job, item) in jobs.into_iter().zip(items) {
            self.admit(Fetched { job, at }, item);
        }
        Ok(())
    }

    /// Puts a request into the wait queue, or its failure to the answers.
    fn admit(&mut self, Fetched { job, at }: Fetched, item: Result<Item, Failure>) {
        match item {
            Ok(item) => {
                self.timing.came(item.rows);
                self.waiting.push(Pending {
                    id: job.id,
                    item: Arc::new(item),
                    arrived: at.checked_sub(job.age).unwrap_or(at),
                    expires: at + job.deadline,
                    quarantine: job.quarantine,
                    parts: Vec::new(),
                    done: 0,
                });
            }
            Err(failure) => self.fail(job.id, failure),
        }
    }

    /// The number of requests to ask for: those that fill the next batch and, where it matters which requests share a
    /// batch, some to choose from. None once the service is to end, or while requests wait that must run with nobody
    /// else.
    pub(super) fn capacity(&self) -> usize {
        if self.stop.is_cancelled() || self.waiting.holds_suspect() {
            return 0;
        }
        let max = self.max_rows();
        let window = if self.assembler.groups() {
            self.timing.window(max)
        } else {
            max
        };
        let claimed = self.waiting.claimed(max) + self.long_texts.len();
        self.timing.requests(window.saturating_sub(claimed))
    }
}

fn assemble(assembler: &Assembler, bodies: Vec<Bytes>) -> Vec<Result<Item, Failure>> {
    bodies
        .into_iter()
        .map(|body| assembler.item(body))
        .collect()
}
