//! The loop that keeps the device busy: fetch, assemble, run, answer.
//!
//! A batch is closed when the device is free or about to be, not before. An idle device takes what is there at once. While
//! a batch runs, the next is filled just before the device is about to be free: if it is full by then it is closed, made
//! ready beside the one that runs and put behind it, so that the device goes from one to the next while the first is taken
//! apart and answered; if not, the write that carries the answers fetches what has come meanwhile.

mod intake;

use std::{sync::Arc, time::Duration};

use carpool_queue::{Consumer, Failure, JobId, Outcome};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    assemble::{Assembler, failed},
    batch::{concatenate, cut},
    executor::PaddedOutputs,
    fatal::{Fatal, TerminationReason},
    item::rows,
    live_settings::LiveSettings,
    long_texts::{self, LongTexts},
    metrics::{Hop, Metrics},
    run_timing::RunTiming,
    runner::{RunResult, Runner},
    sharing::Sharing,
    wait_queue::{Pending, WaitQueue},
};

/// The time that an idle worker waits for a request before it looks at its settings again.
const IDLE: Duration = Duration::from_secs(1);

/// A batch in the hands of the run thread.
struct Dispatched {
    requests: Vec<Pending>,
    /// The number of the requests' rows that the batch holds.
    rows: usize,
    /// The time at which the device was free for the batch.
    started: Instant,
    done: oneshot::Receiver<RunResult>,
}

/// The service of one worker.
pub struct Service {
    consumer: Consumer,
    runner: Runner,
    assembler: Arc<Assembler>,
    live_settings: watch::Receiver<LiveSettings>,
    sharing: watch::Receiver<Sharing>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    waiting: WaitQueue,
    long_texts: LongTexts,
    answers: Vec<(JobId, Outcome)>,
    timing: RunTiming,
    /// The trouble that Redis has, which is told once, not at every try.
    trouble: Option<String>,
}

/// The parts that a [`Service`] is made of.
pub struct ServiceParts {
    /// The queue's end that gives requests and takes answers.
    pub consumer: Consumer,
    /// The thread that runs the model.
    pub runner: Runner,
    /// Decodes requests and encodes answers.
    pub assembler: Arc<Assembler>,
    /// The settings that may change while the service runs.
    pub live_settings: watch::Receiver<LiveSettings>,
    /// The process' metrics.
    pub metrics: Arc<Metrics>,
    /// Ends the service after the batch that runs.
    pub stop: CancellationToken,
}

impl Service {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: ServiceParts) -> Self {
        let ServiceParts {
            consumer,
            runner,
            assembler,
            live_settings,
            metrics,
            stop,
        } = parts;
        Self {
            sharing: runner.sharing(),
            consumer,
            runner,
            assembler,
            live_settings,
            metrics,
            stop,
            waiting: WaitQueue::default(),
            long_texts: LongTexts::default(),
            answers: Vec::new(),
            timing: RunTiming::default(),
            trouble: None,
        }
    }

    /// Serves until it is told to stop, then hands back what has not started and signs off.
    pub async fn serve(mut self) -> Result<(), Fatal> {
        let ended = self.serve_batches().await;
        if ended.is_ok() {
            self.flush_answers().await?;
        }
        let mut waiting = self.long_texts.drain();
        waiting.extend(self.waiting.drain().into_iter().map(|pending| pending.id));
        // Others take over what is left when the lease is over, where Redis doesn't learn of the release.
        if let Err(error) = self.consumer.release(waiting).await {
            tracing::warn!(%error, "failed to hand back what waits");
        }
        // Requests that ran when the device failed stay pending: one may be what broke it, and whoever takes them over
        // runs them alone.
        ended?;
        if let Err(error) = self.consumer.leave().await {
            tracing::warn!(%error, "failed to sign off");
        }
        self.runner.finish();
        Ok(())
    }

    async fn serve_batches(&mut self) -> Result<(), Fatal> {
        let mut next = None;
        // A batch that is dispatched is answered in any case.
        while next.is_some() || !self.stop.is_cancelled() {
            self.apply_settings();
            let dispatched = if let Some(dispatched) = next.take() {
                dispatched
            } else {
                if self.waiting.is_empty() {
                    self.wait_for_request().await?;
                }
                self.linger().await?;
                let Some(dispatched) = self.dispatch().await? else {
                    continue;
                };
                dispatched
            };
            let rows = dispatched.rows;
            next = self.run_to_end(dispatched).await?;
            let max = self.max_rows();
            if next.is_none() && self.waiting.rows() < max {
                self.exchange(self.capacity()).await?;
                self.gather(rows, max).await?;
            }
        }
        Ok(())
    }

    /// Closes a batch and hands it to the run thread; `None` where no request waits.
    async fn dispatch(&mut self) -> Result<Option<Dispatched>, Fatal> {
        self.drop_expired();
        let padded = self.sharing.borrow().padded;
        let plan = self.waiting.plan(self.max_rows(), padded);
        if plan.requests.is_empty() {
            return Ok(None);
        }
        let started = Instant::now();
        let rows = rows(&plan.slices);
        let done = self.runner.run(plan.slices).await;
        self.timing.staged(started.elapsed());
        Ok(Some(Dispatched {
            requests: plan.requests,
            rows,
            started,
            done: done.map_err(|error| join_failed(&error))?,
        }))
    }

    /// Closes the next batch while one still runs, if it is full. A request that may end the process runs with nothing
    /// beside it.
    async fn dispatch_early(&mut self, running: &[Pending]) -> Result<Option<Dispatched>, Fatal> {
        let is_full = self.waiting.rows() >= self.max_rows();
        let is_suspect = self.waiting.holds_suspect()
            || running.iter().any(|pending| pending.quarantine.is_some());
        if is_full && !is_suspect && !self.stop.is_cancelled() {
            self.dispatch().await
        } else {
            Ok(None)
        }
    }

    fn apply_settings(&mut self) {
        if self.live_settings.has_changed().unwrap_or(false) {
            let settings = *self.live_settings.borrow_and_update();
            self.consumer.set_limits(settings.queue);
        }
    }

    /// Waits for a request while there is none. Requests that failed before they could run are answered first.
    async fn wait_for_request(&mut self) -> Result<(), Fatal> {
        if !self.answers.is_empty() {
            return self.exchange(self.capacity()).await;
        }
        if self.long_texts.is_empty() {
            self.fetch(IDLE).await
        } else if self.capacity() > 0 {
            // Short requests may come before the long ones are read.
            self.fetch(long_texts::LONGEST_WAIT).await
        } else {
            self.collect_long_texts(false).await
        }
    }

    /// Gives a batch that is not full the time that the resource allows, counted from its oldest request's arrival.
    async fn linger(&mut self) -> Result<(), Fatal> {
        let max_delay = self.live_settings.borrow().max_delay;
        match self.waiting.head().map(|head| head.arrived + max_delay) {
            Some(until) => self.fill(self.max_rows(), until).await,
            None => Ok(()),
        }
    }

    /// Waits a little for the clients just answered, who may come again to share the next batch.
    async fn gather(&mut self, answered: usize, max: usize) -> Result<(), Fatal> {
        let before = self.waiting.rows();
        let wanted = max.min(before + answered);
        if wanted > before
            && self.capacity() > 0
            && let Some(window) = self.timing.gather(answered)
        {
            self.fill(wanted, Instant::now() + window).await?;
            let came = self.waiting.rows() - before;
            self.timing.gathered(came, wanted - before);
        }
        Ok(())
    }

    /// Takes what comes until so many rows wait, there is room for no more, or the time is up.
    async fn fill(&mut self, rows: usize, until: Instant) -> Result<(), Fatal> {
        while self.waiting.rows() < rows {
            let left = until.saturating_duration_since(Instant::now());
            // The capacity is by the settings of now; `rows` may be of a larger batch.
            if left.is_zero() || self.capacity() == 0 {
                break;
            }
            self.fetch(left).await?;
        }
        Ok(())
    }

    /// Fails the requests that nobody waits for any more, so that no time is spent on them.
    fn drop_expired(&mut self) {
        for pending in self.waiting.expired(Instant::now()) {
            self.fail(pending.id, long_texts::expired());
        }
    }

    /// Sees a batch to its end. Meanwhile the answers of the one before go out, and the next one is filled; if that is
    /// dispatched, it is given back.
    async fn run_to_end(&mut self, dispatched: Dispatched) -> Result<Option<Dispatched>, Fatal> {
        let Dispatched {
            requests,
            rows,
            started,
            mut done,
        } = dispatched;
        let metrics = Arc::clone(&self.metrics);
        let busy = metrics.busy();
        for pending in &requests {
            let Pending { id, item, done, .. } = pending;
            tracing::debug!(%id, done, of = item.rows, batch = rows, "request runs");
            if *done == 0 {
                metrics.queue_wait(started.saturating_duration_since(pending.arrived));
            }
        }
        let end = self.timing.about_to_end(rows);
        // A run too short for a fetch at its end has one at its start, unless the next batch is full without. Where a
        // request of many rows fills all batches, others come beside it or never.
        let left: usize = requests.iter().map(Pending::left).sum();
        let is_full = self.waiting.rows() + left - rows >= self.max_rows();
        let capacity = if end.is_none() && is_full {
            self.capacity()
        } else {
            0
        };
        self.exchange(capacity).await?;
        let (mut early, mut next) = (None, None);
        if let Some(at) = end {
            tokio::select! {
                biased;
                result = &mut done => early = Some(result),
                () = tokio::time::sleep_until(started + at) => {
                    self.exchange(self.capacity()).await?;
                    next = self.dispatch_early(&requests).await?;
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
        self.timing.ran(rows, took);
        let outcome = result
            .map_err(|_| "the run thread ended".to_owned())
            .and_then(|ran| ran.map_err(|error| error.to_string()));
        match outcome {
            Ok(outputs) => self.complete(requests, outputs),
            Err(message) => {
                for Pending { id, .. } in &requests {
                    tracing::debug!(%id, error = message, "request ran when the device failed");
                }
                // The next batch has not begun, so it is handed back with the requests that wait.
                for pending in next.into_iter().flat_map(|next| next.requests) {
                    self.waiting.push(pending);
                }
                return Err(Fatal::new(TerminationReason::DeviceUnavailable, message));
            }
        }
        let free = started + took;
        Ok(next.map(|next| Dispatched {
            started: free,
            ..next
        }))
    }

    /// Answers the requests that are complete and lets the others go on waiting.
    fn complete(&mut self, requests: Vec<Pending>, outputs: Vec<PaddedOutputs>) {
        let started = Instant::now();
        for (mut pending, outputs) in requests.into_iter().zip(outputs) {
            let outputs = outputs.and_then(|parts| cut(parts).map_err(failed));
            let answer = match outputs {
                Ok(part) => {
                    pending.ran(part);
                    if pending.left() > 0 {
                        self.waiting.push(pending);
                        continue;
                    }
                    concatenate(pending.parts)
                        .map_err(failed)
                        .and_then(|outputs| self.assembler.answer(&pending.item, outputs))
                }
                Err(failure) => Err(failure),
            };
            match answer {
                Ok(answer) => self.answers.push((pending.id, Outcome::Answer(answer))),
                Err(failure) => self.fail(pending.id, failure),
            }
        }
        self.metrics.hop(Hop::Encode, started.elapsed());
    }

    /// Answers a request with its failure.
    fn fail(&mut self, id: JobId, failure: Failure) {
        let Failure { kind, message } = &failure;
        tracing::debug!(%id, ?kind, error = message, "request failed");
        self.answers.push((id, Outcome::Failure(failure)));
    }

    /// The most rows of a batch: what the settings say, or less where the model's answers would depend on it.
    fn max_rows(&self) -> usize {
        let max = self.live_settings.borrow().max_batch_size;
        max.min(self.sharing.borrow().max_rows)
    }
}

fn join_failed(error: &tokio::task::JoinError) -> Fatal {
    Fatal::new(
        TerminationReason::ModelInvalid,
        format!("failed to assemble: {error}"),
    )
}
