//! When no accelerator node at all is heard of. Pure.
//!
//! That is seldom the death of every machine at once; most often it is the way between kubelets and the API server that is
//! broken, or the API server was away for longer than nodes may be silent. Like Kubernetes itself, which evicts nothing
//! while all of its nodes are silent, the operator then takes things as they were last said to be: engines whose
//! containers served go on counting as serving, so that requests still reach them through agents, which know better.
//! Nothing new is put on these nodes, for the cluster's taint keeps it away.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::ResourceExt;
use plimsoll_fleet::AcceleratorClass;

use crate::observe;
use crate::world::World;

/// The taint of a node whose kubelet is not heard of.
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// The world as it most likely is, and whether that is a guess: while every accelerator node is silent, its nodes and
/// pods are taken to be as they last were.
pub fn assume<'a>(
    world: &'a World,
    classes: impl Iterator<Item = &'a AcceleratorClass> + Clone,
) -> (Cow<'a, World>, bool) {
    let ours = |n: &Node| observe::class_of(n, classes.clone()).is_some();
    // As a rule the first accelerator node speaks, and no other is looked at.
    if world.nodes.iter().any(|n| !is_silent(n) && ours(n)) {
        return (Cow::Borrowed(world), false);
    }
    let silent: BTreeSet<String> =
        world.nodes.iter().filter(|n| is_silent(n) && ours(n)).map(|n| n.name_any()).collect();
    if silent.is_empty() {
        return (Cow::Borrowed(world), false);
    }
    let mut assumed = world.clone();
    for node in assumed.nodes.iter_mut().filter(|n| silent.contains(&n.name_any())) {
        hear(Arc::make_mut(node));
    }
    let on_silent = |pod: &Pod| observe::node_of(pod).is_some_and(|n| silent.contains(n.as_str()));
    for pod in assumed.pods.iter_mut().filter(|p| on_silent(p) && served(p)) {
        vouch(Arc::make_mut(pod));
    }
    (Cow::Owned(assumed), true)
}

/// Whether the cluster has not heard of the node for a while; a kubelet that reports a problem itself is heard of.
fn is_silent(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "Unknown")
}

fn hear(node: &mut Node) {
    let conditions = node.status.iter_mut().flat_map(|s| s.conditions.iter_mut().flatten());
    for ready in conditions.filter(|c| c.type_ == "Ready") {
        "True".clone_into(&mut ready.status);
    }
    let taints = node.spec.get_or_insert_default().taints.get_or_insert_default();
    if !taints.iter().any(|t| t.key == UNREACHABLE && t.effect == "NoSchedule") {
        let taint = Taint {
            key: UNREACHABLE.to_owned(),
            effect: "NoSchedule".to_owned(),
            value: None,
            time_added: None,
        };
        taints.push(taint);
    }
}

/// Whether the kubelet last said that all of the pod's containers serve: others then only call the *pod* unready.
fn served(pod: &Pod) -> bool {
    let containers = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    !containers.is_empty() && containers.iter().all(|c| c.ready)
}

fn vouch(pod: &mut Pod) {
    let conditions = pod.status.iter_mut().flat_map(|s| s.conditions.iter_mut().flatten());
    for ready in conditions.filter(|c| c.type_ == "Ready") {
        "True".clone_into(&mut ready.status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_fleet::{ReplicaPhase, presets};
    use serde_json::{Value, json};

    fn node(name: &str, ready: &str, class: bool) -> Arc<Node> {
        let labels = if class { json!({"gpu": "h100"}) } else { json!({}) };
        let value = json!({"metadata": {"name": name, "labels": labels},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn pod(on: &str, container_ready: bool) -> Arc<Pod> {
        let value: Value = json!({"metadata": {"name": "chat-1", "namespace": "default"}, "spec": {"nodeName": on, "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}],
                       "containerStatuses": [{"name": "engine", "ready": container_ready, "restartCount": 0,
                                              "image": "", "imageID": "", "state": {"running": {}}}]}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn classes() -> Vec<AcceleratorClass> {
        let mut h100 = presets::accelerator("h100").unwrap();
        h100.node_selector = [("gpu".to_owned(), "h100".to_owned())].into();
        vec![h100]
    }

    fn phase_of(world: &World) -> ReplicaPhase {
        let status = world.pods[0].status.as_ref().unwrap();
        let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        observe::phase(status, ready).0
    }

    #[test]
    fn engines_on_silent_nodes_go_on_serving_while_no_node_is_heard_of() {
        let nodes = vec![node("a", "Unknown", true), node("b", "Unknown", true), node("cpu", "True", false)];
        let world = World { nodes, pods: vec![pod("a", true)], ..World::default() };
        let classes = classes();
        let (assumed, guessed) = assume(&world, classes.iter());
        assert!(guessed);
        assert_eq!((phase_of(&world), phase_of(&assumed)), (ReplicaPhase::Starting, ReplicaPhase::Ready));
        assert!(crate::fault::is_ready(&assumed.nodes[0]));
        let taints = assumed.nodes[1].spec.as_ref().unwrap().taints.as_ref().unwrap();
        assert_eq!((taints[0].key.as_str(), taints[0].effect.as_str()), (UNREACHABLE, "NoSchedule"));
        assert!(!assume(&assumed, classes.iter()).1, "what is assumed needs no guess any more");
    }

    #[test]
    fn an_engine_that_had_not_served_is_not_vouched_for() {
        let world = World {
            nodes: vec![node("a", "Unknown", true)],
            pods: vec![pod("a", false)],
            ..World::default()
        };
        let classes = classes();
        assert_eq!(phase_of(&assume(&world, classes.iter()).0), ReplicaPhase::Starting);
    }

    #[test]
    fn one_node_that_speaks_makes_the_silent_ones_lost() {
        let classes = classes();
        for ready in ["True", "False"] {
            let nodes = vec![node("a", "Unknown", true), node("b", ready, true)];
            let world = World { nodes, pods: vec![pod("a", true)], ..World::default() };
            let (same, guessed) = assume(&world, classes.iter());
            assert!(!guessed && phase_of(&same) == ReplicaPhase::Starting, "{ready}");
        }
        let none = World::default();
        assert!(!assume(&none, classes.iter()).1, "no nodes, no guess");
    }
}
