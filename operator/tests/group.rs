//! Replicas over several nodes: what is created for them, and how their pods become one replica.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::*;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use plimsoll_crds::ModelPool;
use plimsoll_fleet::{Plan, ReplicaAssignment, ReplicaId, ReplicaPhase, Shape};
use plimsoll_operator::build::group::NewGroup;
use plimsoll_operator::build::{Action, DeleteReason, Prepared};
use plimsoll_operator::observe::Observed;
use plimsoll_operator::snapshot;
use plimsoll_operator::world::World;
use serde_json::{Value, json};

fn wide() -> Shape {
    Shape { tensor_parallel: 8, pipeline_parallel: 2, ..shape(8) }
}

fn over(id: &str, nodes: &[&str]) -> ReplicaAssignment {
    let nodes = nodes.iter().map(|n| n.parse().unwrap()).collect();
    ReplicaAssignment { id: ReplicaId::new(id).unwrap(), shape: wide(), nodes, spot: false }
}

fn engine(kind: &str) -> ModelPool {
    pool(
        "chat",
        &format!(
            "{{model: {{name: llama-3.1-70b, preset: llama-3.1-70b}}, slo: {{tpot: {{p95: 50ms}}}}, \
              parallelism: {{pipeline: [1, 2]}}, engine: {{kind: {kind}}}}}"
        ),
    )
}

fn two_nodes(kind: &str) -> World {
    World { nodes: vec![node("gpu-1", 8), node("gpu-2", 8)], ..world(vec![engine(kind)]) }
}

fn planned(world: &World, nodes: &[&str]) -> Plan {
    plan(1, &world.pools[0], vec![over("chat-1", nodes)])
}

fn group(prepared: &Prepared) -> (Service, Vec<Pod>) {
    match &prepared.actions[..] {
        [Action::CreateGroup { replica, group, .. }] if replica.as_str() == "chat-1" => match &**group {
            NewGroup::Pods { service, pods } => ((**service).clone(), pods.clone()),
            NewGroup::Set { .. } => panic!("a set"),
        },
        other => panic!("{other:?}"),
    }
}

fn args(pod: &Pod) -> String {
    pod.spec.as_ref().unwrap().containers[0].args.clone().unwrap().join(" ")
}

fn pins(pod: &Pod) -> Value {
    json!(pod)["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"].clone()
}

/// The pods of a created group as the cluster holds them: bound, the worker owned by the leader.
fn living(world: &World, ready: &[bool]) -> Vec<Arc<Pod>> {
    let plan = planned(world, &["gpu-1", "gpu-2"]);
    let (_, pods) = group(&decide(world, Some(&plan), &[], at(20)));
    let mut living: Vec<Arc<Pod>> = Vec::new();
    for (rank, (pod, ready)) in pods.iter().zip(ready).enumerate() {
        let mut pod = (*started(pod, *ready)).clone();
        pod.spec.as_mut().unwrap().node_name = Some(format!("gpu-{}", rank + 1));
        if rank > 0 {
            pod.metadata.owner_references = Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: "chat-1".to_owned(),
                uid: "pod-chat-1".to_owned(),
                ..OwnerReference::default()
            }]);
        }
        living.push(Arc::new(pod));
    }
    living
}

fn change(pod: &Pod, patch: impl FnOnce(&mut Value)) -> Arc<Pod> {
    let mut value = json!(pod);
    patch(&mut value);
    Arc::new(serde_json::from_value(value).unwrap())
}

fn one(world: &World) -> Observed {
    let (replicas, strangers) = snapshot::replicas(world);
    assert!(strangers.is_empty(), "{strangers:?}");
    assert_eq!(replicas.len(), 1, "{replicas:?}");
    replicas.into_iter().next().unwrap()
}

#[test]
fn each_node_gets_a_pod_with_its_share_and_its_place() {
    let world = two_nodes("vllm");
    let prepared = decide(&world, Some(&planned(&world, &["gpu-1", "gpu-2"])), &[], at(20));
    let (service, pods) = group(&prepared);
    assert_eq!(pods.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["chat-1", "chat-1-w1"]);
    for (rank, pod) in pods.iter().enumerate() {
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(pod.labels()["plimsoll.dev/replica"], "chat-1");
        assert_eq!(pod.labels()["plimsoll.dev/rank"], rank.to_string());
        assert_eq!(json!(spec)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"], "8");
        assert_eq!(
            pins(pod)["nodeSelectorTerms"],
            json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [format!("gpu-{}", rank + 1)]}]}])
        );
        assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
        let args = args(pod);
        for part in [
            "--tensor-parallel-size 8",
            "--pipeline-parallel-size 2",
            "--distributed-executor-backend mp",
            "--nnodes 2",
            &format!("--node-rank {rank}"),
            "--master-addr chat-1.chat-ranks.default.svc --master-port 29500",
        ] {
            assert!(args.contains(part), "no {part} in {args}");
        }
        assert_eq!(args.contains("--headless"), rank > 0, "{args}");
    }
    // Only the leader serves, holds the record, and is found by what selects a pool's replicas.
    let (leader, worker) = (&pods[0], &pods[1]);
    assert!(leader.annotations().contains_key("plimsoll.dev/replica"));
    assert!(worker.annotations().is_empty() && !worker.labels().contains_key("plimsoll.dev/pool"));
    let engine = &worker.spec.as_ref().unwrap().containers[0];
    assert!(
        engine.readiness_probe.is_none() && engine.startup_probe.is_none(),
        "it serves nothing that could answer"
    );
    assert_eq!(leader.owner_references()[0].kind, "ModelPool");
    // The name under which the leader is found is that of the Service which selects it.
    let spec = service.spec.as_ref().unwrap();
    assert_eq!((spec.cluster_ip.as_deref(), spec.publish_not_ready_addresses), (Some("None"), Some(true)));
    assert!(spec.selector.as_ref().unwrap().iter().all(|(k, v)| leader.labels().get(k) == Some(v)));
    let leader = leader.spec.as_ref().unwrap();
    assert_eq!(leader.subdomain, service.metadata.name);
    assert_eq!(leader.hostname.as_deref(), Some("chat-1"));
}

#[test]
fn each_engine_is_told_of_its_group_in_its_own_words() {
    let asked = |kind: &str| {
        let world = two_nodes(kind);
        let prepared = decide(&world, Some(&planned(&world, &["gpu-1", "gpu-2"])), &[], at(20));
        args(&group(&prepared).1[1])
    };
    let sglang = asked("sglang");
    let address = "--dist-init-addr chat-1.chat-ranks.default.svc:29500";
    assert!(sglang.contains(&format!("--nnodes 2 --node-rank 1 {address}")), "{sglang}");
    assert!(!sglang.contains("--headless"), "{sglang}");
    let simulated = asked("simulated");
    assert!(simulated.contains("--pipeline-parallel 2"), "{simulated}");
    assert!(simulated.contains("--nnodes 2 --node-rank 1 --master-addr chat-1.chat-ranks"), "{simulated}");
    let world = two_nodes("llamacpp");
    let prepared = decide(&world, Some(&planned(&world, &["gpu-1", "gpu-2"])), &[], at(20));
    assert!(prepared.actions.is_empty());
    let problem = prepared.problems.values().flatten().next().unwrap();
    assert!(problem.contains("spans 2 nodes, and llamacpp runs on one"), "{problem}");
}

#[test]
fn experts_are_kept_whole_where_that_is_asked_for() {
    for (kind, flag) in [("vllm", "--enable-expert-parallel"), ("sglang", "--ep-size 8")] {
        let moe = pool(
            "chat",
            &format!(
                "{{model: {{name: deepseek-v3, preset: deepseek-v3}}, slo: {{tpot: {{p95: 50ms}}}}, \
                  parallelism: {{pipeline: [1, 2], expert: true}}, engine: {{kind: {kind}}}}}"
            ),
        );
        let world = World { nodes: vec![node("gpu-1", 8), node("gpu-2", 8)], ..world(vec![moe]) };
        let mut plan = planned(&world, &["gpu-1", "gpu-2"]);
        plan.pools[0].replicas[0].shape.expert_parallel = 8;
        let (_, pods) = group(&decide(&world, Some(&plan), &[], at(20)));
        assert!(pods.iter().all(|pod| args(pod).contains(flag)), "{}", args(&pods[1]));
    }
}

#[test]
fn capacity_to_come_is_asked_for_node_by_node() {
    let world = two_nodes("vllm");
    let (_, pods) = group(&decide(&world, Some(&planned(&world, &[])), &[], at(20)));
    assert_eq!(pods.len(), 2);
    for pod in &pods {
        let spec = json!(pod)["spec"].clone();
        assert_eq!(spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"], "8");
        assert!(spec["affinity"].is_null() && !spec["nodeSelector"].is_null(), "{spec}");
    }
}

#[test]
fn a_group_is_ready_with_all_of_its_pods() {
    let mut world = two_nodes("vllm");
    world.pods = living(&world, &[false, true]);
    assert_eq!(one(&world).status.phase, ReplicaPhase::Starting);
    world.pods = living(&two_nodes("vllm"), &[true, true]);
    let replica = one(&world);
    assert_eq!(replica.status.phase, ReplicaPhase::Ready);
    assert_eq!(replica.status.nodes.iter().map(ToString::to_string).collect::<Vec<_>>(), ["gpu-1", "gpu-2"]);
    assert_eq!(replica.status.address.as_deref(), Some("10.0.0.7:8000"));
    let nothing = decide(&world, Some(&planned(&world, &["gpu-1", "gpu-2"])), &[], at(60));
    assert_eq!(nothing, Prepared::default());
    // Its accelerators are its own: nobody else's.
    let snapshot = snapshot::snapshot(&world, &validated(&world), &[replica], &[]);
    assert!(snapshot.nodes.iter().all(|n| n.foreign_gpus == 0), "{:?}", snapshot.nodes);
}

#[test]
fn what_is_missing_of_a_new_group_is_created_and_of_a_serving_one_is_its_end() {
    let mut world = two_nodes("vllm");
    let plan = planned(&world, &["gpu-1", "gpu-2"]);
    let leader_alone = |ready| living(&two_nodes("vllm"), &[ready]);
    world.pods = leader_alone(false);
    let replica = one(&world);
    assert_eq!(replica.status.phase, ReplicaPhase::Pending);
    assert_eq!(replica.status.message, "waits for its pods: 1 of 2 exist");
    assert_eq!(replica.status.nodes.len(), 2, "the other node is spoken for");
    assert_eq!(group(&decide(&world, Some(&plan), &[], at(60))).1.len(), 2);
    world.pods = leader_alone(true);
    let replica = one(&world);
    assert_eq!(replica.status.phase, ReplicaPhase::Failed);
    assert!(replica.status.message.contains("only 1 of its 2 pods exist"), "{}", replica.status.message);
    assert!(decide(&world, Some(&plan), &[], at(60)).actions.is_empty(), "the planner has it replaced");
    // A worker of an earlier leader is not this one's.
    let stale = change(&living(&two_nodes("vllm"), &[true, true])[1], |pod| {
        pod["metadata"]["ownerReferences"][0]["uid"] = json!("an-earlier-leader");
    });
    world.pods.push(stale);
    assert_eq!(one(&world).status.phase, ReplicaPhase::Failed);
    let snapshot = snapshot::snapshot(&world, &validated(&world), &[one(&world)], &[]);
    assert_eq!(snapshot.nodes[1].foreign_gpus, 8, "but it holds its node until it has ended");
}

#[test]
fn the_end_of_one_pod_is_the_end_of_all() {
    let mut world = two_nodes("vllm");
    let pods = living(&world, &[true, true]);
    let nothing_wanted = plan(2, &world.pools[0], vec![]);
    let ends = |world: &World, why: &str| {
        let replica = one(world);
        assert_eq!(replica.status.phase, ReplicaPhase::Failed, "{why}");
        assert!(replica.status.message.contains(why), "{}", replica.status.message);
        let prepared = decide(world, Some(&nothing_wanted), &[], at(90));
        match &prepared.actions[..] {
            [Action::DeletePod { pods, reason: DeleteReason::Failed, set: None, .. }] => {
                let names: Vec<&str> = pods.iter().map(|(name, _)| name.as_str()).collect();
                assert_eq!(names, ["chat-1", "chat-1-w1"]);
            }
            other => panic!("{other:?}"),
        }
    };
    let ended = change(&pods[1], |pod| {
        pod["status"] = json!({"phase": "Failed", "reason": "Evicted", "message": "node was low on memory"});
    });
    world.pods = vec![pods[0].clone(), ended];
    ends(&world, "chat-1-w1 ended: node was low on memory");
    let lost = change(&pods[1], |pod| pod["status"]["conditions"][0]["status"] = json!("False"));
    world.pods = vec![pods[0].clone(), lost];
    ends(&world, "its node may be lost");
}

#[test]
fn a_group_drains_by_its_leader_and_is_deleted_whole() {
    let mut world = two_nodes("vllm");
    world.pods = living(&world, &[true, true]);
    let gone = plan(2, &world.pools[0], vec![]);
    let marks = decide(&world, Some(&gone), &[], at(60)).actions;
    assert!(
        matches!(&marks[..], [Action::MarkDraining { pod, pod_uid, .. }] if pod == "chat-1" && pod_uid == "pod-chat-1"),
        "{marks:?}"
    );
    let marked = change(&world.pods[0], |pod| {
        pod["metadata"]["annotations"]["plimsoll.dev/draining"] = json!(at(60).to_string());
    });
    world.pods[0] = marked;
    assert_eq!(one(&world).status.phase, ReplicaPhase::Draining);
    let ended = decide(&world, Some(&gone), &["chat-1"], at(70)).actions;
    assert!(
        matches!(&ended[..], [Action::DeletePod { pods, reason: DeleteReason::Drained, .. }] if pods.len() == 2),
        "{ended:?}"
    );
    // A worker that is being evicted drains the replica too: it will not be whole for long.
    world.pods = living(&two_nodes("vllm"), &[true, true]);
    world.pods[1] = change(&world.pods[1], |pod| pod["metadata"]["deletionTimestamp"] = json!(at(65)));
    assert_eq!(one(&world).status.phase, ReplicaPhase::Draining);
    // A leader whose node is dead does not keep its workers.
    world.pods = living(&two_nodes("vllm"), &[true, true]);
    world.pods[0] = change(&world.pods[0], |pod| pod["metadata"]["deletionTimestamp"] = json!(at(90)));
    assert!(decide(&world, Some(&gone), &[], at(80)).actions.is_empty(), "it may yet finish");
    let rest = decide(&world, Some(&gone), &[], at(91)).actions;
    assert!(
        matches!(&rest[..], [Action::DeletePod { pods, .. }] if pods.len() == 1 && pods[0].0 == "chat-1-w1"),
        "{rest:?}"
    );
}

#[test]
fn a_leader_worker_set_is_as_its_api_has_it() {
    let mut world = two_nodes("vllm");
    let plan = planned(&world, &["gpu-1", "gpu-2"]);
    let prepared = decide_with(&world, Some(&plan), &[], at(20), true);
    let body = match &prepared.actions[..] {
        [Action::CreateGroup { group, .. }] => match &**group {
            NewGroup::Set { body } => (**body).clone(),
            NewGroup::Pods { .. } => panic!("pods"),
        },
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (&body["apiVersion"], &body["kind"]),
        (&json!("leaderworkerset.x-k8s.io/v1"), &json!("LeaderWorkerSet"))
    );
    assert_eq!(body["metadata"]["name"], "chat-1");
    assert_eq!(body["metadata"]["ownerReferences"][0]["kind"], "ModelPool");
    assert_eq!(body["spec"]["replicas"], 1);
    let template = &body["spec"]["leaderWorkerTemplate"];
    assert_eq!(
        (&template["size"], &template["restartPolicy"]),
        (&json!(2), &json!("RecreateGroupOnPodRestart"))
    );
    for (which, node, rank) in
        [("leaderTemplate", "gpu-1", "0"), ("workerTemplate", "gpu-2", "$(PLIMSOLL_RANK)")]
    {
        let spec = &template[which]["spec"];
        let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(required["nodeSelectorTerms"][0]["matchFields"][0]["values"], json!([node]));
        assert_eq!(spec["restartPolicy"], "Always", "its StatefulSets allow no other");
        let args: Vec<&str> =
            spec["containers"][0]["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let args = args.join(" ");
        assert!(args.contains(&format!("--node-rank {rank} --master-addr $(LWS_LEADER_ADDRESS)")), "{args}");
    }
    let index = json!({"name": "PLIMSOLL_RANK", "valueFrom": {"fieldRef": {
        "fieldPath": "metadata.labels['leaderworkerset.sigs.k8s.io/worker-index']"}}});
    assert_eq!(template["workerTemplate"]["spec"]["containers"][0]["env"][0], index);
    // What its controller makes of it is one replica under the plan's name.
    let made = |which: &str, name: &str, index: &str, node: &str| {
        let mut pod = json!({"metadata": template[which]["metadata"], "spec": template[which]["spec"]});
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["namespace"] = json!("default");
        pod["metadata"]["labels"]["leaderworkerset.sigs.k8s.io/name"] = json!("chat-1");
        pod["metadata"]["labels"]["leaderworkerset.sigs.k8s.io/worker-index"] = json!(index);
        let pod: Pod = serde_json::from_value(pod).unwrap();
        change(&started(&pod, true), |pod| pod["spec"]["nodeName"] = json!(node))
    };
    world.pods = vec![
        made("leaderTemplate", "chat-1-0", "0", "gpu-1"),
        made("workerTemplate", "chat-1-0-1", "1", "gpu-2"),
    ];
    let replica = one(&world);
    assert_eq!((replica.status.id.as_str(), replica.pod.as_str()), ("chat-1", "chat-1-0"));
    assert_eq!((replica.status.phase, replica.status.nodes.len()), (ReplicaPhase::Ready, 2));
    assert_eq!(decide_with(&world, Some(&plan), &[], at(60), true), Prepared::default());
    let gone = common::plan(2, &world.pools[0], vec![]);
    let marks = decide_with(&world, Some(&gone), &[], at(60), true).actions;
    assert!(matches!(&marks[..], [Action::MarkDraining { pod, .. }] if pod == "chat-1-0"), "{marks:?}");
    world.pods[1] = change(&world.pods[1], |pod| pod["status"]["phase"] = json!("Failed"));
    let ended = decide_with(&world, Some(&gone), &[], at(60), true).actions;
    assert!(matches!(&ended[..], [Action::DeletePod { set: Some(set), .. }] if set == "chat-1"), "{ended:?}");
}
