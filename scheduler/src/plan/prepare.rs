//! From the planner's input to a [`Problem`]: what lives, what is wanted, what is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use plimsoll_fleet::budget::OnLimit;
use plimsoll_fleet::plan::served_rps;
use plimsoll_fleet::pool::{Disaggregation, EngineKind};
use plimsoll_fleet::rollout::Rollout;
use plimsoll_fleet::{
    AdapterRoom, Budget, BudgetUnit, ClusterSnapshot, Consumption, DemandEstimate, ModelPool, NodeName,
    Objective, Plan, PoolId, PoolPlan, ReplicaId, ReplicaPhase, RequestClass, Shape,
};

use super::candidates::{Candidate, CandidateSet, candidates, prune};
use super::greedy::answer_of;
use super::inventory::{Eligibility, Reserved, cells, eligibility, gpus_by_node, grid, price};
use super::margin::{self, Doubt};
use super::parallel;
use super::performance::Performance;
use super::program::{
    Answer, BudgetRow, Coupling, PoolProblem, Problem, couplings, grams_co2e_per_hour, reach, row_unit,
};
use super::provision;
use super::{PlanInput, downgrade};
use crate::adapters::{self, Needed};
use crate::place::{Live, Placement, Want};

/// What becomes of a pool before anything is solved.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fate {
    /// It takes part in the program.
    Planned,
    /// It goes to zero: no request for this many seconds.
    Idle(f64),
    /// It cannot be planned, for this reason; what runs stays.
    Broken(String),
    /// Plimsoll does not run it.
    External,
}

/// One pool, prepared.
#[derive(Debug, Clone)]
pub(crate) struct Draft<'a> {
    pub(crate) pool: &'a ModelPool,
    pub(crate) demand: DemandEstimate,
    /// All candidates, for explanations.
    pub(crate) all: CandidateSet,
    /// Candidates without those that others make pointless.
    pub(crate) set: CandidateSet,
    /// Those and candidates of variants below the wanted quality, where a budget allows them when it binds.
    pub(crate) lowered: Option<CandidateSet>,
    pub(crate) live: Vec<Live>,
    /// Replicas that are not kept although they serve: successors take their places.
    pub(crate) outgoing: BTreeSet<ReplicaId>,
    pub(crate) floor: u32,
    pub(crate) ceiling: u32,
    pub(crate) fate: Fate,
    /// What its LoRA adapters ask of the fleet.
    pub(crate) adapters: Needed,
    /// Remarks on bad input that did not stop the pool.
    pub(crate) notes: Vec<String>,
}

impl Draft<'_> {
    pub(crate) fn is_planned(&self) -> bool {
        self.fate == Fate::Planned
    }
}

/// Prepares every pool, in order of identity.
pub(crate) fn drafts<'a>(input: &PlanInput<'a>, model: &dyn Performance) -> Vec<Draft<'a>> {
    let mut pools: Vec<&ModelPool> = input.snapshot.pools.iter().collect();
    pools.sort_by(|a, b| a.id.cmp(&b.id));
    pools.dedup_by(|a, b| a.id == b.id);
    parallel::map(pools.len(), |i| draft(input, pools[i], model))
}

fn draft<'a>(input: &PlanInput<'a>, pool: &'a ModelPool, model: &dyn Performance) -> Draft<'a> {
    let given = input.demands.get(&pool.id);
    let mut demand = given.cloned().unwrap_or_default();
    let mut notes = Vec::new();
    let broken_rate = demand.classes.iter().any(|c| !c.rps.is_finite() || c.rps < 0.0);
    if broken_rate {
        notes.push("some demand figures are not numbers; no replica is stopped on their account".to_owned());
        demand.classes.retain(|c| c.rps.is_finite() && c.rps >= 0.0);
    }
    let before = input.previous.and_then(|p| p.pool(&pool.id)).filter(|p| p.uid == pool.uid);
    let rollout = crate::rollout::of_pool(pool, input.snapshot, before, input.now);
    let live = live(input, pool, before, rollout.as_ref());
    let scaling = &pool.scaling;
    let total: f64 = demand.classes.iter().map(|c| c.rps).sum();
    let idle = input.idle.get(&pool.id).copied().unwrap_or(0.0);
    let sleeps = |after: f64| total <= 1e-9 && !broken_rate && given.is_some() && idle >= after;
    let blank = |fate: Fate, demand: DemandEstimate, notes: Vec<String>, live: Vec<Live>| Draft {
        pool,
        demand,
        all: CandidateSet::default(),
        set: CandidateSet::default(),
        lowered: None,
        live,
        outgoing: BTreeSet::new(),
        floor: 0,
        ceiling: scaling.max_replicas,
        fate,
        adapters: Needed::default(),
        notes,
    };
    if pool.engine.kind == EngineKind::External {
        return blank(Fate::External, demand, notes, live);
    }
    if scaling.min_replicas > scaling.max_replicas {
        let why = format!(
            "spec.scaling.min {} is above spec.scaling.max {}; lower min or raise max",
            scaling.min_replicas, scaling.max_replicas
        );
        return blank(Fate::Broken(why), demand, notes, live);
    }
    if pool.slo_classes.is_empty() {
        let why = "spec.slo has no class; give at least one objective, such as tpot: {p95: 50ms}".to_owned();
        return blank(Fate::Broken(why), demand, notes, live);
    }
    let running: Vec<&Shape> = live.iter().map(|l| &l.shape).collect();
    let scv = if demand.arrival_scv > 0.0 { demand.arrival_scv } else { 1.0 };
    let of = (demand.classes.as_slice(), scv);
    let all = candidates(input.snapshot, pool, &running, of, input.config, model, input.cache);
    if all.candidates.is_empty() {
        let why = crate::explain::why_no_shape(input.snapshot, pool, &all);
        return Draft { all, ..blank(Fate::Broken(why), demand, notes, live) };
    }
    if let Some(after) = scaling.scale_to_zero_after_seconds
        && sleeps(after)
    {
        return Draft { all, ..blank(Fate::Idle(idle), demand, notes, live) };
    }
    // A pool that may sleep but does not yet keeps one replica; a pool that is asleep wakes only for demand.
    let awake = total > 1e-9 || !live.is_empty();
    let mut floor = if scaling.scale_to_zero_after_seconds.is_some() {
        if awake { scaling.min_replicas.max(1) } else { scaling.min_replicas }
    } else {
        scaling.min_replicas
    };
    if given.is_none() || broken_rate {
        // Old replicas that serve beside their successors are not wanted twice.
        let twice = |l: &&Live| rollout.as_ref().is_some_and(|r| r.replacing.contains(&l.id));
        floor = floor.max(live.iter().filter(|l| !twice(l)).count() as u32);
    }
    let ceiling = scaling.max_replicas;
    let adapters = adapters_of(input.snapshot, pool);
    notes.extend(adapter_notes(pool, &adapters));
    if floor > 0 || total > 1e-9 {
        floor = floor.max(adapters.replicas.unwrap_or(0));
    }
    let mut set = all.clone();
    prune(&mut set, pool, &|shape| live.iter().any(|l| &l.shape == shape));
    if floor > 0 && total <= 1e-9 && set.candidates.iter().any(|k| k.pairing.is_some()) {
        // A replica that is kept without traffic must be able to serve what comes: of two parts, one of each.
        set.classes.iter_mut().for_each(|c| c.rps = NOMINAL_RPS);
    }
    let lowered = downgrade::lowered(input, pool, &demand, &set, &live, model);
    // Only a pool that is planned rolls out: elsewhere what runs stays, and nothing would name successors.
    let mut live = live;
    let mut outgoing = BTreeSet::new();
    if let Some(rollout) = rollout {
        // What no candidate can replace would go without a successor.
        let replaceable = |l: &Live| {
            let known = lowered.as_ref().unwrap_or(&set);
            rollout.next.contains(&l.id) && known.candidates.iter().any(|c| c.shape == l.shape)
        };
        outgoing = live.iter().filter(|l| replaceable(l)).map(|l| l.id.clone()).collect();
        outgoing.extend(rollout.replacing);
        live.retain(|l| !outgoing.contains(&l.id));
    }
    let floor = floor.min(ceiling);
    let fate = Fate::Planned;
    Draft { pool, demand, all, set, lowered, live, outgoing, floor, ceiling, fate, adapters, notes }
}

/// What a pool's LoRA adapters ask of its fleet, where its engines take any while they run.
fn adapters_of(snapshot: &ClusterSnapshot, pool: &ModelPool) -> Needed {
    let own = || snapshot.adapters.iter().filter(|a| a.base_pool == pool.id);
    if !pool.engine.kind.loads_adapters() {
        return Needed::default();
    }
    adapters::needed(own(), AdapterRoom::wanted(pool.engine.kind, own()))
}

/// Adapters that have no place, and what to do about it.
fn adapter_notes(pool: &ModelPool, needed: &Needed) -> Option<String> {
    let Needed { pinned, hot, slots, replicas } = *needed;
    if pinned + hot > 0 && pool.parallelism.disaggregation == Disaggregation::Always {
        return Some(format!(
            "its {} LoRA adapters cannot be served: they go to replicas that serve requests whole; set spec.parallelism.disaggregation to Auto or Never",
            pinned + hot
        ));
    }
    if pinned > slots {
        return Some(format!(
            "{pinned} of its LoRA adapters are pinned and an engine holds {slots}; unpin {} of them",
            pinned - slots
        ));
    }
    let most = pool.scaling.max_replicas;
    match replicas {
        None => Some(format!(
            "its {pinned} pinned LoRA adapters leave no slot for {hot} others that are asked for; unpin some"
        )),
        Some(replicas) if replicas > most => Some(format!(
            "{hot} LoRA adapters are asked for and {most} replicas have {} slots for them; raise spec.scaling.max to {replicas}",
            u64::from(most) * u64::from(slots - pinned)
        )),
        Some(_) => None,
    }
}

/// Rate that a pool without traffic is planned for where prefill and decode may be apart, requests per second.
const NOMINAL_RPS: f64 = 1e-6;

/// Age at which a replica that failed before it ever served is given up and another made in its place, seconds: as long
/// as the kubelet's own longest wait between two tries.
const FAILED_START_SECONDS: f64 = 300.0;

/// Replicas of a pool that may be kept: alive in the snapshot, or planned before and not yet seen.
fn live(
    input: &PlanInput<'_>,
    pool: &ModelPool,
    before: Option<&PoolPlan>,
    rollout: Option<&Rollout>,
) -> Vec<Live> {
    let planned_nodes =
        |id| before.and_then(|p| p.replicas.iter().find(|r| &r.id == id)).map(|r| r.nodes.clone());
    let healthy = |nodes: &[NodeName]| {
        nodes.iter().all(|n| input.snapshot.nodes.iter().any(|node| &node.name == n && node.ready))
    };
    // Who waits for a node that takes nobody any more (cordoned meanwhile) would wait for ever.
    let open = |nodes: &[NodeName]| {
        nodes.iter().all(|n| {
            let info = input.snapshot.nodes.iter().find(|node| &node.name == n);
            info.is_some_and(|info| eligibility(pool, info) == Eligibility::Open)
        })
    };
    let mut live: Vec<Live> = Vec::new();
    for r in input.snapshot.replicas.iter().filter(|r| r.pool == pool.id) {
        let held = rollout.is_some_and(|rollout| rollout.held.contains(&r.id));
        // One that never served, such as one whose image cannot be pulled, is tried again where it is by the cluster
        // itself; another in its place would most likely fail the same way, and so for ever.
        let age_s = input.now.duration_since(r.created_at).as_secs_f64();
        let tried_again = r.ready_at.is_none() && !r.ended && age_s < FAILED_START_SECONDS;
        let gone =
            r.phase == ReplicaPhase::Draining || (r.phase == ReplicaPhase::Failed && !held && !tried_again);
        if gone || provision::is_overdue(input, r) {
            continue;
        }
        let bound = !r.nodes.is_empty();
        let nodes = if bound { r.nodes.clone() } else { planned_nodes(&r.id).unwrap_or_default() };
        if healthy(&nodes) && (bound || open(&nodes)) && !live.iter().any(|l| l.id == r.id) {
            let (id, shape) = (r.id.clone(), r.shape.clone());
            live.push(Live {
                id,
                shape,
                nodes,
                phase: r.phase,
                outdated: r.outdated,
                created_at: r.created_at,
            });
        }
    }
    // Endpoints that others run are there as long as they are listed, never on the way.
    let before = before.filter(|_| pool.engine.kind != EngineKind::External);
    for r in before.map(|p| p.replicas.as_slice()).unwrap_or_default() {
        if !input.snapshot.replicas.iter().any(|seen| seen.id == r.id)
            && open(&r.nodes)
            && !live.iter().any(|l| l.id == r.id)
        {
            live.push(Live {
                id: r.id.clone(),
                shape: r.shape.clone(),
                nodes: r.nodes.clone(),
                phase: ReplicaPhase::Pending,
                outdated: false,
                created_at: input.previous.map_or(input.now, |p| p.created_at),
            });
        }
    }
    live
}

/// Power of a live replica's accelerators, watts: at its load line where that is known, else at full load.
pub(crate) fn live_watts(snapshot: &ClusterSnapshot, draft: &Draft<'_>, live: &Live) -> f64 {
    if let Some(candidate) = draft.all.candidates.iter().find(|c| c.shape == live.shape) {
        return candidate.watts;
    }
    let class = snapshot.accelerators.iter().find(|a| a.name == live.shape.accelerator);
    let watts = class.map_or(0.0, plimsoll_fleet::AcceleratorClass::most_watts);
    if watts.is_finite() { watts.max(0.0) * f64::from(live.shape.gpus()) } else { 0.0 }
}

/// What a live replica takes of budgets, at today's prices.
pub(crate) fn live_consumption(snapshot: &ClusterSnapshot, draft: &Draft<'_>, live: &Live) -> Consumption {
    let node = live.nodes.first().and_then(|n| snapshot.nodes.iter().find(|node| &node.name == n));
    let class = snapshot.accelerators.iter().find(|a| a.name == live.shape.accelerator);
    let each = price(snapshot, &live.shape.accelerator, node.is_some_and(|n| n.spot)).unwrap_or(0.0);
    let watts = live_watts(snapshot, draft, live);
    let zone = node.map_or("", |n| n.zone.as_str());
    Consumption {
        usd_per_hour: each * f64::from(live.shape.gpus()),
        watts,
        grams_co2e_per_hour: class.map_or(0.0, |c| grams_co2e_per_hour(watts, &grid(c, zone))),
    }
}

/// What is taken of budgets, by name and unit of the cap.
pub(crate) type Spent = BTreeMap<(String, BudgetUnit), f64>;

/// Speaks for what pools hold that cannot be planned; returns what they take of budgets.
pub(crate) fn reserve_fixed(
    snapshot: &ClusterSnapshot,
    drafts: &[Draft<'_>],
    reserved: &mut Reserved,
) -> Spent {
    let mut spent = Spent::new();
    for draft in drafts.iter().filter(|d| matches!(d.fate, Fate::Broken(_) | Fate::External)) {
        for l in &draft.live {
            reserved.add(&l.shape, &l.nodes);
            spend(snapshot, &draft.pool.id, &live_consumption(snapshot, draft, l), &mut spent);
        }
    }
    spent
}

/// Budgets by name: a plan must not depend on the order in which they were listed.
fn in_order(snapshot: &ClusterSnapshot) -> Vec<&Budget> {
    let mut budgets: Vec<&Budget> = snapshot.budgets.iter().collect();
    budgets.sort_by(|a, b| a.name.cmp(&b.name));
    budgets
}

/// Names of the budgets a pool counts against: those that cover it, and all they are nested in.
pub(crate) fn budgets_of<'a>(snapshot: &'a ClusterSnapshot, pool: &PoolId) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for budget in snapshot.budgets.iter().filter(|b| b.scope.covers(pool)) {
        let mut at: Option<&Budget> = Some(budget);
        // A cycle ends where it began.
        while let Some(b) = at.filter(|b| names.insert(b.name.as_str())) {
            at = b.parent.as_ref().and_then(|p| snapshot.budgets.iter().find(|x| &x.name == p));
        }
    }
    names
}

/// Adds what a pool's replicas take to all budgets it counts against.
pub(crate) fn spend(snapshot: &ClusterSnapshot, pool: &PoolId, takes: &Consumption, spent: &mut Spent) {
    for name in budgets_of(snapshot, pool) {
        for unit in BudgetUnit::ALL {
            *spent.entry((name.to_owned(), unit)).or_default() += takes.of(unit);
        }
    }
}

/// Remarks on budgets that cannot be used as they are.
pub(crate) fn budget_notes(snapshot: &ClusterSnapshot, pool: &PoolId) -> Vec<String> {
    let mut notes = Vec::new();
    let names = budgets_of(snapshot, pool);
    for b in in_order(snapshot).into_iter().filter(|b| names.contains(b.name.as_str())) {
        for unit in BudgetUnit::ALL.into_iter().filter(|u| b.cap(*u).is_some_and(f64::is_nan)) {
            notes.push(format!(
                "budget {}: its cap is not a number and is not applied; set {}",
                b.name,
                unit.field()
            ));
        }
        let mut seen = BTreeSet::from([b.name.as_str()]);
        let mut parent = b.parent.as_deref();
        while let Some(name) = parent {
            if !seen.insert(name) {
                notes.push(format!("budget {}: its parents form a cycle; remove one spec.parent", b.name));
                break;
            }
            let Some(next) = snapshot.budgets.iter().find(|x| x.name == name) else {
                notes.push(format!("budget {}: its parent {name} does not exist", b.name));
                break;
            };
            parent = next.parent.as_deref();
        }
    }
    notes
}

/// What is not certain about a pool: the forecast's error beyond the demand as planned, and the model's error on the shapes that
/// could serve it (the least of them: those are what is chosen from).
pub(crate) fn doubt(input: &PlanInput<'_>, draft: &Draft<'_>) -> Doubt {
    let class = |name: &str| input.snapshot.accelerators.iter().find(|a| a.name == name);
    let error = |c: &Candidate| {
        let stated = class(&c.shape.accelerator)?.calibration.relative_error;
        Some(draft.pool.expected_error(&c.shape, stated)).filter(|e| e.is_finite())
    };
    let error = draft.set.candidates.iter().filter_map(error).fold(f64::INFINITY, f64::min);
    let error = if error.is_finite() { error.clamp(0.0, 1.0) } else { 0.0 };
    let (of_model, of_demand) = (margin::spread(error), margin::spread(input.config.demand_error));
    Doubt { spread: of_model.hypot(of_demand), drawn_in: 1.0 + input.config.margin(error) }
}

/// [`problem_with`] no pool that may go below its quality.
#[cfg(test)]
pub(crate) fn problem<'a>(
    input: &PlanInput<'_>,
    drafts: &'a [Draft<'a>],
    members: &[usize],
    reserved: &Reserved,
    spent: &Spent,
) -> Problem<'a> {
    problem_with(input, drafts, members, reserved, spent, &BTreeMap::new())
}

/// The program's input for some of the pools, with others' holdings already spoken for. Pools in `lowered` (by their place in
/// `members`) may take variants below the wanted quality.
pub(crate) fn problem_with<'a>(
    input: &PlanInput<'_>,
    drafts: &'a [Draft<'a>],
    members: &[usize],
    reserved: &Reserved,
    spent: &Spent,
    lowered: &BTreeMap<usize, String>,
) -> Problem<'a> {
    let snapshot = input.snapshot;
    let pools: Vec<&ModelPool> = members.iter().map(|i| drafts[*i].pool).collect();
    let cells = cells(snapshot, &pools, reserved, &leaving(snapshot, drafts));
    let budgets = budget_rows(snapshot, &pools, spent);
    let reach = reach(&cells);
    let problems = members
        .iter()
        .enumerate()
        .map(|(p, i)| {
            let d = &drafts[*i];
            let set = d.lowered.as_ref().filter(|_| lowered.contains_key(&p)).unwrap_or(&d.set);
            let mut running: BTreeMap<(usize, usize), u32> = BTreeMap::new();
            for l in &d.live {
                let Some(k) = set.candidates.iter().position(|c| c.shape == l.shape) else { continue };
                if let Some(c) = cell_of(&cells, p, l) {
                    *running.entry((k, c)).or_default() += 1;
                }
            }
            let cold = |k: &Candidate| d.pool.engine.cold_start_seconds_on(&k.shape.accelerator);
            let start_factors = set.candidates.iter().map(|k| input.config.start_factor(cold(k))).collect();
            let interruption_s = |k: &Candidate| interruption_seconds(d.pool, cold(k), &set.classes);
            let interruption_seconds = set.candidates.iter().map(interruption_s).collect();
            // Capacity of what runs, in units of today's demand.
            let each = running.iter().map(|((k, _), n)| {
                let candidate = &set.candidates[*k];
                (candidate.shape.role, f64::from(*n) / candidate.replicas_for(&set.classes))
            });
            let capacity = served_rps(each.filter(|(_, x)| x.is_finite()));
            let headroom =
                (capacity * (1.0 - 1e-6)).clamp(1.0, 1.0 + input.config.scale_down_headroom.clamp(0.0, 10.0));
            PoolProblem {
                pool: d.pool,
                set: Arc::new(set.clone()),
                floor: d.floor,
                ceiling: d.ceiling,
                min_zones: d.pool.scaling.min_zones,
                headroom,
                running,
                start_factors,
                stop_share: input.config.stop_share.clamp(0.0, 1.0),
                interruption_seconds,
                below_quality_factor: downgrade::factor(d.pool, &pools),
                reach: Arc::clone(&reach),
            }
        })
        .collect();
    let mut problem = Problem {
        pools: problems,
        cells,
        budgets,
        cuts: Vec::new(),
        held: Vec::new(),
        hints: Vec::new(),
        allowed: None,
    };
    problem.hints = hints(&problem, input.previous);
    problem
}

/// Prices of the plan in force, to begin with.
fn hints(problem: &Problem<'_>, previous: Option<&Plan>) -> Vec<(Coupling, f64)> {
    let Some(previous) = previous.filter(|p| !p.binding.is_empty()) else { return Vec::new() };
    let known: BTreeMap<(&str, &str), f64> = previous
        .binding
        .iter()
        .map(|b| ((b.constraint.as_str(), b.unit.as_str()), b.usd_per_hour_per_unit))
        .collect();
    let hint = |(what, _): (Coupling, f64)| {
        let (name, unit, steps) = problem.named(&what);
        let price = known.get(&(name.as_str(), unit.as_str())).filter(|p| p.is_finite() && **p > 0.0)?;
        Some((what, price * steps))
    };
    couplings(problem).into_iter().filter_map(hint).collect()
}

/// Seconds of a replica's work that an interruption costs: another replica's start, and half of what a request may take,
/// because those under way are half done on average and begin anew elsewhere.
fn interruption_seconds(pool: &ModelPool, cold_start_seconds: f64, classes: &[RequestClass]) -> f64 {
    let may_take_ms = |c: &RequestClass| -> f64 {
        let slo = pool.slo_class(&c.slo_class).map(|s| s.slo).unwrap_or_default();
        let limit = |o: Option<Objective>| o.map(|o| o.ms);
        let parts = limit(slo.ttft).unwrap_or(0.0) + limit(slo.tpot).unwrap_or(0.0) * c.output_tokens;
        limit(slo.e2e).map_or(parts, |whole| if parts > 0.0 { whole.min(parts) } else { whole })
    };
    let rps: f64 = classes.iter().map(|c| c.rps).sum();
    let mean_ms = if rps > 0.0 {
        classes.iter().map(|c| c.rps / rps * may_take_ms(c)).sum()
    } else {
        classes.first().map_or(0.0, may_take_ms)
    };
    let seconds = |x: f64, most: f64| if x.is_finite() { x.clamp(0.0, most) } else { 0.0 };
    seconds(cold_start_seconds, 86_400.0) + seconds(0.5e-3 * mean_ms, 3600.0)
}

/// A row for each cap of each budget that counts some of these pools and limits them.
fn budget_rows(snapshot: &ClusterSnapshot, pools: &[&ModelPool], spent: &Spent) -> Vec<BudgetRow> {
    let mut rows = Vec::new();
    let of_pools: Vec<BTreeSet<&str>> = pools.iter().map(|p| budgets_of(snapshot, &p.id)).collect();
    for b in in_order(snapshot).into_iter().filter(|b| b.on_limit != OnLimit::Alert) {
        let covers: Vec<bool> = of_pools.iter().map(|names| names.contains(b.name.as_str())).collect();
        if !covers.contains(&true) {
            continue;
        }
        for unit in BudgetUnit::ALL {
            let Some(cap) = b.cap(unit).filter(|c| !c.is_nan()) else { continue };
            let left = cap - spent.get(&(b.name.clone(), unit)).copied().unwrap_or(0.0);
            rows.push(BudgetRow {
                name: b.name.clone(),
                unit,
                left: left.max(0.0) / row_unit(unit),
                cap: cap.max(0.0) / row_unit(unit),
                downgrades: b.on_limit == OnLimit::Downgrade,
                covers: covers.clone(),
            });
        }
    }
    rows
}

/// The cell a live replica sits in, if its pool may keep it there.
fn cell_of(cells: &[super::inventory::Cell], pool: usize, live: &Live) -> Option<usize> {
    cells.iter().position(|cell| {
        cell.accelerator == live.shape.accelerator
            && cell.eligible[pool] != Eligibility::Closed
            && if live.nodes.is_empty() {
                cell.is_autoscaled()
            } else {
                live.nodes.iter().all(|n| cell.slots.iter().any(|s| s.node.as_ref() == Some(n)))
            }
    })
}

/// Accelerators that replicas on their way out still hold, by node. New replicas go there last: to accelerators that
/// are free their predecessors can go on serving beside them.
fn leaving(snapshot: &ClusterSnapshot, drafts: &[Draft<'_>]) -> BTreeMap<NodeName, u32> {
    let outgoing: BTreeSet<&ReplicaId> = drafts.iter().flat_map(|d| &d.outgoing).collect();
    let mut leaving = BTreeMap::new();
    for r in &snapshot.replicas {
        let gone = matches!(r.phase, ReplicaPhase::Draining | ReplicaPhase::Failed)
            || outgoing.contains(&r.id)
            || !snapshot.pools.iter().any(|p| p.id == r.pool);
        if gone {
            for (node, gpus) in gpus_by_node(&r.shape, &r.nodes) {
                *leaving.entry(node.clone()).or_default() += gpus;
            }
        }
    }
    leaving
}

/// An answer as placement takes it.
pub(crate) fn wants(
    drafts: &[Draft<'_>],
    members: &[usize],
    problem: &Problem<'_>,
    answer: &Answer,
) -> Vec<Want> {
    let mut wants = Vec::new();
    for (p, pool) in answer.pools.iter().enumerate() {
        let draft = &drafts[members[p]];
        for ((k, c), n) in &pool.counts {
            let shape = problem.pools[p].set.candidates[*k].shape.clone();
            let live = draft
                .live
                .iter()
                .filter(|l| l.shape == shape && cell_of(&problem.cells, p, l) == Some(*c))
                .cloned()
                .collect();
            let spans = draft.pool.engine.kind.spans_nodes();
            wants.push(Want { pool: p, shape, cell: *c, spans, count: *n, live });
        }
    }
    wants
}

/// Takes replicas that found no node out of an answer and serves what the rest can.
pub(crate) fn drop_unplaced(
    problem: &Problem<'_>,
    answer: &mut Answer,
    wants: &[Want],
    placement: &Placement,
) {
    for want in &placement.unplaced {
        let w = &wants[*want];
        let pool = &problem.pools[w.pool];
        let k = pool.set.candidates.iter().position(|c| c.shape == w.shape);
        if let Some(n) = k.and_then(|k| answer.pools[w.pool].counts.get_mut(&(k, w.cell))) {
            *n = n.saturating_sub(1);
        }
        let mut counts = answer.pools[w.pool].counts.clone();
        counts.retain(|_, n| *n > 0);
        answer.pools[w.pool] = answer_of(problem, w.pool, &counts);
        answer.complete = false;
    }
}
