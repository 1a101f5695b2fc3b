//! Runs a batch and sees to it that what is wrong with one request, or too large for the device, hurts nothing else.

use std::{sync::Arc, time::Instant};

use carpool_crds::Model;
use carpool_protocol::Tensor;
use carpool_queue::Failure;

use crate::{
    assemble::failed,
    backend::{Backend, RunError},
    batch::{Batch, concatenate},
    item::{Slice, rows},
    metrics::Metrics,
    progress::Progress,
};

/// What a slice's rows became: the model's outputs for them, or its failure.
pub type Outputs = Result<Vec<Tensor>, Failure>;

/// The device works no longer. Nothing is answered: what ran may be what broke it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the device failed: {0}")]
pub struct Lost(pub String);

/// A model and what was learnt about its device.
pub struct Executor {
    backend: Box<dyn Backend>,
    model: Model,
    /// Batches of more padded elements than this ran out of memory.
    ceiling: usize,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
}

impl Executor {
    /// An executor that has learnt nothing yet and reports to nobody: warming up is nobody's request.
    #[must_use]
    pub fn new(backend: Box<dyn Backend>, model: Model) -> Self {
        Self {
            backend,
            model,
            ceiling: usize::MAX,
            progress: Arc::default(),
            metrics: Arc::default(),
        }
    }

    /// Reports from now on.
    pub fn report_to(&mut self, progress: Arc<Progress>, metrics: Arc<Metrics>) {
        self.progress = progress;
        self.metrics = metrics;
    }

    /// Runs slices as one batch; a result for each, in their order.
    ///
    /// A batch that fails is halved and its halves are run, down to the slice that fails alone. A batch that is too
    /// large for the device is halved too, down to one row, and later ones are kept below its size.
    pub fn run(&mut self, slices: &[Slice]) -> Result<Vec<Outputs>, Lost> {
        let failure = match self.forward(slices) {
            Ok(outputs) => return Ok(outputs.into_iter().map(Ok).collect()),
            Err(RunError::Lost(message)) => return Err(Lost(message)),
            Err(failure) => failure,
        };
        if let [slice] = slices {
            let divisible = matches!(failure, RunError::OutOfMemory(_)) && slice.rows.len() > 1;
            let outputs = if divisible {
                self.by_rows(slice)?
            } else {
                Err(failed(failure.to_string()))
            };
            return Ok(vec![outputs]);
        }
        let (first, second) = slices.split_at(slices.len() / 2);
        let mut outputs = self.run(first)?;
        outputs.extend(self.run(second)?);
        Ok(outputs)
    }

    /// Runs the two halves of one slice.
    fn by_rows(&mut self, slice: &Slice) -> Result<Outputs, Lost> {
        let middle = slice.rows.start + slice.rows.len() / 2;
        let mut parts = Vec::with_capacity(2);
        for rows in [slice.rows.start..middle, middle..slice.rows.end] {
            let half = Slice {
                item: Arc::clone(&slice.item),
                rows,
            };
            for outputs in self.run(&[half])? {
                match outputs {
                    Ok(outputs) => parts.push(outputs),
                    Err(failure) => return Ok(Err(failure)),
                }
            }
        }
        Ok(concatenate(parts).map_err(failed))
    }

    /// One forward pass, or none for a batch that is known to be too large; the model's outputs for each slice.
    pub fn forward(&mut self, slices: &[Slice]) -> Result<Vec<Vec<Tensor>>, RunError> {
        let batch = Batch::stack(&self.model, slices).map_err(RunError::Model)?;
        if batch.elements > self.ceiling && rows(slices) > 1 {
            return Err(RunError::OutOfMemory(
                "larger than what the device holds".to_owned(),
            ));
        }
        let started = Instant::now();
        let outputs = self.backend.forward(&batch.inputs);
        self.progress.step();
        let outputs = outputs.inspect_err(|error| {
            if matches!(error, RunError::OutOfMemory(_)) {
                self.ceiling = self.ceiling.min(batch.elements / 2);
                tracing::warn!(rows = batch.rows, elements = batch.elements, %error, "a batch ran out of memory");
            }
        })?;
        self.metrics.forward(&batch, started.elapsed());
        batch
            .split(&self.model, slices, &outputs)
            .map_err(RunError::Model)
    }
}
