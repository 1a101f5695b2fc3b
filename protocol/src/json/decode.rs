//! Messages from JSON.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{data, hint::hint, object::Object, parameters::Options};
use crate::{
    Datatype, DecodeError, InferRequest, InferResponse, RequestedOutput, Tensor,
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

/// The request in `body`; the model's name and version stand in the URL and not in the JSON.
///
/// `body` is read twice: serde finds the tensors and checks the syntax, then their data is parsed into raw bytes.
/// Fields that the protocol does not have are ignored.
pub fn decode_request(
    body: &[u8],
    model_name: &str,
    model_version: &str,
) -> Result<InferRequest, DecodeError> {
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
    Ok(InferRequest {
        model_name: model_name.to_owned(),
        model_version: model_version.to_owned(),
        id: request.id.unwrap_or_default(),
        parameters: request.parameters.unwrap_or_default().0,
        inputs: tensors(request.inputs)?,
        outputs,
    })
}

/// The response in `body`, read like a request.
pub fn decode_response(body: &[u8]) -> Result<InferResponse, DecodeError> {
    let response: Response<'_> = decode_object(body)?;
    Ok(InferResponse {
        model_name: response.model_name,
        model_version: response.model_version.unwrap_or_default(),
        id: response.id.unwrap_or_default(),
        parameters: response.parameters.unwrap_or_default().0,
        outputs: tensors(response.outputs)?,
    })
}

/// The object in `body`, for messages that are not the protocol's, too.
pub fn decode_object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, DecodeError> {
    // Some programs begin every UTF-8 text with it, and RFC 8259 lets readers skip it.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    serde_json::from_slice(body)
        .map(|Object(message)| message)
        .map_err(|error| {
            // Keeping track of the path costs time, so it is done for the error alone.
            let mut deserializer = serde_json::Deserializer::from_slice(body);
            let message = match serde_path_to_error::deserialize::<_, Object<T>>(&mut deserializer)
            {
                Err(located) => located.to_string(),
                Ok(_) => error.to_string(),
            };
            DecodeError::json(&message, hint(body, &error))
        })
}

fn tensors(described: Vec<Object<Described<'_>>>) -> Result<Vec<Tensor>, DecodeError> {
    check_names(described.iter().map(|Object(tensor)| &tensor.name))?;
    described
        .into_iter()
        .map(
            |Object(Described {
                 name,
                 datatype,
                 shape,
                 data,
             })| {
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
                if !datatype.has_json_form() {
                    return Err(DecodeError::NoJsonForm {
                        tensor: name,
                        datatype,
                    });
                }
                let mut tensor = Tensor {
                    name,
                    datatype,
                    shape,
                    data: bytes::Bytes::new(),
                };
                tensor.data = data::parse(&tensor, data)?.into();
                tensor.check()?;
                Ok(tensor)
            },
        )
        .collect()
}
