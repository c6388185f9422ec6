//! What a pool's status says of the engines that it adopts. Pure.

use plimsoll_crds::model_pool::AdoptedStatus;

use super::pool::{Facts, round, significant};

/// Most problems that the status lists.
const MOST_PROBLEMS: usize = 10;
/// Where the selector finds nothing.
pub(super) const NOTHING: &str = "adopt: no running pod of this namespace fits spec.adopt.selector; compare it with kubectl get pods --show-labels";

/// Whether a pool wants to adopt and finds nothing to.
pub(super) fn nothing(facts: &Facts<'_>) -> bool {
    facts.verdict.is_ok() && facts.resource.spec.adopt.is_some() && facts.adopted.is_empty()
}

/// The engines as read; cost and rate are those of the plan.
pub(super) fn status(facts: &Facts<'_>) -> Option<AdoptedStatus> {
    facts.resource.spec.adopt.as_ref()?;
    let before = || facts.before.and_then(|b| b.adopted.clone()).unwrap_or_default();
    let today = facts.plan.and_then(|p| p.pool.today.as_ref().map(|t| (t, p.pool.usd_per_hour)));
    let figures = match today {
        Some((today, advised)) => AdoptedStatus {
            fleet: today.fleet.clone(),
            usd_per_hour: round(today.usd_per_hour, 4),
            max_rps: Some(significant(today.max_rps)),
            saving_usd_per_hour: Some(round(today.usd_per_hour - advised, 4)),
            ..AdoptedStatus::default()
        },
        // The last word of the plan stays while the next one is awaited.
        None if !facts.adopted.is_empty() => before(),
        None => AdoptedStatus::default(),
    };
    let copies = |ready: bool| -> u32 {
        facts.adopted.iter().filter(|a| a.ready || !ready).map(|a| a.copies.max(1)).sum()
    };
    let mut problems: Vec<String> = facts
        .adopted
        .iter()
        .filter(|a| !a.problem.is_empty())
        .map(|a| format!("{}: {}", a.name, a.problem))
        .collect();
    if problems.len() > MOST_PROBLEMS {
        let more = problems.len() + 1 - MOST_PROBLEMS;
        problems.truncate(MOST_PROBLEMS - 1);
        problems.push(format!("and {more} more"));
    }
    let count = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    Some(AdoptedStatus {
        replicas: count(copies(false)),
        ready_replicas: count(copies(true)),
        accelerators: count(facts.adopted.iter().map(|a| a.held()).sum()),
        problems,
        ..figures
    })
}
