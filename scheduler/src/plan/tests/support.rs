//! Small worlds for tests.

use std::collections::BTreeMap;

use plimsoll_fleet::pool::{EngineSpec, Mode, Parallelism, Placement, Scaling};
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::*;

use crate::plan::performance::{Evaluation, Misfit, Performance, Query};
use crate::plan::solver::BranchAndBound;
use crate::plan::{PlanInput, PlanOutcome, PlannerConfig, ShapeCache, plan, plan_with};

pub(crate) fn pool(name: &str, model: &str, ttft_ms: f64, tpot_ms: f64) -> ModelPool {
    let p95 = |ms| Some(Objective { percentile: Percentile::P95, ms });
    ModelPool {
        id: name.parse().unwrap(),
        uid: format!("uid-{name}"),
        generation: 1,
        served_name: name.to_owned(),
        source: None,
        architecture: presets::model(model).unwrap(),
        variants: vec![variant("bf16", Dtype::Bf16, 1.0), variant("fp8", Dtype::Fp8, 0.99)],
        slo_classes: vec![SloClass {
            name: "default".to_owned(),
            slo: Slo { ttft: p95(ttft_ms), tpot: p95(tpot_ms), e2e: None },
            match_headers: BTreeMap::new(),
            expected_share: 1.0,
        }],
        demand: None,
        scaling: Scaling {
            min_replicas: 1,
            max_replicas: 50,
            scale_to_zero_after_seconds: None,
            min_zones: 1,
        },
        parallelism: Parallelism::default(),
        placement: Placement::default(),
        engine: EngineSpec {
            kind: EngineKind::Simulated,
            image: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            resources: BTreeMap::new(),
            cold_start_seconds: 60.0,
            measured_cold_start_seconds: BTreeMap::new(),
        },
        priority: 0,
        min_quality: 0.0,
        mode: Mode::Enforce,
        max_context_tokens: Some(8192),
        rollout: Default::default(),
        revision: String::new(),
        observed: Vec::new(),
    }
}

pub(crate) fn variant(name: &str, weights: Dtype, quality: f64) -> Variant {
    Variant { name: name.to_owned(), weights, kv: Dtype::Bf16, quality, source: None }
}

pub(crate) fn node(name: &str, accelerator: &str, gpus: u32, zone: &str) -> NodeInfo {
    NodeInfo {
        name: NodeName::new(name).unwrap(),
        accelerator: accelerator.to_owned(),
        allocatable_gpus: gpus,
        foreign_gpus: 0,
        zone: zone.to_owned(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        spot: false,
        schedulable: true,
        ready: true,
        fault: String::new(),
    }
}

pub(crate) fn class(name: &str, rps: f64, input: f64, output: f64) -> RequestClass {
    RequestClass {
        name: name.to_owned(),
        slo_class: "default".to_owned(),
        input_tokens: input,
        output_tokens: output,
        cached_fraction: 0.0,
        rps,
    }
}

pub(crate) fn demand(classes: Vec<RequestClass>) -> DemandEstimate {
    DemandEstimate { classes, observed_rps: None, arrival_scv: 1.0, source: "test".to_owned() }
}

/// An adapter of pool `p`.
pub(crate) fn adapter(i: usize, rank: u32, rps: f64, pinned: bool) -> Adapter {
    Adapter {
        namespace: "default".to_owned(),
        name: format!("a{i}"),
        served_name: format!("a{i}"),
        base_pool: "p".parse().unwrap(),
        group: None,
        source: "hf://org/a".to_owned(),
        sha256: None,
        rank,
        size_bytes: None,
        expected_rps: rps,
        observed_rps: None,
        pinned,
    }
}

/// A budget of everything with one cap.
pub(crate) fn capped(name: &str, unit: BudgetUnit, cap: f64) -> Budget {
    let mut budget = Budget { usd_per_hour: None, ..budget(name, 0.0) };
    budget.set_cap(unit, cap);
    budget
}

pub(crate) fn budget(name: &str, usd_per_hour: f64) -> Budget {
    Budget {
        name: name.to_owned(),
        scope: BudgetScope::default(),
        parent: None,
        usd_per_hour: Some(usd_per_hour),
        usd_per_month: None,
        tokens_per_minute: None,
        watts: None,
        grams_co2e_per_hour: None,
        on_limit: OnLimit::Shed,
    }
}

/// A world that is planned again and again: each plan's replicas become ready before the next.
pub(crate) struct World {
    pub(crate) snapshot: ClusterSnapshot,
    pub(crate) demands: BTreeMap<PoolId, DemandEstimate>,
    pub(crate) previous: Option<Plan>,
    pub(crate) config: PlannerConfig,
    pub(crate) idle: BTreeMap<PoolId, f64>,
    pub(crate) cache: ShapeCache,
    pub(crate) next_serial: u64,
    pub(crate) number: u64,
}

impl World {
    pub(crate) fn new(nodes: Vec<NodeInfo>) -> Self {
        let mut accelerators: Vec<AcceleratorClass> = Vec::new();
        for n in &nodes {
            if !accelerators.iter().any(|a| a.name == n.accelerator) {
                accelerators.push(presets::accelerator(&n.accelerator).unwrap());
            }
        }
        Self {
            snapshot: ClusterSnapshot { nodes, accelerators, ..ClusterSnapshot::default() },
            demands: BTreeMap::new(),
            previous: None,
            config: PlannerConfig::default(),
            idle: BTreeMap::new(),
            cache: ShapeCache::default(),
            next_serial: 1,
            number: 1,
        }
    }

    /// The nodes that `plimsoll up` simulates.
    pub(crate) fn up() -> Self {
        Self::new(vec![
            node("h-0", "h100", 8, "a"),
            node("h-1", "h100", 8, "b"),
            node("l40s-0", "l40s", 4, "a"),
            node("l40s-1", "l40s", 4, "b"),
            node("l4-0", "l4", 1, "a"),
            node("l4-1", "l4", 1, "b"),
        ])
    }

    pub(crate) fn add(&mut self, pool: ModelPool, demand: DemandEstimate) -> &mut Self {
        self.demands.insert(pool.id.clone(), demand);
        self.snapshot.pools.push(pool);
        self
    }

    pub(crate) fn input(&self) -> PlanInput<'_> {
        PlanInput {
            snapshot: &self.snapshot,
            demands: &self.demands,
            previous: self.previous.as_ref(),
            config: &self.config,
            number: self.number,
            next_serial: self.next_serial,
            now: jiff::Timestamp::UNIX_EPOCH,
            trigger: "test".to_owned(),
            idle: &self.idle,
            cache: &self.cache,
        }
    }

    pub(crate) fn plan(&self) -> Plan {
        let out = plan(&self.input());
        self.check(&out.plan);
        out.plan
    }

    pub(crate) fn plan_with(&self, model: &dyn Performance) -> PlanOutcome {
        let out = plan_with(&self.input(), model, &BranchAndBound);
        self.check(&out.plan);
        out
    }

    /// Makes a plan and lets it come true.
    pub(crate) fn run(&mut self) -> Plan {
        let out = plan(&self.input());
        self.check(&out.plan);
        self.next_serial = out.next_serial;
        self.number += 1;
        self.come_true(&out.plan);
        self.previous = Some(out.plan.clone());
        out.plan
    }

    pub(crate) fn come_true(&mut self, plan: &Plan) {
        let before = std::mem::take(&mut self.snapshot.replicas);
        for p in &plan.pools {
            for r in &p.replicas {
                let old = before.iter().find(|b| b.id == r.id);
                self.snapshot.replicas.push(ReplicaStatus {
                    id: r.id.clone(),
                    pool: p.pool.clone(),
                    shape: r.shape.clone(),
                    nodes: r.nodes.clone(),
                    phase: if r.nodes.is_empty() { ReplicaPhase::Pending } else { ReplicaPhase::Ready },
                    address: Some("127.0.0.1:1".to_owned()),
                    plan: old.map_or(plan.number, |o| o.plan),
                    since: jiff::Timestamp::UNIX_EPOCH,
                    created_at: jiff::Timestamp::UNIX_EPOCH,
                    ready_at: Some(jiff::Timestamp::UNIX_EPOCH),
                    message: String::new(),
                    outdated: false,
                    revision: String::new(),
                    ended: false,
                    adapter_room: None,
                    gated: false,
                });
            }
        }
    }

    /// What must hold of every plan, whatever was asked.
    pub(crate) fn check(&self, plan: &Plan) {
        let mut used: BTreeMap<&NodeName, u32> = BTreeMap::new();
        let mut autoscaled: BTreeMap<&str, u32> = BTreeMap::new();
        let mut ids = std::collections::BTreeSet::new();
        for p in &plan.pools {
            for r in &p.replicas {
                assert!(ids.insert(&r.id), "{} twice", r.id);
                if r.nodes.is_empty() {
                    *autoscaled.entry(&r.shape.accelerator).or_default() += r.shape.gpus();
                }
                for (n, g) in crate::plan::inventory::gpus_by_node(&r.shape, &r.nodes) {
                    *used.entry(n).or_default() += g;
                    let info = self.snapshot.nodes.iter().find(|i| &i.name == n).expect("node exists");
                    assert_eq!(info.accelerator, r.shape.accelerator);
                }
            }
            let flow = p.served_rps();
            let of = |role: Role| p.flows.iter().filter(|f| f.shape.role == role).map(|f| f.rps).sum::<f64>();
            let (prefill, decode) = (of(Role::Prefill), of(Role::Decode));
            assert!(
                (prefill - decode).abs() <= 1e-6 * (1.0 + prefill),
                "{prefill} prefilled, {decode} decoded"
            );
            let zone = |r: &ReplicaAssignment| {
                self.snapshot.nodes.iter().find(|n| r.nodes.first() == Some(&n.name)).map_or("", |n| &n.zone)
            };
            let asked: f64 = p.demand.classes.iter().map(|c| c.rps).filter(|r| r.is_finite()).sum();
            let external =
                self.snapshot.pools.iter().any(|s| s.id == p.pool && s.engine.kind == EngineKind::External);
            assert!(
                external || (flow + p.unserved_rps - asked).abs() <= 1e-3 * asked.max(1e-3),
                "{}: {flow} + {} of {asked}",
                p.pool,
                p.unserved_rps
            );
            for f in &p.flows {
                let takes = |r: &ReplicaAssignment| {
                    r.shape == f.shape && (f.zone.is_empty() || r.nodes.is_empty() || zone(r) == f.zone)
                };
                assert!(f.rps >= 0.0 && p.replicas.iter().any(takes), "flow to nothing");
            }
            assert!(p.utilisation <= 1.0 + 1e-6 && p.usd_per_hour >= 0.0);
            assert!(!p.why.summary.is_empty(), "{} has no reason", p.pool);
        }
        for (n, g) in used {
            let info = self.snapshot.nodes.iter().find(|i| &i.name == n).unwrap();
            // Advice may be given on what the engines that it is compared with hold today.
            let adopted = self.snapshot.adopted.iter().flat_map(|a| &a.gpus);
            let returned: u32 = adopted.filter(|(at, _)| at == n).map(|(_, gpus)| gpus).sum();
            let foreign = info.foreign_gpus.saturating_sub(returned);
            assert!(g + foreign <= info.allocatable_gpus, "{n} used twice: {g}");
        }
        for (a, g) in autoscaled {
            let class = self.snapshot.accelerators.iter().find(|c| c.name == a).unwrap();
            assert!(g <= class.autoscalable_max);
        }
        for b in self.snapshot.budgets.iter().filter(|b| b.on_limit != OnLimit::Alert) {
            let covered = |p: &&PoolPlan| {
                crate::plan::prepare::budgets_of(&self.snapshot, &p.pool).contains(b.name.as_str())
            };
            let planned = |p: &&PoolPlan| p.outcome != plan::PoolOutcome::Infeasible;
            for unit in BudgetUnit::ALL {
                let Some(cap) = b.cap(unit).filter(|c| !c.is_nan()) else { continue };
                let takes = |p: &PoolPlan| p.consumption().of(unit);
                let taken: f64 = plan.pools.iter().filter(covered).filter(planned).map(takes).sum();
                let slack = 1e-5 * unit.step();
                assert!(taken <= cap.max(0.0) + slack, "budget {}: {taken} of {cap} {unit:?}", b.name);
            }
        }
        assert!(plan.quality.objective.is_finite() && plan.quality.gap >= 0.0);
    }
}

/// Performance by a table: rate of each class by accelerator for one GPU; TP scales it. Tests of the program use this
/// so that the optimum can be known.
pub(crate) struct Table(pub(crate) BTreeMap<String, Vec<f64>>);

impl Performance for Table {
    fn evaluate(&self, q: &Query<'_>) -> Result<Evaluation, Misfit> {
        let key = &q.shape.accelerator;
        let Some(rates) = self.0.get(key) else {
            return Err(Misfit { weight_bytes: 0.0, usable_bytes: 0.0, text: "not in the table".to_owned() });
        };
        let of = |c: &RequestClass| {
            let i: usize = c.name.trim_start_matches('c').parse().unwrap_or(0);
            rates[i % rates.len()] * f64::from(q.shape.gpus()).powf(0.9)
        };
        let all: Vec<f64> = q.classes.iter().map(of).collect();
        let total: f64 = q.classes.iter().map(|c| c.rps).sum();
        let work: f64 =
            q.classes.iter().zip(&all).map(|(c, r)| if *r > 0.0 { c.rps / r } else { f64::INFINITY }).sum();
        let mix_rps = if work.is_finite() && work > 0.0 { total / work } else { 0.0 };
        let watts = q.accelerator.tdp_watts * f64::from(q.shape.gpus());
        Ok(Evaluation { misses: vec![None; all.len()], rates: all, mix_rps, watts })
    }

    fn predict(&self, _: &Query<'_>, _: f64) -> Option<plimsoll_fleet::plan::Prediction> {
        Some(plimsoll_fleet::plan::Prediction::default())
    }

    fn coefficients(&self, _: &Query<'_>) -> Option<StepCoefficients> {
        Some(StepCoefficients::default())
    }
}
