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
    BudgetUnit, ClusterSnapshot, DemandEstimate, Plan, PoolId, PoolPlan, Role, Shape, StepCoefficients,
};

use super::{rounded_up, signed_usd, what_if};
use crate::plan::inventory::gpus_by_node;
use crate::plan::performance::{Evaluation, Misfit, Performance, Query};
use crate::plan::prepare::{Spent, budgets_of, spend};
use crate::plan::solver::BranchAndBound;
use crate::plan::{EngineModel, PlanInput, PlannerConfig, ShapeCache, plan_with};

/// Share by which an objective is loosened to see what it would bring.
const LOOSEN: f64 = 0.2;
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

/// How a trial compares with the base, in words; `None` if it brings nothing.
fn gain(base: &PoolPlan, trial: &PoolPlan) -> Option<String> {
    let more = base.unserved_rps - trial.unserved_rps;
    let usd = trial.usd_per_hour - base.usd_per_hour;
    if more > 1e-3 {
        let rest = if trial.unserved_rps > 1e-3 { String::new() } else { ", all of it".to_owned() };
        Some(format!("serves {more:.2} rps more{rest}, for {}", signed_usd(usd)))
    } else if more > -1e-3 && trial.replicas.len() >= base.replicas.len().min(1) && usd < -0.005 {
        let with = if trial.fleet_text() == base.fleet_text() {
            String::new()
        } else {
            format!(" with {}", trial.fleet_text())
        };
        Some(format!("{}{with}", signed_usd(usd)))
    } else {
        None
    }
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
    let mut test = |change: &str, says: &dyn Fn(&str) -> String| -> Option<f64> {
        let (s, d) = what_if::apply(&snapshot, &demands, change).ok()?;
        let p = trial.run(&s, &d, &model, input.cache)?;
        let text = gain(&base, &p)?;
        let worth =
            (base.usd_per_hour - p.usd_per_hour) + 1e3 * (base.unserved_rps - p.unserved_rps).max(0.0);
        help.push((worth, says(&text)));
        (base.unserved_rps - p.unserved_rps < 1e-3).then_some(base.usd_per_hour - p.usd_per_hour)
    };
    for class in spec.slo_classes.iter().take(2) {
        let objectives = [("TTFT", class.slo.ttft), ("TPOT", class.slo.tpot), ("E2E", class.slo.e2e)];
        for (metric, objective) in objectives.iter().filter_map(|(m, o)| o.map(|o| (m, o))) {
            let looser = (objective.ms * (1.0 + LOOSEN)).round().max(objective.ms + 1.0);
            let path = format!("{pool}.{}.{}", class.name, metric.to_lowercase());
            test(&format!("slo/{path}={looser}ms"), &|gain| {
                format!("{metric} {looser:.0} ms instead of {:.0}: {gain}", objective.ms)
            });
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
    for class in classes.into_iter().take(8) {
        // The smallest addition that could matter: one group of the smallest size in use or proposed.
        for gpus in [1_u32, 2, 4, 8] {
            let saves = test(&format!("gpu/{class}+{gpus}"), &|gain| {
                format!("{gpus} more {}: {gain}", class.to_uppercase())
            });
            if let Some(usd) = saves {
                binding.push(BindingConstraint {
                    constraint: format!("inventory {class}"),
                    unit: "GPU".to_owned(),
                    usd_per_hour_per_unit: usd / f64::from(gpus),
                });
                break;
            }
        }
    }
    let caps = budgets_of(&snapshot, pool).into_iter().flat_map(|name| BudgetUnit::ALL.map(|u| (name, u)));
    for (name, unit) in caps {
        let budget = snapshot.budgets.iter().find(|b| b.name == name);
        let Some(cap) = budget.and_then(|b| b.cap(unit)).filter(|c| c.is_finite()) else { continue };
        let raise = |to: f64| format!("budget/{name}.{}={to}", unit.field());
        // Without this cap, how much would be taken? That much more is worth asking for.
        let free = what_if::apply(&snapshot, &demands, &raise(1e9))
            .ok()
            .and_then(|(s, d)| trial.run(&s, &d, &model, input.cache))
            .map_or(0.0, |p| p.consumption().of(unit));
        let cents = 100.0 / unit.step();
        let wanted = (free * cents - 1e-6).ceil() / cents;
        if wanted <= cap {
            continue;
        }
        let more = wanted - cap;
        let says = unit.amount(rounded_up(unit, more));
        let saves = test(&raise(wanted), &|gain| format!("budget {name} +{says}: {gain}"));
        if let Some(usd) = saves {
            binding.push(BindingConstraint {
                constraint: format!("budget {name}"),
                unit: unit.step_text().to_owned(),
                usd_per_hour_per_unit: usd / (more / unit.step()),
            });
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
    why.binding.sort_by(|a, b| b.usd_per_hour_per_unit.total_cmp(&a.usd_per_hour_per_unit));
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
