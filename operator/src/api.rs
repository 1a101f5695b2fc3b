//! Calls to the API server: bounded in time, with errors sorted by what they mean for a resource.

use std::time::Duration;

use kube::{api::PatchParams, core::Status};

use crate::names;

/// The client tries again by itself for minutes; a reconcile that fails is tried again anyway.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Reasons for which the API server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The API server refuses the object as it is.
    #[error("the API server refuses {kind} {name}: {message}")]
    Refused {
        /// The object's kind.
        kind: String,
        /// The object's name.
        name: String,
        /// The API server's message.
        message: String,
    },
    /// The namespace is being deleted, and all that is in it.
    #[error("the namespace is being deleted")]
    NamespaceGoes,
    /// The API server can't be asked, or says no.
    #[error("failed to {verb} {kind} {name}: {}", brief(source))]
    Api {
        /// The verb of the call, such as "apply".
        verb: &'static str,
        /// The object's kind.
        kind: String,
        /// The object's name.
        name: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// The call takes too long.
    #[error("failed to {verb} {kind} {name}: no answer within {limit:?}")]
    Timeout {
        /// The verb of the call, such as "apply".
        verb: &'static str,
        /// The object's kind.
        kind: String,
        /// The object's name.
        name: String,
        /// The time that was waited for it.
        limit: Duration,
    },
}

impl CallError {
    /// Whether the object is there already, or another one has its name.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.has_code(409)
    }

    /// Whether the object is gone.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.has_code(404)
    }

    /// Whether the API server refuses the object, this kind, or us.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { .. }) || self.has_code(403) || self.has_code(404)
    }

    fn has_code(&self, code: u16) -> bool {
        matches!(self, Self::Api { source, .. } if matches!(&**source, kube::Error::Api(status) if status.code == code))
    }
}

/// Waits for a call, but not for ever.
pub async fn call<T>(
    verb: &'static str,
    kind: &str,
    name: &str,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    call_within(TIMEOUT, verb, kind, name, call).await
}

async fn call_within<T>(
    limit: Duration,
    verb: &'static str,
    kind: &str,
    name: &str,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    let (kind, name) = (kind.to_owned(), name.to_owned());
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) if is_of_a_going_namespace(&status) => {
            Err(CallError::NamespaceGoes)
        }
        Ok(Err(kube::Error::Api(status))) if status.code == 422 => Err(CallError::Refused {
            kind,
            name,
            message: status.message,
        }),
        Ok(Err(source)) => Err(CallError::Api {
            verb,
            kind,
            name,
            source: Box::new(source),
        }),
        Err(_) => Err(CallError::Timeout {
            verb,
            kind,
            name,
            limit,
        }),
    }
}

/// Parameters of a patch that is no server-side apply.
#[must_use]
pub fn patch_params() -> PatchParams {
    PatchParams {
        field_manager: Some(names::MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn is_of_a_going_namespace(status: &Status) -> bool {
    let details = status.details.iter();
    let mut causes = details.flat_map(|details| &details.causes);
    causes.any(|cause| cause.reason == "NamespaceTerminating")
}

/// The API server's message, without the structure around it.
fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn failed(status: Status) -> CallError {
        let error = kube::Error::Api(Box::new(status));
        let asked = call("create", "Secret", "s", async { Err::<(), _>(error) });
        asked.await.unwrap_err()
    }

    #[tokio::test]
    async fn errors_are_sorted_by_their_meaning() {
        let status = |code| Status {
            code,
            message: "says no".into(),
            ..Status::default()
        };
        assert!(failed(status(409)).await.is_conflict());
        assert!(failed(status(404)).await.is_not_found());
        let refused = failed(status(422)).await.to_string();
        assert_eq!(refused, "the API server refuses Secret s: says no");
        let other = failed(status(500)).await.to_string();
        assert_eq!(other, "failed to create Secret s: says no");
        let going = serde_json::json!({
            "code": 403,
            "details": {"causes": [{"reason": "NamespaceTerminating", "message": "", "field": ""}]}
        });
        let going = serde_json::from_value(going).unwrap();
        assert!(matches!(failed(going).await, CallError::NamespaceGoes));
    }

    #[tokio::test]
    async fn a_call_that_hangs_is_given_up() {
        let hung = call_within(
            Duration::from_millis(5),
            "apply",
            "Service",
            "s",
            std::future::pending::<kube::Result<()>>(),
        );
        let error = hung.await.unwrap_err().to_string();
        assert_eq!(error, "failed to apply Service s: no answer within 5ms");
    }
}
