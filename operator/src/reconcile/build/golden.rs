//! Golden files of every child. A change of one of them rolls the pods of every model there is, so it is to be seen in
//! a review: `make manifests` writes them anew.

use std::{fs, path::Path};

use serde::Serialize;

use super::{Children, tests::children};

/// Resources that together have every kind of child, and every part that a field adds to one.
const CASES: [(&str, &str); 6] = [
    ("smallest", "{}"),
    (
        "gpu",
        "{worker: {resources: {limits: {nvidia.com/gpu: 1, memory: 16Gi}}, rollout: {maxSurge: 1, maxUnavailable: 0}}}",
    ),
    (
        "external-redis",
        "{queue: {redis: {external: {urlSecretName: mine}}, maxRequestBytes: 16Mi, runTimeout: 5m}}",
    ),
    (
        "overrides",
        "{proxy: {replicas: 3, corsAllowOrigins: ['*'], resources: {requests: {cpu: 500m}}, podOverrides: {spec: {priorityClassName: high}}},
          worker: {serviceAccountName: reader, podOverrides: {metadata: {annotations: {team: nlp}}}},
          queue: {redis: {managed: {resources: {limits: {memory: 2Gi}}}}}}",
    ),
    (
        "scheduling",
        "{nodeSelector: {pool: gpu}, tolerations: [{key: gpu, operator: Exists, effect: NoSchedule}],
          imagePullSecrets: [{name: pull}], priorityClassName: high,
          proxy: {allowFrom: [{namespaceSelector: {matchLabels: {team: web}}}, {ipBlock: {cidr: '::/0'}}]}}",
    ),
    ("tls", "{proxy: {tls: {secretName: sentiment-tls}}}"),
];

#[test]
fn every_child_is_as_it_was() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/reconcile/build/golden");
    for (name, over) in CASES {
        let path = folder.join(format!("{name}.yaml"));
        let rendered = rendered(&children(over));
        if std::env::var_os("CARPOOL_WRITE_GOLDEN").is_some() {
            fs::write(&path, &rendered).unwrap();
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            golden == rendered,
            "{} is not what is rendered: this change rolls pods; `make manifests` writes it anew",
            path.display()
        );
    }
}

/// All children as one YAML stream, in the order in which they are applied.
fn rendered(children: &Children) -> String {
    let mut documents = Vec::new();
    documents.extend(children.accounts.iter().map(document));
    documents.push(document(&children.config));
    documents.extend(children.policies.iter().map(document));
    documents.extend(children.budgets.iter().map(document));
    documents.extend(children.services.iter().map(document));
    documents.extend(children.redis.iter().map(document));
    documents.push(document(&children.proxy));
    documents.extend(children.worker.iter().map(document));
    documents.join("---\n")
}

fn document(child: &impl Serialize) -> String {
    // By way of JSON, whose maps are sorted.
    let value = serde_json::to_value(child).unwrap();
    serde_yaml::to_string(&value).unwrap()
}
