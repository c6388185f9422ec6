//! Makes the changes that [`crate::build`] decided.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaimTemplate;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use plimsoll_crds::ModelPool;
use plimsoll_fleet::PoolId;
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use crate::apply_group;
use crate::build::{Action, Prepared};
use crate::names;
use crate::observe;

/// Changes made at one time.
const CONCURRENCY: usize = 16;
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
    /// Every change and what became of it.
    pub outcomes: Vec<Outcome>,
    /// What stands in the way, by pool: what could not be built, and what the API refused.
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
    /// Takes out the changes that were refused lately; what refused them stays a problem of their pool.
    pub fn hold_back(&mut self, mut prepared: Prepared, now: Timestamp) -> Prepared {
        let wanted: std::collections::BTreeSet<_> = prepared.actions.iter().map(key).collect();
        self.refused.retain(|k, _| wanted.contains(k));
        let (problems, refused) = (&mut prepared.problems, &self.refused);
        prepared.actions.retain(|action| match refused.get(&key(action)) {
            Some(r) if now < r.not_before => {
                problems.entry(action.pool().clone()).or_default().push(r.problem.clone());
                false
            }
            _ => true,
        });
        prepared
    }

    /// Takes note of what was refused: the next try is 1, 2, 4 … 60 seconds later.
    pub fn note(&mut self, applied: &Applied, now: Timestamp) {
        for outcome in &applied.outcomes {
            let key = key(&outcome.action);
            match &outcome.result {
                Ok(()) => {
                    self.refused.remove(&key);
                }
                Err(problem) => {
                    let entry = self.refused.entry(key).or_insert_with(|| Refused {
                        failures: 0,
                        not_before: now,
                        problem: String::new(),
                    });
                    let seconds = (1_i64 << entry.failures.min(6)).min(60);
                    entry.failures = entry.failures.saturating_add(1);
                    entry.not_before = now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(now);
                    entry.problem.clone_from(problem);
                }
            }
        }
    }
}

/// Makes the changes, each on its own: one that fails disturbs no other.
pub async fn apply(client: &Client, field_manager: &str, prepared: Prepared) -> Applied {
    // Destructured without `..`: a new kind of decision cannot be forgotten here.
    let Prepared { actions, mut problems } = prepared;
    let outcomes: Vec<Outcome> = futures::stream::iter(actions)
        .map(|action| async move {
            let result = match tokio::time::timeout(REQUEST_TIMEOUT, make(client, field_manager, &action))
                .await
            {
                Ok(result) => result,
                Err(_) => {
                    Err(format!("the Kubernetes API did not answer within {} s", REQUEST_TIMEOUT.as_secs()))
                }
            };
            Outcome { action, result }
        })
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
    for outcome in &outcomes {
        if let Err(problem) = &outcome.result {
            warn!(pool = %outcome.action.pool(), change = %key(&outcome.action).1, %problem, "failed to make a change");
            problems.entry(outcome.action.pool().clone()).or_default().push(problem.clone());
        }
    }
    Applied { outcomes, problems }
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
                    let each = targets.iter().map(|(name, uid)| delete(&pods, name, uid));
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
async fn delete(pods: &Api<Pod>, name: &str, uid: &str) -> Result<bool, kube::Error> {
    match pods.delete(name, &exactly(uid)).await {
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
        Err(e) => Err(format!("failed to create replica {name}: {}{}", explain(&e), remedy(pod, &e))),
    }
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
