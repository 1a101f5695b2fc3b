//! Runs a batch and sees to it that what is wrong with one request, or too large for the device, hurts nothing else.

use std::{sync::Arc, time::Instant};

use carpool_crds::Model;
use carpool_protocol::Tensor;
use carpool_queue::Failure;

use crate::{
    assemble::failed,
    backend::{Backend, RunError},
    batch::{Batch, concatenate},
    item::Slice,
    metrics::Metrics,
    progress::Progress,
    size::Size,
};

/// A batch may have so many times the elements of its requests,
const MOST_PADDING: usize = 16;
/// and so many in any case.
const MOST_PADDED: usize = 1 << 20;

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
    /// Batches of more padded elements than this are halved: twice as many ran out of memory.
    ceiling: usize,
    /// Threads that may work within a forward pass.
    threads: usize,
    /// Batches of up to this many padded elements run on one thread.
    serial: usize,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
}

impl Executor {
    /// An executor that has learnt nothing yet and reports to nobody: warming up is nobody's request.
    #[must_use]
    pub fn new(backend: Box<dyn Backend>, model: Model, threads: usize) -> Self {
        Self {
            backend,
            model,
            ceiling: usize::MAX,
            threads,
            serial: 0,
            progress: Arc::default(),
            metrics: Arc::default(),
        }
    }

    /// Reports from now on.
    pub fn report_to(&mut self, progress: Arc<Progress>, metrics: Arc<Metrics>) {
        self.progress = progress;
        self.metrics = metrics;
    }

    /// The threads that may work within a forward pass.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// From now on batches of up to so many padded elements run on one thread, larger ones on all.
    pub fn one_thread_up_to(&mut self, elements: usize) {
        self.serial = elements;
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

    /// Whether a batch is to be tried: it isn't known to be too large, nor nearly all padding. A single row always is.
    fn admits(&self, size: &Size) -> bool {
        let real = size.elements - size.padding;
        let most = MOST_PADDED.max(real.saturating_mul(MOST_PADDING));
        size.rows == 1 || size.elements <= self.ceiling.min(most)
    }

    /// One forward pass, or none for a batch that is known to be too large; the model's outputs for each slice.
    pub fn forward(&mut self, slices: &[Slice]) -> Result<Vec<Vec<Tensor>>, RunError> {
        let size = Size::of(&self.model, slices)
            .filter(|size| self.admits(size))
            .ok_or_else(|| RunError::OutOfMemory("larger than what the device holds".to_owned()))?;
        let batch = Batch::stack(&self.model, slices, size).map_err(RunError::Model)?;
        let serial = batch.size.elements <= self.serial;
        self.backend
            .set_threads(if serial { 1 } else { self.threads });
        let started = Instant::now();
        let outputs = self.backend.forward(&batch.inputs);
        self.progress.step();
        let outputs = outputs.inspect_err(|error| {
            if matches!(error, RunError::OutOfMemory(_)) {
                self.ceiling = self.ceiling.min(batch.size.elements / 2);
                tracing::warn!(rows = batch.size.rows, elements = batch.size.elements, %error, "a batch ran out of memory");
            }
        })?;
        self.metrics.forward(&batch.size, started.elapsed());
        batch
            .split(&self.model, slices, &outputs)
            .map_err(RunError::Model)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use carpool_protocol::Datatype;

    use super::*;
    use crate::item::Item;

    /// Gives a zero for each row, and keeps how many there were.
    struct Zeros(Arc<Mutex<Vec<i64>>>);

    impl Backend for Zeros {
        fn forward(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
            let rows = inputs[0].shape[0];
            self.0.lock().unwrap().push(rows);
            Ok(vec![zeros("y", vec![rows, 1])])
        }

        fn set_threads(&mut self, _: usize) {}
    }

    fn zeros(name: &str, shape: Vec<i64>) -> Tensor {
        let elements: i64 = shape.iter().product();
        let data = vec![0; usize::try_from(elements).unwrap()];
        Tensor::new(name, Datatype::Uint8, shape, Bytes::from(data)).unwrap()
    }

    #[test]
    fn requests_that_would_be_nearly_all_padding_run_apart() {
        let yaml = "{uri: file://m, inputs: [{name: x, datatype: UINT8, shape: [-1, -1]}],
            outputs: [{name: y, datatype: UINT8, shape: [1]}]}";
        let model = serde_yaml::from_str(yaml).unwrap();
        let runs = Arc::<Mutex<Vec<_>>>::default();
        let mut executor = Executor::new(Box::new(Zeros(Arc::clone(&runs))), model, 1);
        let slices = [[1, 1, 64], [1, 1, 1 << 20], [1, 1 << 20, 1], [1, 64, 1]].map(|shape| {
            Slice::whole(Arc::new(Item {
                id: String::new(),
                rows: 1,
                inputs: vec![zeros("x", shape.to_vec())],
                outputs: Vec::new(),
                length: 1,
            }))
        });
        let outputs = executor.run(&slices).unwrap();
        assert!(outputs.iter().all(Result::is_ok));
        assert_eq!(*runs.lock().unwrap(), [2, 2]);
    }
}
