//! What a pool's status says of a change of its engine's configuration under way. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;
use plimsoll_crds::ModelPool;
use plimsoll_fleet::rollout::{Rollout, rollout};
use plimsoll_fleet::{ClusterSnapshot, ModelPool as Pool, PoolPlan};

use crate::build::template;
use crate::observe::{self, Observed};

/// Condition: replicas run the current engine configuration, or are getting there. As for Deployments, `False` means that
/// it cannot go on without somebody.
pub const PROGRESSING: &str = "Progressing";

/// A rollout under way.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Where it stands.
    pub rollout: Rollout,
    /// What changed: image, args, …
    pub changed: BTreeSet<&'static str>,
}

impl Progress {
    /// `rolling out: 1/3 replaced (image)`.
    pub fn text(&self) -> String {
        let Rollout { replaced, total, .. } = &self.rollout;
        let changed: Vec<&str> = self.changed.iter().copied().collect();
        format!("rolling out: {replaced}/{total} replaced ({} changed)", changed.join(", "))
    }

    /// What stops it and what to do, if anything does.
    pub fn stuck_text(&self) -> Option<String> {
        let stuck = self.rollout.stuck.as_ref()?;
        let Rollout { replaced, total, .. } = &self.rollout;
        let pod = &stuck.replica;
        Some(format!(
            "stopped at {replaced}/{total}: new replica {pod}: {}; the others keep serving with the older configuration; look \
             at kubectl logs {pod}, then correct or take back spec.engine, or delete pod {pod} to try again",
            stuck.cause.trim_end_matches(['.', ';'])
        ))
    }
}

/// The rollout of a pool under its plan, if there is one.
pub fn progress(
    resource: &ModelPool,
    pool: &Pool,
    plan: Option<&PoolPlan>,
    snapshot: &ClusterSnapshot,
    replicas: &[Observed],
    now: Timestamp,
) -> Option<Progress> {
    let rollout = rollout(pool, snapshot, &plan?.replicas, &|_| true, now)?;
    let changed = observe::of_pool(replicas, &pool.id)
        .flat_map(|r| template::changed(&r.template, &template::inputs(resource, pool, &r.status.shape)))
        .collect();
    Some(Progress { rollout, changed })
}
