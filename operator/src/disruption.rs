//! A PodDisruptionBudget for each pool, so that `kubectl drain` and autoscalers move its replicas one after another.
//!
//! `minAvailable` is one less than the replicas that the plan wants: an evicted replica is replaced, and the next may go once
//! its successor serves. (`maxUnavailable` would count against the scale subresource, whose replicas are `spec.scaling.min`.)
//! A pool of one replica lets it go at once; a budget of one would hold a drain up for ever. Replicas that do not serve may
//! always go. The eviction API refuses pods that two budgets select: where somebody else has made one for a pool's pods, that
//! one counts and ours goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::{Selector, SelectorExt};
use kube::{Client, Resource, ResourceExt};
use plimsoll_crds::model_pool::EngineKind;
use plimsoll_fleet::Plan;
use plimsoll_fleet::pool::Mode;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::apply::explain;
use crate::build::current_plan;
use crate::events::{Events, Note, reference};
use crate::names;
use crate::validate::Validated;

/// Time between two looks at what there is: one list request each, however many pools there are.
const RECHECK: Duration = Duration::from_secs(60);
/// Longest time one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A budget that there should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    owner: ObjectReference,
    owner_uid: String,
    /// Labels of one of its pods, to tell which other budgets select them.
    pod_labels: BTreeMap<String, String>,
    body: Value,
}

impl Wanted {
    /// The budget's spec.
    pub fn spec(&self) -> &Value {
        &self.body["spec"]
    }
}

/// By namespace and name.
pub type AllWanted = BTreeMap<(String, String), Wanted>;

/// The budgets that there should be: one for each pool that has replicas, and a plan that says how many it should have.
pub fn wanted(validated: &Validated, plan: Option<&Plan>, pods: &[Arc<Pod>]) -> AllWanted {
    let mut samples: BTreeMap<(String, &str), &Arc<Pod>> = BTreeMap::new();
    for pod in pods {
        let Some(pool) = pod.labels().get(names::POOL) else { continue };
        let sample = samples.entry((pod.namespace().unwrap_or_default(), pool)).or_insert(pod);
        // Always the same one, in whatever order they come.
        if pod.metadata.name < sample.metadata.name {
            *sample = pod;
        }
    }
    let mut all = AllWanted::new();
    for (resource, accepted) in validated.accepted() {
        let id = &accepted.pool.id;
        let run = accepted.pool.mode == Mode::Enforce && resource.spec.engine.kind != EngineKind::External;
        let label = names::label_value(id.name());
        let sample = samples.get(&(id.namespace().to_owned(), label.as_str()));
        let planned = current_plan(plan, accepted);
        let (true, Some(sample), Some(planned)) = (run, sample, planned) else { continue };
        let name = format!("{label}-engines");
        let least = planned.replicas.len().saturating_sub(1);
        let selector = BTreeMap::from([(names::MANAGED_BY, names::PLIMSOLL), (names::POOL, label.as_str())]);
        let body = json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {
                "name": name,
                "labels": selector,
                "ownerReferences": Vec::from_iter(resource.controller_owner_ref(&())),
            },
            "spec": {
                "minAvailable": least,
                "selector": {"matchLabels": selector},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        });
        // The replica's own name is no reason to look again.
        let pod_labels = sample
            .labels()
            .iter()
            .filter(|(key, _)| *key != names::REPLICA)
            .map(|(k, v)| (k.clone(), v.clone()));
        let wanted = Wanted {
            owner: reference(resource),
            owner_uid: accepted.pool.uid.clone(),
            pod_labels: pod_labels.collect(),
            body,
        };
        all.insert((id.namespace().to_owned(), name), wanted);
    }
    all
}

/// What to do about one budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It is as it should be.
    Keep,
    /// Create or correct it.
    Apply,
    /// There is one of that name that is not this pool's.
    Taken,
    /// Another one selects the pool's pods.
    Covered {
        /// Its name.
        by: String,
        /// UID of ours, which must go.
        ours: Option<String>,
    },
}

/// Decides from the budgets of the pool's namespace.
pub fn step(name: &str, wanted: &Wanted, existing: &[&PodDisruptionBudget]) -> Step {
    let named = existing.iter().find(|b| b.name_any() == name);
    let is_ours = |b: &PodDisruptionBudget| b.owner_references().iter().any(|o| o.uid == wanted.owner_uid);
    let selects = |b: &&&PodDisruptionBudget| {
        let selector = b.spec.as_ref().and_then(|s| s.selector.clone());
        selector.and_then(|s| Selector::try_from(s).ok()).is_some_and(|s| s.matches(&wanted.pod_labels))
    };
    let other = existing.iter().filter(|b| !is_ours(b)).find(selects);
    match (named, other) {
        (Some(named), _) if !is_ours(named) => Step::Taken,
        (named, Some(other)) => {
            Step::Covered { by: other.name_any(), ours: named.and_then(|b| b.metadata.uid.clone()) }
        }
        (None, None) => Step::Apply,
        (Some(named), None) => {
            let is = serde_json::to_value(&named.spec).unwrap_or_default();
            if is == wanted.body["spec"] { Step::Keep } else { Step::Apply }
        }
    }
}

/// Keeps budgets as wanted until `stop`.
pub async fn run(
    client: Client,
    field_manager: String,
    mut wanted: watch::Receiver<Option<Arc<AllWanted>>>,
    events: Events,
    stop: CancellationToken,
) {
    let mut may_list = true;
    loop {
        let asked = wanted.borrow_and_update().clone();
        if let Some(asked) = asked.filter(|a| !a.is_empty()) {
            let all: Api<PodDisruptionBudget> = Api::all(client.clone());
            match tokio::time::timeout(REQUEST_TIMEOUT, all.list(&ListParams::default())).await {
                Ok(Ok(list)) => {
                    may_list = true;
                    look(&client, &field_manager, &list.items, &asked, &events).await;
                }
                Ok(Err(error)) if may_list => {
                    may_list = false;
                    let error = explain(&error);
                    info!(%error, "PodDisruptionBudgets cannot be listed and none is made; the chart's role grants it");
                }
                Ok(Err(_)) => {}
                Err(_) => warn!("listing PodDisruptionBudgets timed out"),
            }
        }
        // Without the grant a change is no reason to ask again.
        let changed = async {
            if !may_list {
                std::future::pending::<()>().await;
            }
            wanted.changed().await.is_ok()
        };
        tokio::select! {
            () = stop.cancelled() => return,
            there = changed => if !there { return },
            () = tokio::time::sleep(RECHECK) => {}
        }
    }
}

async fn look(
    client: &Client,
    field_manager: &str,
    list: &[PodDisruptionBudget],
    wanted: &AllWanted,
    events: &Events,
) {
    let mut existing: BTreeMap<String, Vec<&PodDisruptionBudget>> = BTreeMap::new();
    for budget in list {
        existing.entry(budget.namespace().unwrap_or_default()).or_default().push(budget);
    }
    let note = |wanted: &Wanted, reason: &'static str, message: String| {
        warn!(pool = ?wanted.owner.name, %message, "no PodDisruptionBudget");
        // The key makes a repetition raise the count of the Event that is there.
        let (key, at) = (String::new(), Timestamp::now());
        events.note(Note { regarding: wanted.owner.clone(), warning: true, reason, message, key, at });
    };
    for ((namespace, name), wanted) in wanted {
        let here = existing.get(namespace).map_or(&[][..], Vec::as_slice);
        let api: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), namespace);
        match step(name, wanted, here) {
            Step::Keep | Step::Covered { ours: None, .. } => {}
            Step::Taken => note(
                wanted,
                "DisruptionBudgetTaken",
                format!(
                    "PodDisruptionBudget {name} exists and is not this pool's; rename or delete it to have one made"
                ),
            ),
            Step::Covered { by, ours: Some(uid) } => {
                info!(%namespace, %name, %by, "PodDisruptionBudget goes: another one selects the same pods");
                let preconditions = Some(Preconditions { uid: Some(uid), resource_version: None });
                let params = DeleteParams { preconditions, ..DeleteParams::default() };
                if let Ok(Err(error)) = tokio::time::timeout(REQUEST_TIMEOUT, api.delete(name, &params)).await
                {
                    let error = explain(&error);
                    note(
                        wanted,
                        "DisruptionBudgetTwice",
                        format!(
                            "PodDisruptionBudgets {name} and {by} both select the pool's pods, which cannot be evicted then; delete {name}: {error}"
                        ),
                    );
                }
            }
            Step::Apply => {
                let params = PatchParams::apply(field_manager).force();
                let patch = Patch::Apply(&wanted.body);
                match tokio::time::timeout(REQUEST_TIMEOUT, api.patch(name, &params, &patch)).await {
                    Ok(Ok(_)) => debug!(%namespace, %name, "PodDisruptionBudget applied"),
                    Ok(Err(error)) => note(
                        wanted,
                        "DisruptionBudgetRefused",
                        format!("PodDisruptionBudget {name} was refused: {}", explain(&error)),
                    ),
                    Err(_) => warn!(%namespace, %name, "applying a PodDisruptionBudget timed out"),
                }
            }
        }
    }
}
