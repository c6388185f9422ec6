//! What else there is to know about a pool's part of a plan: spot capacity, LoRA adapters, variants below the wanted quality, budgets that only
//! alert.

use plimsoll_fleet::plan::BudgetUse;
use plimsoll_fleet::{OnLimit, Role};

use super::Facts;
use crate::adapters::Needed;
use crate::plan::inventory::Eligibility;

/// What interruptions of spot capacity are expected to cost, where it is used or was turned down for them.
pub(crate) fn spot(facts: &Facts<'_>) -> Vec<String> {
    let pool = facts.problem;
    let mut remarks = Vec::new();
    let on_spot = || facts.answer.counts.iter().filter(|((_, c), n)| facts.cells[*c].spot && **n > 0);
    let priced: f64 =
        on_spot().map(|((k, c), n)| f64::from(*n) * pool.interruptions_usd(*k, &facts.cells[*c])).sum();
    if let Some(rate) = on_spot().map(|((_, c), _)| facts.cells[*c].interruptions_per_hour).reduce(f64::max) {
        let longest = on_spot().map(|((k, _), _)| pool.interruption_seconds[*k]).fold(0.0, f64::max);
        let replicas: u32 = on_spot().map(|(_, n)| n).sum();
        remarks.push(format!(
            "{replicas} replicas on spot capacity: {rate} interruptions per hour of each are expected, priced at ${priced:.3}/h ({longest:.0} s of a replica each)"
        ));
    }
    // The same shape on demand, although spot capacity of it was there and cheaper.
    for (k, c) in facts.answer.counts.keys() {
        let here = &facts.cells[*c];
        let shape = &pool.set.candidates[*k].shape;
        let turned_down = facts.cells.iter().find(|s| {
            s.spot
                && !here.spot
                && s.accelerator == here.accelerator
                && s.eligible[facts.at] == Eligibility::Open
                && s.groups(shape.stage_gpus()) >= shape.pipeline_parallel
                && pool.usd(*k, s) < pool.usd(*k, here)
                && pool.usd(*k, s) + pool.interruptions_usd(*k, s) >= pool.usd(*k, here)
        });
        if let Some(s) = turned_down {
            remarks.push(format!(
                "{} would save ${:.3}/h a replica, less than its expected interruptions cost: ${:.3}/h ({} per hour, {:.0} s of a replica each)",
                s.label(),
                pool.usd(*k, here) - pool.usd(*k, s),
                pool.interruptions_usd(*k, s),
                s.interruptions_per_hour,
                pool.interruption_seconds[*k]
            ));
        }
    }
    remarks.dedup();
    remarks
}

/// That LoRA adapters hold replicas which demand alone would not take.
pub(crate) fn adapters(facts: &Facts<'_>) -> Option<String> {
    let Needed { pinned, hot, slots, replicas } = facts.adapters;
    let (floor, least) = (replicas?, facts.problem.pool.scaling.min_replicas);
    let binds = floor > least && facts.answer.replicas() <= floor;
    let everywhere = if pinned > 0 { format!(" besides {pinned} pinned ones") } else { String::new() };
    binds.then(|| {
        format!(
            "at least {floor} replicas, so that {hot} LoRA adapters that are asked for have a slot{everywhere} ({slots} an engine)"
        )
    })
}

/// How loaded prefill and decode replicas are where they are apart: the more loaded ones bind.
pub(crate) fn apart(facts: &Facts<'_>) -> Option<String> {
    let pool = facts.problem;
    let load = |role: Role| {
        let (mut work, mut replicas) = (0.0, 0.0);
        for (k, candidate) in pool.set.candidates.iter().enumerate().filter(|(_, k)| k.shape.role == role) {
            replicas += f64::from(facts.answer.of(k));
            let classes = pool.set.classes.iter().zip(&facts.answer.shares).zip(&candidate.rates);
            let taken = classes.filter(|((_, shares), _)| shares[k] > 0.0);
            work += taken.map(|((class, shares), rate)| shares[k] * class.rps / rate).sum::<f64>();
        }
        (replicas > 0.0).then(|| work / replicas)
    };
    let (prefill, decode) = (load(Role::Prefill)?, load(Role::Decode)?);
    let (first, second) = if prefill > decode { ("prefill", "decode") } else { ("decode", "prefill") };
    Some(format!(
        "prefill and decode apart: {first} binds at {:.0} % of its load line, {second} is at {:.0} %",
        100.0 * prefill.max(decode),
        100.0 * prefill.min(decode)
    ))
}

/// The variants below the wanted quality that serve, and the budget that binds; `None` where all are good enough.
pub(crate) fn downgraded(facts: &Facts<'_>) -> Option<String> {
    let pool = facts.problem;
    let budget = facts.lowered?;
    let mut variants: Vec<String> = facts
        .answer
        .counts
        .iter()
        .filter(|((k, _), n)| **n > 0 && pool.is_below_quality(*k))
        .map(|((k, _), _)| {
            let candidate = &pool.set.candidates[*k];
            format!(
                "{} (quality {} < minQuality {})",
                candidate.shape.variant, candidate.quality, pool.pool.min_quality
            )
        })
        .collect();
    variants.sort();
    variants.dedup();
    (!variants.is_empty())
        .then(|| format!("served with variant {} because budget {budget} binds", variants.join(" and ")))
}

/// A budget that only alerts, and is exceeded.
pub(crate) fn alert(used: &BudgetUse) -> Option<String> {
    used.excess().filter(|_| used.on_limit == OnLimit::Alert).map(|_| format!("{used} (onLimit Alert)"))
}
