//! TorchScript models on libtorch.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use carpool_crds::{Device, Model, TensorSpec};
use carpool_protocol::{Datatype, Tensor};
use tch::{CModule, IValue, Kind, TchError};

use super::{Backend, InFlight, RunError, Staged, cuda, torch_error::run_error};
use crate::{
    fatal::{Fatal, TerminationReason},
    unreadable,
};

/// A TorchScript model on a device.
pub struct TorchScript {
    model: Arc<Loaded>,
    device: tch::Device,
    threads: AtomicUsize,
}

/// The parts of a model that a forward pass needs.
struct Loaded {
    module: CModule,
    /// The outputs' names.
    outputs: Vec<String>,
}

/// A batch in the host's memory. Copying it to a device that is busy would only wait for the device: libtorch's copies
/// queue up behind its kernels.
struct Inputs {
    model: Arc<Loaded>,
    tensors: Vec<tch::Tensor>,
    device: tch::Device,
}

/// The outputs of a batch, which the device may still be computing: it works through what it was given in order, so
/// they are there once they have been copied.
struct Running {
    model: Arc<Loaded>,
    tensors: Vec<tch::Tensor>,
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
            RunError::Model(message) => {
                let why = unreadable::why_not_torch_script(file).unwrap_or(message);
                let message = format!("failed to load the model {}: {why}", file.display());
                Fatal::new(TerminationReason::ModelInvalid, message)
            }
            other => other.into(),
        };
        let mut module = CModule::load_on_device(file, device).map_err(failed)?;
        module.f_set_eval().map_err(failed)?;
        let name = |output: &TensorSpec| output.name.clone();
        let outputs = model.outputs.iter().map(name).collect();
        Ok(Self {
            model: Arc::new(Loaded { module, outputs }),
            device,
            threads: AtomicUsize::new(usize::MAX),
        })
    }

    /// Allocates on the device, adds there and copies back; gives whether the sum is right.
    fn try_device(&self) -> Result<bool, TchError> {
        let one = tch::Tensor::f_ones([8], (Kind::Float, self.device))?;
        let sum = one.f_add(&one)?.f_to_device(tch::Device::Cpu)?;
        let right = sum.f_eq(2.0)?.f_all()?;
        Ok(right.f_int64_value(&[])? == 1)
    }
}

impl Backend for TorchScript {
    fn stage(&self, inputs: Vec<Tensor>) -> Result<Box<dyn Staged>, RunError> {
        let tensors = inputs.iter().map(|input| {
            let kind = kind(input.datatype)?;
            tch::Tensor::f_from_data_size(&input.data, &input.shape, kind)
        });
        let tensors = tensors.collect::<Result<_, _>>();
        Ok(Box::new(Inputs {
            model: Arc::clone(&self.model),
            tensors: tensors.map_err(|error| run_error(&error))?,
            device: self.device,
        }))
    }

    fn works(&self) -> bool {
        match tch::no_grad(|| self.try_device()) {
            Ok(right) => right,
            Err(error) => {
                tracing::warn!(%error, "the device does not work");
                false
            }
        }
    }

    fn set_threads(&self, threads: usize) {
        // libtorch keeps the number for the process and for the calling thread, and a change costs it a thread pool.
        if self.device == tch::Device::Cpu
            && self.threads.swap(threads, Ordering::Relaxed) != threads
        {
            tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
        }
    }
}

impl Staged for Inputs {
    fn launch(self: Box<Self>) -> Result<Box<dyn InFlight>, RunError> {
        let Self {
            model,
            tensors,
            device,
        } = *self;
        let value = tch::no_grad(|| {
            let inputs = tensors
                .iter()
                .map(|tensor| tensor.f_to_device(device).map(IValue::Tensor));
            let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
            model.module.forward_is(&inputs)
        });
        let value = value.map_err(|error| run_error(&error))?;
        let tensors = tensors_of(value, &model.outputs)?;
        Ok(Box::new(Running { model, tensors }))
    }
}

impl InFlight for Running {
    fn collect(self: Box<Self>) -> Result<Vec<Tensor>, RunError> {
        let outputs = self.tensors.iter().enumerate().map(|(index, tensor)| {
            let name = self.model.outputs.get(index).map_or("", String::as_str);
            output(name, tensor).map_err(|error| run_error(&error))
        });
        tch::no_grad(|| outputs.collect())
    }
}

/// The tensors that a model gives, in the order of their declared `names`: those of these names in a dictionary, else
/// one tensor, or a tuple or a list of several, in their own order.
fn tensors_of(value: IValue, names: &[String]) -> Result<Vec<tch::Tensor>, RunError> {
    match value {
        IValue::GenericDict(entries) => by_name(entries, names),
        other => by_position(other),
    }
}

fn by_position(value: IValue) -> Result<Vec<tch::Tensor>, RunError> {
    match value {
        IValue::Tensor(tensor) => Ok(vec![tensor]),
        IValue::TensorList(tensors) => Ok(tensors),
        IValue::Tuple(values) | IValue::GenericList(values) => {
            let nested: Vec<_> = values
                .into_iter()
                .map(by_position)
                .collect::<Result<_, _>>()?;
            Ok(nested.into_iter().flatten().collect())
        }
        other => Err(RunError::Outputs(format!(
            "it gives {}, which is neither a tensor, a dictionary of tensors, nor a tuple or a list of tensors",
            kind_of(&other)
        ))),
    }
}

/// Finds the tensors of these names in a dictionary. Its other entries are nobody's concern.
fn by_name(entries: Vec<(IValue, IValue)>, names: &[String]) -> Result<Vec<tch::Tensor>, RunError> {
    let mut tensors = Vec::new();
    for (key, value) in entries {
        if let (IValue::String(name), IValue::Tensor(tensor)) = (key, value) {
            tensors.push((name, tensor));
        }
    }
    names
        .iter()
        .map(|name| {
            let given = tensors.iter().position(|(given, _)| given == name);
            given
                .map(|index| tensors[index].1.shallow_clone())
                .ok_or_else(|| {
                    let given: Vec<String> = tensors
                        .iter()
                        .map(|(name, _)| format!("{name:?}"))
                        .collect();
                    RunError::Outputs(format!(
                        "it gives no tensor of the name {name:?}; it gives {}",
                        given.join(", ")
                    ))
                })
        })
        .collect()
}

/// The kind of a value, without the megabytes that it may hold.
fn kind_of(value: &IValue) -> &'static str {
    match value {
        IValue::None => "None",
        IValue::Tensor(_) => "a tensor",
        IValue::Double(_) => "a float",
        IValue::Int(_) => "an int",
        IValue::Bool(_) => "a bool",
        IValue::Tuple(_) => "a tuple",
        IValue::IntList(_) | IValue::DoubleList(_) | IValue::BoolList(_) => "a list of numbers",
        IValue::String(_) | IValue::StringList(_) => "text",
        IValue::TensorList(_) | IValue::GenericList(_) => "a list",
        IValue::GenericDict(_) => "a dictionary within a tuple or a list",
        _ => "an object",
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
        assert_eq!(values(nested, &[]).unwrap(), [1, 2, 3]);
        assert!(tensors_of(IValue::Int(1), &[]).is_err());
    }

    fn values(value: IValue, names: &[&str]) -> Result<Vec<i64>, RunError> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let tensors = tensors_of(value, &names)?;
        Ok(tensors
            .iter()
            .map(|tensor| tensor.int64_value(&[]))
            .collect())
    }

    #[test]
    fn a_dictionarys_outputs_are_found_by_name() {
        let entry = |name: &str, value| (IValue::String(name.to_owned()), value);
        let dictionary = || {
            IValue::GenericDict(vec![
                entry("hidden", IValue::Tensor(1.into())),
                entry("loss", IValue::None),
                entry("logits", IValue::Tensor(2.into())),
            ])
        };
        assert_eq!(values(dictionary(), &["logits", "hidden"]).unwrap(), [2, 1]);
        assert_eq!(values(dictionary(), &["logits"]).unwrap(), [2]);
        let error = values(dictionary(), &["logit"]).unwrap_err().to_string();
        assert!(
            error.ends_with(r#"no tensor of the name "logit"; it gives "hidden", "logits""#),
            "{error}"
        );
    }
}
