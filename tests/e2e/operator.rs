//! The operator under test, installed with Helm.

use std::time::Duration;

use serde_json::json;

use crate::cluster::{eventually, root, run};

pub const NAMESPACE: &str = "carpool-system";
const RELEASE: &str = "carpool";
const CRD: &str = "batchedmodels.carpool.dev";
/// The label of a namespace that these tests made; another namespace of the same name is somebody's.
const OURS: &str = "carpool.dev/end-to-end-tests";

/// The installed operator, removed with its CRD when this value is dropped.
pub struct Operator;

impl Operator {
    /// Installs the chart of this checkout with the images that `make images` loaded. Refuses where Carpool is in use,
    /// for the end of these tests removes it with every model of the cluster.
    pub fn install() -> Result<Self, String> {
        let selector = format!("--selector={OURS}");
        let ours = run(
            "kubectl",
            &["get", "namespaces", &selector, "--output=name"],
            b"",
        )?;
        let crd = run(
            "kubectl",
            &["get", "crd", CRD, "--ignore-not-found", "--output=name"],
            b"",
        )?;
        if ours.is_empty() {
            if !crd.is_empty() {
                return Err(format!(
                    "Carpool is installed on this cluster ({}): these tests would remove it, and all its models",
                    crd.trim()
                ));
            }
            // The label is part of the namespace from the start. The namespace is created, not applied, so that
            // somebody's own of this name is not taken for ours.
            let namespace = json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": {OURS: ""}}
            });
            run(
                "kubectl",
                &["create", "-f", "-"],
                namespace.to_string().as_bytes(),
            )?;
        }
        // The operator is removed from here on, also when the rest fails.
        let operator = Self;
        let chart = root().join("charts/carpool");
        let chart = chart.to_str().expect("a path in UTF-8");
        run(
            "helm",
            &[
                "upgrade",
                "--install",
                RELEASE,
                chart,
                "--namespace",
                NAMESPACE,
                "--set",
                "redis.image.registry=docker.io,redis.image.repository=carpool/redis,redis.image.tag=7.0",
                "--wait",
                "--timeout",
                "120s",
            ],
            b"",
        )
        .map_err(|error| {
            let looked = ["--namespace", NAMESPACE, "get", "pods,events"];
            let seen = run("kubectl", &looked, b"").unwrap_or_else(|error| error);
            format!("{error}\n{seen}")
        })?;
        Ok(operator)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        for (program, arguments) in [
            (
                "helm",
                &[
                    "uninstall",
                    RELEASE,
                    "--namespace",
                    NAMESPACE,
                    "--ignore-not-found",
                    "--wait",
                ][..],
            ),
            // The chart keeps the definition, so that uninstalling loses no model.
            ("kubectl", &["delete", "crd", CRD, "--ignore-not-found"]),
            (
                "kubectl",
                &["delete", "namespace", NAMESPACE, "--timeout=120s"],
            ),
        ] {
            if let Err(error) = run(program, arguments, b"") {
                eprintln!("{error}");
            }
        }
    }
}

/// Runs helm on the release and returns what it says.
fn helm(arguments: &[&str]) -> String {
    run(
        "helm",
        &[arguments, &["--namespace", NAMESPACE]].concat(),
        b"",
    )
    .unwrap()
}

/// Upgrades the release with further values, each as `--set` has it, and waits until the operator is Ready.
pub fn upgrade(values: &[&str]) {
    let chart = root().join("charts/carpool");
    let chart = chart.to_str().expect("a path in UTF-8");
    let mut arguments = vec!["upgrade", RELEASE, chart, "--reuse-values"];
    arguments.extend(["--wait", "--timeout", "120s"]);
    for value in values {
        arguments.extend(["--set", value]);
    }
    helm(&arguments);
}

/// Takes the last upgrade back and waits until the operator is Ready.
pub fn rollback() {
    helm(&["rollback", RELEASE, "--wait", "--timeout", "120s"]);
}

/// Runs `helm test`: a real inference, sent by the chart.
pub fn helm_test(namespace: &str, model: &str) -> String {
    let model = format!("test.model={model}");
    let space = format!("test.namespace={namespace}");
    upgrade(&[&model, &space]);
    helm(&["test", RELEASE, "--timeout", "60s", "--logs"])
}

/// Returns the name of the pod that leads; empty where none does.
pub fn leader() -> Result<String, String> {
    let path = "--output=jsonpath={.spec.holderIdentity}";
    run(
        "kubectl",
        &[
            "--namespace",
            NAMESPACE,
            "get",
            "lease",
            "carpool-operator",
            path,
        ],
        b"",
    )
}

/// Waits until another pod than `before` leads, and returns its name.
pub fn another_leads(before: &str) -> String {
    eventually(Duration::from_secs(90), || match leader()? {
        now if now.is_empty() || now == before => Err(format!("{before} led; now it is '{now}'")),
        now => Ok(now),
    })
}

/// Kills every pod of the operator at once and waits until another leads: being ready needs no Lease.
pub fn kill() {
    let before = leader().unwrap();
    run(
        "kubectl",
        &[
            "--namespace",
            NAMESPACE,
            "delete",
            "pods",
            "--selector=app.kubernetes.io/name=carpool-operator",
            "--grace-period=0",
            "--force",
        ],
        b"",
    )
    .unwrap();
    another_leads(&before);
}
