//! TorchScript models on libtorch.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use carpool_crds::{Device, Model, TensorSpec};
use carpool_protocol::{Datatype, Tensor};
use tch::{CModule, IValue, Kind, TchError};

use super::{Backend, RunError, cuda};
use crate::fatal::{Fatal, Reason};

/// A TorchScript model on a device.
pub struct TorchScript {
    module: CModule,
    device: tch::Device,
    threads: usize,
    outputs: Vec<String>,
}

impl TorchScript {
    /// Loads a model from a file.
    pub fn load(file: &Path, model: &Model, device: Device) -> Result<Self, Fatal> {
        let device = match device {
            Device::Cpu => tch::Device::Cpu,
            Device::Cuda => {
                cuda::load()?;
                tch::Device::Cuda(0)
            }
        };
        let failed = |error: TchError| match run_error(&error) {
            RunError::Model(message) => Fatal::new(
                Reason::ModelInvalid,
                format!("failed to load the model {}: {message}", file.display()),
            ),
            other => other.into(),
        };
        let mut module = CModule::load_on_device(file, device).map_err(failed)?;
        module.f_set_eval().map_err(failed)?;
        let name = |output: &TensorSpec| output.name.clone();
        Ok(Self {
            module,
            device,
            threads: usize::MAX,
            outputs: model.outputs.iter().map(name).collect(),
        })
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
        let inputs = inputs
            .iter()
            .map(|input| {
                let kind = kind(input.datatype)?;
                tch::Tensor::f_from_data_size(&input.data, &input.shape, kind)?
                    .f_to_device(self.device)
                    .map(IValue::Tensor)
            })
            .collect::<Result<Vec<_>, _>>()?;
        tensors(self.module.forward_is(&inputs)?)?
            .iter()
            .enumerate()
            .map(|(index, tensor)| {
                let name = self.outputs.get(index).map_or("", String::as_str);
                output(name, tensor)
            })
            .collect()
    }
}

impl Backend for TorchScript {
    fn forward(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        tch::no_grad(|| self.run(inputs)).map_err(|error| run_error(&error))
    }

    fn set_threads(&mut self, threads: usize) {
        // libtorch keeps the number for the process and for the calling thread, and a change costs it a thread pool.
        if self.device == tch::Device::Cpu && self.threads != threads {
            tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
            self.threads = threads;
        }
    }
}

/// The tensors that a model gives: one, or a tuple or a list of several.
fn tensors(value: IValue) -> Result<Vec<tch::Tensor>, TchError> {
    match value {
        IValue::Tensor(tensor) => Ok(vec![tensor]),
        IValue::TensorList(tensors) => Ok(tensors),
        IValue::Tuple(values) | IValue::GenericList(values) => {
            let nested: Vec<_> = values.into_iter().map(tensors).collect::<Result<_, _>>()?;
            Ok(nested.into_iter().flatten().collect())
        }
        other => Err(TchError::Convert(format!(
            "it gives {other:?}, which is neither a tensor nor a tuple or a list of tensors"
        ))),
    }
}

fn output(name: &str, tensor: &tch::Tensor) -> Result<Tensor, TchError> {
    let kind = tensor.f_kind()?;
    let datatype = datatype(kind)?;
    let elements = tensor.numel();
    let mut data = BytesMut::zeroed(elements * kind.elt_size_in_bytes());
    tensor.f_copy_data_u8(&mut data, elements)?;
    Tensor::new(name, datatype, tensor.size(), Bytes::from(data))
        .map_err(|error| TchError::Convert(error.to_string()))
}

fn kind(datatype: Datatype) -> Result<Kind, TchError> {
    KINDS
        .iter()
        .find_map(|(kind, this)| (*this == datatype).then_some(*kind))
        .ok_or_else(|| TchError::Kind(format!("libtorch has no {datatype}")))
}

fn datatype(kind: Kind) -> Result<Datatype, TchError> {
    KINDS
        .iter()
        .find_map(|(this, datatype)| (*this == kind).then_some(*datatype))
        .ok_or_else(|| TchError::Kind(format!("the protocol has no {kind:?}")))
}

const KINDS: [(Kind, Datatype); 10] = [
    (Kind::Bool, Datatype::Bool),
    (Kind::Uint8, Datatype::Uint8),
    (Kind::Int8, Datatype::Int8),
    (Kind::Int16, Datatype::Int16),
    (Kind::Int, Datatype::Int32),
    (Kind::Int64, Datatype::Int64),
    (Kind::Half, Datatype::Fp16),
    (Kind::BFloat16, Datatype::Bf16),
    (Kind::Float, Datatype::Fp32),
    (Kind::Double, Datatype::Fp64),
];

/// Tells the kinds of failure apart by libtorch's own words, the only thing that its C++ exceptions leave of them.
fn run_error(error: &TchError) -> RunError {
    let text = error.to_string();
    let out_of_memory = [
        "out of memory",
        "can't allocate memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
    ];
    if out_of_memory.iter().any(|words| text.contains(words)) {
        RunError::OutOfMemory(gist(&text))
    } else if ["CUDA error", "CUDNN_STATUS_", "CUBLAS_STATUS_"]
        .iter()
        .any(|words| text.contains(words))
    {
        RunError::Lost(gist(&text))
    } else {
        RunError::Model(gist(&text))
    }
}

/// The line that says what went wrong, without the tracebacks of TorchScript and C++ around it.
fn gist(text: &str) -> String {
    let marked = text
        .lines()
        .rev()
        .find_map(|line| line.split_once("Error: "));
    let gist = marked.map_or_else(
        || text.lines().find(|line| !line.trim().is_empty()),
        |(_, gist)| Some(gist),
    );
    gist.unwrap_or(text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_outputs_come_in_their_order() {
        let tensor = |value: i64| IValue::Tensor(tch::Tensor::from(value));
        let nested = IValue::Tuple(vec![
            tensor(1),
            IValue::TensorList(vec![2.into(), 3.into()]),
        ]);
        let values: Vec<i64> = tensors(nested)
            .unwrap()
            .iter()
            .map(|tensor| tensor.int64_value(&[]))
            .collect();
        assert_eq!(values, [1, 2, 3]);
        assert!(tensors(IValue::Int(1)).is_err());
    }

    #[test]
    fn failures_are_told_apart() {
        let error = |text: &str| run_error(&TchError::Torch(text.to_owned()));
        assert!(matches!(
            error("CUDA out of memory. Tried to allocate 2.00 GiB."),
            RunError::OutOfMemory(_)
        ));
        assert!(matches!(
            error("CUDA error: device-side assert triggered"),
            RunError::Lost(_)
        ));
        let traceback = "The following operation failed in the TorchScript interpreter.\n\
            Traceback of TorchScript (most recent call last):\nRuntimeError: index out of range in self\n\n";
        assert_eq!(
            error(traceback),
            RunError::Model("index out of range in self".to_owned())
        );
    }
}
