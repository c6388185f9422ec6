//! What must hold whatever the figures: monotonicity, and no panics on odd input.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use common::{arch, class, shape, variant};
use plimsoll_engine::{EngineConfig, ReplicaModel, StepLoad};
use plimsoll_fleet::{Dtype, Objective, Percentile, RequestClass, Slo, presets};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const MODELS: [(&str, Dtype, &str, u32, u32); 7] = [
    ("llama-3.1-8b", Dtype::Bf16, "h100", 1, 1),
    ("llama-3.1-8b", Dtype::Fp8, "l4", 1, 1),
    ("llama-3.1-70b", Dtype::Fp8, "h100", 2, 1),
    ("llama-3.1-70b", Dtype::Bf16, "a100-80", 2, 2),
    ("qwen3-32b", Dtype::Fp8, "l40s", 4, 1),
    ("mixtral-8x7b", Dtype::Bf16, "h100", 4, 1),
    ("deepseek-v3", Dtype::Fp8, "h200", 8, 1),
];

fn model_with(i: usize, config: &EngineConfig, memory_scale: f64) -> ReplicaModel {
    let (name, weights, acc, tp, pp) = MODELS[i % MODELS.len()];
    let mut acc = presets::accelerator(acc).unwrap();
    acc.memory_bytes *= memory_scale;
    let shape = shape(&acc.name, tp, pp);
    ReplicaModel::new(&arch(name, 8192), &variant(weights, Dtype::Bf16), &acc, &shape, config).unwrap()
}

fn model(i: usize) -> ReplicaModel {
    model_with(i, &EngineConfig::default(), 1.0)
}

fn mixes() -> impl Strategy<Value = Vec<RequestClass>> {
    let one =
        (16.0..4000.0f64, 1.0..2000.0f64, 0.0..1.0f64, 0.01..10.0f64).prop_map(|(i, o, cached, rps)| {
            RequestClass { cached_fraction: cached, rps, ..class(i.round(), o.round()) }
        });
    proptest::collection::vec(one, 1..5)
}

fn slo(ttft: f64, tpot: f64, e2e: f64, p: f64) -> Slo {
    let objective = |ms| Some(Objective { percentile: Percentile::new(p).unwrap(), ms });
    Slo { ttft: objective(ttft), tpot: objective(tpot), e2e: objective(e2e) }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 300,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn more_load_is_never_faster(
        i in 0usize..7, mix in mixes(), a in 0.0..1.1f64, b in 0.0..1.1f64, scv in 0.5..50.0f64, p in 1.0..99.9f64,
    ) {
        let model = model(i);
        let sat = model.saturation_rps(&mix);
        let (low, high) = (model.predict(&mix, a.min(b) * sat, scv), model.predict(&mix, a.max(b) * sat, scv));
        let p = Percentile::new(p).unwrap();
        prop_assert!(low.utilisation <= high.utilisation);
        prop_assert!(!low.saturated || high.saturated);
        for (x, y) in low.classes.iter().zip(&high.classes) {
            for (x, y) in [
                (x.ttft_ms(p), y.ttft_ms(p)),
                (x.tpot_ms(p), y.tpot_ms(p)),
                (x.e2e_ms(p), y.e2e_ms(p)),
                (x.mean_ttft_ms(), y.mean_ttft_ms()),
                (x.mean_tpot_ms(), y.mean_tpot_ms()),
            ] {
                prop_assert!(x > 0.0 && x <= y * (1.0 + 1e-9), "{x} at the lower rate, {y} at the higher");
            }
        }
    }

    #[test]
    fn higher_percentiles_are_never_faster(
        i in 0usize..7, mix in mixes(), load in 0.0..0.99f64, scv in 0.5..50.0f64, p in 1.0..99.8f64, q in 0.0..1.0f64,
    ) {
        let model = model(i);
        let prediction = model.predict(&mix, load * model.saturation_rps(&mix), scv);
        let (low, high) = (Percentile::new(p).unwrap(), Percentile::new(p + q * (99.9 - p)).unwrap());
        for c in &prediction.classes {
            prop_assert!(c.ttft_ms(low) <= c.ttft_ms(high) * (1.0 + 1e-9));
            prop_assert!(c.tpot_ms(low) <= c.tpot_ms(high) * (1.0 + 1e-9));
            prop_assert!(c.e2e_ms(low) <= c.e2e_ms(high) * (1.0 + 1e-9));
        }
    }

    #[test]
    fn looser_objectives_and_margins_never_lower_the_load_line(
        i in 0usize..7, mix in mixes(), ttft in 50.0..5000.0f64, tpot in 5.0..200.0f64, e2e in 1e3..1e5f64,
        looser in 1.0..3.0f64, margin in 0.0..0.5f64, tighter in 0.0..0.5f64, scv in 0.5..20.0f64, p in 50.0..99.5f64,
    ) {
        let model = model(i);
        let tight = slo(ttft, tpot, e2e, p);
        let loose = slo(ttft * looser, tpot * looser, e2e * looser, p);
        let line = model.load_line(&mix, &|_| tight, scv, margin);
        let near = |x: f64| x * 0.998 - 1e-9;
        prop_assert!(model.load_line(&mix, &|_| loose, scv, margin).rps >= near(line.rps));
        prop_assert!(model.load_line(&mix, &|_| tight, scv, margin + tighter).rps * 0.998 <= line.rps + 1e-9);
        // A line is either a rate with what binds it, or none with the reason.
        prop_assert_eq!(line.rps > 0.0, line.binding.is_some());
        prop_assert_eq!(line.rps > 0.0, line.infeasible.is_none());
        prop_assert!(line.rps <= line.saturation_rps);
    }

    #[test]
    fn more_memory_never_holds_fewer_tokens(i in 0usize..7, scale in 1.0..3.0f64, utilisation in 0.9..1.0f64) {
        let more = EngineConfig { memory_utilisation: utilisation, ..EngineConfig::default() };
        prop_assert!(model_with(i, &EngineConfig::default(), scale).memory().kv_tokens >= model(i).memory().kv_tokens);
        prop_assert!(model_with(i, &more, 1.0).memory().kv_tokens >= model(i).memory().kv_tokens);
    }

    #[test]
    fn more_work_never_takes_less_time(
        i in 0usize..7, b in 0.0..256.0f64, s in 1.0..8000.0f64, c in 0.0..8192.0f64, k in 0.0..8000.0f64,
        db in 0.0..64.0f64, ds in 0.0..4000.0f64, dc in 0.0..4000.0f64, dk in 0.0..4000.0f64,
    ) {
        let model = model(i);
        let step = |b: f64, s: f64, c: f64, k: f64| {
            let mut load = StepLoad { running: b, context_tokens: b * s, ..StepLoad::default() };
            load.add_prefill(c, k);
            model.step_ms(&load)
        };
        let base = step(b, s, c, k);
        let floor = base * (1.0 - 1e-12);
        prop_assert!(base > 0.0);
        prop_assert!(step(b + db, s, c, k) >= floor);
        prop_assert!(step(b, s + ds, c, k) >= floor);
        prop_assert!(step(b, s, c + dc, k) >= floor);
        prop_assert!(step(b, s, c, k + dk) >= floor);
        prop_assert!(model.decode_ms(b + db, s) >= model.decode_ms(b, s) * (1.0 - 1e-12));
        prop_assert!(model.prefill_ms(c + dc, k) >= model.prefill_ms(c, k));
        // Chunks add up to the whole prompt.
        let parts = model.prefill_ms(c, k) + model.prefill_ms(dc, k + c);
        prop_assert!((parts / model.prefill_ms(c + dc, k).max(1e-9) - 1.0).abs() < 1e-6 || c + dc < 1e-6);
    }

    #[test]
    fn odd_input_is_answered(
        i in 0usize..7,
        input in prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-5.0), Just(0.0), 0.0..1e9f64],
        output in prop_oneof![Just(f64::NAN), Just(f64::NEG_INFINITY), Just(0.0), 0.0..1e9f64],
        rps in prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(0.0), 0.0..1e6f64],
        scv in prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), 0.0..1e6f64],
    ) {
        let model = model(i);
        let mix = [RequestClass { cached_fraction: rps, rps, ..class(input, output) }, class(100.0, 10.0)];
        let line = model.load_line(&mix, &|_| slo(500.0, 50.0, 1e4, 95.0), scv, rps);
        prop_assert!(line.rps.is_finite() && line.rps >= 0.0);
        let prediction = model.predict(&mix, rps, scv);
        for c in &prediction.classes {
            prop_assert!(!c.ttft_ms(Percentile::P99).is_nan() && !c.e2e_ms(Percentile::P50).is_nan());
        }
        prop_assert!(!model.coefficients(input).per_prefill_token_ms.is_nan());
    }
}
