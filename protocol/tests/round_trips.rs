//! Messages of every content, which come back from JSON and from protobuf as they were.

use std::collections::BTreeSet;

use bytes::Bytes;
use carpool_protocol::{
    Datatype, InferRequest, InferResponse, Parameter, Parameters, RequestedOutput, Tensor, json,
};
use half::{bf16, f16};
use proptest::{collection::vec, prelude::*};
use serde_json::Value;

/// The form that a generated message must fit.
#[derive(Clone, Copy)]
enum Form {
    Json,
    Protobuf,
}

/// The bytes of one element, over the datatype's whole range as far as the form carries it.
fn element(datatype: Datatype, form: Form) -> BoxedStrategy<Vec<u8>> {
    match (datatype, form) {
        (Datatype::Bool, _) => any::<bool>()
            .prop_map(|value| vec![u8::from(value)])
            .boxed(),
        (Datatype::Bytes, Form::Json) => any::<String>().prop_map(String::into_bytes).boxed(),
        (Datatype::Bytes, Form::Protobuf) => vec(any::<u8>(), 0..20).boxed(),
        (Datatype::Fp16, Form::Json) => any::<u16>()
            .prop_map(f16::from_bits)
            .prop_filter("JSON has no such number", |value| value.is_finite())
            .prop_map(|value| value.to_le_bytes().to_vec())
            .boxed(),
        (Datatype::Bf16, Form::Json) => any::<u16>()
            .prop_map(bf16::from_bits)
            .prop_filter("JSON has no such number", |value| value.is_finite())
            .prop_map(|value| value.to_le_bytes().to_vec())
            .boxed(),
        (Datatype::Fp32, Form::Json) => any::<u32>()
            .prop_map(f32::from_bits)
            .prop_filter("JSON has no such number", |value| value.is_finite())
            .prop_map(|value| value.to_le_bytes().to_vec())
            .boxed(),
        (Datatype::Fp64, Form::Json) => any::<u64>()
            .prop_map(f64::from_bits)
            .prop_filter("JSON has no such number", |value| value.is_finite())
            .prop_map(|value| value.to_le_bytes().to_vec())
            .boxed(),
        // The ends of a range are added, for random bits rarely are.
        _ => {
            let size = datatype.size().unwrap_or_default();
            prop_oneof![
                4 => vec(any::<u8>(), size),
                1 => Just(vec![0; size]),
                1 => Just(vec![0xff; size]),
                1 => Just([vec![0; size - 1], vec![0x80]].concat()),
                1 => Just([vec![0xff; size - 1], vec![0x7f]].concat()),
            ]
            .boxed()
        }
    }
}

fn tensor(form: Form) -> impl Strategy<Value = Tensor> {
    (
        any::<String>(),
        proptest::sample::select(&Datatype::ALL[..]),
        vec(0i64..5, 0..4),
    )
        .prop_flat_map(move |(name, datatype, shape)| {
            let elements = usize::try_from(shape.iter().product::<i64>()).unwrap_or_default();
            vec(element(datatype, form), elements).prop_map(move |elements| {
                let data = match datatype {
                    Datatype::Bytes => elements
                        .iter()
                        .flat_map(|element| {
                            let length = u32::try_from(element.len()).unwrap_or(u32::MAX);
                            [length.to_le_bytes().to_vec(), element.clone()].concat()
                        })
                        .collect(),
                    _ => elements.concat(),
                };
                Tensor {
                    name: name.clone(),
                    datatype,
                    shape: shape.clone(),
                    data: data.into(),
                    parameters: Parameters::new(),
                }
            })
        })
}

fn tensors(form: Form) -> impl Strategy<Value = Vec<Tensor>> {
    vec(tensor(form), 0..4).prop_map(|mut tensors| {
        let mut names = BTreeSet::new();
        tensors.retain(|tensor| names.insert(tensor.name.clone()));
        tensors
    })
}

fn parameters() -> impl Strategy<Value = Parameters> {
    let parameter = prop_oneof![
        any::<bool>().prop_map(Parameter::Bool),
        any::<i64>().prop_map(Parameter::Int64),
        any::<String>().prop_map(Parameter::String),
        any::<u64>()
            .prop_map(f64::from_bits)
            .prop_filter("JSON has no such number", |value| value.is_finite())
            .prop_map(Parameter::Double),
        (1 + u64::MAX / 2..).prop_map(Parameter::Uint64),
    ];
    proptest::collection::btree_map(any::<String>(), parameter, 0..3)
}

prop_compose! {
    fn request(form: Form)(
        model_name: String,
        model_version: String,
        id: String,
        parameters in parameters(),
        inputs in tensors(form),
        outputs in proptest::collection::btree_map(any::<String>(), parameters(), 0..3),
    ) -> InferRequest {
        let outputs = outputs.into_iter().map(|(name, parameters)| RequestedOutput { name, parameters }).collect();
        InferRequest { model_name, model_version, id, parameters, inputs, outputs }
    }
}

prop_compose! {
    fn response(form: Form)(
        model_name: String,
        model_version: String,
        id: String,
        parameters in parameters(),
        outputs in vec((tensor(form), self::parameters()), 0..4),
    ) -> InferResponse {
        let mut names = BTreeSet::new();
        let outputs = outputs
            .into_iter()
            .map(|(tensor, parameters)| Tensor { parameters, ..tensor })
            .filter(|tensor| names.insert(tensor.name.clone()))
            .collect();
        InferResponse { model_name, model_version, id, parameters, outputs }
    }
}

/// The flat array `items` as arrays nested as `shape` says.
fn nest(items: &[Value], shape: &[i64]) -> Value {
    match shape {
        [] | [_] => Value::from(items),
        [0, ..] => Value::Array(Vec::new()),
        [rows, rest @ ..] => {
            let rows = usize::try_from(*rows).unwrap_or_default();
            let size = items.len() / rows;
            (0..rows)
                .map(|row| nest(&items[row * size..(row + 1) * size], rest))
                .collect()
        }
    }
}

proptest! {
    #[test]
    fn requests_survive_json(request in request(Form::Json)) {
        let json = json::encode_request(&request)?;
        prop_assert_eq!(json::decode_request(&json, &request.model_name, &request.model_version)?, request);
    }

    #[test]
    fn responses_survive_json(response in response(Form::Json)) {
        prop_assert_eq!(json::decode_response(&json::encode_response(&response)?)?, response);
    }

    #[test]
    fn requests_survive_protobuf(request in request(Form::Protobuf)) {
        prop_assert_eq!(InferRequest::decode(request.encode())?, request);
    }

    #[test]
    fn responses_survive_protobuf(response in response(Form::Protobuf)) {
        prop_assert_eq!(InferResponse::decode(response.encode())?, response);
    }

    #[test]
    fn nested_data_in_any_order_of_keys_and_any_spacing_is_the_same(tensor in tensor(Form::Json), pretty: bool) {
        let request = InferRequest { inputs: vec![tensor.clone()], ..InferRequest::default() };
        let mut json: Value = serde_json::from_slice(&json::encode_request(&request)?)?;
        let input = &mut json["inputs"][0];
        // serde_json keeps an object's keys sorted: `data` comes first.
        input["data"] = nest(input["data"].as_array().map_or(&[], Vec::as_slice), &tensor.shape);
        let json = if pretty { serde_json::to_vec_pretty(&json)? } else { serde_json::to_vec(&json)? };
        prop_assert_eq!(json::decode_request(&json, "", "")?.inputs, vec![tensor]);
    }
}

#[test]
fn floats_that_lose_a_bit_when_rounded_twice_survive_json() {
    let values = [
        7.038_531e-26_f32,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::MAX,
        f32::MIN,
        -0.0,
        0.1,
    ];
    let data: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let tensor = Tensor::new("x", Datatype::Fp32, [7], data).unwrap();
    let request = InferRequest {
        inputs: vec![tensor],
        ..InferRequest::default()
    };
    let json = json::encode_request(&request).unwrap();
    assert_eq!(json::decode_request(&json, "", "").unwrap(), request);
}

#[test]
fn raw_contents_are_slices_of_the_message() {
    let tensor = Tensor::new("x", Datatype::Uint8, [1, 1000], vec![7; 1000]).unwrap();
    let request = InferRequest {
        inputs: vec![tensor],
        ..InferRequest::default()
    };
    let message = request.encode();
    let decoded = InferRequest::decode(message.clone()).unwrap();
    let range = |bytes: &Bytes| bytes.as_ptr_range();
    let (message, data) = (range(&message), range(&decoded.inputs[0].data));
    assert!(message.start <= data.start && data.end <= message.end);
}
