//! Tensors whose elements follow the JSON.

use bytes::Bytes;

use super::*;
use crate::{InferRequest, InferResponse, json::encode_response_with};

/// Reads a request with the inputs of `inputs`, in which names are in single quotes, and `data` behind it.
fn read(inputs: &str, data: &'static [u8]) -> Result<InferRequest, DecodeError> {
    let json = format!("{{'inputs': [{inputs}]}}").replace('\'', "\"");
    UnreadRequest::with_binary(json.as_bytes(), Bytes::from_static(data))?.read()
}

fn described(name: &str, datatype: &str, rest: &str) -> String {
    format!("{{'name': '{name}', 'datatype': '{datatype}', 'shape': [2], {rest}}}")
}

fn sized(name: &str, datatype: &str, size: &str) -> String {
    let rest = format!("'parameters': {{'binary_data_size': {size}}}");
    described(name, datatype, &rest)
}

#[test]
fn each_tensor_takes_its_bytes_and_json_ones_take_none() {
    const DATA: &[u8] = b"\x01\x02\0\0\0\0\x01\0\0\0x";
    let inputs = [
        sized("a", "UINT8", "2"),
        described("b", "UINT8", "'data': [7, 8]"),
        sized("c", "BYTES", "9"),
    ];
    let request = read(&inputs.join(","), DATA).unwrap();
    let data: Vec<&[u8]> = request.inputs.iter().map(|input| &*input.data).collect();
    assert_eq!(data, [&[1, 2][..], &[7, 8], &DATA[2..]]);
    assert_eq!(request.inputs[0].data.as_ptr(), DATA.as_ptr(), "a slice");
    assert_eq!(request.inputs[2].strings().unwrap(), ["", "x"]);
}

#[test]
fn lying_sizes_and_stray_bytes_are_refused_by_name() {
    let both = described(
        "x",
        "UINT8",
        "'data': [1, 2], 'parameters': {'binary_data_size': 2}",
    );
    let nothing = described("x", "UINT8", "'parameters': {}");
    for (inputs, message) in [
        (
            sized("x", "UINT8", "5"),
            "tensor `x`: `binary_data_size` is 5, but only 4 bytes are left for it",
        ),
        (
            [sized("x", "FP16", "4"), sized("y", "UINT8", "2")].join(","),
            "tensor `y`: `binary_data_size` is 2, but only 0 bytes are left for it",
        ),
        (
            sized("x", "UINT8", "2"),
            "2 bytes too many follow the binary data of tensor `x`, the last one",
        ),
        (
            described("x", "UINT8", "'data': [1, 2]"),
            "4 bytes too many follow the JSON, in which no tensor has `binary_data_size`",
        ),
        (
            sized("x", "FP32", "4"),
            "tensor `x`: shape [2] has 2 elements; 1 given: change the shape or the data",
        ),
        (
            sized("x", "BYTES", "4"),
            "tensor `x`: element 0 of its BYTES data is cut off",
        ),
        (
            sized("x", "UINT8", "-1"),
            "tensor `x`: `binary_data_size` must be a number of bytes, 0 or more",
        ),
        (
            sized("x", "UINT8", "'2'"),
            "tensor `x`: `binary_data_size` must be a number of bytes, 0 or more",
        ),
        (
            sized("x", "UINT8", "18446744073709551615"),
            "tensor `x`: `binary_data_size` is 18446744073709551615, but only 4 bytes are left for it",
        ),
        (
            both,
            "tensor `x`: has `data` and `binary_data_size`; give one of them",
        ),
        (
            nothing,
            "tensor `x`: has no data: give `data` or, with binary tensor data, `binary_data_size`",
        ),
    ] {
        let error = read(&inputs, b"\xff\xff\xff\xff").unwrap_err();
        assert_eq!(error.to_string(), message);
        assert!(error.is_malformed(), "{message}");
    }
    let body = format!("{{'inputs': [{}]}}", sized("x", "UINT8", "2")).replace('\'', "\"");
    let error = decode_request(body.as_bytes(), "", "").unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor `x`: has `binary_data_size`, but the header Inference-Header-Content-Length does not say where the JSON ends"
    );
}

#[test]
fn outputs_follow_the_json_in_its_order_where_they_are_asked_for() {
    let output = |name: &str, value: u8| Tensor::new(name, Datatype::Uint8, [1], vec![value]);
    let response = InferResponse {
        model_name: "m".into(),
        outputs: ["a", "b", "c"]
            .map(|name| output(name, name.as_bytes()[0]).unwrap())
            .into(),
        ..InferResponse::default()
    };
    let (json, data) = encode_response_with(&response, |name| name != "b").unwrap();
    assert_eq!(
        String::from_utf8(json).unwrap(),
        concat!(
            r#"{"model_name":"m","outputs":["#,
            r#"{"name":"a","datatype":"UINT8","shape":[1],"parameters":{"binary_data_size":1}},"#,
            r#"{"name":"b","datatype":"UINT8","shape":[1],"data":[98]},"#,
            r#"{"name":"c","datatype":"UINT8","shape":[1],"parameters":{"binary_data_size":1}}]}"#
        )
    );
    assert_eq!(data, ["a", "c"]);
}
