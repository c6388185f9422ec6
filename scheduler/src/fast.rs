//! The fast loop: one replica more or less, within the plan's envelope, on what replicas hold now.
//!
//! Load is counted in tokens (in use or waiting, against KV capacity), because requests differ by orders of magnitude. A
//! pool changes by one replica at a time, and not while a change is under way. A replica goes only if the others could
//! carry both what is held now and the demand that is forecast, for as long as it would take to get it back.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_fleet::plan::served_rps;
use plimsoll_fleet::pool::Mode;
use plimsoll_fleet::{
    Budget, BudgetUnit, ClusterSnapshot, Consumption, ModelPool, NodeInfo, NodeName, OnLimit, Plan, PoolId,
    PoolPlan, ReplicaAssignment, ReplicaId, ReplicaPhase, ReplicaStatus, Role, Shape,
};

use crate::place::fair_share;
use crate::plan::inventory::{Eligibility, eligibility, gpus_by_node, grid};
use crate::plan::prepare::budgets_of;
use crate::plan::program::grams_co2e_per_hour;

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
    /// Whether a replica was added.
    pub added: bool,
    /// The rate that the fleet has thereby shown to need, requests per second: a full fleet of `n` that was planned for
    /// `d` carries no more than it has, so that `n + 1` of the kind answer to `d·(n + 1)/n`.
    pub shown_rps: f64,
}

/// Decides on at most one change. O(pools + replicas + nodes).
pub fn decide(state: &mut FastState, input: &FastInput<'_>, config: &FastConfig) -> Option<FastChange> {
    let index = Index::new(input.snapshot);
    state.pools.retain(|id, _| index.pools.contains_key(id));
    let mut change = None;
    for planned in &input.plan.pools {
        let Some(pool) = index.pools.get(&planned.pool) else {
            state.pools.remove(&planned.pool);
            continue;
        };
        if pool.mode == Mode::Advise || planned.replicas.is_empty() {
            state.pools.remove(&planned.pool);
            continue;
        }
        let memory = state.pools.entry(planned.pool.clone()).or_default();
        match verdict(memory, pool, planned, input, &index, config) {
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

/// The snapshot by name.
struct Index<'a> {
    pools: BTreeMap<&'a PoolId, &'a ModelPool>,
    replicas: BTreeMap<&'a ReplicaId, &'a ReplicaStatus>,
    of_pool: BTreeMap<&'a PoolId, Vec<&'a ReplicaStatus>>,
}

impl<'a> Index<'a> {
    fn new(snapshot: &'a ClusterSnapshot) -> Self {
        let mut of_pool: BTreeMap<&PoolId, Vec<&ReplicaStatus>> = BTreeMap::new();
        for r in &snapshot.replicas {
            of_pool.entry(&r.pool).or_default().push(r);
        }
        Self {
            pools: snapshot.pools.iter().map(|p| (&p.id, p)).collect(),
            replicas: snapshot.replicas.iter().map(|r| (&r.id, r)).collect(),
            of_pool,
        }
    }
}

enum Verdict {
    /// One more replica of a role.
    Add(Role, String),
    Remove(ReplicaId, String),
}

fn verdict(
    memory: &mut Memory,
    pool: &ModelPool,
    planned: &PoolPlan,
    input: &FastInput<'_>,
    index: &Index<'_>,
    config: &FastConfig,
) -> Option<Verdict> {
    let n = planned.replicas.len();
    let ready = |id: &ReplicaId| index.replicas.get(id).is_some_and(|r| r.phase == ReplicaPhase::Ready);
    let wanted: BTreeSet<&ReplicaId> = planned.replicas.iter().map(|r| &r.id).collect();
    let settled = planned.replicas.iter().all(|r| ready(&r.id))
        && index.of_pool.get(&pool.id).is_none_or(|own| own.iter().all(|r| wanted.contains(&r.id)));
    let loads: Vec<(&ReplicaAssignment, &ReplicaLoad)> =
        planned.replicas.iter().filter_map(|r| Some((r, input.loads.get(&r.id)?))).collect();
    if !settled || loads.len() < n {
        // A change is under way, or somebody is silent: nothing is known well enough.
        *memory = Memory { waiting: memory.waiting, ..Memory::default() };
        return None;
    }
    let groups = groups(&loads);
    if groups.iter().any(|g| g.capacity <= 0.0 || !g.capacity.is_finite() || !g.outstanding.is_finite()) {
        return None;
    }
    let waiting: f64 = groups.iter().map(|g| g.waiting).sum();
    let grows = waiting >= memory.waiting;
    memory.waiting = waiting;
    let queue = |g: &Group| g.waiting >= config.waiting_per_replica * g.replicas && grows;
    let pressed = groups.iter().filter(|g| g.used() > config.high || queue(g));
    if let Some(most) = pressed.max_by(|a, b| a.used().total_cmp(&b.used())) {
        memory.slack_since = None;
        let since = *memory.pressed_since.get_or_insert(input.now);
        if input.now - since >= config.up_seconds && input.now > since && (n as u32) < planned.envelope.1 {
            let of = if most.role == Role::Mixed { String::new() } else { format!("{}: ", most.role) };
            return Some(Verdict::Add(
                most.role,
                format!(
                    "{of}tokens at {:.0} % of capacity, {:.0} requests waiting",
                    100.0 * most.used(),
                    most.waiting
                ),
            ));
        }
        return None;
    }
    memory.pressed_since = None;

    let line = |s: &Shape| planned.load_lines.iter().find(|(shape, _)| shape == s).map(|(_, rps)| *rps);
    let created = |r: &ReplicaAssignment| index.replicas.get(&r.id).map(|s| s.created_at);
    // The last of a role in a zone leaves others without a counterpart.
    let zone = |r: &ReplicaAssignment| {
        input.snapshot.nodes.iter().find(|x| r.nodes.first() == Some(&x.name)).map(|x| x.zone.as_str())
    };
    let may_go = |r: &&ReplicaAssignment| {
        let same = |o: &&ReplicaAssignment| o.shape.role == r.shape.role && zone(o) == zone(r);
        r.shape.role == Role::Mixed || planned.replicas.iter().filter(same).count() > 1
    };
    let dearest = planned.replicas.iter().filter(may_go).max_by(|a, b| {
        let cost =
            |r: &ReplicaAssignment| usd_per_hour(r, input.snapshot) / line(&r.shape).unwrap_or(1.0).max(1e-9);
        cost(a).total_cmp(&cost(b)).then_with(|| created(a).cmp(&created(b)))
    })?;
    let peers = loads.iter().filter(|(r, _)| r.shape.role == dearest.shape.role);
    let outstanding: f64 = peers.clone().map(|(_, l)| l.outstanding_tokens).sum();
    let others: f64 = peers.filter(|(r, _)| r.id != dearest.id).map(|(_, l)| l.capacity_tokens).sum();
    let rest = planned.replicas.iter().filter(|r| r.id != dearest.id);
    let lines: Option<Vec<(Role, f64)>> = rest.map(|r| Some((r.shape.role, line(&r.shape)?))).collect();
    let lines = lines.map(served_rps);
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
    let patience = pool.engine.expected_cold_start_seconds().clamp(60.0, 1800.0);
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

/// What replicas of one role hold.
struct Group {
    role: Role,
    replicas: f64,
    capacity: f64,
    outstanding: f64,
    waiting: f64,
}

impl Group {
    fn used(&self) -> f64 {
        self.outstanding / self.capacity
    }
}

/// Replicas that serve requests whole, that prefill and that decode are pressed each for themselves.
fn groups(loads: &[(&ReplicaAssignment, &ReplicaLoad)]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (r, load) in loads {
        let role = r.shape.role;
        let at = groups.iter().position(|g| g.role == role).unwrap_or_else(|| {
            groups.push(Group { role, replicas: 0.0, capacity: 0.0, outstanding: 0.0, waiting: 0.0 });
            groups.len() - 1
        });
        let g = &mut groups[at];
        g.replicas += 1.0;
        g.capacity += load.capacity_tokens;
        g.outstanding += load.outstanding_tokens;
        g.waiting += load.waiting.unwrap_or(0.0);
    }
    groups
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
    let added = matches!(verdict, Verdict::Add(..));
    let role = match &verdict {
        Verdict::Add(role, _) => Some(*role),
        Verdict::Remove(..) => None,
    };
    let of_role = |r: &&ReplicaAssignment| role.is_none_or(|role| r.shape.role == role);
    let peers = planned.replicas.iter().filter(of_role).count();
    let mut next_serial = input.next_serial;
    let mut replicas = planned.replicas.clone();
    let why = match verdict {
        Verdict::Remove(id, why) => {
            replicas.retain(|r| r.id != id);
            why
        }
        Verdict::Add(role, why) => {
            // The cheapest per request of the shapes in use that has room.
            let mut options: Vec<&ReplicaAssignment> = planned.replicas.iter().filter(of_role).collect();
            // Where its counterparts are.
            let counterparts = planned
                .replicas
                .iter()
                .filter(|r| !matches!(r.shape.role, Role::Mixed) && r.shape.role != role);
            let nodes: BTreeSet<&NodeName> = counterparts.flat_map(|r| &r.nodes).collect();
            let zones = input.snapshot.nodes.iter().filter(|n| nodes.contains(&n.name));
            let zones: BTreeSet<&str> = zones.map(|n| n.zone.as_str()).collect();
            let reaches = |n: &NodeInfo| role == Role::Mixed || zones.contains(n.zone.as_str());
            let line = |s: &Shape| {
                planned.load_lines.iter().find(|(x, _)| x == s).map_or(1.0, |(_, rps)| rps.max(1e-9))
            };
            options.sort_by(|a, b| {
                let cost = |r: &ReplicaAssignment| usd_per_hour(r, input.snapshot) / line(&r.shape);
                cost(a).total_cmp(&cost(b)).then_with(|| a.shape.cmp(&b.shape))
            });
            options.dedup_by(|a, b| a.shape == b.shape && a.spot == b.spot);
            let (model, node) = options.into_iter().find_map(|r| {
                let node = free_node(pool, &r.shape, r.spot, &reaches, input)?;
                let more = ReplicaAssignment { nodes: vec![node.clone()], ..r.clone() };
                let takes = consumption(&more, planned, input.snapshot);
                within_budgets(&pool.id, &takes, input).then_some((r, node))
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
    let mut takes = Consumption::default();
    replicas.iter().for_each(|r| takes += consumption(r, planned, input.snapshot));
    (entry.usd_per_hour, entry.watts) = (takes.usd_per_hour, takes.watts);
    entry.grams_co2e_per_hour = takes.grams_co2e_per_hour;
    entry.utilisation *= before as f64 / replicas.len().max(1) as f64;
    entry.why.summary = format!("{why}; {}", planned.why.summary);
    entry.replicas = replicas;
    plan.usd_per_hour += entry.usd_per_hour - planned.usd_per_hour;
    plan.watts += entry.watts - planned.watts;
    plan.grams_co2e_per_hour += entry.grams_co2e_per_hour - planned.grams_co2e_per_hour;
    let names = budgets_of(input.snapshot, &pool.id);
    let before_it = planned.consumption();
    for used in plan.budgets.iter_mut().filter(|b| names.contains(b.budget.as_str())) {
        used.planned += takes.of(used.unit) - before_it.of(used.unit);
    }
    let shown_rps = planned.demand.total_rps() * (peers + 1) as f64 / peers.max(1) as f64;
    Some(FastChange { plan, next_serial, pool: pool.id.clone(), added, shown_rps })
}

/// What a replica of a planned pool takes of budgets. A shape that the plan does not know the power of counts at full load.
fn consumption(r: &ReplicaAssignment, planned: &PoolPlan, snapshot: &ClusterSnapshot) -> Consumption {
    let Some(class) = snapshot.accelerators.iter().find(|a| a.name == r.shape.accelerator) else {
        return Consumption::default();
    };
    let known = planned.replica_watts.iter().find(|(s, _)| s == &r.shape).map(|(_, watts)| *watts);
    let watts = known.unwrap_or_else(|| class.most_watts() * f64::from(r.shape.gpus()));
    let zone = r.nodes.first().and_then(|n| snapshot.nodes.iter().find(|node| &node.name == n));
    let grid = grid(class, zone.map_or("", |n| n.zone.as_str()));
    Consumption {
        usd_per_hour: usd_per_hour(r, snapshot),
        watts,
        grams_co2e_per_hour: grams_co2e_per_hour(watts, &grid),
    }
}

/// Whether this much more for a pool stays within every budget that covers it, and within the budgets those are nested in.
fn within_budgets(pool: &PoolId, extra: &Consumption, input: &FastInput<'_>) -> bool {
    let counts = |id: &PoolId, b: &Budget| budgets_of(input.snapshot, id).contains(b.name.as_str());
    let budgets = &input.snapshot.budgets;
    budgets.iter().filter(|b| b.on_limit != OnLimit::Alert && counts(pool, b)).all(|b| {
        BudgetUnit::ALL.into_iter().all(|unit| {
            b.cap(unit).is_none_or(|cap| {
                let covered = input.plan.pools.iter().filter(|p| counts(&p.pool, b));
                let used: f64 = covered.map(|p| p.consumption().of(unit)).sum();
                extra.of(unit) <= 0.0 || used + extra.of(unit) <= cap + 1e-9
            })
        })
    })
}

/// The node for one more replica of a one-node shape: not one that its pool crowds, and of the rest the one it
/// fills best, counting what is planned and what still runs.
fn free_node(
    pool: &ModelPool,
    shape: &Shape,
    spot: bool,
    reaches: &dyn Fn(&NodeInfo) -> bool,
    input: &FastInput<'_>,
) -> Option<NodeName> {
    let planned: BTreeSet<&ReplicaId> =
        input.plan.pools.iter().flat_map(|p| &p.replicas).map(|r| &r.id).collect();
    let wanted = input.plan.pools.iter().flat_map(|p| &p.replicas).map(|r| (&r.shape, &r.nodes));
    let leaving =
        input.snapshot.replicas.iter().filter(|r| !planned.contains(&r.id)).map(|r| (&r.shape, &r.nodes));
    let mut used: BTreeMap<&NodeName, u32> = BTreeMap::new();
    for (shape, nodes) in wanted.chain(leaving) {
        for (node, gpus) in gpus_by_node(shape, nodes) {
            *used.entry(node).or_default() += gpus;
        }
    }
    let free = |n: &NodeInfo| {
        n.allocatable_gpus
            .saturating_sub(n.foreign_gpus)
            .saturating_sub(used.get(&n.name).copied().unwrap_or(0))
    };
    let own: Vec<&ReplicaAssignment> =
        input.plan.pools.iter().filter(|p| p.pool == pool.id).flat_map(|p| &p.replicas).collect();
    let share = fair_share(own.len() as u32 + 1);
    let crowded = |n: &NodeInfo| own.iter().filter(|r| r.nodes.contains(&n.name)).count() as u32 >= share;
    input
        .snapshot
        .nodes
        .iter()
        .filter(|n| n.accelerator == shape.accelerator && n.spot == spot)
        .filter(|n| eligibility(pool, n) == Eligibility::Open)
        .filter(|n| free(n) >= shape.gpus() && reaches(n))
        .min_by_key(|n| (crowded(n), free(n), n.name.clone()))
        .map(|n| n.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    struct World {
        plan: Plan,
        snapshot: ClusterSnapshot,
        state: FastState,
        rps: f64,
    }

    impl World {
        fn new(replicas: usize, rps: f64) -> Self {
            let names: Vec<String> = (0..replicas).map(|i| format!("a-{i}")).collect();
            let plan = plan(
                7,
                vec![pool_plan("default/a", names.iter().map(|n| assignment(n, "n1")).collect(), rps)],
            );
            let ready = names.iter().map(|n| replica(n, "default/a", "n1", ReplicaPhase::Ready)).collect();
            let snapshot = snapshot(vec![pool("default/a", None)], vec![node("n1", 3), node("n2", 8)], ready);
            Self { plan, snapshot, state: FastState::default(), rps }
        }

        /// Looks once a second while each replica holds `tokens` of 1,000 and `waiting` requests.
        fn look(&mut self, tokens: f64, waiting: f64, seconds: u32) -> Option<FastChange> {
            let load =
                ReplicaLoad { outstanding_tokens: tokens, capacity_tokens: 1000.0, waiting: Some(waiting) };
            let loads = self.snapshot.replicas.iter().map(|r| (r.id.clone(), load)).collect();
            let demand_rps = [("default/a".parse().unwrap(), self.rps)].into();
            (0..seconds).find_map(|second| {
                let input = FastInput {
                    plan: &self.plan,
                    snapshot: &self.snapshot,
                    loads: &loads,
                    demand_rps: &demand_rps,
                    next_serial: 9,
                    now: f64::from(second),
                };
                decide(&mut self.state, &input, &FastConfig::default())
            })
        }
    }

    #[test]
    fn a_pressed_pool_gets_one_replica_on_another_node_or_where_it_fits_best() {
        let mut w = World::new(2, 2.0);
        w.snapshot.nodes.retain(|n| n.name.as_str() == "n1");
        let change = w.look(950.0, 0.0, 10).unwrap();
        assert_eq!(change.plan.pools[0].replicas[2].nodes[0].as_str(), "n1", "there is no other");
        let mut w = World::new(2, 2.0);
        let change = w.look(950.0, 0.0, 10).unwrap();
        assert_eq!(change.plan.number, 8);
        assert_eq!(change.plan.pools[0].replicas.len(), 3);
        let new = &change.plan.pools[0].replicas[2];
        assert_eq!((new.id.as_str(), new.nodes[0].as_str()), ("a-9", "n2"));
        assert!(change.plan.trigger.contains("2 → 3"), "{}", change.plan.trigger);
        assert!(change.added && (change.shown_rps - 3.0).abs() < 1e-9);
        assert_eq!(change.next_serial, 10);
        // It is not there yet: nothing more happens, however full the others are.
        w.plan = change.plan;
        assert_eq!(w.look(2000.0, 50.0, 60), None);
    }

    #[test]
    fn of_two_parts_the_pressed_one_grows_and_neither_goes_without_the_other() {
        let roles = [Role::Prefill, Role::Decode, Role::Decode];
        let world = |rps: f64| {
            let mut w = World::new(3, rps);
            w.plan.pools[0].load_lines = roles.map(|role| (Shape { role, ..shape() }, 2.0)).to_vec();
            for (i, role) in roles.into_iter().enumerate() {
                w.plan.pools[0].replicas[i].shape.role = role;
                w.snapshot.replicas[i].shape.role = role;
            }
            w
        };
        // The nodes with the most room are where nobody prefills.
        let mut w = world(2.0);
        w.snapshot.nodes[1].zone = "b".into();
        w.snapshot.nodes[0].allocatable_gpus = 4;
        let change = w.look(950.0, 0.0, 10).unwrap();
        let new = change.plan.pools[0].replicas.last().unwrap();
        assert_eq!((new.shape.role, new.nodes[0].as_str()), (Role::Decode, "n1"));
        assert!((change.shown_rps - 3.0).abs() < 1e-9, "of two that decode: {}", change.shown_rps);
        // One of those that decode may go, the only one that prefills may not.
        let mut w = world(1.0);
        let change = w.look(10.0, 0.0, 2000).unwrap();
        let left: Vec<Role> = change.plan.pools[0].replicas.iter().map(|r| r.shape.role).collect();
        assert_eq!(left, [Role::Prefill, Role::Decode]);
        w.plan = change.plan;
        w.snapshot.replicas.retain(|r| w.plan.pools[0].replicas.iter().any(|p| p.id == r.id));
        assert_eq!(w.look(0.0, 0.0, 4000), None);
    }

    #[test]
    fn a_queue_presses_too_and_a_moment_does_not() {
        let mut w = World::new(2, 2.0);
        assert_eq!(w.look(950.0, 0.0, 2), None, "two seconds");
        let mut w = World::new(2, 2.0);
        assert!(w.look(100.0, 10.0, 10).is_some());
    }

    #[test]
    fn nothing_beyond_envelope_inventory_or_budget() {
        let mut w = World::new(2, 2.0);
        w.plan.pools[0].envelope = (1, 2);
        assert_eq!(w.look(990.0, 9.0, 60), None);
        let mut w = World::new(2, 2.0);
        w.snapshot.nodes[1].schedulable = false;
        w.snapshot.nodes[0].foreign_gpus = 1;
        assert_eq!(w.look(990.0, 9.0, 60), None);
        let mut w = World::new(2, 2.0);
        let cap = |name: &str, parent: Option<&str>, usd, pools: Vec<PoolId>| Budget {
            name: name.into(),
            scope: plimsoll_fleet::BudgetScope { namespaces: vec![], pools, tenants: vec![] },
            parent: parent.map(str::to_owned),
            usd_per_hour: usd,
            usd_per_month: None,
            tokens_per_minute: None,
            watts: None,
            grams_co2e_per_hour: None,
            on_limit: Default::default(),
        };
        let elsewhere = vec!["other/x".parse().unwrap()];
        w.snapshot.budgets = vec![
            cap("company", None, Some(2.1), elsewhere),
            cap("team", Some("company"), None, vec!["default/a".parse().unwrap()]),
        ];
        assert_eq!(w.look(990.0, 9.0, 60), None, "the budget that the pool's own is nested in binds");
        w.snapshot.budgets[0].usd_per_hour = Some(100.0);
        assert!(w.look(990.0, 9.0, 60).is_some());
        // Each replica draws 500 W.
        w.snapshot.budgets[0].watts = Some(1499.0);
        assert_eq!(w.look(990.0, 9.0, 60), None, "so do watts");
        w.snapshot.budgets[0].on_limit = OnLimit::Alert;
        let change = w.look(990.0, 9.0, 60).unwrap();
        assert_eq!((change.plan.pools[0].watts, change.plan.watts), (1500.0, 1500.0));
    }

    #[test]
    fn a_replica_goes_only_if_the_others_can_carry_load_and_forecast() {
        let mut w = World::new(3, 2.0);
        let change = w.look(200.0, 0.0, 120).unwrap();
        assert_eq!(change.plan.pools[0].replicas.len(), 2);
        assert!(!change.added);
        let mut w = World::new(3, 3.5);
        assert_eq!(w.look(200.0, 0.0, 600), None, "the forecast needs them: 3.5 of 2 × 2 rps");
        let mut w = World::new(3, 1.0);
        assert_eq!(w.look(400.0, 0.0, 600), None, "the others would be at 60 %");
        let mut w = World::new(1, 0.1);
        assert_eq!(w.look(0.0, 0.0, 600), None, "never the last one");
    }

    #[test]
    fn silence_decides_nothing() {
        let mut w = World::new(2, 0.5);
        w.look(0.0, 0.0, 50);
        let demand_rps = [("default/a".parse().unwrap(), 0.5)].into();
        let input = FastInput {
            plan: &w.plan,
            snapshot: &w.snapshot,
            loads: &BTreeMap::new(),
            demand_rps: &demand_rps,
            next_serial: 9,
            now: 1e6,
        };
        assert_eq!(decide(&mut w.state, &input, &FastConfig::default()), None);
    }
}
