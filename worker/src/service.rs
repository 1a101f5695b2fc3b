//! The loop that keeps the device busy: fetch, assemble, run, answer.
//!
//! A batch is closed when the device is free or about to be, not before. An idle device takes what is there at once. While
//! a batch runs, the next is filled just before the device is about to be free: if it is full by then it is closed, made
//! ready beside the one that runs and put behind it, so that the device goes from one to the next while the first is taken
//! apart and answered; if not, the write that carries the answers fetches what has come meanwhile.

mod intake;

use std::{sync::Arc, time::Duration};

use carpool_queue::{Consumer, JobId, Outcome};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    assemble::{Assembler, failed},
    batch::{concatenate, cut},
    executor::Uncut,
    fatal::{Fatal, Reason},
    item::rows,
    line::{Line, Open},
    live::Live,
    metrics::{Hop, Metrics},
    pace::Pace,
    reading::{self, Reading},
    runner::{Ran, Runner},
    sharing::Sharing,
};

/// How long an idle worker waits for a request before it looks at its settings again.
const IDLE: Duration = Duration::from_secs(1);

/// A batch in the hands of the run thread.
struct Departed {
    riders: Vec<Open>,
    /// How many rows of theirs it holds.
    rows: usize,
    /// When the device was free for it.
    started: Instant,
    done: oneshot::Receiver<Ran>,
}

/// One worker's service.
pub struct Service {
    consumer: Consumer,
    runner: Runner,
    assembler: Arc<Assembler>,
    live: watch::Receiver<Live>,
    sharing: watch::Receiver<Sharing>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    line: Line,
    reading: Reading,
    answers: Vec<(JobId, Outcome)>,
    pace: Pace,
    /// What Redis' trouble is, which is told once, not at every try.
    trouble: Option<String>,
}

impl Service {
    /// Puts the parts together. `stop` ends the service after the batch that runs.
    pub fn new(
        consumer: Consumer,
        runner: Runner,
        assembler: Arc<Assembler>,
        live: watch::Receiver<Live>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            sharing: runner.sharing(),
            consumer,
            runner,
            assembler,
            live,
            metrics,
            stop,
            line: Line::default(),
            reading: Reading::default(),
            answers: Vec::new(),
            pace: Pace::default(),
            trouble: None,
        }
    }

    /// Serves until it is told to stop, then hands back what has not started and signs off.
    pub async fn serve(mut self) -> Result<(), Fatal> {
        let ended = self.rides().await;
        if ended.is_ok() {
            self.exchange(0).await?;
        }
        let mut waiting = self.reading.drain();
        waiting.extend(self.line.drain().into_iter().map(|open| open.id));
        // Where Redis doesn't learn it, others take over what is left when the lease is over.
        if let Err(error) = self.consumer.release(waiting).await {
            tracing::warn!(%error, "failed to hand back what waits");
        }
        // What ran when the device failed stays pending: it may be what broke it, and whoever takes it over runs it alone.
        ended?;
        if let Err(error) = self.consumer.leave().await {
            tracing::warn!(%error, "failed to sign off");
        }
        self.runner.finish();
        Ok(())
    }

    async fn rides(&mut self) -> Result<(), Fatal> {
        let mut behind = None;
        // What has departed is answered in any case.
        while behind.is_some() || !self.stop.is_cancelled() {
            self.apply_settings();
            let departed = if let Some(departed) = behind.take() {
                departed
            } else {
                if self.line.is_empty() {
                    self.first().await?;
                }
                self.linger().await?;
                let Some(departed) = self.depart().await? else {
                    continue;
                };
                departed
            };
            let rows = departed.rows;
            behind = self.accompany(departed).await?;
            let max = self.max_rows();
            if behind.is_none() && self.line.rows() < max {
                self.exchange(self.room()).await?;
                self.gather(rows, max).await?;
            }
        }
        Ok(())
    }

    /// Closes a batch and hands it to the run thread; none where nobody waits.
    async fn depart(&mut self) -> Result<Option<Departed>, Fatal> {
        self.drop_expired();
        let padded = self.sharing.borrow().padded;
        let ride = self.line.ride(self.max_rows(), padded);
        if ride.riders.is_empty() {
            return Ok(None);
        }
        let started = Instant::now();
        let rows = rows(&ride.slices);
        let done = self.runner.run(ride.slices).await;
        self.pace.staged(started.elapsed());
        Ok(Some(Departed {
            riders: ride.riders,
            rows,
            started,
            done: done.map_err(|error| lost(&error))?,
        }))
    }

    /// Closes the next batch while one still runs, if it is full. Who may end the process does so with nobody beside it.
    async fn depart_early(&mut self, running: &[Open]) -> Result<Option<Departed>, Fatal> {
        let is_full = self.line.rows() >= self.max_rows();
        let is_suspect =
            self.line.holds_suspect() || running.iter().any(|open| open.quarantine.is_some());
        if is_full && !is_suspect && !self.stop.is_cancelled() {
            self.depart().await
        } else {
            Ok(None)
        }
    }

    fn apply_settings(&mut self) {
        if self.live.has_changed().unwrap_or(false) {
            let live = *self.live.borrow_and_update();
            self.consumer.set_limits(live.queue);
        }
    }

    /// Waits for a request while there is none. Requests that failed before they could run are answered first.
    async fn first(&mut self) -> Result<(), Fatal> {
        if !self.answers.is_empty() {
            return self.exchange(self.room()).await;
        }
        if self.reading.is_empty() {
            self.fetch(IDLE).await
        } else if self.room() > 0 {
            // Short requests may come before the long ones are read.
            self.fetch(reading::PATIENCE).await
        } else {
            self.read(false).await
        }
    }

    /// Gives a batch that is not full the time that the resource allows, counted from its oldest request's arrival.
    async fn linger(&mut self) -> Result<(), Fatal> {
        let max_delay = self.live.borrow().max_delay;
        match self.line.head().map(|head| head.arrived + max_delay) {
            Some(until) => self.fill(self.max_rows(), until).await,
            None => Ok(()),
        }
    }

    /// Waits a little for those just answered, who may come again to share the next batch.
    async fn gather(&mut self, answered: usize, max: usize) -> Result<(), Fatal> {
        let before = self.line.rows();
        let wanted = max.min(before + answered);
        if wanted > before
            && self.room() > 0
            && let Some(window) = self.pace.gather(answered)
        {
            self.fill(wanted, Instant::now() + window).await?;
            let came = self.line.rows() - before;
            self.pace.gathered(came, wanted - before);
        }
        Ok(())
    }

    /// Takes what comes until so many rows wait, there is room for no more, or the time is up.
    async fn fill(&mut self, rows: usize, until: Instant) -> Result<(), Fatal> {
        while self.line.rows() < rows {
            let left = until.saturating_duration_since(Instant::now());
            // Room is by the settings of now; `rows` may be of a larger batch.
            if left.is_zero() || self.room() == 0 {
                break;
            }
            self.fetch(left).await?;
        }
        Ok(())
    }

    /// Spends no time on requests that nobody waits for any more.
    fn drop_expired(&mut self) {
        for open in self.line.expired(Instant::now()) {
            let failure = reading::expired();
            self.answers.push((open.id, Outcome::Failure(failure)));
        }
    }

    /// Sees a batch to its end. Meanwhile the answers of the one before go out, and the next one is filled; if it has
    /// departed, it is given back.
    async fn accompany(&mut self, departed: Departed) -> Result<Option<Departed>, Fatal> {
        let Departed {
            riders,
            rows,
            started,
            mut done,
        } = departed;
        let metrics = Arc::clone(&self.metrics);
        let busy = metrics.busy();
        for open in riders.iter().filter(|open| open.done == 0) {
            metrics.queue_wait(started.saturating_duration_since(open.arrived));
        }
        let end = self.pace.about_to_end(rows);
        // After a run too short for a fetch at its end there is one only if the next batch isn't full. Where a request of
        // many rows fills them all, others come beside it or never.
        let left: usize = riders.iter().map(Open::left).sum();
        let is_full = self.line.rows() + left - rows >= self.max_rows();
        let room = if end.is_none() && is_full {
            self.room()
        } else {
            0
        };
        self.exchange(room).await?;
        let (mut early, mut behind) = (None, None);
        if let Some(at) = end {
            tokio::select! {
                biased;
                result = &mut done => early = Some(result),
                () = tokio::time::sleep_until(started + at) => {
                    self.exchange(self.room()).await?;
                    behind = self.depart_early(&riders).await?;
                }
            }
        }
        let result = match early {
            Some(result) => result,
            None => done.await,
        };
        drop(busy);
        let took = started.elapsed();
        metrics.hop(Hop::Run, took);
        self.pace.ran(rows, took);
        let outcome = result
            .map_err(|_| "the run thread ended".to_owned())
            .and_then(|ran| ran.map_err(|error| error.to_string()));
        match outcome {
            Ok(outputs) => self.settle(riders, outputs),
            Err(message) => {
                // It has not begun, so it is handed back with those who wait.
                for open in behind.into_iter().flat_map(|behind| behind.riders) {
                    self.line.push(open);
                }
                return Err(Fatal::new(Reason::DeviceUnavailable, message));
            }
        }
        let free = started + took;
        Ok(behind.map(|behind| Departed {
            started: free,
            ..behind
        }))
    }

    /// Makes an answer of what is complete and lets the rest go on waiting.
    fn settle(&mut self, riders: Vec<Open>, outputs: Vec<Uncut>) {
        let started = Instant::now();
        for (mut open, outputs) in riders.into_iter().zip(outputs) {
            let outputs = outputs.and_then(|parts| cut(parts).map_err(failed));
            let outcome = match outputs {
                Ok(part) => {
                    open.ran(part);
                    if open.left() > 0 {
                        self.line.push(open);
                        continue;
                    }
                    concatenate(open.parts)
                        .map_err(failed)
                        .and_then(|outputs| self.assembler.answer(&open.item, outputs))
                        .map_or_else(Outcome::Failure, Outcome::Answer)
                }
                Err(failure) => Outcome::Failure(failure),
            };
            self.answers.push((open.id, outcome));
        }
        self.metrics.hop(Hop::Encode, started.elapsed());
    }

    /// The most rows of a batch: what the settings say, or less where the model's answers would depend on it.
    fn max_rows(&self) -> usize {
        let max = self.live.borrow().max_batch_size;
        max.min(self.sharing.borrow().max_rows)
    }
}

fn lost(error: &tokio::task::JoinError) -> Fatal {
    Fatal::new(Reason::ModelInvalid, format!("failed to assemble: {error}"))
}
