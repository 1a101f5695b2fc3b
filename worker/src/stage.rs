//! What the host does for a batch before the device is free: its size, its padding, its tensors.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use carpool_crds::Model;

use crate::{
    backend::{Backend, RunError, Staged},
    batch::Batch,
    ceiling::Ceiling,
    item::Slice,
    size::Size,
};

/// A batch may have so many times the elements of its requests,
const MOST_PADDING: usize = 16;
/// and so many in any case.
const MOST_PADDED: usize = 1 << 20;

/// Makes batches ready, on whatever thread.
pub struct Stager {
    backend: Arc<dyn Backend>,
    model: Model,
    ceiling: Mutex<Ceiling>,
}

/// A batch that is ready to run.
pub struct Ready {
    /// Its inputs.
    pub inputs: Box<dyn Staged>,
    /// Its size.
    pub size: Size,
}

impl Stager {
    /// One for a model, of which nothing is known yet.
    pub fn new(backend: Arc<dyn Backend>, model: Model) -> Self {
        Self {
            backend,
            model,
            ceiling: Mutex::default(),
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

    /// How large a batch may be.
    pub fn ceiling(&self) -> MutexGuard<'_, Ceiling> {
        self.ceiling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a batch is to be tried: it isn't known to be too large, nor nearly all padding. A single row always is.
    fn admits(&self, size: &Size) -> bool {
        let real = size.elements - size.padding;
        let most = MOST_PADDED.max(real.saturating_mul(MOST_PADDING));
        size.rows == 1 || (size.elements <= most && self.ceiling().admits(size.elements))
    }
}
