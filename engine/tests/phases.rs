//! Prefill and decode on replicas of their own.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use std::collections::HashMap;

use common::{arch, arrivals, class, csv, data, percentile, shape, variant};
use plimsoll_engine::sim::{Arrival, Replica, SimPolicy, SimRequest, simulate};
use plimsoll_engine::{EngineConfig, KvTransfer, Limit, LinkTier, PdModel, ReplicaModel};
use plimsoll_fleet::{Dtype, Objective, Percentile, RequestClass, Role, Shape, Slo, presets};

fn pair(model: &str, weights: Dtype, acc: &str, p: u32, d: u32, max_running: u32) -> PdModel {
    let acc = presets::accelerator(acc).unwrap();
    let arch = arch(model, 10_240);
    let v = variant(weights, Dtype::Bf16);
    let of = |tp, role| Shape { role, ..shape(&acc.name, tp, 1) };
    let (prefill, decode) = (of(p, Role::Prefill), of(d, Role::Decode));
    let config = EngineConfig { max_running, ..EngineConfig::default() };
    let transfer = KvTransfer::new(&arch, &v, (&acc, &prefill), (&acc, &decode), LinkTier::Network);
    let new = |shape: &Shape| ReplicaModel::new(&arch, &v, &acc, shape, &config).unwrap();
    PdModel::new(new(&prefill), new(&decode), transfer).unwrap()
}

fn chat() -> PdModel {
    pair("llama-3.1-70b", Dtype::Fp8, "h100", 2, 2, 256)
}

/// 80 layers × 2 × 8 × 128 × 2 bytes = 327,680 bytes a token; 1,000 of them over 2 × 0.75 × 50 GB/s take 4.4 ms.
#[test]
fn transfers_by_hand() {
    let transfer = *chat().transfer();
    assert_eq!(transfer.bytes(1000.0), 327.68e6);
    assert!((transfer.ms(1000.0) - (2.0 + 327.68 / 75.0)).abs() < 1e-6, "{}", transfer.ms(1000.0));
    assert!((transfer.measured(327.68e9, 1.0).ms(1000.0) - 2.0).abs() < 1e-9);
}

#[test]
fn roles_must_be_right() {
    let pd = chat();
    let error = PdModel::new(pd.decode().clone(), pd.decode().clone(), *pd.transfer()).unwrap_err();
    assert_eq!(error.to_string(), "the prefill replica has role decode; give it role prefill");
}

/// Answers without prompts in their way: TPOT is a decode step's, and TTFT has three parts.
#[test]
fn parts_add_up() {
    let pd = chat();
    let mix = [class(1200.0, 250.0)];
    let idle = pd.predict(&mix, 0.001, 1.0, 1, 1);
    let c = &idle.classes[0];
    let parts = pd.prefill().prefill_ms(1200.0, 0.0)
        + pd.prefill().decode_ms(1.0, 1200.0)
        + pd.transfer().ms(1200.0)
        + pd.decode().decode_ms(1.0, 1200.0)
        + 2.0 * pd.decode().api_overhead_ms();
    assert!(
        (c.ttft_ms(Percentile::P50) / parts - 1.0).abs() < 0.02,
        "{} of {parts}",
        c.ttft_ms(Percentile::P50)
    );
    assert!((c.mean_tpot_ms() / pd.decode().decode_ms(1.0, 1325.0) - 1.0).abs() < 0.01);
    // Under a load that makes prompts share most steps of a mixed replica, decode replicas do not notice.
    let h100 = presets::accelerator("h100").unwrap();
    let mixed = ReplicaModel::new(
        &arch("llama-3.1-70b", 10_240),
        &variant(Dtype::Fp8, Dtype::Bf16),
        &h100,
        &shape("h100", 2, 1),
        &EngineConfig::default(),
    )
    .unwrap();
    let rps = 0.7 * mixed.saturation_rps(&mix);
    let p95 = Percentile::P95;
    let together = mixed.predict(&mix, rps, 1.0).classes[0].tpot_ms(p95);
    let apart = pd.predict(&mix, rps, 1.0, 1, 1).classes[0].tpot_ms(p95);
    assert!(apart < 0.7 * together, "{apart} and {together}");
    assert!(pd.predict(&mix, 1e6, 1.0, 1, 1).saturated);
    assert!(pd.predict(&mix, 1e6, 1.0, 1, 1).classes[0].e2e_ms(p95).is_infinite());
}

/// The prefill queue and the decode batch against the simulated engine.
#[test]
fn phases_agree_with_the_simulation() {
    let pd = chat();
    let mix = [class(1200.0, 250.0)];
    for load in [0.3, 0.6, 0.8] {
        for model in [pd.prefill(), pd.decode()] {
            let rps = load * model.saturation_rps(&mix);
            let one = model.role() == Role::Prefill;
            let requests: Vec<Arrival> = arrivals(&mix, rps, 1.0, 4000, 9)
                .into_iter()
                .map(|a| {
                    let output_tokens = if one { 1 } else { a.request.output_tokens };
                    Arrival { request: SimRequest { output_tokens, ..a.request }, ..a }
                })
                .collect();
            let out = simulate(Replica::new(model.clone(), SimPolicy::default()), &requests);
            let out = &out[400..];
            let form = model.predict(&mix, rps, 1.0);
            let c = &form.classes[0];
            let mut ttft: Vec<f64> = out.iter().map(|o| o.ttft_ms).collect();
            let mut tpot: Vec<f64> = out.iter().filter_map(|o| o.tpot_ms).collect();
            let ttft_error = c.ttft_ms(Percentile::P95) / percentile(&mut ttft, 0.95) - 1.0;
            println!("{} at {load}: TTFT p95 {:+.0} %", model.role(), 100.0 * ttft_error);
            assert!(ttft_error.abs() < 0.2, "{} at {load}: {ttft_error:+.2}", model.role());
            if !one {
                let error = c.tpot_ms(Percentile::P95) / percentile(&mut tpot, 0.95) - 1.0;
                println!("  TPOT p95 {:+.0} %", 100.0 * error);
                assert!(error.abs() < 0.12, "at {load}: {error:+.2}");
            }
        }
    }
}

fn slo(ttft: f64, tpot: f64) -> Slo {
    let p95 = |ms| Some(Objective { percentile: Percentile::P95, ms });
    Slo { ttft: p95(ttft), tpot: p95(tpot), e2e: None }
}

#[test]
fn lines_and_sizes() {
    let pd = chat();
    let mix = [class(2000.0, 300.0)];
    let slo = slo(800.0, 30.0);
    let line = |x, y| pd.load_line(&mix, &|_| slo, 1.0, 0.1, x, y);
    let one = line(1, 1);
    assert!(one.rps > 0.0 && one.rps < one.saturation_rps);
    // More of either is never less.
    assert!(line(2, 1).rps >= one.rps * 0.998 && line(1, 2).rps >= one.rps * 0.998);
    assert!((line(4, 4).rps / line(2, 2).rps - 2.0).abs() < 0.01);
    let (n, m) = pd.size(&mix, &|_| slo, 5.0 * one.rps, 1.0, 0.1).unwrap();
    println!(
        "1:1 takes {:.2} rps ({}, {}); five times that: {n} prefill, {m} decode",
        one.rps, one.limit, one.phase
    );
    assert!(line(n, m).rps >= 5.0 * one.rps && n + m <= 10);
    assert_eq!(pd.size(&mix, &|_| self::slo(800.0, 5.0), 1.0, 1.0, 0.0), None);
    let none = pd.load_line(&mix, &|_| self::slo(20.0, 30.0), 1.0, 0.0, 1, 1);
    assert!(none.rps == 0.0 && matches!(none.limit, Limit::Ttft(_)));
    // The percentile is over all requests of an SLO class.
    let few = [class(500.0, 200.0), RequestClass { rps: 0.03, ..class(9000.0, 200.0) }];
    let many = [class(500.0, 200.0), RequestClass { rps: 0.2, ..class(9000.0, 200.0) }];
    let tight = |mix: &[RequestClass]| pd.load_line(mix, &|_| self::slo(400.0, 30.0), 1.0, 0.0, 1, 1).rps;
    assert!(tight(&few) > 0.0 && tight(&many) == 0.0);
}

/// Measured disaggregated serving of DeepSeek-R1. The rows do not say how many decode replicas share the clients, nor
/// whether tokens were drafted: all that can be told is whether a row lies between the step of one request alone and
/// that of all clients on one decode replica. Prints, and asserts nothing of the model.
#[test]
fn tpot_of_decode_replicas() {
    let Some(dir) = data() else { return };
    // Rows: below, between, above.
    let mut by_name: HashMap<String, [u32; 3]> = HashMap::new();
    for r in csv(&dir.join("e2e").join("aic_silicon_e2e.csv")) {
        let number = |column: &str| r[column].parse::<f64>().ok();
        if r["mode"] != "disagg" || r["model_path"] != "deepseek-ai/DeepSeek-R1" {
            continue;
        }
        let shape = Shape {
            role: Role::Decode,
            expert_parallel: number("decode_moe_ep_size").unwrap().max(1.0) as u32,
            ..shape("h200", number("decode_tp_size").unwrap() as u32, 1)
        };
        let config = EngineConfig { max_running: 4096, max_batched_tokens: 8192, ..EngineConfig::default() };
        let acc = presets::accelerator("h200").unwrap();
        let v = variant(Dtype::Fp8, Dtype::Fp8);
        let decode = ReplicaModel::new(&arch("deepseek-v3", 10_240), &v, &acc, &shape, &config).unwrap();
        let context = 0.9 * (number("isl").unwrap() + 0.5 * number("osl").unwrap());
        let clients = number("concurrency").unwrap();
        let measured = number("silicon_tpot_ms").unwrap();
        let (least, most) = (decode.decode_ms(1.0, context), decode.decode_ms(clients, context));
        let place = usize::from(measured >= least) + usize::from(measured > most);
        by_name.entry(format!("{} {shape}", r["backend"])).or_default()[place] += 1;
    }
    let mut names: Vec<_> = by_name.into_iter().collect();
    names.sort();
    for (name, [below, between, above]) in names {
        println!(
            "{name}: {between} rows between one request alone and all on one replica, {below} below, {above} above"
        );
    }
}
