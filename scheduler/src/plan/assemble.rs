//! From answers and placements to the [`Plan`].

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_fleet::plan::{
    BindingConstraint, BudgetUse, Flow, PoolOutcome, Prediction, SolveQuality, Unprovisioned,
};
use plimsoll_fleet::{
    BudgetUnit, Consumption, Plan, PoolPlan, ReplicaAssignment, ReplicaId, RequestClass, Shape,
};

use super::performance::{Performance, Query};
use super::prepare::{Draft, Fate, Spent, budget_notes, budgets_of, live_consumption, live_watts, spend};
use super::program::{Coupling, PartShare, PoolProblem, row_unit};
use super::provision;
use super::residual::Remaining;
use super::today::today;
use super::{Group, PlanInput, PlanOutcome, engine_config, together};
use crate::explain::{self, Limiting};

/// Names for new replicas: `<pool>-<serial in base 36>`, never one that exists.
struct Names<'a> {
    next: u64,
    taken: BTreeSet<&'a str>,
}

impl Names<'_> {
    fn fresh(&mut self, pool: &str) -> Option<ReplicaId> {
        // A pod's name doubles as its host name: leave room for the serial within 63 characters.
        let stem: String = pool.chars().take(48).collect();
        let stem = stem.trim_end_matches(['-', '.']);
        loop {
            let name = format!("{stem}-{}", base36(self.next));
            self.next = self.next.wrapping_add(1);
            if !self.taken.contains(name.as_str()) {
                return ReplicaId::new(name).ok();
            }
        }
    }
}

fn base36(mut n: u64) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut text = Vec::new();
    loop {
        text.push(char::from(DIGITS[(n % 36) as usize]));
        n /= 36;
        if n == 0 {
            return text.into_iter().rev().collect();
        }
    }
}

/// Writes the plan down.
pub(crate) fn assemble(
    input: &PlanInput<'_>,
    drafts: &[Draft<'_>],
    groups: &[Group<'_>],
    unprovisioned: Vec<Unprovisioned>,
    model: &dyn Performance,
) -> PlanOutcome {
    let mut taken: BTreeSet<&str> = input.snapshot.replicas.iter().map(|r| r.id.as_str()).collect();
    taken.extend(
        input.previous.iter().flat_map(|p| &p.pools).flat_map(|p| &p.replicas).map(|r| r.id.as_str()),
    );
    let mut names = Names { next: input.next_serial, taken };
    let mut pools: BTreeMap<usize, PoolPlan> = BTreeMap::new();
    let mut binding: Vec<BindingConstraint> = Vec::new();
    let mut quality = SolveQuality::default();
    for group in groups {
        quality.objective += group.answer.objective;
        quality.bound += group.answer.bound;
        binding.extend(group.answer.prices.iter().map(|(what, price)| constraint(group, what, *price)));
        let mut left = remaining(group);
        for (at, member) in group.members.iter().enumerate() {
            pools.insert(*member, planned(input, &drafts[*member], group, at, &mut left, &mut names, model));
        }
    }
    for (i, draft) in drafts.iter().enumerate() {
        let plan = pools.entry(i).or_insert_with(|| fixed(input, draft));
        plan.today = today(input, draft, model);
    }
    quality.gap = if quality.objective.abs() > 1e-9 {
        ((quality.objective - quality.bound) / quality.objective.abs()).max(0.0)
    } else {
        0.0
    };
    binding.sort_by(|a, b| b.usd_per_hour_per_unit.total_cmp(&a.usd_per_hour_per_unit));
    for (i, planned) in &mut pools {
        let remarks: Vec<String> =
            unprovisioned.iter().filter_map(|u| provision::remark(input, &drafts[*i], u)).collect();
        // Where accelerators are short this is the reason; elsewhere, only why the choice is another.
        if planned.outcome == PoolOutcome::CapacityLimited && !remarks.is_empty() {
            planned.why.summary = format!("{}; {}", planned.why.summary, remarks.join("; "));
        } else {
            planned.why.would_help.extend(remarks);
        }
    }
    let mut pools: Vec<PoolPlan> = pools.into_values().collect();
    let budgets = budget_uses(input, &pools);
    for (used, alert) in budgets.iter().filter_map(|used| Some((used, explain::remarks::alert(used)?))) {
        let counted = |p: &&mut PoolPlan| {
            budgets_of(input.snapshot, &p.pool).contains(used.budget.as_str()) && !p.replicas.is_empty()
        };
        pools.iter_mut().filter(counted).for_each(|p| p.why.remarks.push(alert.clone()));
    }
    let mut takes = Consumption::default();
    pools.iter().for_each(|p| takes += p.consumption());
    let plan = Plan {
        number: input.number,
        created_at: input.now,
        trigger: input.trigger.clone(),
        usd_per_hour: takes.usd_per_hour,
        watts: takes.watts,
        grams_co2e_per_hour: takes.grams_co2e_per_hour,
        budgets,
        pools,
        binding,
        quality,
        unprovisioned,
    };
    PlanOutcome { plan, next_serial: names.next }
}

/// What a plan takes of each cap of each budget.
fn budget_uses(input: &PlanInput<'_>, pools: &[PoolPlan]) -> Vec<BudgetUse> {
    let mut spent = Spent::new();
    for pool in pools {
        spend(input.snapshot, &pool.pool, &pool.consumption(), &mut spent);
    }
    let mut uses = Vec::new();
    let mut budgets: Vec<_> = input.snapshot.budgets.iter().collect();
    budgets.sort_by(|a, b| a.name.cmp(&b.name));
    for b in budgets {
        for unit in BudgetUnit::ALL {
            let Some(cap) = b.cap(unit).filter(|c| c.is_finite()) else { continue };
            let planned = spent.get(&(b.name.clone(), unit)).copied().unwrap_or(0.0);
            uses.push(BudgetUse { budget: b.name.clone(), unit, cap, planned, on_limit: b.on_limit });
        }
    }
    uses
}

/// A coupling row as people read it.
fn constraint(group: &Group<'_>, what: &Coupling, price: f64) -> BindingConstraint {
    let (constraint, unit, steps) = group.problem.named(what);
    let unserved = !group.answer.complete;
    BindingConstraint { constraint, unit, usd_per_hour_per_unit: price / steps, unserved }
}

/// What a group's answer leaves of the coupling rows.
fn remaining<'p, 'a>(group: &'p Group<'a>) -> Remaining<'p, 'a> {
    let mut left = Remaining::new(&group.problem);
    for (p, pool) in group.answer.pools.iter().enumerate() {
        left.take_each(p, &pool.counts);
    }
    left
}

/// Whether a coupling row concerns a pool.
fn concerns(group: &Group<'_>, at: usize, what: &Coupling) -> bool {
    match what {
        Coupling::Slots { cell, .. } => {
            let cell = &group.problem.cells[*cell];
            group.problem.pools[at].set.candidates.iter().any(|k| k.shape.accelerator == cell.accelerator)
                && cell.eligible[at] != super::inventory::Eligibility::Closed
        }
        Coupling::Budget(b) => group.problem.budgets[*b].covers[at],
    }
}

fn planned(
    input: &PlanInput<'_>,
    draft: &Draft<'_>,
    group: &Group<'_>,
    at: usize,
    left: &mut Remaining<'_, '_>,
    names: &mut Names<'_>,
    model: &dyn Performance,
) -> PoolPlan {
    let problem = &group.problem.pools[at];
    let answer = &group.answer.pools[at];
    let mut replicas: Vec<ReplicaAssignment> = Vec::new();
    let mut takes = Consumption::default();
    for placed in group.placement.placed.iter().filter(|p| group.wants[p.want].pool == at) {
        let want = &group.wants[placed.want];
        let cell = &group.problem.cells[want.cell];
        let Some(id) = placed.id.clone().or_else(|| names.fresh(draft.pool.id.name())) else { continue };
        takes += group.consumption(want);
        replicas.push(ReplicaAssignment {
            id,
            shape: want.shape.clone(),
            nodes: placed.nodes.clone(),
            spot: cell.spot,
        });
    }
    replicas.sort_by(|a, b| a.shape.cmp(&b.shape).then_with(|| a.id.cmp(&b.id)));
    let mut flows = Vec::new();
    let mut load_lines = Vec::new();
    let mut replica_watts = Vec::new();
    let mut predictions = together::Predictions::default();
    let mut mixes: Vec<(Shape, Vec<RequestClass>)> = Vec::new();
    let (mut used, mut total) = (0.0, 0.0);
    for (k, candidate) in problem.set.candidates.iter().enumerate() {
        let n = f64::from(answer.of(k));
        if n <= 0.0 {
            continue;
        }
        let mut mix: Vec<RequestClass> = Vec::new();
        let (mut rps, mut work) = (0.0, 0.0);
        for (c, class) in problem.set.classes.iter().enumerate() {
            let flow = answer.shares[c][k] * class.rps;
            if flow > 1e-9 {
                let to = |zone: &str, rps: f64| Flow {
                    class: class.name.clone(),
                    shape: candidate.shape.clone(),
                    zone: zone.to_owned(),
                    rps,
                };
                let apart = answer.apart.iter().filter(|s| (s.class, s.candidate) == (c, k));
                let zone = |s: &PartShare| group.problem.cells[s.reach].zone.as_str();
                flows.extend(apart.filter(|s| s.share > 0.0).map(|s| to(zone(s), s.share * class.rps)));
                if candidate.pairing.is_none() {
                    flows.push(to("", flow));
                }
                mix.push(RequestClass { rps: flow, ..class.clone() });
                rps += flow;
                work += flow / candidate.rates[c];
            }
        }
        let line = if work > 0.0 { rps / work } else { idle_line(problem, k) };
        load_lines.push((candidate.shape.clone(), line));
        replica_watts.push((candidate.shape.clone(), candidate.watts));
        used += work;
        total += n;
        if mix.is_empty() {
            mix = problem.set.classes.clone();
        }
        if let Some(p) = predict(input, draft, model, &candidate.shape, &mix, rps / n) {
            predictions.add(candidate.shape.role, p);
            mixes.push((candidate.shape.clone(), mix));
        }
    }
    let prediction = predictions.whole(together::transfer_ms(input.snapshot, draft.pool, &mixes));
    let unserved_rps: f64 = problem
        .set
        .classes
        .iter()
        .zip(&answer.unserved)
        .map(|(c, u)| c.rps * u)
        .filter(|u| *u > 1e-6)
        .fold(0.0, |a, u| a + u);
    let short = unserved_rps > 0.0 || answer.short > 0;
    let limiting = if short { limiting(group, at, left) } else { Limiting::None };
    let outcome = match &limiting {
        Limiting::None if replicas.is_empty() => PoolOutcome::ScaledToZero,
        Limiting::None => PoolOutcome::Served,
        Limiting::Budget { .. } => PoolOutcome::BudgetLimited,
        Limiting::Capacity { .. } | Limiting::Bound => PoolOutcome::CapacityLimited,
    };
    let mut binding: Vec<BindingConstraint> = group
        .answer
        .prices
        .iter()
        .filter(|(what, _)| concerns(group, at, what))
        .map(|(what, price)| constraint(group, what, *price))
        .collect();
    binding.sort_by(|a, b| b.usd_per_hour_per_unit.total_cmp(&a.usd_per_hour_per_unit));
    let count = replicas.len() as u32;
    let mut notes = draft.notes.clone();
    notes.extend(budget_notes(input.snapshot, &draft.pool.id));
    let why = explain::summarise(&explain::Facts {
        problem,
        cells: &group.problem.cells,
        all: &draft.all,
        answer,
        at,
        usd_per_hour: takes.usd_per_hour,
        unserved_rps,
        limiting: &limiting,
        binding,
        adapters: draft.adapters,
        notes,
        lowered: group.lowered.get(&at).map(String::as_str),
    });
    PoolPlan {
        pool: draft.pool.id.clone(),
        uid: draft.pool.uid.clone(),
        generation: draft.pool.generation,
        outcome,
        flows,
        unserved_rps,
        demand: draft.demand.clone(),
        load_lines,
        utilisation: if total > 0.0 { (used / total).clamp(0.0, 1.0) } else { 0.0 },
        usd_per_hour: takes.usd_per_hour,
        watts: takes.watts,
        grams_co2e_per_hour: takes.grams_co2e_per_hour,
        replica_watts,
        prediction,
        envelope: envelope(group, at, left, count),
        why,
        today: None,
        replicas,
    }
}

/// Load line of a replica that nothing flows to: of the demand's own mix.
fn idle_line(problem: &PoolProblem<'_>, k: usize) -> f64 {
    let rates = &problem.set.candidates[k].rates;
    let classes = &problem.set.classes;
    let total: f64 = classes.iter().map(|c| c.rps).sum();
    if total > 0.0 {
        let work: f64 = classes.iter().zip(rates).filter(|(_, r)| **r > 0.0).map(|(c, r)| c.rps / r).sum();
        if work > 0.0 { total / work } else { 0.0 }
    } else {
        rates.first().copied().unwrap_or(0.0)
    }
}

fn predict(
    input: &PlanInput<'_>,
    draft: &Draft<'_>,
    model: &dyn Performance,
    shape: &plimsoll_fleet::Shape,
    mix: &[RequestClass],
    rps: f64,
) -> Option<Prediction> {
    let accelerator = input.snapshot.accelerators.iter().find(|a| a.name == shape.accelerator)?;
    let query = Query {
        pool: draft.pool,
        variant: draft.pool.variant(&shape.variant)?,
        accelerator,
        shape,
        classes: mix,
        arrival_scv: if draft.demand.arrival_scv > 0.0 { draft.demand.arrival_scv } else { 1.0 },
        margin: 0.0,
        stretch: 1.0,
        engine: engine_config(draft.pool, &input.snapshot.adapters),
        limits: None,
    };
    model.predict(&query, rps)
}

/// What keeps a pool from being served in full: tried by adding one replica of each candidate.
fn limiting(group: &Group<'_>, at: usize, left: &Remaining<'_, '_>) -> Limiting {
    let problem = &group.problem.pools[at];
    let answer = &group.answer.pools[at];
    if answer.replicas() >= problem.ceiling {
        return Limiting::Bound;
    }
    // If every candidate with slots takes more of some budget than is left, it is the budget: the row that lacks most for
    // the candidate that lacks least.
    let mut lacks: Option<(f64, usize, f64)> = None;
    for (k, candidate) in problem.set.candidates.iter().enumerate() {
        for (c, cell) in group.problem.cells.iter().enumerate() {
            let open = cell.accelerator == candidate.shape.accelerator
                && cell.eligible[at] == super::inventory::Eligibility::Open;
            if !open || !left.has_slots(at, k, c) {
                continue;
            }
            let lack = |b: usize| {
                let takes = group.problem.takes(&Coupling::Budget(b), at, k, c);
                (takes > left.left(b) + 1e-9).then(|| (1.0 - left.left(b).max(0.0) / takes, b, takes))
            };
            let worst = (0..group.problem.budgets.len())
                .filter_map(lack)
                .reduce(|x, y| if y.0 > x.0 + 1e-12 { y } else { x });
            let Some(worst) = worst else { return no_capacity(problem) };
            if lacks.is_none_or(|least| worst.0 < least.0 - 1e-12) {
                lacks = Some(worst);
            }
        }
    }
    match lacks {
        Some((_, b, takes)) => {
            let row = &group.problem.budgets[b];
            let natural = row_unit(row.unit);
            Limiting::Budget {
                name: row.name.clone(),
                unit: row.unit,
                cap: row.cap * natural,
                left: left.left(b).max(0.0) * natural,
                least: takes * natural,
            }
        }
        None => no_capacity(problem),
    }
}

fn no_capacity(problem: &PoolProblem<'_>) -> Limiting {
    let classes: BTreeSet<String> =
        problem.set.candidates.iter().map(|k| k.shape.accelerator.clone()).collect();
    Limiting::Capacity { accelerators: classes.into_iter().collect() }
}

/// Bounds for the fast loop: not below what the plan's demand needs of the bounds, not above what fits and is paid for.
fn envelope(group: &Group<'_>, at: usize, left: &mut Remaining<'_, '_>, count: u32) -> (u32, u32) {
    let problem = &group.problem.pools[at];
    let answer = &group.answer.pools[at];
    let mut taken: Vec<(usize, usize)> = Vec::new();
    // A burst may double a fleet before the next plan has its say.
    while (taken.len() as u32) < count.max(1) && count + (taken.len() as u32) < problem.ceiling {
        let open = |c: usize| group.problem.cells[c].eligible[at] == super::inventory::Eligibility::Open;
        let next = answer.counts.keys().find(|(k, c)| open(*c) && left.fits(at, *k, *c));
        let Some((k, c)) = next.copied() else { break };
        left.take(at, k, c);
        taken.push((k, c));
    }
    taken.iter().for_each(|(k, c)| left.release(at, *k, *c));
    (problem.floor.min(count), (count + taken.len() as u32).min(problem.ceiling.max(count)))
}

/// The plan for a pool that took no part in the program.
fn fixed(input: &PlanInput<'_>, draft: &Draft<'_>) -> PoolPlan {
    let keeps = !matches!(draft.fate, Fate::Idle(_));
    let node = |l: &crate::place::Live| {
        l.nodes.first().and_then(|n| input.snapshot.nodes.iter().find(|x| &x.name == n))
    };
    let replicas: Vec<ReplicaAssignment> = draft
        .live
        .iter()
        .filter(|_| keeps)
        .map(|l| ReplicaAssignment {
            id: l.id.clone(),
            shape: l.shape.clone(),
            nodes: l.nodes.clone(),
            spot: node(l).is_some_and(|n| n.spot),
        })
        .collect();
    let mut takes = Consumption::default();
    let mut replica_watts: BTreeMap<Shape, f64> = BTreeMap::new();
    for l in draft.live.iter().filter(|_| keeps) {
        takes += live_consumption(input.snapshot, draft, l);
        replica_watts.insert(l.shape.clone(), live_watts(input.snapshot, draft, l));
    }
    let count = replicas.len() as u32;
    let demand = draft.demand.total_rps();
    let (outcome, unserved_rps) = match &draft.fate {
        Fate::Idle(_) => (PoolOutcome::ScaledToZero, 0.0),
        Fate::External => (PoolOutcome::Served, 0.0),
        Fate::Broken(_) | Fate::Planned => (PoolOutcome::Infeasible, demand),
    };
    PoolPlan {
        pool: draft.pool.id.clone(),
        uid: draft.pool.uid.clone(),
        generation: draft.pool.generation,
        outcome,
        flows: Vec::new(),
        unserved_rps,
        demand: draft.demand.clone(),
        load_lines: Vec::new(),
        utilisation: 0.0,
        usd_per_hour: takes.usd_per_hour,
        watts: takes.watts,
        grams_co2e_per_hour: takes.grams_co2e_per_hour,
        replica_watts: replica_watts.into_iter().collect(),
        prediction: Prediction::default(),
        envelope: (count, count),
        why: explain::of_fixed(draft),
        today: None,
        replicas,
    }
}
