use carpool_protocol::{InferRequest, RequestedOutput, Tensor};
use serde_json::{Value, json};

use super::*;

fn model(value: Value) -> Model {
    serde_json::from_value(value).unwrap()
}

fn rows(model: &Model, request: &InferRequest) -> Result<u32, Invalid> {
    super::rows(model, &request.view())
}

/// A model of two inputs, the second of variable length.
fn tensors() -> Model {
    model(json!({
        "uri": "file://m",
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [2]},
            {"name": "b", "datatype": "UINT8", "shape": [-1]},
        ],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1]},
            {"name": "half", "datatype": "FP16", "shape": [1]},
        ],
    }))
}

fn text() -> Model {
    model(json!({
        "uri": "file://m",
        "inputs": [
            {"name": "input_ids", "datatype": "INT64", "shape": [-1]},
            {"name": "attention_mask", "datatype": "INT64", "shape": [-1]},
        ],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2]}],
        "text": {"tokenizer": "tokenizer.json", "labels": ["N", "P"]},
    }))
}

/// A tensor of zeros.
fn zeros(name: &str, datatype: Datatype, shape: &[i64]) -> Tensor {
    let elements = usize::try_from(shape.iter().product::<i64>()).unwrap();
    // Four zero bytes are an empty element of BYTES.
    let bytes = elements * datatype.size().unwrap_or(4);
    Tensor::new(name, datatype, shape, vec![0; bytes]).unwrap()
}

fn request(inputs: Vec<Tensor>, outputs: &[&str]) -> InferRequest {
    let outputs = outputs.iter().map(|name| RequestedOutput {
        name: (*name).to_owned(),
        ..RequestedOutput::default()
    });
    InferRequest {
        inputs,
        outputs: outputs.collect(),
        ..InferRequest::default()
    }
}

fn a(shape: &[i64]) -> Tensor {
    zeros("a", Datatype::Fp32, shape)
}

fn b(shape: &[i64]) -> Tensor {
    zeros("b", Datatype::Uint8, shape)
}

#[test]
fn what_the_model_takes_is_good_in_any_order() {
    assert_eq!(
        rows(&tensors(), &request(vec![b(&[3, 7]), a(&[3, 2])], &["y"])),
        Ok(3)
    );
}

#[test]
fn what_the_model_does_not_take_is_named() {
    for (inputs, expected) in [
        (vec![], r#"input "a" is missing; the model takes "a", "b""#),
        (
            vec![a(&[1, 2])],
            r#"input "b" is missing; the model takes "a", "b""#,
        ),
        (
            vec![a(&[1, 2]), b(&[1, 1]), zeros("c", Datatype::Fp32, &[1])],
            r#"unknown input "c"; the model takes "a", "b""#,
        ),
        (vec![a(&[1, 2]), a(&[1, 2])], r#"input "a" is given twice"#),
        (
            vec![zeros("a", Datatype::Fp64, &[1, 2]), b(&[1, 1])],
            r#"input "a": expected datatype FP32, given FP64"#,
        ),
        (
            vec![a(&[1, 3]), b(&[1, 1])],
            r#"input "a": expected shape [-1, 2], given [1, 3]"#,
        ),
        (
            vec![a(&[2]), b(&[1, 1])],
            r#"input "a": expected shape [-1, 2], given [2]; add the batch dimension: [1, 2]"#,
        ),
        (
            vec![a(&[1, 2, 1]), b(&[1, 1])],
            r#"input "a": expected shape [-1, 2], given [1, 2, 1]; send 2 dimensions, the batch dimension first"#,
        ),
        (
            vec![a(&[0, 2]), b(&[0, 1])],
            r#"input "a": expected shape [-1, 2], given [0, 2]; it has no rows; send at least one: [1, 2]"#,
        ),
        (
            vec![a(&[1, 2]), b(&[1, 0])],
            r#"input "b": expected shape [-1, -1], given [1, 0]; where -1 is expected, send at least 1"#,
        ),
        (
            vec![a(&[2, 2]), b(&[3, 1])],
            r#"input "b": expected 2 rows as in "a", given 3"#,
        ),
        (
            vec![zeros("text", Datatype::Bytes, &[1])],
            r#"unknown input "text"; the model takes "a", "b""#,
        ),
    ] {
        let error = rows(&tensors(), &request(inputs, &["y"])).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn outputs_exist_and_are_asked_for_once() {
    for (outputs, expected) in [
        (
            &["z"][..],
            r#"unknown output "z"; the model gives "y", "half""#,
        ),
        (
            &["label"],
            r#"unknown output "label"; the model gives "y", "half""#,
        ),
        (&["y", "y"], r#"output "y" is requested twice"#),
    ] {
        let request = request(vec![a(&[1, 2]), b(&[1, 1])], outputs);
        let error = rows(&tensors(), &request).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn parameters_that_ask_for_another_answer_are_refused_by_name() {
    let ask = |of_output: bool, parameter: &str, value| {
        let mut request = request(vec![a(&[1, 2]), b(&[1, 1])], &["y"]);
        let parameters = if of_output {
            &mut request.outputs[0].parameters
        } else {
            &mut request.parameters
        };
        parameters.insert(parameter.to_owned(), value);
        rows(&tensors(), &request).map_err(|error| error.to_string())
    };
    let text = || Parameter::String("x".to_owned());
    for (of_output, parameter, value, expected) in [
        (
            true,
            "classification",
            Parameter::Int64(3),
            r#"output "y": the parameter "classification" is not built yet; leave it out and rank the output's numbers in the client"#,
        ),
        (
            false,
            "classification",
            Parameter::Int64(1),
            r#"request: the parameter "classification" is not built yet; leave it out and rank the output's numbers in the client"#,
        ),
        (
            true,
            "shared_memory_region",
            text(),
            r#"output "y": the parameter "shared_memory_region" is not built yet; leave it out and read the output from the answer"#,
        ),
    ] {
        assert_eq!(ask(of_output, parameter, value), Err(expected.to_owned()));
    }
    assert_eq!(ask(true, "classification", Parameter::Int64(0)), Ok(1));
    assert_eq!(ask(true, "binary_data", Parameter::Bool(true)), Ok(1));
    assert_eq!(ask(false, "priority", Parameter::Int64(1)), Ok(1));
}

#[test]
fn texts_come_one_a_row() {
    let texts = |shape: &[i64]| zeros("text", Datatype::Bytes, shape);
    let ask = |inputs| rows(&text(), &request(inputs, &["label", "score", "logits"]));
    assert_eq!(ask(vec![texts(&[4, 1])]), Ok(4));
    assert_eq!(ask(vec![texts(&[4])]), Ok(4));
    for (inputs, expected) in [
        (
            vec![texts(&[2, 2])],
            r#"input "text": expected shape [-1, 1], given [2, 2]; each row is one text"#,
        ),
        (
            vec![texts(&[0])],
            r#"input "text": expected shape [-1, 1], given [0]; it has no rows; send at least one: [1, 1]"#,
        ),
        (
            vec![zeros("text", Datatype::Int64, &[1])],
            r#"input "text": expected datatype BYTES, given INT64"#,
        ),
        (
            vec![texts(&[1]), texts(&[1])],
            r#"input "text" is given twice"#,
        ),
        (
            vec![texts(&[1]), zeros("input_ids", Datatype::Int64, &[1, 3])],
            r#"input "text" takes the place of the model's own inputs; "input_ids" is given too"#,
        ),
    ] {
        assert_eq!(ask(inputs).unwrap_err().to_string(), expected);
    }
}

#[test]
fn the_tensors_of_a_text_model_stay_reachable() {
    let ask = |ids: &[i64], mask: &[i64]| {
        let inputs = vec![
            zeros("input_ids", Datatype::Int64, ids),
            zeros("attention_mask", Datatype::Int64, mask),
        ];
        rows(&text(), &request(inputs, &[]))
    };
    assert_eq!(ask(&[2, 5], &[2, 5]), Ok(2));
    assert_eq!(
        ask(&[2, 5], &[2, 4]).unwrap_err().to_string(),
        r#"input "attention_mask": expected shape [2, 5] as in "input_ids", given [2, 4]"#
    );
}

#[test]
fn a_dimension_is_of_one_size_wherever_its_name_stands() {
    let model = model(json!({
        "uri": "file://m",
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": ["seq"]},
            {"name": "b", "datatype": "UINT8", "shape": [2, "seq"]},
        ],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1]}],
    }));
    let b = |length| zeros("b", Datatype::Uint8, &[1, 2, length]);
    let given = |length| rows(&model, &request(vec![a(&[1, 3]), b(length)], &[]));
    assert_eq!(given(3), Ok(1));
    assert_eq!(
        given(4).unwrap_err().to_string(),
        r#"input "b": expected 3 for its dimension seq as in "a", given 4"#
    );
}

#[test]
fn an_element_outside_of_its_bounds_is_told_with_the_bound() {
    let bounded = |minimum: Value, maximum: Value| {
        model(json!({
            "uri": "file://m",
            "inputs": [
                {"name": "a", "datatype": "FP32", "shape": [2]},
                {"name": "x", "datatype": "FP32", "shape": [-1], "minimum": minimum, "maximum": maximum},
            ],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1]}],
        }))
    };
    let ask = |model: Model, values: &[f32]| {
        let data: Vec<u8> = values.iter().flat_map(|it| it.to_le_bytes()).collect();
        let columns = i64::try_from(values.len()).unwrap();
        let x = Tensor::new("x", Datatype::Fp32, [1, columns], data).unwrap();
        elements(&model, &[x, a(&[1, 2])]).map_err(|error| error.to_string())
    };
    let told = |element| Err(format!("input \"x\": element {element}"));
    let both = || bounded(json!(0), json!(1));
    assert_eq!(ask(both(), &[0.0, 0.5, 1.0]), Ok(()));
    for (values, element) in [
        (&[0.0, 1.5, -1.0][..], "1 is 1.5, above the maximum 1"),
        (&[0.0, -1.0, 1.5], "1 is -1, below the minimum 0"),
        (&[f32::NAN], "0 is NaN, outside of every bound"),
    ] {
        assert_eq!(ask(both(), values), told(element));
    }
    let values = &[-2.0, 2.0];
    let low = bounded(json!(-0.5), Value::Null);
    assert_eq!(ask(low, values), told("0 is -2, below the minimum -0.5"));
    let high = bounded(Value::Null, json!(1));
    assert_eq!(ask(high, values), told("1 is 2, above the maximum 1"));
    let free = bounded(Value::Null, Value::Null);
    assert_eq!(ask(free, &[f32::NAN]), Ok(()));
}
