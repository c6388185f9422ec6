//! Makes the changes that [`crate::build`] decided, beside the operator's look: one that takes long or fails holds up no
//! other.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaimTemplate;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use plimsoll_crds::ModelPool;
use plimsoll_fleet::PoolId;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::apply_group;
use crate::build::{Action, Prepared};
use crate::names;
use crate::observe;

/// Changes of pods made at one time.
const PODS: usize = 32;
/// Changes of resources' metadata made at one time: nobody waits for these, and they must not take the API's time from pods.
const METADATA: usize = 4;
/// Time for which a change that was made counts although the cache does not show it yet.
const CACHE_LAG: SignedDuration = SignedDuration::from_secs(5);
/// Longest time one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A change and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The change.
    pub action: Action,
    /// Whether it was made; else why not and what to do.
    pub result: Result<(), String>,
}

/// Changes that were made, or tried. Only this is made into a status.
#[derive(Debug, Default, PartialEq)]
pub struct Applied {
    /// Every change that ended since the last look, and what became of it.
    pub outcomes: Vec<Outcome>,
    /// What stands in the way, by pool: what could not be built, and what the API refused and has not accepted since.
    pub problems: BTreeMap<PoolId, Vec<String>>,
}

impl Applied {
    /// What stands in the way of a pool.
    pub fn problems_of(&self, pool: &PoolId) -> &[String] {
        self.problems.get(pool).map_or(&[], Vec::as_slice)
    }
}

/// Remembers refused changes, so that each is retried with growing delays instead of at every look.
#[derive(Debug, Default)]
pub struct Throttle {
    refused: BTreeMap<(PoolId, String), Refused>,
}

#[derive(Debug)]
struct Refused {
    failures: u32,
    not_before: Timestamp,
    problem: String,
}

fn key(action: &Action) -> (PoolId, String) {
    let what = match action {
        Action::CreatePod { pod, .. } => format!("create {}", pod.name_any()),
        Action::CreateGroup { replica, .. } => format!("create {replica}"),
        Action::MarkDraining { replica, .. } => format!("mark {replica}"),
        Action::DeletePod { replica, .. } => format!("delete {replica}"),
        Action::SetFinalizers { .. } => "finalizers".to_owned(),
        Action::CreateRevision { revision, .. } => format!("create revision {}", revision.name_any()),
        Action::PatchRevision { revision, .. } => format!("patch revision {revision}"),
        Action::DeleteRevision { revision, .. } => format!("delete revision {revision}"),
    };
    (action.pool().clone(), what)
}

impl Throttle {
    /// Takes out the changes that were refused lately; what refused them stays a problem of their pool until one succeeds.
    pub fn hold_back(&mut self, mut prepared: Prepared, now: Timestamp) -> Prepared {
        let wanted: BTreeSet<_> = prepared.actions.iter().map(key).collect();
        self.refused.retain(|k, _| wanted.contains(k));
        let (problems, refused) = (&mut prepared.problems, &self.refused);
        prepared.actions.retain(|action| {
            let Some(refused) = refused.get(&key(action)) else { return true };
            problems.entry(action.pool().clone()).or_default().push(refused.problem.clone());
            now >= refused.not_before
        });
        prepared
    }

    /// Takes note of what was refused: the next try is 1, 2, 4 … 60 seconds later, each shortened by up to half, by a
    /// share that differs between changes, so that those which fail together do not return together.
    pub fn note(&mut self, outcomes: &[Outcome], now: Timestamp) {
        for outcome in outcomes {
            let key = key(&outcome.action);
            match &outcome.result {
                Ok(()) => {
                    self.refused.remove(&key);
                }
                Err(problem) => {
                    let entry = self.refused.entry(key.clone()).or_insert_with(|| Refused {
                        failures: 0,
                        not_before: now,
                        problem: String::new(),
                    });
                    let delay = retry_delay(&key, entry.failures);
                    entry.failures = entry.failures.saturating_add(1);
                    entry.not_before = now.saturating_add(delay).unwrap_or(now);
                    entry.problem.clone_from(problem);
                }
            }
        }
    }
}

/// The wait before a change is tried again after so many failures before this one.
fn retry_delay(key: &(PoolId, String), failures: u32) -> SignedDuration {
    let full_ms = (1_i64 << failures.min(6)).min(60) * 1000;
    let mut hasher = std::hash::DefaultHasher::new();
    (key, failures).hash(&mut hasher);
    let shortened_ms = (hasher.finish() % 1000) as i64 * full_ms / 2000;
    SignedDuration::from_millis(full_ms - shortened_ms)
}

/// Changes under way, and those made so lately that the cache may not show them yet: neither is to begin again. Pure.
#[derive(Debug, Default)]
struct Underway {
    /// Until when each counts (`None`: it is under way).
    changes: BTreeMap<(PoolId, String), Option<Timestamp>>,
}

/// What is the same change: one that rests on a newer version of a resource is another.
fn identity(action: &Action) -> (PoolId, String) {
    let (pool, what) = key(action);
    match action {
        Action::SetFinalizers { resource_version, .. } => (pool, format!("{what} {resource_version}")),
        _ => (pool, what),
    }
}

impl Underway {
    /// Whether a change is to begin now; if so, it counts as under way.
    fn begins(&mut self, action: &Action, now: Timestamp) -> bool {
        let change = identity(action);
        match self.changes.get(&change) {
            None => {}
            Some(Some(until)) if *until <= now => {}
            Some(_) => return false,
        }
        self.changes.insert(change, None);
        true
    }

    /// Takes note that a change ended. One that was refused may begin again at once: [`Throttle`] says when.
    fn ended(&mut self, outcome: &Outcome, now: Timestamp) {
        self.changes.retain(|_, until| until.is_none_or(|until| until > now));
        let change = identity(&outcome.action);
        if outcome.result.is_ok() {
            self.changes.insert(change, Some(now.saturating_add(CACHE_LAG).unwrap_or(now)));
        } else {
            self.changes.remove(&change);
        }
    }
}

/// Makes changes. Those under way are given up when this is dropped.
pub struct Applier {
    client: Client,
    field_manager: Arc<str>,
    underway: Underway,
    running: JoinSet<Outcome>,
    ended: Vec<Outcome>,
    pods: Arc<Semaphore>,
    metadata: Arc<Semaphore>,
    urgent: watch::Sender<usize>,
}

impl Applier {
    /// Makes changes under this field manager. `urgent` counts, besides what others count there, the changes of pods that
    /// wait or are under way.
    pub fn new(client: Client, field_manager: &str, urgent: watch::Sender<usize>) -> Self {
        Self {
            client,
            field_manager: field_manager.into(),
            underway: Underway::default(),
            running: JoinSet::new(),
            ended: Vec::new(),
            pods: Arc::new(Semaphore::new(PODS)),
            metadata: Arc::new(Semaphore::new(METADATA)),
            urgent,
        }
    }

    /// Begins the changes that are not under way already, each on its own.
    pub fn start(&mut self, actions: Vec<Action>, now: Timestamp) {
        for action in actions {
            if !self.underway.begins(&action, now) {
                continue;
            }
            let urgent = is_urgent(&action).then(|| Urgent::new(&self.urgent));
            let permits = if urgent.is_some() { self.pods.clone() } else { self.metadata.clone() };
            let (client, field_manager) = (self.client.clone(), self.field_manager.clone());
            self.running.spawn(async move {
                let _urgent = urgent;
                // It is never closed.
                let _permit = permits.acquire().await;
                let made = make(&client, &field_manager, &action);
                let result = tokio::time::timeout(REQUEST_TIMEOUT, made).await.unwrap_or_else(|_| {
                    Err(format!("the Kubernetes API did not answer within {} s", REQUEST_TIMEOUT.as_secs()))
                });
                if let Err(problem) = &result {
                    warn!(pool = %action.pool(), change = %key(&action).1, %problem, "failed to make a change");
                }
                Outcome { action, result }
            });
        }
    }

    /// Waits until a change has ended; for ever if none is under way.
    pub async fn one_ended(&mut self) {
        match self.running.join_next().await {
            Some(Ok(outcome)) => self.ended.push(outcome),
            // What it was about is tried again once nothing is under way.
            Some(Err(error)) => warn!(%error, "making a change failed; this is a defect"),
            None => std::future::pending().await,
        }
    }

    /// The changes that ended since the last call.
    pub fn take_ended(&mut self, now: Timestamp) -> Vec<Outcome> {
        while let Some(ended) = self.running.try_join_next() {
            self.ended
                .extend(ended.inspect_err(|error| warn!(%error, "making a change failed; this is a defect")));
        }
        for outcome in &self.ended {
            self.underway.ended(outcome, now);
        }
        if self.running.is_empty() {
            self.underway.changes.retain(|_, until| until.is_some());
        }
        std::mem::take(&mut self.ended)
    }
}

/// Whether a change is of pods; the others are notes of the operator's own.
fn is_urgent(action: &Action) -> bool {
    match action {
        Action::CreatePod { .. }
        | Action::CreateGroup { .. }
        | Action::MarkDraining { .. }
        | Action::DeletePod { .. } => true,
        Action::SetFinalizers { .. }
        | Action::CreateRevision { .. }
        | Action::PatchRevision { .. }
        | Action::DeleteRevision { .. } => false,
    }
}

/// Counts as urgent for as long as it lives.
#[derive(Debug)]
struct Urgent(watch::Sender<usize>);

impl Urgent {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|n| *n += 1);
        Self(count.clone())
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n = n.saturating_sub(1));
    }
}

pub(crate) fn pods(client: &Client, pool: &PoolId) -> Api<Pod> {
    Api::namespaced(client.clone(), pool.namespace())
}

fn revisions(client: &Client, pool: &PoolId) -> Api<ControllerRevision> {
    Api::namespaced(client.clone(), pool.namespace())
}

async fn make(client: &Client, field_manager: &str, action: &Action) -> Result<(), String> {
    match action {
        Action::CreatePod { pool, owner_uid, claim_template, pod } => {
            if let Some(template) = claim_template {
                create_template(client, field_manager, pool, template).await?;
            }
            create(client, field_manager, pool, owner_uid, pod).await.map(drop)
        }
        Action::CreateGroup { pool, owner_uid, replica, group, claim_template } => {
            if let Some(template) = claim_template {
                create_template(client, field_manager, pool, template).await?;
            }
            apply_group::create(client, field_manager, pool, owner_uid, replica, group).await
        }
        Action::MarkDraining { pool, replica, pod, pod_uid, at } => {
            let mut annotations = json!({names::DRAINING: at.to_string()});
            for (annotation, _) in names::UNDISTURBED {
                annotations[annotation] = Value::Null;
            }
            let patch = json!({"metadata": {"uid": pod_uid, "annotations": annotations}});
            let params =
                PatchParams { field_manager: Some(field_manager.to_owned()), ..PatchParams::default() };
            match pods(client, pool).patch(pod, &params, &Patch::Merge(patch)).await {
                Ok(_) => {
                    info!(%pool, %replica, "replica begins to drain");
                    Ok(())
                }
                Err(e) if is_not_found(&e) => Ok(()),
                Err(e) => Err(format!("failed to mark replica {replica} as draining: {}", explain(&e))),
            }
        }
        Action::DeletePod { pool, replica, pods: targets, set, reason } => {
            let deleted = match set {
                Some(set) => apply_group::delete_set(client, pool, set).await,
                None => {
                    let pods = pods(client, pool);
                    let grace = reason.grace_seconds();
                    let each = targets.iter().map(|(name, uid)| delete(&pods, name, uid, grace));
                    futures::future::try_join_all(each).await.map(|deleted| deleted.contains(&true))
                }
            };
            if deleted.map_err(|e| format!("failed to delete replica {replica}: {}", explain(&e)))? {
                info!(%pool, %replica, reason = reason.text(), "replica deleted");
            }
            Ok(())
        }
        Action::SetFinalizers { pool, resource_version, finalizers } => {
            let api: Api<ModelPool> = Api::namespaced(client.clone(), pool.namespace());
            let patch = json!({"metadata": {"resourceVersion": resource_version, "finalizers": finalizers}});
            let params =
                PatchParams { field_manager: Some(field_manager.to_owned()), ..PatchParams::default() };
            match api.patch_metadata(pool.name(), &params, &Patch::Merge(patch)).await {
                Ok(_) => {
                    debug!(%pool, ?finalizers, "finalizers set");
                    Ok(())
                }
                // Gone, or changed since it was read: the next look decides anew.
                Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(()),
                Err(e) => Err(format!("failed to set the finalizers of {pool}: {}", explain(&e))),
            }
        }
        Action::CreateRevision { pool, revision } => {
            let params = PostParams { field_manager: Some(field_manager.to_owned()), dry_run: false };
            match revisions(client, pool).create(&params, revision).await {
                // Its name tells what it holds: one that exists is the same.
                Ok(_) => Ok(()),
                Err(e) if is_already_exists(&e) => Ok(()),
                Err(e) => Err(format!("failed to keep revision {}: {}", revision.name_any(), explain(&e))),
            }
        }
        Action::PatchRevision { pool, revision, uid, patch } => {
            let mut patch = patch.clone();
            patch["metadata"]["uid"] = json!(uid);
            let params =
                PatchParams { field_manager: Some(field_manager.to_owned()), ..PatchParams::default() };
            match revisions(client, pool).patch(revision, &params, &Patch::Merge(patch)).await {
                Ok(_) => {
                    info!(%pool, revision, "revision noted");
                    Ok(())
                }
                Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(()),
                Err(e) => Err(format!("failed to note what became of revision {revision}: {}", explain(&e))),
            }
        }
        Action::DeleteRevision { pool, revision, uid } => {
            let params = DeleteParams {
                preconditions: Some(Preconditions { uid: Some(uid.clone()), resource_version: None }),
                ..DeleteParams::default()
            };
            match revisions(client, pool).delete(revision, &params).await {
                Ok(_) => Ok(()),
                Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(()),
                Err(e) => Err(format!("failed to delete revision {revision}: {}", explain(&e))),
            }
        }
    }
}

/// The template of a claim, if it is not there yet. Its name says what is in it.
async fn create_template(
    client: &Client,
    field_manager: &str,
    pool: &PoolId,
    template: &ResourceClaimTemplate,
) -> Result<(), String> {
    let api: Api<ResourceClaimTemplate> = Api::namespaced(client.clone(), pool.namespace());
    let params = PostParams { field_manager: Some(field_manager.to_owned()), dry_run: false };
    match api.create(&params, template).await {
        Ok(_) => Ok(()),
        Err(e) if is_already_exists(&e) => Ok(()),
        Err(e) => {
            let name = template.name_any();
            Err(format!("failed to create ResourceClaimTemplate {name}: {}", explain(&e)))
        }
    }
}

/// Deletes exactly this pod; whether it was there.
async fn delete(pods: &Api<Pod>, name: &str, uid: &str, grace_seconds: u32) -> Result<bool, kube::Error> {
    match pods.delete(name, &exactly(uid).grace_period(grace_seconds)).await {
        Ok(_) => Ok(true),
        // Gone, or another pod of that name already.
        Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Deletes only the object of this UID.
pub(crate) fn exactly(uid: &str) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::default()
    }
}

/// Creates a replica's pod, or finds that it exists; its UID.
pub(crate) async fn create(
    client: &Client,
    field_manager: &str,
    pool: &PoolId,
    owner_uid: &str,
    pod: &Pod,
) -> Result<String, String> {
    let api = pods(client, pool);
    let name = pod.name_any();
    let params = PostParams { field_manager: Some(field_manager.to_owned()), dry_run: false };
    match api.create(&params, pod).await {
        Ok(made) => {
            info!(%pool, replica = %name, "replica created");
            Ok(made.metadata.uid.unwrap_or_default())
        }
        Err(e) if is_already_exists(&e) => match api.get_opt(&name).await {
            // Created by an earlier try whose answer was lost, or not yet visible in the cache.
            Ok(Some(existing)) => match observe::replica(&existing) {
                Ok(replica) if replica.owner_uid == owner_uid && !replica.terminating => Ok(replica.pod_uid),
                Ok(_) => Err(format!("replica {name} waits for an older pod of the same name to end")),
                Err(stranger) => Err(format!("replica {name} cannot be created: {stranger}")),
            },
            Ok(None) => Err(format!("replica {name} waits for an older pod of the same name to end")),
            Err(e) => Err(format!("failed to look at pod {name}, which exists already: {}", explain(&e))),
        },
        // Kubernetes deletes the pods of a namespace first, and the pool only when they have ended.
        Err(e) if is_in_ending_namespace(&e) => Err(format!(
            "namespace {} is being deleted, and the pool with it: no replica is made",
            pool.namespace()
        )),
        Err(e) => Err(format!("failed to create replica {name}: {}{}", explain(&e), remedy(pod, &e))),
    }
}

fn is_in_ending_namespace(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// What to do about a refused pod, where the API's own words do not say it.
fn remedy(pod: &Pod, error: &kube::Error) -> &'static str {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let (images, hosts) = volumes.fold((false, false), |(images, hosts), v| {
        (images || v.image.is_some(), hosts || v.host_path.is_some())
    });
    match status_of(error) {
        // A gate that is off drops the field, which leaves a volume of no type.
        Some(422) if images => {
            "; weights from oci:// need the feature gate ImageVolume, which is off by default before Kubernetes 1.35"
        }
        Some(403) if hosts => {
            "; spec.engine.cache.hostPath needs a namespace that enforces neither pod security standard baseline nor restricted"
        }
        _ => "",
    }
}

fn status_of(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    status_of(error) == Some(404)
}

pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    status_of(error) == Some(409)
}

pub(crate) fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}

/// An API error as people read it.
pub fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delete(pool: &str, replica: &str) -> Action {
        Action::DeletePod {
            pool: pool.parse().unwrap(),
            replica: plimsoll_fleet::ReplicaId::new(replica).unwrap(),
            pods: vec![(replica.to_owned(), "u".to_owned())],
            set: None,
            reason: crate::build::DeleteReason::Drained,
        }
    }

    fn finalizers(version: &str) -> Action {
        Action::SetFinalizers {
            pool: "default/a".parse().unwrap(),
            resource_version: version.to_owned(),
            finalizers: Vec::new(),
        }
    }

    fn prepared(actions: &[Action]) -> Prepared {
        Prepared { actions: actions.to_vec(), ..Prepared::default() }
    }

    fn ended(action: &Action, result: Result<(), &str>) -> Outcome {
        Outcome { action: action.clone(), result: result.map_err(str::to_owned) }
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_000_000 + ms).unwrap()
    }

    #[test]
    fn a_change_begins_once_until_the_cache_can_show_it() {
        let mut underway = Underway::default();
        let action = delete("default/a", "a-1");
        assert!(underway.begins(&action, at(0)));
        assert!(!underway.begins(&action, at(60_000)), "it is under way however long it takes");
        underway.ended(&ended(&action, Ok(())), at(60_000));
        assert!(!underway.begins(&action, at(61_000)));
        assert!(underway.begins(&action, at(65_000)), "it was undone");
        underway.ended(&ended(&action, Err("no")), at(65_100));
        assert!(underway.begins(&action, at(65_100)), "when is the throttle's affair");
        assert!(underway.begins(&delete("default/a", "a-2"), at(65_100)));
    }

    #[test]
    fn a_newer_version_of_a_resource_makes_another_change() {
        let mut underway = Underway::default();
        assert!(underway.begins(&finalizers("1"), at(0)));
        underway.ended(&ended(&finalizers("1"), Ok(())), at(0));
        assert!(!underway.begins(&finalizers("1"), at(10)));
        assert!(underway.begins(&finalizers("2"), at(10)));
    }

    #[test]
    fn what_is_refused_stays_a_problem_until_it_succeeds() {
        let mut throttle = Throttle::default();
        let (action, pool) = (delete("default/a", "a-1"), "default/a".parse::<PoolId>().unwrap());
        throttle.note(&[ended(&action, Err("quota"))], at(0));
        let held = throttle.hold_back(prepared(std::slice::from_ref(&action)), at(100));
        assert!(held.actions.is_empty() && held.problems[&pool] == ["quota"]);
        let due = throttle.hold_back(prepared(std::slice::from_ref(&action)), at(1_000));
        assert_eq!((due.actions.len(), &due.problems[&pool]), (1, &vec!["quota".to_owned()]));
        throttle.note(&[ended(&action, Ok(()))], at(1_100));
        let free = throttle.hold_back(prepared(&[action]), at(1_100));
        assert!(free.actions.len() == 1 && free.problems.is_empty());
    }

    #[test]
    fn tries_come_ever_later_and_not_all_at_once() {
        let keys: Vec<_> = (0..20).map(|i| key(&delete("default/a", &format!("a-{i}")))).collect();
        for failures in 0..12 {
            let full_ms = (1000 * (1_i64 << failures.min(6))).min(60_000);
            let delays: BTreeSet<i64> =
                keys.iter().map(|k| retry_delay(k, failures).as_millis() as i64).collect();
            assert!(delays.iter().all(|ms| (full_ms / 2..=full_ms).contains(ms)), "{delays:?}");
            assert!(delays.len() > 10, "{delays:?}");
        }
    }
}
