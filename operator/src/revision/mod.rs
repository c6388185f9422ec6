//! Revisions of a pool's engine configuration, kept as `apps/v1` ControllerRevisions as the cluster's own controllers keep theirs:
//! the pool owns them, so they outlive every pod and end with the pool. Pure.
//!
//! A revision that has served alone is marked as accepted; one that a rollout was stopped for is marked as stopped. While a
//! pool's spec asks for a stopped revision, the newest accepted one is in force in its place.

pub mod reader;
mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use plimsoll_crds::ModelPool;
use plimsoll_crds::model_pool::{Engine, ModelPoolSpec, Variant};
use plimsoll_fleet as fleet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::names;

pub use steps::{Look, steps};

/// Label of revisions and pods: digest of the engine configuration.
pub const REVISION: &str = "plimsoll.dev/revision";
/// Annotation: when the revision was seen to serve with no older one left (RFC 3339).
pub const ACCEPTED: &str = "plimsoll.dev/accepted";
/// Annotation: why its rollout was stopped, as JSON. Without it the same configuration is tried again.
pub const STOPPED: &str = "plimsoll.dev/stopped";
/// Reason of a stop: it serves worse than the older configuration.
pub const SLO_REGRESSION: &str = "SLORegression";
/// Reason of a stop: its replicas do not start.
pub const START_FAILED: &str = "StartFailed";

/// What of a pool's spec its engines are made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    engine: Engine,
    #[serde(default)]
    variants: Vec<Variant>,
    #[serde(default)]
    max_context_tokens: Option<i32>,
}

impl Configuration {
    /// A spec's engine configuration.
    pub fn of(spec: &ModelPoolSpec) -> Self {
        // Neither the planner's prior nor endpoints that others run are made into a pod.
        let engine =
            Engine { cold_start: Engine::default().cold_start, endpoints: Vec::new(), ..spec.engine.clone() };
        Self { engine, variants: spec.variants.clone(), max_context_tokens: spec.max_context_tokens }
    }

    /// Names the configuration: the same for specs that give the same engines.
    pub fn digest(&self) -> String {
        let mut plain = self.clone();
        plain.engine.env.sort_by(|a, b| a.name.cmp(&b.name));
        plain.variants.sort_by(|a, b| a.name.cmp(&b.name));
        plain.variants.iter_mut().for_each(|v| v.quality = 1.0);
        names::digest(&serde_json::to_string(&plain).unwrap_or_default())
    }

    /// Puts the configuration into a spec.
    fn put_into(self, spec: &mut ModelPoolSpec) {
        let Engine { cold_start, endpoints, .. } = std::mem::take(&mut spec.engine);
        spec.engine = Engine { cold_start, endpoints, ..self.engine };
        spec.variants = self.variants;
        spec.max_context_tokens = self.max_context_tokens;
    }
}

/// Why a rollout was stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stopped {
    /// [`SLO_REGRESSION`] or [`START_FAILED`].
    pub reason: String,
    /// What was seen.
    pub cause: String,
    /// When.
    pub at: Timestamp,
}

/// A stop that is in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Stop {
    /// [`SLO_REGRESSION`] or [`START_FAILED`].
    pub reason: &'static str,
    /// What was seen, what became of it and what to do.
    pub message: String,
    /// Digest of the configuration that the spec asks for.
    pub wanted: String,
    /// Whether an earlier configuration is in force in its place.
    pub rolled_back: bool,
}

/// What is in force for a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct InForce {
    /// Digest of the engine configuration in force.
    pub digest: String,
    /// The resource with an earlier engine configuration, if one is in force.
    pub earlier: Option<ModelPool>,
    /// Why the spec's own is not, or no further.
    pub stop: Option<Stop>,
}

impl InForce {
    /// Tells the domain's pool.
    pub fn tell(&self, pool: &mut fleet::ModelPool) {
        pool.revision.clone_from(&self.digest);
        if let Some(stop) = &self.stop {
            pool.rollout.stopped.clone_from(&stop.message);
            // Back to what has served: there is nothing to judge, and nothing to wait for.
            pool.rollout.paused = !stop.rolled_back;
            if stop.rolled_back {
                pool.rollout.canary = None;
            }
        }
    }
}

/// Revisions by UID of the pool that owns them.
pub fn by_owner(revisions: &[Arc<ControllerRevision>]) -> BTreeMap<&str, Vec<&ControllerRevision>> {
    let mut owned: BTreeMap<&str, Vec<&ControllerRevision>> = BTreeMap::new();
    for revision in revisions {
        let owners = revision.metadata.owner_references.iter().flatten();
        for owner in owners.filter(|o| o.controller == Some(true)) {
            owned.entry(owner.uid.as_str()).or_default().push(revision);
        }
    }
    owned
}

fn digest_of(revision: &ControllerRevision) -> &str {
    revision.labels().get(REVISION).map_or("", String::as_str)
}

fn is_accepted(revision: &ControllerRevision) -> bool {
    revision.annotations().contains_key(ACCEPTED)
}

fn stopped(revision: &ControllerRevision) -> Option<Stopped> {
    serde_json::from_str(revision.annotations().get(STOPPED)?).ok()
}

fn configuration(revision: &ControllerRevision) -> Option<Configuration> {
    serde_json::from_value(revision.data.as_ref()?.0.get("spec")?.clone()).ok()
}

/// The newest accepted revision other than this one.
fn target<'a>(own: &[&'a ControllerRevision], wanted: &str) -> Option<&'a ControllerRevision> {
    own.iter().copied().filter(|r| is_accepted(r) && digest_of(r) != wanted).max_by_key(|r| r.revision)
}

/// What is in force for a pool with these revisions. O(revisions).
pub fn in_force(resource: &ModelPool, own: &[&ControllerRevision]) -> InForce {
    let digest = Configuration::of(&resource.spec).digest();
    let newest = own.iter().map(|r| r.revision).max().unwrap_or(0);
    // One that is not the newest was asked for again after another: it is about to become the newest, and is tried again.
    let found = own.iter().find(|r| digest_of(r) == digest && r.revision == newest);
    let Some((revision, stopped)) = found.and_then(|r| Some((r, stopped(r)?))) else {
        return InForce { digest, earlier: None, stop: None };
    };
    let name = revision.name_any();
    let reason = if stopped.reason == START_FAILED { START_FAILED } else { SLO_REGRESSION };
    let again = format!("kubectl annotate controllerrevision {name} {STOPPED}-");
    let auto = resource.spec.rollout.auto_rollback;
    let earlier = target(own, &digest).filter(|_| auto).and_then(|r| Some((r, configuration(r)?)));
    match earlier {
        Some((target, configuration)) => {
            let mut earlier = resource.clone();
            configuration.put_into(&mut earlier.spec);
            let message = format!(
                "{}; revision {name} was taken back and {} is in force until the spec's engine configuration changes; \
                 correct it, or try the same again: {again}",
                stopped.cause,
                target.name_any()
            );
            let stop = Stop { reason, message, wanted: digest, rolled_back: true };
            InForce { digest: digest_of(target).to_owned(), earlier: Some(earlier), stop: Some(stop) }
        }
        None => {
            let why = if auto {
                "no earlier revision that served is recorded"
            } else {
                "spec.rollout.autoRollback is off"
            };
            let message = format!(
                "{}; revision {name} goes no further and is not taken back ({why}); change the spec's engine \
                 configuration, or go on: {again}",
                stopped.cause
            );
            let stop = Stop { reason, message, wanted: digest.clone(), rolled_back: false };
            InForce { digest, earlier: None, stop: Some(stop) }
        }
    }
}

/// The object that keeps a pool's present engine configuration.
fn object(resource: &ModelPool, digest: &str, number: i64) -> ControllerRevision {
    let pool = names::label_value(&resource.name_any());
    let configuration = serde_json::to_value(Configuration::of(&resource.spec)).unwrap_or(Value::Null);
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{pool}-{digest}")),
            namespace: resource.namespace(),
            labels: Some(
                [(names::MANAGED_BY, names::PLIMSOLL), (names::POOL, pool.as_str()), (REVISION, digest)]
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            ),
            owner_references: resource.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(json!({"spec": configuration}))),
        revision: number,
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
