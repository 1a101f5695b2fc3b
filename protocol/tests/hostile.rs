//! The decoders under hostile input, made here; `fuzz/` has more of it for those that stand before them.

use bytes::Bytes;
use carpool_protocol::{
    Datatype, InferRequest, InferResponse, Parameter, RequestedOutput, Tensor, json,
};
use carpool_testkit::hostile::{Allocator, allocator, check};
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::TestRunner};

#[global_allocator]
static ALLOCATOR: Allocator = allocator();

/// Gives `input` to every decoder.
fn check_all(input: &[u8]) {
    check(&ALLOCATOR, input, 4, |decoder, input| {
        let message = || Bytes::copy_from_slice(input);
        match decoder {
            0 => json::decode_request(input, "", "").map(drop),
            1 => json::decode_response(input).map(drop),
            2 => InferRequest::decode(message()).map(drop),
            _ => InferResponse::decode(message()).map(drop),
        }
        .map_err(|error| error.to_string())
    });
}

/// The messages with a tensor of each datatype, in both forms.
fn valid() -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error>> {
    let mut tensors = vec![Tensor::from_strings(
        "text",
        [2, 1],
        ["I love \"you\"\n", "ünïcode"],
    )?];
    for datatype in Datatype::ALL {
        if let Some(size) = datatype.size() {
            tensors.push(Tensor::new(
                datatype.name(),
                datatype,
                [2, 3],
                vec![1; 6 * size],
            )?);
        }
    }
    let parameters = [
        ("timeout".to_owned(), Parameter::Int64(1)),
        ("name".to_owned(), Parameter::String("x".to_owned())),
        ("share".to_owned(), Parameter::Double(0.5)),
    ];
    let request = InferRequest {
        model_name: "model".to_owned(),
        id: "1".to_owned(),
        parameters: parameters.into(),
        inputs: tensors.clone(),
        outputs: vec![RequestedOutput {
            name: "label".to_owned(),
            ..RequestedOutput::default()
        }],
        ..InferRequest::default()
    };
    let response = InferResponse {
        model_name: "model".to_owned(),
        outputs: tensors,
        ..InferResponse::default()
    };
    Ok(vec![
        json::encode_request(&request)?,
        json::encode_response(&response)?,
        request.encode().to_vec(),
        response.encode().to_vec(),
    ])
}

/// A JSON request for one tensor.
fn input(shape: &str, datatype: &str, data: &str) -> Vec<u8> {
    format!(
        r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}"#
    )
    .into_bytes()
}

/// The field `number` of protobuf, saying that it has `length` bytes.
fn field(number: u8, length: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encoding::encode_varint(length, &mut bytes);
    [&bytes, content].concat()
}

fn crafted() -> Vec<Vec<u8>> {
    const MANY: usize = 100_000;
    let deep = |open: &str| open.repeat(MANY);
    let mut inputs = vec![
        deep("[").into_bytes(),
        deep(r#"{"a":"#).into_bytes(),
        format!(r#"{{"unknown":{}"#, deep("[")).into_bytes(),
        format!(r#"{{"parameters":{}"#, deep(r#"{"a":"#)).into_bytes(),
        input("[1]", "FP32", &format!("{}{}", deep("["), deep("]"))),
        input(
            &format!("[{}1]", "1,".repeat(MANY)),
            "FP32",
            &format!("{}1{}", deep("["), deep("]")),
        ),
        input(&format!("[{}1]", "-1,".repeat(MANY)), "FP32", "[1]"),
        input(&format!("[{}1]", "2,".repeat(MANY)), "FP32", "[1]"),
        input("[9223372036854775807,9223372036854775807]", "FP64", "[1]"),
        input("[9223372036854775807,0]", "FP64", "[]"),
        input("[1152921504606846975]", "FP64", "[1]"),
        input("[1152921504606846975]", "BYTES", "[\"\"]"),
        input("[99999999999999999999]", "FP64", "[1]"),
        input("[1]", &deep("FP"), "[1]"),
        input("[1]", "BYTES", &format!("[\"{}\"]", deep("\\u00e9"))),
        input("[1]", "BYTES", "[\"\\ud800\"]"),
        input("[1]", "INT64", &format!("[{}]", deep("9"))),
        input("[1]", "FP64", &format!("[1e{}]", deep("9"))),
        format!(r#"{{"inputs":[{}"#, deep("{},")).into_bytes(),
        format!(r#"{{"id":[{}"#, deep("9")).into_bytes(),
        format!(r#"{{"inputs":[],"inputs":"{}"}}"#, deep("x")).into_bytes(),
        vec![0xff; MANY],
    ];
    for number in 1..=7 {
        // The inputs are empty fields by the thousand, and lengths that the message does not hold.
        inputs.push(field(number, 0, &[]).repeat(MANY));
        inputs.push(field(number, u64::MAX, &[]));
        inputs.push(field(number, 1 << 40, &[0; 16]));
    }
    for shape in [
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f].repeat(8),
        vec![1; MANY],
    ] {
        let shape = field(3, shape.len() as u64, &shape);
        let tensor = [field(2, 5, b"BYTES"), shape].concat();
        inputs.push(
            [
                field(5, tensor.len() as u64, &tensor),
                field(7, 4, &[0xff; 4]),
            ]
            .concat(),
        );
        inputs.push(
            [
                field(5, tensor.len() as u64, &tensor),
                field(6, 4, &[0xff; 4]),
            ]
            .concat(),
        );
    }
    inputs
}

#[test]
fn no_input_panics_or_allocates_without_bound() {
    let valid = valid().unwrap();
    assert!(json::decode_request(&valid[0], "", "").is_ok());
    assert!(json::decode_response(&valid[1]).is_ok());
    assert!(InferRequest::decode(valid[2].clone().into()).is_ok());
    assert!(InferResponse::decode(valid[3].clone().into()).is_ok());

    for input in crafted() {
        check_all(&input);
    }
    for message in &valid {
        for end in 0..message.len() {
            check_all(&message[..end]);
        }
    }

    let mut runner = TestRunner::new(ProptestConfig::with_cases(2000));
    runner
        .run(&vec(any::<u8>(), 0..500), |input| {
            check_all(&input);
            Ok(())
        })
        .unwrap();
    let edit = (any::<Index>(), any::<Index>(), vec(any::<u8>(), 0..4));
    let mutated = (proptest::sample::select(valid), vec(edit, 1..4));
    runner
        .run(&mutated, |(mut message, edits)| {
            for (at, length, bytes) in edits {
                let start = at.index(message.len() + 1);
                let end = start + length.index((message.len() - start + 1).min(8));
                message.splice(start..end, bytes);
            }
            check_all(&message);
            Ok(())
        })
        .unwrap();
}
