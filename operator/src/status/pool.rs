//! A ModelPool's status, and the Events that its changes are worth. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use plimsoll_crds::conditions::{self, condition};
use plimsoll_crds::model_pool::{
    Latencies, ModelPool, ModelPoolStatus, ObservedTraffic, Scaled, ShapeStatus, Summary,
};
use plimsoll_fleet::plan::PoolOutcome;
use plimsoll_fleet::pool::Mode;
use plimsoll_fleet::{AdoptedReplica, Objective, Percentile, PoolPlan, ReplicaPhase, ReplicaStatus, Shape};

use super::adopted;
use super::rollout::{CANARY_HELD, PROGRESSING, Progress, ROLLOUT_STUCK, going_text, standstill};
use super::{NONE, ms_text};
use crate::brain::PoolObservation;
use crate::events::{Note, reference};
use crate::names;
use crate::revision::{SLO_REGRESSION, START_FAILED};
use crate::validate::{Accepted, Rejection};

/// Scaling records kept in the status.
const KEPT_SCALINGS: usize = 10;
/// Reason of the condition Progressing and of the Event: replicas are being replaced.
const ROLLING_OUT: &str = "RollingOut";
/// A change of an observed figure below this share is not worth a write of its own.
const MATERIAL: f64 = 0.05;

/// The plan as far as it concerns one pool.
#[derive(Debug, Clone, Copy)]
pub struct InForce<'a> {
    /// Its number.
    pub number: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// What made the scheduler plan anew.
    pub trigger: &'a str,
    /// The pool's part.
    pub pool: &'a PoolPlan,
}

/// What a pool's status is made from.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The resource.
    pub resource: &'a ModelPool,
    /// Its meaning, or why it takes no part.
    pub verdict: Result<&'a Accepted, &'a Rejection>,
    /// The status written last.
    pub before: Option<&'a ModelPoolStatus>,
    /// The plan for this generation, if there is one.
    pub plan: Option<InForce<'a>>,
    /// The pool's replicas.
    pub replicas: &'a [&'a ReplicaStatus],
    /// Engines of others that the pool adopts.
    pub adopted: &'a [&'a AdoptedReplica],
    /// The change of the engine's configuration under way, if there is one.
    pub rollout: Option<&'a Progress>,
    /// What agents saw.
    pub observation: Option<&'a PoolObservation>,
    /// Whether the scheduler is connected.
    pub connected: bool,
    /// Whether revisions can be kept, so that a rollout can be taken back.
    pub keeps_revisions: bool,
    /// What stands in the way, from the changes that were applied.
    pub problems: &'a [String],
    /// Whether observed figures may be written although they changed little.
    pub refresh_observed: bool,
    /// Now.
    pub now: Timestamp,
}

/// Builds a condition from type, status, reason and message.
type MakeCondition<'a> = &'a dyn Fn(&str, Option<bool>, &str, String) -> Condition;

/// The status of one pool.
pub fn status(facts: &Facts<'_>) -> ModelPoolStatus {
    let count = |f: &dyn Fn(ReplicaPhase) -> bool| facts.replicas.iter().filter(|r| f(r.phase)).count();
    // Replicas that the plan dropped may go on serving for a while; they are not the ones that are waited for.
    let wanted = |r: &ReplicaStatus| {
        facts.plan.is_none_or(|p| p.pool.replicas.is_empty() || p.pool.replicas.iter().any(|a| a.id == r.id))
    };
    // In a rollout they are: each stands in for its successor until that serves.
    let stands_in =
        |r: &ReplicaStatus| facts.rollout.is_some_and(|p| p.rollout.replacing.contains(&r.id)) && r.outdated;
    let ready = facts
        .replicas
        .iter()
        .filter(|r| r.phase == ReplicaPhase::Ready && (wanted(r) || stands_in(r)))
        .count();
    let present = count(&|p| p != ReplicaPhase::Draining);
    let desired = facts.plan.map_or(present, |p| p.pool.replicas.len());
    let ready = if facts.rollout.is_some() { ready.min(desired) } else { ready };
    let observed = observed(facts);
    let before = facts.before.cloned().unwrap_or_default();
    let mut conditions = pool_conditions(facts, ready, desired, observed.as_ref());
    conditions::carry_transition_times(&before.conditions, &mut conditions);
    // The last word of the plan stays while the next one is awaited.
    let (usd_per_hour, predicted, plan) = match facts.plan {
        Some(p) => (p.pool.usd_per_hour, prediction(p.pool), i64::try_from(p.number).ok()),
        None => (before.usd_per_hour, before.predicted.clone(), before.plan),
    };
    let mut status = ModelPoolStatus {
        observed_generation: facts.resource.metadata.generation,
        conditions,
        replicas: present as i32,
        ready_replicas: ready as i32,
        desired_replicas: desired as i32,
        selector: Some(names::pool_selector(facts.resource.metadata.name.as_deref().unwrap_or_default())),
        plan,
        usd_per_hour: round(usd_per_hour, 4),
        shapes: shapes(facts),
        summary: Some(summary(facts, ready, desired, usd_per_hour, predicted.as_ref(), observed.as_ref())),
        predicted,
        observed,
        why: why(facts),
        adopted: adopted::status(facts),
        scalings: scalings(facts, before.scalings.clone()),
    };
    // A plan that changes nothing here is not written here: one pool's new plan would else rewrite every pool's status.
    if before.plan.is_some() && (ModelPoolStatus { plan: before.plan, ..status.clone() }) == before {
        status.plan = before.plan;
    }
    status
}

pub(super) fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    if value.is_finite() { (value * scale).round() / scale } else { 0.0 }
}

/// Rounded to three significant digits: enough to read, and steady.
pub(super) fn significant(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    round(value, 2 - value.abs().log10().floor() as i32)
}

fn prediction(plan: &PoolPlan) -> Option<Latencies> {
    let p = plan.prediction;
    let any = p.ttft_ms.is_some() || p.tpot_ms.is_some() || p.e2e_ms.is_some();
    any.then(|| Latencies {
        ttft_ms: p.ttft_ms.map(significant),
        tpot_ms: p.tpot_ms.map(significant),
        e2e_ms: p.e2e_ms.map(significant),
    })
}

/// Observed figures: the new ones if they differ materially or it is time, else those already written.
fn observed(facts: &Facts<'_>) -> Option<ObservedTraffic> {
    let old = facts.before.and_then(|b| b.observed.clone());
    let Some(o) = facts.observation else { return old.filter(|_| !facts.connected) };
    let new = ObservedTraffic {
        ttft_ms: o.ttft_ms.map(significant),
        tpot_ms: o.tpot_ms.map(significant),
        e2e_ms: o.e2e_ms.map(significant),
        rps: Some(significant(o.rps)),
        attainment: o.attainment.map(|a| round(a, 3)),
    };
    match old {
        Some(old) if !facts.refresh_observed && near(&old, &new) => Some(old),
        _ => Some(new),
    }
}

fn near(a: &ObservedTraffic, b: &ObservedTraffic) -> bool {
    let close = |x: Option<f64>, y: Option<f64>| match (x, y) {
        (None, None) => true,
        (Some(x), Some(y)) => (x - y).abs() <= MATERIAL * x.abs().max(y.abs()),
        _ => false,
    };
    close(a.ttft_ms, b.ttft_ms)
        && close(a.tpot_ms, b.tpot_ms)
        && close(a.e2e_ms, b.e2e_ms)
        && close(a.rps, b.rps)
        && close(a.attainment, b.attainment)
}

fn shapes(facts: &Facts<'_>) -> Vec<ShapeStatus> {
    let mut shapes: std::collections::BTreeMap<Shape, (i32, i32)> = std::collections::BTreeMap::new();
    for assignment in facts.plan.iter().flat_map(|p| &p.pool.replicas) {
        shapes.entry(assignment.shape.clone()).or_default().0 += 1;
    }
    for replica in facts.replicas.iter().filter(|r| r.phase == ReplicaPhase::Ready) {
        shapes.entry(replica.shape.clone()).or_default().1 += 1;
    }
    shapes
        .into_iter()
        .map(|(shape, (desired, ready))| ShapeStatus {
            load_line_rps: facts
                .plan
                .and_then(|p| p.pool.load_lines.iter().find(|(s, _)| *s == shape))
                .map(|(_, rps)| significant(*rps)),
            shape: shape.to_string(),
            tensor_parallel: shape.tensor_parallel as i32,
            pipeline_parallel: shape.pipeline_parallel as i32,
            role: shape.role.to_string(),
            variant: shape.variant,
            accelerator: shape.accelerator,
            desired,
            ready,
        })
        .collect()
}

/// The pool's default objectives with their names.
fn objectives(accepted: &Accepted) -> [(&'static str, Option<Objective>); 3] {
    let slo = accepted.pool.slo_classes.first().map(|c| c.slo).unwrap_or_default();
    [("TTFT", slo.ttft), ("TPOT", slo.tpot), ("E2E", slo.e2e)]
}

fn pool_conditions(
    facts: &Facts<'_>,
    ready: usize,
    desired: usize,
    observed: Option<&ObservedTraffic>,
) -> Vec<Condition> {
    let generation = facts.resource.metadata.generation;
    let make = |type_: &str, status: Option<bool>, reason: &str, message: String| {
        condition(type_, status, reason, message, generation, facts.now)
    };
    let accepted = match facts.verdict {
        Err(r) => {
            return vec![
                make(conditions::ACCEPTED, Some(false), r.reason, r.message.clone()),
                make(conditions::READY, Some(false), "NotAccepted", "the pool is not accepted".to_owned()),
            ];
        }
        Ok(accepted) => accepted,
    };
    let mut all = vec![match &accepted.outdated {
        None => make(conditions::ACCEPTED, Some(true), "Valid", String::new()),
        Some(r) => {
            let kept = format!("{}; generation {} stays in force", r.message, accepted.pool.generation);
            make(conditions::ACCEPTED, Some(false), r.reason, kept)
        }
    }];
    let outcome = facts.plan.map(|p| p.pool.outcome);
    all.push(match facts.plan {
        Some(p) if p.pool.outcome == PoolOutcome::Infeasible => {
            make(conditions::PLANNED, Some(false), "NoShapeFits", p.pool.why.summary.clone())
        }
        // The number is in status.plan: a message that changed with every plan would be noise.
        Some(_) => make(conditions::PLANNED, Some(true), "Planned", String::new()),
        None if facts.connected => make(
            conditions::PLANNED,
            Some(false),
            "AwaitingPlan",
            "the scheduler has not planned this generation yet".to_owned(),
        ),
        None => make(conditions::PLANNED, None, "SchedulerAway", "the scheduler is not connected".to_owned()),
    });
    all.push(if accepted.pool.mode == Mode::Advise {
        make(conditions::READY, None, "Advise", "mode Advise: nothing is started".to_owned())
    } else if outcome == Some(PoolOutcome::ScaledToZero) && desired == 0 {
        make(conditions::READY, Some(true), "ScaledToZero", String::new())
    } else if ready >= desired && (desired > 0 || outcome == Some(PoolOutcome::Served)) {
        make(conditions::READY, Some(true), "AllReplicasServe", String::new())
    } else {
        let said = facts.replicas.iter().find(|r| r.phase == ReplicaPhase::Failed && !r.message.is_empty());
        let gated = facts.replicas.iter().find(|r| r.gated && r.phase == ReplicaPhase::Pending);
        let reason = if !facts.problems.is_empty() {
            "ChangesRefused"
        } else if said.is_some() {
            "ReplicaFailed"
        } else if gated.is_some() {
            "AwaitingAdmission"
        } else {
            "ReplicasMissing"
        };
        let detail = facts
            .problems
            .first()
            .cloned()
            .or_else(|| said.map(|r| format!("{}: {}", r.id, r.message)))
            .or_else(|| gated.map(|r| format!("{} {}", r.id, r.message)))
            .map_or_else(String::new, |d| format!("; {d}"));
        make(conditions::READY, Some(false), reason, format!("{ready} of {desired} replicas serve{detail}"))
    });
    all.push(progressing(facts, accepted, &make));
    all.push(slo_met(accepted, observed, &make));
    all.extend(drift(facts, &make));
    let limited = |limit: PoolOutcome| match facts.plan {
        Some(p) if p.pool.outcome == limit => {
            (Some(true), format!("{} ({} of demand unserved)", p.pool.why.summary, share(p.pool)))
        }
        Some(_) => (Some(false), String::new()),
        None => (None, String::new()),
    };
    for (type_, outcome, reason) in [
        (conditions::BUDGET_LIMITED, PoolOutcome::BudgetLimited, "BudgetBinds"),
        (conditions::CAPACITY_LIMITED, PoolOutcome::CapacityLimited, "AcceleratorsShort"),
    ] {
        let (status, message) = limited(outcome);
        let reason = match status {
            Some(true) => reason,
            Some(false) => "NotLimited",
            None => "AwaitingPlan",
        };
        all.push(make(type_, status, reason, message));
    }
    all
}

fn share(plan: &PoolPlan) -> String {
    let total = plan.demand.total_rps();
    if total > 0.0 { format!("{:.0} %", 100.0 * plan.unserved_rps / total) } else { "none".to_owned() }
}

fn progressing(facts: &Facts<'_>, accepted: &Accepted, make: MakeCondition<'_>) -> Condition {
    if accepted.pool.mode == Mode::Advise {
        return make(PROGRESSING, None, "Advise", "mode Advise: nothing is replaced".to_owned());
    }
    if let Some((reason, why)) = standstill(facts, accepted) {
        return make(PROGRESSING, Some(false), reason, why);
    }
    match facts.rollout {
        None => make(PROGRESSING, Some(true), "UpToDate", String::new()),
        Some(progress) if accepted.pool.rollout.paused => {
            make(PROGRESSING, Some(true), "Paused", format!("{}; spec.rollout.paused", progress.text()))
        }
        Some(progress) => make(PROGRESSING, Some(true), ROLLING_OUT, going_text(facts, accepted, progress)),
    }
}

/// Whether replicas run at another speed than predicted; unsaid of pools that never drifted, and kept while nobody can tell.
fn drift(facts: &Facts<'_>, make: MakeCondition<'_>) -> Option<Condition> {
    let type_ = conditions::PREDICTION_DRIFT;
    let before = facts.before.and_then(|b| conditions::find(&b.conditions, type_));
    match facts.observation {
        Some(o) if !o.drift.is_empty() => Some(make(
            type_,
            Some(true),
            "SpeedChanged",
            format!(
                "{}; slower ones are planned with that much more room; measure anew with plimsoll profile",
                o.drift
            ),
        )),
        Some(_) => before.map(|_| make(type_, Some(false), "AsPredicted", String::new())),
        None => before.cloned(),
    }
}

fn slo_met(accepted: &Accepted, observed: Option<&ObservedTraffic>, make: MakeCondition<'_>) -> Condition {
    let seen = |name: &str| match name {
        "TTFT" => observed.and_then(|o| o.ttft_ms),
        "TPOT" => observed.and_then(|o| o.tpot_ms),
        _ => observed.and_then(|o| o.e2e_ms),
    };
    let pairs: Vec<(&str, Objective, f64)> = objectives(accepted)
        .into_iter()
        .filter_map(|(name, objective)| Some((name, objective?, seen(name)?)))
        .collect();
    let missed: Vec<String> = pairs
        .iter()
        .filter(|(_, objective, ms)| *ms > objective.ms)
        .map(|(name, objective, ms)| {
            format!(
                "{name} {} is {} ms, above {} ms",
                objective.percentile,
                ms_text(*ms),
                ms_text(objective.ms)
            )
        })
        .collect();
    if pairs.is_empty() {
        make(conditions::SLO_MET, None, "NoTraffic", "no request was observed lately".to_owned())
    } else if missed.is_empty() {
        make(conditions::SLO_MET, Some(true), "Met", String::new())
    } else {
        make(conditions::SLO_MET, Some(false), "Missed", missed.join("; "))
    }
}

fn summary(
    facts: &Facts<'_>,
    ready: usize,
    desired: usize,
    usd_per_hour: f64,
    predicted: Option<&Latencies>,
    observed: Option<&ObservedTraffic>,
) -> Summary {
    let Ok(accepted) = facts.verdict else {
        return Summary {
            ready: format!("{ready}/{desired}"),
            shape: NONE.to_owned(),
            usd_per_hour: "0.00".to_owned(),
            ttft: NONE.to_owned(),
            tpot: NONE.to_owned(),
            why: facts.verdict.err().map(|r| r.message.clone()).unwrap_or_default(),
        };
    };
    let [(_, ttft), (_, tpot), _] = objectives(accepted);
    let idle = desired == 0;
    let cell = |objective: Option<Objective>, seen: Option<f64>, expected: Option<f64>| {
        if idle { NONE.to_owned() } else { latency_cell(objective, seen, expected) }
    };
    let shape = match facts.plan {
        Some(p) if p.pool.outcome == PoolOutcome::ScaledToZero && desired == 0 => "scaled to zero".to_owned(),
        Some(p) => p.pool.fleet_text(),
        None => {
            facts.before.and_then(|b| b.summary.as_ref()).map_or_else(|| NONE.to_owned(), |s| s.shape.clone())
        }
    };
    Summary {
        ready: format!("{ready}/{desired}"),
        shape,
        usd_per_hour: format!("{usd_per_hour:.2}"),
        ttft: cell(ttft, observed.and_then(|o| o.ttft_ms), predicted.and_then(|p| p.ttft_ms)),
        tpot: cell(tpot, observed.and_then(|o| o.tpot_ms), predicted.and_then(|p| p.tpot_ms)),
        why: why_cell(facts, accepted),
    }
}

/// `412/800 ms`, `~412/800 ms` where only predicted; the percentile is added where it is not p95.
fn latency_cell(objective: Option<Objective>, observed: Option<f64>, predicted: Option<f64>) -> String {
    let value = match (observed, predicted) {
        (Some(ms), _) => Some(ms_text(ms)),
        (None, Some(ms)) => Some(format!("~{}", ms_text(ms))),
        (None, None) => None,
    };
    match (value, objective) {
        (None, None) => NONE.to_owned(),
        (Some(value), None) => format!("{value} ms"),
        (value, Some(objective)) => {
            let suffix = if objective.percentile == Percentile::P95 {
                String::new()
            } else {
                format!(" {}", objective.percentile)
            };
            format!("{}/{} ms{suffix}", value.as_deref().unwrap_or(NONE), ms_text(objective.ms))
        }
    }
}

fn why_cell(facts: &Facts<'_>, accepted: &Accepted) -> String {
    if let Some(rejection) = &accepted.outdated {
        return rejection.message.clone();
    }
    if let Some(problem) = facts.problems.first() {
        return problem.clone();
    }
    if let Some((_, why)) = standstill(facts, accepted) {
        return format!("rollout: {why}");
    }
    if let Some(progress) = facts.rollout {
        return going_text(facts, accepted, progress);
    }
    match facts.plan {
        Some(_) if adopted::nothing(facts) => adopted::NOTHING.to_owned(),
        Some(p) if accepted.pool.mode == Mode::Advise => {
            let compared = p.pool.comparison().map_or_else(String::new, |c| format!("{c}: "));
            format!("advice only: {compared}{}", p.pool.why.summary)
        }
        Some(p) => p.pool.why.summary.clone(),
        None if facts.connected => "waiting for a plan".to_owned(),
        None => "waiting for the scheduler".to_owned(),
    }
}

fn why(facts: &Facts<'_>) -> Vec<String> {
    let mut lines: Vec<String> = facts.verdict.err().map(|r| r.message.clone()).into_iter().collect();
    if adopted::nothing(facts) {
        lines.push(adopted::NOTHING.to_owned());
    }
    if let Some(p) = facts.plan {
        let why = &p.pool.why;
        lines.extend(p.pool.comparison());
        lines.extend(p.pool.today.iter().flat_map(|t| &t.misses).map(|miss| format!("today's {miss}")));
        lines.push(why.summary.clone());
        if p.pool.unserved_rps > 1e-9 {
            lines.push(format!("unserved: {:.2} requests/s ({})", p.pool.unserved_rps, p.pool.outcome));
        }
        lines.extend(why.binding.iter().map(|b| format!("binding: {b}")));
        lines.extend(
            why.runner_up.iter().map(|r| {
                format!("runner-up: {} at {:+.2} $/h, {}", r.fleet, r.extra_usd_per_hour, r.because)
            }),
        );
        lines.extend(why.remarks.iter().cloned());
        lines.extend(why.would_help.iter().map(|w| format!("would help: {w}")));
        lines.extend(why.rejected.iter().map(|r| format!("cannot serve: {r}")));
    } else if facts.verdict.is_ok() {
        // Reasons of the earlier plan stay until the next.
        lines.extend(facts.before.map(|b| b.why.clone()).unwrap_or_default());
    }
    lines.extend(facts.problems.iter().map(|p| format!("problem: {p}")));
    if let Some(progress) = facts.rollout {
        lines.push(match facts.verdict {
            Ok(accepted) => going_text(facts, accepted, progress),
            Err(_) => progress.text(),
        });
    }
    if let Ok(accepted) = facts.verdict {
        lines.extend(standstill(facts, accepted).map(|(_, why)| format!("rollout: {why}")));
    }
    lines.retain(|l| !l.is_empty());
    let mut seen = std::collections::BTreeSet::new();
    lines.retain(|l| seen.insert(l.clone()));
    lines
}

fn scalings(facts: &Facts<'_>, mut before: Vec<Scaled>) -> Vec<Scaled> {
    let Some(p) = facts.plan else { return before };
    let to = p.pool.fleet_text();
    let from = before.first().map_or_else(|| NONE.to_owned(), |s| s.to.clone());
    if from != to {
        let reason = [p.trigger, p.pool.why.summary.as_str()]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("; ");
        let number = i64::try_from(p.number).unwrap_or(i64::MAX);
        before.insert(0, Scaled { at: p.created_at.to_string(), plan: number, from, to, reason });
        before.truncate(KEPT_SCALINGS);
    }
    before
}

/// Whether two statuses say the same, times of conditions aside.
pub fn same(a: &ModelPoolStatus, b: &ModelPoolStatus) -> bool {
    let without = |s: &ModelPoolStatus| ModelPoolStatus { conditions: Vec::new(), ..s.clone() };
    conditions::same(&a.conditions, &b.conditions) && without(a) == without(b)
}

/// The Events that the step from one status to the next is worth.
pub fn notes(
    resource: &ModelPool,
    before: Option<&ModelPoolStatus>,
    after: &ModelPoolStatus,
    now: Timestamp,
) -> Vec<Note> {
    let note = |warning: bool, reason: &'static str, message: String, key: String| Note {
        regarding: reference(resource),
        warning,
        reason,
        message,
        key,
        at: now,
    };
    let mut notes = Vec::new();
    let newest = before.and_then(|b| b.scalings.first());
    if let Some(scaled) = after.scalings.first().filter(|s| Some(*s) != newest) {
        let message = format!("{} → {}: {} (plan {})", scaled.from, scaled.to, scaled.reason, scaled.plan);
        notes.push(note(false, "Scaled", message, scaled.at.clone()));
    }
    let entered = |type_: &str, status: &str, reason: Option<&str>| {
        let is = |s: &ModelPoolStatus| {
            conditions::find(&s.conditions, type_)
                .filter(|c| c.status == status && reason.is_none_or(|r| c.reason == r))
                .cloned()
        };
        is(after).filter(|now| match before.and_then(is) {
            None => true,
            // Another reason to reject is news; a new figure in a limit's message is not.
            Some(then) => type_ == conditions::ACCEPTED && then.message != now.message,
        })
    };
    let generation = after.observed_generation.unwrap_or(0).to_string();
    if let Some(c) = entered(conditions::ACCEPTED, "False", None) {
        let reason = if c.reason == "NameTaken" { "NameTaken" } else { "Invalid" };
        notes.push(note(true, reason, c.message, generation.clone()));
    }
    if let Some(c) = entered(conditions::PLANNED, "False", Some("NoShapeFits")) {
        notes.push(note(true, "NoShapeFits", c.message, generation.clone()));
    }
    let rollout = |status: &str, reason: &str| entered(PROGRESSING, status, Some(reason));
    if let Some(c) = rollout("True", ROLLING_OUT) {
        notes.push(note(false, "RolloutStarted", c.message, generation.clone()));
    }
    for (reason, event) in [
        (ROLLOUT_STUCK, ROLLOUT_STUCK),
        (CANARY_HELD, CANARY_HELD),
        (SLO_REGRESSION, "RolloutStopped"),
        (START_FAILED, "RolloutStopped"),
    ] {
        if let Some(c) = rollout("False", reason) {
            notes.push(note(true, event, c.message, generation.clone()));
        }
    }
    let rolled = before
        .and_then(|b| conditions::find(&b.conditions, PROGRESSING))
        .is_some_and(|c| [ROLLING_OUT, ROLLOUT_STUCK, CANARY_HELD].contains(&c.reason.as_str()));
    if rolled && rollout("True", "UpToDate").is_some() {
        let message = "every replica runs the current engine configuration".to_owned();
        notes.push(note(false, "RolloutComplete", message, generation.clone()));
    }
    for (type_, reason) in
        [(conditions::BUDGET_LIMITED, "BudgetLimited"), (conditions::CAPACITY_LIMITED, "CapacityLimited")]
    {
        if let Some(c) = entered(type_, "True", None) {
            notes.push(note(true, reason, c.message, after.plan.unwrap_or(0).to_string()));
        }
    }
    notes
}
