//! Tensors in binary behind the JSON, and compressed bodies, in requests and in answers.

use std::io::{Read, Write};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::{
    client::{self, Answer, http2, request, send, send_with},
    rig::{INFER, Rig, config, pairs},
};

const JSON_LENGTH: &str = "inference-header-content-length";

/// A request of JSON with bytes behind it.
fn binary(rig: &Rig, json: &Value, data: &[u8]) -> Request<Full<Bytes>> {
    let json = json.to_string();
    let body = [json.as_bytes(), data].concat();
    let media_type = Some("application/octet-stream");
    let mut request = request(Method::POST, rig.address, INFER, media_type, body);
    request.headers_mut().insert(JSON_LENGTH, json.len().into());
    request
}

/// Splits an answer into its JSON and what follows it.
fn split(answer: &Answer) -> (Value, Bytes) {
    let length = answer.headers[JSON_LENGTH].to_str().unwrap();
    let mut json = answer.body.clone();
    let data = json.split_off(length.parse().unwrap());
    (serde_json::from_slice(&json).unwrap(), data)
}

#[tokio::test]
async fn every_datatype_makes_the_round_trip_in_binary() {
    let sizes = [
        ("BOOL", 1),
        ("UINT8", 1),
        ("INT8", 1),
        ("INT16", 2),
        ("INT32", 4),
        ("INT64", 8),
        ("FP16", 2),
        ("BF16", 2),
        ("FP32", 4),
        ("FP64", 8),
    ];
    let tensors = sizes.map(|(name, _)| json!({"name": name, "datatype": name, "shape": [2]}));
    let model = json!({"uri": "file://m", "inputs": tensors, "outputs": tensors});
    let rig = Rig::start(config(&model)).await;
    rig.echo();
    let inputs = sizes.map(|(name, size)| {
        json!({"name": name, "datatype": name, "shape": [1, 2], "parameters": {"binary_data_size": 2 * size}})
    });
    let data: Vec<u8> = sizes
        .iter()
        .flat_map(|(_, size)| vec![1; 2 * size])
        .collect();
    let body = json!({"id": "7", "parameters": {"binary_data_output": true}, "inputs": inputs});
    for client in [None, Some(http2())] {
        let request = binary(&rig, &body, &data);
        let answer = match client {
            Some(client) => send_with(&client, request).await,
            None => send(request).await,
        };
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.headers["content-type"], "application/octet-stream");
        let (json, outputs) = split(&answer);
        assert_eq!(json["id"], "7");
        assert_eq!(json["outputs"], json!(inputs));
        assert_eq!(outputs, data);
    }
}

#[tokio::test]
async fn json_and_binary_mix_as_the_client_asks() {
    let tensor = |name| json!({"name": name, "datatype": "FP32", "shape": [1]});
    let tensors = ["a", "b"].map(tensor);
    let model = json!({"uri": "file://m", "inputs": tensors, "outputs": tensors});
    let rig = Rig::start(config(&model)).await;
    rig.echo();
    let body = json!({
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}},
            {"name": "b", "datatype": "FP32", "shape": [1, 1], "data": [2.5]},
        ],
        "outputs": [{"name": "a"}, {"name": "b", "parameters": {"binary_data": true}}],
    });
    let answer = send(binary(&rig, &body, &1.5_f32.to_le_bytes())).await;
    let (json, outputs) = split(&answer);
    assert_eq!(json["outputs"][0]["data"], json!([1.5]));
    assert_eq!(
        json["outputs"][1]["parameters"],
        json!({"binary_data_size": 4})
    );
    assert_eq!(outputs, 2.5_f32.to_le_bytes()[..]);
}

#[tokio::test]
async fn broken_frames_are_refused_by_name() {
    let rig = Rig::start(config(&pairs())).await;
    let input = |size: u64| json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": size}}]});
    for (size, data, sentence) in [
        (
            8,
            7,
            "tensor `x`: `binary_data_size` is 8, but only 7 bytes are left for it",
        ),
        (
            8,
            9,
            "1 bytes too many follow the binary data of tensor `x`, the last one",
        ),
        (
            4,
            4,
            "tensor `x`: shape [1, 2] has 2 elements; 1 given: change the shape or the data",
        ),
    ] {
        let answer = send(binary(&rig, &input(size), &vec![0; data])).await;
        assert_eq!(answer.ok(), Err((400, sentence.to_owned())));
    }
    let mut beyond = binary(&rig, &input(8), &[0; 8]);
    beyond.headers_mut().insert(JSON_LENGTH, 1000.into());
    let (status, sentence) = send(beyond).await.ok().unwrap_err();
    assert_eq!(status, 400);
    assert!(
        sentence.contains("the JSON is to have 1000 bytes"),
        "{sentence}"
    );

    let headless = request(
        Method::POST,
        rig.address,
        INFER,
        Some("application/octet-stream"),
        input(8).to_string(),
    );
    let sentence = "the body must be application/json, it is application/octet-stream without the header \
                    Inference-Header-Content-Length";
    assert_eq!(send(headless).await.ok(), Err((415, sentence.to_owned())));
}

#[tokio::test]
async fn bodies_are_compressed_both_ways() {
    let mut config = config(&pairs());
    config["queue"]["maxRequestBytes"] = json!("64Ki");
    let rig = Rig::start(config).await;
    rig.echo();
    let json = |rows: usize| {
        let data = vec![1.5; 2 * rows];
        json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 2], "data": data}]})
    };
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let send_coded = async |rows: usize, accepts: &'static str| {
        let body = gzip(&json(rows).to_string());
        let mut request = request(Method::POST, rig.address, INFER, client::JSON, body);
        let headers = request.headers_mut();
        headers.insert("content-encoding", "gzip".parse().unwrap());
        headers.insert("accept-encoding", accepts.parse().unwrap());
        send(request).await
    };
    let answer = send_coded(500, "gzip").await;
    assert_eq!(answer.headers["content-encoding"], "gzip");
    assert_eq!(answer.headers["vary"], "accept-encoding");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*answer.body)
        .read_to_string(&mut text)
        .unwrap();
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["outputs"][0]["shape"], json!([500, 2]));

    // A short answer, and one for a client that does not ask for it, stays as it is.
    for (rows, accepts) in [(1, "gzip"), (500, "identity")] {
        let answer = send_coded(rows, accepts).await;
        assert!(
            !answer.headers.contains_key("content-encoding"),
            "{answer:?}"
        );
        assert_eq!(answer.json()["outputs"][0]["shape"], json!([rows, 2]));
    }
    // A body is bounded by what it stands for.
    let (status, sentence) = send_coded(20_000, "gzip").await.ok().unwrap_err();
    assert_eq!(status, 413, "{sentence}");
}
