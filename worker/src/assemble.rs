//! The way from a request's bytes to an [`Item`], and from the model's tensors to an answer's bytes.

use std::path::Path;

use bytes::Bytes;
use carpool_crds::{
    Model, TensorSpec,
    tensor_names::{TOKENS, TRUNCATED},
};
use carpool_protocol::{InferRequest, InferResponse, Parameter, Shape, Tensor, cut, first_outside};
use carpool_queue::{Failure, FailureKind};

use crate::{
    fatal::Fatal,
    item::{Item, ReadText, tensor_rows},
    sharing::is_variable,
    text::TextModel,
};

/// The decoder of requests and encoder of answers for one model, with what stands before and behind the model.
pub struct Assembler {
    model: Model,
    name: String,
    revision: String,
    text: Option<TextModel>,
}

impl Assembler {
    /// Loads what the model needs besides its weights from the artifact's folder.
    pub fn load(name: &str, revision: &str, model: &Model, folder: &Path) -> Result<Self, Fatal> {
        let text = model
            .text
            .as_ref()
            .map(|text| TextModel::load(folder, model, text))
            .transpose()?;
        Ok(Self {
            model: model.clone(),
            name: name.to_owned(),
            revision: revision.to_owned(),
            text,
        })
    }

    /// Whether requests may hold text, which takes far longer to prepare than tensors.
    #[must_use]
    pub fn takes_text(&self) -> bool {
        self.text.is_some()
    }

    /// The number of tokens that a text model knows.
    #[must_use]
    pub fn vocabulary(&self) -> Option<i64> {
        let text = self.text.as_ref()?;
        i64::try_from(text.vocabulary())
            .ok()
            .filter(|known| *known > 0)
    }

    /// Whether requests differ in length, so that it matters which of them share a batch.
    #[must_use]
    pub fn groups(&self) -> bool {
        self.model.inputs.iter().any(is_variable)
    }

    /// Decodes a request.
    pub fn item(&self, body: Bytes) -> Result<Item, Failure> {
        let request = InferRequest::decode(body).map_err(|error| invalid(error.to_string()))?;
        let InferRequest {
            id,
            inputs,
            outputs,
            ..
        } = request;
        let given_text = self.text.as_ref().filter(|text| text.is_given(&inputs));
        let outputs: Vec<String> = if !outputs.is_empty() {
            outputs.into_iter().map(|output| output.name).collect()
        } else if let Some(text) = given_text {
            text.outputs()
                .iter()
                .map(|name| (*name).to_owned())
                .collect()
        } else {
            let own = self.model.outputs.iter();
            own.map(|output| output.name.clone()).collect()
        };
        if let Some(unknown) = outputs
            .iter()
            .find(|name| !self.gives(name, given_text.is_some()))
        {
            return Err(invalid(format!("the model has no output {}", cut(unknown))));
        }
        let (inputs, texts) = if let Some(text) = given_text {
            text.read(&inputs).map_err(invalid)?
        } else {
            let own = self.model.inputs.iter().map(|spec| find(spec, &inputs));
            (own.collect::<Result<_, _>>()?, Vec::new())
        };
        self.checked(id, inputs, outputs, texts)
    }

    /// Makes an item of tensors that no client sent, one for each of the model's inputs in its order.
    pub fn made(&self, inputs: Vec<Tensor>) -> Result<Item, Failure> {
        self.checked(String::new(), inputs, Vec::new(), Vec::new())
    }

    fn checked(
        &self,
        id: String,
        inputs: Vec<Tensor>,
        outputs: Vec<String>,
        texts: Vec<ReadText>,
    ) -> Result<Item, Failure> {
        let rows = inputs.first().map_or(0, tensor_rows);
        if inputs
            .iter()
            .any(|input| tensor_rows(input) != rows || input.data.is_empty())
        {
            return Err(invalid(
                "all inputs must have the same number of rows, and no dimension may be 0",
            ));
        }
        let mut item = Item {
            id,
            rows,
            inputs,
            outputs,
            lengths: Vec::new(),
            unpadded: Vec::new(),
            texts,
        };
        let mut named: Vec<(&str, i64)> = Vec::new();
        for (spec, input) in self.model.inputs.iter().zip(&item.inputs) {
            let padded = self.model.padding(spec).is_some();
            for (dimension, size) in spec.shape.iter().zip(&input.shape[1..]) {
                if dimension.fixed().is_some() {
                    continue;
                }
                item.lengths.push(*size);
                if !padded {
                    item.unpadded.push(*size);
                }
                let Some(name) = dimension.name() else {
                    continue;
                };
                match named.iter().find(|(other, _)| *other == name) {
                    Some((_, other)) if other != size => {
                        return Err(invalid(format!(
                            "the dimension {name} is {other} in one input and {size} in {}",
                            spec.name
                        )));
                    }
                    Some(_) => {}
                    None => named.push((name, *size)),
                }
            }
        }
        Ok(item)
    }

    /// Encodes the answer to a request from the model's outputs, which are all there, in the model's order.
    pub fn answer(&self, item: &Item, mut outputs: Vec<Tensor>) -> Result<Bytes, Failure> {
        if let Some(text) = &self.text {
            // An output that the task makes goes before one of the model's that has its name.
            let made = text.answers(item, &outputs).map_err(failed)?;
            outputs.splice(0..0, made);
        }
        let is_cut = item.texts.iter().any(|text| text.truncated);
        let wanted = item.outputs.iter().filter_map(|name| {
            let mut output = outputs.iter().find(|output| output.name == *name)?.clone();
            if is_cut {
                let parameters = &mut output.parameters;
                parameters.insert(TRUNCATED.to_owned(), Parameter::Bool(true));
            }
            Some(output)
        });
        let wanted = wanted.collect();
        let response = InferResponse {
            model_name: self.name.clone(),
            model_version: self.revision.clone(),
            id: item.id.clone(),
            outputs: wanted,
            ..InferResponse::default()
        };
        Ok(response.encode())
    }

    fn gives(&self, name: &str, is_text: bool) -> bool {
        let of_task = |text: &TextModel| text.outputs().contains(&name);
        self.model.outputs.iter().any(|output| output.name == name)
            || self.text.as_ref().is_some_and(of_task)
            || (is_text && [TOKENS, TRUNCATED].contains(&name))
    }
}

/// Finds the input that `spec` declares, and checks it against that.
fn find(spec: &TensorSpec, inputs: &[Tensor]) -> Result<Tensor, Failure> {
    let tensor = inputs
        .iter()
        .find(|input| input.name == spec.name)
        .ok_or_else(|| invalid(format!("the input {} is missing", spec.name)))?;
    let item = tensor.shape.get(1..);
    let fits =
        tensor.datatype == spec.datatype.into() && item.is_some_and(|item| spec.allows(item));
    if !fits {
        let TensorSpec { name, datatype, .. } = spec;
        let hint = if tensor.shape.contains(&0) {
            "; no dimension may be 0"
        } else {
            ""
        };
        return Err(invalid(format!(
            "the input {name} must be {datatype} of shape {} for each row, it is {} of shape {}{hint}",
            spec.written_shape(),
            tensor.datatype,
            Shape(&tensor.shape)
        )));
    }
    bounded(spec, tensor)?;
    Ok(tensor.clone())
}

/// Checks that every element of an input lies between the bounds that the model declares.
fn bounded(spec: &TensorSpec, tensor: &Tensor) -> Result<(), Failure> {
    let TensorSpec {
        name,
        minimum,
        maximum,
        ..
    } = spec;
    let outside = first_outside(tensor.datatype, &tensor.data, *minimum, *maximum);
    let Some((index, value)) = outside else {
        return Ok(());
    };
    let bounds = [("minimum", minimum), ("maximum", maximum)];
    let given = bounds.map(|(bound, value)| value.map(|value| format!("{bound} {value}")));
    let given: Vec<String> = given.into_iter().flatten().collect();
    Err(invalid(format!(
        "the input {name} holds {value} (element {index}), which is outside of its {}",
        given.join(" and ")
    )))
}

/// Writes a whole number as one element of a datatype, in raw little-endian bytes.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a pad value that its datatype can't hold is cut, as libtorch would cut it"
)]
pub fn element(datatype: carpool_crds::Datatype, value: i64) -> Vec<u8> {
    match datatype {
        carpool_crds::Datatype::Bool => vec![u8::from(value != 0)],
        carpool_crds::Datatype::Uint8 | carpool_crds::Datatype::Int8 => vec![value as u8],
        carpool_crds::Datatype::Int16 => (value as i16).to_le_bytes().to_vec(),
        carpool_crds::Datatype::Int32 => (value as i32).to_le_bytes().to_vec(),
        carpool_crds::Datatype::Int64 => value.to_le_bytes().to_vec(),
        carpool_crds::Datatype::Fp16 => half::f16::from_f64(value as f64).to_le_bytes().to_vec(),
        carpool_crds::Datatype::Bf16 => half::bf16::from_f64(value as f64).to_le_bytes().to_vec(),
        carpool_crds::Datatype::Fp32 => (value as f32).to_le_bytes().to_vec(),
        carpool_crds::Datatype::Fp64 => (value as f64).to_le_bytes().to_vec(),
    }
}

/// Makes a failure that is the client's mistake.
fn invalid(message: impl Into<String>) -> Failure {
    Failure {
        kind: FailureKind::Invalid,
        message: message.into(),
    }
}

/// Makes a failure that is the model's, on one request.
pub fn failed(message: impl Into<String>) -> Failure {
    Failure {
        kind: FailureKind::Model,
        message: message.into(),
    }
}
