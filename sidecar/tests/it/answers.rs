//! Answers that a client gets when all is well.

use bytes::Bytes;
use carpool_protocol::{Datatype, Parameter, Tensor};
use futures::stream;
use http::{Method, Request, StatusCode};
use http_body_util::StreamBody;
use hyper::{body::Frame, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    client::{self, http2, send, send_with},
    rig::{INFER, Rig, config, pair, pairs, texts},
    worker,
};

#[tokio::test]
async fn every_datatype_makes_the_round_trip() {
    let cases = [
        ("BOOL", json!([true, false])),
        ("UINT8", json!([0, 255])),
        ("INT8", json!([-128, 127])),
        ("INT16", json!([-32768, 32767])),
        ("INT32", json!([i32::MIN, i32::MAX])),
        ("INT64", json!([i64::MIN, i64::MAX])),
        ("FP16", json!([1.5, -0.099_975_586])),
        ("BF16", json!([1.5, -0.100_097_656])),
        ("FP32", json!([1.5, -0.1_f32])),
        ("FP64", json!([0.1, -1e300])),
    ];
    let tensors: Vec<Value> = cases
        .iter()
        .map(|(datatype, _)| json!({"name": datatype, "datatype": datatype, "shape": [2]}))
        .collect();
    let model = json!({"uri": "file://m", "inputs": tensors, "outputs": tensors});
    let rig = Rig::start(config(&model)).await;
    rig.echo();

    let inputs: Vec<Value> = cases
        .iter()
        .map(|(name, data)| json!({"name": name, "datatype": name, "shape": [1, 2], "data": data}))
        .collect();
    let body = json!({"id": "42", "inputs": inputs});
    let answer = rig.post(INFER, body).await.ok().unwrap();
    assert_eq!(answer["model_name"], "m");
    assert_eq!(answer["model_version"], "r1");
    assert_eq!(answer["id"], "42");
    for (output, (name, data)) in answer["outputs"].as_array().unwrap().iter().zip(&cases) {
        assert_eq!(output["name"], *name);
        assert_eq!(output["datatype"], *name);
        assert_eq!(output["shape"], json!([1, 2]));
        if *name == "FP32" {
            // JSON has no single precision: the number must come back to the same bits.
            let numbers: Vec<f32> = serde_json::from_value(output["data"].clone()).unwrap();
            assert_eq!(numbers, [1.5, -0.1]);
        } else {
            assert_eq!(output["data"], *data, "{name}");
        }
    }
}

#[tokio::test]
async fn a_text_is_classified_as_the_article_has_it() {
    let rig = Rig::start(config(&texts())).await;
    rig.echo();
    let love = br#"{"code": "200", "data": "{\"label\": \"POSITIVE\", \"score\": \"0.9869999885559082\"}"}"#;
    let hate = br#"{"code": "200", "data": "{\"label\": \"NEGATIVE\", \"score\": \"0.9869999885559082\"}"}"#;

    let answer = rig.post("/predict", json!({"text": "I love you"})).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.body, &love[..]);

    for (form, expected) in [
        ("text=I+love%20you", &love[..]),
        ("x=1&text=hate", &hate[..]),
    ] {
        let media_type = Some("application/x-www-form-urlencoded; charset=utf-8");
        let request = client::request(Method::POST, rig.address, "/predict", media_type, form);
        let answer = send(request).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.body, expected);
        assert_eq!(answer.headers["content-type"], "application/json");
    }

    let body = json!({"inputs": [
        {"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["love", "hate"]},
    ]});
    let answer = rig.post(INFER, body).await.ok().unwrap();
    assert_eq!(
        answer["outputs"][0]["data"],
        json!(["POSITIVE", "NEGATIVE"])
    );
}

#[tokio::test]
async fn what_json_has_no_number_for_is_null_and_null_is_nan() {
    let rig = Rig::start(config(&pairs())).await;
    rig.work("r1", |_, request| {
        let sent: Vec<_> = request.inputs[0]
            .data
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        assert!(sent[0].is_nan());
        let infinities = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, sent[1]];
        let data = infinities.map(f32::to_le_bytes).concat();
        let output = Tensor::new("x", Datatype::Fp32, [2, 2], data).unwrap();
        worker::answer(vec![output])
    });
    let mut body = pair();
    body["inputs"][0]["data"] = json!([null, 1.5]);
    let answer = rig.post(INFER, body).await.ok().unwrap();
    assert_eq!(answer["outputs"][0]["data"], json!([null, null, null, 1.5]));
}

#[tokio::test]
async fn a_byte_order_mark_before_a_body_is_skipped() {
    let rig = Rig::start(config(&texts())).await;
    rig.echo();
    let texts = json!({"inputs": [
        {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["love"]},
    ]});
    for (path, body) in [("/predict", json!({"text": "love"})), (INFER, texts)] {
        let answer = rig.post(path, format!("\u{feff}{body}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }
}

#[tokio::test]
async fn the_worker_sees_what_the_client_asked_for() {
    let rig = Rig::start(config(&pairs())).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    rig.work("r1", move |job, request| {
        assert_eq!(job.rows, 1);
        assert_eq!(job.trace.as_deref(), Some(trace));
        // A client on this very machine goes by the name of the proxy that it stands beside.
        assert_eq!(job.client.as_deref(), Some("p1"));
        assert!(
            job.deadline <= std::time::Duration::from_secs(5),
            "{:?}",
            job.deadline
        );
        assert_eq!(request.id, "mine");
        assert_eq!(request.parameters["priority"], Parameter::Int64(7));
        assert_eq!(request.outputs[0].name, "x");
        assert_eq!(request.outputs[0].parameters["top"], Parameter::Int64(3));
        worker::answer(request.inputs)
    });
    let mut body = pair();
    body["id"] = json!("mine");
    body["parameters"] = json!({"priority": 7, "timeout": 5_000_000});
    body["outputs"] = json!([{"name": "x", "parameters": {"top": 3}}]);
    let mut request = client::post(rig.address, "/v2/models/m/versions/r1/infer", body);
    request
        .headers_mut()
        .insert("traceparent", trace.parse().unwrap());
    let answer = send(request).await.ok().unwrap();
    assert_eq!(answer["id"], "mine");
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let rig = Rig::start(config(&pairs())).await;
    rig.echo();
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        // An error in between doesn't end the connection either.
        for (body, status) in [(pair(), 200), (json!({}), 400)] {
            let request = client::post(rig.address, INFER, body);
            sender.ready().await.unwrap();
            assert_eq!(sender.send_request(request).await.unwrap().status(), status);
        }
    }
}

#[tokio::test]
async fn http2_without_tls() {
    let rig = Rig::start(config(&pairs())).await;
    rig.echo();
    let client = http2();
    let answers = (0..50).map(|_| send_with(&client, client::post(rig.address, INFER, pair())));
    for answer in futures::future::join_all(answers).await {
        let answer = answer.ok().unwrap();
        assert_eq!(answer["outputs"][0]["data"], json!([1.5, -2.0]));
    }
}

#[tokio::test]
async fn a_body_may_come_in_chunks() {
    let rig = Rig::start(config(&pairs())).await;
    rig.echo();
    let body = pair().to_string().into_bytes();
    let chunks: Vec<_> = body
        .chunks(7)
        .map(|chunk| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(chunk))))
        .collect();
    let request = Request::post(format!("http://{}{INFER}", rig.address))
        .body(StreamBody::new(stream::iter(chunks)))
        .unwrap();
    let answer = send(request).await.ok().unwrap();
    assert_eq!(answer["outputs"][0]["data"], json!([1.5, -2.0]));
}

#[tokio::test]
async fn a_large_request_is_as_good_as_a_small_one() {
    let rows = 20_000;
    let mut config = config(&pairs());
    config["queue"]["maxRowsPerRequest"] = json!(rows);
    let rig = Rig::start(config).await;
    rig.echo();
    let data: Vec<i32> = (0..2 * rows).collect();
    let body =
        json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 2], "data": data}]});
    assert!(body.to_string().len() > 64 << 10);
    let answer = rig.post(INFER, body).await.ok().unwrap();
    let numbers: Vec<f64> = serde_json::from_value(answer["outputs"][0]["data"].clone()).unwrap();
    assert!(numbers.iter().copied().eq((0..2 * rows).map(f64::from)));
}

#[tokio::test]
async fn server_and_model_describe_themselves() {
    let rig = Rig::start(config(&pairs())).await;
    let model = json!({
        "name": "m",
        "versions": ["r1"],
        "platform": "pytorch_torchscript",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    });
    let server = json!({"name": "carpool", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data", "model_configuration"]});
    // The model is ready though no worker is there: a request is held until one is.
    for (path, expected) in [
        ("/v2", server),
        ("/v2/health/live", json!({"live": true})),
        ("/v2/health/ready", json!({"ready": true})),
        ("/v2/models/m", model.clone()),
        ("/v2/models/m/versions/r1", model),
        ("/v2/models/m/ready", json!({"name": "m", "ready": true})),
        (
            "/v2/models/m/versions/r1/ready",
            json!({"name": "m", "ready": true}),
        ),
    ] {
        assert_eq!(rig.get(path).await.ok(), Ok(expected), "{path}");
    }
}

#[tokio::test]
async fn a_model_of_texts_describes_itself_as_one() {
    let rig = Rig::start(config(&texts())).await;
    let answer = rig.get("/v2/models/m").await.ok().unwrap();
    assert_eq!(
        answer["inputs"],
        json!([{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}])
    );
    assert_eq!(answer["outputs"][1]["name"], "score");
}

#[tokio::test]
async fn requests_are_measured() {
    let rig = Rig::start(config(&pairs())).await;
    rig.echo();
    rig.post(INFER, pair()).await.ok().unwrap();
    rig.post(INFER, "{").await.ok().unwrap_err();
    assert_eq!(rig.get(INFER).await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(
        rig.get("/v2/models/other/ready").await.status,
        StatusCode::NOT_FOUND
    );
    for line in [
        r#"carpool_proxy_requests_total{route="infer",code="200"} 1"#,
        r#"carpool_proxy_requests_total{route="infer",code="400"} 1"#,
        r#"carpool_proxy_requests_total{route="infer",code="405"} 1"#,
        r#"carpool_proxy_refusals_total{reason="malformed"} 1"#,
        r#"carpool_proxy_request_duration_seconds_count{route="infer",code="200"} 1"#,
        r#"carpool_proxy_hop_seconds_count{hop="parse"} 1"#,
        r#"carpool_proxy_hop_seconds_count{hop="queue"} 1"#,
        r#"carpool_proxy_hop_seconds_count{hop="respond"} 1"#,
        "carpool_proxy_open_requests 0",
    ] {
        rig.measures(line).await;
    }
    let metrics = rig.admin("/metrics").await.body;
    assert!(!str::from_utf8(&metrics).unwrap().contains("unknown_model"));
}
