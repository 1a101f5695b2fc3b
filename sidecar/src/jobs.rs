//! Jobs: requests whose clients come back for the answer, by `Prefer: respond-async` (RFC 7240).
//!
//! `POST` to a model's `infer` with it is answered 202 with the job's place, `/v2/jobs/ID`, once Redis has the request. `GET`
//! there tells the state, `GET .../result` brings the very answer that the request would have had, and `DELETE` cancels.

use std::time::Duration;

use carpool_queue::{JobName, JobState, JobView, Outcome, Submit};
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header::LOCATION, request::Parts,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    body::IncomingBody,
    compression::Coding,
    error::Error,
    infer::{self, AnswerForm, Caller},
    payload::Payload,
    proxy::{Proxy, redis_unreachable},
    routes::json as json_response,
};

/// The header in which a client names a request, so that it is one job however often it is sent (draft of the IETF:
/// `draft-ietf-httpapi-idempotency-key-header`).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The header that says which preferences were followed.
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The longest name of a request, in bytes.
const MAX_NAME: usize = 255;

/// The longest that one request waits for a job.
const MAX_WAIT: Duration = Duration::from_mins(5);

/// Returns the preferences of a request: a token, and its value if it has one.
fn preferences(headers: &HeaderMap) -> impl Iterator<Item = (&str, Option<&str>)> {
    let values = headers.get_all("prefer").iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']))
        .map(|preference| match preference.split_once('=') {
            Some((token, value)) => (token.trim(), Some(value.trim().trim_matches('"'))),
            None => (preference.trim(), None),
        })
}

/// Whether the client would rather come back for its answer.
pub fn is_asynchronous(headers: &HeaderMap) -> bool {
    preferences(headers).any(|(token, _)| token.eq_ignore_ascii_case("respond-async"))
}

/// The time that a client would wait; `None` where it does not say, or not in whole seconds.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let mut preferences = preferences(headers);
    let (_, seconds) = preferences.find(|(token, _)| token.eq_ignore_ascii_case("wait"))?;
    Some(Duration::from_secs(seconds?.parse().ok()?).min(MAX_WAIT))
}

/// Puts a request into the queue, and answers with the place of its job.
pub async fn submit(
    proxy: &Proxy,
    caller: Caller<'_>,
    head: &Parts,
    body: &mut IncomingBody,
    version: Option<&str>,
) -> Result<Response<Payload>, Error> {
    let name = name(&head.headers)?;
    let (served, validated) = infer::read(proxy, head, body, version, caller.arrival).await?;
    let producer = proxy.producer_of(&served)?;
    let (request, form) = validated.into_job(&served, &caller);
    let form = serde_json::to_vec(&form).map_err(|error| Error::Internal(error.to_string()))?;
    let name = name.map(|name| JobName {
        digest: digest(&served.revision, &request, &form),
        name,
    });
    let submitted = producer.submit_job(request, &form, name).await?;
    let mut response = json_response(json!({"id": submitted.uuid.to_string()}).to_string());
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    let place = HeaderValue::try_from(format!("/v2/jobs/{}", submitted.uuid));
    headers.insert(
        LOCATION,
        place.map_err(|error| Error::Internal(error.to_string()))?,
    );
    headers.insert(
        PREFERENCE_APPLIED,
        HeaderValue::from_static("respond-async"),
    );
    Ok(response)
}

/// Reads the name that a client gives its request.
fn name(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(given) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    match given.to_str() {
        Ok(name) if (1..=MAX_NAME).contains(&name.len()) => Ok(Some(name.to_owned())),
        _ => Err(Error::Malformed(format!(
            "header Idempotency-Key: expected 1 to {MAX_NAME} printable characters, given {given:?}"
        ))),
    }
}

fn digest(revision: &str, request: &Submit, form: &[u8]) -> String {
    let mut hasher = Sha256::new();
    for part in [revision.as_bytes(), &request.body, form] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex::encode(hasher.finalize())
}

/// Tells the state of a job, for which it waits as long as the client would.
pub async fn state(
    proxy: &Proxy,
    id: &str,
    headers: &HeaderMap,
) -> Result<Response<Payload>, Error> {
    let (view, waited) = look(proxy, id, headers).await?;
    let mut response = json_response(describe(id, view)?);
    applied(&mut response, waited);
    Ok(response)
}

/// Brings a job's answer as the request itself would have brought it, or 202 and its state while it has none.
pub async fn result(
    proxy: &Proxy,
    id: &str,
    headers: &HeaderMap,
) -> Result<Response<Payload>, Error> {
    let (view, waited) = look(proxy, id, headers).await?;
    let mut response = match view.state {
        JobState::Done(Outcome::Answer(answer)) => {
            let form = form(&view.note)?;
            form.write(answer, Coding::of_answer(headers)).await?
        }
        JobState::Done(Outcome::Failure(failure)) => return Err(failure.into()),
        JobState::Queued { .. } | JobState::Running => {
            let mut response = json_response(describe(id, view)?);
            *response.status_mut() = StatusCode::ACCEPTED;
            response
        }
        JobState::Cancelled => return Err(Error::Cancelled { id: id.to_owned() }),
        JobState::Lost | JobState::Unknown => return Err(unknown(id, &view.state)),
    };
    applied(&mut response, waited);
    Ok(response)
}

/// Takes a job out of the queue, and tells its state then.
pub async fn cancel(proxy: &Proxy, id: &str) -> Result<Response<Payload>, Error> {
    let cancelled = proxy.producer().cancel_job(parse(id)?).await;
    let view = cancelled.map_err(|_| redis_unreachable())?;
    Ok(json_response(describe(id, view)?))
}

async fn look(
    proxy: &Proxy,
    id: &str,
    headers: &HeaderMap,
) -> Result<(JobView, Option<Duration>), Error> {
    let uuid = parse(id)?;
    let wait = wait(headers);
    let until = Instant::now() + wait.unwrap_or_default();
    let view = proxy.producer().job(uuid, until).await;
    Ok((view.map_err(|_| redis_unreachable())?, wait))
}

fn parse(id: &str) -> Result<Uuid, Error> {
    Uuid::try_parse(id).map_err(|_| unknown(id, &JobState::Unknown))
}

fn unknown(id: &str, state: &JobState) -> Error {
    Error::UnknownJob {
        id: id.to_owned(),
        why: match state {
            JobState::Lost => "its Redis has lost it",
            _ => "there never was one, or its result has expired",
        },
    }
}

fn form(note: &[u8]) -> Result<AnswerForm, Error> {
    serde_json::from_slice(note)
        .map_err(|error| Error::Internal(format!("failed to read the job: {error}")))
}

/// Adds that the client's wish to wait was heard.
fn applied(response: &mut Response<Payload>, waited: Option<Duration>) {
    if let Some(waited) = waited
        && let Ok(value) = HeaderValue::try_from(format!("wait={}", waited.as_secs()))
    {
        response.headers_mut().insert(PREFERENCE_APPLIED, value);
    }
}

/// Describes a job in JSON.
fn describe(id: &str, view: JobView) -> Result<Vec<u8>, Error> {
    let state = |state: &str, more: Value| {
        let mut described = json!({"id": id, "state": state});
        if let (Value::Object(described), Value::Object(more)) = (&mut described, more) {
            described.extend(more);
        }
        described.to_string().into_bytes()
    };
    Ok(match view.state {
        JobState::Queued { ahead, wait } => {
            let wait = wait.map(|wait| wait.as_secs_f64());
            state(
                "queued",
                json!({"ahead": ahead, "expected_wait_seconds": wait}),
            )
        }
        JobState::Running => state("running", json!({})),
        JobState::Done(Outcome::Answer(answer)) => done(id, &form(&view.note)?.write_json(answer)?),
        JobState::Done(Outcome::Failure(failure)) => {
            let error = Error::from(failure);
            let status = error.status().0.as_u16();
            state(
                "failed",
                json!({"error": error.to_string(), "status": status}),
            )
        }
        JobState::Cancelled => state("cancelled", json!({})),
        JobState::Lost | JobState::Unknown => return Err(unknown(id, &view.state)),
    })
}

/// Describes a job with its answer, which is JSON already.
fn done(id: &str, answer: &[u8]) -> Vec<u8> {
    let head = format!(r#"{{"id":{},"state":"done","response":"#, json!(id));
    [head.as_bytes(), answer, b"}"].concat()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn prefer(values: &[&'static str]) -> HeaderMap {
        let name = HeaderName::from_static("prefer");
        let values = values.iter();
        values
            .map(|value| (name.clone(), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn preferences_are_read_as_the_rfc_writes_them() {
        for (given, asynchronous, seconds) in [
            (&["respond-async"][..], true, None),
            (&["Respond-Async, wait=10"], true, Some(10)),
            (&["return=minimal", "WAIT = \"3\""], false, Some(3)),
            (&["wait=soon"], false, None),
            (&["wait=86400"], false, Some(300)),
            (&[], false, None),
        ] {
            let headers = prefer(given);
            assert_eq!(is_asynchronous(&headers), asynchronous, "{given:?}");
            assert_eq!(
                wait(&headers),
                seconds.map(Duration::from_secs),
                "{given:?}"
            );
        }
    }

    #[test]
    fn names_are_bounded() {
        let headers =
            |value: &str| HeaderMap::from_iter([(IDEMPOTENCY_KEY, value.parse().unwrap())]);
        assert_eq!(name(&HeaderMap::new()).unwrap(), None);
        assert_eq!(
            name(&headers("order {7}")).unwrap().as_deref(),
            Some("order {7}")
        );
        for wrong in [String::new(), "x".repeat(256)] {
            let error = name(&headers(&wrong)).unwrap_err().to_string();
            assert!(error.starts_with("header Idempotency-Key"), "{error}");
        }
    }

    #[test]
    fn a_job_is_described_with_its_answer() {
        let described = done("7", br#"{"outputs":[]}"#);
        let described: Value = serde_json::from_slice(&described).unwrap();
        assert_eq!(
            described,
            json!({"id": "7", "state": "done", "response": {"outputs": []}})
        );
        let queued = JobView {
            state: JobState::Queued {
                ahead: 3,
                wait: Some(Duration::from_millis(1500)),
            },
            note: Bytes::new(),
        };
        let described: Value = serde_json::from_slice(&describe("7", queued).unwrap()).unwrap();
        assert_eq!(
            described,
            json!({"id": "7", "state": "queued", "ahead": 3, "expected_wait_seconds": 1.5})
        );
    }
}
