//! Reasons: why a pool got what it got, with real figures.
//!
//! A plan carries a cheap summary for each pool, from what its solve knows anyway: O(candidates × classes).
//! [`deepen`] answers a person who asks: it tests alternatives and changes by planning them.

pub mod applied;
mod deepen;
mod diff;
pub(crate) mod remarks;
pub mod what_if;

pub use deepen::deepen;
pub use diff::{Action, PoolDiff, Summary, diff};

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_fleet::plan::{BindingConstraint, RunnerUp, Why};
use plimsoll_fleet::pool::Disaggregation;
use plimsoll_fleet::{BudgetUnit, ClusterSnapshot, Dtype, ModelPool, RequestClass, Shape};

use crate::adapters::Needed;
use crate::plan::candidates::{CandidateSet, Leniency, Rejection};
use crate::plan::inventory::{Cell, Eligibility};
use crate::plan::prepare::{Draft, Fate};
use crate::plan::program::{PoolAnswer, PoolProblem};

/// Most rejected shapes that a [`Why`] names.
const MOST_REJECTED: usize = 6;

/// What keeps a pool from being served in full.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Limiting {
    /// Nothing: it is.
    None,
    /// Accelerators of these classes are used up.
    Capacity {
        /// Class names.
        accelerators: Vec<String>,
    },
    /// A budget has too little left for one more replica.
    Budget {
        /// Name.
        name: String,
        /// What the cap is of; the amounts below are in it.
        unit: BudgetUnit,
        /// Its cap.
        cap: f64,
        /// What is left of it.
        left: f64,
        /// What the replica takes of it that would help and takes least.
        least: f64,
    },
    /// The pool's own replica bound.
    Bound,
}

/// What [`summarise`] needs of the answer for one pool.
pub(crate) struct Facts<'a> {
    pub(crate) problem: &'a PoolProblem<'a>,
    pub(crate) cells: &'a [Cell],
    pub(crate) all: &'a CandidateSet,
    pub(crate) answer: &'a PoolAnswer,
    /// Index of the pool within the cells' eligibility.
    pub(crate) at: usize,
    pub(crate) usd_per_hour: f64,
    pub(crate) unserved_rps: f64,
    pub(crate) limiting: &'a Limiting,
    pub(crate) binding: Vec<BindingConstraint>,
    /// What the pool's LoRA adapters ask of its fleet.
    pub(crate) adapters: Needed,
    pub(crate) notes: Vec<String>,
    /// The budget on whose account variants below the wanted quality may serve.
    pub(crate) lowered: Option<&'a str>,
}

/// Dollars per hour, signed as people write differences.
pub(crate) fn signed_usd(usd: f64) -> String {
    let sign = if usd < -0.005 { "−" } else { "+" };
    format!("{sign}${:.2}/h", usd.abs())
}

/// An amount of a unit, rounded up so that what is written is enough: to whole watts and grams, dollars as they are shown.
pub(crate) fn rounded_up(unit: BudgetUnit, amount: f64) -> f64 {
    match unit {
        BudgetUnit::UsdPerHour => amount,
        BudgetUnit::Watts | BudgetUnit::GramsCo2ePerHour => (amount - 1e-6).ceil(),
    }
}

/// Milliseconds without needless digits.
pub(crate) fn ms(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0} ms")
    } else if value >= 10.0 {
        format!("{value:.1} ms")
    } else {
        format!("{value:.2} ms")
    }
}

/// A latency limit rounded up to a figure that people would write.
pub(crate) fn rounded_up_ms(value: f64) -> f64 {
    let step = match value {
        v if v < 10.0 => 1.0,
        v if v < 100.0 => 5.0,
        v if v < 1000.0 => 10.0,
        _ => 100.0,
    };
    (value / step).ceil() * step
}

/// The fleet of one shape that serves everything, is not ruled out and takes least of a unit, such as dollars per hour:
/// `(amount, replicas, candidate)`, stock and budgets aside.
fn least(facts: &Facts<'_>, unit: BudgetUnit, may: &dyn Fn(usize) -> bool) -> Option<(f64, u32, usize)> {
    let pool = facts.problem;
    let mut best: Option<(f64, u32, usize)> = None;
    for (k, candidate) in pool.set.candidates.iter().enumerate() {
        // Half of a pair serves nothing by itself.
        if !may(k) || candidate.pairing.is_some() {
            continue;
        }
        let need = candidate.replicas_for(&pool.set.classes);
        if !need.is_finite() {
            continue;
        }
        let n = ((need * pool.headroom - 1e-9).ceil() as u32).max(pool.floor).max(1);
        let Some(amount) = facts
            .cells
            .iter()
            .filter(|c| c.accelerator == candidate.shape.accelerator)
            .filter(|c| {
                c.eligible[facts.at] == Eligibility::Open && c.groups(candidate.shape.stage_gpus()) > 0
            })
            .map(|c| pool.consumption(k, c).of(unit) * f64::from(n))
            .min_by(f64::total_cmp)
        else {
            continue;
        };
        if n <= pool.ceiling && best.is_none_or(|(b, _, _)| amount < b - 1e-9) {
            best = Some((amount, n, k));
        }
    }
    best
}

/// The cheapest fleet of one shape other than those in use, or of prefill and decode apart where they are not in use.
fn next_best(facts: &Facts<'_>) -> Option<RunnerUp> {
    let pool = facts.problem;
    let whole = least(facts, BudgetUnit::UsdPerHour, &|k| facts.answer.of(k) == 0)
        .map(|(usd, n, k)| (usd, format!("{n}× {}", pool.set.candidates[k].shape)));
    let apart = facts.all.apart.as_ref().filter(|_| facts.answer.apart.is_empty()).map(|apart| {
        let ((p, n), (d, m)) = (&apart.prefill, &apart.decode);
        (apart.usd_per_hour, format!("{n}× {p} + {m}× {d}"))
    });
    let (usd, fleet) = whole.into_iter().chain(apart).min_by(|a, b| a.0.total_cmp(&b.0))?;
    let extra = usd - facts.usd_per_hour;
    let because = if extra > 0.005 {
        "dearer for the same demand".to_owned()
    } else if extra < -0.005 {
        "switching costs more than it saves, or its accelerators are taken".to_owned()
    } else {
        "costs the same".to_owned()
    };
    Some(RunnerUp { fleet, extra_usd_per_hour: extra, because })
}

/// The reasons that go into every plan.
pub(crate) fn summarise(facts: &Facts<'_>) -> Why {
    let runner_up = next_best(facts).filter(|_| facts.answer.replicas() > 0);
    let pool = facts.problem.pool;
    let total = facts.problem.total_rps();
    let mut would_help = Vec::new();
    let summary = match facts.limiting {
        Limiting::None if facts.answer.replicas() == 0 => match pool.scaling.scale_to_zero_after_seconds {
            Some(_) => {
                format!("no traffic yet; wakes in ~{:.0} s", pool.engine.expected_cold_start_seconds())
            }
            None => "no demand, and spec.scaling.min is 0".to_owned(),
        },
        Limiting::None if facts.answer.zones_short > 0 => format!(
            "served, but spans {} zones fewer than spec.scaling.minZones {}",
            facts.answer.zones_short, facts.problem.min_zones
        ),
        Limiting::None => match &runner_up {
            Some(r) if r.extra_usd_per_hour >= -0.005 => {
                let one = r.fleet.split_once("× ").filter(|_| !r.fleet.contains(" + "));
                let name = one.map_or(r.fleet.as_str(), |(_, s)| s);
                format!("cheapest; next: {name} {}", signed_usd(r.extra_usd_per_hour))
            }
            Some(r) => {
                format!("kept: {} would be {} but must start anew", r.fleet, signed_usd(r.extra_usd_per_hour))
            }
            None if pool.parallelism.disaggregation == Disaggregation::Always => {
                "cheapest pairs of prefill and decode, which spec.parallelism.disaggregation asks for"
                    .to_owned()
            }
            None if !facts.answer.apart.is_empty() => {
                "prefill and decode apart serve it; no replica does alone".to_owned()
            }
            None if facts.answer.counts.keys().map(|(k, _)| k).collect::<BTreeSet<_>>().len() > 1 => {
                "cheapest mix of shapes that serves it".to_owned()
            }
            None => "the only shape that serves it".to_owned(),
        },
        Limiting::Budget { name, unit, cap, left, least: one } => {
            let amount = |x: f64| unit.amount(x);
            let more = format!("+{} buys one more replica", amount(rounded_up(*unit, one - left)));
            would_help.push(format!("budget {name}: {more}"));
            let untouched = (cap - left).abs() < 0.005 * unit.step();
            if facts.answer.replicas() == 0 && untouched {
                let all = least(facts, *unit, &|_| true).map_or(*one, |(all, _, _)| all);
                let rest = if all > one + 0.005 * unit.step() { " to serve everything" } else { "" };
                let (verb, which) = match unit {
                    BudgetUnit::UsdPerHour => ("costs", "cheapest"),
                    BudgetUnit::Watts => ("draws", "most frugal"),
                    BudgetUnit::GramsCo2ePerHour => ("emits", "cleanest"),
                };
                format!(
                    "budget {name} has {}, {which} replica {verb} {}; raise it to {}{rest}",
                    amount(*cap),
                    amount(*one),
                    amount(rounded_up(*unit, all)).trim_end_matches(if *unit == BudgetUnit::UsdPerHour {
                        "/h"
                    } else {
                        ""
                    })
                )
            } else {
                format!(
                    "budget {name} ({}) binds: {:.2} of {total:.2} rps unserved in tier {}; {more}",
                    amount(*cap),
                    facts.unserved_rps,
                    pool.priority,
                )
            }
        }
        Limiting::Capacity { accelerators } => {
            let names: Vec<String> = accelerators.iter().map(|a| a.to_uppercase()).collect();
            if let Some(k) = facts.problem.set.candidates.iter().min_by_key(|k| k.shape.gpus()) {
                would_help.push(format!(
                    "{} more {} for one more replica",
                    k.shape.gpus(),
                    k.shape.accelerator.to_uppercase()
                ));
            }
            let closed = closed_nodes(facts, accelerators);
            if !closed.is_empty() {
                would_help.push(format!("kubectl uncordon {}, or tolerate its taints", closed[0]));
            }
            let names = match closed.as_slice() {
                [] => names.join(" or "),
                [node] => format!("{} ({node} is cordoned or tainted)", names.join(" or ")),
                [node, more @ ..] => {
                    format!("{} ({node} and {} more are cordoned or tainted)", names.join(" or "), more.len())
                }
            };
            if facts.unserved_rps > 0.0 {
                format!(
                    "no free {}: {:.2} of {total:.2} rps unserved in tier {}",
                    names, facts.unserved_rps, pool.priority
                )
            } else if facts.problem.floor > pool.scaling.min_replicas && facts.adapters.hot > 0 {
                let floor = facts.problem.floor;
                format!(
                    "no free {names}: {} replicas short of the {floor} that its LoRA adapters need",
                    facts.answer.short
                )
            } else {
                format!("no free {names}: {} replicas short of spec.scaling.min", facts.answer.short)
            }
        }
        Limiting::Bound => {
            would_help.push(format!("spec.scaling.max above {}", facts.problem.ceiling));
            format!(
                "spec.scaling.max {} binds: {:.2} of {total:.2} rps unserved; raise it",
                facts.problem.ceiling, facts.unserved_rps
            )
        }
    };
    let summary = match remarks::downgraded(facts) {
        Some(downgraded) if *facts.limiting == Limiting::None => downgraded,
        Some(downgraded) => format!("{summary}; {downgraded}"),
        None => summary,
    };
    let (remark, remedies) = out_of_reach(facts.all);
    would_help.extend(remedies);
    would_help.extend(facts.notes.iter().cloned());
    let summary = match remark {
        Some(remark) if facts.answer.replicas() > 0 => format!("{summary}; {remark}"),
        _ => summary,
    };
    Why {
        summary,
        binding: facts.binding.clone(),
        runner_up,
        would_help,
        remarks: remarks::apart(facts)
            .into_iter()
            .chain(remarks::adapters(facts))
            .chain(remarks::spot(facts))
            .collect(),
        rejected: rejected(facts.all),
    }
}

/// Nodes of these classes that the pool's new replicas may not come to, although those that are there may stay.
fn closed_nodes<'a>(facts: &Facts<'a>, accelerators: &[String]) -> Vec<&'a plimsoll_fleet::NodeName> {
    let closed =
        |c: &&Cell| accelerators.contains(&c.accelerator) && c.eligible[facts.at] == Eligibility::KeepOnly;
    facts.cells.iter().filter(closed).flat_map(|c| c.slots.iter().filter_map(|s| s.node.as_ref())).collect()
}

/// What a pool's requests want that no shape gives: a remark for the summary, and what to do about it.
fn out_of_reach(set: &CandidateSet) -> (Option<String>, Vec<String>) {
    let total: f64 = set.classes.iter().map(|c| c.rps).sum();
    let mut remark = None;
    let mut remedies = Vec::new();
    let stretched = |l: &Leniency| match l {
        Leniency::Stretched(by) => Some(*by),
        Leniency::Calm => None,
    };
    let late: Vec<(&RequestClass, f64)> =
        set.lenient.iter().filter_map(|(c, l)| Some((&set.classes[*c], stretched(l)?))).collect();
    if let Some((worst, by)) = late.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1)) {
        let share = 100.0 * late.iter().map(|(c, _)| c.rps).sum::<f64>() / total.max(1e-9);
        remark = Some(format!("{share:.0} % of requests miss their objectives on every shape"));
        remedies.push(format!(
            "spec.slo {by}× as long, or another model: requests of about {:.0} tokens in and {:.0} out miss it on every shape, and are given the replicas that longer limits would take",
            worst.input_tokens, worst.output_tokens
        ));
    }
    if set.lenient.iter().any(|(_, l)| *l == Leniency::Calm) {
        remedies.push(
            "steadier arrivals: requests come in bursts that no shape absorbs within spec.slo; replicas are sized as if they came at random".to_owned(),
        );
    }
    (remark, remedies)
}

/// One line on a shape that was turned down.
pub(crate) fn line(shape: Option<&Shape>, why: &Rejection) -> String {
    match (shape, why) {
        (Some(s), Rejection::DoesNotFit(m)) if m.weight_bytes > 0.0 => format!(
            "{s}: needs {:.0} GB of weights, has {:.0} GB usable",
            m.weight_bytes / 1e9,
            m.usable_bytes / 1e9
        ),
        (Some(s), Rejection::DoesNotFit(m)) => format!("{s}: {}", m.text),
        (Some(s), Rejection::MissesObjective(m)) if !m.metric.is_empty() => {
            format!("{s}: {} {} missed, {} with margin at best", m.metric, m.objective, ms(m.needed_ms))
        }
        (Some(s), Rejection::MissesObjective(m)) => format!("{s}: {}", m.text),
        (Some(s), Rejection::Other(text)) => format!("{s}: {text}"),
        (None, Rejection::Other(text)) => text.clone(),
        (None, Rejection::DoesNotFit(m)) => m.text.clone(),
        (None, Rejection::MissesObjective(m)) => m.text.clone(),
    }
}

/// The most telling rejections: remarks first, then objectives by how nearly they were met, then the largest shapes.
pub(crate) fn rejected(set: &CandidateSet) -> Vec<String> {
    let rank = |r: &(Option<Shape>, Rejection)| -> (u8, f64) {
        match r {
            (None, _) => (0, 0.0),
            (_, Rejection::MissesObjective(m)) => (1, m.needed_ms),
            (Some(s), Rejection::DoesNotFit(_)) => (2, -f64::from(s.gpus())),
            (_, _) => (3, 0.0),
        }
    };
    let mut all: Vec<&(Option<Shape>, Rejection)> = set.rejected.iter().collect();
    all.sort_by(|a, b| {
        let ((x, u), (y, v)) = (rank(a), rank(b));
        x.cmp(&y).then(u.total_cmp(&v)).then_with(|| a.0.cmp(&b.0))
    });
    let mut lines: Vec<String> = all.iter().map(|(s, why)| line(s.as_ref(), why)).collect();
    lines.dedup();
    let more = lines.len().saturating_sub(MOST_REJECTED);
    lines.truncate(MOST_REJECTED);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}

/// Why no shape at all serves a pool: the one line that tells what to change.
pub(crate) fn why_no_shape(snapshot: &ClusterSnapshot, pool: &ModelPool, set: &CandidateSet) -> String {
    // A shape that fits but is too slow comes closest.
    let misses: Vec<(&Shape, &crate::plan::performance::Miss)> = set
        .rejected
        .iter()
        .filter_map(|(s, r)| match (s, r) {
            (Some(s), Rejection::MissesObjective(m)) => Some((s, m)),
            _ => None,
        })
        .collect();
    let timed: Vec<_> = misses.iter().filter(|(_, m)| !m.metric.is_empty()).collect();
    // The objective that most shapes fail on is the one to speak about.
    let mut by_metric: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (_, m) in &timed {
        *by_metric.entry((m.metric.as_str(), m.objective.as_str())).or_default() += 1;
    }
    if let Some(((metric, objective), _)) = by_metric.into_iter().max_by_key(|(_, n)| *n)
        && let Some((shape, m)) = timed
            .iter()
            .filter(|(_, m)| m.metric == metric && m.objective == objective)
            .min_by(|a, b| a.1.needed_ms.total_cmp(&b.1.needed_ms))
    {
        return format!(
            "no shape meets {metric} {objective}: best is {shape} with {}; loosen it to {:.0} ms",
            ms(m.best_ms),
            rounded_up_ms(m.needed_ms * 1.05)
        );
    }
    if let Some((shape, m)) = misses.first() {
        return format!("no shape serves it: {shape}: {}", m.text);
    }
    let fits: Vec<(&Shape, &crate::plan::performance::Misfit)> = set
        .rejected
        .iter()
        .filter_map(|(s, r)| match (s, r) {
            (Some(s), Rejection::DoesNotFit(m)) => Some((s, m)),
            _ => None,
        })
        .collect();
    let weights: Vec<_> = fits.iter().filter(|(_, m)| m.weight_bytes > 0.0).collect();
    if let (Some(need), Some((largest, room))) = (
        weights.iter().map(|(_, m)| m.weight_bytes).min_by(f64::total_cmp),
        weights
            .iter()
            .max_by(|a, b| a.1.usable_bytes.total_cmp(&b.1.usable_bytes))
            .map(|(s, m)| (s, m.usable_bytes)),
    ) && weights.len() == fits.len()
    {
        return format!(
            "no shape fits: needs {:.0} GB of weights, largest allowed shape has {:.0} GB usable ({}× {}){}",
            need / 1e9,
            room / 1e9,
            largest.gpus(),
            largest.accelerator.to_uppercase(),
            remedy(snapshot, pool, need, room, largest)
        );
    }
    if let Some((_, m)) = fits.iter().find(|(_, m)| m.weight_bytes <= 0.0) {
        return format!("no shape fits: {}", m.text);
    }
    let remarks: Vec<String> =
        set.rejected.iter().filter(|(s, _)| s.is_none()).map(|(_, r)| line(None, r)).take(3).collect();
    if !remarks.is_empty() {
        return format!("no shape is allowed: {}", remarks.join("; "));
    }
    if snapshot.accelerators.is_empty() {
        return "no AcceleratorClass exists; create one, e.g. from `plimsoll crds --presets`".to_owned();
    }
    let wanted = if pool.placement.accelerators.is_empty() {
        snapshot.accelerators.iter().map(|a| a.name.to_uppercase()).collect::<Vec<_>>()
    } else {
        pool.placement.accelerators.iter().map(|a| a.to_uppercase()).collect()
    };
    format!(
        "no node has an allowed accelerator ({}); add one, or allow others in spec.placement.accelerators",
        wanted.join(", ")
    )
}

/// What would make weights fit.
fn remedy(snapshot: &ClusterSnapshot, pool: &ModelPool, need: f64, room: f64, largest: &Shape) -> String {
    let mut ways = Vec::new();
    let stages = largest.pipeline_parallel;
    let per_stage = room / f64::from(stages.max(1));
    if per_stage > 0.0 {
        let wanted = (need * 1.02 / per_stage).ceil() as u32;
        let nodes = snapshot
            .nodes
            .iter()
            .filter(|n| n.accelerator == largest.accelerator && n.allocatable_gpus >= largest.stage_gpus())
            .count() as u32;
        if wanted > stages && wanted <= nodes {
            ways.push(format!("allow pipeline: [{wanted}]"));
        }
    }
    let smallest = pool
        .eligible_variants()
        .map(|v| v.weights)
        .min_by(|a, b| a.bytes_per_element().total_cmp(&b.bytes_per_element()));
    if let Some(smallest) = smallest {
        let smaller = [Dtype::Fp8, Dtype::Fp4].into_iter().find(|d| {
            d.bytes_per_element() < smallest.bytes_per_element()
                && need * d.bytes_per_element() / smallest.bytes_per_element() < room
        });
        if let Some(d) = smaller {
            ways.push(format!("add a {d} variant"));
        }
    }
    if ways.is_empty() {
        ways.push("add nodes with more memory".to_owned());
    }
    format!("; {}", ways.join(" or "))
}

/// Reasons for a pool that took no part in the program.
pub(crate) fn of_fixed(draft: &Draft<'_>) -> Why {
    let summary = match &draft.fate {
        Fate::Idle(seconds) => {
            let idle =
                if *seconds >= 90.0 { format!("{:.0}m", seconds / 60.0) } else { format!("{seconds:.0}s") };
            format!("idle {idle}; wakes in ~{:.0} s", draft.pool.engine.expected_cold_start_seconds())
        }
        Fate::Broken(why) => why.clone(),
        Fate::External => "external endpoint: nothing to plan".to_owned(),
        Fate::Planned => String::new(),
    };
    let mut would_help = draft.notes.clone();
    if matches!(draft.fate, Fate::Broken(_)) && !draft.live.is_empty() {
        would_help.insert(0, format!("{} running replicas stay until this is mended", draft.live.len()));
    }
    Why { summary, would_help, rejected: rejected(&draft.all), ..Why::default() }
}
