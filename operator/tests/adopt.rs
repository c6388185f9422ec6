//! Engines of others that a pool adopts: what is read of them, what is said of what cannot be, and that nothing is written.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::*;
use k8s_openapi::api::core::v1::Pod;
use plimsoll_crds::ModelPool;
use plimsoll_fleet::plan::TodaysFleet;
use plimsoll_fleet::{AdoptedReplica, ClusterSnapshot};
use plimsoll_operator::build::Action;
use plimsoll_operator::snapshot;
use plimsoll_operator::status::pool::{Facts, InForce, status};
use plimsoll_operator::validate::Accepted;
use plimsoll_operator::world::World;
use rstest::rstest;
use serde_json::{Value, json};

fn adopting(name: &str, more: &str) -> ModelPool {
    pool(
        name,
        &format!(
            "{{model: {{name: {name}, preset: llama-3.1-70b}}, slo: {{tpot: {{p95: 50ms}}}}, mode: Advise,
               adopt: {{selector: {{matchLabels: {{app: vllm}}}}{more}}}}}"
        ),
    )
}

fn pod(name: &str, labels: Value, gpus: u32, args: &[&str]) -> Value {
    let mut all = json!({"app": "vllm"});
    all.as_object_mut().unwrap().extend(labels.as_object().unwrap().clone());
    json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": all},
        "spec": {"nodeName": "gpu-1", "containers": [
            {"name": "proxy", "image": "envoy", "args": ["--model", "no"]},
            {"name": "engine", "image": "vllm/vllm-openai:v0.11.0", "args": args,
             "resources": {"limits": {"nvidia.com/gpu": gpus.to_string()}}}]},
        "status": {"phase": "Running", "podIP": "10.0.0.9", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn made(pods: Vec<Value>) -> Vec<Arc<Pod>> {
    pods.into_iter().map(|p| Arc::new(serde_json::from_value(p).unwrap())).collect()
}

fn look(pools: Vec<ModelPool>, pods: Vec<Value>) -> (World, ClusterSnapshot) {
    let world = World { foreign_pods: made(pods), ..world(pools) };
    let snapshot = snapshot::snapshot(&world, &validated(&world), &[], &[]);
    (world, snapshot)
}

const TP4: &[&str] = &["--model", "meta-llama/Llama-3.1-70B-Instruct", "--tensor-parallel-size", "4"];

#[test]
fn a_deployments_pods_become_adopted_engines_and_nothing_is_changed() {
    let mut waiting = pod("vllm-b", json!({}), 4, TP4);
    waiting["status"]["conditions"][0]["status"] = json!("False");
    let other_team = {
        let mut p = pod("vllm-c", json!({}), 1, TP4);
        p["metadata"]["namespace"] = json!("other");
        p
    };
    let mut done = pod("vllm-d", json!({}), 4, TP4);
    done["status"]["phase"] = json!("Succeeded");
    let (world, snapshot) =
        look(vec![adopting("chat", "")], vec![pod("vllm-a", json!({}), 4, TP4), waiting, other_team, done]);
    let [a, b] = &snapshot.adopted[..] else { panic!("{:?}", snapshot.adopted) };
    assert_eq!((a.name.as_str(), a.ready, a.held(), a.copies), ("vllm-a", true, 4, 1));
    assert_eq!(a.shape.as_ref().unwrap().to_string(), "bf16 TP4 H100");
    assert_eq!((b.ready, b.problem.as_str()), (false, ""));
    // They hold accelerators, so nobody is given those.
    assert_eq!(snapshot.nodes[0].foreign_gpus, 9);
    assert!(snapshot.replicas.is_empty());
    // Whatever a plan says, no pod is touched.
    let plan = plan(1, &world.pools[0], vec![assignment("chat-1", "gpu-1")]);
    let actions = decide(&world, Some(&plan), &[], at(0)).actions;
    assert!(
        matches!(&actions[..], [Action::SetFinalizers { finalizers, .. }] if finalizers.is_empty()),
        "{actions:?}"
    );
}

#[rstest]
#[case(2, &["--model", "m", "-tp", "4"], "GroupIncomplete: its arguments ask for 4 accelerators and it holds 2")]
#[case(1, &["--model", "m-AWQ"], "NoVariant: it runs int4 weights")]
#[case(5, &["--model", "m", "-tp", "5"], "WrongModel: TP5 PP1 does not divide")]
#[case(0, TP4, "NoAccelerators: it asks for no accelerator")]
fn what_is_not_understood_has_a_named_reason(#[case] gpus: u32, #[case] args: &[&str], #[case] said: &str) {
    let (_, snapshot) = look(vec![adopting("chat", "")], vec![pod("vllm-a", json!({}), gpus, args)]);
    let [a] = &snapshot.adopted[..] else { panic!("{:?}", snapshot.adopted) };
    assert_eq!((&a.shape, a.held()), (&None, gpus));
    assert!(a.problem.starts_with(said), "{}", a.problem);
}

#[test]
fn pods_nowhere_or_on_unknown_hardware_or_of_unknown_engines_are_named() {
    let mut unbound = pod("a", json!({}), 4, TP4);
    unbound["spec"]["nodeName"] = json!("");
    let mut strange = pod("b", json!({}), 4, TP4);
    strange["spec"]["nodeName"] = json!("gpu-9");
    let mut training = pod("c", json!({}), 2, &["python", "train.py"]);
    training["spec"]["containers"][1]["image"] = json!("pytorch");
    let (_, snapshot) = look(vec![adopting("chat", "")], vec![unbound, strange, training]);
    let reasons: Vec<&str> = snapshot.adopted.iter().map(|a| a.problem.split(':').next().unwrap()).collect();
    assert_eq!(reasons, ["Unscheduled", "UnknownAccelerator", "UnknownEngine"]);
    assert_eq!(snapshot.adopted[2].held(), 2, "its cost counts all the same");
}

#[rstest]
#[case("", json!({"leaderworkerset.sigs.k8s.io/name": "lws", "leaderworkerset.sigs.k8s.io/group-index": "0"}), "lws-0")]
#[case("", json!({"stormservice.orchestration.aibrix.ai/podset-name": "ps-1"}), "ps-1")]
#[case("", json!({"ray.io/cluster": "ray"}), "ray")]
#[case(", groupLabels: [team/set]", json!({"team/set": "s1", "ray.io/cluster": "ray"}), "s1")]
fn pods_of_one_group_are_one_engine(#[case] more: &str, #[case] labels: Value, #[case] name: &str) {
    let leader = pod("w-0", labels.clone(), 4, &["--model", "m", "-tp", "4", "-pp", "2"]);
    // A worker joins the leader's Ray cluster and names no model.
    let worker = pod("w-0-1", labels, 4, &["ray", "start", "--block"]);
    let (_, snapshot) = look(vec![adopting("chat", more)], vec![worker, leader]);
    let [a] = &snapshot.adopted[..] else { panic!("{:?}", snapshot.adopted) };
    assert_eq!((a.name.as_str(), a.held()), (name, 8));
    assert_eq!(a.shape.as_ref().unwrap().to_string(), "bf16 TP4 PP2 H100", "{}", a.problem);
}

#[test]
fn data_parallel_copies_count_each() {
    let args = ["--model", "m-FP8", "-tp", "2", "--data-parallel-size", "4"];
    let (_, snapshot) = look(vec![adopting("chat", "")], vec![pod("a", json!({}), 8, &args)]);
    let a = &snapshot.adopted[0];
    assert_eq!((a.copies, a.shape.as_ref().unwrap().to_string().as_str()), (4, "fp8 TP2 H100"));
}

#[test]
fn a_pod_belongs_to_one_pool_and_enforcing_pools_adopt_nothing() {
    let (_, snapshot) =
        look(vec![adopting("zeta", ""), adopting("alpha", "")], vec![pod("a", json!({}), 4, TP4)]);
    let said: Vec<(String, bool)> =
        snapshot.adopted.iter().map(|a| (a.pool.to_string(), a.shape.is_some())).collect();
    assert_eq!(said, [("default/alpha".to_owned(), true), ("default/zeta".to_owned(), false)]);
    assert!(snapshot.adopted[1].problem.starts_with("AdoptedElsewhere: pool default/alpha"));
    let mut enforcing = adopting("chat", "");
    enforcing.spec.mode = plimsoll_crds::model_pool::Mode::Enforce;
    let (world, snapshot) = look(vec![enforcing], vec![pod("a", json!({}), 4, TP4)]);
    assert!(snapshot.adopted.is_empty());
    let rejected = validated(&world).pools[0].verdict.clone().unwrap_err();
    assert!(rejected.message.contains("set mode: Advise; to hand the model over"), "{}", rejected.message);
}

/// The status of a pool that adopts these, with a plan that compares.
fn status_of(
    adopted: &[AdoptedReplica],
    today: Option<TodaysFleet>,
) -> plimsoll_crds::model_pool::ModelPoolStatus {
    let resource = adopting("chat", "");
    let mut plan = plan(3, &resource, vec![assignment("chat-1", "gpu-1")]);
    plan.pools[0].today = today;
    let accepted = Accepted { pool: resource.to_fleet().unwrap(), outdated: None, stop: None };
    let adopted: Vec<_> = adopted.iter().collect();
    status(&Facts {
        resource: &resource,
        verdict: Ok(&accepted),
        before: None,
        plan: Some(InForce { number: 3, created_at: at(1), trigger: "spec changed", pool: &plan.pools[0] }),
        replicas: &[],
        adopted: &adopted,
        rollout: None,
        observation: None,
        connected: true,
        problems: &[],
        keeps_revisions: true,
        refresh_observed: false,
        now: at(2),
    })
}

#[test]
fn the_status_shows_today_beside_the_advice() {
    let (_, snapshot) = look(
        vec![adopting("chat", "")],
        vec![pod("a", json!({}), 4, TP4), pod("b", json!({}), 1, &["--model", "m-AWQ"])],
    );
    let today = TodaysFleet {
        fleet: "1× bf16 TP4 H100 + 1 not understood".to_owned(),
        replicas: 2,
        ready: 2,
        unknown: 1,
        usd_per_hour: 11.5,
        max_rps: 2.345,
        misses: vec!["bf16 TP4 H100: TPOT p95 ≤ 5 ms missed".to_owned()],
    };
    let status = status_of(&snapshot.adopted, Some(today));
    let adopted = status.adopted.unwrap();
    assert_eq!((adopted.replicas, adopted.ready_replicas, adopted.accelerators), (2, 2, 5));
    assert_eq!(
        (adopted.usd_per_hour, adopted.max_rps, adopted.saving_usd_per_hour),
        (11.5, Some(2.35), Some(6.9))
    );
    assert!(adopted.problems[0].starts_with("b: NoVariant"), "{:?}", adopted.problems);
    let why = status.summary.unwrap().why;
    assert!(
        why.starts_with("advice only: today 1× bf16 TP4 H100 + 1 not understood at $11.50/h for ≤ 2.3 rps; advised 1× fp8 TP2 H100 at $4.60/h"),
        "{why}"
    );
    assert!(why.contains("saves $6.90/h: cheapest"), "{why}");
    assert!(status.why.iter().any(|l| l.starts_with("today's bf16 TP4 H100: TPOT")), "{:?}", status.why);
    // HPA and the like count Plimsoll's own replicas.
    assert_eq!(status.replicas, 0);
}

#[test]
fn a_selector_that_finds_nothing_is_said() {
    let status = status_of(&[], None);
    assert!(status.summary.unwrap().why.starts_with("adopt: no running pod"));
    assert_eq!(status.adopted.unwrap().replicas, 0);
}
