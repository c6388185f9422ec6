//! Load lines: worked examples, reasons, bursts, and the linear form that agents use.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use common::{arrivals, class, replica};
use plimsoll_engine::sim::{Replica, SimPolicy, simulate};
use plimsoll_engine::{InfeasibleReason, Limit, MAX_UTILISATION, Resource, StepLoad};
use plimsoll_fleet::{Dtype, Objective, Percentile, RequestClass, Slo};

fn p95(ms: f64) -> Option<Objective> {
    Some(Objective { percentile: Percentile::P95, ms })
}

#[test]
fn a_slow_accelerator_says_so() {
    // 15 GB of weights at 0.95 × 300 GB/s take 53 ms, whatever the load.
    let l4 = replica("llama-3.1-8b", Dtype::Bf16, "l4", 1);
    let line = l4.class_rate(&class(500.0, 200.0), &Slo { tpot: p95(50.0), ..Slo::default() }, 1.0, 0.0);
    assert_eq!(line.rps, 0.0);
    let text = line.infeasible.unwrap().to_string();
    assert!(text.starts_with("TPOT p95 5") && text.contains("ms > 50 ms at batch 1"), "{text}");
    assert!((50.0..60.0).contains(&line.unloaded[0].tpot_ms));
    // A margin counts as latency.
    let slo = Slo { tpot: p95(60.0), ..Slo::default() };
    assert!(l4.class_rate(&class(500.0, 200.0), &slo, 1.0, 0.0).rps > 0.0);
    assert_eq!(l4.class_rate(&class(500.0, 200.0), &slo, 1.0, 0.2).rps, 0.0);
}

#[test]
fn reasons_are_told_apart() {
    let h100 = replica("llama-3.1-8b", Dtype::Bf16, "h100", 1);
    let slo = Slo { ttft: p95(500.0), ..Slo::default() };
    let reason = |class: RequestClass, scv| h100.class_rate(&class, &slo, scv, 0.0).infeasible.unwrap();
    assert!(matches!(
        reason(class(8000.0, 500.0), 1.0),
        InfeasibleReason::ContextTooLong { max_tokens: 8192, .. }
    ));
    let text = reason(class(3000.0, 50.0), 400.0).to_string();
    assert!(text.contains("in a burst of 200 requests"), "{text}");
    assert_eq!(h100.load_line(&[], &|_| slo, 1.0, 0.0).infeasible, Some(InfeasibleReason::EmptyMix));
}

#[test]
fn without_objectives_saturation_binds() {
    let h100 = replica("llama-3.1-8b", Dtype::Bf16, "h100", 1);
    let line = h100.class_rate(&class(500.0, 200.0), &Slo::default(), 1.0, 0.0);
    assert_eq!(line.binding.as_ref().unwrap().limit, Limit::Saturation);
    assert!((line.rps / line.saturation_rps - MAX_UTILISATION).abs() < 1e-9);
    // Long answers on little memory: the KV cache is what fills.
    let l4 = replica("llama-3.1-8b", Dtype::Bf16, "l4", 1);
    let line = l4.class_rate(&class(500.0, 2000.0), &Slo::default(), 1.0, 0.0);
    assert_eq!(line.binding.unwrap().resource, Resource::KvCapacity);
}

/// The percentile is over all requests of an SLO class: 3 % of long prompts may miss a p95, and a tenth may not. A class
/// of its own is judged alone.
#[test]
fn percentiles_are_over_an_slo_class() {
    let h100 = replica("llama-3.1-8b", Dtype::Bf16, "h100", 1);
    let slo = Slo { ttft: p95(150.0), ..Slo::default() };
    let line = |share: f64, slo_class: &str| {
        let long = RequestClass { rps: share, slo_class: slo_class.to_owned(), ..class(6000.0, 100.0) };
        let short = RequestClass { rps: 1.0 - share, ..class(200.0, 100.0) };
        h100.load_line(&[short, long], &|_| slo, 1.0, 0.0)
    };
    assert!(line(0.03, "default").rps > 1.0);
    assert_eq!(line(0.1, "default").rps, 0.0);
    assert_eq!(line(0.03, "batch").rps, 0.0);
}

/// Sized for Poisson arrivals, a replica fails on bursty traffic (Azure's code trace has a squared coefficient of 169);
/// sized for what it is, it holds.
#[test]
fn bursts_need_room() {
    let h100 = replica("llama-3.1-8b", Dtype::Bf16, "h100", 1);
    let class = class(1000.0, 30.0);
    let scv = 10.0;
    let slo = Slo { ttft: p95(1500.0), ..Slo::default() };
    let attained = |rps: f64| {
        let arrivals = arrivals(std::slice::from_ref(&class), rps, scv, 8000, 11);
        let out = simulate(Replica::new(h100.clone(), SimPolicy::default()), &arrivals);
        out.iter().filter(|o| o.ttft_ms <= 1500.0).count() as f64 / out.len() as f64
    };
    let poisson = h100.class_rate(&class, &slo, 1.0, 0.0).rps;
    let bursty = h100.class_rate(&class, &slo, scv, 0.0).rps;
    let (at_poisson, at_bursty) = (attained(poisson), attained(bursty));
    println!(
        "Poisson line {poisson:.1} rps attains {at_poisson:.3}, bursty line {bursty:.1} rps {at_bursty:.3}"
    );
    assert!(at_poisson < 0.9 && at_bursty >= 0.94 && bursty < 0.85 * poisson);
}

#[test]
fn coefficients_reproduce_steps() {
    for model in [
        replica("llama-3.1-8b", Dtype::Bf16, "h100", 1),
        replica("llama-3.1-70b", Dtype::Fp8, "h100", 4),
        replica("qwen3-32b", Dtype::Fp8, "l40s", 2),
    ] {
        let c = model.coefficients(1500.0);
        assert_eq!(c.kv_tokens, model.memory().kv_tokens);
        for (running, context, prompt) in
            [(1.0, 500.0, 0.0), (16.0, 1500.0, 0.0), (64.0, 1500.0, 1000.0), (4.0, 3000.0, 2000.0)]
        {
            let mut load = StepLoad { running, context_tokens: running * context, ..StepLoad::default() };
            load.add_prefill(prompt, 0.0);
            let linear = c.base_ms
                + running * c.per_request_ms
                + running * context * c.per_context_token_ms
                + prompt * c.per_prefill_token_ms;
            let error = linear / model.step_ms(&load) - 1.0;
            assert!(error.abs() < 0.1, "{running} × {context} + {prompt}: {error:+.3}");
        }
    }
}

/// Mixture of experts: one token reads the experts it hits, a batch reads nearly all.
#[test]
fn experts_are_read_once_hit() {
    let moe = replica("qwen3-30b-a3b", Dtype::Bf16, "h100", 1);
    let dense = replica("qwen3-32b", Dtype::Bf16, "h100", 2);
    let one = moe.step_breakdown(&StepLoad { running: 1.0, context_tokens: 100.0, ..StepLoad::default() });
    let many = moe.step_breakdown(&StepLoad { running: 64.0, context_tokens: 6400.0, ..StepLoad::default() });
    // 8 of 128 experts: a sixteenth of 58 GB; 64 tokens hit 98 %.
    assert!((1.4..3.0).contains(&one.weights_ms), "{one:?}");
    assert!((17.0..21.0).contains(&many.weights_ms), "{many:?}");
    assert!(moe.decode_ms(1.0, 1000.0) < dense.decode_ms(1.0, 1000.0));
    // A tenth of the parameters on half the GPUs, in products at a third of the pace.
    assert!(moe.prefill_ms(1000.0, 0.0) < 0.45 * dense.prefill_ms(1000.0, 0.0));
}
