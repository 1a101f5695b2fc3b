//! A worker of the real queue, with an echo for a model.

use std::time::Duration;

use carpool_protocol::{Datatype, InferRequest, InferResponse, Tensor};
use carpool_queue::{
    Consumer, ConsumerLimits, ConsumerOptions, Endpoint, Failure, FailureKind, Job, Outcome,
};

/// Takes requests of one revision and answers each with what `model` says, for ever.
pub async fn work(
    connection: Endpoint,
    revision: &str,
    model: impl Fn(&Job, InferRequest) -> Outcome,
) {
    serve(connect(connection, revision).await, model).await;
}

/// Answers what a consumer gets with what `model` says, for ever.
pub async fn serve(consumer: Consumer, model: impl Fn(&Job, InferRequest) -> Outcome) {
    let mut jobs = Vec::new();
    loop {
        if jobs.is_empty() {
            // An error means that Redis is away; the pause before the next try is inside.
            jobs = consumer.fetch(16).await.unwrap_or_default();
            continue;
        }
        let answers = jobs.drain(..).map(|job| {
            let request = InferRequest::decode(job.body.clone()).unwrap();
            (job.id.clone(), model(&job, request))
        });
        let answers = answers.collect();
        jobs = consumer.exchange(answers, 16).await.unwrap();
    }
}

pub async fn connect(connection: Endpoint, revision: &str) -> Consumer {
    connect_to(connection, crate::rig::UID, revision).await
}

/// Connects to the queue of the resource with this UID.
pub async fn connect_to(connection: Endpoint, uid: &str, revision: &str) -> Consumer {
    let options = ConsumerOptions {
        uid: uid.to_owned(),
        revision: revision.to_owned(),
        name: "w1".to_owned(),
        artifact: None,
        limits: ConsumerLimits {
            lease: Duration::from_secs(1),
            max_deliveries: 3,
            max_bytes: 1 << 30,
            result_ttl: Duration::from_mins(1),
            default_priority: 1,
        },
    };
    Consumer::connect(connection, options).await.unwrap()
}

/// Answers with the inputs as outputs; for a text with its label and score.
pub fn echo(_: &Job, request: InferRequest) -> Outcome {
    let outputs = if request.inputs[0].name == "text" {
        let rows = request.inputs[0].shape[0];
        let texts = request.inputs[0].strings().unwrap();
        let labels = texts.iter().map(|text| {
            if text.contains("love") {
                "POSITIVE"
            } else {
                "NEGATIVE"
            }
        });
        let scores: Vec<u8> = texts.iter().flat_map(|_| 0.987_f32.to_le_bytes()).collect();
        vec![
            Tensor::from_strings("label", [rows, 1], labels).unwrap(),
            Tensor::new("score", Datatype::Fp32, [rows, 1], scores).unwrap(),
        ]
    } else {
        request.inputs
    };
    answer(outputs)
}

pub fn answer(outputs: Vec<Tensor>) -> Outcome {
    let response = InferResponse {
        outputs,
        ..InferResponse::default()
    };
    Outcome::Answer(response.encode())
}

pub fn failure(kind: FailureKind, message: &str) -> Outcome {
    Outcome::Failure(Failure {
        kind,
        message: message.to_owned(),
    })
}
