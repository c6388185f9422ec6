//! Nodes whose hardware is broken, and replicas on nodes that cannot be counted on. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use plimsoll_fleet::{ReplicaPhase, ReplicaStatus};

/// A node condition that says that the node's accelerators must not be used: replicas there are replaced elsewhere, and no
/// new ones come. Written `Type` (bad while True) or `Type=Status`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultCondition {
    type_: String,
    status: String,
}

/// Why a text names no condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} names no node condition; write its type, such as XIDErrors, or type and status, such as AcceleratedHardwareReady=False"
)]
pub struct InvalidFaultCondition {
    text: String,
}

impl FromStr for FaultCondition {
    type Err = InvalidFaultCondition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (type_, status) = text.trim().split_once('=').unwrap_or((text.trim(), "True"));
        let words = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        let valid = !type_.is_empty() && type_.chars().all(words);
        if valid && matches!(status, "True" | "False" | "Unknown") {
            Ok(Self { type_: type_.to_owned(), status: status.to_owned() })
        } else {
            Err(InvalidFaultCondition { text: text.to_owned() })
        }
    }
}

impl fmt::Display for FaultCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.status == "True" {
            f.write_str(&self.type_)
        } else {
            write!(f, "{}={}", self.type_, self.status)
        }
    }
}

/// What those that watch GPUs are documented to set. (NVSentinel and the GPU operators of several clouds cordon or taint
/// besides, which needs no list.) Conditions that may pass by themselves, such as throttling, are not among them.
pub fn known_conditions() -> Vec<FaultCondition> {
    [
        // The node problem detector of AKS.
        ("GPUMissing", "True"),
        ("NVLinkStatusInactive", "True"),
        ("XIDErrors", "True"),
        // The node monitoring agent of EKS.
        ("AcceleratedHardwareReady", "False"),
        // Common custom rules of the node problem detector.
        ("GpuUnhealthy", "True"),
        ("XidError", "True"),
    ]
    .map(|(type_, status)| FaultCondition { type_: type_.to_owned(), status: status.to_owned() })
    .into()
}

/// The fault a node's conditions report, first as listed (empty: none).
pub fn fault_of(node: &Node, faults: &[FaultCondition]) -> String {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let holds = |f: &&FaultCondition| conditions.iter().any(|c| c.type_ == f.type_ && c.status == f.status);
    faults.iter().find(holds).map(ToString::to_string).unwrap_or_default()
}

/// Whether the kubelet says that the node works.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// Replicas as people should see them: those on nodes that are gone, not ready or broken do not count as serving, although
/// their pods may not show it yet. (The planner sees the nodes itself; told that they failed, it would end them before
/// their successors serve.)
pub fn seen<'a>(
    replicas: &[ReplicaStatus],
    nodes: impl Iterator<Item = &'a Node>,
    faults: &[FaultCondition],
) -> Vec<ReplicaStatus> {
    let nodes: BTreeMap<String, &Node> = nodes.map(|n| (n.name_any(), n)).collect();
    let problem = |r: &ReplicaStatus| {
        r.nodes.iter().find_map(|name| match nodes.get(name.as_str()) {
            None => Some(format!("its node {name} is gone")),
            Some(node) if !is_ready(node) => Some(format!("its node {name} is not ready")),
            Some(node) => {
                let fault = fault_of(node, faults);
                (!fault.is_empty()).then(|| format!("its node {name} reports {fault}"))
            }
        })
    };
    replicas
        .iter()
        .map(|r| match problem(r).filter(|_| r.phase != ReplicaPhase::Draining) {
            Some(message) => ReplicaStatus { phase: ReplicaPhase::Failed, message, ..r.clone() },
            None => r.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(conditions: &[(&str, &str)]) -> Node {
        let conditions: Vec<_> = conditions.iter().map(|(t, s)| json!({"type": t, "status": s})).collect();
        serde_json::from_value(json!({"metadata": {"name": "gpu-1"}, "status": {"conditions": conditions}}))
            .unwrap()
    }

    #[test]
    fn conditions_are_read_by_type_and_status() {
        let known = known_conditions();
        assert_eq!(fault_of(&node(&[("Ready", "True"), ("XIDErrors", "False")]), &known), "");
        assert_eq!(fault_of(&node(&[("Ready", "True"), ("XIDErrors", "True")]), &known), "XIDErrors");
        assert_eq!(fault_of(&node(&[("AcceleratedHardwareReady", "True")]), &known), "");
        assert_eq!(
            fault_of(&node(&[("AcceleratedHardwareReady", "False")]), &known),
            "AcceleratedHardwareReady=False"
        );
        assert_eq!(fault_of(&node(&[("Ours", "True")]), &["Ours".parse().unwrap()]), "Ours");
        assert_eq!(fault_of(&Node::default(), &known), "");
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        for text in ["", "=True", "A B", "X=Maybe", "X="] {
            let error = text.parse::<FaultCondition>().unwrap_err().to_string();
            assert!(error.contains("such as XIDErrors"), "{error}");
        }
        assert_eq!(
            "example.com/Gpu=False".parse::<FaultCondition>().unwrap().to_string(),
            "example.com/Gpu=False"
        );
    }
}
