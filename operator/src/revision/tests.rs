use super::*;
use crate::brain::CanaryReport;
use crate::build::Action;
use crate::validate::Accepted;
use plimsoll_fleet::canary::Standing;
use plimsoll_fleet::{
    ClusterSnapshot, NodeInfo, NodeName, PoolPlan, ReplicaAssignment, ReplicaId, ReplicaPhase, ReplicaStatus,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

fn pool(patch: impl FnOnce(&mut Value)) -> ModelPool {
    let mut pool = json!({
        "apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelPool",
        "metadata": {"name": "chat", "namespace": "default", "uid": "u", "generation": 1},
        "spec": {
            "model": {"name": "llama-3.1-70b", "preset": "llama-3.1-70b"},
            "slo": {"tpot": {"p95": "50ms"}},
            "engine": {"image": "v1", "coldStart": "60s", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            "variants": [{"name": "fp8", "weights": "fp8", "quality": 0.9}],
        },
    });
    patch(&mut pool);
    serde_json::from_value(pool).unwrap()
}

fn image(name: &str) -> ModelPool {
    pool(|p| p["spec"]["engine"]["image"] = json!(name))
}

fn digest(resource: &ModelPool) -> String {
    Configuration::of(&resource.spec).digest()
}

/// The revision of a resource, with annotations.
fn kept(resource: &ModelPool, number: i64, annotations: &[(&str, &str)]) -> ControllerRevision {
    let mut revision = object(resource, &digest(resource), number);
    revision.metadata.uid = Some(format!("uid-{number}"));
    revision.metadata.annotations =
        Some(annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
    revision
}

fn stop_text(reason: &str) -> String {
    let stopped = Stopped { reason: reason.to_owned(), cause: "TPOT fell".to_owned(), at: at(5) };
    serde_json::to_string(&stopped).unwrap()
}

fn replica(id: &str, phase: ReplicaPhase, outdated: bool) -> ReplicaStatus {
    ReplicaStatus {
        id: ReplicaId::new(id).unwrap(),
        pool: "default/chat".parse().unwrap(),
        shape: fleet::Shape {
            variant: "fp8".to_owned(),
            accelerator: "h100".to_owned(),
            tensor_parallel: 2,
            pipeline_parallel: 1,
            data_parallel: 1,
            expert_parallel: 1,
            role: fleet::Role::Mixed,
        },
        nodes: vec![NodeName::new("n1").unwrap()],
        phase,
        address: None,
        plan: 1,
        since: at(0),
        created_at: at(0),
        ready_at: None,
        message: "exit code 1".to_owned(),
        outdated,
        gated: false,
        revision: String::new(),
        ended: false,
        adapter_room: None,
    }
}

/// What the operator writes for a resource with these revisions and replicas.
fn written(
    resource: &ModelPool,
    revisions: Vec<ControllerRevision>,
    replicas: Vec<ReplicaStatus>,
    canary: Option<CanaryReport>,
    now: i64,
) -> Vec<Action> {
    let revisions: Vec<Arc<ControllerRevision>> = revisions.into_iter().map(Arc::new).collect();
    let owned = by_owner(&revisions);
    let own = owned.get("u").cloned().unwrap_or_default();
    let mut in_force = in_force(resource, &own);
    let resource = in_force.earlier.take().unwrap_or_else(|| resource.clone());
    let mut pool = resource.to_fleet().unwrap();
    in_force.tell(&mut pool);
    let assignments = replicas.iter().map(|r| ReplicaAssignment {
        id: r.id.clone(),
        shape: r.shape.clone(),
        nodes: r.nodes.clone(),
        spot: false,
    });
    let plan = PoolPlan {
        pool: pool.id.clone(),
        uid: "u".to_owned(),
        generation: 1,
        outcome: fleet::plan::PoolOutcome::Served,
        replicas: assignments.collect(),
        flows: Vec::new(),
        unserved_rps: 0.0,
        demand: fleet::DemandEstimate::default(),
        load_lines: Vec::new(),
        utilisation: 0.5,
        usd_per_hour: 1.0,
        watts: 700.0,
        grams_co2e_per_hour: 0.0,
        replica_watts: Vec::new(),
        prediction: fleet::plan::Prediction::default(),
        envelope: (1, 4),
        why: fleet::plan::Why::default(),
        today: None,
    };
    let node = NodeInfo {
        name: NodeName::new("n1").unwrap(),
        accelerator: "h100".to_owned(),
        allocatable_gpus: 8,
        foreign_gpus: 0,
        zone: String::new(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        spot: false,
        schedulable: true,
        ready: true,
        fault: String::new(),
    };
    let snapshot = ClusterSnapshot { replicas, nodes: vec![node], ..ClusterSnapshot::default() };
    let accepted = Accepted { pool, outdated: None, stop: in_force.stop };
    steps(&Look {
        resource: &resource,
        accepted: &accepted,
        own: &own,
        plan: Some(&plan),
        snapshot: &snapshot,
        canary: canary.as_ref(),
        now: at(now),
    })
}

fn patches(actions: &[Action]) -> Vec<(String, Value)> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::PatchRevision { revision, patch, .. } => Some((revision.clone(), patch.clone())),
            _ => None,
        })
        .collect()
}

#[test]
fn a_digest_names_what_engines_are_made_from() {
    let plain = digest(&pool(|_| {}));
    assert_ne!(plain, digest(&image("v2")));
    assert_ne!(plain, digest(&pool(|p| p["spec"]["variants"][0]["kv"] = json!("fp8"))));
    assert_ne!(plain, digest(&pool(|p| p["spec"]["maxContextTokens"] = json!(8192))));
    for same in [
        pool(|p| p["spec"]["engine"]["coldStart"] = json!("300s")),
        pool(|p| p["spec"]["scaling"] = json!({"min": 3})),
        pool(|p| p["spec"]["variants"][0]["quality"] = json!(0.95)),
        pool(|p| p["spec"]["rollout"] = json!({"wavePercent": 50})),
        pool(|p| {
            p["spec"]["engine"]["env"] = json!([{"name": "B", "value": "2"}, {"name": "A", "value": "1"}])
        }),
    ] {
        assert_eq!(plain, digest(&same));
    }
}

#[test]
fn what_is_kept_gives_the_same_engines_back() {
    let (old, mut new) = (image("v1"), image("v2"));
    new.spec.engine.cold_start = "10s".into();
    let revision = kept(&old, 1, &[]);
    // As the API server gives it back.
    let read: ControllerRevision = serde_json::from_str(&serde_json::to_string(&revision).unwrap()).unwrap();
    configuration(&read).unwrap().put_into(&mut new.spec);
    assert_eq!(digest(&new), digest(&old));
    assert_eq!(new.spec.engine.cold_start.0, "10s", "what makes no engine stays");
    assert!(read.metadata.name.unwrap().starts_with("chat-"));
}

#[test]
fn every_configuration_is_kept_and_accepted_once_it_serves_alone() {
    let v1 = image("v1");
    let actions = written(&v1, vec![], vec![], None, 0);
    assert!(matches!(&actions[..], [Action::CreateRevision { revision, .. }] if revision.revision == 1));
    let starting = vec![replica("a", ReplicaPhase::Starting, false)];
    assert_eq!(written(&v1, vec![kept(&v1, 1, &[])], starting, None, 0), [], "it does not serve yet");
    let ready = || vec![replica("a", ReplicaPhase::Ready, false)];
    let actions = written(&v1, vec![kept(&v1, 1, &[])], ready(), None, 0);
    assert!(patches(&actions)[0].1["metadata"]["annotations"][ACCEPTED].is_string());
    assert_eq!(written(&v1, vec![kept(&v1, 1, &[(ACCEPTED, "t")])], ready(), None, 0), [], "once");
    let both = vec![replica("a", ReplicaPhase::Ready, false), replica("b", ReplicaPhase::Ready, true)];
    assert_eq!(written(&v1, vec![kept(&v1, 1, &[])], both, None, 0), [], "an older one is left");
}

#[test]
fn a_regression_is_noted_and_taken_back_until_the_spec_changes() {
    let (v1, v2, v3) = (image("v1"), image("v2"), image("v3"));
    let good = || kept(&v1, 1, &[(ACCEPTED, "t")]);
    let both = || vec![replica("a", ReplicaPhase::Ready, true), replica("b", ReplicaPhase::Ready, false)];
    let regressed = |revision: String| {
        Some(CanaryReport { revision, standing: Standing::Regressed, text: "TPOT fell".to_owned() })
    };
    let actions = written(&v2, vec![good(), kept(&v2, 2, &[])], both(), regressed(digest(&v2)), 9);
    let (name, patch) = patches(&actions).remove(0);
    assert_eq!(name, kept(&v2, 2, &[]).name_any());
    let text = patch["metadata"]["annotations"][STOPPED].as_str().unwrap().to_owned();
    assert!(text.contains("TPOT fell") && text.contains(SLO_REGRESSION), "{text}");
    let other = regressed(digest(&v1));
    assert_eq!(written(&v2, vec![good(), kept(&v2, 2, &[])], both(), other, 9), [], "of another revision");

    let bad = || kept(&v2, 2, &[(STOPPED, &text)]);
    let (a, b) = (good(), bad());
    let force = in_force(&v2, &[&a, &b]);
    assert_eq!(force.digest, digest(&v1));
    assert_eq!(force.earlier.as_ref().unwrap().spec.engine.image.as_deref(), Some("v1"));
    let stop = force.stop.clone().unwrap();
    assert!(stop.rolled_back && stop.reason == SLO_REGRESSION);
    for part in ["TPOT fell", &b.name_any(), &a.name_any(), "plimsoll.dev/stopped-"] {
        assert!(stop.message.contains(part), "{}", stop.message);
    }
    let mut pool = v1.to_fleet().unwrap();
    force.tell(&mut pool);
    assert!(pool.rollout.canary.is_none() && !pool.rollout.paused, "the way back waits for nothing");
    assert_eq!(written(&v2, vec![good(), bad()], both(), None, 10), [], "nothing more is to be written");

    let scaled = pool_of(&v2, |p| p["spec"]["scaling"] = json!({"min": 4}));
    assert_eq!(in_force(&scaled, &[&a, &b]).digest, digest(&v1), "another edit does not try it again");
    let force = in_force(&v3, &[&a, &b]);
    assert_eq!((force.digest, force.stop), (digest(&v3), None), "another configuration does");
    let back = written(&v1, vec![good(), bad()], vec![], None, 11);
    assert_eq!(
        patches(&back)[0].1["revision"],
        3,
        "the spec went back by itself: its revision is the newest"
    );
    let (a, b) = (kept(&v1, 3, &[(ACCEPTED, "t")]), bad());
    let force = in_force(&v2, &[&a, &b]);
    assert_eq!((force.digest, force.stop), (digest(&v2), None), "asked for anew");
    let again = patches(&written(&v2, vec![a, b], vec![], None, 12));
    assert_eq!(again[0].1, json!({"revision": 4, "metadata": {"annotations": {STOPPED: null}}}));
}

fn pool_of(resource: &ModelPool, patch: impl FnOnce(&mut Value)) -> ModelPool {
    let mut value = serde_json::to_value(resource).unwrap();
    patch(&mut value);
    serde_json::from_value(value).unwrap()
}

#[test]
fn without_anything_to_go_back_to_the_rollout_stops_where_it_is() {
    let v2 = image("v2");
    let bad = kept(&v2, 2, &[(STOPPED, &stop_text(SLO_REGRESSION))]);
    let never_served = kept(&image("v1"), 1, &[]);
    let force = in_force(&v2, &[&never_served, &bad]);
    let stop = force.stop.clone().unwrap();
    assert!(!stop.rolled_back && force.earlier.is_none());
    assert!(stop.message.contains("no earlier revision that served"), "{}", stop.message);
    let mut pool = v2.to_fleet().unwrap();
    force.tell(&mut pool);
    assert!(pool.rollout.paused);
    let off = pool_of(&v2, |p| p["spec"]["rollout"] = json!({"autoRollback": false}));
    let good = kept(&image("v1"), 1, &[(ACCEPTED, "t")]);
    let stop = in_force(&off, &[&good, &bad]).stop.unwrap();
    assert!(!stop.rolled_back && stop.message.contains("autoRollback is off"), "{}", stop.message);
}

#[test]
fn a_start_that_fails_for_good_is_taken_back() {
    let (v1, v2) = (image("v1"), image("v2"));
    let revisions = |annotations: &[(&str, &str)]| vec![kept(&v1, 1, annotations), kept(&v2, 2, &[])];
    let crashing =
        || vec![replica("a", ReplicaPhase::Ready, true), replica("b", ReplicaPhase::Failed, false)];
    let accepted: &[(&str, &str)] = &[(ACCEPTED, "t")];
    assert_eq!(written(&v2, revisions(accepted), crashing(), None, 100), [], "its time is not up");
    let actions = patches(&written(&v2, revisions(accepted), crashing(), None, 121));
    let text = actions[0].1["metadata"]["annotations"][STOPPED].as_str().unwrap();
    assert!(text.contains(START_FAILED) && text.contains("b did not serve: exit code 1"), "{text}");
    assert_eq!(written(&v2, revisions(&[]), crashing(), None, 1000), [], "there is nothing to go back to");
}

#[test]
fn what_is_replaced_within_one_revision_takes_none_back() {
    // Room for an adapter, say: the older replicas are of the same configuration.
    let (v1, v2) = (image("v1"), image("v2"));
    let of = |revision: &ModelPool| {
        let mut older = replica("a", ReplicaPhase::Ready, true);
        older.revision = digest(revision);
        vec![older, replica("b", ReplicaPhase::Failed, false)]
    };
    let accepted: &[(&str, &str)] = &[(ACCEPTED, "t")];
    let revisions = || vec![kept(&v1, 1, accepted), kept(&v2, 2, accepted)];
    let regressed = || {
        let text = "TPOT fell".to_owned();
        Some(CanaryReport { revision: digest(&v2), standing: Standing::Regressed, text })
    };
    assert_eq!(written(&v2, revisions(), of(&v2), regressed(), 9), []);
    assert_eq!(written(&v2, revisions(), of(&v2), None, 1000), [], "nor does a start that fails");
    assert_eq!(patches(&written(&v2, revisions(), of(&v1), regressed(), 9)).len(), 1);
}

#[test]
fn the_oldest_revisions_are_forgotten_but_for_those_in_use() {
    let now = image("v20");
    let revisions = (1..=20)
        .map(|n| {
            let annotations: &[(&str, &str)] = if n == 1 { &[(ACCEPTED, "t")] } else { &[] };
            kept(&image(&format!("v{n}")), n, annotations)
        })
        .collect();
    let deleted: Vec<String> = written(&now, revisions, vec![], None, 0)
        .into_iter()
        .filter_map(|a| match a {
            Action::DeleteRevision { uid, .. } => Some(uid),
            _ => None,
        })
        .collect();
    let expected: Vec<String> = (2..=9).rev().map(|n| format!("uid-{n}")).collect();
    assert_eq!(deleted, expected, "20 is in force, 1 is what a stop would go back to");
}

#[test]
fn revisions_of_another_pool_of_the_same_name_do_not_count() {
    let mut other = image("v1");
    other.metadata.uid = Some("gone".to_owned());
    let revision = Arc::new(kept(&other, 1, &[]));
    assert_eq!(by_owner(&[revision]).keys().copied().collect::<Vec<_>>(), ["gone"]);
}
