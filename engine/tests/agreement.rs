//! The closed form against the iteration-level simulation.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use common::{arch, arrivals, class, percentile, replica, shape, variant};
use plimsoll_engine::sim::{Replica, RequestOutcome, SimPolicy, simulate};
use plimsoll_engine::{EngineConfig, ReplicaModel, Scheduling};
use plimsoll_fleet::{Dtype, Objective, Percentile, RequestClass, Slo, presets};

const REQUESTS: u64 = 4000;
/// Left out: the batch fills.
const WARM_UP: usize = 400;

fn run(model: &ReplicaModel, mix: &[RequestClass], rps: f64, scv: f64) -> Vec<RequestOutcome> {
    let arrivals = arrivals(mix, rps, scv, REQUESTS, 7);
    let mut outcomes = simulate(Replica::new(model.clone(), SimPolicy::default()), &arrivals);
    outcomes.split_off(WARM_UP)
}

/// Relative errors of the closed form: TTFT p50 and p95, TPOT p50 and p95, E2E p95.
fn errors(name: &str, model: &ReplicaModel, class: &RequestClass, load: f64, scv: f64) -> [f64; 5] {
    let mix = std::slice::from_ref(class);
    let rps = load * model.saturation_rps(mix);
    let out = run(model, mix, rps, scv);
    let mut ttft: Vec<f64> = out.iter().map(|o| o.ttft_ms).collect();
    let mut tpot: Vec<f64> = out.iter().filter_map(|o| o.tpot_ms).collect();
    let mut e2e: Vec<f64> = out.iter().map(|o| o.e2e_ms).collect();
    let prediction = model.predict(mix, rps, scv);
    let c = &prediction.classes[0];
    let (p50, p95) = (Percentile::P50, Percentile::P95);
    let pairs = [
        (percentile(&mut ttft, 0.5), c.ttft_ms(p50)),
        (percentile(&mut ttft, 0.95), c.ttft_ms(p95)),
        (percentile(&mut tpot, 0.5), c.tpot_ms(p50)),
        (percentile(&mut tpot, 0.95), c.tpot_ms(p95)),
        (percentile(&mut e2e, 0.95), c.e2e_ms(p95)),
    ];
    let cells: Vec<String> = pairs
        .iter()
        .map(|(sim, form)| format!("{sim:7.0} {form:7.0} {:+4.0}%", 100.0 * (form / sim - 1.0)))
        .collect();
    println!("{name:13} load {load:.1} scv {scv:2.0} {rps:6.2} rps | {}", cells.join(" | "));
    pairs.map(|(sim, form)| form / sim - 1.0)
}

#[test]
fn percentiles_agree_where_the_theory_holds() {
    let llama70 = replica("llama-3.1-70b", Dtype::Fp8, "h100", 2);
    let llama8 = replica("llama-3.1-8b", Dtype::Bf16, "h100", 1);
    let qwen = replica("qwen3-32b", Dtype::Fp8, "l40s", 2);
    println!("each: simulated, closed form, error; TTFT p50 | TTFT p95 | TPOT p50 | TPOT p95 | E2E p95");
    for load in [0.1, 0.3, 0.5, 0.7, 0.8, 0.9] {
        for (name, model, class) in [
            ("70b 1200/250", &llama70, class(1200.0, 250.0)),
            ("8b 512/128", &llama8, class(512.0, 128.0)),
            ("32b 1000/500", &qwen, class(1000.0, 500.0)),
        ] {
            let [ttft50, ttft95, tpot50, tpot95, e2e95] = errors(name, model, &class, load, 1.0);
            assert!(ttft50.abs() < 0.25 && ttft95.abs() < 0.2, "{name} at {load}");
            assert!(tpot50.abs() < 0.06 && tpot95.abs() < 0.12 && e2e95.abs() < 0.12, "{name} at {load}");
        }
    }
}

/// Llama 3.1 8B and a 70B under one scheduling rule.
fn under(scheduling: Scheduling) -> [(&'static str, ReplicaModel); 2] {
    let new = |model: &str, weights: Dtype, acc: &str, tp: u32| {
        let config = EngineConfig { scheduling, ..EngineConfig::default() };
        let class = presets::accelerator(acc).unwrap();
        let v = variant(weights, Dtype::Bf16);
        ReplicaModel::new(&arch(model, 8192), &v, &class, &shape(acc, tp, 1), &config).unwrap()
    };
    [
        ("8b", new("llama-3.1-8b", Dtype::Bf16, "h100", 1)),
        ("70b", new("llama-3.1-70b", Dtype::Fp8, "h100", 2)),
    ]
}

/// Prompts beside decoding (vLLM) and prompts first (SGLang): the closed form knows the difference. Short prompts and
/// long ones, few answer tokens and many.
#[test]
fn both_scheduling_rules_agree_with_the_simulation() {
    println!("each: simulated, closed form, error; TTFT p50 | TTFT p95 | TPOT p50 | TPOT p95 | E2E p95");
    for scheduling in [Scheduling::Mixed, Scheduling::PrefillFirst] {
        for (name, model) in under(scheduling) {
            for (input, output) in [(128.0, 256.0), (512.0, 128.0), (1500.0, 300.0), (4000.0, 200.0)] {
                for load in [0.2, 0.4, 0.6, 0.8] {
                    let name = format!("{scheduling:?} {name} {input}/{output}");
                    let [_, ttft95, tpot50, tpot95, e2e95] =
                        errors(&name, &model, &class(input, output), load, 1.0);
                    assert!(ttft95.abs() < 0.3, "{name} at {load}");
                    assert!(
                        tpot50.abs() < 0.1 && tpot95.abs() < 0.2 && e2e95.abs() < 0.2,
                        "{name} at {load}"
                    );
                }
            }
        }
    }
}

/// The rate that each rule can carry at most, closed form against simulation: a replica that is offered twice as much
/// answers at that pace. Requests of one length fall into step there: prompts come together, and share steps of their
/// own more than the closed form has it.
#[test]
fn both_scheduling_rules_saturate_as_simulated() {
    for scheduling in [Scheduling::Mixed, Scheduling::PrefillFirst] {
        for (name, model) in under(scheduling) {
            for (input, output) in [(128.0, 256.0), (512.0, 128.0), (1500.0, 300.0)] {
                let mix = [class(input, output)];
                let form = model.saturation_rps(&mix);
                let arrivals = arrivals(&mix, 2.0 * form, 1.0, REQUESTS, 7);
                let out = simulate(Replica::new(model.clone(), SimPolicy::default()), &arrivals);
                let mut ends: Vec<f64> = out.iter().map(|o| o.sent_ms + o.e2e_ms).collect();
                let (from, to) = (percentile(&mut ends, 0.3), percentile(&mut ends, 0.8));
                let pace = 0.5 * REQUESTS as f64 / (to - from) * 1e3;
                let error = form / pace - 1.0;
                println!(
                    "{scheduling:?} {name} {input}/{output}: {form:.2} rps, simulated {pace:.2} ({error:+.3})"
                );
                assert!((-0.15..0.1).contains(&error), "{scheduling:?} {name} {input}/{output}: {error:+.3}");
            }
        }
    }
}

/// Few answer tokens after long prompts: decode happens in the thick of prefill. Answers of a filled KV cache: the
/// batch limit moves with every request. Bursts: the closed form errs on the safe side.
#[test]
fn percentiles_stay_close_where_it_strains() {
    let llama70 = replica("llama-3.1-70b", Dtype::Fp8, "h100", 2);
    let llama8 = replica("llama-3.1-8b", Dtype::Bf16, "h100", 1);
    for load in [0.3, 0.5, 0.7] {
        let prefill = errors("8b 4000/30", &llama8, &class(4000.0, 30.0), load, 1.0);
        assert!(prefill[1].abs() < 0.25 && prefill[3].abs() < 0.35, "{load}: {prefill:?}");
        let kv = errors("70b 6000/1000", &llama70, &class(6000.0, 1000.0), load, 1.0);
        assert!(kv[1].abs() < 0.25 && kv[3].abs() < 0.1, "{load}: {kv:?}");
        let burst = errors("70b bursts", &llama70, &class(1200.0, 250.0), load, 5.0);
        assert!((-0.15..0.8).contains(&burst[1]) && (-0.15..0.25).contains(&burst[3]), "{load}: {burst:?}");
        let burst = errors("8b bursts", &llama8, &class(512.0, 128.0), load, 20.0);
        assert!((-0.15..0.8).contains(&burst[1]) && (-0.15..0.25).contains(&burst[3]), "{load}: {burst:?}");
    }
}

fn slo(ttft: f64, tpot: f64) -> Slo {
    let p95 = |ms| Some(Objective { percentile: Percentile::P95, ms });
    Slo { ttft: p95(ttft), tpot: p95(tpot), e2e: None }
}

fn attainment(outcomes: &[RequestOutcome], slo: &Slo) -> (f64, f64) {
    let n = outcomes.len() as f64;
    let ttft = outcomes.iter().filter(|o| slo.ttft.is_none_or(|t| o.ttft_ms <= t.ms)).count();
    let tpot =
        outcomes.iter().filter(|o| slo.tpot.is_none_or(|t| o.tpot_ms.is_none_or(|x| x <= t.ms))).count();
    (ttft as f64 / n, tpot as f64 / n)
}

/// The load line is safe (each objective attained, in simulation, by what it asks) and not timid (well above it, some
/// objective is missed).
#[test]
fn load_lines_hold_in_simulation() {
    let llama70 = replica("llama-3.1-70b", Dtype::Fp8, "h100", 2);
    let llama8 = replica("llama-3.1-8b", Dtype::Bf16, "h100", 1);
    let l4 = replica("llama-3.1-8b", Dtype::Bf16, "l4", 1);
    let mixed = [
        RequestClass { rps: 6.0, ..class(300.0, 150.0) },
        RequestClass { rps: 3.0, ..class(1500.0, 300.0) },
        RequestClass { rps: 0.3, ..class(7000.0, 300.0) },
    ];
    for (name, model, mix, slo) in [
        ("70b chat", &llama70, vec![class(1200.0, 250.0)], slo(800.0, 50.0)),
        ("70b tight", &llama70, vec![class(1200.0, 250.0)], slo(400.0, 30.0)),
        ("70b mixed", &llama70, mixed.to_vec(), slo(800.0, 50.0)),
        ("8b short", &llama8, vec![class(512.0, 128.0)], slo(200.0, 20.0)),
        ("8b on l4", &l4, vec![class(300.0, 400.0)], slo(1000.0, 80.0)),
    ] {
        let line = model.load_line(&mix, &|_| slo, 1.0, 0.0);
        let at = attainment(&run(model, &mix, line.rps, 1.0), &slo);
        let above = attainment(&run(model, &mix, 1.35 * line.rps, 1.0), &slo);
        println!(
            "{name:10} {:6.2} rps of {:6.2}; {} | attained TTFT {:.3} TPOT {:.3} | at 1.35x {:.3} {:.3}",
            line.rps,
            line.saturation_rps,
            line.binding.as_ref().unwrap(),
            at.0,
            at.1,
            above.0,
            above.1
        );
        assert!(at.0 >= 0.93 && at.1 >= 0.93, "{name} is not safe: {at:?}");
        assert!(above.0.min(above.1) < 0.95, "{name} is timid: {above:?}");
    }
}
