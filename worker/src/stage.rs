//! The work that the host does for a batch before the device is free: its size, its padding, its tensors.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use carpool_crds::Model;

use crate::{
    backend::{Backend, RunError, Staged},
    batch::Batch,
    item::Slice,
    memory_limit::MemoryLimit,
    size::Size,
};

/// The factor on the elements of its requests that a padded batch may not exceed.
const MAX_PADDING_FACTOR: usize = 16;
/// The padded elements up to which batches are exempt from [`MAX_PADDING_FACTOR`].
const PADDING_EXEMPT_ELEMENTS: usize = 1 << 20;

/// The maker of batches that are ready to run, on whatever thread.
pub struct Stager {
    backend: Arc<dyn Backend>,
    model: Model,
    memory_limit: Mutex<MemoryLimit>,
}

/// A batch that is ready to run.
pub struct Ready {
    /// The inputs of the batch.
    pub inputs: Box<dyn Staged>,
    /// The size of the batch.
    pub size: Size,
}

impl Stager {
    /// Makes a stager for a model, of which nothing is known yet.
    pub fn new(backend: Arc<dyn Backend>, model: Model) -> Self {
        Self {
            backend,
            model,
            memory_limit: Mutex::default(),
        }
    }

    /// Makes a batch ready, unless it is known to be too large.
    pub fn stage(&self, slices: &[Slice]) -> Result<Ready, RunError> {
        let size = Size::of(&self.model, slices)
            .filter(|size| self.admits(size))
            .ok_or_else(|| RunError::OutOfMemory("larger than what the device holds".to_owned()))?;
        let Batch { inputs, size } =
            Batch::stack(&self.model, slices, size).map_err(RunError::Model)?;
        let inputs = self.backend.stage(inputs)?;
        Ok(Ready { inputs, size })
    }

    /// The limit on the size of batches.
    pub fn memory_limit(&self) -> MutexGuard<'_, MemoryLimit> {
        self.memory_limit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a batch is to be tried: it isn't known to be too large, nor nearly all padding. A single row always is.
    fn admits(&self, size: &Size) -> bool {
        let real = size.elements - size.padding;
        let most = PADDING_EXEMPT_ELEMENTS.max(real.saturating_mul(MAX_PADDING_FACTOR));
        size.rows == 1 || (size.elements <= most && self.memory_limit().admits(size.elements))
    }
}
