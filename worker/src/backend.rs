//! What runs a model: the one boundary behind which a machine-learning library may stand.

mod cuda;
mod torch;

use carpool_protocol::Tensor;

pub use torch::TorchScript;

use crate::fatal::{Fatal, Reason};

/// A loaded model. One thread owns it.
pub trait Backend {
    /// One forward pass: the model's inputs in its order, its outputs in its order.
    fn forward(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError>;

    /// So many threads work within a forward pass from now on, where it is this process's threads that do.
    fn set_threads(&mut self, threads: usize);
}

/// Why a forward pass failed.
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
    /// The device works no longer, whatever is run next.
    #[error("the device failed: {0}")]
    Lost(String),
}

/// What it means where not even one row runs.
impl From<RunError> for Fatal {
    fn from(error: RunError) -> Self {
        let reason = match error {
            RunError::Model(_) | RunError::Outputs(_) => Reason::ModelInvalid,
            RunError::OutOfMemory(_) => Reason::OutOfMemory,
            RunError::Lost(_) => Reason::DeviceUnavailable,
        };
        Self::new(reason, error.to_string())
    }
}
