//! Children that keep the rest safe: accounts without tokens, disruption budgets, network policies.

use std::collections::BTreeMap;

use carpool_crds::{Peer, RequirementOperator, Selector};
use k8s_openapi::{
    api::{
        core::v1::ServiceAccount,
        networking::v1::{
            IPBlock, NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
            NetworkPolicySpec,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::metadata;
use crate::{
    names::{self, Component},
    reconcile::validate::Valid,
};

/// An account that may do nothing, and whose token no pod is given.
pub fn account(valid: &Valid, component: Component) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(valid, names::child(&valid.name, component), Some(component)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// The proxies' budget.
pub fn proxy_budget(valid: &Valid) -> PodDisruptionBudget {
    let name = names::child(&valid.name, Component::Proxy);
    let pods = names::selector(&valid.name, Component::Proxy);
    budget(metadata(valid, name, Some(Component::Proxy)), pods)
}

/// The budget of one revision's workers: those of another that fail leave it whole.
pub fn worker_budget(valid: &Valid, revision: &str) -> PodDisruptionBudget {
    let name = names::worker(&valid.name, revision);
    let mut metadata = metadata(valid, name, Some(Component::Worker));
    metadata.labels = metadata
        .labels
        .map(|labels| names::of_revision(labels, revision));
    let pods = names::selector(&valid.name, Component::Worker);
    budget(metadata, names::of_revision(pods, revision))
}

/// Nodes are drained one pod at a time. Not a minimum: with one pod, that would stop a drain for ever, as would a pod
/// that never gets Ready if it needed leave to go.
fn budget(metadata: ObjectMeta, pods: BTreeMap<String, String>) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata,
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(pods)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

/// The network policy of a component, which says who may reach it. Admin ports are for `scrape_namespaces`, of which the
/// first is the operator's own.
pub fn policy(valid: &Valid, component: Component, scrape_namespaces: &[String]) -> NetworkPolicy {
    let namespace = |name: &String| NetworkPolicyPeer {
        namespace_selector: Some(selector(BTreeMap::from([(
            "kubernetes.io/metadata.name".to_owned(),
            name.clone(),
        )]))),
        ..NetworkPolicyPeer::default()
    };
    let admin = NetworkPolicyIngressRule {
        from: Some(scrape_namespaces.iter().map(namespace).collect()),
        ports: Some(vec![tcp(names::ADMIN_PORT)]),
    };
    let ingress = match component {
        Component::Proxy => vec![
            NetworkPolicyIngressRule {
                from: Some(clients(valid, scrape_namespaces.first().map(namespace))),
                ports: Some(vec![tcp(names::DATA_PORT)]),
            },
            admin,
        ],
        Component::Worker => vec![admin],
        // Proxies, workers and pods with an injected sidecar: all that carry the model's label.
        Component::Redis => vec![NetworkPolicyIngressRule {
            from: Some(vec![NetworkPolicyPeer {
                pod_selector: Some(selector(BTreeMap::from([(
                    names::MODEL.to_owned(),
                    valid.name.clone(),
                )]))),
                ..NetworkPolicyPeer::default()
            }]),
            ports: Some(vec![tcp(names::REDIS_PORT)]),
        }],
    };
    NetworkPolicy {
        metadata: metadata(valid, names::child(&valid.name, component), Some(component)),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(names::selector(&valid.name, component))),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(ingress),
            egress: None,
        }),
    }
}

/// The clients of proxies: the pods of their own namespace, those of the operator's, from where `helm test` and `carpool
/// infer` ask, and those that the resource names.
fn clients(valid: &Valid, operator: Option<NetworkPolicyPeer>) -> Vec<NetworkPolicyPeer> {
    let own = NetworkPolicyPeer {
        pod_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    };
    let named = valid.spec.proxy.allow_from.iter().map(peer);
    std::iter::once(own).chain(operator).chain(named).collect()
}

fn peer(given: &Peer) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        pod_selector: given.pod_selector.as_ref().map(given_selector),
        namespace_selector: given.namespace_selector.as_ref().map(given_selector),
        ip_block: given.ip_block.as_ref().map(|block| IPBlock {
            cidr: block.cidr.clone(),
            except: block.except.clone(),
        }),
    }
}

fn given_selector(given: &Selector) -> LabelSelector {
    let expressions = given.match_expressions.as_ref().map(|expressions| {
        let requirement = |expression: &carpool_crds::Requirement| LabelSelectorRequirement {
            key: expression.key.clone(),
            operator: match expression.operator {
                RequirementOperator::In => "In",
                RequirementOperator::NotIn => "NotIn",
                RequirementOperator::Exists => "Exists",
                RequirementOperator::DoesNotExist => "DoesNotExist",
            }
            .to_owned(),
            values: expression.values.clone(),
        };
        expressions.iter().map(requirement).collect()
    });
    LabelSelector {
        match_labels: given.match_labels.clone(),
        match_expressions: expressions,
    }
}

fn selector(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels),
        ..LabelSelector::default()
    }
}

fn tcp(port: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some("TCP".to_owned()),
        port: Some(IntOrString::Int(i32::from(port))),
        ..NetworkPolicyPort::default()
    }
}
