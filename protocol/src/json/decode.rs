//! Messages from JSON.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    binary::{self, Rest, SIZE},
    data,
    hint::hint,
    object::Object,
    parameters::Options,
};
use crate::{
    Datatype, DecodeError, InferRequest, InferResponse, Parameters, RequestView, RequestedOutput,
    Tensor, message::check_names,
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
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    parameters: Option<Options>,
}

/// The elements of a tensor, in the form in which they came.
enum Elements<'a> {
    Text(&'a RawValue),
    Raw(Bytes),
}

/// A request whose tensors' data, most of a large one, is still text: it can be held against a model before memory
/// and time are spent on that.
pub struct UnreadRequest<'a> {
    /// The request, whose tensors have no data yet.
    request: InferRequest,
    /// The data of each tensor.
    data: Vec<Elements<'a>>,
}

impl<'a> UnreadRequest<'a> {
    /// Reads the request in `body`, whose syntax is checked to its end. The model's name and version are left empty:
    /// they stand in the URL. Fields that the protocol does not have are ignored.
    pub fn new(body: &'a [u8]) -> Result<Self, DecodeError> {
        Self::with(body, None)
    }

    /// Reads the request in `json`, after which `data` came: the elements of those tensors that have the parameter
    /// `binary_data_size`, one after another.
    pub fn with_binary(json: &'a [u8], data: Bytes) -> Result<Self, DecodeError> {
        Self::with(json, Some(data))
    }

    fn with(json: &'a [u8], binary: Option<Bytes>) -> Result<Self, DecodeError> {
        let request: Request<'_> = decode_object(json)?;
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
        let (inputs, data) = describe(request.inputs, binary)?;
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
        read_data(&mut self.request.inputs, self.data)?;
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
    let parameters: Vec<_> = response
        .outputs
        .iter()
        .map(|Object(output)| output.parameters.clone().unwrap_or_default().0)
        .collect();
    let (mut outputs, data) = describe(response.outputs, None)?;
    read_data(&mut outputs, data)?;
    for (output, parameters) in outputs.iter_mut().zip(parameters) {
        output.parameters = parameters;
    }
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

/// Splits tensors into all but their data, and the data of each one.
fn describe(
    described: Vec<Object<Described<'_>>>,
    binary: Option<Bytes>,
) -> Result<(Vec<Tensor>, Vec<Elements<'_>>), DecodeError> {
    check_names(described.iter().map(|Object(tensor)| &tensor.name))?;
    let mut rest = binary.map(Rest::new);
    let mut split = (Vec::new(), Vec::new());
    for Object(tensor) in described {
        let Described {
            name,
            datatype,
            shape,
            data,
            parameters,
        } = tensor;
        let datatype: Datatype = match datatype.parse() {
            Ok(datatype) => datatype,
            Err(source) => {
                return Err(DecodeError::Datatype {
                    tensor: name,
                    given: datatype.into_owned(),
                    source,
                });
            }
        };
        let parameters = parameters.unwrap_or_default().0;
        let elements = match (data, parameters.get(SIZE)) {
            (Some(text), None) => Elements::Text(text),
            (None, Some(size)) => Elements::Raw(binary::take(&name, size, rest.as_mut())?),
            (Some(_), Some(_)) => return Err(DecodeError::DataTwice { tensor: name }),
            (None, None) => return Err(DecodeError::NoData { tensor: name }),
        };
        split.0.push(Tensor {
            name,
            datatype,
            shape,
            data: Bytes::new(),
            parameters: Parameters::new(),
        });
        split.1.push(elements);
    }
    rest.map_or(Ok(()), Rest::end)?;
    Ok(split)
}

/// Gives each tensor its data.
fn read_data(tensors: &mut [Tensor], data: Vec<Elements<'_>>) -> Result<(), DecodeError> {
    for (tensor, elements) in tensors.iter_mut().zip(data) {
        match elements {
            Elements::Text(text) => {
                tensor.data = data::parse(tensor, text)?.into();
                tensor.check()?;
            }
            Elements::Raw(raw) => {
                tensor.data = raw;
                tensor.check().map_err(DecodeError::Binary)?;
            }
        }
    }
    Ok(())
}
