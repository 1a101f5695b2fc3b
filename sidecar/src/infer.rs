//! `POST /v2/models/NAME/infer`: the protocol's JSON in and out, with tensors as JSON or in binary.

use std::{mem, sync::Arc, time::Duration};

use bytes::Bytes;
use carpool_protocol::{
    DecodeError, InferRequest, InferResponse, Parameter, Parameters, RequestView, json,
};
use carpool_queue::{Class, Outcome, Submit, SubmitError};
use http::{HeaderMap, Response, request::Parts};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    binary::{self, BinaryOutputs},
    body::{self, IncomingBody},
    compression::Coding,
    error::Error,
    followed::Followed,
    metrics::{Hop, HopTimer},
    payload::Payload,
    proxy::{Proxy, Served},
    trace, validate,
};

/// A request that the model can take, ready for the queue.
pub struct Validated {
    /// An encoded `ModelInferRequest`.
    body: Bytes,
    /// The number of rows, at least 1.
    pub rows: u32,
    timeout: Duration,
    /// The client's own limit, if it has one.
    asked: Option<Duration>,
    class: Class,
    /// The client's identifier, given back with the answer.
    id: String,
    /// The outputs that the answer is to hold in binary.
    binary: BinaryOutputs,
}

impl Validated {
    /// Holds a request against the model. `body` gives its bytes for the queue once it is known to be right: those it
    /// came in, if they were protobuf.
    pub fn of_message(
        served: &Served,
        request: &InferRequest,
        body: impl FnOnce() -> Bytes,
    ) -> Result<Self, Error> {
        let validated = Self::without_body(served, &request.view())?;
        validate::elements(&served.model, &request.inputs)?;
        let body = body();
        Ok(Self { body, ..validated })
    }

    /// Holds a request in JSON against the model, and encodes it. Its tensors' elements are read last: the more of them
    /// there are, the longer that takes. `json_length` is where the JSON ends if tensors follow it.
    pub fn of_json(
        served: &Served,
        body: Bytes,
        json_length: Option<usize>,
    ) -> Result<Self, Error> {
        let (json, binary) = match json_length {
            Some(length) => {
                let (json, binary) = binary::split(body, length)?;
                (json, Some(binary))
            }
            None => (body, None),
        };
        let request = match binary {
            Some(binary) => json::UnreadRequest::with_binary(&json, binary)?,
            None => json::UnreadRequest::new(&json)?,
        };
        let validated = Self::without_body(served, &request.view())?;
        let request = request.read()?;
        validate::elements(&served.model, &request.inputs)?;
        let body = request.encode();
        Ok(Self { body, ..validated })
    }

    /// Shortens the time of a request to what its client gives it.
    pub fn within(&mut self, limit: Option<Duration>) {
        self.timeout = limit.map_or(self.timeout, |limit| self.timeout.min(limit));
    }

    /// Holds all of a request but its elements against the model.
    fn without_body(served: &Served, request: &RequestView<'_>) -> Result<Self, Error> {
        let asked = timeout(request.parameters)?;
        let priority = priority(request.parameters)?;
        let rows = validate::rows(&served.model, request)?;
        if rows > served.max_rows {
            return Err(Error::TooManyRows {
                given: rows,
                limit: served.max_rows,
            });
        }
        Ok(Self {
            body: Bytes::new(),
            rows,
            timeout: asked.map_or(served.timeout, |asked| asked.min(served.timeout)),
            asked,
            class: served.class(priority),
            id: request.id.to_owned(),
            binary: BinaryOutputs::of(request)?,
        })
    }
}

impl Validated {
    /// Makes the request of a job, and the form that its answer is to have.
    pub fn into_job(self, served: &Served, caller: &Caller<'_>) -> (Submit, AnswerForm) {
        let timeout = served.async_timeout;
        let timeout = self.asked.map_or(timeout, |asked| asked.min(timeout));
        let request = Submit {
            caller: served.caller(caller.headers),
            trace: caller.trace.clone(),
            client: Some(Arc::clone(&caller.client)),
            ..Submit::new(
                Arc::clone(&served.revision),
                self.body,
                self.rows,
                caller.arrival + timeout,
            )
        };
        let form = AnswerForm::new(served, self.id, self.binary);
        (request, form)
    }
}

/// The origin of a request: its client, its arrival, its trace and its identifiers.
pub struct Caller<'a> {
    /// The client's address, or the proxy's own name for a client beside it.
    pub client: Arc<str>,
    /// The time at which the request's head was here.
    pub arrival: Instant,
    /// The trace that the request is part of: W3C `traceparent`.
    pub trace: Option<String>,
    /// The request's headers, one of which may name the caller among whom the queue is shared out.
    pub headers: &'a HeaderMap,
    /// The identifiers by which the request is followed.
    pub followed: &'a mut Followed,
}

impl<'a> Caller<'a> {
    /// Notes the client of a request whose head is here now.
    pub fn new(client: Arc<str>, headers: &'a HeaderMap, followed: &'a mut Followed) -> Self {
        Self {
            client,
            arrival: Instant::now(),
            trace: trace::parent(headers),
            headers,
            followed,
        }
    }
}

/// Answers one request with the protocol's JSON, and outputs in binary behind it where the client wants them so.
pub async fn serve(
    proxy: &Proxy,
    caller: Caller<'_>,
    head: &Parts,
    body: &mut IncomingBody,
    version: Option<&str>,
) -> Result<Response<Payload>, Error> {
    let mut hops = proxy.metrics.hop_timer();
    let (served, mut validated) = read(proxy, head, body, version, caller.arrival).await?;
    hops.passed(Hop::Parse);

    let id = mem::take(&mut validated.id);
    let binary = mem::take(&mut validated.binary);
    let answer = ask(proxy, &served, validated, caller, &mut hops).await?;
    let coding = Coding::of_answer(&head.headers);
    let form = AnswerForm::new(&served, id, binary);
    let response = form.write(answer, coding).await?;
    hops.passed(Hop::Respond);
    Ok(response)
}

/// The form in which a client wants its answer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct AnswerForm {
    name: String,
    version: String,
    /// The client's identifier.
    id: String,
    binary: BinaryOutputs,
}

impl AnswerForm {
    fn new(served: &Served, id: String, binary: BinaryOutputs) -> Self {
        Self {
            name: served.name.clone(),
            version: served.revision.to_string(),
            id,
            binary,
        }
    }

    /// Writes a worker's answer.
    pub async fn write(
        self,
        answer: Bytes,
        coding: Option<Coding>,
    ) -> Result<Response<Payload>, Error> {
        // Compressing takes many times as long as writing.
        let work = answer.len() << if coding.is_some() { 4 } else { 0 };
        let response = body::off_reactor(work, move || {
            let response = InferResponse {
                model_name: self.name,
                model_version: self.version,
                id: self.id,
                ..decode(answer)?
            };
            Ok::<_, Error>(self.binary.encode(&response)?.compressed(coding))
        });
        Ok(response.await?.response())
    }

    /// Writes a worker's answer as JSON alone.
    pub fn write_json(self, answer: Bytes) -> Result<Vec<u8>, Error> {
        let response = InferResponse {
            model_name: self.name,
            model_version: self.version,
            id: self.id,
            ..decode(answer)?
        };
        json::encode_response(&response)
            .map_err(|error| Error::Internal(format!("failed to write the answer: {error}")))
    }
}

/// Reads a request and holds it against the model that is served now.
pub async fn read(
    proxy: &Proxy,
    head: &Parts,
    body: &mut IncomingBody,
    version: Option<&str>,
    arrival: Instant,
) -> Result<(Arc<Served>, Validated), Error> {
    let json_length = binary::json_length(&head.headers)?;
    match (body::media_type(&head.headers).as_deref(), json_length) {
        (None | Some("application/json"), _) | (Some("application/octet-stream"), Some(_)) => {}
        (Some("application/octet-stream"), None) => {
            return Err(Error::MediaType {
                expected: "application/json",
                given:
                    "application/octet-stream without the header Inference-Header-Content-Length"
                        .to_owned(),
            });
        }
        (Some(given), _) => {
            return Err(Error::MediaType {
                expected: "application/json, or application/octet-stream with binary tensor data",
                given: given.to_owned(),
            });
        }
    }
    let body = body::read(proxy, &head.headers, body, arrival).await?;

    let served = proxy.served();
    served.check_version(version)?;
    let validated = {
        let served = Arc::clone(&served);
        let bytes = body.len();
        let read = move || Validated::of_json(&served, body.into(), json_length);
        body::off_reactor(bytes, read).await?
    };
    Ok((served, validated))
}

/// Puts a request into the queue and waits for the model's answer, an encoded `ModelInferResponse`. Dropped, the future
/// takes the request out again.
pub async fn ask(
    proxy: &Proxy,
    served: &Served,
    validated: Validated,
    caller: Caller<'_>,
    hops: &mut HopTimer<'_>,
) -> Result<Bytes, Error> {
    let producer = proxy.producer_of(served)?;
    let ticket = producer.enqueue(Submit {
        class: validated.class,
        caller: served.caller(caller.headers),
        trace: caller.trace,
        client: Some(caller.client),
        ..Submit::new(
            Arc::clone(&served.revision),
            validated.body,
            validated.rows,
            caller.arrival + validated.timeout,
        )
    })?;
    caller.followed.queued(&ticket);
    let outcome = match ticket.outcome().await {
        Err(SubmitError::ShuttingDown) => {
            proxy.producer_of(served)?;
            return Err(Error::Draining);
        }
        outcome => outcome?,
    };
    hops.passed(Hop::Queue);
    match outcome {
        Outcome::Answer(answer) => Ok(answer),
        Outcome::Failure(failure) => Err(failure.into()),
    }
}

/// Decodes a worker's answer.
pub fn decode(answer: Bytes) -> Result<InferResponse, Error> {
    InferResponse::decode(answer)
        .map_err(|error| Error::Internal(format!("failed to read the worker's answer: {error}")))
}

/// The client's own limit, from the parameter `timeout` in microseconds.
fn timeout(parameters: &Parameters) -> Result<Option<Duration>, Error> {
    let wrong = "parameter \"timeout\" must be a whole number of microseconds, at least 1";
    match whole_number(parameters, "timeout", wrong)? {
        Some(0) => Err(Error::Malformed(wrong.to_owned())),
        micros => Ok(micros.map(Duration::from_micros)),
    }
}

/// The request's priority, from the parameter `priority`; 0, as Triton's clients send it, is the default one.
fn priority(parameters: &Parameters) -> Result<u64, Error> {
    let wrong =
        "parameter \"priority\" must be a whole number, 1 for the highest or 0 for the default";
    Ok(whole_number(parameters, "priority", wrong)?.unwrap_or_default())
}

/// Reads a parameter that must be a whole number, at least zero; `wrong` says so.
fn whole_number(parameters: &Parameters, name: &str, wrong: &str) -> Result<Option<u64>, Error> {
    let number = match parameters.get(name) {
        None => return Ok(None),
        Some(Parameter::Int64(number)) => u64::try_from(*number).ok(),
        Some(Parameter::Uint64(number)) => Some(*number),
        Some(_) => None,
    };
    match number {
        Some(number) => Ok(Some(number)),
        None => Err(Error::Malformed(wrong.to_owned())),
    }
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        if error.is_malformed() {
            Self::Malformed(error.to_string())
        } else {
            Self::Invalid(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use carpool_protocol::{Datatype, Tensor};
    use http::HeaderValue;
    use serde_json::json;

    use super::*;

    /// A model of pairs, of which a request may hold two.
    fn served() -> Served {
        served_by(&json!({"maxRowsPerRequest": 2}))
    }

    fn served_by(queue: &serde_json::Value) -> Served {
        let pair = json!([{"name": "x", "datatype": "FP32", "shape": [2], "maximum": 9}]);
        let config = json!({
            "name": "m",
            "namespace": "default",
            "uid": "0",
            "serving": "r1",
            "models": {"r1": {"uri": "file://m", "inputs": pair, "outputs": pair}},
            "batching": {},
            "queue": queue,
            "device": "cpu",
        });
        Served::new(&serde_json::from_value(config).unwrap(), None).unwrap()
    }

    fn pairs(rows: i64) -> InferRequest {
        let data: Vec<u8> = (0..rows * 2).flat_map(|_| 1.5_f32.to_le_bytes()).collect();
        InferRequest {
            id: "7".to_owned(),
            inputs: vec![Tensor::new("x", Datatype::Fp32, [rows, 2], data).unwrap()],
            ..InferRequest::default()
        }
    }

    #[test]
    fn a_priority_is_a_class_where_there_are_several() {
        let prioritized = served_by(&json!({"priorities": {"levels": 3, "default": 2}}));
        let class = |served: &Served, priority| {
            let mut request = pairs(1);
            let parameter = (String::from("priority"), priority);
            request.parameters.extend([parameter]);
            let validated = Validated::of_message(served, &request, Bytes::new);
            validated.map(|validated| validated.class)
        };
        for (priority, expected) in [
            (0, Class::Default),
            (1, Class::Priority(1)),
            (2, Class::Default),
            (3, Class::Priority(3)),
            (4, Class::Default),
        ] {
            let given = [
                Parameter::Uint64(priority),
                Parameter::Int64(priority.cast_signed()),
            ];
            for given in given {
                assert_eq!(class(&prioritized, given).unwrap(), expected, "{priority}");
            }
        }
        assert_eq!(
            class(&served(), Parameter::Uint64(1)).unwrap(),
            Class::Default
        );
        for wrong in [Parameter::Int64(-1), Parameter::String("high".to_owned())] {
            let error = class(&prioritized, wrong).unwrap_err();
            assert!(
                matches!(&error, Error::Malformed(why) if why.contains("priority")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_header_may_name_the_caller() {
        let fair = served_by(&json!({"fairness": {"key": "X-Tenant"}}));
        let headers = |tenant| {
            HeaderMap::from_iter([(http::header::HeaderName::from_static("x-tenant"), tenant)])
        };
        let [a, b] =
            ["a", "b"].map(|tenant| fair.caller(&headers(HeaderValue::from_static(tenant))));
        assert!(a.is_some() && b.is_some() && a != b);
        assert_eq!(fair.caller(&HeaderMap::new()), None);
        assert_eq!(
            served().caller(&headers(HeaderValue::from_static("a"))),
            None
        );
    }

    #[test]
    fn a_message_is_forwarded_as_it_came() {
        // The message has field 4095, which no version of the protocol has: nothing that a client sends gets lost.
        let unknown = b"\xf8\xff\x01\x2a";
        let came = Bytes::from([&pairs(2).encode()[..], unknown].concat());
        let request = InferRequest::decode(came.clone()).unwrap();
        let validated = Validated::of_message(&served(), &request, || came.clone()).unwrap();
        assert_eq!((validated.rows, &*validated.id), (2, "7"));
        assert_eq!(validated.body.as_ptr(), came.as_ptr());
        assert_eq!(validated.body, came);
    }

    #[test]
    fn json_is_held_against_the_model_as_a_message_is() {
        let served = served();
        let json = |rows| json::encode_request(&pairs(rows)).unwrap().into();
        let of_json = Validated::of_json(&served, json(2), None).unwrap();
        assert_eq!(of_json.body, pairs(2).encode());
        let refused = [
            Validated::of_json(&served, json(3), None),
            Validated::of_message(&served, &pairs(3), || unreachable!()),
        ];
        for refused in refused {
            let error = refused.err().unwrap();
            assert!(matches!(error, Error::TooManyRows { given: 3, limit: 2 }));
        }
    }

    #[test]
    fn binary_tensors_reach_the_queue_as_they_came() {
        let served = served();
        let tensor = pairs(2).inputs.remove(0).data;
        let json = br#"{"id": "7", "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2],
            "parameters": {"binary_data_size": 16}}]}"#;
        let body = |tensor: &[u8]| Bytes::from([&json[..], tensor].concat());
        let read = |body| Validated::of_json(&served, body, Some(json.len()));
        assert_eq!(read(body(&tensor)).unwrap().body, pairs(2).encode());
        for wrong in [&tensor[..15], &[&tensor[..], b"x"].concat()] {
            let error = read(body(wrong)).err().unwrap();
            assert!(
                matches!(&error, Error::Malformed(why) if why.contains("tensor `x`")),
                "{error}"
            );
        }
    }
}
