//! Binary tensor data in HTTP bodies, as Triton has it: JSON, then the bytes of those tensors that have the parameter
//! `binary_data_size`, one after another. A header says where the JSON ends.

use std::collections::HashMap;

use bytes::Bytes;
use carpool_protocol::{InferResponse, Parameter, Parameters, RequestView, json};
use http::{
    HeaderMap, HeaderName, HeaderValue, Response,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY},
};
use serde::{Deserialize, Serialize};

use crate::{compression::Coding, error::Error, payload::Payload};

/// The header that gives the length in bytes of a body's JSON.
pub const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// The parameter of a request that has all outputs in binary.
const ALL_OUTPUTS: &str = "binary_data_output";
/// The parameter of a requested output that has it in binary, or not.
const OUTPUT: &str = "binary_data";

/// The length in bytes of a body's JSON, of which a header speaks; `None` is a body of JSON alone.
pub fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Error> {
    let Some(given) = headers.get(JSON_LENGTH) else {
        return Ok(None);
    };
    let length = given.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| {
        let given = String::from_utf8_lossy(given.as_bytes());
        Error::Malformed(format!(
            "header Inference-Header-Content-Length: expected the JSON's number of bytes, given {given:?}"
        ))
    })
}

/// Splits a body into its JSON and the tensors' bytes.
pub fn split(mut body: Bytes, json_length: usize) -> Result<(Bytes, Bytes), Error> {
    if json_length > body.len() {
        return Err(Error::Malformed(format!(
            "header Inference-Header-Content-Length: the JSON is to have {json_length} bytes, the whole body has {}",
            body.len()
        )));
    }
    let json = body.split_to(json_length);
    Ok((json, body))
}

/// The outputs that a client wants in binary.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct BinaryOutputs {
    /// Whether outputs are in binary of which the request says nothing.
    others: bool,
    by_name: HashMap<String, bool>,
}

impl BinaryOutputs {
    /// Reads a request's parameters and those of its requested outputs.
    pub fn of(request: &RequestView<'_>) -> Result<Self, Error> {
        let mut by_name = HashMap::new();
        for output in request.outputs {
            if let Some(wanted) = flag(&output.parameters, OUTPUT)? {
                by_name.insert(output.name.clone(), wanted);
            }
        }
        Ok(Self {
            others: flag(request.parameters, ALL_OUTPUTS)?.unwrap_or(false),
            by_name,
        })
    }

    /// Has all outputs in binary.
    pub fn all() -> Self {
        Self {
            others: true,
            by_name: HashMap::new(),
        }
    }

    fn has(&self, output: &str) -> bool {
        self.by_name.get(output).copied().unwrap_or(self.others)
    }

    /// Writes an answer with its outputs as they are wanted.
    pub fn encode(&self, response: &InferResponse) -> Result<Encoded, Error> {
        let encoded = json::encode_response_with(response, |output| self.has(output));
        let (json, binary) = encoded
            .map_err(|error| Error::Internal(format!("failed to write the answer: {error}")))?;
        let json_length = (!binary.is_empty()).then_some(json.len());
        let parts = std::iter::once(json.into()).chain(binary).collect();
        Ok(Encoded {
            parts,
            json_length,
            coding: None,
        })
    }
}

fn flag(parameters: &Parameters, name: &str) -> Result<Option<bool>, Error> {
    match parameters.get(name) {
        None => Ok(None),
        Some(Parameter::Bool(wanted)) => Ok(Some(*wanted)),
        Some(_) => Err(Error::Malformed(format!(
            "parameter {name:?} must be true or false"
        ))),
    }
}

/// An answer as it is sent: JSON, and the bytes of the outputs that follow it. Outputs are not copied.
#[derive(Debug)]
pub struct Encoded {
    parts: Vec<Bytes>,
    /// The length of the JSON where outputs follow it.
    json_length: Option<usize>,
    coding: Option<Coding>,
}

impl Encoded {
    /// Compresses the answer, if that is worth it.
    pub fn compressed(mut self, coding: Option<Coding>) -> Self {
        if let Some(coding) = coding
            && let Some(coded) = coding.encode(&self.parts)
        {
            self.parts = vec![coded.into()];
            self.coding = Some(coding);
        }
        self
    }

    /// The answer with status 200.
    pub fn response(self) -> Response<Payload> {
        let mut response = Response::new(Payload::from(self.parts));
        let headers = response.headers_mut();
        let media_type = match self.json_length {
            Some(length) => {
                headers.insert(JSON_LENGTH, length.into());
                "application/octet-stream"
            }
            None => "application/json",
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        if let Some(coding) = self.coding {
            headers.insert(CONTENT_ENCODING, coding.value());
            headers.append(VARY, HeaderValue::from_name(ACCEPT_ENCODING));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use carpool_protocol::RequestedOutput;

    use super::*;

    fn headers(length: &str) -> HeaderMap {
        [(JSON_LENGTH, length.parse().unwrap())]
            .into_iter()
            .collect()
    }

    #[test]
    fn a_header_says_where_the_json_ends() {
        assert_eq!(json_length(&HeaderMap::new()).unwrap(), None);
        assert_eq!(json_length(&headers("7")).unwrap(), Some(7));
        for wrong in ["", "-1", "7.0", "0x7", "99999999999999999999999"] {
            let error = json_length(&headers(wrong)).unwrap_err().to_string();
            assert!(error.ends_with(&format!("given {wrong:?}")), "{error}");
        }
        let body = Bytes::from_static(b"{}12");
        let (json, data) = split(body.clone(), 2).unwrap();
        assert_eq!((&*json, &*data), (&b"{}"[..], &b"12"[..]));
        assert!(split(body.clone(), 4).is_ok());
        let error = split(body, 5).unwrap_err().to_string();
        assert!(
            error.ends_with("to have 5 bytes, the whole body has 4"),
            "{error}"
        );
    }

    #[test]
    fn an_outputs_own_parameter_goes_before_the_requests() {
        let wanted = |all: Option<Parameter>, one: Option<Parameter>| {
            let parameters = |name: &str, value: Option<Parameter>| {
                value
                    .map(|value| (name.to_owned(), value))
                    .into_iter()
                    .collect::<Parameters>()
            };
            let request = carpool_protocol::InferRequest {
                parameters: parameters(ALL_OUTPUTS, all),
                outputs: vec![RequestedOutput {
                    name: "one".into(),
                    parameters: parameters(OUTPUT, one),
                }],
                ..carpool_protocol::InferRequest::default()
            };
            let wanted = BinaryOutputs::of(&request.view());
            wanted.map(|wanted| [wanted.has("one"), wanted.has("other")])
        };
        let yes = || Some(Parameter::Bool(true));
        let no = || Some(Parameter::Bool(false));
        assert_eq!(wanted(None, None).unwrap(), [false, false]);
        assert_eq!(wanted(yes(), None).unwrap(), [true, true]);
        assert_eq!(wanted(yes(), no()).unwrap(), [false, true]);
        assert_eq!(wanted(None, yes()).unwrap(), [true, false]);
        let error = wanted(Some(Parameter::Int64(1)), None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "parameter \"binary_data_output\" must be true or false"
        );
    }
}
