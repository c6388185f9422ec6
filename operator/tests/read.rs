//! From the cluster's objects to the snapshot: names taken, broken objects, foreign pods, phases.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use plimsoll_fleet::ReplicaPhase;
use plimsoll_operator::fault::{known_conditions, seen};
use plimsoll_operator::observe::remember_ready;
use plimsoll_operator::snapshot;
use plimsoll_operator::validate::{LastGood, remember, validate};
use rstest::rstest;
use serde_json::{Value, json};

#[test]
fn the_older_pool_keeps_a_served_name_and_the_younger_is_told() {
    let mut younger = pool("zeta", "{model: {name: m, preset: phi-4}, slo: {ttft: {p95: 1s}}}");
    let mut older = pool("alpha", "{model: {name: m, preset: phi-4}, slo: {ttft: {p95: 1s}}}");
    younger.metadata.creation_timestamp = Some(Time(at(5)));
    older.metadata.creation_timestamp = Some(Time(at(1)));
    let other = pool("other", "{model: {name: nn, preset: phi-4}, slo: {ttft: {p95: 1s}}}");
    let validated = validated(&world(vec![younger, older, other]));
    let accepted: Vec<_> = validated.accepted().map(|(_, a)| a.pool.id.to_string()).collect();
    assert_eq!(accepted, ["default/other", "default/alpha"]);
    let rejected = validated.pools.iter().find_map(|j| j.verdict.as_ref().err()).unwrap();
    assert_eq!(rejected.reason, "NameTaken");
    assert!(rejected.message.contains("ModelPool default/alpha"), "{}", rejected.message);
}

#[test]
fn a_broken_pool_disturbs_no_other_and_an_invalid_edit_keeps_the_last_good_spec() {
    let bad = pool("bad", "{model: {name: b, preset: nope}, slo: {ttft: {p95: 1s}}}");
    let good = chat();
    let first = validate(&world(vec![bad, good.clone()]), &LastGood::new());
    assert_eq!(first.accepted().count(), 1);
    let last_good = remember(&first);
    let mut edited = good;
    edited.metadata.generation = Some(2);
    edited.spec.slo.tpot.as_mut().unwrap().p95 = Some("0ms".into());
    let second = validate(&world(vec![edited]), &last_good);
    let (_, accepted) = second.accepted().next().unwrap();
    assert_eq!(accepted.pool.generation, 1);
    assert!(accepted.outdated.as_ref().unwrap().message.contains("spec.slo.tpot.p95"));
}

fn foreign(node: &str, gpus: u32, phase: &str) -> Arc<k8s_openapi::api::core::v1::Pod> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": "training", "namespace": "ml", "uid": "f"},
            "spec": {"nodeName": node, "containers": [
                {"name": "a", "resources": {"limits": {"nvidia.com/gpu": gpus.to_string()}}}, {"name": "b"}]},
            "status": {"phase": phase},
        }))
        .unwrap(),
    )
}

#[test]
fn foreign_pods_hold_their_gpus_until_they_end() {
    let mut world = world(vec![chat()]);
    world.foreign_pods = vec![
        foreign("gpu-1", 3, "Running"),
        foreign("gpu-1", 2, "Succeeded"),
        foreign("gpu-9", 4, "Running"),
    ];
    let snapshot = snapshot::snapshot(&world, &validated(&world), &[], &known_conditions());
    let node = &snapshot.nodes[0];
    assert_eq!(
        (node.allocatable_gpus, node.foreign_gpus, node.zone.as_str(), node.schedulable),
        (8, 3, "a", true)
    );
}

#[test]
fn a_pod_that_only_claims_to_be_a_replica_counts_as_foreign() {
    let mut world = world(vec![chat()]);
    let mut stranger = (*foreign("gpu-1", 5, "Running")).clone();
    stranger.metadata.labels = Some([("plimsoll.dev/replica".to_owned(), "x".to_owned())].into());
    world.pods = vec![Arc::new(stranger)];
    let (replicas, strangers) = snapshot::replicas(&world);
    assert!(replicas.is_empty());
    assert!(strangers[0].to_string().contains("remove the label"), "{}", strangers[0]);
    assert_eq!(
        snapshot::snapshot(&world, &validated(&world), &replicas, &known_conditions()).nodes[0].foreign_gpus,
        5
    );
}

fn observed(patch: impl FnOnce(&mut Value)) -> plimsoll_fleet::ReplicaStatus {
    let pool = chat();
    let plan = plan(4, &pool, vec![assignment("chat-1", "gpu-1")]);
    let mut world = world(vec![pool]);
    let pod = pods(&decide(&world, Some(&plan), &[], at(0))).remove(0);
    let mut value = serde_json::to_value(&*started(&pod, true)).unwrap();
    patch(&mut value);
    world.pods = vec![Arc::new(serde_json::from_value(value).unwrap())];
    let (replicas, _) = snapshot::replicas(&world);
    snapshot::snapshot(&world, &validated(&world), &replicas, &known_conditions()).replicas.remove(0)
}

#[rstest]
#[case::ready(|_: &mut Value| {}, ReplicaPhase::Ready, "")]
#[case::starting(|p: &mut Value| p["status"]["conditions"][0]["status"] = json!("False"), ReplicaPhase::Starting, "loads its weights")]
#[case::draining(|p: &mut Value| p["metadata"]["annotations"]["plimsoll.dev/draining"] = json!(at(60)), ReplicaPhase::Draining, "")]
#[case::terminating(|p: &mut Value| p["metadata"]["deletionTimestamp"] = json!(at(60)), ReplicaPhase::Draining, "")]
#[case::unscheduled(|p: &mut Value| p["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]}), ReplicaPhase::Pending, "0/3 nodes")]
#[case::evicted(|p: &mut Value| p["status"] = json!({"phase": "Failed", "reason": "Evicted", "message": "low on disk"}), ReplicaPhase::Failed, "low on disk")]
#[case::no_image(|p: &mut Value| { p["status"]["conditions"] = json!([]); p["status"]["containerStatuses"][0]["state"] = json!({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}) }, ReplicaPhase::Failed, "not found")]
#[case::first_crash(|p: &mut Value| { p["status"]["conditions"] = json!([]); p["status"]["containerStatuses"][0]["restartCount"] = json!(1); p["status"]["containerStatuses"][0]["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}}) }, ReplicaPhase::Starting, "CrashLoopBackOff")]
#[case::crashing(|p: &mut Value| { p["status"]["conditions"] = json!([]); p["status"]["containerStatuses"][0]["restartCount"] = json!(3); p["status"]["containerStatuses"][0]["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}}) }, ReplicaPhase::Failed, "CrashLoopBackOff")]
fn phases_follow_the_pod(#[case] patch: fn(&mut Value), #[case] phase: ReplicaPhase, #[case] message: &str) {
    let status = observed(patch);
    assert_eq!(status.phase, phase);
    assert!(status.message.contains(message), "{}", status.message);
    assert_eq!((status.plan, status.nodes[0].as_str()), (4, "gpu-1"));
}

#[test]
fn an_unbound_replica_is_on_no_node_yet() {
    assert!(observed(|p| p["spec"]["nodeName"] = Value::Null).nodes.is_empty());
}

#[test]
fn of_two_pods_with_one_replicas_name_the_older_is_the_replica() {
    let plan = plan(4, &chat(), vec![assignment("chat-1", "gpu-1")]);
    let mut world = world(vec![chat()]);
    let pod = started(&pods(&decide(&world, Some(&plan), &[], at(0)))[0], true);
    let mut copy = (*pod).clone();
    copy.metadata.namespace = Some("elsewhere".to_owned());
    copy.metadata.uid = Some("copy".to_owned());
    copy.metadata.creation_timestamp = Some(Time(at(99)));
    world.pods = vec![Arc::new(copy), pod];
    let (replicas, strangers) = snapshot::replicas(&world);
    assert_eq!(replicas.len(), 1);
    assert_eq!(replicas[0].pod_uid, "pod-chat-1");
    assert_eq!(strangers.len(), 1);
}

#[test]
fn a_replica_is_adopted_from_its_pod_alone() {
    let status = observed(|_| {});
    assert_eq!(status.address.as_deref(), Some("10.0.0.7:8000"));
    assert_eq!(status.shape, shape(2));
    assert_eq!((status.created_at, status.ready_at), (at(20), Some(at(30))));
    let ipv6 = observed(|p| p["status"]["podIP"] = json!("fd00::7"));
    assert_eq!(ipv6.address.as_deref(), Some("[fd00::7]:8000"));
}

#[test]
fn external_endpoints_are_replicas_without_pods() {
    let external = pool(
        "ext",
        "{model: {name: m, preset: phi-4}, slo: {ttft: {p95: 1s}}, engine: {kind: external, endpoints: ['10.1.1.1:80']}}",
    );
    let world = world(vec![external]);
    let snapshot = snapshot::snapshot(&world, &validated(&world), &[], &known_conditions());
    assert_eq!(snapshot.replicas[0].address.as_deref(), Some("10.1.1.1:80"));
    assert_eq!(snapshot.replicas[0].phase, ReplicaPhase::Ready);
}

fn nodes_of(patch: impl FnOnce(&mut Value)) -> plimsoll_fleet::ClusterSnapshot {
    let mut world = world(vec![chat()]);
    let mut value = serde_json::to_value(&*world.nodes[0]).unwrap();
    patch(&mut value);
    world.nodes = vec![Arc::new(serde_json::from_value(value).unwrap())];
    snapshot::snapshot(&world, &validated(&world), &[], &known_conditions())
}

#[rstest]
#[case::healthy(|_: &mut Value| {}, (true, true, ""))]
#[case::cordoned(|n: &mut Value| n["spec"] = json!({"unschedulable": true}), (false, true, ""))]
#[case::not_ready(|n: &mut Value| n["status"]["conditions"][0]["status"] = json!("Unknown"), (false, false, ""))]
#[case::broken(|n: &mut Value| n["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}, {"type": "XIDErrors", "status": "True"}]), (false, false, "XIDErrors"))]
#[case::other_trouble(|n: &mut Value| n["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True"}]), (true, true, ""))]
fn nodes_say_whether_they_can_be_used(
    #[case] patch: fn(&mut Value),
    #[case] (schedulable, ready, fault): (bool, bool, &str),
) {
    let node = &nodes_of(patch).nodes[0];
    assert_eq!((node.schedulable, node.ready, node.fault.as_str()), (schedulable, ready, fault));
}

#[test]
fn the_taint_that_every_engine_tolerates_closes_no_node() {
    let taint = |key: &str| json!([{"key": key, "value": "present", "effect": "NoSchedule"}]);
    let own = nodes_of(|n| n["spec"] = json!({"taints": taint("nvidia.com/gpu")}));
    assert!(own.nodes[0].taints.is_empty());
    let other = nodes_of(|n| n["spec"] = json!({"taints": taint("team")}));
    assert_eq!(other.nodes[0].taints, ["team=present:NoSchedule"]);
}

#[test]
fn replicas_on_nodes_that_cannot_be_counted_on_are_not_shown_as_serving() {
    let status = observed(|_| {});
    let shown = |node: Option<&Value>| {
        let node = node.map(|n| serde_json::from_value(n.clone()).unwrap());
        let mut seen = seen(std::slice::from_ref(&status), node.iter(), &known_conditions());
        let r = seen.remove(0);
        (r.phase, r.message)
    };
    let node =
        |conditions: Value| json!({"metadata": {"name": "gpu-1"}, "status": {"conditions": conditions}});
    assert_eq!(shown(Some(&node(json!([{"type": "Ready", "status": "True"}])))).0, ReplicaPhase::Ready);
    let lost = shown(Some(&node(json!([{"type": "Ready", "status": "Unknown"}]))));
    assert_eq!(lost, (ReplicaPhase::Failed, "its node gpu-1 is not ready".to_owned()));
    assert_eq!(shown(None).1, "its node gpu-1 is gone");
    let broken = node(json!([{"type": "Ready", "status": "True"}, {"type": "GPUMissing", "status": "True"}]));
    assert_eq!(shown(Some(&broken)).1, "its node gpu-1 reports GPUMissing");
}

#[test]
fn a_replica_that_has_served_is_not_taken_for_one_that_never_did() {
    let plan = plan(4, &chat(), vec![assignment("chat-1", "gpu-1")]);
    let mut world = world(vec![chat()]);
    let pod = pods(&decide(&world, Some(&plan), &[], at(0))).remove(0);
    let mut known = Default::default();
    let mut look = |ready: bool, since: i64| {
        let mut value = serde_json::to_value(&*started(&pod, ready)).unwrap();
        value["status"]["conditions"][0]["lastTransitionTime"] = json!(at(since));
        world.pods = vec![Arc::new(serde_json::from_value(value).unwrap())];
        let (mut replicas, _) = snapshot::replicas(&world);
        remember_ready(&mut known, &mut replicas);
        replicas.remove(0)
    };
    assert!(!look(false, 25).may_hold_requests());
    assert_eq!(look(true, 30).status.ready_at, Some(at(30)));
    let blip = look(false, 500);
    assert_eq!((blip.status.phase, blip.status.ready_at), (ReplicaPhase::Starting, Some(at(30))));
    assert!(blip.may_hold_requests());
    assert_eq!(look(true, 510).status.ready_at, Some(at(30)), "its cold start took 10 s, not 490");
}

#[test]
fn a_groups_name_is_its_own_and_its_adapters_are_one_pools() {
    use plimsoll_crds::{LoraAdapter, LoraAdapterSpec};

    let mut world = world(vec![
        pool("chat", "{model: {name: m, preset: phi-4}, slo: {ttft: {p95: 1s}}}"),
        pool("code", "{model: {name: nn, preset: phi-4}, slo: {ttft: {p95: 1s}}}"),
    ]);
    let adapter = |second: i64, name: &str, base: &str, group: &str| {
        let spec = LoraAdapterSpec {
            base_pool: base.into(),
            adapter_group: Some(group.to_owned()).filter(|g| !g.is_empty()),
            source: format!("hf://acme/{name}"),
            rank: 16,
            ..LoraAdapterSpec::default()
        };
        let mut adapter = LoraAdapter::new(name, spec);
        adapter.metadata.namespace = Some("default".into());
        adapter.metadata.creation_timestamp = Some(Time(at(second)));
        adapter
    };
    world.adapters = vec![
        adapter(1, "sql", "chat", "tasks"),
        adapter(2, "law", "chat", "tasks"),
        adapter(3, "elsewhere", "code", "tasks"),
        adapter(4, "pools", "chat", "nn"),
        adapter(5, "anothers", "chat", "sql"),
        adapter(6, "itself", "chat", "itself"),
        // Of the name of a group that there is.
        adapter(7, "tasks", "chat", ""),
    ];
    let validated = validated(&world);
    let verdicts: Vec<_> =
        validated.adapters.iter().map(|j| (j.resource.metadata.name.as_deref(), &j.verdict)).collect();
    for (name, verdict) in verdicts {
        match (name.unwrap(), verdict) {
            ("sql" | "law", Ok(adapter)) => assert_eq!(adapter.group.as_deref(), Some("tasks")),
            ("elsewhere" | "pools" | "anothers" | "itself", Err(why)) => {
                assert_eq!(why.reason, "NameTaken");
                assert!(why.message.starts_with("spec.adapterGroup: "), "{}", why.message);
            }
            ("tasks", Err(why)) => assert!(why.message.contains("an adapter group of"), "{}", why.message),
            (name, verdict) => panic!("{name}: {verdict:?}"),
        }
    }
}
