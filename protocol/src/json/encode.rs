//! Messages to JSON.

use bytes::Bytes;
use half::{bf16, f16};
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
    #[serde(skip_serializing_if = "TensorParameters::is_empty")]
    parameters: TensorParameters<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data<'a>>,
}

/// The parameters of a tensor.
#[derive(Serialize)]
struct TensorParameters<'a> {
    #[serde(flatten)]
    own: &'a Parameters,
    /// The length of the tensor's elements where they follow the JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    binary_data_size: Option<usize>,
}

impl TensorParameters<'_> {
    fn is_empty(&self) -> bool {
        self.own.is_empty() && self.binary_data_size.is_none()
    }
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
            inputs: describe(&request.inputs, |_| false)?,
            outputs: outputs.collect(),
        },
    )
}

/// Writes `response` as JSON, tensor data flat.
pub fn encode_response(response: &InferResponse) -> Result<Vec<u8>, EncodeError> {
    encode_response_with(response, |_| false).map(|(json, _)| json)
}

/// Writes `response` as JSON, but for the elements of those tensors of which `is_binary` holds by their names: these are
/// given back, to be sent behind the JSON one after another.
pub fn encode_response_with(
    response: &InferResponse,
    is_binary: impl Fn(&str) -> bool,
) -> Result<(Vec<u8>, Vec<Bytes>), EncodeError> {
    let binary = response
        .outputs
        .iter()
        .filter(|tensor| is_binary(&tensor.name));
    let binary = binary.map(|tensor| tensor.data.clone()).collect();
    let json = write(
        response
            .outputs
            .iter()
            .filter(|tensor| !is_binary(&tensor.name)),
        &Response {
            model_name: &response.model_name,
            model_version: &response.model_version,
            id: &response.id,
            parameters: &response.parameters,
            outputs: describe(&response.outputs, &is_binary)?,
        },
    )?;
    Ok((json, binary))
}

fn describe(
    tensors: &[Tensor],
    is_binary: impl Fn(&str) -> bool,
) -> Result<Vec<Described<'_>>, EncodeError> {
    tensors
        .iter()
        .map(|tensor| {
            tensor.check()?;
            let data = Data {
                datatype: tensor.datatype,
                raw: &tensor.data,
            };
            let binary_data_size = is_binary(&tensor.name).then_some(data.raw.len());
            Ok(Described {
                name: &tensor.name,
                datatype: tensor.datatype.name(),
                shape: &tensor.shape,
                data: binary_data_size.is_none().then_some(data),
                parameters: TensorParameters {
                    own: &tensor.parameters,
                    binary_data_size,
                },
            })
        })
        .collect()
}

fn write<'a>(
    tensors: impl IntoIterator<Item = &'a Tensor>,
    message: &impl Serialize,
) -> Result<Vec<u8>, EncodeError> {
    // The buffer has room for some ten characters a 32-bit float; one that is too small grows.
    let data: usize = tensors.into_iter().map(|tensor| tensor.data.len()).sum();
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
            Datatype::Fp16 => numbers(serializer, raw, |half| f16::from_le_bytes(half).to_f32()),
            Datatype::Bf16 => numbers(serializer, raw, |half| bf16::from_le_bytes(half).to_f32()),
            Datatype::Fp32 => numbers(serializer, raw, f32::from_le_bytes),
            Datatype::Fp64 => numbers(serializer, raw, f64::from_le_bytes),
            Datatype::Bytes => {
                serializer.collect_seq(BytesElements(raw).flatten().map(String::from_utf8_lossy))
            }
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
    use crate::Parameter;

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
    fn an_output_keeps_its_parameters_beside_the_length_of_what_follows() {
        let mut tensor = Tensor::new("x", Datatype::Int8, [2], vec![1, 2]).unwrap();
        tensor
            .parameters
            .insert("truncated".into(), Parameter::Bool(true));
        let response = InferResponse {
            outputs: vec![tensor],
            ..InferResponse::default()
        };
        for (is_binary, parameters) in [
            (false, r#""parameters":{"truncated":true},"data":[1,2]"#),
            (
                true,
                r#""parameters":{"truncated":true,"binary_data_size":2}}"#,
            ),
        ] {
            let (json, _) = encode_response_with(&response, |_| is_binary).unwrap();
            let json = String::from_utf8(json).unwrap();
            assert!(json.contains(parameters), "{json}");
        }
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
    fn floats_of_16_bits_are_the_numbers_that_they_are_as_32() {
        let raw = |halves: [f32; 3]| {
            halves
                .map(|half| f16::from_f32(half).to_le_bytes())
                .concat()
        };
        let json = encode(
            Tensor::new(
                "x",
                Datatype::Fp16,
                [3],
                raw([0.1, -65504.0, f32::INFINITY]),
            )
            .unwrap(),
        );
        assert!(
            json.unwrap()
                .contains(r#""data":[0.099975586,-65504.0,null]"#)
        );
        let raw = [0.1, -2.0]
            .map(bf16::from_f32)
            .map(bf16::to_le_bytes)
            .concat();
        let json = encode(Tensor::new("x", Datatype::Bf16, [2], raw).unwrap());
        assert!(json.unwrap().contains(r#""data":[0.100097656,-2.0]"#));
    }
}
