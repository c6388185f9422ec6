//! Small clusters and reports for this crate's tests.

use std::collections::BTreeMap;

use jiff::Timestamp;
use plimsoll_fleet::pool::{EngineSpec, Mode, Parallelism, Placement, Scaling};
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::telemetry::{AgentReport, LogHistogram, TrafficReport};
use plimsoll_fleet::*;

pub(crate) fn pool(name: &str, prior_rps: Option<f64>) -> ModelPool {
    let p95 = |ms| Some(Objective { percentile: Percentile::P95, ms });
    ModelPool {
        id: name.parse().unwrap(),
        uid: format!("uid-{name}"),
        generation: 1,
        served_name: name.to_owned(),
        source: None,
        architecture: presets::model("llama-3.1-8b").unwrap(),
        variants: vec![Variant {
            name: "bf16".into(),
            weights: Dtype::Bf16,
            kv: Dtype::Bf16,
            quality: 1.0,
            source: None,
        }],
        slo_classes: vec![SloClass {
            name: "default".into(),
            slo: Slo { ttft: p95(2000.0), tpot: p95(100.0), e2e: None },
            match_headers: BTreeMap::new(),
            expected_share: 1.0,
        }],
        demand: prior_rps.map(|rps| DemandPrior {
            rps,
            input: LengthDistribution { mean_tokens: 1000.0, p95_tokens: 3000.0 },
            output: LengthDistribution { mean_tokens: 200.0, p95_tokens: 500.0 },
        }),
        scaling: Scaling {
            min_replicas: 1,
            max_replicas: 20,
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
        max_context_tokens: Some(16_384),
        rollout: Default::default(),
        revision: String::new(),
        observed: Vec::new(),
    }
}

pub(crate) fn node(name: &str, gpus: u32) -> NodeInfo {
    NodeInfo {
        name: NodeName::new(name).unwrap(),
        accelerator: "l4".into(),
        allocatable_gpus: gpus,
        foreign_gpus: 0,
        zone: "a".into(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        spot: false,
        schedulable: true,
        ready: true,
        fault: String::new(),
    }
}

pub(crate) fn shape() -> Shape {
    Shape {
        variant: "bf16".into(),
        accelerator: "l4".into(),
        tensor_parallel: 1,
        pipeline_parallel: 1,
        data_parallel: 1,
        expert_parallel: 1,
        role: Role::Mixed,
    }
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

pub(crate) fn replica(id: &str, pool: &str, on: &str, phase: ReplicaPhase) -> ReplicaStatus {
    ReplicaStatus {
        id: ReplicaId::new(id).unwrap(),
        pool: pool.parse().unwrap(),
        shape: shape(),
        nodes: vec![NodeName::new(on).unwrap()],
        phase,
        address: Some("127.0.0.1:9".into()),
        plan: 1,
        since: at(0),
        created_at: at(0),
        ready_at: (phase == ReplicaPhase::Ready || phase == ReplicaPhase::Draining).then(|| at(0)),
        message: String::new(),
        outdated: false,
        revision: String::new(),
        ended: false,
        adapter_room: None,
        gated: false,
    }
}

pub(crate) fn assignment(id: &str, on: &str) -> ReplicaAssignment {
    ReplicaAssignment {
        id: ReplicaId::new(id).unwrap(),
        shape: shape(),
        nodes: vec![NodeName::new(on).unwrap()],
        spot: false,
    }
}

pub(crate) fn pool_plan(name: &str, replicas: Vec<ReplicaAssignment>, rps: f64) -> PoolPlan {
    let pool = pool(name, None);
    PoolPlan {
        pool: pool.id.clone(),
        uid: pool.uid.clone(),
        generation: 1,
        outcome: plan::PoolOutcome::Served,
        flows: Vec::new(),
        unserved_rps: 0.0,
        demand: DemandEstimate {
            classes: vec![RequestClass {
                name: "default/x".into(),
                slo_class: "default".into(),
                input_tokens: 1000.0,
                output_tokens: 200.0,
                cached_fraction: 0.0,
                rps,
            }],
            ..DemandEstimate::default()
        },
        load_lines: vec![(shape(), 2.0)],
        utilisation: 0.5,
        usd_per_hour: replicas.len() as f64,
        watts: 500.0 * replicas.len() as f64,
        grams_co2e_per_hour: 0.0,
        replica_watts: vec![(shape(), 500.0)],
        prediction: plan::Prediction::default(),
        envelope: (1, 2 * replicas.len() as u32),
        why: plan::Why::default(),
        today: None,
        replicas,
    }
}

pub(crate) fn plan(number: u64, pools: Vec<PoolPlan>) -> Plan {
    Plan {
        number,
        created_at: at(0),
        trigger: "test".into(),
        usd_per_hour: pools.iter().map(|p| p.usd_per_hour).sum(),
        watts: pools.iter().map(|p| p.watts).sum(),
        grams_co2e_per_hour: 0.0,
        budgets: Vec::new(),
        pools,
        binding: Vec::new(),
        quality: plan::SolveQuality::default(),
        unprovisioned: Vec::new(),
    }
}

pub(crate) fn snapshot(
    pools: Vec<ModelPool>,
    nodes: Vec<NodeInfo>,
    replicas: Vec<ReplicaStatus>,
) -> ClusterSnapshot {
    ClusterSnapshot {
        pools,
        nodes,
        replicas,
        accelerators: vec![presets::accelerator("l4").unwrap()],
        ..ClusterSnapshot::default()
    }
}

pub(crate) fn traffic(pool: &str, arrived: u64) -> TrafficReport {
    let mut input = LogHistogram::default();
    let mut output = LogHistogram::default();
    for _ in 0..arrived {
        input.record(1200.0);
        output.record(150.0);
    }
    TrafficReport {
        pool: pool.parse().unwrap(),
        slo_class: "default".into(),
        arrived,
        finished: arrived,
        attained: arrived,
        refused: 0,
        failed: 0,
        holding: 0,
        lengths: if arrived > 0 { vec![(10, 7, arrived)] } else { Vec::new() },
        input_tokens: input,
        output_tokens: output,
        cached_tokens: 0,
        ttft_ms: LogHistogram::default(),
        tpot_us: LogHistogram::default(),
        e2e_ms: LogHistogram::default(),
        interarrival_moments: (0.0, 0.0),
    }
}

pub(crate) fn report(agent: &str, sequence: u64, traffic: Vec<TrafficReport>) -> AgentReport {
    AgentReport {
        agent: agent.into(),
        node: None,
        address: "127.0.0.1:1".into(),
        sequence,
        incarnation: 1,
        interval_seconds: 1.0,
        traffic,
        engines: Vec::new(),
        replicas: Vec::new(),
        route_version: 0,
        adapters: Vec::new(),
    }
}
