//! A rule of [`super::rules`] as a policy: one shape a pool, replicas placed where there is room, the newest stopped first.
//!
//! Requests are routed and admitted by the same code as under [`super::Plimsoll`], so that only the scaling differs. What
//! is stopped takes no new requests and goes when it has none left.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use plimsoll_fleet::plan::{PoolOutcome, ReplicaAssignment, ScalingRecord, Why};
use plimsoll_fleet::telemetry::{AgentReport, EngineReport};
use plimsoll_fleet::{
    ClusterSnapshot, DemandEstimate, NodeName, Plan, PoolId, PoolPlan, ReplicaId, ReplicaPhase, RouteTable,
    Shape,
};
use plimsoll_scheduler::fast::price;
use plimsoll_scheduler::plan::inventory::gpus_by_node;
use plimsoll_scheduler::records::scaling_records;
use plimsoll_scheduler::routes::routes;

use super::rules::{Rule, Seen};
use super::{Orders, Policy};

/// One pool under a rule.
struct Scaled {
    shape: Shape,
    rule: Box<dyn Rule>,
    wanted: Vec<ReplicaAssignment>,
    arrived: u64,
    holding: u64,
}

/// Rules, one for each pool.
pub struct Rules {
    name: String,
    pools: BTreeMap<PoolId, Scaled>,
    snapshot: ClusterSnapshot,
    engines: BTreeMap<ReplicaId, EngineReport>,
    agents: BTreeMap<NodeName, String>,
    serial: u64,
    plan: Option<Plan>,
    table: Option<RouteTable>,
    routed: bool,
    draining: BTreeSet<ReplicaId>,
    drained: BTreeSet<ReplicaId>,
    records: Vec<ScalingRecord>,
}

impl Rules {
    /// Scales each pool by a rule, in replicas of one shape.
    pub fn new(
        name: impl Into<String>,
        pools: impl IntoIterator<Item = (PoolId, Shape, Box<dyn Rule>)>,
    ) -> Self {
        let scaled =
            |(id, shape, rule)| (id, Scaled { shape, rule, wanted: Vec::new(), arrived: 0, holding: 0 });
        Self {
            name: name.into(),
            pools: pools.into_iter().map(scaled).collect(),
            snapshot: ClusterSnapshot::default(),
            engines: BTreeMap::new(),
            agents: BTreeMap::new(),
            serial: 0,
            plan: None,
            table: None,
            routed: false,
            draining: BTreeSet::new(),
            drained: BTreeSet::new(),
            records: Vec::new(),
        }
    }

    fn seen(&self, pool: &PoolId, scaled: &Scaled, now: f64) -> Seen {
        let wanted = |id: &ReplicaId| scaled.wanted.iter().any(|w| &w.id == id);
        let own = self.snapshot.replicas.iter().filter(|r| &r.pool == pool && wanted(&r.id));
        let ready: Vec<&ReplicaId> = own.filter(|r| r.phase == ReplicaPhase::Ready).map(|r| &r.id).collect();
        let reports: Vec<&EngineReport> = ready.iter().filter_map(|id| self.engines.get(*id)).collect();
        let sum = |f: fn(&EngineReport) -> Option<f64>| reports.iter().filter_map(|r| f(r)).sum::<f64>();
        Seen {
            now,
            replicas: scaled.wanted.len() as u32,
            ready: ready.len() as u32,
            running: sum(|r| r.running),
            waiting: sum(|r| r.waiting) + scaled.holding as f64,
            kv_usage: sum(|r| r.kv_usage) / (reports.len() as f64).max(1.0),
            arrived: scaled.arrived,
        }
    }

    /// Accelerators that neither what is wanted nor what still drains holds, by node.
    fn free(&self) -> BTreeMap<NodeName, u32> {
        let mut free: BTreeMap<NodeName, u32> = self
            .snapshot
            .nodes
            .iter()
            .filter(|n| n.schedulable && n.ready)
            .map(|n| (n.name.clone(), n.allocatable_gpus.saturating_sub(n.foreign_gpus)))
            .collect();
        let wanted: BTreeSet<&ReplicaId> =
            self.pools.values().flat_map(|s| s.wanted.iter().map(|w| &w.id)).collect();
        let draining = self.snapshot.replicas.iter().filter(|r| !wanted.contains(&r.id));
        let held = draining.map(|r| (&r.shape, &r.nodes));
        let held =
            held.chain(self.pools.values().flat_map(|s| s.wanted.iter().map(|w| (&w.shape, &w.nodes))));
        for (shape, nodes) in held {
            for (node, gpus) in gpus_by_node(shape, nodes) {
                if let Some(left) = free.get_mut(node) {
                    *left = left.saturating_sub(gpus);
                }
            }
        }
        free
    }

    fn scale(&mut self, now: f64) -> bool {
        let pools: Vec<PoolId> = self.pools.keys().cloned().collect();
        let mut changed = false;
        for id in pools {
            let Some(pool) = self.snapshot.pools.iter().find(|p| p.id == id) else { continue };
            let (least, most) = (pool.scaling.min_replicas, pool.scaling.max_replicas);
            let Some(scaled) = self.pools.get(&id) else { continue };
            let seen = self.seen(&id, scaled, now);
            let Some(scaled) = self.pools.get_mut(&id) else { continue };
            let desired = scaled.rule.desired(&seen).clamp(least, most.max(least));
            scaled.arrived = 0;
            while scaled.wanted.len() > desired as usize {
                scaled.wanted.pop();
                changed = true;
            }
            let (missing, shape) = (desired as usize - scaled.wanted.len(), scaled.shape.clone());
            for _ in 0..missing {
                // Those for which there is no room wait, as pending pods do: they are tried again at each look.
                let Some(node) = self.room(&shape) else { break };
                self.serial += 1;
                let name = format!("{}-{}-r{}", id.namespace(), id.name(), self.serial);
                let Ok(replica) = ReplicaId::new(&name) else { break };
                let assignment =
                    ReplicaAssignment { id: replica, shape: shape.clone(), nodes: vec![node], spot: false };
                if let Some(scaled) = self.pools.get_mut(&id) {
                    scaled.wanted.push(assignment);
                    changed = true;
                }
            }
        }
        changed
    }

    /// A node with room for one more of a shape: the fullest, so that big shapes find room.
    fn room(&self, shape: &Shape) -> Option<NodeName> {
        let free = self.free();
        let of_class = self.snapshot.nodes.iter().filter(|n| n.accelerator == shape.accelerator);
        let fits = of_class.filter_map(|n| Some((*free.get(&n.name)?, &n.name)));
        fits.filter(|(left, _)| *left >= shape.gpus()).min().map(|(_, name)| name.clone())
    }

    fn make_plan(&self, now: Timestamp) -> Plan {
        let pools: Vec<PoolPlan> = self
            .pools
            .iter()
            .filter_map(|(id, scaled)| {
                let pool = self.snapshot.pools.iter().find(|p| &p.id == id)?;
                let usd: f64 = scaled.wanted.iter().map(|w| price(&w.shape, w.spot, &self.snapshot)).sum();
                let n = scaled.wanted.len() as u32;
                Some(PoolPlan {
                    pool: id.clone(),
                    uid: pool.uid.clone(),
                    generation: pool.generation,
                    outcome: if n == 0 { PoolOutcome::ScaledToZero } else { PoolOutcome::Served },
                    replicas: scaled.wanted.clone(),
                    flows: Vec::new(),
                    unserved_rps: 0.0,
                    demand: DemandEstimate::default(),
                    load_lines: Vec::new(),
                    utilisation: 0.0,
                    usd_per_hour: usd,
                    watts: 0.0,
                    grams_co2e_per_hour: 0.0,
                    replica_watts: Vec::new(),
                    prediction: Default::default(),
                    envelope: (n, n),
                    why: Why { summary: scaled.rule.name(), ..Why::default() },
                    today: None,
                })
            })
            .collect();
        let usd_per_hour = pools.iter().map(|p| p.usd_per_hour).sum();
        let number = self.plan.as_ref().map_or(1, |p| p.number + 1);
        Plan {
            number,
            created_at: now,
            trigger: self.name.clone(),
            pools,
            usd_per_hour,
            watts: 0.0,
            grams_co2e_per_hour: 0.0,
            budgets: Vec::new(),
            binding: Vec::new(),
            quality: Default::default(),
            unprovisioned: Vec::new(),
        }
    }
}

impl Policy for Rules {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn snapshot(&mut self, snapshot: ClusterSnapshot, _: Timestamp) {
        let exists = |id: &ReplicaId| snapshot.replicas.iter().any(|r| &r.id == id);
        self.engines.retain(|id, _| exists(id));
        self.drained.retain(exists);
        self.snapshot = snapshot;
        self.routed = false;
    }

    fn report(&mut self, report: &AgentReport, _: Timestamp) {
        if let Some(node) = &report.node
            && self.agents.insert(node.clone(), report.address.clone()).is_none()
        {
            self.routed = false;
        }
        for engine in &report.engines {
            self.engines.insert(engine.replica.clone(), engine.clone());
        }
        for (id, scaled) in &mut self.pools {
            let own = || report.traffic.iter().filter(|t| &t.pool == id);
            scaled.arrived += own().map(|t| t.arrived).sum::<u64>();
            if report.node.is_none() {
                scaled.holding = own().map(|t| t.holding).sum();
            }
        }
    }

    fn tick(&mut self, now: Timestamp) {
        let changed = self.scale(plimsoll_scheduler::clock::seconds(now));
        if changed || self.plan.is_none() {
            let plan = self.make_plan(now);
            let made = scaling_records(self.plan.as_ref(), &plan, now);
            self.records.extend(made.into_iter().map(|(_, record)| record));
            self.plan = Some(plan);
            self.routed = false;
        }
        let wanted: BTreeSet<&ReplicaId> =
            self.pools.values().flat_map(|s| s.wanted.iter().map(|w| &w.id)).collect();
        let dropped = self.snapshot.replicas.iter().filter(|r| !wanted.contains(&r.id));
        self.draining.clear();
        for replica in dropped {
            let empty = self.engines.get(&replica.id).is_some_and(|e| e.drained);
            if replica.phase != ReplicaPhase::Ready || empty {
                self.drained.insert(replica.id.clone());
            }
            self.draining.insert(replica.id.clone());
        }
        if self.routed {
            return;
        }
        if let Some(plan) = &self.plan {
            let version = self.table.as_ref().map_or(0, |t| t.version);
            let mut table = routes(plan, &self.snapshot, &self.agents, version);
            for endpoint in table.pools.iter_mut().flat_map(|p| &mut p.endpoints) {
                endpoint.draining = self.draining.contains(&endpoint.replica);
            }
            if self.table.as_ref().is_none_or(|t| !t.says_same(&table)) {
                self.table = Some(table);
            }
            self.routed = true;
        }
    }

    fn orders(&self) -> Orders<'_> {
        Orders {
            plan: self.plan.as_ref(),
            routes: self.table.as_ref(),
            draining: &self.draining,
            drained: &self.drained,
        }
    }

    fn take_records(&mut self) -> Vec<ScalingRecord> {
        std::mem::take(&mut self.records)
    }
}
