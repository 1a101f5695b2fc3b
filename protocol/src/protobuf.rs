//! Messages as protobuf.

mod contents;
mod parameters;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{
    Message,
    encoding::{DecodeContext, decode_key, skip_field},
};

use crate::{
    Datatype, DecodeError, InferRequest, InferResponse, RequestedOutput, Tensor,
    inference::{
        InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
        model_infer_response::InferOutputTensor,
    },
    message::{MAX_TENSORS, check_names},
};

impl InferRequest {
    /// Writes the request as a protobuf `ModelInferRequest` with raw contents.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let message = ModelInferRequest {
            model_name: self.model_name.clone(),
            model_version: self.model_version.clone(),
            id: self.id.clone(),
            parameters: parameters::encode(&self.parameters),
            inputs: self
                .inputs
                .iter()
                .map(|tensor| InferInputTensor {
                    name: tensor.name.clone(),
                    datatype: tensor.datatype.to_string(),
                    shape: tensor.shape.clone(),
                    ..InferInputTensor::default()
                })
                .collect(),
            outputs: self
                .outputs
                .iter()
                .map(|output| InferRequestedOutputTensor {
                    name: output.name.clone(),
                    parameters: parameters::encode(&output.parameters),
                })
                .collect(),
            raw_input_contents: self
                .inputs
                .iter()
                .map(|tensor| tensor.data.clone())
                .collect(),
        };
        message.encode_to_vec().into()
    }

    /// Reads the request in a protobuf `ModelInferRequest`.
    ///
    /// Raw contents become slices of `message`; typed contents are turned into raw.
    pub fn decode(message: Bytes) -> Result<Self, DecodeError> {
        limit_tensors(&message)?;
        let message = ModelInferRequest::decode(message)?;
        let inputs = message
            .inputs
            .into_iter()
            .map(|input| Described {
                name: input.name,
                datatype: input.datatype,
                shape: input.shape,
                contents: input.contents,
                parameters: BTreeMap::new(),
            })
            .collect();
        let outputs = message
            .outputs
            .into_iter()
            .map(|output| {
                let parameters = parameters::decode(output.parameters)?;
                Ok(RequestedOutput {
                    name: output.name,
                    parameters,
                })
            })
            .collect::<Result<Vec<_>, DecodeError>>()?;
        check_names(outputs.iter().map(|output| &output.name))?;
        Ok(Self {
            model_name: message.model_name,
            model_version: message.model_version,
            id: message.id,
            parameters: parameters::decode(message.parameters)?,
            inputs: tensors(inputs, message.raw_input_contents)?,
            outputs,
        })
    }
}

impl InferResponse {
    /// Writes the response as a protobuf `ModelInferResponse` with raw contents.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let message = ModelInferResponse {
            model_name: self.model_name.clone(),
            model_version: self.model_version.clone(),
            id: self.id.clone(),
            parameters: parameters::encode(&self.parameters),
            outputs: self
                .outputs
                .iter()
                .map(|tensor| InferOutputTensor {
                    name: tensor.name.clone(),
                    datatype: tensor.datatype.to_string(),
                    shape: tensor.shape.clone(),
                    parameters: parameters::encode(&tensor.parameters),
                    ..InferOutputTensor::default()
                })
                .collect(),
            raw_output_contents: self
                .outputs
                .iter()
                .map(|tensor| tensor.data.clone())
                .collect(),
        };
        message.encode_to_vec().into()
    }

    /// Reads the response in a protobuf `ModelInferResponse`.
    ///
    /// Raw contents become slices of `message`; typed contents are turned into raw.
    pub fn decode(message: Bytes) -> Result<Self, DecodeError> {
        limit_tensors(&message)?;
        let message = ModelInferResponse::decode(message)?;
        let outputs = message
            .outputs
            .into_iter()
            .map(|output| Described {
                name: output.name,
                datatype: output.datatype,
                shape: output.shape,
                contents: output.contents,
                parameters: output.parameters,
            })
            .collect();
        Ok(Self {
            model_name: message.model_name,
            model_version: message.model_version,
            id: message.id,
            parameters: parameters::decode(message.parameters)?,
            outputs: tensors(outputs, message.raw_output_contents)?,
        })
    }
}

/// Refuses a message with more than `MAX_TENSORS` of anything before the tensors are built: an empty one takes two
/// bytes of a message and hundreds of memory.
fn limit_tensors(mut message: &[u8]) -> Result<(), DecodeError> {
    // The numbers of inputs, outputs and raw contents are counted in both messages; parameters are bounded by their
    // names.
    let mut counts = [0usize; 3];
    while !message.is_empty() {
        let (tag, wire_type) = decode_key(&mut message)?;
        skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
        if let Some(count) = tag
            .checked_sub(5)
            .and_then(|field| counts.get_mut(field as usize))
        {
            *count += 1;
            if *count > MAX_TENSORS {
                return Err(DecodeError::TooManyTensors { limit: MAX_TENSORS });
            }
        }
    }
    Ok(())
}

/// A tensor's description, as requests and responses have it.
struct Described {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    contents: Option<InferTensorContents>,
    parameters: BTreeMap<String, InferParameter>,
}

fn tensors(described: Vec<Described>, raw: Vec<Bytes>) -> Result<Vec<Tensor>, DecodeError> {
    check_names(described.iter().map(|tensor| &tensor.name))?;
    if raw.is_empty() {
        return described
            .into_iter()
            .map(|tensor| tensor.with(None))
            .collect();
    }
    if raw.len() != described.len() {
        return Err(DecodeError::RawContents {
            tensors: described.len(),
            given: raw.len(),
        });
    }
    described
        .into_iter()
        .zip(raw)
        .map(|(tensor, raw)| tensor.with(Some(raw)))
        .collect()
}

impl Described {
    fn with(self, raw: Option<Bytes>) -> Result<Tensor, DecodeError> {
        let datatype: Datatype = match self.datatype.parse() {
            Ok(datatype) => datatype,
            Err(source) => {
                return Err(DecodeError::Datatype {
                    tensor: self.name,
                    given: self.datatype,
                    source,
                });
            }
        };
        let data = match (raw, self.contents) {
            (Some(raw), None) => raw,
            (None, Some(contents)) => contents::to_raw(&self.name, datatype, &contents)?,
            (None, None) => Bytes::new(),
            (Some(_), Some(_)) => return Err(DecodeError::ContentsTwice { tensor: self.name }),
        };
        Ok(Tensor {
            parameters: parameters::decode(self.parameters)?,
            ..Tensor::new(self.name, datatype, self.shape, data)?
        })
    }
}
