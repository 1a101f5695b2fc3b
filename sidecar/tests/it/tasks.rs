//! Embeddings in the form of `OpenAI`, and reranking in those of Cohere and of Text Embeddings Inference.

use carpool_protocol::{
    Datatype, InferRequest, InferResponse, Parameter, Tensor, inference::ModelInferRequest,
};
use carpool_queue::{Job, Outcome};
use prost::Message;
use serde_json::{Value, json};
use tonic::Request;

use crate::{
    grpc,
    rig::{INFER, Rig, config, pairs, texts},
    worker,
};

const EMBEDDINGS: &str = "/v1/embeddings";
const RERANK: &str = "/rerank";

fn embedder() -> Value {
    json!({
        "uri": "file://m",
        "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [-1]}],
        "outputs": [{"name": "vector", "datatype": "FP32", "shape": [2]}],
        "text": {"tokenizer": "tokenizer.json", "task": "Embed"},
    })
}

fn reranker() -> Value {
    json!({
        "uri": "file://m",
        "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [-1]}],
        "outputs": [{"name": "logit", "datatype": "FP32", "shape": [1]}],
        "text": {"tokenizer": "tokenizer.json", "task": "Rerank"},
    })
}

fn floats(name: &str, shape: [i64; 2], values: impl Iterator<Item = f32>) -> Tensor {
    let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    Tensor::new(name, Datatype::Fp32, shape, data).unwrap()
}

/// Gives of each text or pair what its length tells: vectors, scores and tokens, those that are asked for.
#[expect(clippy::cast_precision_loss, reason = "texts are short")]
fn lengths(_: &Job, request: InferRequest) -> Outcome {
    let last = request.inputs.last().unwrap();
    let texts = last.strings().unwrap();
    let rows = i64::try_from(texts.len()).unwrap();
    let lengths = || texts.iter().map(|text| text.len() as f32);
    let tokens: Vec<u8> = texts
        .iter()
        .flat_map(|text| (text.len() as u64).to_le_bytes())
        .collect();
    let outputs = request.outputs.iter().map(|output| match &*output.name {
        "embedding" => floats(
            "embedding",
            [rows, 2],
            lengths().flat_map(|length| [length, 0.5]),
        ),
        "score" => floats("score", [rows, 1], lengths()),
        "tokens" => Tensor::new("tokens", Datatype::Int64, [rows, 1], tokens.clone()).unwrap(),
        other => panic!("{other} was asked for"),
    });
    worker::answer(outputs.collect())
}

#[tokio::test]
async fn embeddings_have_openais_form() {
    let rig = Rig::start(config(&embedder())).await;
    rig.work("r1", lengths);
    let one = rig
        .post(EMBEDDINGS, json!({"input": "four", "model": "m"}))
        .await;
    assert_eq!(
        one.ok(),
        Ok(json!({
            "object": "list", "model": "m",
            "data": [{"object": "embedding", "index": 0, "embedding": [4.0, 0.5]}],
            "usage": {"prompt_tokens": 4, "total_tokens": 4},
        }))
    );
    let body = json!({"input": ["a", "bbb"], "model": "m", "encoding_format": "float", "dimensions": 2, "user": "u"});
    let several = rig.post(EMBEDDINGS, body).await.ok().unwrap();
    assert_eq!(
        several["data"][1],
        json!({"object": "embedding", "index": 1, "embedding": [3.0, 0.5]})
    );
    assert_eq!(
        several["usage"],
        json!({"prompt_tokens": 4, "total_tokens": 4})
    );
    let body = json!({"input": ["a"], "encoding_format": "base64"});
    let coded = rig.post(EMBEDDINGS, body).await.ok().unwrap();
    // 1.0 and 0.5, little-endian.
    assert_eq!(coded["data"][0]["embedding"], "AACAPwAAAD8=");
}

#[tokio::test]
async fn errors_of_embeddings_have_openais_form() {
    let rig = Rig::start(config(&embedder())).await;
    rig.work("r1", lengths);
    for (body, status, param, sentence) in [
        (
            json!({"model": "m"}),
            400,
            json!("input"),
            "input: missing: a string or a list of strings",
        ),
        (
            json!({"input": []}),
            400,
            json!("input"),
            "input: it is empty; at least one text is needed",
        ),
        (
            json!({"input": {"a": 1}}),
            400,
            json!("input"),
            "input: expected a string or a list of strings, given an object",
        ),
        (
            json!({"input": ["a", null]}),
            400,
            json!("input"),
            "input: expected a string or a list of strings, given null at 1",
        ),
        (
            json!({"input": [1, 2]}),
            400,
            json!("input"),
            "input: token ids are not taken",
        ),
        (
            json!({"input": [[1], [2]]}),
            400,
            json!("input"),
            "input: token ids are not taken",
        ),
        (
            json!({"input": "a", "dimensions": 1}),
            400,
            json!("dimensions"),
            "dimensions: the model gives 2, and no other number; given 1",
        ),
        (
            json!({"input": "a", "encoding_format": "int8"}),
            400,
            json!("encoding_format"),
            "encoding_format: expected \"float\" or \"base64\", given \"int8\"",
        ),
        (
            json!({"input": "a", "model": 1}),
            400,
            json!("model"),
            "model: expected a string, given a number",
        ),
        (
            json!({"input": "a", "model": "other"}),
            404,
            json!("model"),
            "unknown model other; this is m",
        ),
        (json!([]), 400, Value::Null, ""),
    ] {
        let answer = rig.post(EMBEDDINGS, &body).await;
        assert_eq!(answer.status, status, "{body}");
        let error = answer.json()["error"].clone();
        assert_eq!(error["type"], "invalid_request_error", "{body}");
        assert_eq!(error["param"], param, "{body}");
        let code = if status == 404 {
            json!("model_not_found")
        } else {
            Value::Null
        };
        assert_eq!(error["code"], code, "{body}");
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with(sentence), "{body}: {message}");
    }
}

#[tokio::test]
async fn documents_come_back_best_first() {
    let rig = Rig::start(config(&reranker())).await;
    rig.work("r1", lengths);
    let documents = json!(["bb", "dddd", {"text": "a"}, "cc"]);
    for path in [RERANK, "/v1/rerank", "/v2/rerank"] {
        let body = json!({"model": "m", "query": "q", "documents": documents});
        let answer = rig.post(path, body).await;
        let result = |index: usize, score: f32| json!({"index": index, "relevance_score": score});
        assert_eq!(
            answer.ok(),
            Ok(json!({
                "model": "m",
                "results": [result(1, 4.0), result(0, 2.0), result(3, 2.0), result(2, 1.0)],
                "usage": {"prompt_tokens": 9, "total_tokens": 9},
            }))
        );
    }
    let body = json!({"query": "q", "documents": documents, "top_n": 1, "return_documents": true});
    let best = rig.post(RERANK, body).await.ok().unwrap();
    assert_eq!(
        best["results"],
        json!([{"index": 1, "relevance_score": 4.0, "document": {"text": "dddd"}}])
    );
    let body = json!({"query": "q", "texts": ["a", "bb"], "return_text": true});
    let bare = rig.post(RERANK, body).await.ok().unwrap();
    assert_eq!(
        bare,
        json!([{"index": 1, "score": 2.0, "text": "bb"}, {"index": 0, "score": 1.0, "text": "a"}])
    );
    for (body, sentence) in [
        (json!({"documents": ["a"]}), "query: missing: a string"),
        (
            json!({"query": ["a"], "documents": ["a"]}),
            "query: expected a string, given an array",
        ),
        (
            json!({"query": "q"}),
            "documents: missing: a list of strings",
        ),
        (
            json!({"query": "q", "documents": []}),
            "documents: it is empty; at least one text is needed",
        ),
        (
            json!({"query": "q", "documents": ["a", 1]}),
            "documents: expected a list of strings, given a number at 1",
        ),
        (
            json!({"query": "q", "documents": [{"title": "a"}]}),
            "documents: the object at 0 has no string \"text\"",
        ),
        (
            json!({"query": "q", "documents": ["a"], "texts": ["a"]}),
            "texts: documents are given, too; leave one out",
        ),
        (
            json!({"query": "q", "documents": ["a"], "top_n": 0}),
            "top_n: expected a whole number of at least 1, given 0",
        ),
        (
            json!({"query": "q", "documents": ["a"], "max_tokens_per_doc": 5}),
            "max_tokens_per_doc: is not built yet",
        ),
        (
            json!({"query": "q", "texts": ["a"], "raw_scores": true}),
            "raw_scores: the model's scores go through a sigmoid",
        ),
    ] {
        let (status, told) = rig.post(RERANK, &body).await.ok().unwrap_err();
        assert_eq!(status, 422, "{body}");
        assert!(told.starts_with(sentence), "{body}: {told}");
    }
}

#[tokio::test]
async fn a_path_of_another_task_names_the_models_own() {
    let embed = "m is a model of the task Embed; POST to /v1/embeddings or /v2/models/m/infer";
    let rerank = "m is a model of the task Rerank; POST to /rerank or /v2/models/m/infer";
    let classify = "m is a model of the task Classify; POST to /predict or /v2/models/m/infer";
    let none = "m takes no text; POST its tensors to /v2/models/m/infer";
    for (model, paths, sentence) in [
        (embedder(), ["/predict", RERANK], embed),
        (reranker(), ["/predict", EMBEDDINGS], rerank),
        (texts(), [EMBEDDINGS, RERANK], classify),
        (pairs(), [EMBEDDINGS, RERANK], none),
    ] {
        let rig = Rig::start(config(&model)).await;
        for path in paths {
            let answer = rig.post(path, json!({"text": "a"})).await;
            assert_eq!(answer.status, 404, "{path}");
            let error = answer.json()["error"].clone();
            let told = if path == EMBEDDINGS {
                &error["message"]
            } else {
                &error
            };
            assert_eq!(told, sentence, "{path}");
        }
    }
}

#[tokio::test]
async fn the_protocol_has_the_tasks_tensors() {
    let text = |name: &str, shape: Value, data: Value| json!({"name": name, "datatype": "BYTES", "shape": shape, "data": data});
    let rig = Rig::start(config(&reranker())).await;
    rig.work("r1", lengths);
    let told = rig.get("/v2/models/m").await.ok().unwrap();
    assert_eq!(
        told["inputs"],
        json!([{"name": "query", "datatype": "BYTES", "shape": [-1, 1]}, {"name": "document", "datatype": "BYTES", "shape": [-1, 1]}])
    );
    assert_eq!(
        told["outputs"],
        json!([{"name": "score", "datatype": "FP32", "shape": [-1, 1]}])
    );
    let wanted = json!([{"name": "score"}, {"name": "tokens"}]);
    for query in [
        text("query", json!([1]), json!(["q"])),
        text("query", json!([2, 1]), json!(["q", "r"])),
    ] {
        let document = text("document", json!([2]), json!(["a", "bb"]));
        let answer = rig
            .post(
                INFER,
                json!({"inputs": [query, document], "outputs": wanted}),
            )
            .await;
        assert_eq!(
            answer.ok().unwrap()["outputs"][0]["data"],
            json!([1.0, 2.0])
        );
    }
    let document = |rows: usize| text("document", json!([rows]), json!(vec!["a"; rows]));
    let query = |rows: usize| text("query", json!([rows]), json!(vec!["a"; rows]));
    for (inputs, sentence) in [
        (
            json!([document(1)]),
            "input \"query\" is missing; the model takes \"query\", \"document\"",
        ),
        (
            json!([query(2), document(3)]),
            "input \"document\": expected 2 rows as in \"query\", given 3",
        ),
        (
            json!([
                query(1),
                document(1),
                text("text", json!([1]), json!(["a"]))
            ]),
            "input \"query\" takes the place of the model's own inputs; \"text\" is given too",
        ),
    ] {
        let refused = rig.post(INFER, json!({"inputs": inputs})).await;
        assert_eq!(refused.ok(), Err((422, sentence.to_owned())));
    }

    let rig = Rig::start(config(&embedder())).await;
    let told = rig.get("/v2/models/m").await.ok().unwrap();
    assert_eq!(
        told["outputs"],
        json!([{"name": "embedding", "datatype": "FP32", "shape": [-1, 2]}])
    );
    rig.work("r1", |_, _| {
        let mut vectors = floats("embedding", [1, 2], [1.0, 2.0].into_iter());
        vectors
            .parameters
            .insert("truncated".to_owned(), Parameter::Bool(true));
        worker::answer(vec![vectors])
    });
    let one = json!({"inputs": [text("text", json!([1]), json!(["a"]))]});
    let answer = rig.post(INFER, one).await.ok().unwrap();
    assert_eq!(
        answer["outputs"][0]["parameters"],
        json!({"truncated": true})
    );
    let a = Tensor::from_strings("text", [1], ["a"]).unwrap();
    let request = InferRequest {
        model_name: "m".to_owned(),
        inputs: vec![a],
        ..InferRequest::default()
    };
    let request = ModelInferRequest::decode(request.encode()).unwrap();
    let answer = grpc::infer(&mut grpc::client(&rig), Request::new(request)).await;
    let answer = InferResponse::decode(answer.unwrap().encode_to_vec().into()).unwrap();
    assert_eq!(
        answer.outputs[0].parameters["truncated"],
        Parameter::Bool(true)
    );
    let predicted = rig
        .post("/v1/models/m:predict", json!({"instances": ["a"]}))
        .await;
    assert_eq!(predicted.ok(), Ok(json!({"predictions": [[1.0, 2.0]]})));
}
