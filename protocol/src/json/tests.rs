//! Requests as clients write them.

mod binary;
mod mistakes;

use super::*;
use crate::{Datatype, DecodeError, Parameter, Tensor};

/// Reads the request with one input: `tensor`, of which the names are in single quotes.
fn decode(tensor: &str) -> Result<Tensor, DecodeError> {
    let body = format!("{{'inputs': [{tensor}]}}").replace('\'', "\"");
    decode_request(body.as_bytes(), "", "").map(|mut request| request.inputs.remove(0))
}

#[test]
fn a_request_as_clients_write_it() {
    let body = br#"{
        "id": "42", "parameters": {"timeout": 5000, "binary_data_output": false, "big": 18446744073709551615},
        "inputs": [
            {"name": "a", "shape": [2, 2], "datatype": "UINT32", "data": [[1, 2], [3, 4]]},
            {"name": "b", "shape": [1, 1], "datatype": "BYTES", "data": ["\u00fc"], "parameters": {"x": 1}}
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": false}}]
    }"#;
    let request = decode_request(body, "model", "2").unwrap();
    assert_eq!(
        (&*request.model_name, &*request.model_version, &*request.id),
        ("model", "2", "42")
    );
    assert_eq!(request.parameters["timeout"], Parameter::Int64(5000));
    assert_eq!(request.parameters["big"], Parameter::Uint64(u64::MAX));
    let data: Vec<u8> = [1u32, 2, 3, 4]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    assert_eq!(
        request.inputs[0],
        Tensor::new("a", Datatype::Uint32, [2, 2], data).unwrap()
    );
    assert_eq!(request.inputs[1].strings().unwrap(), ["ü"]);
    assert_eq!(
        request.outputs[0].parameters["binary_data"],
        Parameter::Bool(false)
    );
}

#[test]
fn integers_are_exact_to_the_ends_of_their_range() {
    let tensor = decode(
        "{'name': 'x', 'datatype': 'INT64', 'shape': [3],
          'data': [-9223372036854775808, 9223372036854775807, 9007199254740993]}",
    );
    let data = [i64::MIN, i64::MAX, 9_007_199_254_740_993]
        .map(i64::to_le_bytes)
        .concat();
    assert_eq!(&tensor.unwrap().data[..], data);
    let tensor =
        decode("{'name': 'x', 'datatype': 'UINT64', 'shape': [1], 'data': [18446744073709551615]}");
    assert_eq!(&tensor.unwrap().data[..], [0xff; 8]);
}

#[test]
fn elements_of_a_flat_array_are_as_they_are_written() {
    let read = |text: &str| {
        let array: &serde_json::value::RawValue = serde_json::from_str(text).unwrap();
        elements(array).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(read("[]"), [""; 0]);
    assert_eq!(read("[ -1.5e3 ,null,\ntrue ]"), ["-1.5e3", "null", "true"]);
    let strings = [r#""""#, r#""a,]\\""#, r#""\"[""#];
    assert_eq!(read(&format!("[{}]", strings.join(","))), strings);
}

#[test]
fn null_is_nan() {
    let tensor = decode("{'name': 'x', 'datatype': 'FP32', 'shape': [1], 'data': [null]}").unwrap();
    assert_eq!(&tensor.data[..], f32::NAN.to_le_bytes());
}

#[test]
fn floats_of_16_bits_are_rounded_and_have_a_range() {
    let half = |datatype: &str, data: &str| {
        decode(&format!(
            "{{'name': 'x', 'datatype': '{datatype}', 'shape': [2], 'data': [{data}]}}"
        ))
    };
    let raw = |tensor: Tensor| tensor.data.to_vec();
    let expected = [0.1, 65504.0].map(|value| half::f16::from_f32(value).to_le_bytes());
    assert_eq!(raw(half("FP16", "0.1, 65510").unwrap()), expected.concat());
    let expected = [half::bf16::from_f32(0.1), half::bf16::NAN].map(half::bf16::to_le_bytes);
    assert_eq!(raw(half("BF16", "0.1, null").unwrap()), expected.concat());
    for (datatype, beyond, range) in [
        ("FP16", "-65520", "numbers from -65504 to 65504"),
        (
            "BF16",
            "3.4e38",
            "numbers from -3.3895314e38 to 3.3895314e38",
        ),
    ] {
        let error = half(datatype, &format!("1, {beyond}")).unwrap_err();
        let expected = format!(
            "tensor `x`: element 1 is `{beyond}`; {datatype} takes {range}, and null for NaN"
        );
        assert_eq!(error.to_string(), expected);
        assert!(!error.is_malformed());
    }
}

#[test]
fn empty_tensors_are_flat_or_nested() {
    for (shape, data) in [
        ("[0]", "[]"),
        ("[0, 3]", "[]"),
        ("[2, 0]", "[[], []]"),
        ("[2, 0]", "[]"),
    ] {
        let tensor = decode(&format!(
            "{{'name':'x','datatype':'FP32','shape':{shape},'data':{data}}}"
        ));
        assert_eq!(tensor.unwrap().data.len(), 0, "{shape} {data}");
    }
}

#[test]
fn a_request_can_be_looked_at_before_its_data_is_read() {
    let body = br#"{"id": "42", "inputs": [{"name": "x", "shape": [2, -5], "datatype": "INT8", "data": [true]}]}"#;
    let unread = UnreadRequest::new(body).unwrap();
    let view = unread.view();
    assert_eq!(view.id, "42");
    let [input] = view.inputs[..] else {
        panic!("one input is given")
    };
    let (name, datatype, shape) = ("x", Datatype::Int8, &[2, -5][..]);
    assert_eq!(
        input,
        crate::TensorView {
            name,
            datatype,
            shape
        }
    );
    let error = unread.read().unwrap_err().to_string();
    assert!(error.contains("negative dimension"), "{error}");
}

#[test]
fn numbers_are_read_to_the_bit_wherever_they_end() {
    let singles = [
        "7.038531e-26",
        "0.1",
        "-0.0",
        "1e-46",
        "3.4028235e38",
        "16777217",
        "1.17549435082228750796873653722224567781866555677208752150875e-38",
        "8.589973e9",
        "1E2",
        "1e+2",
        "123456789012345678901234567890",
    ];
    for end in [",", " ,", "\n,\t", "\r\n , "] {
        let text = singles.join(end);
        let shape = singles.len();
        let of = |datatype: &str| {
            let tensor = format!(
                "{{'name': 'x', 'datatype': '{datatype}', 'shape': [{shape}], 'data': [ {text}]}}"
            );
            decode(&tensor).unwrap().data
        };
        let expected = singles.map(|it| it.parse::<f32>().unwrap().to_le_bytes());
        assert_eq!(of("FP32"), expected.concat());
        let expected = singles.map(|it| it.parse::<f64>().unwrap().to_le_bytes());
        assert_eq!(of("FP64"), expected.concat());
    }
    let whole = decode(
        "{'name': 'x', 'datatype': 'INT8', 'shape': [2, 3], 'data': [[-0,-128 , 127],[ 0,1\n,-1]]}",
    );
    assert_eq!(&whole.unwrap().data[..], [0, 0x80, 0x7f, 0, 1, 0xff]);
    for (datatype, given) in [
        ("INT8", "1e1"),
        ("INT8", "0.5"),
        ("UINT8", "-0"),
        ("UINT8", "-1"),
        ("UINT16", "true"),
        ("INT64", "null"),
        ("INT64", "9223372036854775808"),
        ("BOOL", "null"),
        ("FP64", "true"),
        ("FP64", "1e309"),
    ] {
        let tensor =
            format!("{{'name': 'x', 'datatype': '{datatype}', 'shape': [1], 'data': [{given}]}}");
        let error = decode(&tensor).unwrap_err().to_string();
        let told = format!("tensor `x`: element 0 is `{given}`; {datatype} takes ");
        assert!(error.starts_with(&told), "{error}");
    }
}
