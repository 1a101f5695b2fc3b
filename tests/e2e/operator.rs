//! The operator under test, installed with Helm.

use std::time::Duration;

use crate::cluster::{eventually, root, run};

pub const NAMESPACE: &str = "carpool-system";
const RELEASE: &str = "carpool";

/// The installed operator; it goes, CRD and all, with this value.
pub struct Operator;

impl Operator {
    /// Installs the chart of this checkout with the images that `make images` loaded.
    pub fn install() -> Self {
        let chart = root().join("charts/carpool");
        let chart = chart.to_str().expect("a path in UTF-8");
        run(
            "helm",
            &[
                "upgrade", "--install", RELEASE, chart, "--namespace", NAMESPACE, "--create-namespace",
                "--set", "redis.image.registry=docker.io,redis.image.repository=carpool/redis,redis.image.tag=7.0",
                "--wait", "--timeout", "120s",
            ],
            b"",
        )
        .unwrap();
        Self
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        for (program, arguments) in [
            (
                "helm",
                &["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"][..],
            ),
            // The chart keeps it, so that uninstalling loses no model.
            (
                "kubectl",
                &[
                    "delete",
                    "crd",
                    "batchedmodels.carpool.dev",
                    "--ignore-not-found",
                ],
            ),
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

/// `helm test`: a real inference, sent by the chart.
pub fn helm_test(namespace: &str, model: &str) -> String {
    let url = format!("test.model={model}");
    let space = format!("test.namespace={namespace}");
    let chart = root().join("charts/carpool");
    let chart = chart.to_str().expect("a path in UTF-8");
    run(
        "helm",
        &[
            "upgrade",
            RELEASE,
            chart,
            "--namespace",
            NAMESPACE,
            "--reuse-values",
            "--set",
            &url,
            "--set",
            &space,
        ],
        b"",
    )
    .unwrap();
    run(
        "helm",
        &[
            "test",
            RELEASE,
            "--namespace",
            NAMESPACE,
            "--timeout",
            "60s",
            "--logs",
        ],
        b"",
    )
    .unwrap()
}

/// Kills every pod of the operator at once and waits until another leads.
pub fn kill() {
    run(
        "kubectl",
        &[
            "--namespace",
            NAMESPACE,
            "delete",
            "pods",
            "--all",
            "--grace-period=0",
            "--force",
        ],
        b"",
    )
    .unwrap();
    eventually(Duration::from_secs(90), || {
        run(
            "kubectl",
            &[
                "--namespace",
                NAMESPACE,
                "rollout",
                "status",
                "deployment",
                "--timeout=60s",
            ],
            b"",
        )
    });
}
