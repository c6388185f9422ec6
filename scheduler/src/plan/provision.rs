//! Capacity that autoscalers promise: replicas wait for it as pods without a node, and not for ever.
//!
//! A replica that found no node in time is given up, and its class's autoscalable capacity is not counted on for a while:
//! the plan then chooses other accelerators, or says what is short. Replicas of the class that wait in time go on waiting.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use plimsoll_fleet::plan::Unprovisioned;
use plimsoll_fleet::{ReplicaPhase, ReplicaStatus};

use super::PlanInput;
use super::inventory::Reserved;
use super::prepare::Draft;

/// Whether a replica has waited too long for a node that an autoscaler should add.
pub(crate) fn is_overdue(input: &PlanInput<'_>, replica: &ReplicaStatus) -> bool {
    let planned = input
        .previous
        .iter()
        .flat_map(|p| &p.pools)
        .filter(|p| p.pool == replica.pool)
        .flat_map(|p| &p.replicas)
        .find(|r| r.id == replica.id);
    let waits = replica.phase == ReplicaPhase::Pending && replica.nodes.is_empty() && !replica.gated;
    let anywhere = planned.is_some_and(|r| r.nodes.is_empty());
    let waited_s = input.now.duration_since(replica.created_at).as_secs_f64();
    waits && anywhere && waited_s >= input.config.provision_seconds
}

/// The classes whose autoscalable capacity is not counted on now.
pub(crate) fn unprovisioned(input: &PlanInput<'_>) -> Vec<Unprovisioned> {
    let known = input.previous.iter().flat_map(|p| &p.unprovisioned).filter(|u| u.until > input.now);
    let mut until: BTreeMap<&str, Timestamp> = known.map(|u| (u.accelerator.as_str(), u.until)).collect();
    let pause = SignedDuration::try_from_secs_f64(input.config.unprovisioned_seconds);
    let end = pause.ok().and_then(|p| input.now.checked_add(p).ok()).unwrap_or(input.now);
    for replica in input.snapshot.replicas.iter().filter(|r| is_overdue(input, r)) {
        until.entry(&replica.shape.accelerator).or_insert(end);
    }
    let own = |(accelerator, until): (&str, _)| Unprovisioned { accelerator: accelerator.to_owned(), until };
    until.into_iter().map(own).collect()
}

/// Takes what is not counted on out of what may be asked for, but for what replicas wait for already.
pub(crate) fn reserve(
    input: &PlanInput<'_>,
    drafts: &[Draft<'_>],
    unprovisioned: &[Unprovisioned],
    reserved: &mut Reserved,
) {
    for class in unprovisioned {
        let Some(found) = input.snapshot.accelerators.iter().find(|a| a.name == class.accelerator) else {
            continue;
        };
        let waiting = drafts.iter().filter(|d| d.is_planned()).flat_map(|d| &d.live);
        let held: u32 = waiting
            .filter(|l| l.nodes.is_empty() && l.shape.accelerator == class.accelerator)
            .map(|l| l.shape.gpus())
            .sum();
        let closed = found.autoscalable_max.saturating_sub(held);
        *reserved.autoscaled.entry(class.accelerator.clone()).or_default() += closed;
    }
}

/// What a pool is told that could use such a class.
pub(crate) fn remark(input: &PlanInput<'_>, draft: &Draft<'_>, class: &Unprovisioned) -> Option<String> {
    let usable = draft.all.candidates.iter().any(|c| c.shape.accelerator == class.accelerator);
    usable.then(|| {
        format!(
            "no node for {} came within {:.0} min of being asked for, so none is counted on until {}",
            class.accelerator.to_uppercase(),
            input.config.provision_seconds / 60.0,
            class.until.strftime("%H:%M UTC")
        )
    })
}
