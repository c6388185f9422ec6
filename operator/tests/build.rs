//! From resources and a plan to pods and changes: no cluster needed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use common::*;
use plimsoll_fleet::Plan;
use plimsoll_operator::build::{Action, DeleteReason};
use plimsoll_operator::{OperatorConfig, ReplicaRecord, names};
use rstest::rstest;
use serde_json::{Value, json};

fn created(spec: &str, variant: &str) -> Value {
    let pool = pool("chat", spec);
    let mut assignment = assignment("chat-1", "gpu-1");
    assignment.shape.variant = variant.to_owned();
    let plan = plan(7, &pool, vec![assignment]);
    let prepared = decide(&world(vec![pool]), Some(&plan), &[], at(100));
    assert!(prepared.problems.is_empty(), "{:?}", prepared.problems);
    serde_json::to_value(&pods(&prepared)[0]).unwrap()
}

#[test]
fn a_replica_is_a_pinned_restricted_pod_that_tells_who_it_is() {
    let pod = created(
        "{model: {name: llama-3.1-70b, preset: llama-3.1-70b}, slo: {ttft: {p95: 800ms}},
          placement: {nodeSelector: {pool: a}, tolerations: [{key: team, operator: Exists}]},
          engine: {env: [{name: HF_TOKEN, valueFrom: {secretKeyRef: {name: hf, key: token}}}],
                   resources: {requests: {cpu: '8', memory: 64Gi}}, args: [--max-num-seqs, '64']}}",
        "fp8",
    );
    let meta = &pod["metadata"];
    assert_eq!((&meta["name"], &meta["namespace"]), (&json!("chat-1"), &json!("default")));
    assert_eq!(
        meta["labels"],
        json!({
            "app.kubernetes.io/managed-by": "plimsoll", "app.kubernetes.io/name": "vllm",
            "app.kubernetes.io/component": "engine", "app.kubernetes.io/part-of": "plimsoll",
            "plimsoll.dev/pool": "chat", "plimsoll.dev/replica": "chat-1", "plimsoll.dev/variant": "fp8",
            "plimsoll.dev/accelerator": "h100", "plimsoll.dev/role": "mixed",
            "plimsoll.dev/revision": meta["labels"]["plimsoll.dev/revision"].as_str().unwrap(),
        })
    );
    assert_eq!(
        meta["ownerReferences"],
        json!([{"apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelPool", "name": "chat", "uid": "uid-chat", "controller": true}])
    );
    let record: ReplicaRecord =
        serde_json::from_str(meta["annotations"][names::REPLICA].as_str().unwrap()).unwrap();
    assert_eq!((record.plan, record.served_name.as_str(), record.shape), (7, "llama-3.1-70b", shape(2)));
    let spec = &pod["spec"];
    // Not spec.nodeName: the cluster's own scheduler must bind the pod, so that it accounts for its GPUs.
    assert_eq!(spec["nodeName"], Value::Null);
    assert_eq!(
        spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"],
        json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["gpu-1"]}]}])
    );
    assert_eq!(spec["nodeSelector"], json!({"pool": "a"}));
    // Whoever ends it, its answers have as long as in a drain of our own; then come SIGTERM and its grace.
    let hook = &spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"];
    assert_eq!((&hook[0], &hook[1]), (&json!("python3"), &json!("-c")));
    assert!(hook[2].as_str().unwrap().contains("end = time.monotonic() + 120"), "{hook}");
    assert_eq!(spec["terminationGracePeriodSeconds"], 150);
    assert_eq!(
        spec["tolerations"],
        json!([{"key": "team", "operator": "Exists"},
               {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}])
    );
    // What the restricted pod security standard demands.
    assert_eq!(spec["securityContext"]["runAsNonRoot"], json!(true));
    assert_eq!(spec["securityContext"]["seccompProfile"], json!({"type": "RuntimeDefault"}));
    assert_eq!(spec["automountServiceAccountToken"], json!(false));
    let engine = &spec["containers"][0];
    assert_eq!(
        engine["securityContext"],
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}})
    );
    assert_eq!(
        engine["resources"],
        json!({"limits": {"nvidia.com/gpu": "2"}, "requests": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"}})
    );
    assert_eq!(engine["readinessProbe"]["httpGet"], json!({"path": "/health", "port": 8000}));
    assert_eq!(engine["command"], json!(["vllm", "serve"]));
    assert_eq!(
        engine["args"],
        json!([
            "meta-llama/Llama-3.1-70B-Instruct",
            "--served-model-name",
            "llama-3.1-70b",
            "--host",
            "0.0.0.0",
            "--port",
            "8000",
            "--tensor-parallel-size",
            "2",
            "--dtype",
            "auto",
            "--quantization",
            "fp8",
            "--kv-cache-dtype",
            "auto",
            "--enable-prefix-caching",
            "--enable-prompt-tokens-details",
            "--max-num-seqs",
            "64"
        ])
    );
    let token = engine["env"].as_array().unwrap().iter().find(|v| v["name"] == "HF_TOKEN").unwrap();
    assert_eq!(token["valueFrom"]["secretKeyRef"], json!({"name": "hf", "key": "token"}));
}

const SIM: &str = "{model: {name: m, preset: llama-3.1-8b}, slo: {ttft: {p95: 1s}}, engine: {kind: KIND}, maxContextTokens: 4096}";

#[rstest]
#[case::sglang("sglang", &["--model-path", "meta-llama/Llama-3.1-8B-Instruct", "--tensor-parallel-size", "2", "--context-length", "4096", "--enable-metrics", "--enable-cache-report"])]
#[case::simulated("simulated", &["--listen", "0.0.0.0:8000", "--model", "llama-3.1-8b", "--accelerator", "h100", "--dtype", "fp8"])]
fn each_engine_is_started_its_own_way(#[case] kind: &str, #[case] expected: &[&str]) {
    let pod = created(&SIM.replace("KIND", kind), "fp8");
    let args: Vec<&str> = pod["spec"]["containers"][0]["args"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a.as_str().unwrap())
        .collect();
    for word in expected {
        assert!(args.contains(word), "{word} not in {args:?}");
    }
}

#[rstest]
#[case::vllm("vllm", &["--tensor-parallel-size 1 --data-parallel-size 8 --enable-expert-parallel"], &["--enable-dp-attention"])]
#[case::sglang("sglang", &["--tensor-parallel-size 8 --data-parallel-size 8 --enable-dp-attention --ep-size 8"], &[])]
#[case::simulated("simulated", &["--tensor-parallel 1", "--data-parallel 8 --expert-parallel 8"], &[])]
fn attention_ranks_and_whole_experts_are_asked_for_in_each_engines_words(
    #[case] kind: &str,
    #[case] expected: &[&str],
    #[case] never: &[&str],
) {
    let spec = "{model: {name: m, preset: deepseek-v3}, slo: {ttft: {p95: 1s}}, engine: {kind: KIND}, \
                parallelism: {tensor: [1], data: [8], expert: true}}";
    let pool = pool("chat", &spec.replace("KIND", kind));
    let mut wide = assignment("chat-1", "gpu-1");
    (wide.shape.tensor_parallel, wide.shape.data_parallel, wide.shape.expert_parallel) = (1, 8, 8);
    let plan = plan(1, &pool, vec![wide]);
    let prepared = decide(&world(vec![pool]), Some(&plan), &[], at(0));
    let pod = serde_json::to_value(&pods(&prepared)[0]).unwrap();
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], "8");
    let args: Vec<&str> = container["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    let line = args.join(" ");
    assert!(expected.iter().all(|words| line.contains(words)), "{line}");
    assert!(!never.iter().any(|words| line.contains(words)), "{line}");
}

#[test]
fn weights_may_be_on_a_claim_or_in_an_image() {
    let with = |source: &str| {
        created(
            &format!(
                "{{model: {{name: m, preset: llama-3.1-8b, source: '{source}'}}, slo: {{ttft: {{p95: 1s}}}}}}"
            ),
            "bf16",
        )
    };
    let claim = with("pvc://models/llama/8b");
    let volume = |pod: &Value| {
        pod["spec"]["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "weights").cloned().unwrap()
    };
    assert_eq!(volume(&claim)["persistentVolumeClaim"], json!({"claimName": "models", "readOnly": true}));
    assert_eq!(claim["spec"]["containers"][0]["args"][0], json!("/weights/llama/8b"));
    let image = with("oci://registry.example/llama:8b");
    assert_eq!(volume(&image)["image"], json!({"reference": "registry.example/llama:8b"}));
    assert_eq!(image["spec"]["containers"][0]["args"][0], json!("/weights"));
}

#[test]
fn a_replica_without_a_node_waits_for_capacity_of_its_class() {
    let pool = chat();
    let mut unplaced = assignment("chat-1", "gpu-1");
    unplaced.nodes.clear();
    let plan = plan(1, &pool, vec![unplaced]);
    let prepared = decide(&world(vec![pool]), Some(&plan), &[], at(0));
    let spec = pods(&prepared)[0].spec.clone().unwrap();
    assert_eq!(spec.affinity, None);
    assert_eq!(spec.node_selector.unwrap()["nvidia.com/gpu.product"], "NVIDIA-H100-80GB-HBM3");
}

#[test]
fn building_again_changes_nothing() {
    let pool = chat();
    let plan = plan(1, &pool, vec![assignment("chat-1", "gpu-1"), assignment("chat-2", "gpu-1")]);
    let mut world = world(vec![pool]);
    let first = decide(&world, Some(&plan), &[], at(0));
    assert_eq!(pods(&first).len(), 2);
    world.pods = pods(&first).iter().map(|p| started(p, true)).collect();
    assert_eq!(decide(&world, Some(&plan), &[], at(40)).actions, []);
}

/// A world with chat-1 and chat-2 running, and a plan that keeps only chat-1.
fn shrinking(ready: bool) -> (plimsoll_operator::world::World, Plan) {
    let pool = chat();
    let both = plan(1, &pool, vec![assignment("chat-1", "gpu-1"), assignment("chat-2", "gpu-1")]);
    let mut world = world(vec![pool.clone()]);
    world.pods = pods(&decide(&world, Some(&both), &[], at(0))).iter().map(|p| started(p, ready)).collect();
    (world, plan(2, &pool, vec![assignment("chat-1", "gpu-1")]))
}

fn mark(world: &mut plimsoll_operator::world::World, name: &str, since: jiff::Timestamp) {
    for pod in &mut world.pods {
        if pod.metadata.name.as_deref() == Some(name) {
            let mut marked = (**pod).clone();
            marked
                .metadata
                .annotations
                .get_or_insert_default()
                .insert(names::DRAINING.to_owned(), since.to_string());
            *pod = marked.into();
        }
    }
}

#[test]
fn a_replica_that_serves_drains_before_it_goes() {
    let (mut world, smaller) = shrinking(true);
    let marks = decide(&world, Some(&smaller), &[], at(50)).actions;
    assert!(
        matches!(&marks[..], [Action::MarkDraining { replica, at: t, .. }] if replica.as_str() == "chat-2" && *t == at(50)),
        "{marks:?}"
    );
    mark(&mut world, "chat-2", at(50));
    // Nobody acknowledged yet: wait.
    assert_eq!(decide(&world, Some(&smaller), &["chat-1"], at(60)).actions, []);
    let deleted = |drained: &[&str], now| match &decide(&world, Some(&smaller), drained, now).actions[..] {
        [Action::DeletePod { replica, pods, reason, .. }] => {
            assert_eq!(pods[..], [("chat-2".to_owned(), "pod-chat-2".to_owned())]);
            assert_eq!(replica.as_str(), "chat-2");
            *reason
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(deleted(&["chat-2"], at(60)), DeleteReason::Drained);
    assert_eq!(deleted(&[], at(50 + 120)), DeleteReason::DrainTimeout);
}

#[test]
fn a_dropped_replica_serves_until_its_successors_do_or_the_scheduler_ends_it() {
    let (mut world, _) = shrinking(true);
    let moved = plan(2, &chat(), vec![assignment("chat-1", "gpu-1"), assignment("chat-9", "gpu-1")]);
    let actions = decide(&world, Some(&moved), &[], at(50)).actions;
    assert!(matches!(&actions[..], [Action::CreatePod { .. }]), "{actions:?}");
    let new = pods(&decide(&world, Some(&moved), &[], at(50))).remove(0);
    world.pods.push(started(&new, false));
    assert_eq!(decide(&world, Some(&moved), &[], at(5000)).actions, [], "however long the start takes");
    // In the way of its successor: the scheduler drained it first.
    let ended = decide(&world, Some(&moved), &["chat-2"], at(60)).actions;
    assert!(matches!(&ended[..], [Action::DeletePod { reason: DeleteReason::Drained, .. }]), "{ended:?}");
    world.pods.pop();
    world.pods.push(started(&new, true));
    let marks = decide(&world, Some(&moved), &[], at(70)).actions;
    assert!(
        matches!(&marks[..], [Action::MarkDraining { replica, .. }] if replica.as_str() == "chat-2"),
        "{marks:?}"
    );
}

#[test]
fn a_replica_once_draining_goes_even_if_a_plan_names_it_again_or_there_is_none() {
    let (mut world, _) = shrinking(true);
    mark(&mut world, "chat-2", at(50));
    let both = plan(3, &chat(), vec![assignment("chat-1", "gpu-1"), assignment("chat-2", "gpu-1")]);
    for plan in [Some(&both), None] {
        let actions = decide(&world, plan, &["chat-2"], at(60)).actions;
        assert!(matches!(&actions[..], [Action::DeletePod { .. }]), "{actions:?}");
    }
}

#[test]
fn a_replica_that_never_served_goes_at_once() {
    let (world, smaller) = shrinking(false);
    let actions = decide(&world, Some(&smaller), &[], at(50)).actions;
    assert!(
        matches!(&actions[..], [Action::DeletePod { reason: DeleteReason::NeverServed, .. }]),
        "{actions:?}"
    );
}

#[test]
fn a_plan_for_another_generation_or_another_pool_of_that_name_touches_nothing() {
    let (world, smaller) = shrinking(true);
    let mut old = smaller.clone();
    old.pools[0].generation = 0;
    assert_eq!(decide(&world, Some(&old), &[], at(50)).actions, []);
    let mut other = smaller;
    other.pools[0].uid = "uid-of-an-earlier-chat".to_owned();
    assert_eq!(decide(&world, Some(&other), &[], at(50)).actions, []);
    // Nor does the lack of a plan.
    assert_eq!(decide(&world, None, &[], at(50)).actions, []);
}

#[test]
fn advise_touches_no_pod() {
    let mut pool = chat();
    pool.spec.mode = plimsoll_crds::model_pool::Mode::Advise;
    let plan = plan(1, &pool, vec![assignment("chat-1", "gpu-1")]);
    let actions = decide(&world(vec![pool]), Some(&plan), &[], at(0)).actions;
    assert!(matches!(&actions[..], [Action::SetFinalizers { finalizers, .. }] if finalizers.is_empty()));
}

#[test]
fn what_cannot_be_built_is_a_problem_of_that_pool() {
    let pool = chat();
    let mut wrong = assignment("chat-1", "gpu-1");
    wrong.shape.accelerator = "h900".to_owned();
    let mut wide = assignment("chat-2", "gpu-1");
    wide.nodes.push("gpu-2".parse().unwrap());
    let plan = plan(1, &pool, vec![wrong, wide, assignment("chat-3", "gpu-1")]);
    let prepared = decide(&world(vec![pool]), Some(&plan), &[], at(0));
    assert_eq!(pods(&prepared).len(), 1);
    let problems = &prepared.problems[&"default/chat".parse().unwrap()];
    assert!(problems[0].contains("AcceleratorClass h900"), "{problems:?}");
    assert!(problems[1].contains("spans 2 nodes"), "{problems:?}");
}

#[test]
fn deletion_drains_then_lets_go_and_never_blocks_for_ever() {
    let (mut world, _) = shrinking(true);
    world.pools[0].metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(50)));
    let marks = decide(&world, None, &[], at(51)).actions;
    assert_eq!(marks.iter().filter(|a| matches!(a, Action::MarkDraining { .. })).count(), 2, "{marks:?}");
    mark(&mut world, "chat-1", at(51));
    mark(&mut world, "chat-2", at(51));
    assert_eq!(decide(&world, None, &[], at(60)).actions, []);
    // Twice the drain timeout after the deletion it is let go whatever the pods do.
    let overdue = decide(&world, None, &[], at(50 + 240)).actions;
    assert!(
        matches!(&overdue[..], [Action::SetFinalizers { finalizers, .. }] if finalizers.is_empty()),
        "{overdue:?}"
    );
    world.pods.clear();
    let gone = decide(&world, None, &[], at(61)).actions;
    assert!(
        matches!(&gone[..], [Action::SetFinalizers { finalizers, resource_version, .. }] if finalizers.is_empty() && resource_version == "7"),
        "{gone:?}"
    );
}

#[test]
fn a_new_pool_gets_the_finalizer_beside_those_of_others() {
    let mut pool = chat();
    pool.metadata.finalizers = Some(vec!["example.com/mine".to_owned()]);
    let actions = decide(&world(vec![pool]), None, &[], at(0)).actions;
    assert!(
        matches!(&actions[..], [Action::SetFinalizers { finalizers, .. }] if *finalizers == ["example.com/mine", "plimsoll.dev/drain"]),
        "{actions:?}"
    );
}

#[test]
fn a_pool_with_nothing_to_drain_is_not_held_back() {
    let advise = |pool: &mut plimsoll_crds::ModelPool| {
        pool.spec.mode = plimsoll_crds::model_pool::Mode::Advise;
    };
    let mut pool = chat();
    advise(&mut pool);
    let release = |actions: &[Action]| matches!(actions, [Action::SetFinalizers { finalizers, .. }] if finalizers.is_empty());
    assert!(release(&decide(&world(vec![pool.clone()]), None, &[], at(0)).actions));
    pool.metadata.finalizers = None;
    assert_eq!(decide(&world(vec![pool]), None, &[], at(0)).actions, []);
    // Replicas from the time when it was enforced are drained first, should it be deleted.
    let (mut world, _) = shrinking(true);
    advise(&mut world.pools[0]);
    assert_eq!(decide(&world, None, &[], at(60)).actions, []);
}

#[test]
fn without_finalizers_nothing_is_ever_held_back() {
    let world = world(vec![chat()]);
    let config = OperatorConfig { finalizers: false, ..OperatorConfig::default() };
    let prepared = decide_as(&config, &world, None, &[], at(0), false);
    assert!(
        matches!(&prepared.actions[..], [Action::SetFinalizers { finalizers, .. }] if finalizers.is_empty())
    );
}
