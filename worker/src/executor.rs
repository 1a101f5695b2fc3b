//! The executor of batches: what is wrong with one request, or too large for the device, hurts nothing else.

use std::{ops::Range, sync::Arc, time::Instant};

use carpool_crds::{LoadedReason, Model};
use carpool_protocol::Tensor;
use carpool_queue::Failure;
use tokio::sync::watch;

use crate::{
    assemble::failed,
    backend::{Backend, InFlight, RunError},
    batch::{Part, concatenate, cut, split},
    item::{self, Slice, rows},
    metrics::Metrics,
    progress::Progress,
    sharing::Sharing,
    stage::{Ready, Stager},
};

/// The result for a slice's rows: the model's outputs for them, or a failure.
pub type Outputs = Result<Vec<Tensor>, Failure>;

/// The result for a slice's rows, with the padding that outputs may have: the device need not wait until that is cut
/// off.
pub type PaddedOutputs = Result<Vec<Part>, Failure>;

/// The error that the device works no longer. Nothing is answered: a request that ran may be what broke it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the device failed: {0}")]
pub struct DeviceLost(pub String);

/// A model, and all that was learnt about it and its device.
pub struct Executor {
    backend: Arc<dyn Backend>,
    stager: Arc<Stager>,
    model: Model,
    /// The rows that may share a batch.
    sharing: watch::Sender<Sharing>,
    /// The number of threads that may work within a forward pass.
    threads: usize,
    /// The padded elements up to which a batch runs on one thread.
    serial: usize,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
}

impl Executor {
    /// Makes an executor that has learnt nothing yet and reports to nobody: warming up is nobody's request.
    #[must_use]
    pub fn new(backend: Box<dyn Backend>, model: Model, threads: usize) -> Self {
        let backend: Arc<dyn Backend> = Arc::from(backend);
        Self {
            stager: Arc::new(Stager::new(Arc::clone(&backend), model.clone())),
            backend,
            sharing: watch::Sender::new(Sharing::declared(&model)),
            model,
            threads,
            serial: 0,
            progress: Arc::default(),
            metrics: Arc::default(),
        }
    }

    /// Reports to these from now on, and at once how long passes took until now.
    pub fn report_to(&mut self, progress: Arc<Progress>, metrics: Arc<Metrics>) {
        progress.seen(self.progress.slowest());
        self.progress = progress;
        self.metrics = metrics;
    }

    /// Tells which rows may share a batch, now and as more is learnt.
    #[must_use]
    pub fn sharing(&self) -> watch::Receiver<Sharing> {
        self.sharing.subscribe()
    }

    /// The stager, which makes batches ready for [`Self::run_staged`].
    #[must_use]
    pub fn stager(&self) -> Arc<Stager> {
        Arc::clone(&self.stager)
    }

    /// Limits what may share a batch from now on.
    pub fn limit(&mut self, limit: impl FnOnce(Sharing) -> Sharing) {
        self.sharing
            .send_modify(|sharing| *sharing = limit(sharing.clone()));
    }

    /// The number of threads that may work within a forward pass.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs batches of up to this many padded elements on one thread from now on, larger ones on all.
    pub fn one_thread_up_to(&mut self, elements: usize) {
        self.serial = elements;
    }

    /// Runs slices as one batch; a result for each, in their order.
    ///
    /// A batch that fails is halved and its halves are run, down to the slice that fails alone. One that is too large for
    /// the device is halved too, down to one row, and later ones are kept below its size. One that runs, and then gives
    /// what can't be cut apart, is run again in parts that can. Where parts pass and the whole did not, later batches are
    /// no larger than they were.
    pub fn run(&mut self, slices: &[Slice]) -> Result<Vec<Outputs>, DeviceLost> {
        match self.forward(slices) {
            Ok(outputs) => Ok(outputs.into_iter().map(Ok).collect()),
            Err(failure) => self.run_parts(slices, failure),
        }
    }

    /// Runs slices that were made ready beside another batch, as [`Self::run`] does. Those that could not be made ready
    /// are tried again: the other batch may have been the cause.
    pub fn run_staged(
        &mut self,
        slices: &[Slice],
        ready: Result<Ready, RunError>,
    ) -> Result<Vec<PaddedOutputs>, DeviceLost> {
        let ready = ready.or_else(|_| self.stage(slices));
        match ready.and_then(|ready| self.pass(slices, ready)) {
            Ok(outputs) => Ok(outputs.into_iter().map(Ok).collect()),
            Err(failure) => {
                let whole = |tensors: Vec<Tensor>| tensors.into_iter().map(Part::from).collect();
                let outputs = self.run_parts(slices, failure)?.into_iter();
                Ok(outputs.map(|outputs| outputs.map(whole)).collect())
            }
        }
    }

    /// Runs the parts of a batch that failed as a whole.
    fn run_parts(
        &mut self,
        slices: &[Slice],
        failure: RunError,
    ) -> Result<Vec<Outputs>, DeviceLost> {
        if let RunError::DeviceLost(message) = failure {
            return Err(DeviceLost(message));
        }
        match (&failure, slices) {
            (RunError::Outputs(_), _) if rows(slices) > 1 => self.run_apart(slices, &failure),
            (RunError::OutOfMemory(_), [slice]) if slice.rows.len() > 1 => {
                let middle = slice.rows.start + slice.rows.len() / 2;
                let halves = [slice.rows.start..middle, middle..slice.rows.end];
                Ok(vec![self.by_rows(slice, halves)?])
            }
            (_, [_]) => Ok(vec![Err(failed(failure.to_string()))]),
            _ => {
                let (first, second) = slices.split_at(slices.len() / 2);
                let mut outputs = self.run(first)?;
                outputs.extend(self.run(second)?);
                if matches!(failure, RunError::Model(_)) && outputs.iter().all(Result::is_ok) {
                    self.learn(slices, rows(first).max(rows(second)), &failure);
                }
                Ok(outputs)
            }
        }
    }

    /// Runs a batch whose outputs can't be cut apart in parts whose outputs can: slices of equal shape together, or
    /// every row alone.
    fn run_apart(
        &mut self,
        slices: &[Slice],
        failure: &RunError,
    ) -> Result<Vec<Outputs>, DeviceLost> {
        let outputs = if are_alike(slices) {
            slices
                .iter()
                .map(|slice| self.by_rows(slice, slice.rows.clone().map(|row| row..row + 1)))
                .collect::<Result<Vec<_>, _>>()?
        } else {
            self.by_shape(slices)?
        };
        if outputs.iter().any(Result::is_ok) {
            self.learn(slices, 1, failure);
        }
        Ok(outputs)
    }

    /// Runs slices of equal shape together.
    fn by_shape(&mut self, slices: &[Slice]) -> Result<Vec<Outputs>, DeviceLost> {
        let lengths = |index: &usize| &slices[*index].item.lengths;
        let mut order: Vec<usize> = (0..slices.len()).collect();
        order.sort_by(|a, b| lengths(a).cmp(lengths(b)));
        let mut outputs = Vec::with_capacity(slices.len());
        for alike in order.chunk_by(|a, b| lengths(a) == lengths(b)) {
            let group: Vec<Slice> = alike.iter().map(|index| slices[*index].clone()).collect();
            outputs.extend(alike.iter().copied().zip(self.run(&group)?));
        }
        outputs.sort_by_key(|(index, _)| *index);
        Ok(outputs.into_iter().map(|(_, outputs)| outputs).collect())
    }

    /// Runs ranges of a slice's rows, up to the first that fails.
    fn by_rows(
        &mut self,
        slice: &Slice,
        ranges: impl IntoIterator<Item = Range<usize>>,
    ) -> Result<Outputs, DeviceLost> {
        let mut parts = Vec::new();
        for rows in ranges {
            let item = Arc::clone(&slice.item);
            for outputs in self.run(&[Slice { item, rows }])? {
                match outputs {
                    Ok(outputs) => parts.push(outputs),
                    Err(failure) => return Ok(Err(failure)),
                }
            }
        }
        Ok(concatenate(parts).map_err(failed))
    }

    /// Remembers a batch that failed though its parts pass: nothing is padded any more if that is how they differ, else no
    /// more than `rows` run together.
    fn learn(&mut self, slices: &[Slice], rows: usize, failure: &RunError) {
        let sharing = self.sharing.borrow().clone();
        let is_known = if are_alike(slices) {
            sharing.max_rows <= rows
        } else {
            !sharing.padded
        };
        // A part of the same batch has taught the limit already.
        if is_known {
            return;
        }
        let limited = if !are_alike(slices) {
            sharing.unpadded(&format!("a padded batch failed: {failure}"))
        } else if rows == 1 {
            sharing.unbatched(
                LoadedReason::Unbatched,
                &format!("a batch failed whose rows pass alone: {failure}"),
            )
        } else {
            Sharing {
                max_rows: rows,
                ..sharing
            }
        };
        tracing::warn!(
            rows = item::rows(slices),
            %failure,
            padded = limited.padded,
            max_rows = limited.max_rows,
            "a batch failed whose parts pass; less is run together from now on"
        );
        self.sharing.send_replace(limited);
    }

    /// Runs one forward pass, or none for a batch that is known to be too large; gives the model's outputs for each
    /// slice.
    pub fn forward(&mut self, slices: &[Slice]) -> Result<Vec<Vec<Tensor>>, RunError> {
        let ready = self.stage(slices)?;
        let outputs = self.pass(slices, ready)?.into_iter();
        outputs
            .map(|parts| cut(parts).map_err(RunError::Outputs))
            .collect()
    }

    /// Makes a batch ready while no other runs.
    fn stage(&self, slices: &[Slice]) -> Result<Ready, RunError> {
        let staged = self.stager.stage(slices);
        staged.map_err(|error| self.confirmed(error))
    }

    /// Runs one forward pass with a batch that is ready.
    fn pass(&mut self, slices: &[Slice], ready: Ready) -> Result<Vec<Vec<Part>>, RunError> {
        let Ready { inputs, size } = ready;
        let serial = size.elements <= self.serial;
        self.backend
            .set_threads(if serial { 1 } else { self.threads });
        let started = Instant::now();
        self.progress.begin(size.rows);
        let outputs = inputs.launch().and_then(InFlight::collect);
        self.progress.end();
        let outputs = outputs.map_err(|error| {
            if matches!(error, RunError::OutOfMemory(_)) {
                self.stager.memory_limit().ran_out(size.elements);
                tracing::warn!(rows = size.rows, elements = size.elements, %error, "a batch ran out of memory");
            }
            self.confirmed(error)
        })?;
        self.stager.memory_limit().ran(size.elements);
        self.metrics.forward(&size, started.elapsed());
        split(&size, &self.model, slices, &outputs).map_err(RunError::Outputs)
    }

    /// Asks the device whether an error is its own: where it works nonetheless, this batch failed.
    fn confirmed(&self, error: RunError) -> RunError {
        match error {
            RunError::DeviceLost(message) if self.backend.works() => {
                tracing::warn!(message, "a batch failed on a device that works");
                RunError::Model(message)
            }
            error => error,
        }
    }
}

/// Whether these slices can share a batch without padding.
fn are_alike(slices: &[Slice]) -> bool {
    slices
        .windows(2)
        .all(|pair| pair[0].item.lengths == pair[1].item.lengths)
}

#[cfg(test)]
mod tests;
