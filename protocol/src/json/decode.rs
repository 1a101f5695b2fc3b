//! Messages from JSON.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{data, hint::hint, object::Object, parameters::Options};
use crate::{
    Datatype, DecodeError, InferRequest, InferResponse, RequestView, RequestedOutput, Tensor,
    message::check_names,
};

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Option<Options>,
    #[serde(borrow)]
    inputs: Vec<Object<Described<'a>>>,
    #[serde(default)]
    outputs: Option<Vec<Object<Requested>>>,
}

#[derive(Deserialize)]
struct Requested {
    name: String,
    #[serde(default)]
    parameters: Option<Options>,
}

#[derive(Deserialize)]
struct Response<'a> {
    model_name: String,
    #[serde(default)]
    model_version: Option<String>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Option<Options>,
    #[serde(borrow)]
    outputs: Vec<Object<Described<'a>>>,
}

/// A tensor whose data is still text. An object's keys have no order: how data is to be read is known when all of
/// them are there.
#[derive(Deserialize)]
struct Described<'a> {
    name: String,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    shape: Vec<i64>,
    data: &'a RawValue,
}

/// A request whose tensors' data, most of a large one, is still text: it can be held against a model before memory
/// and time are spent on that.
pub struct UnreadRequest<'a> {
    /// The request, whose tensors have no data yet.
    request: InferRequest,
    /// The text of each tensor's data.
    data: Vec<&'a RawValue>,
}

impl<'a> UnreadRequest<'a> {
    /// Reads the request in `body`, whose syntax is checked to its end. The model's name and version are left empty:
    /// they stand in the URL. Fields that the protocol does not have are ignored.
    pub fn new(body: &'a [u8]) -> Result<Self, DecodeError> {
        let request: Request<'_> = decode_object(body)?;
        let outputs: Vec<_> = request
            .outputs
            .unwrap_or_default()
            .into_iter()
            .map(|Object(output)| RequestedOutput {
                name: output.name,
                parameters: output.parameters.unwrap_or_default().0,
            })
            .collect();
        check_names(outputs.iter().map(|output| &output.name))?;
        let (inputs, data) = describe(request.inputs)?;
        let request = InferRequest {
            id: request.id.unwrap_or_default(),
            parameters: request.parameters.unwrap_or_default().0,
            inputs,
            outputs,
            ..InferRequest::default()
        };
        Ok(Self { request, data })
    }

    /// A view of the request without the elements of its tensors.
    #[must_use]
    pub fn view(&self) -> RequestView<'_> {
        self.request.view()
    }

    /// Reads the whole request, its tensors' data parsed into raw bytes.
    pub fn read(mut self) -> Result<InferRequest, DecodeError> {
        read_data(&mut self.request.inputs, &self.data)?;
        Ok(self.request)
    }
}

/// Reads the request in `body`; the model's name and version stand in the URL and not in the JSON.
pub fn decode_request(
    body: &[u8],
    model_name: &str,
    model_version: &str,
) -> Result<InferRequest, DecodeError> {
    Ok(InferRequest {
        model_name: model_name.to_owned(),
        model_version: model_version.to_owned(),
        ..UnreadRequest::new(body)?.read()?
    })
}

/// Reads the response in `body` as a request is read.
pub fn decode_response(body: &[u8]) -> Result<InferResponse, DecodeError> {
    let response: Response<'_> = decode_object(body)?;
    let (mut outputs, data) = describe(response.outputs)?;
    read_data(&mut outputs, &data)?;
    Ok(InferResponse {
        model_name: response.model_name,
        model_version: response.model_version.unwrap_or_default(),
        id: response.id.unwrap_or_default(),
        parameters: response.parameters.unwrap_or_default().0,
        outputs,
    })
}

/// Reads the object in `body`, for messages that are not the protocol's, too.
pub fn decode_object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, DecodeError> {
    // A byte order mark is skipped: some programs begin every UTF-8 text with one, and RFC 8259 lets readers do so.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    serde_json::from_slice(body)
        .map(|Object(message)| message)
        .map_err(|error| {
            // The path to the mistake is tracked for the error alone, for that costs time.
            let mut deserializer = serde_json::Deserializer::from_slice(body);
            let message = match serde_path_to_error::deserialize::<_, Object<T>>(&mut deserializer)
            {
                Err(located) => located.to_string(),
                Ok(_) => error.to_string(),
            };
            DecodeError::json(&message, hint(body, &error))
        })
}

/// Splits tensors into all but their data, and the text of each one's data.
fn describe(
    described: Vec<Object<Described<'_>>>,
) -> Result<(Vec<Tensor>, Vec<&RawValue>), DecodeError> {
    check_names(described.iter().map(|Object(tensor)| &tensor.name))?;
    described
        .into_iter()
        .map(|Object(tensor)| {
            let datatype: Datatype = match tensor.datatype.parse() {
                Ok(datatype) => datatype,
                Err(source) => {
                    return Err(DecodeError::Datatype {
                        tensor: tensor.name,
                        given: tensor.datatype.into_owned(),
                        source,
                    });
                }
            };
            if !datatype.has_json_form() {
                return Err(DecodeError::NoJsonForm {
                    tensor: tensor.name,
                    datatype,
                });
            }
            let without_data = Tensor {
                name: tensor.name,
                datatype,
                shape: tensor.shape,
                data: bytes::Bytes::new(),
            };
            Ok((without_data, tensor.data))
        })
        .collect()
}

/// Gives each tensor its data.
fn read_data(tensors: &mut [Tensor], data: &[&RawValue]) -> Result<(), DecodeError> {
    for (tensor, text) in tensors.iter_mut().zip(data) {
        tensor.data = data::parse(tensor, text)?.into();
        tensor.check()?;
    }
    Ok(())
}
