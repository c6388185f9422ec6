//! The fast loop: one replica more or less, within the plan's envelope, on what replicas hold now.
//!
//! Load is counted in tokens (in use or waiting, against KV capacity), because requests differ by orders of magnitude. A
//! pool changes by one replica at a time, and not while a change is under way. A replica goes only if the others could
//! carry both what is held now and the demand that is forecast, for as long as it would take to get it back.

use std::collections::BTreeMap;

use plimsoll_fleet::pool::Mode;
use plimsoll_fleet::{
    ClusterSnapshot, ModelPool, NodeInfo, NodeName, Plan, PoolId, PoolPlan, ReplicaAssignment, ReplicaId,
    ReplicaPhase, Shape,
};

/// Constants of the fast loop. Times are virtual seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FastConfig {
    /// Share of token capacity above which a pool is pressed.
    pub high: f64,
    /// Share that the others may reach after a stop.
    pub low: f64,
    /// Waiting requests a replica from which a pool is pressed, if they do not become fewer.
    pub waiting_per_replica: f64,
    /// Time a pool must be pressed before a replica is added.
    pub up_seconds: f64,
    /// Share of the others' load line that forecast demand may reach after a stop.
    pub survivors: f64,
}

impl Default for FastConfig {
    fn default() -> Self {
        Self { high: 0.85, low: 0.5, waiting_per_replica: 4.0, up_seconds: 3.0, survivors: 0.8 }
    }
}

/// Load of one replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReplicaLoad {
    /// Tokens in use or waiting.
    pub outstanding_tokens: f64,
    /// KV-cache capacity, tokens.
    pub capacity_tokens: f64,
    /// Waiting requests (`None`: unknown).
    pub waiting: Option<f64>,
}

/// What a decision depends on.
#[derive(Debug)]
pub struct FastInput<'a> {
    /// The plan in force.
    pub plan: &'a Plan,
    /// The cluster.
    pub snapshot: &'a ClusterSnapshot,
    /// Load of replicas whose telemetry is fresh; others are absent.
    pub loads: &'a BTreeMap<ReplicaId, ReplicaLoad>,
    /// Forecast demand, requests per second.
    pub demand_rps: &'a BTreeMap<PoolId, f64>,
    /// First serial number for a new replica.
    pub next_serial: u64,
    /// Now, virtual seconds.
    pub now: f64,
}

/// What is remembered of one pool between decisions.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Memory {
    pressed_since: Option<f64>,
    slack_since: Option<f64>,
    waiting: f64,
}

/// What is remembered between decisions.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FastState {
    pools: BTreeMap<PoolId, Memory>,
}

/// A change.
#[derive(Debug, Clone, PartialEq)]
pub struct FastChange {
    /// The amended plan, with the next number.
    pub plan: Plan,
    /// First serial number for the next new replica.
    pub next_serial: u64,
    /// The pool that changed.
    pub pool: PoolId,
}

/// Decides on at most one change. O(pools + replicas + nodes).
pub fn decide(state: &mut FastState, input: &FastInput<'_>, config: &FastConfig) -> Option<FastChange> {
    state.pools.retain(|id, _| input.plan.pool(id).is_some());
    let mut change = None;
    for planned in &input.plan.pools {
        let Some(pool) = input.snapshot.pools.iter().find(|p| p.id == planned.pool) else { continue };
        if pool.mode == Mode::Advise || planned.replicas.is_empty() {
            state.pools.remove(&planned.pool);
            continue;
        }
        let memory = state.pools.entry(planned.pool.clone()).or_default();
        match verdict(memory, pool, planned, input, config) {
            Some(verdict) if change.is_none() => {
                change = apply(verdict, pool, planned, input);
                if change.is_some() {
                    *memory = Memory::default();
                }
            }
            _ => {}
        }
    }
    change
}

enum Verdict {
    Add(String),
    Remove(ReplicaId, String),
}

fn verdict(
    memory: &mut Memory,
    pool: &ModelPool,
    planned: &PoolPlan,
    input: &FastInput<'_>,
    config: &FastConfig,
) -> Option<Verdict> {
    let n = planned.replicas.len();
    let ready = |id: &ReplicaId| {
        input.snapshot.replicas.iter().any(|r| &r.id == id && r.phase == ReplicaPhase::Ready)
    };
    let settled = planned.replicas.iter().all(|r| ready(&r.id))
        && input
            .snapshot
            .replicas
            .iter()
            .filter(|r| r.pool == pool.id)
            .all(|r| planned.replicas.iter().any(|p| p.id == r.id));
    let loads: Vec<(&ReplicaAssignment, &ReplicaLoad)> =
        planned.replicas.iter().filter_map(|r| Some((r, input.loads.get(&r.id)?))).collect();
    if !settled || loads.len() < n {
        // A change is under way, or somebody is silent: nothing is known well enough.
        *memory = Memory { waiting: memory.waiting, ..Memory::default() };
        return None;
    }
    let capacity: f64 = loads.iter().map(|(_, l)| l.capacity_tokens).sum();
    let outstanding: f64 = loads.iter().map(|(_, l)| l.outstanding_tokens).sum();
    let waiting: f64 = loads.iter().filter_map(|(_, l)| l.waiting).sum();
    if capacity <= 0.0 || !capacity.is_finite() || !outstanding.is_finite() {
        return None;
    }
    let queue = waiting >= config.waiting_per_replica * n as f64 && waiting >= memory.waiting;
    memory.waiting = waiting;
    if outstanding > config.high * capacity || queue {
        memory.slack_since = None;
        let since = *memory.pressed_since.get_or_insert(input.now);
        if input.now - since >= config.up_seconds && input.now > since && (n as u32) < planned.envelope.1 {
            return Some(Verdict::Add(format!(
                "tokens at {:.0} % of capacity, {waiting:.0} requests waiting",
                100.0 * outstanding / capacity
            )));
        }
        return None;
    }
    memory.pressed_since = None;

    let line = |s: &Shape| planned.load_lines.iter().find(|(shape, _)| shape == s).map(|(_, rps)| *rps);
    let dearest = planned.replicas.iter().max_by(|a, b| {
        let cost =
            |r: &ReplicaAssignment| usd_per_hour(r, input.snapshot) / line(&r.shape).unwrap_or(1.0).max(1e-9);
        cost(a).total_cmp(&cost(b)).then_with(|| created(a, input).cmp(&created(b, input)))
    })?;
    let others: f64 = loads.iter().filter(|(r, _)| r.id != dearest.id).map(|(_, l)| l.capacity_tokens).sum();
    let lines: Option<f64> =
        planned.replicas.iter().filter(|r| r.id != dearest.id).map(|r| line(&r.shape)).sum();
    let demand = input.demand_rps.get(&pool.id).copied();
    let slack = n as u32 > planned.envelope.0.max(1)
        && waiting < 0.5
        && outstanding <= config.low * others
        && matches!((lines, demand), (Some(l), Some(d)) if d <= config.survivors * l);
    if !slack {
        memory.slack_since = None;
        return None;
    }
    let since = *memory.slack_since.get_or_insert(input.now);
    let patience = pool.engine.cold_start_seconds.clamp(60.0, 1800.0);
    (input.now - since >= patience).then(|| {
        Verdict::Remove(
            dearest.id.clone(),
            format!(
                "the others hold {:.0} % of their tokens after it, for {:.0} s",
                100.0 * outstanding / others.max(1.0),
                input.now - since
            ),
        )
    })
}

fn created(r: &ReplicaAssignment, input: &FastInput<'_>) -> Option<jiff::Timestamp> {
    input.snapshot.replicas.iter().find(|s| s.id == r.id).map(|s| s.created_at)
}

/// Price of a replica, $/h (0 if its accelerator class is unknown).
pub fn usd_per_hour(r: &ReplicaAssignment, snapshot: &ClusterSnapshot) -> f64 {
    price(&r.shape, r.spot, snapshot)
}

/// Price of a replica of a shape, $/h (0 if its accelerator class is unknown).
pub fn price(shape: &Shape, spot: bool, snapshot: &ClusterSnapshot) -> f64 {
    let Some(class) = snapshot.accelerators.iter().find(|a| a.name == shape.accelerator) else { return 0.0 };
    let each = if spot { class.spot_usd_per_hour.unwrap_or(class.usd_per_hour) } else { class.usd_per_hour };
    each * f64::from(shape.gpus())
}

fn apply(
    verdict: Verdict,
    pool: &ModelPool,
    planned: &PoolPlan,
    input: &FastInput<'_>,
) -> Option<FastChange> {
    let before = planned.replicas.len();
    let mut next_serial = input.next_serial;
    let mut replicas = planned.replicas.clone();
    let why = match verdict {
        Verdict::Remove(id, why) => {
            replicas.retain(|r| r.id != id);
            why
        }
        Verdict::Add(why) => {
            // The cheapest per request of the shapes in use that has room.
            let mut options: Vec<&ReplicaAssignment> = planned.replicas.iter().collect();
            let line = |s: &Shape| {
                planned.load_lines.iter().find(|(x, _)| x == s).map_or(1.0, |(_, rps)| rps.max(1e-9))
            };
            options.sort_by(|a, b| {
                let cost = |r: &ReplicaAssignment| usd_per_hour(r, input.snapshot) / line(&r.shape);
                cost(a).total_cmp(&cost(b)).then_with(|| a.shape.cmp(&b.shape))
            });
            options.dedup_by(|a, b| a.shape == b.shape && a.spot == b.spot);
            let (model, node) = options.into_iter().find_map(|r| {
                let usd = usd_per_hour(r, input.snapshot);
                if !within_budgets(&pool.id, usd, input) {
                    return None;
                }
                Some((r, free_node(pool, &r.shape, r.spot, input)?))
            })?;
            let id = ReplicaId::new(format!("{}-{next_serial}", pool.id.name())).ok()?;
            next_serial += 1;
            replicas.push(ReplicaAssignment {
                id,
                shape: model.shape.clone(),
                nodes: vec![node],
                spot: model.spot,
            });
            why
        }
    };
    let mut plan = input.plan.clone();
    plan.number += 1;
    plan.trigger = format!("fast loop: {} {before} → {} replicas: {why}", pool.id, replicas.len());
    let entry = plan.pools.iter_mut().find(|p| p.pool == pool.id)?;
    entry.usd_per_hour = replicas.iter().map(|r| usd_per_hour(r, input.snapshot)).sum();
    entry.utilisation *= before as f64 / replicas.len().max(1) as f64;
    entry.why.summary = format!("{why}; {}", planned.why.summary);
    entry.replicas = replicas;
    plan.usd_per_hour += entry.usd_per_hour - planned.usd_per_hour;
    Some(FastChange { plan, next_serial, pool: pool.id.clone() })
}

fn within_budgets(pool: &PoolId, extra: f64, input: &FastInput<'_>) -> bool {
    input.snapshot.budgets.iter().filter(|b| b.scope.covers(pool)).all(|b| {
        b.effective_usd_per_hour().is_none_or(|cap| {
            let used: f64 =
                input.plan.pools.iter().filter(|p| b.scope.covers(&p.pool)).map(|p| p.usd_per_hour).sum();
            used + extra <= cap + 1e-9
        })
    })
}

/// The node that a one-node shape fills best, counting what is planned and what still runs.
fn free_node(pool: &ModelPool, shape: &Shape, spot: bool, input: &FastInput<'_>) -> Option<NodeName> {
    let mut used: BTreeMap<&NodeName, u32> = BTreeMap::new();
    let take = |nodes: &[NodeName], gpus: u32| -> Vec<(NodeName, u32)> {
        let each = gpus.div_ceil(nodes.len().max(1) as u32);
        nodes.iter().map(|n| (n.clone(), each)).collect()
    };
    let mut all: Vec<(NodeName, u32)> = Vec::new();
    for r in input.plan.pools.iter().flat_map(|p| &p.replicas) {
        all.extend(take(&r.nodes, r.shape.gpus()));
    }
    for r in &input.snapshot.replicas {
        if !input.plan.pools.iter().any(|p| p.replicas.iter().any(|x| x.id == r.id)) {
            all.extend(take(&r.nodes, r.shape.gpus()));
        }
    }
    for (node, gpus) in &all {
        *used.entry(node).or_default() += gpus;
    }
    let free = |n: &NodeInfo| {
        n.allocatable_gpus
            .saturating_sub(n.foreign_gpus)
            .saturating_sub(used.get(&n.name).copied().unwrap_or(0))
    };
    input
        .snapshot
        .nodes
        .iter()
        .filter(|n| n.schedulable && n.ready && n.accelerator == shape.accelerator && n.spot == spot)
        .filter(|n| pool.placement.node_selector.iter().all(|(k, v)| n.labels.get(k) == Some(v)))
        .filter(|n| n.taints.iter().all(|t| tolerated(pool, t)))
        .filter(|n| free(n) >= shape.gpus())
        .min_by_key(|n| (free(n), n.name.clone()))
        .map(|n| n.name.clone())
}

/// Whether a pool tolerates a taint written as `key=value:Effect`.
fn tolerated(pool: &ModelPool, taint: &str) -> bool {
    let (pair, effect) = taint.rsplit_once(':').unwrap_or((taint, ""));
    if effect == "PreferNoSchedule" {
        return true;
    }
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    pool.placement.tolerations.iter().any(|t| {
        t.effect.as_deref().is_none_or(|e| e.is_empty() || e == effect)
            && t.key.as_deref().is_none_or(|k| k.is_empty() || k == key)
            && (t.operator.as_deref() == Some("Exists") || t.value.as_deref().unwrap_or("") == value)
    })
}
