//! Wrong requests, and what clients are told of them.

use super::*;

#[test]
fn wrong_content_is_told_from_a_broken_message() {
    let x = |datatype: &str, shape: &str, data: &str| {
        format!("{{'data': {data}, 'name': 'x', 'shape': {shape}, 'datatype': '{datatype}'}}")
    };
    let whole = "element 0 is `1.0`; INT8 takes whole numbers from -128 to 127";
    for (tensor, expected) in [
        (x("INT8", "[1]", "[1.0]"), whole),
        (
            x("INT8", "[2]", "[1, 128]"),
            "element 1 is `128`; INT8 takes whole numbers from -128 to 127",
        ),
        (
            x("UINT64", "[1]", "[18446744073709551616]"),
            "element 0 is `18446744073709551616`; UINT64 takes whole numbers from 0 to 18446744073709551615",
        ),
        (
            x("BOOL", "[1]", "[1]"),
            "element 0 is `1`; BOOL takes true and false",
        ),
        (
            x("BYTES", "[1]", "[1]"),
            "element 0 is `1`; BYTES takes strings",
        ),
        (
            x("BYTES", "[1]", "[null]"),
            "element 0 is `null`; BYTES takes strings",
        ),
        (
            x("FP32", "[1]", "[1e39]"),
            "element 0 is `1e39`; FP32 takes numbers from -3.4028235e38 to 3.4028235e38, and null for NaN",
        ),
        (
            x("FP32", "[1]", "[{'a': 1}]"),
            "element 0 is `{…}`; FP32 takes numbers from -3.4028235e38 to 3.4028235e38, and null for NaN",
        ),
        (
            x("FP32", "[2]", "[1]"),
            "shape [2] has 2 elements; 1 given: change the shape or the data",
        ),
        (
            x("BYTES", "[2]", "['a']"),
            "shape [2] has 2 elements; 1 given: change the shape or the data",
        ),
        (
            x("FP32", "[-1]", "[1]"),
            "shape [-1] has a negative dimension; each is 0 or more",
        ),
        (
            x("FP32", "[4294967296, 4294967296]", "[1]"),
            "shape [4294967296, 4294967296] of FP32 is larger than memory can be",
        ),
        (
            x("FP32", "[2, 2]", "[[1, 2], [3]]"),
            "an array 2 deep in its data has 1 items; shape [2, 2] says 2",
        ),
        (
            x("FP32", "[2, 2]", "[[1, 2], 3]"),
            "its data is nested unlike shape [2, 2]; give one flat array, or arrays nested 2 deep",
        ),
        (
            x("FP32", "[2]", "[1, [2]]"),
            "its data is nested unlike shape [2]; give one flat array, or arrays nested 1 deep",
        ),
        (
            x("FP31", "[2]", "[]"),
            "datatype `FP31`: failed to read a datatype: it is one of BOOL, UINT8, UINT16, UINT32, UINT64, INT8, \
             INT16, INT32, INT64, FP16, BF16, FP32, FP64, BYTES",
        ),
        (
            [x("FP32", "[0]", "[]"), x("FP32", "[0]", "[]")].join(","),
            "is given twice",
        ),
    ] {
        let error = decode(&tensor).unwrap_err();
        assert_eq!(error.to_string(), format!("tensor `x`: {expected}"));
        assert!(!error.is_malformed(), "{error}");
    }
}

/// Asserts that `error` says that the message is broken, beginning with `expected`.
fn assert_malformed(error: &DecodeError, expected: &str) {
    assert!(error.is_malformed(), "{error}");
    let message = error.to_string();
    assert!(
        message.starts_with(&format!("failed to parse JSON: {expected}")),
        "{message}; {expected}"
    );
}

#[test]
fn a_broken_message_says_where() {
    for (tensor, expected) in [
        ("{'name': 'x'}", "inputs[0]: missing field `datatype`"),
        (
            "{'name': 'x', 'datatype': 'FP32', 'shape': ['a'], 'data': []}",
            "inputs[0].shape[0]: invalid type: string \"a\", expected i64",
        ),
        (
            "{'name': 'x', 'datatype': 'FP32', 'data': [], 'data': []}",
            "inputs[0]: duplicate field `data`",
        ),
        (
            "['x', 'FP32', [1], [1]]",
            "inputs[0]: invalid type: sequence, expected an object",
        ),
        (
            "{'name': 'x', 'datatype': 'FP32', 'shape': [1], 'data': 1}",
            "tensor `x`: data is not an array",
        ),
        (
            "{'name': 'x', 'datatype': 'BYTES', 'shape': [1], 'data': ['\\ud800']}",
            "tensor `x`: element 0: unexpected end of hex escape",
        ),
        (
            "{'name': 'x', 'data': [1, ]}",
            "inputs[0].data: expected value",
        ),
        (
            "{'name': 'x', 'data': [NaN]}",
            "inputs[0].data: expected value",
        ),
        ("}", "inputs[0]: expected value"),
    ] {
        assert_malformed(&decode(tensor).unwrap_err(), expected);
    }
    for (body, expected) in [
        ("", "EOF while parsing a value"),
        ("[]", "invalid type: sequence, expected an object"),
        ("{}", "missing field `inputs`"),
        (r#"{"inputs": []} x"#, "trailing characters"),
        (
            r#"{"inputs": [], "parameters": {"a": null}}"#,
            "parameters.a: invalid type: null, expected a boolean, a number or a string",
        ),
        (
            r#"{"inputs": [], "parameters": {"a": 1, "a": 2}}"#,
            "parameters: duplicate parameter `a`",
        ),
        (
            r#"{"inputs": [], "inputs": []}"#,
            "duplicate field `inputs`",
        ),
    ] {
        assert_malformed(
            &decode_request(body.as_bytes(), "", "").unwrap_err(),
            expected,
        );
    }
}

#[test]
fn what_other_writers_take_for_json_is_named() {
    let finite = "is not JSON: numbers in JSON are finite; in tensors of FP32 and FP64 null stands for NaN, and \
                  nothing for an infinity";
    let words = "is not JSON: JSON has true, false and null, in lower case";
    let pair = "half of a surrogate pair is no character; write both halves, as in \\ud83d\\ude00, or the \
                character itself in UTF-8";
    for (datatype, data, at, hint) in [
        (
            "FP32",
            "[1.0, NaN]",
            "line 1 column 75",
            format!("`NaN` {finite}"),
        ),
        (
            "FP32",
            "[\n1,\n nan]",
            "line 3 column 3",
            format!("`nan` {finite}"),
        ),
        (
            "FP64",
            "[Infinity, 1]",
            "line 1 column 70",
            format!("`Infinity` {finite}"),
        ),
        (
            "FP64",
            "[1, -Infinity]",
            "line 1 column 74",
            format!("`-Infinity` {finite}"),
        ),
        (
            "BOOL",
            "[True, False]",
            "line 1 column 70",
            format!("`True` {words}"),
        ),
        (
            "FP32",
            "[None]",
            "line 1 column 70",
            format!("`None` {words}"),
        ),
        // The place is told within the element.
        ("BYTES", "['\\ud83d']", "line 1 column 8", pair.to_owned()),
        (
            "BYTES",
            "['a', '\\ude00']",
            "line 1 column 7",
            pair.to_owned(),
        ),
        (
            "BYTES",
            "['\\ud83d\\u0041']",
            "line 1 column 13",
            pair.to_owned(),
        ),
    ] {
        let tensor =
            format!("{{'name': 'x', 'datatype': '{datatype}', 'shape': [2], 'data': {data}}}");
        let error = decode(&tensor).unwrap_err();
        assert!(error.is_malformed(), "{error}");
        let message = error.to_string();
        assert!(message.ends_with(&format!(" at {at}; {hint}")), "{message}");
    }
    let message = decode("{'name': 'x', 'datatype': 'FP32', 'shape': [1], 'data': [nil]}");
    let message = message.unwrap_err().to_string();
    assert!(message.ends_with("line 1 column 71"), "{message}");
}

#[test]
fn a_byte_order_mark_is_skipped_and_other_encodings_are_named() {
    let json =
        r#"{"inputs": [{"name": "\u00fc", "datatype": "BYTES", "shape": [1], "data": ["ü😀"]}]}"#;
    let request = decode_request(json.as_bytes(), "", "").unwrap();
    let marked = format!("\u{feff}{json}");
    assert_eq!(decode_request(marked.as_bytes(), "", "").unwrap(), request);
    let twice = format!("\u{feff}{marked}");
    assert_malformed(
        &decode_request(twice.as_bytes(), "", "").unwrap_err(),
        "expected value at line 1 column 1",
    );

    let little: Vec<u8> = json.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = marked.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let latin = b"{\"id\": \"\xfc\"}".to_vec();
    let wide = "this looks like UTF-16 or UTF-32; send UTF-8";
    for (body, hint) in [
        (little, wide),
        (big, wide),
        (latin, "this is not UTF-8, in which JSON is sent"),
    ] {
        let message = decode_request(&body, "", "").unwrap_err().to_string();
        assert!(message.ends_with(&format!("; {hint}")), "{message}");
    }
}
