//! A request that a reader can paste into a shell, made from the tensors that the model declares.

use std::path::Path;

use carpool_crds::{Datatype, Model, Task, TensorSpec};
use serde_json::{Value, json};

/// The size that a variable dimension has in the example.
const VARIABLE: i64 = 4;
/// The most bytes of a body that stands in the curl line itself; a longer one goes to a file.
const MAX_INLINE_BYTES: usize = 600;

/// Returns a curl line for this model, served under `name` at `url`. A body too long to paste goes to `file`.
pub fn curl(name: &str, url: &str, model: &Model, file: &Path) -> std::io::Result<String> {
    if let Some(text) = &model.text {
        let (path, body) = match text.task {
            Task::Classify => ("predict", json!({"text": "I love you"})),
            Task::Embed => ("v1/embeddings", json!({"input": "I love you"})),
            Task::Rerank => (
                "rerank",
                json!({"query": "love", "documents": ["I love you"]}),
            ),
        };
        return Ok(format!("curl {url}/{path} --json '{body}'"));
    }
    let body = zeros(&model.inputs).to_string();
    let infer = format!("curl {url}/v2/models/{name}/infer --json");
    if body.len() <= MAX_INLINE_BYTES {
        return Ok(format!("{infer} '{body}'"));
    }
    std::fs::write(file, body)?;
    Ok(format!("{infer} @{}", file.display()))
}

/// Returns the body of a request of one row, all zeros.
fn zeros(inputs: &[TensorSpec]) -> Value {
    let inputs: Vec<Value> = inputs
        .iter()
        .map(|input| {
            let item = input
                .shape
                .iter()
                .map(|dimension| dimension.fixed().unwrap_or(VARIABLE));
            let shape: Vec<i64> = std::iter::once(1).chain(item).collect();
            let elements = shape.iter().product::<i64>().unsigned_abs();
            let zero = match input.datatype {
                Datatype::Bool => json!(false),
                _ => json!(0),
            };
            let data: Vec<Value> = (0..elements).map(|_| zero.clone()).collect();
            json!({"name": input.name, "datatype": input.datatype, "shape": shape, "data": data})
        })
        .collect();
    json!({ "inputs": inputs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(inputs: &Value) -> Model {
        serde_json::from_value(json!({
            "uri": "file://artifact", "inputs": inputs,
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}],
        }))
        .unwrap()
    }

    #[test]
    fn a_small_body_is_inline() {
        let model = model(&json!([
            {"name": "ids", "datatype": "INT64", "shape": [-1]},
            {"name": "flag", "datatype": "BOOL", "shape": []},
        ]));
        assert_eq!(
            curl("m", "http://h:1", &model, Path::new("unused")).unwrap(),
            "curl http://h:1/v2/models/m/infer --json '{\"inputs\":[\
             {\"data\":[0,0,0,0],\"datatype\":\"INT64\",\"name\":\"ids\",\"shape\":[1,4]},\
             {\"data\":[false],\"datatype\":\"BOOL\",\"name\":\"flag\",\"shape\":[1]}]}'"
        );
    }

    #[test]
    fn a_large_body_goes_to_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.json");
        let model = model(&json!([{"name": "image", "datatype": "FP32", "shape": [3, 224, 224]}]));
        let line = curl("m", "http://h:1", &model, &file).unwrap();
        assert_eq!(
            line,
            format!(
                "curl http://h:1/v2/models/m/infer --json @{}",
                file.display()
            )
        );
        let body: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(
            body["inputs"][0]["data"].as_array().unwrap().len(),
            3 * 224 * 224
        );
    }

    #[test]
    fn text_models_take_text() {
        let mut text = model(&json!([{"name": "input_ids", "datatype": "INT64", "shape": [-1]}]));
        for (declared, asked) in [
            (
                json!({"labels": ["a", "b"]}),
                r#"predict --json '{"text":"I love you"}'"#,
            ),
            (
                json!({"task": "Embed"}),
                r#"v1/embeddings --json '{"input":"I love you"}'"#,
            ),
            (
                json!({"task": "Rerank"}),
                r#"rerank --json '{"documents":["I love you"],"query":"love"}'"#,
            ),
        ] {
            let mut declared = declared;
            declared["tokenizer"] = json!("t.json");
            text.text = serde_json::from_value(declared).unwrap();
            let line = curl("m", "http://h:1", &text, Path::new("unused")).unwrap();
            assert_eq!(line, format!("curl http://h:1/{asked}"));
        }
    }
}
