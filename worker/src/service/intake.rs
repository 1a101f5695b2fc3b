//! From the queue into the line, and answers back.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use carpool_queue::{Failure, Job, Outcome, QueueError};
use tokio::time::Instant;

use super::{Service, lost};
use crate::{
    assemble::Assembler,
    fatal::Fatal,
    item::Item,
    line::Open,
    metrics::Hop,
    reading::{self, Fetched, Reading},
};

/// Bytes of bodies that are assembled here rather than on a thread of their own: handing them over takes as long.
const TENSORS_INLINE: usize = 64 << 10;
/// The same for models that take text: tokenizing takes a hundred times as long.
const TEXT_INLINE: usize = 1 << 10;

impl Service {
    /// Takes requests, waiting for the first.
    pub(super) async fn fetch(&mut self, wait: Duration) -> Result<(), Fatal> {
        let room = self.room();
        let fetched = self.consumer.fetch_within(room, wait).await;
        self.taken(fetched, room, "failed to fetch").await
    }

    /// Answers, and takes requests that are there already.
    pub(super) async fn exchange(&mut self, room: usize) -> Result<(), Fatal> {
        if self.answers.is_empty() && room == 0 {
            return Ok(());
        }
        let answers = std::mem::take(&mut self.answers);
        for (_, outcome) in &answers {
            self.metrics.answered(outcome);
        }
        let started = Instant::now();
        let exchanged = self.consumer.exchange(answers, room).await;
        let took = started.elapsed();
        self.metrics.hop(Hop::Exchange, took);
        if exchanged.is_ok() {
            self.pace.exchanged(took);
        }
        self.taken(exchanged, room, "failed to answer").await
    }

    /// Takes in what the queue gave. The trouble that Redis has is waited out with the model loaded; only a revision that
    /// is another model by now ends the service.
    async fn taken(
        &mut self,
        given: Result<Vec<Job>, QueueError>,
        asked: usize,
        failed: &str,
    ) -> Result<(), Fatal> {
        match given {
            Ok(jobs) => self.take(jobs, asked).await,
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

    /// Assembles requests and puts them into the line, long texts last. `asked` is how many there was room for.
    async fn take(&mut self, jobs: Vec<Job>, asked: usize) -> Result<(), Fatal> {
        if self.trouble.take().is_some() {
            tracing::info!("Redis serves again");
        }
        self.pace.fetched(jobs.len(), asked);
        if !jobs.is_empty() {
            self.metrics.fetched(jobs.len());
        }
        let at = Instant::now();
        let (long, short): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .partition(|job| Reading::is_long(&self.assembler, job));
        if !short.is_empty() {
            self.assemble(short, at).await?;
        }
        for job in long {
            self.reading.push(Fetched { job, at });
        }
        self.read(true).await
    }

    /// Puts into the line what is read of the long texts, or is about to be.
    pub(super) async fn read(&mut self, others_wait: bool) -> Result<(), Fatal> {
        let until = Instant::now() + reading::PATIENCE;
        let assembler = Arc::clone(&self.assembler);
        while let Some(read) = self
            .reading
            .next(&assembler, until, others_wait)
            .await
            .map_err(|error| lost(&error))?
        {
            self.metrics.hop(Hop::Assemble, read.took);
            self.enter(read.fetched, read.item);
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
                .map_err(|error| lost(&error))?
        };
        let took = at.elapsed();
        self.metrics.hop(Hop::Assemble, took);
        self.pace.assembled(took);
        for (job, item) in jobs.into_iter().zip(items) {
            self.enter(Fetched { job, at }, item);
        }
        Ok(())
    }

    /// Puts a request into the line, or its failure to the answers.
    fn enter(&mut self, Fetched { job, at }: Fetched, item: Result<Item, Failure>) {
        match item {
            Ok(item) => {
                self.pace.came(item.rows);
                self.line.push(Open {
                    id: job.id,
                    item: Arc::new(item),
                    arrived: at.checked_sub(job.age).unwrap_or(at),
                    expires: at + job.deadline,
                    quarantine: job.quarantine,
                    parts: Vec::new(),
                    done: 0,
                });
            }
            Err(failure) => self.answers.push((job.id, Outcome::Failure(failure))),
        }
    }

    /// How many requests to ask for: those that fill the next batch and, where it matters who rides together, some to
    /// choose from. None once the service is to end, or while requests wait that must run with nobody else.
    pub(super) fn room(&self) -> usize {
        if self.stop.is_cancelled() || self.line.holds_suspect() {
            return 0;
        }
        let max = self.max_rows();
        let window = if self.assembler.groups() {
            self.pace.window(max)
        } else {
            max
        };
        let claimed = self.line.claimed(max) + self.reading.len();
        self.pace.requests(window.saturating_sub(claimed))
    }
}

fn assemble(assembler: &Assembler, bodies: Vec<Bytes>) -> Vec<Result<Item, Failure>> {
    bodies
        .into_iter()
        .map(|body| assembler.item(body))
        .collect()
}
