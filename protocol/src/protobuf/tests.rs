//! Messages that other clients write, and broken ones.

use super::*;

fn input(
    name: &str,
    datatype: Datatype,
    contents: Option<InferTensorContents>,
) -> InferInputTensor {
    InferInputTensor {
        name: name.into(),
        datatype: datatype.to_string(),
        shape: vec![2],
        contents,
        ..InferInputTensor::default()
    }
}

fn decode(
    inputs: Vec<InferInputTensor>,
    raw: &[&'static [u8]],
) -> Result<Vec<Tensor>, DecodeError> {
    let raw_input_contents = raw.iter().map(|raw| Bytes::from_static(raw)).collect();
    let message = ModelInferRequest {
        inputs,
        raw_input_contents,
        ..ModelInferRequest::default()
    };
    InferRequest::decode(message.encode_to_vec().into()).map(|request| request.inputs)
}

#[test]
fn typed_contents_become_raw() {
    let ints = || InferTensorContents {
        int_contents: vec![-1, 2],
        ..InferTensorContents::default()
    };
    let uints = || InferTensorContents {
        uint_contents: vec![1, 2],
        ..InferTensorContents::default()
    };
    let strings = vec![Bytes::from_static(b""), Bytes::from_static(b"\xff")];
    for (datatype, contents, raw) in [
        (
            Datatype::Bool,
            InferTensorContents {
                bool_contents: vec![true, false],
                ..InferTensorContents::default()
            },
            vec![1, 0],
        ),
        (Datatype::Int8, ints(), vec![0xff, 2]),
        (Datatype::Int16, ints(), vec![0xff, 0xff, 2, 0]),
        (
            Datatype::Int32,
            ints(),
            vec![0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0],
        ),
        (Datatype::Uint8, uints(), vec![1, 2]),
        (Datatype::Uint16, uints(), vec![1, 0, 2, 0]),
        (Datatype::Uint32, uints(), vec![1, 0, 0, 0, 2, 0, 0, 0]),
        (
            Datatype::Int64,
            InferTensorContents {
                int64_contents: vec![i64::MIN, 1],
                ..InferTensorContents::default()
            },
            [i64::MIN, 1].map(i64::to_le_bytes).concat(),
        ),
        (
            Datatype::Uint64,
            InferTensorContents {
                uint64_contents: vec![u64::MAX, 1],
                ..InferTensorContents::default()
            },
            [u64::MAX, 1].map(u64::to_le_bytes).concat(),
        ),
        (
            Datatype::Fp32,
            InferTensorContents {
                fp32_contents: vec![0.1, -0.0],
                ..InferTensorContents::default()
            },
            [0.1, -0.0].map(f32::to_le_bytes).concat(),
        ),
        (
            Datatype::Fp64,
            InferTensorContents {
                fp64_contents: vec![0.1, -0.0],
                ..InferTensorContents::default()
            },
            [0.1, -0.0].map(f64::to_le_bytes).concat(),
        ),
        (
            Datatype::Bytes,
            InferTensorContents {
                bytes_contents: strings,
                ..InferTensorContents::default()
            },
            vec![0, 0, 0, 0, 1, 0, 0, 0, 0xff],
        ),
    ] {
        let tensors = decode(vec![input("x", datatype, Some(contents))], &[]).unwrap();
        assert_eq!(tensors, [Tensor::new("x", datatype, [2], raw).unwrap()]);
    }
}

#[test]
fn wrong_contents_are_told_from_a_broken_message() {
    let ints = || {
        Some(InferTensorContents {
            int_contents: vec![-1, 300],
            ..InferTensorContents::default()
        })
    };
    for (inputs, raw, expected, is_malformed) in [
        (
            vec![input("x", Datatype::Int64, ints())],
            vec![],
            "tensor `x`: INT64 takes int64_contents; int_contents given",
            false,
        ),
        (
            vec![input("x", Datatype::Fp16, ints())],
            vec![],
            "tensor `x`: FP16 takes raw contents; int_contents given",
            false,
        ),
        (
            vec![input("x", Datatype::Int8, ints())],
            vec![],
            "tensor `x`: element 1 is `300`; INT8 takes whole numbers from -128 to 127",
            false,
        ),
        (
            vec![input("x", Datatype::Int8, None)],
            vec![],
            "tensor `x`: shape [2] has 2 elements; 0 given: change the shape or the data",
            false,
        ),
        (
            vec![
                input("x", Datatype::Int8, None),
                input("x", Datatype::Int8, None),
            ],
            vec![&b"\0\0"[..]; 2],
            "tensor `x`: is given twice",
            false,
        ),
        (
            vec![input("x", Datatype::Int8, ints())],
            vec![b"\0\0"],
            "tensor `x`: has raw and typed contents; give one of them",
            true,
        ),
        (
            vec![
                input("x", Datatype::Int8, None),
                input("y", Datatype::Int8, None),
            ],
            vec![b"\0\0"],
            "failed to read raw contents: there are 1 for 2 tensors; each has one, or none has",
            true,
        ),
    ] {
        let error = decode(inputs, &raw).unwrap_err();
        assert_eq!(
            (&*error.to_string(), error.is_malformed()),
            (expected, is_malformed)
        );
    }
}

#[test]
fn too_many_tensors_are_refused() {
    let message = ModelInferRequest {
        inputs: vec![InferInputTensor::default(); MAX_TENSORS + 1],
        ..ModelInferRequest::default()
    };
    let error = InferRequest::decode(message.encode_to_vec().into()).unwrap_err();
    assert!(
        matches!(error, DecodeError::TooManyTensors { limit: MAX_TENSORS }),
        "{error}"
    );
}
