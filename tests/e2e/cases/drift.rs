//! Children that somebody else changed are as the resource asks for again, and only those.

use std::{collections::BTreeMap, thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually},
    model::{Affine, name},
    operator,
};

const KINDS: &str = "deployments,statefulsets,services,configmaps,networkpolicies,poddisruptionbudgets,serviceaccounts";
const CHILDREN: &str = "carpool.dev/model=affine";

/// Every child of the model, by kind and name.
fn children(namespace: &Namespace) -> BTreeMap<(String, String), Value> {
    let children = namespace.list(KINDS, CHILDREN).into_iter();
    children
        .map(|child| {
            let kind = child["kind"].as_str().expect("an object has a kind");
            ((kind.to_lowercase(), name(&child).to_owned()), child)
        })
        .collect()
}

/// A field that the operator determines, and another value of it, as a JSON pointer and a merge patch.
fn change(kind: &str, child: &Value) -> Option<(&'static str, Value)> {
    Some(match kind {
        "service" => {
            // An apply adds our port to this one of the same name, and the API server refuses such a pair.
            let mut ports = child["spec"]["ports"].clone();
            ports[0]["port"] = json!(81);
            let spec = json!({"selector": {"app.kubernetes.io/name": "other"}, "ports": ports});
            ("/spec", json!({"spec": spec}))
        }
        "configmap" => (
            "/data/config.yaml",
            json!({"data": {"config.yaml": "other"}}),
        ),
        "networkpolicy" => ("/spec/ingress", json!({"spec": {"ingress": []}})),
        "poddisruptionbudget" => (
            "/spec/maxUnavailable",
            json!({"spec": {"maxUnavailable": 3}}),
        ),
        "serviceaccount" => (
            "/automountServiceAccountToken",
            json!({"automountServiceAccountToken": true}),
        ),
        _ => return None,
    })
}

/// Labels, annotations, owners and fields of every kind of child come back.
pub fn repaired() {
    let namespace = Namespace::create("drift");
    let uri = Affine::FIRST.publish(&namespace);
    namespace.apply(&Affine::manifest("affine", &uri, &json!({})).to_string());
    namespace.wait("bm/affine", "condition=Ready", "120s");

    let before = children(&namespace);
    for ((kind, name), child) in &before {
        let patch = |patch: &Value| {
            namespace.kubectl(&[
                "patch",
                kind,
                name,
                "--type=merge",
                "-p",
                &patch.to_string(),
            ]);
        };
        patch(&json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}}));
        patch(&json!({"metadata": {"annotations": {"carpool.dev/rendered": null}}}));
        if let Some((_, other)) = change(kind, child) {
            patch(&other);
        }
    }
    let are_back = || {
        let now = children(&namespace);
        for (key, before) in &before {
            let now = now.get(key).ok_or(format!("{key:?} is gone"))?;
            let metadata = ["labels", "annotations", "ownerReferences"];
            let metadata = metadata.map(|field| format!("/metadata/{field}"));
            let field = change(&key.0, before).map(|(field, _)| field.to_owned());
            for field in metadata.into_iter().chain(field) {
                let (before, now) = (before.pointer(&field), now.pointer(&field));
                if before != now {
                    return Err(format!("{key:?} {field}: {now:?}, not {before:?}"));
                }
            }
        }
        Ok(())
    };
    eventually(Duration::from_secs(30), are_back);

    for (kind, name) in before.keys() {
        let owners = json!({"metadata": {"ownerReferences": null}}).to_string();
        namespace.kubectl(&["patch", kind, name, "--type=merge", "-p", &owners]);
    }
    eventually(Duration::from_secs(30), are_back);
    namespace.wait("bm/affine", "condition=Ready", "60s");
}

/// A new leader that finds everything as it should be applies nothing.
pub fn nothing_to_do() {
    let namespace = Namespace::create("no-drift");
    let uri = Affine::FIRST.publish(&namespace);
    namespace.apply(&Affine::manifest("affine", &uri, &json!({})).to_string());
    namespace.wait("bm/affine", "condition=Ready", "120s");
    let versions = || -> BTreeMap<_, _> {
        let children = children(&namespace).into_iter();
        children
            .map(|(key, child)| (key, child["metadata"]["resourceVersion"].clone()))
            .collect()
    };
    // Changes that the first reconciles have begun are over.
    let before = eventually(Duration::from_mins(1), || {
        let before = versions();
        thread::sleep(Duration::from_secs(5));
        if versions() == before {
            Ok(before)
        } else {
            Err("children still change".to_owned())
        }
    });
    operator::kill();
    thread::sleep(Duration::from_secs(10));
    assert_eq!(versions(), before);
}
