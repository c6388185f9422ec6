//! The full answer to "why": alternatives and changes, each tested by planning the pool anew.
//!
//! The pool is planned alone, with every other pool holding what the plan gave it, so that an explanation costs a
//! bounded number of small solves (one without the chosen shapes, two for each objective, one for each accelerator
//! class and budget: about ten) whatever the size of the fleet. Differences are long-run ones: the price of the
//! change itself is left out.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_fleet::plan::{BindingConstraint, PoolOutcome, Prediction, RunnerUp, Why};
use plimsoll_fleet::pool::Disaggregation;
use plimsoll_fleet::{
    BudgetUnit, ClusterSnapshot, Consumption, DemandEstimate, OnLimit, Plan, PoolId, PoolPlan, Role, Shape,
    StepCoefficients,
};

use super::{rounded_up, signed_usd, what_if};
use crate::plan::inventory::gpus_by_node;
use crate::plan::performance::{Evaluation, Misfit, Performance, Query};
use crate::plan::prepare::{Spent, budgets_of, spend};
use crate::plan::solver::BranchAndBound;
use crate::plan::{EngineModel, PlanInput, PlannerConfig, ShapeCache, plan_with};

/// Shares by which an objective is loosened to see what it would bring: the first that brings something is said.
const LOOSEN: [f64; 2] = [0.2, 0.5];
/// Shares of what a budget lacks for everything that are tried as well: the least that serves more is said.
const PARTS: [f64; 2] = [0.25, 0.5];
/// Accelerators of each class that are tried together with more of all budgets.
const MORE_GPUS: u32 = 64;
/// Most lines of what would help.
const MOST_HELP: usize = 6;
/// A horizon long enough that the price of a change does not matter, seconds.
const LONG_RUN_SECONDS: f64 = 30.0 * 86_400.0;

/// A performance model in which some shapes do not exist.
struct Without<'a> {
    shapes: &'a BTreeSet<Shape>,
    inner: EngineModel,
}

impl Performance for Without<'_> {
    fn evaluate(&self, query: &Query<'_>) -> Result<Evaluation, Misfit> {
        if self.shapes.contains(query.shape) {
            return Err(Misfit { weight_bytes: 0.0, usable_bytes: 0.0, text: "left out".to_owned() });
        }
        self.inner.evaluate(query)
    }

    fn predict(&self, query: &Query<'_>, rps: f64) -> Option<Prediction> {
        self.inner.predict(query, rps)
    }

    fn coefficients(&self, query: &Query<'_>) -> Option<StepCoefficients> {
        self.inner.coefficients(query)
    }
}

/// The cluster as one pool sees it: every other pool's planned replicas and spending are taken from it.
fn alone(input: &PlanInput<'_>, plan: &Plan, pool: &PoolId) -> ClusterSnapshot {
    let mut s = input.snapshot.clone();
    let mut spent = Spent::new();
    for other in plan.pools.iter().filter(|p| &p.pool != pool) {
        for r in &other.replicas {
            for (name, gpus) in gpus_by_node(&r.shape, &r.nodes) {
                if let Some(node) = s.nodes.iter_mut().find(|n| &n.name == name) {
                    node.foreign_gpus += gpus;
                }
            }
            if r.nodes.is_empty()
                && let Some(class) = s.accelerators.iter_mut().find(|a| a.name == r.shape.accelerator)
            {
                class.autoscalable_max = class.autoscalable_max.saturating_sub(r.shape.gpus());
            }
        }
        spend(input.snapshot, &other.pool, &other.consumption(), &mut spent);
    }
    for b in &mut s.budgets {
        for unit in BudgetUnit::ALL {
            if let (Some(cap), Some(spent)) = (b.cap(unit), spent.get(&(b.name.clone(), unit))) {
                b.set_cap(unit, (cap - spent).max(0.0));
            }
        }
    }
    s.pools.retain(|p| &p.id == pool);
    s.replicas.retain(|r| &r.pool == pool);
    s
}

/// Plans a changed world with one pool.
struct Trial<'a> {
    input: &'a PlanInput<'a>,
    config: PlannerConfig,
    pool: &'a PoolId,
}

impl Trial<'_> {
    fn run(
        &self,
        snapshot: &ClusterSnapshot,
        demands: &BTreeMap<PoolId, DemandEstimate>,
        model: &dyn Performance,
        cache: &ShapeCache,
    ) -> Option<PoolPlan> {
        let input = PlanInput { snapshot, demands, config: &self.config, cache, ..self.input.clone() };
        let mut plan = plan_with(&input, model, &BranchAndBound).plan;
        let at = plan.pools.iter().position(|p| &p.pool == self.pool)?;
        Some(plan.pools.swap_remove(at))
    }
}

/// What a change brings.
#[derive(Debug, Clone, Copy)]
struct Gain {
    /// Dollars per hour saved; less than nothing where more is served for more.
    usd_per_hour: f64,
    /// Requests per second served more.
    rps: f64,
}

impl Gain {
    /// As a limit that binds, of which this many units were added.
    fn binding(self, constraint: String, unit: String, units: f64) -> BindingConstraint {
        let unserved = self.rps > 1e-3;
        let usd_per_hour_per_unit = if unserved { 0.0 } else { self.usd_per_hour / units };
        BindingConstraint { constraint, unit, usd_per_hour_per_unit, unserved }
    }
}

/// How a trial compares with the base, in words; `None` if it brings nothing.
fn gain(base: &PoolPlan, trial: &PoolPlan) -> Option<String> {
    let more = base.unserved_rps - trial.unserved_rps;
    let usd = trial.usd_per_hour - base.usd_per_hour;
    if more > 1e-3 {
        let rest = if trial.unserved_rps > 1e-3 { "" } else { ", all of it" };
        let attainment = |p: &PoolPlan| 1.0 - p.unserved_rps / base.demand.total_rps().max(1e-9);
        Some(format!(
            "serves {more:.2} rps more{rest} (attainment {:.3} → {:.3}), for {}",
            attainment(base).max(0.0),
            attainment(trial).max(0.0),
            signed_usd(usd)
        ))
    } else if more > -1e-3 && trial.replicas.len() >= base.replicas.len().min(1) && usd < -0.005 {
        let with = if trial.fleet_text() == base.fleet_text() {
            String::new()
        } else {
            format!(" with {}{}", trial.fleet_text(), enough(base, trial))
        };
        Some(format!("{}{with}", signed_usd(usd)))
    } else {
        None
    }
}

/// The accelerator that serves a pool in a trial and did not before.
fn enough(base: &PoolPlan, trial: &PoolPlan) -> String {
    let kinds = |p: &PoolPlan| -> BTreeSet<String> {
        p.replicas.iter().map(|r| r.shape.accelerator.to_uppercase()).collect()
    };
    let new: Vec<String> = kinds(trial).difference(&kinds(base)).cloned().collect();
    if new.is_empty() { String::new() } else { format!(": {} becomes enough", new.join(" and ")) }
}

/// Explains one pool of a plan in full: the runner-up found by planning without the chosen shapes, the constraints
/// that bind with what one more unit would save, and what would help, each line tested. `input` is what the plan was
/// made from. Without such a pool in both, the answer is empty but for its summary.
pub fn deepen(input: &PlanInput<'_>, plan: &Plan, pool: &PoolId) -> Why {
    let (Some(planned), Some(spec)) = (plan.pool(pool), input.snapshot.pools.iter().find(|p| &p.id == pool))
    else {
        return Why { summary: format!("there is no pool {pool} in plan {}", plan.number), ..Why::default() };
    };
    let mut why = planned.why.clone();
    let snapshot = alone(input, plan, pool);
    let demands: BTreeMap<PoolId, DemandEstimate> =
        input.demands.get(pool).map(|d| (pool.clone(), d.clone())).into_iter().collect();
    let config = PlannerConfig { change_horizon_seconds: LONG_RUN_SECONDS, ..input.config.clone() };
    let trial = Trial { input, config, pool };
    let model = EngineModel;
    let Some(base) = trial.run(&snapshot, &demands, &model, input.cache) else { return why };

    let chosen: BTreeSet<Shape> = planned.by_shape().into_keys().collect();
    if !chosen.is_empty() {
        let without = Without { shapes: &chosen, inner: model };
        why.runner_up = trial
            .run(&snapshot, &demands, &without, &ShapeCache::default())
            .filter(|p| !p.replicas.is_empty())
            .map(|p| runner_up(planned, &p));
    }

    if spec.parallelism.disaggregation == Disaggregation::Auto
        && spec.engine.kind.disaggregates()
        && let Some(apart) = chosen.first().map(|_| chosen.iter().any(|s| s.role != Role::Mixed))
    {
        let mut other = snapshot.clone();
        let kind = if apart { Disaggregation::Never } else { Disaggregation::Always };
        other.pools.iter_mut().for_each(|p| p.parallelism.disaggregation = kind);
        let name = if apart { "prefill and decode together" } else { "prefill and decode apart" };
        why.remarks.extend(trial.run(&other, &demands, &model, input.cache).map(|p| {
            match p.replicas.is_empty() || p.outcome == PoolOutcome::Infeasible {
                true => format!("{name}: {}", p.why.summary),
                false => format!("{name}: {}, {}", p.fleet_text(), runner_up(planned, &p).because),
            }
        }));
    }

    let mut help: Vec<(f64, String)> = Vec::new();
    let mut binding: Vec<BindingConstraint> = Vec::new();
    // What all of some changes save, and what they serve more, if they bring anything.
    let mut test = |changes: &[String], says: &dyn Fn(&str) -> String| -> Option<Gain> {
        let mut changed = (snapshot.clone(), demands.clone());
        for change in changes {
            changed = what_if::apply(&changed.0, &changed.1, change).ok()?;
        }
        let p = trial.run(&changed.0, &changed.1, &model, input.cache)?;
        let text = gain(&base, &p)?;
        let gain = Gain {
            usd_per_hour: base.usd_per_hour - p.usd_per_hour,
            rps: (base.unserved_rps - p.unserved_rps).max(0.0),
        };
        help.push((gain.usd_per_hour + 1e3 * gain.rps, says(&text)));
        Some(gain)
    };
    for class in spec.slo_classes.iter().take(2) {
        let objectives = [("TTFT", class.slo.ttft), ("TPOT", class.slo.tpot), ("E2E", class.slo.e2e)];
        for (metric, objective) in objectives.iter().filter_map(|(m, o)| o.map(|o| (m, o))) {
            let path = format!("{pool}.{}.{}", class.name, metric.to_lowercase());
            for share in LOOSEN {
                let looser = (objective.ms * (1.0 + share)).round().max(objective.ms + 1.0);
                let tested = test(&[format!("slo/{path}={looser}ms")], &|gain| {
                    format!("{metric} {looser:.0} ms instead of {:.0}: {gain}", objective.ms)
                });
                if tested.is_some() {
                    break;
                }
            }
        }
    }
    let mut classes: Vec<&str> = snapshot
        .accelerators
        .iter()
        .map(|a| a.name.as_str())
        .filter(|a| {
            spec.placement.accelerators.is_empty() || spec.placement.accelerators.iter().any(|x| x == a)
        })
        .collect();
    classes.sort_unstable();
    for class in classes.iter().copied().take(8) {
        // The smallest addition that could matter: one group of the smallest size in use or proposed.
        for gpus in [1_u32, 2, 4, 8] {
            let brings = test(&[format!("gpu/{class}+{gpus}")], &|gain| {
                format!("{gpus} more {}: {gain}", class.to_uppercase())
            });
            if let Some(gain) = brings {
                let (constraint, unit) = (format!("inventory {class}"), "GPU".to_owned());
                binding.push(gain.binding(constraint, unit, f64::from(gpus)));
                break;
            }
        }
    }
    let caps: Vec<(&str, BudgetUnit, f64)> = budgets_of(&snapshot, pool)
        .into_iter()
        .flat_map(|name| BudgetUnit::ALL.map(|unit| (name, unit)))
        .filter_map(|(name, unit)| {
            let budget = snapshot.budgets.iter().find(|b| b.name == name)?;
            let cap = budget.cap(unit).filter(|c| c.is_finite())?;
            (budget.on_limit != OnLimit::Alert).then_some((name, unit, cap))
        })
        .collect();
    let raise = |name: &str, unit: BudgetUnit, to: f64| format!("budget/{name}.{}={to}", unit.field());
    let taken_without = |changes: &[String]| -> Option<Consumption> {
        let mut changed = (snapshot.clone(), demands.clone());
        for change in changes {
            changed = what_if::apply(&changed.0, &changed.1, change).ok()?;
        }
        Some(trial.run(&changed.0, &changed.1, &model, input.cache)?.consumption())
    };
    // What is worth asking for is what would be taken without a cap, in whole cents, watts or grams.
    let wanted = |takes: &Consumption, unit: BudgetUnit| {
        let cents = 100.0 / unit.step();
        (takes.of(unit) * cents - 1e-6).ceil() / cents
    };
    let mut helped = false;
    for (name, unit, cap) in &caps {
        let Some(free) = taken_without(&[raise(name, *unit, 1e9)]) else { continue };
        let wanted = wanted(&free, *unit);
        if wanted <= *cap {
            continue;
        }
        let more = wanted - cap;
        let parts = PARTS.iter().filter(|_| base.unserved_rps > 1e-3);
        for share in parts.chain([&1.0]) {
            let step = if *share < 1.0 { (more * share).ceil().min(more) } else { more };
            let says = unit.amount(rounded_up(*unit, step));
            let brings =
                test(&[raise(name, *unit, cap + step)], &|gain| format!("budget {name} +{says}: {gain}"));
            if let Some(gain) = brings {
                let (constraint, per) = (format!("budget {name}"), unit.step_text().to_owned());
                binding.retain(|b| b.constraint != constraint || b.unit != per);
                binding.push(gain.binding(constraint, per, step / unit.step()));
                helped |= gain.rps > 1e-3;
            }
        }
    }
    if base.unserved_rps > 1e-3 && !helped && !caps.is_empty() {
        // Several limits bind at once: none alone would help, all together may, with more accelerators if need be.
        let lifted: Vec<String> = caps.iter().map(|(name, unit, _)| raise(name, *unit, 1e9)).collect();
        let most = classes.iter().take(8).map(|class| format!("gpu/{class}+{MORE_GPUS}"));
        for accelerators in [Vec::new(), most.collect::<Vec<String>>()] {
            let all: Vec<String> = lifted.iter().chain(&accelerators).cloned().collect();
            let Some(free) = taken_without(&all) else { continue };
            let short = || caps.iter().filter(|(_, unit, cap)| wanted(&free, *unit) > *cap);
            let amount = |(name, unit, cap): &(&str, BudgetUnit, f64)| {
                format!("budget {name} +{}", unit.amount(rounded_up(*unit, wanted(&free, *unit) - cap)))
            };
            let mut names: Vec<String> = short().map(amount).collect();
            if !accelerators.is_empty() {
                names.push("more accelerators".to_owned());
            }
            let mut changes: Vec<String> = short().map(|(n, u, _)| raise(n, *u, wanted(&free, *u))).collect();
            changes.extend(accelerators);
            if names.len() > 1
                && test(&changes, &|gain| format!("{}, together: {gain}", names.join(" and "))).is_some()
            {
                break;
            }
        }
    }
    help.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    help.dedup_by(|a, b| a.1 == b.1);
    // Tested figures replace the estimates of the plan's own summary; remarks on bad input stay.
    why.would_help.retain(|line| !line.contains("more replica"));
    let mut lines: Vec<String> = help.into_iter().map(|(_, line)| line).take(MOST_HELP).collect();
    lines.append(&mut why.would_help);
    why.would_help = lines;
    for b in binding {
        why.binding.retain(|x| {
            (x.constraint != b.constraint || x.unit != b.unit)
                && !x.constraint.starts_with(&format!("{} ", b.constraint))
        });
        why.binding.push(b);
    }
    why.binding.sort_by(|a, b| {
        b.unserved.cmp(&a.unserved).then(b.usd_per_hour_per_unit.total_cmp(&a.usd_per_hour_per_unit))
    });
    why
}

fn runner_up(chosen: &PoolPlan, other: &PoolPlan) -> RunnerUp {
    let extra = other.usd_per_hour - chosen.usd_per_hour;
    let because = if other.unserved_rps > chosen.unserved_rps + 1e-3 {
        format!("leaves {:.2} rps more unserved", other.unserved_rps - chosen.unserved_rps)
    } else if extra > 0.005 {
        format!("{} for the same demand", signed_usd(extra))
    } else if extra < -0.005 {
        "cheaper in the long run, but the switch costs more than it saves soon".to_owned()
    } else if other.replicas.len() < chosen.replicas.len() {
        "costs the same, less spare when a node is lost".to_owned()
    } else {
        "costs the same".to_owned()
    };
    RunnerUp { fleet: other.fleet_text(), extra_usd_per_hour: extra, because }
}
