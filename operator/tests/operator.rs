//! The whole operator against a small API and a scheduler of the test's own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;
#[path = "common/fake_api.rs"]
mod fake_api;
#[path = "common/script.rs"]
mod script;

use std::sync::Arc;
use std::time::Duration;

use common::{assignment, at};
use fake_api::FakeApi;
use plimsoll_fleet::ReplicaPhase;
use plimsoll_fleet::canary::Standing;
use plimsoll_operator::{CanaryReport, Observations, Operator, OperatorConfig, PoolObservation};
use script::Script;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

struct Rig {
    api: Arc<FakeApi>,
    script: Script,
    stop: CancellationToken,
    running: Option<tokio::task::JoinHandle<()>>,
}

impl Rig {
    fn new() -> Self {
        Self::forbidding(&[])
    }

    fn forbidding(collections: &[&str]) -> Self {
        let api = FakeApi::new();
        collections.iter().for_each(|c| api.forbid(c));
        api.put("acceleratorclasses", "", serde_json::to_value(common::class("h100")).unwrap());
        api.put("nodes", "", serde_json::to_value(&*common::node("gpu-1", 8)).unwrap());
        let mut rig = Self { api, script: Script::new(), stop: CancellationToken::new(), running: None };
        rig.start("first", Duration::from_secs(600));
        rig
    }

    fn start(&mut self, identity: &str, drain_timeout: Duration) {
        let config = OperatorConfig {
            identity: identity.to_owned(),
            drain_timeout,
            debounce: Duration::from_millis(5),
            resync: Duration::from_millis(100),
            ..OperatorConfig::default()
        };
        self.stop = CancellationToken::new();
        let run = Operator::run_with(self.api.client(), self.script.clone(), config, self.stop.clone());
        self.running = Some(tokio::spawn(run));
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        self.running.take().unwrap().await.unwrap();
    }

    fn apply(&self, name: &str, spec: Value) {
        let object = json!({"apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelPool", "metadata": {"name": name}, "spec": spec});
        self.api.put("modelpools", "default", object);
    }

    fn pool(&self, name: &str) -> Value {
        self.api.get("modelpools", "default", name).unwrap_or_default()
    }

    /// Publishes a plan that wants these replicas for a pool.
    fn plan(&self, number: u64, pool: &str, replicas: &[&str]) {
        let resource: plimsoll_crds::ModelPool = serde_json::from_value(self.pool(pool)).unwrap();
        let replicas = replicas.iter().map(|id| assignment(id, "gpu-1")).collect();
        self.script.plan.send_replace(Some(Arc::new(common::plan(number, &resource, replicas))));
    }

    fn pods(&self) -> Vec<String> {
        self.api.list("pods").iter().map(|p| p["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Plays kubelet: every pod serves.
    fn serve_all(&self) {
        for pod in self.api.list("pods") {
            let name = pod["metadata"]["name"].as_str().unwrap();
            let status = json!({"metadata": {"name": name}, "spec": {"nodeName": "gpu-1"}, "status": {
                "phase": "Running", "podIP": "10.0.0.7",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at(0)}]}});
            self.api.put("pods", "default", status);
        }
    }

    fn condition(&self, pool: &str, type_: &str) -> (String, String, String) {
        let pool = self.pool(pool);
        let found = pool["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|c| c["type"] == type_)
            .cloned();
        let text =
            |field: &str| found.as_ref().and_then(|c| c[field].as_str()).unwrap_or_default().to_owned();
        (text("status"), text("reason"), text("message"))
    }

    fn events(&self, reason: &str) -> Vec<String> {
        let events = self.api.list("events");
        events
            .iter()
            .filter(|e| e["reason"] == reason)
            .map(|e| e["message"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

fn chat_spec() -> Value {
    json!({"model": {"name": "llama-3.1-70b", "preset": "llama-3.1-70b"}, "slo": {"ttft": {"p95": "800ms"}}})
}

/// A rig with a pool `chat` of two replicas that serve.
async fn serving() -> Rig {
    serving_in(Rig::new()).await
}

async fn serving_in(rig: Rig) -> Rig {
    rig.apply("chat", chat_spec());
    until("the pool is in a snapshot", || {
        rig.script.last().is_some_and(|s| s.pools.len() == 1 && s.nodes.len() == 1)
    })
    .await;
    until("the pool has the finalizer", || {
        rig.pool("chat")["metadata"]["finalizers"] == json!(["plimsoll.dev/drain"])
    })
    .await;
    rig.plan(1, "chat", &["chat-1", "chat-2"]);
    until("two pods", || rig.pods() == ["chat-1", "chat-2"]).await;
    rig.serve_all();
    until("the status says so", || rig.pool("chat")["status"]["summary"]["ready"] == "2/2").await;
    rig
}

#[tokio::test(flavor = "multi_thread")]
async fn from_plan_to_pods_to_drain() {
    let mut rig = serving().await;
    assert_eq!(rig.condition("chat", "Ready").0, "True");
    assert_eq!(rig.pool("chat")["status"]["summary"]["shape"], "2× fp8 TP2 H100");
    until("the scheduler sees both ready", || {
        rig.script
            .last()
            .is_some_and(|s| s.replicas.iter().filter(|r| r.phase == ReplicaPhase::Ready).count() == 2)
    })
    .await;
    rig.plan(2, "chat", &["chat-1"]);
    until("the scheduler sees chat-2 draining", || {
        rig.script.last().is_some_and(|s| {
            s.replicas.iter().any(|r| r.id.as_str() == "chat-2" && r.phase == ReplicaPhase::Draining)
        })
    })
    .await;
    assert_eq!(rig.pods().len(), 2, "it is not deleted before the acknowledgement");
    let drained =
        Observations { drained: ["chat-2".parse().unwrap()].into(), agents: 1, ..Observations::default() };
    rig.script.observations.send_replace(Arc::new(drained));
    until("chat-2 is gone", || rig.pods() == ["chat-1"]).await;
    until("every scaling is explained", || rig.events("Scaled").len() == 2).await;
    let told = rig.events("Scaled");
    assert!(
        told.iter().any(|m| m.starts_with("2× fp8 TP2 H100 → 1× fp8 TP2 H100: spec changed")),
        "{told:?}"
    );
    until("the plan is published", || {
        rig.api.get("fleetplans", "", "current").is_some_and(|p| p["spec"]["number"] == 2)
    })
    .await;
    assert_eq!(rig.api.created("pods"), 2);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_or_a_second_operator_makes_no_duplicates() {
    let mut rig = serving().await;
    rig.stop().await;
    let lease = rig.api.get("leases", "default", "plimsoll-operator").unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "", "the Lease is released");
    rig.script.restart();
    rig.start("second", Duration::from_secs(600));
    until("the second operator pushes both replicas", || {
        rig.script.last().is_some_and(|s| s.replicas.len() == 2)
    })
    .await;
    // A third competes for the Lease and must not act.
    let mut third =
        Rig { api: rig.api.clone(), script: Script::new(), stop: CancellationToken::new(), running: None };
    third.start("third", Duration::from_secs(600));
    rig.plan(2, "chat", &["chat-1", "chat-2", "chat-3"]);
    until("the third replica", || rig.pods().len() == 3).await;
    assert_eq!(rig.api.created("pods"), 3);
    assert_eq!(third.script.last(), None);
    until("one Event for each scaling", || rig.events("Scaled").len() == 2).await;
    rig.stop().await;
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_starts_again_under_its_name_is_heard() {
    let mut rig = serving().await;
    rig.stop().await;
    rig.script.pushed.lock().clear();
    rig.start("first", Duration::from_secs(600));
    until("its snapshot is not taken for an old one", || rig.script.last().is_some()).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_objects_are_answered_and_disturb_no_other() {
    let mut rig = serving().await;
    rig.apply("copy", chat_spec());
    rig.apply("invalid", json!({"model": {"name": "x", "preset": "phi-5"}, "slo": {"ttft": {"p95": "0ms"}}}));
    // Not even readable as a ModelPool.
    rig.apply("broken", json!({"model": "phi-4", "slo": []}));
    until("the copy is told whose the name is", || rig.condition("copy", "Accepted").1 == "NameTaken").await;
    assert!(rig.condition("copy", "Accepted").2.contains("ModelPool default/chat"));
    until("the invalid one is told why", || rig.condition("invalid", "Accepted").1 == "Invalid").await;
    let message = rig.condition("invalid", "Accepted").2;
    assert!(
        message.contains("spec.model.preset")
            && message.contains("phi-4")
            && message.contains("spec.slo.ttft.p95"),
        "{message}"
    );
    until("the broken one is told", || rig.condition("broken", "Accepted").1 == "Unreadable").await;
    until("each has its Event", || rig.events("Invalid").len() == 2 && rig.events("NameTaken").len() == 1)
        .await;
    rig.plan(2, "chat", &["chat-1", "chat-2", "chat-3"]);
    until("chat goes on scaling", || rig.pods().len() == 3).await;
    let names: Vec<String> = rig.script.last().unwrap().pools.iter().map(|p| p.id.to_string()).collect();
    assert_eq!(names, ["default/chat"]);
    rig.api.delete("modelpools", "default", "chat");
    rig.plan(3, "chat", &[]);
    until("the freed name goes to the copy", || rig.condition("copy", "Accepted").0 == "True").await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_drains_and_finishes() {
    let mut rig = serving().await;
    rig.api.delete("modelpools", "default", "chat");
    until("both drain", || {
        let draining = |p: &Value| !p["metadata"]["annotations"]["plimsoll.dev/draining"].is_null();
        rig.api.list("pods").iter().filter(|p| draining(p)).count() == 2
    })
    .await;
    assert!(rig.api.get("modelpools", "default", "chat").is_some(), "it waits for the drain");
    let drained = ["chat-1", "chat-2"].map(|id| id.parse().unwrap());
    rig.script
        .observations
        .send_replace(Arc::new(Observations { drained: drained.into(), ..Observations::default() }));
    until("the pool is gone", || rig.api.get("modelpools", "default", "chat").is_none()).await;
    assert_eq!(rig.pods(), Vec::<String>::new());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_finishes_although_nobody_acknowledges() {
    let mut rig = serving().await;
    rig.stop().await;
    rig.start("impatient", Duration::from_millis(300));
    rig.api.delete("modelpools", "default", "chat");
    until("the pool is gone", || rig.api.get("modelpools", "default", "chat").is_none()).await;
    assert_eq!(rig.pods(), Vec::<String>::new());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_restarts_is_told_again_and_its_absence_changes_nothing() {
    let mut rig = serving().await;
    rig.script.plan.send_replace(None);
    rig.script.restart();
    until("the snapshot is pushed again", || rig.script.last().is_some_and(|s| s.replicas.len() == 2)).await;
    assert_eq!(rig.pods().len(), 2);
    rig.plan(1, "chat", &["chat-1", "chat-2", "chat-3"]);
    until("it is followed again", || rig.pods().len() == 3).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_errors_are_survived() {
    let mut rig = serving().await;
    rig.api.fail_next(12);
    rig.plan(2, "chat", &["chat-1", "chat-2", "chat-3"]);
    until("the failures are through", || rig.api.failures_left() == 0).await;
    until("the third replica", || rig.pods().len() == 3).await;
    assert_eq!(rig.api.created("pods"), 3);
    rig.stop().await;
}

/// What the scheduler says of the canary of a revision.
fn canary(rig: &Rig, revision: &str, standing: Standing) {
    let canary =
        CanaryReport { revision: revision.to_owned(), standing, text: "TPOT met by 60 % of 300".to_owned() };
    let seen = PoolObservation { rps: 1.0, canary: Some(canary), ..PoolObservation::default() };
    let pools = [("default/chat".parse().unwrap(), seen)].into();
    rig.script.observations.send_replace(Arc::new(Observations { pools, ..Observations::default() }));
}

/// The revision in force and the replicas that are not of it, as the scheduler is told.
fn in_force(rig: &Rig) -> (String, Vec<String>) {
    let last = rig.script.last().unwrap_or_default();
    let outdated = last.replicas.iter().filter(|r| r.outdated).map(|r| r.id.to_string()).collect();
    (last.pools.first().map(|p| p.revision.clone()).unwrap_or_default(), outdated)
}

fn image_of(rig: &Rig, pod: &str) -> Value {
    rig.api.get("pods", "default", pod).unwrap_or_default()["spec"]["containers"][0]["image"].clone()
}

fn with_image(image: &str) -> Value {
    let mut spec = chat_spec();
    spec["engine"] = json!({"image": image});
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_regression_is_taken_back_and_stays_so_over_a_restart() {
    let mut rig = serving().await;
    let accepted = |rig: &Rig| {
        let revisions = rig.api.list("controllerrevisions");
        revisions.iter().filter(|r| r["metadata"]["annotations"]["plimsoll.dev/accepted"].is_string()).count()
    };
    until("what serves is kept and accepted", || accepted(&rig) == 1).await;
    let (first, _) = in_force(&rig);
    let pod = rig.api.get("pods", "default", "chat-1").unwrap();
    assert_eq!(pod["metadata"]["labels"]["plimsoll.dev/revision"], first.as_str());

    rig.apply("chat", with_image("worse:2"));
    until("both replicas are outdated", || in_force(&rig).1 == ["chat-1", "chat-2"]).await;
    let (second, _) = in_force(&rig);
    assert_ne!(first, second);
    rig.plan(2, "chat", &["chat-2", "chat-3"]);
    until("the canary's pod", || image_of(&rig, "chat-3") == "worse:2").await;
    canary(&rig, &second, Standing::Watching);
    rig.serve_all();
    until("the canary is told of", || rig.condition("chat", "Progressing").2.contains("being judged")).await;
    assert!(rig.pods().contains(&"chat-1".to_owned()), "what it is compared with is the scheduler's to end");

    canary(&rig, &second, Standing::Regressed);
    until("the older configuration is in force", || {
        in_force(&rig) == (first.clone(), vec!["chat-3".to_owned()])
    })
    .await;
    until("it is said", || {
        let (status, reason, message) = rig.condition("chat", "Progressing");
        (status.as_str(), reason.as_str()) == ("False", "SLORegression")
            && message.contains("TPOT met by 60 % of 300")
            && message.contains(&format!("chat-{second} was taken back"))
    })
    .await;
    assert_eq!(rig.events("RolloutStopped").len(), 1);
    let why = rig.pool("chat")["status"]["why"].to_string();
    assert!(why.contains("was taken back"), "{why}");

    rig.stop().await;
    rig.script.restart();
    rig.start("second", Duration::from_secs(600));
    until("a new operator knows it", || in_force(&rig) == (first.clone(), vec!["chat-3".to_owned()])).await;
    assert!(rig.script.pushed.lock().iter().all(|s| s.pools[0].revision == first), "from its first word on");
    rig.plan(3, "chat", &["chat-2", "chat-4"]);
    until("the successor of the canary", || rig.pods().contains(&"chat-4".to_owned())).await;
    assert_ne!(image_of(&rig, "chat-4"), "worse:2");

    rig.apply("chat", with_image("better:3"));
    until("another configuration is tried", || in_force(&rig).1.len() >= 3 && in_force(&rig).0 != first)
        .await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_grant_for_revisions_a_rollout_stops_and_is_not_taken_back() {
    let mut rig = serving_in(Rig::forbidding(&["controllerrevisions"])).await;
    rig.apply("chat", with_image("worse:2"));
    until("both replicas are outdated", || in_force(&rig).1 == ["chat-1", "chat-2"]).await;
    let (second, _) = in_force(&rig);
    rig.plan(2, "chat", &["chat-2", "chat-3"]);
    until("the canary's pod", || image_of(&rig, "chat-3") == "worse:2").await;
    canary(&rig, &second, Standing::Regressed);
    until("it is said, with the remedy", || {
        let (status, reason, message) = rig.condition("chat", "Progressing");
        (status.as_str(), reason.as_str()) == ("False", "SLORegression")
            && message.contains("upgrade the chart")
    })
    .await;
    assert_eq!(in_force(&rig).0, second);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_made_anew_takes_over_what_runs() {
    let mut rig = serving().await;
    let uids = |rig: &Rig| -> Vec<Value> {
        rig.api.list("pods").iter().map(|p| p["metadata"]["uid"].clone()).collect()
    };
    let before = uids(&rig);
    // Everything is gone but the cluster's own objects: no Lease, no operator, a scheduler that has planned nothing.
    rig.stop().await;
    rig.api.delete("leases", "default", "plimsoll-operator");
    rig.script = Script::new();
    rig.start("installed-again", Duration::from_secs(600));
    until("both replicas are told of, with their shapes", || {
        rig.script.last().is_some_and(|s| {
            s.replicas.len() == 2
                && s.replicas.iter().all(|r| r.phase == ReplicaPhase::Ready && r.shape == common::shape(2))
        })
    })
    .await;
    // Its first plan has the number 1 again, and names what runs.
    rig.plan(1, "chat", &["chat-1", "chat-2"]);
    until("the plan is in force", || rig.pool("chat")["status"]["plan"] == json!(1)).await;
    rig.plan(2, "chat", &["chat-1", "chat-2", "chat-3"]);
    until("it scales", || rig.pods().len() == 3).await;
    assert_eq!(uids(&rig)[..2], before[..], "no replica was restarted");
    assert_eq!(rig.api.created("pods"), 3);
    rig.stop().await;
}
