//! What a pool's status says of a change of its engine's configuration under way. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;
use plimsoll_crds::ModelPool;
use plimsoll_fleet::canary::Standing;
use plimsoll_fleet::rollout::{Rollout, rollout};
use plimsoll_fleet::{AdapterRoom, ClusterSnapshot, ModelPool as Pool, PoolPlan};

use super::pool::Facts;
use crate::brain::CanaryReport;
use crate::build::template;
use crate::observe::{self, Observed};
use crate::revision::SLO_REGRESSION;
use crate::validate::Accepted;

/// Condition: replicas run the current engine configuration, or are getting there. As for Deployments, `False` means that
/// it cannot go on without somebody.
pub const PROGRESSING: &str = "Progressing";

/// Reason of the condition Progressing and of the Event: a new replica does not serve.
pub(super) const ROLLOUT_STUCK: &str = "RolloutStuck";
/// Reason of the condition Progressing and of the Event: the canary is kept from going on.
pub(super) const CANARY_HELD: &str = "CanaryHeld";

/// A rollout under way.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Where it stands.
    pub rollout: Rollout,
    /// What changed: image, args, adapters, …
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

/// How far a rollout is, and what is known of its canary.
pub(super) fn going_text(facts: &Facts<'_>, accepted: &Accepted, progress: &Progress) -> String {
    let canary = match canary(facts, accepted) {
        // Its figures move all the time; `plimsoll explain` shows them.
        Some(c) if c.standing == Standing::Watching => "; the canary is being judged".to_owned(),
        Some(c) => format!("; canary {}", c.text),
        None => String::new(),
    };
    format!("{}{canary}", progress.text())
}

/// The judgement of the configuration in force.
fn canary<'a>(facts: &Facts<'a>, accepted: &Accepted) -> Option<&'a CanaryReport> {
    let canary = facts.observation?.canary.as_ref()?;
    (canary.revision == accepted.pool.revision).then_some(canary)
}

/// Why a rollout does not go on by itself, if it does not: a reason and what people read.
pub(super) fn standstill(facts: &Facts<'_>, accepted: &Accepted) -> Option<(&'static str, String)> {
    if let Some(stop) = &accepted.stop {
        return Some((stop.reason, stop.message.clone()));
    }
    let progress = facts.rollout?;
    match canary(facts, accepted) {
        Some(c) if c.standing == Standing::Regressed => {
            let kept = if facts.keeps_revisions {
                "the rollout stops"
            } else {
                "the rollout stops and is not taken back: the operator may not keep ControllerRevisions (upgrade the \
                 chart, which grants them)"
            };
            Some((
                SLO_REGRESSION,
                format!("{}; {kept}; correct or take back the spec's engine configuration", c.text),
            ))
        }
        Some(c) if c.standing == Standing::Held => Some((
            CANARY_HELD,
            format!(
                "stopped at {}/{}: the canary {}; correct or take back the spec's engine configuration, or go on unjudged \
                 with spec.rollout.canary.enabled: false",
                progress.rollout.replaced, progress.rollout.total, c.text
            ),
        )),
        _ => progress.stuck_text().map(|why| (ROLLOUT_STUCK, why)),
    }
}

/// The rollout of a pool under its plan, if there is one.
pub fn progress(
    resource: &ModelPool,
    pool: &Pool,
    plan: Option<&PoolPlan>,
    snapshot: &ClusterSnapshot,
    replicas: &[Observed],
    room: AdapterRoom,
    now: Timestamp,
) -> Option<Progress> {
    let rollout = rollout(pool, snapshot, &plan?.replicas, &|_| true, now)?;
    let changed = observe::of_pool(replicas, &pool.id)
        .flat_map(|r| template::outdated(r, resource, pool, room))
        .collect();
    Some(Progress { rollout, changed })
}
