use std::collections::BTreeMap;

use jiff::Timestamp;
use plimsoll_fleet::pool::{EngineSpec, Mode, Parallelism, Placement, Scaling};
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{
    ClusterSnapshot, Dtype, EngineKind, ModelPool, NodeInfo, Objective, Percentile, Slo, SloClass, presets,
};
use plimsoll_scheduler::plan::PlannerConfig;

use super::*;
use crate::trace::{GeneratorConfig, Profile, generate};

fn pool(name: &str, cold_start_seconds: f64) -> ModelPool {
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
        demand: None,
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
            cold_start_seconds,
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

fn node(name: &str, accelerator: &str, gpus: u32) -> NodeInfo {
    NodeInfo {
        name: name.parse().unwrap(),
        accelerator: accelerator.to_owned(),
        allocatable_gpus: gpus,
        foreign_gpus: 0,
        zone: "a".to_owned(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        spot: false,
        schedulable: true,
        ready: true,
        fault: String::new(),
    }
}

fn cluster(pools: Vec<ModelPool>) -> ClusterSnapshot {
    let nodes = (0..4)
        .map(|i| node(&format!("h{i}"), "h100", 4))
        .chain((0..2).map(|i| node(&format!("l{i}"), "l4", 4)));
    ClusterSnapshot {
        pools,
        accelerators: presets::accelerators(),
        nodes: nodes.collect(),
        ..Default::default()
    }
}

fn scenario(profile: Profile, seconds: f64, cold_start_seconds: f64) -> Scenario {
    Scenario {
        cluster: cluster(vec![pool("default/chat", cold_start_seconds)]),
        traffic: vec![Traffic {
            pool: "default/chat".parse().unwrap(),
            slo_class: String::new(),
            trace: generate(&GeneratorConfig::new(profile, seconds, 7)),
        }],
        settings: Settings::default(),
    }
}

fn play(scenario: &Scenario) -> Outcome {
    let mut policy = Plimsoll::new(PlannerConfig::default(), Timestamp::UNIX_EPOCH).unwrap();
    let outcome = simulate(scenario, &mut policy, |_| {}).unwrap();
    for p in &outcome.pools {
        assert_eq!(p.finished + p.refused + p.failed, p.requests, "each request ends once: {p:?}");
    }
    outcome
}

#[test]
fn a_steady_load_is_served_by_few_replicas_within_its_objectives() {
    let mut scenario = scenario(Profile::Constant { rps: 8.0 }, 300.0, 30.0);
    scenario.settings.warm_up_seconds = 60.0;
    let outcome = play(&scenario);
    assert!(outcome.attainment() > 0.99, "{outcome:?}");
    let chat = &outcome.pools[0];
    assert!(chat.failed == 0 && chat.refused == 0, "{chat:?}");
    assert!(chat.peak_replicas <= 3 && chat.reversals == 0, "{chat:?}");
    assert!(outcome.usd > 0.0 && (outcome.seconds - 240.0).abs() < 5.0);
}

#[test]
fn the_same_scenario_gives_the_same_outcome() {
    let scenario = scenario(Profile::AzureCode, 120.0, 20.0);
    assert_eq!(play(&scenario), play(&scenario));
}

#[test]
fn a_pool_at_zero_holds_requests_until_it_serves() {
    let mut scenario = scenario(Profile::Constant { rps: 1.0 }, 20.0, 40.0);
    let pool = &mut scenario.cluster.pools[0];
    pool.scaling.min_replicas = 0;
    pool.scaling.scale_to_zero_after_seconds = Some(30.0);
    // Nobody asks for the first 100 s, then three at once.
    scenario.traffic[0].trace.requests.truncate(3);
    for request in &mut scenario.traffic[0].trace.requests {
        request.at_ms += 100_000.0;
    }
    let outcome = play(&scenario);
    let chat = &outcome.pools[0];
    assert_eq!((chat.refused, chat.failed), (0, 0), "{chat:?}");
    let longest_held = chat.ttft_ms.p99;
    assert!((40_000.0..44_000.0).contains(&longest_held), "no more than 1.1 cold starts: {longest_held} ms");
}

#[test]
fn more_demand_gets_more_replicas_and_less_gives_them_back() {
    let steps_rps = vec![5.0, 60.0, 5.0];
    let outcome = play(&scenario(Profile::Staircase { steps_rps }, 1800.0, 30.0));
    let at = |second: f64| outcome.timeline.iter().find(|s| s.at_seconds >= second).unwrap();
    let (low, high, last) = (at(550.0).held, at(1150.0).held, at(1790.0).held);
    assert!(high > low && last < high, "{low} {high} {last}");
    assert!(outcome.changes.iter().any(|c| !c.reason.is_empty()), "{:?}", outcome.changes);
}

#[test]
fn slower_engines_than_foreseen_cost_attainment_or_money() {
    let mut scenario = scenario(Profile::Constant { rps: 20.0 }, 300.0, 30.0);
    scenario.settings.warm_up_seconds = 60.0;
    let foreseen = play(&scenario);
    scenario.settings.slowdown = 1.5;
    let slower = play(&scenario);
    assert!(slower.pools[0].tpot_ms.p50 > 1.3 * foreseen.pools[0].tpot_ms.p50);
}

#[test]
fn what_cannot_be_played_says_why() {
    let mut s = scenario(Profile::Constant { rps: 1.0 }, 10.0, 1.0);
    s.traffic[0].pool = "default/chta".parse().unwrap();
    let text = s.check().unwrap_err().to_string();
    assert_eq!(text, "traffic[0].pool: no pool default/chta in the cluster; there are: default/chat");
    let mut s = scenario(Profile::Constant { rps: 1.0 }, 10.0, 1.0);
    s.settings.slowdown = f64::NAN;
    assert!(s.check().unwrap_err().to_string().starts_with("settings.slowdown: NaN is not"));
    s.settings.slowdown = 1.0;
    s.traffic.clear();
    assert_eq!(s.check(), Err(ScenarioError::NoRequests));
}
