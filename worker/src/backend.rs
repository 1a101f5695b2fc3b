//! The boundary behind which a machine-learning library runs a model.

mod cuda;
mod torch;
mod torch_error;

use carpool_protocol::Tensor;

pub use torch::TorchScript;

use crate::fatal::{Fatal, TerminationReason};

/// A loaded model. A batch goes through it in three steps, so that what the host does for one batch can be done while the
/// device is busy with another: [`Self::stage`] makes its inputs, [`Staged::launch`] brings them to the device and begins
/// the forward pass, [`InFlight::collect`] waits for its end and brings the outputs back.
///
/// Any thread may stage. One thread launches and collects, one batch at a time.
pub trait Backend: Send + Sync {
    /// Makes a batch ready: the model's inputs in its order.
    fn stage(&self, inputs: Vec<Tensor>) -> Result<Box<dyn Staged>, RunError>;

    /// Whether the device still works, which is found out by a tiny operation on it: what looked like its failure may
    /// have been that of one batch.
    fn works(&self) -> bool;

    /// Has this many threads work within a forward pass from now on, where it is this process's threads that do.
    fn set_threads(&self, threads: usize);
}

/// A batch that is ready to run.
pub trait Staged: Send {
    /// Begins the forward pass. Where the device is the processor itself, this is the whole pass.
    fn launch(self: Box<Self>) -> Result<Box<dyn InFlight>, RunError>;
}

/// A batch that runs.
pub trait InFlight {
    /// Waits for the end of the forward pass, and gives its outputs in the model's order.
    fn collect(self: Box<Self>) -> Result<Vec<Tensor>, RunError>;
}

/// A forward pass that is a function call.
impl<F: FnOnce() -> Result<Vec<Tensor>, RunError> + Send> Staged for F {
    fn launch(self: Box<Self>) -> Result<Box<dyn InFlight>, RunError> {
        self().map(|outputs| Box::new(outputs) as Box<dyn InFlight>)
    }
}

/// A batch that has run already.
impl InFlight for Vec<Tensor> {
    fn collect(self: Box<Self>) -> Result<Vec<Tensor>, RunError> {
        Ok(*self)
    }
}

/// The reason that a forward pass failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The model doesn't take this input. Others aren't affected.
    #[error("the model failed: {0}")]
    Model(String),
    /// The model ran, and gave something else than it declares.
    #[error("the model's outputs are not what spec.model.outputs declares: {0}")]
    Outputs(String),
    /// The device's memory holds no batch of this size.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The device works no longer, whatever is run next. From a [`Backend`] it only looks that way, until
    /// [`Backend::works`] has been asked.
    #[error("the device failed: {0}")]
    DeviceLost(String),
}

/// The reason that ends the process where not even one row runs.
impl From<RunError> for Fatal {
    fn from(error: RunError) -> Self {
        let reason = match error {
            RunError::Model(_) | RunError::Outputs(_) => TerminationReason::ModelInvalid,
            RunError::OutOfMemory(_) => TerminationReason::OutOfMemory,
            RunError::DeviceLost(_) => TerminationReason::DeviceUnavailable,
        };
        Self::new(reason, error.to_string())
    }
}
