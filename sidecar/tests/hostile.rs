//! The corpora of the fuzzers' targets for what clients and workers send.

use carpool_protocol::{Datatype, InferResponse, Tensor};
use carpool_sidecar::hostile::{
    FORMS, MODELS, answer, embeddings, grpc, oip_binary, oip_json, predict, rerank, v1,
};
use carpool_testkit::hostile::{Allocator, allocator, check, read_corpus, turn};

#[global_allocator]
static ALLOCATOR: Allocator = allocator();

#[test]
fn json() {
    read_corpus(&ALLOCATOR, "oip_json", MODELS, oip_json);
}

#[test]
fn binary_tensor_data() {
    read_corpus(&ALLOCATOR, "oip_binary", MODELS, oip_binary);
}

#[test]
fn rows_of_the_first_protocol() {
    read_corpus(&ALLOCATOR, "v1", MODELS, v1);
}

#[test]
fn texts() {
    read_corpus(&ALLOCATOR, "predict", MODELS, predict);
}

#[test]
fn requests_for_embeddings() {
    read_corpus(&ALLOCATOR, "embeddings", MODELS, embeddings);
}

#[test]
fn requests_for_scores() {
    read_corpus(&ALLOCATOR, "rerank", MODELS, rerank);
}

#[test]
fn messages() {
    read_corpus(&ALLOCATOR, "grpc", MODELS, grpc);
}

#[test]
fn answers() {
    read_corpus(&ALLOCATOR, "answer", FORMS, answer);
}

/// The bytes of a large input.
const LARGE: usize = 256 << 10;

/// Input of the forms that take the most memory for each byte, so large that what is allowed besides does not count.
#[test]
fn large_input() {
    let _turn = turn();
    let many = |start: &str, item: &str, end: &str| {
        let items = item.repeat(LARGE / item.len());
        [start, &items, end].concat().into_bytes()
    };
    for rows in [
        many(r#"{"instances":["#, "0,", "0]}"),
        many(r#"{"instances":["#, "[[1,2]],", "0]}"),
        many(r#"{"instances":[["#, "[1,2],", "[1,2]]]}"),
        many(r#"{"instances":[["#, r#"{"":0},"#, "0]]}"),
        many(r#"{"instances":["#, r#""","#, r#"""]}"#),
        many(r#"{"instances":["#, r#"{"text":""},"#, "0]}"),
        many(r#"{"instances":[{"#, r#""":0,"#, r#""":0}]}"#),
        many(r#"{"instances":["#, "[", ""),
    ] {
        check(&ALLOCATOR, &rows, MODELS, v1);
    }
    for text in [
        many(r#"{"text":["#, "0,", "0]}"),
        many("text=", "%20", ""),
        many("", "text=&", ""),
    ] {
        check(&ALLOCATOR, &text, MODELS, predict);
    }
    for texts in [
        many(r#"{"input":["#, r#""","#, r#"""]}"#),
        many(r#"{"input":["#, "0,", "0]}"),
        many(r#"{"input":["#, "[0],", "[0]]}"),
        many(r#"{"input":""#, r"\n", r#""}"#),
        many(r#"{"input":"","dimensions":["#, "0,", "0]}"),
        many(r#"{"input":"","encoding_format":""#, "a", r#""}"#),
        many(r#"{"input":"","model":""#, "a", r#""}"#),
    ] {
        check(&ALLOCATOR, &texts, MODELS, embeddings);
    }
    for texts in [
        many(r#"{"query":"","documents":["#, r#""","#, r#"""]}"#),
        many(r#"{"query":"","documents":["#, r#"{"text":""},"#, "0]}"),
        many(r#"{"query":"","documents":["#, "{},", "0]}"),
        many(r#"{"query":"","texts":["#, "0,", "0]}"),
        many(r#"{"documents":[""],"query":""#, r"\n", r#""}"#),
        many(r#"{"query":"","documents":[""],"top_n":"#, "9", "}"),
    ] {
        check(&ALLOCATOR, &texts, MODELS, rerank);
    }
    let numbers = r#"{"inputs":[{"name":"x","datatype":"FP64","shape":[1,131073,2],"data":["#;
    let text = r#"{"inputs":[{"name":"text","datatype":"BYTES","shape":[1],"data":["#;
    for request in [
        many(numbers, "0,", "0]}]}"),
        many(numbers, "[[0,0]],", "[[0,0]]]}]}"),
        many(text, r#""","#, r#"""]}]}"#),
        many(r#"{"inputs":["#, "{},", "0]}"),
        many(r#"{"inputs":[],"outputs":["#, r#"{"name":""},"#, "0]}"),
        many(r#"{"inputs":[{"shape":["#, "0,", "0]}]}"),
    ] {
        check(&ALLOCATOR, &request, MODELS, oip_json);
    }
    for (datatype, size) in [
        (Datatype::Uint8, 1),
        (Datatype::Bool, 1),
        (Datatype::Fp16, 2),
        (Datatype::Fp32, 4),
    ] {
        let data = vec![1; size << 18];
        for shape in [vec![2, 1 << 17], vec![2, 1 << 16, 2, 1]] {
            let y = Tensor::new("y", datatype, shape, data.clone()).unwrap();
            let response = InferResponse {
                outputs: vec![y],
                ..InferResponse::default()
            };
            check(&ALLOCATOR, &response.encode(), FORMS, answer);
        }
    }
}
