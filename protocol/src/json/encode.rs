//! Messages to JSON.

use serde::{Serialize, Serializer};

use crate::{
    Datatype, EncodeError, InferRequest, InferResponse, Parameters, RequestedOutput, Tensor,
    tensor::BytesElements,
};

#[derive(Serialize)]
struct Request<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    #[serde(skip_serializing_if = "Parameters::is_empty")]
    parameters: &'a Parameters,
    inputs: Vec<Described<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    outputs: Vec<Requested<'a>>,
}

#[derive(Serialize)]
struct Requested<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Parameters::is_empty")]
    parameters: &'a Parameters,
}

#[derive(Serialize)]
struct Response<'a> {
    model_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    model_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    #[serde(skip_serializing_if = "Parameters::is_empty")]
    parameters: &'a Parameters,
    outputs: Vec<Described<'a>>,
}

#[derive(Serialize)]
struct Described<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [i64],
    data: Data<'a>,
}

/// Writes `request` as JSON, tensor data flat. The model's name and version are left out: they stand in the URL.
pub fn encode_request(request: &InferRequest) -> Result<Vec<u8>, EncodeError> {
    let outputs = request
        .outputs
        .iter()
        .map(|RequestedOutput { name, parameters }| Requested { name, parameters });
    write(
        &request.inputs,
        &Request {
            id: &request.id,
            parameters: &request.parameters,
            inputs: describe(&request.inputs)?,
            outputs: outputs.collect(),
        },
    )
}

/// Writes `response` as JSON, tensor data flat.
pub fn encode_response(response: &InferResponse) -> Result<Vec<u8>, EncodeError> {
    write(
        &response.outputs,
        &Response {
            model_name: &response.model_name,
            model_version: &response.model_version,
            id: &response.id,
            parameters: &response.parameters,
            outputs: describe(&response.outputs)?,
        },
    )
}

fn describe(tensors: &[Tensor]) -> Result<Vec<Described<'_>>, EncodeError> {
    tensors
        .iter()
        .map(|tensor| {
            if !tensor.datatype.has_json_form() {
                return Err(EncodeError::NoJsonForm {
                    tensor: tensor.name.clone(),
                    datatype: tensor.datatype,
                });
            }
            tensor.check()?;
            Ok(Described {
                name: &tensor.name,
                datatype: tensor.datatype.name(),
                shape: &tensor.shape,
                data: Data {
                    datatype: tensor.datatype,
                    raw: &tensor.data,
                },
            })
        })
        .collect()
}

fn write(tensors: &[Tensor], message: &impl Serialize) -> Result<Vec<u8>, EncodeError> {
    // The buffer has room for some ten characters a 32-bit float; one that is too small grows.
    let data: usize = tensors.iter().map(|tensor| tensor.data.len()).sum();
    let mut json = Vec::with_capacity(256 + data.saturating_mul(3));
    serde_json::to_writer(&mut json, message)?;
    Ok(json)
}

/// Raw elements, written as an array.
struct Data<'a> {
    datatype: Datatype,
    raw: &'a [u8],
}

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw = self.raw;
        match self.datatype {
            Datatype::Bool => serializer.collect_seq(raw.iter().map(|byte| *byte != 0)),
            Datatype::Uint8 => numbers(serializer, raw, u8::from_le_bytes),
            Datatype::Uint16 => numbers(serializer, raw, u16::from_le_bytes),
            Datatype::Uint32 => numbers(serializer, raw, u32::from_le_bytes),
            Datatype::Uint64 => numbers(serializer, raw, u64::from_le_bytes),
            Datatype::Int8 => numbers(serializer, raw, i8::from_le_bytes),
            Datatype::Int16 => numbers(serializer, raw, i16::from_le_bytes),
            Datatype::Int32 => numbers(serializer, raw, i32::from_le_bytes),
            Datatype::Int64 => numbers(serializer, raw, i64::from_le_bytes),
            // serde_json writes NaN and the infinities as null.
            Datatype::Fp32 => numbers(serializer, raw, f32::from_le_bytes),
            Datatype::Fp64 => numbers(serializer, raw, f64::from_le_bytes),
            Datatype::Bytes => {
                serializer.collect_seq(BytesElements(raw).flatten().map(String::from_utf8_lossy))
            }
            Datatype::Fp16 | Datatype::Bf16 => Err(serde::ser::Error::custom(format_args!(
                "{} has no JSON form",
                self.datatype
            ))),
        }
    }
}

fn numbers<S: Serializer, T: Serialize, const N: usize>(
    serializer: S,
    raw: &[u8],
    from_le_bytes: fn([u8; N]) -> T,
) -> Result<S::Ok, S::Error> {
    let (elements, _) = raw.as_chunks();
    serializer.collect_seq(elements.iter().map(|element| from_le_bytes(*element)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(tensor: Tensor) -> Result<String, EncodeError> {
        let response = InferResponse {
            outputs: vec![tensor],
            ..InferResponse::default()
        };
        encode_response(&response).map(|json| String::from_utf8(json).unwrap())
    }

    #[test]
    fn a_response_has_what_is_set() {
        let label = Tensor::from_strings("label", [1, 1], ["POSITIVE"]).unwrap();
        let score = Tensor::new(
            "score",
            Datatype::Fp32,
            [1, 1],
            0.99f32.to_le_bytes().to_vec(),
        )
        .unwrap();
        let response = InferResponse {
            model_name: "sentiment".into(),
            id: "42".into(),
            outputs: vec![label, score],
            ..InferResponse::default()
        };
        assert_eq!(
            String::from_utf8(encode_response(&response).unwrap()).unwrap(),
            concat!(
                r#"{"model_name":"sentiment","id":"42","outputs":["#,
                r#"{"name":"label","datatype":"BYTES","shape":[1,1],"data":["POSITIVE"]},"#,
                r#"{"name":"score","datatype":"FP32","shape":[1,1],"data":[0.99]}]}"#
            )
        );
    }

    #[test]
    fn what_json_has_no_number_for_is_null() {
        let data = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.0]
            .map(f64::to_le_bytes)
            .concat();
        let json = encode(Tensor::new("x", Datatype::Fp64, [4], data).unwrap()).unwrap();
        assert!(json.contains(r#""data":[null,null,null,1.0]"#), "{json}");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced() {
        let json = encode(Tensor::from_strings("x", [1], [b"a\xffb"]).unwrap()).unwrap();
        assert!(json.contains("\"data\":[\"a\u{fffd}b\"]"), "{json}");
    }

    #[test]
    fn what_has_no_json_form_is_refused() {
        let error = encode(Tensor::new("x", Datatype::Bf16, [1], vec![0; 2]).unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor `x`: BF16 has no JSON form; ask for binary tensor data"
        );
    }
}
