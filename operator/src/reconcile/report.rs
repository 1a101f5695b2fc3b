//! Writes the status, when it says something new, and tells of the changes that matter as Events.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use carpool_crds::{BatchedModel, BatchedModelStatus, GROUP, condition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder},
};
use serde_json::json;

use super::status::says_the_same;
use crate::{
    api::{CallError, call},
    memory::{Remembered, lock},
    names,
};

/// Tools that keep objects in Git look at every write, so the queue's length by itself is not worth one more often.
pub const LENGTH_EVERY: Duration = Duration::from_secs(30);

/// Writes a status and its Events, if there is something new in it.
pub async fn report(
    client: &Client,
    recorder: &Recorder,
    model: &BatchedModel,
    status: BatchedModelStatus,
    remembered: &Mutex<Remembered>,
) -> Result<(), CallError> {
    let before = model.status.clone().unwrap_or_default();
    let now = Instant::now();
    let written = lock(remembered).length_written;
    let length_is_due =
        written.is_none_or(|written| now.saturating_duration_since(written) >= LENGTH_EVERY);
    let length_changed = before.queue_length != status.queue_length;
    if says_the_same(&before, &status) && !(length_changed && length_is_due) {
        return Ok(());
    }
    if length_changed {
        lock(remembered).length_written = Some(now);
    }
    let name = model.name_any();
    let api: Api<BatchedModel> =
        Api::namespaced(client.clone(), &model.namespace().unwrap_or_default());
    let body = json!({"apiVersion": format!("{GROUP}/v1alpha1"), "kind": "BatchedModel", "status": status});
    let params = PatchParams::apply(names::MANAGER).force();
    let patch = Patch::Apply(&body);
    call(
        "write the status of",
        "BatchedModel",
        &name,
        api.patch_status(&name, &params, &patch),
    )
    .await?;

    let reference = model.object_ref(&());
    for event in events(&before, &status) {
        // An Event that is lost changes nothing.
        if let Err(error) = recorder.publish(&event, &reference).await {
            tracing::warn!(%error, name, "failed to write an Event");
        }
    }
    Ok(())
}

/// Events on what is new between two statuses and worth telling.
fn events(before: &BatchedModelStatus, after: &BatchedModelStatus) -> Vec<Event> {
    let told = |condition: &Condition| {
        (condition.type_ == condition::READY || condition.type_ == condition::MODEL_LOADED)
            && !before.conditions.iter().any(|old| {
                old.type_ == condition.type_
                    && old.status == condition.status
                    && old.reason == condition.reason
            })
    };
    let mut events: Vec<Event> = after
        .conditions
        .iter()
        .filter(|condition| told(condition))
        .map(|condition| Event {
            type_: match condition.status.as_str() {
                "False" if condition.reason != "ModelLoading" => EventType::Warning,
                _ => EventType::Normal,
            },
            reason: condition.reason.clone(),
            note: Some(condition.message.clone()),
            action: "Reconcile".to_owned(),
            secondary: None,
        })
        .collect();
    if let (Some(old), Some(new)) = (&before.serving, &after.serving)
        && old != new
    {
        events.push(Event {
            type_: EventType::Normal,
            reason: "RevisionSwitched".to_owned(),
            note: Some(format!("proxies feed revision {new} instead of {old}")),
            action: "Reconcile".to_owned(),
            secondary: None,
        });
    }
    events
}
