//! The fit recovers what it should, and says how well it knows it.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use std::sync::Arc;

use common::{arch, shape, variant};
use plimsoll_engine::EngineConfig;
use plimsoll_engine::calibrate::{
    Coefficient, Fit, FitError, Measured, Metric, Observation, Prior, ProbeLimits, Subject, Traits, Workload,
    fit, most_telling, probes,
};
use plimsoll_fleet::{Calibration, Dtype, presets};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Normal};

fn subject(model: &str, gpu: &str, tp: u32) -> Arc<Subject> {
    Arc::new(Subject {
        engine: "vllm".to_owned(),
        engine_version: String::new(),
        architecture: arch(model, 20_000),
        variant: variant(Dtype::Bf16, Dtype::Bf16),
        accelerator: presets::accelerator(gpu).unwrap(),
        shape: shape(gpu, tp, 1),
        config: EngineConfig::default(),
    })
}

/// What would be measured on a replica with these coefficients, with this much noise.
fn measure(
    subject: &Arc<Subject>,
    truth: &Calibration,
    workload: Workload,
    noise: f64,
    rng: &mut StdRng,
) -> Observation {
    let model = subject.model(truth).unwrap();
    let spread = Normal::new(0.0, noise).unwrap();
    let mut time = |metric| workload.predict(&model, metric).map(|t| t * f64::exp(spread.sample(rng)));
    let (ttft_ms, tpot_ms) = (time(Metric::Ttft), time(Metric::Tpot));
    Observation {
        subject: Arc::clone(subject),
        workload,
        measured: Measured { ttft_ms, tpot_ms, ..Measured::default() },
    }
}

fn closed(concurrency: f64, input_tokens: f64, output_tokens: f64) -> Workload {
    Workload::ClosedLoop { concurrency, input_tokens, output_tokens }
}

fn grid(noise: f64, truth: &Calibration, rng: &mut StdRng) -> Vec<Observation> {
    let mut all = Vec::new();
    for tp in [1, 2, 4] {
        let s = subject("llama-3.1-8b", "h100", tp);
        for c in [1.0, 8.0, 32.0, 128.0] {
            for (input, output) in [(128.0, 128.0), (1024.0, 256.0), (8192.0, 256.0)] {
                all.push(measure(&s, truth, closed(c, input, output), noise, rng));
            }
        }
    }
    all
}

/// Coefficients unlike those shipped.
fn other(rng: &mut StdRng) -> Calibration {
    let mut c = presets::accelerator("h100").unwrap().calibration;
    let mut stretch = |x: &mut f64, by: f64| *x *= f64::exp(rng.random_range(-by..by));
    stretch(&mut c.eta_compute, 0.3);
    stretch(&mut c.eta_weights, 0.2);
    stretch(&mut c.eta_kv, 0.3);
    stretch(&mut c.layer_overhead_us, 0.4);
    stretch(&mut c.request_overhead_us, 0.5);
    stretch(&mut c.api_overhead_ms, 0.5);
    c
}

/// Largest error of a prediction over loads that were not measured.
fn worst(fit: &Fit, truth: &Calibration) -> f64 {
    let s = subject("llama-3.1-8b", "h100", 2);
    let (a, b) = (s.model(&fit.calibration).unwrap(), s.model(truth).unwrap());
    let loads = [closed(4.0, 512.0, 256.0), closed(64.0, 2048.0, 512.0), closed(16.0, 4096.0, 128.0)];
    let error = |w: &Workload| {
        (w.predict(&a, Metric::Tpot).unwrap() / w.predict(&b, Metric::Tpot).unwrap()).ln().abs()
    };
    loads.iter().map(error).fold(0.0, f64::max)
}

/// Errors in standard deviations are as large as they should be, over many sets of data that are the same in every run.
#[test]
fn the_posterior_holds_as_often_as_it_says() {
    let (mut within, mut all) = (0.0, 0.0);
    for seed in 0..150 {
        let mut rng = StdRng::seed_from_u64(seed);
        let truth = other(&mut rng);
        let found = fit(&grid(0.03, &truth, &mut rng), &Prior::shipped()).unwrap();
        for k in Coefficient::ALL.into_iter().filter(|k| *k != Coefficient::StepOverhead) {
            let off = (k.of(&found.calibration) / k.of(&truth)).ln();
            within += f64::from(u8::from(off.abs() < 2.0 * found.sd(k)));
            all += 1.0;
        }
    }
    assert!(within / all > 0.93, "{within} of {all} within two standard deviations");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Predictions are right within the noise, and coefficients not far from what the posterior says: how far is a matter of chance, of
    /// which [`the_posterior_holds_as_often_as_it_says`] has the account.
    #[test]
    fn finds_the_coefficients_that_made_the_data(seed in any::<u64>()) {
        let mut rng = StdRng::seed_from_u64(seed);
        let truth = other(&mut rng);
        let found = fit(&grid(0.03, &truth, &mut rng), &Prior::shipped()).unwrap();
        prop_assert!(found.converged);
        prop_assert!(worst(&found, &truth) < 0.05, "{}", worst(&found, &truth));
        for k in Coefficient::ALL.into_iter().filter(|k| *k != Coefficient::StepOverhead) {
            let off = (k.of(&found.calibration) / k.of(&truth)).ln();
            prop_assert!(off.abs() < 8.0 * found.sd(k), "{k}: off by {off}, sd {}", found.sd(k));
        }
        prop_assert!((0.03..0.2).contains(&found.relative_error), "{}", found.relative_error);
    }

    /// A tenth of the measurements, wrong by any factor, moves predictions by little.
    #[test]
    fn outliers_do_not_move_it(seed in any::<u64>(), factor in prop_oneof![0.1..0.6, 1.7..10.0]) {
        let mut rng = StdRng::seed_from_u64(seed);
        let truth = other(&mut rng);
        let mut all = grid(0.03, &truth, &mut rng);
        for o in all.iter_mut().step_by(10) {
            o.measured.tpot_ms = o.measured.tpot_ms.map(|t| t * factor);
        }
        let found = fit(&all, &Prior::shipped()).unwrap();
        prop_assert!(worst(&found, &truth) < 0.08, "{}", worst(&found, &truth));
    }

    /// Ten well-chosen points are enough, and say so.
    #[test]
    fn ten_points_are_enough(seed in any::<u64>()) {
        let mut rng = StdRng::seed_from_u64(seed);
        let truth = other(&mut rng);
        let s = subject("llama-3.1-8b", "h100", 2);
        let points = probes(&s, &ProbeLimits::default()).unwrap();
        prop_assert_eq!(points.len(), 10);
        let few: Vec<Observation> = points
            .iter()
            .map(|p| closed(f64::from(p.concurrency), f64::from(p.input_tokens), f64::from(p.output_tokens)))
            .map(|w| measure(&s, &truth, w, 0.03, &mut rng))
            .collect();
        let found = fit(&few, &Prior::shipped()).unwrap();
        prop_assert!(worst(&found, &truth) < 0.08, "{}", worst(&found, &truth));
    }
}

/// Without noise, each further measurement leaves every coefficient known at least as well.
#[test]
fn more_measurements_never_widen_the_posterior() {
    let mut rng = StdRng::seed_from_u64(7);
    let truth = presets::accelerator("h100").unwrap().calibration;
    let all = grid(0.0, &truth, &mut rng);
    let mut before: Option<Fit> = None;
    for n in [3, 6, 12, 24, 36] {
        let now = fit(&all[..n], &Prior::shipped()).unwrap();
        if let Some(before) = before {
            for k in Coefficient::ALL {
                assert!(now.sd(k) <= before.sd(k) * 1.01, "{k}: {} after {}", now.sd(k), before.sd(k));
            }
        }
        before = Some(now);
    }
}

#[test]
fn says_what_is_wrong() {
    let s = subject("llama-3.1-8b", "h100", 1);
    let o = |workload, tpot_ms| Observation {
        subject: Arc::clone(&s),
        workload,
        measured: Measured { tpot_ms, ..Measured::default() },
    };
    let refused = |o: Observation| fit(&[o], &Prior::shipped()).unwrap_err();
    assert!(matches!(fit(&[], &Prior::shipped()), Err(FitError::NothingToFit { observations: 0 })));
    assert!(matches!(refused(o(closed(1.0, 10.0, 10.0), None)), FitError::NothingToFit { observations: 1 }));
    let text = refused(o(closed(-1.0, 10.0, 10.0), Some(5.0))).to_string();
    assert_eq!(text, "observation 0: concurrency is -1; use a finite number above 0");
    let text = refused(o(closed(1.0, 10.0, 10.0), Some(0.0))).to_string();
    assert!(text.starts_with("observation 0: TPOT is 0"), "{text}");
    let huge = Arc::new(Subject { architecture: arch("llama-3.1-405b", 8192), ..(*s).clone() });
    let o = Observation { subject: huge, ..o(closed(1.0, 10.0, 10.0), Some(5.0)) };
    assert!(matches!(refused(o), FitError::DoesNotFit { index: 0, .. }));
}

#[test]
fn probes_keep_within_limits() {
    let s = subject("llama-3.1-8b", "l4", 1);
    let limits = ProbeLimits { count: 8, max_concurrency: 16, max_tokens: 2048 };
    let points = probes(&s, &limits).unwrap();
    assert_eq!(points.len(), 8);
    for p in &points {
        assert!(p.concurrency <= 16 && p.input_tokens + p.output_tokens <= 2048);
        assert!(p.why.contains("to ±"), "{}", p.why);
    }
    assert!(points.iter().any(|p| p.concurrency == 1), "a lone client shows TTFT");
}

fn fitted(gpu: &str, truth: &Calibration, seed: u64) -> Fit {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut all = Vec::new();
    for tp in [1, 2, 4] {
        let s = subject("llama-3.1-8b", gpu, tp);
        for c in [1.0, 8.0, 32.0, 128.0] {
            for (input, output) in [(128.0, 128.0), (1024.0, 256.0), (4096.0, 256.0)] {
                all.push(measure(&s, truth, closed(c, input, output), 0.03, &mut rng));
            }
        }
    }
    fit(&all, &Prior::shipped()).unwrap()
}

/// What one engine showed on two GPUs is the best guess for a third, and another engine moves it by little.
#[test]
fn a_prior_is_carried_over_from_the_same_engine() {
    let usual = presets::accelerator("h100").unwrap().calibration;
    let slow = Calibration { eta_weights: 0.7, layer_overhead_us: 120.0, ..usual.clone() };
    let (h100, h200, other) = (fitted("h100", &slow, 1), fitted("h200", &slow, 2), fitted("h100", &usual, 3));
    let acc = |name| presets::accelerator(name).unwrap();
    let fits = [
        (Traits::new("slow", "1", &acc("h100")), &h100),
        (Traits::new("slow", "1", &acc("h200")), &h200),
        (Traits::new("usual", "1", &acc("h100")), &other),
    ];
    let prior = Prior::pooled(&fits, &Traits::new("slow", "1", &acc("a100-80")), &Prior::shipped());
    let guess = prior.calibration();
    assert!((guess.eta_weights / 0.7 - 1.0).abs() < 0.12, "{}", guess.eta_weights);
    assert!((guess.layer_overhead_us / 120.0 - 1.0).abs() < 0.25, "{}", guess.layer_overhead_us);
    // It is not believed as much as it would be of the GPUs themselves, but more than a guess without any.
    assert!(prior.sd(Coefficient::EtaWeights) > h100.sd(Coefficient::EtaWeights));
    assert!(prior.sd(Coefficient::EtaWeights) < 1.5 * Prior::shipped().sd(Coefficient::EtaWeights));
    // Fewer measurements are needed for it to be right.
    let few: Vec<Observation> = {
        let mut rng = StdRng::seed_from_u64(4);
        let s = subject("llama-3.1-8b", "a100-80", 2);
        let loads = [closed(1.0, 512.0, 128.0), closed(16.0, 1024.0, 256.0), closed(64.0, 2048.0, 128.0)];
        loads.iter().map(|w| measure(&s, &slow, *w, 0.03, &mut rng)).collect()
    };
    let (with, without) = (fit(&few, &prior).unwrap(), fit(&few, &Prior::shipped()).unwrap());
    let off = |f: &Fit| (f.calibration.layer_overhead_us / 120.0).ln().abs();
    assert!(off(&with) < off(&without), "{} and {}", off(&with), off(&without));
}

/// Fits of the version itself count for more than those of another one.
#[test]
fn another_version_says_less() {
    let usual = presets::accelerator("h100").unwrap().calibration;
    let slow = Calibration { layer_overhead_us: 120.0, ..usual.clone() };
    let (old, new) = (fitted("h100", &slow, 1), fitted("h100", &usual, 2));
    let acc = presets::accelerator("h100").unwrap();
    let fits = [(Traits::new("vllm", "0.8", &acc), &old), (Traits::new("vllm", "0.20", &acc), &new)];
    let guess = |version| {
        let target = Traits::new("vllm", version, &presets::accelerator("h200").unwrap());
        Prior::pooled(&fits, &target, &Prior::shipped()).calibration().layer_overhead_us
    };
    assert!(
        guess("0.8") > guess("1.0") && guess("1.0") > guess("0.20"),
        "{} {}",
        guess("0.8"),
        guess("0.20")
    );
}

/// API time that only shows in first tokens under load is found, queues guessed wrongly beside it or not.
#[test]
fn api_time_is_found_in_first_tokens_under_load() {
    let usual = presets::accelerator("h100").unwrap().calibration;
    let without = |o: Observation| {
        let measured = Measured { ttft_ms: None, ..o.measured };
        Observation { measured, ..o }
    };
    let seen: Vec<Observation> =
        grid(0.03, &usual, &mut StdRng::seed_from_u64(6)).into_iter().map(without).collect();
    let blank = fit(&seen, &Prior::shipped()).unwrap();
    // Simulated with the fit's API time, measured with 120 ms instead; every sixth queue is three times as long.
    let pairs: Vec<(f64, f64)> = (0..30)
        .map(|i| {
            let rest = 40.0 + 30.0 * f64::from(i % 7);
            let noise = 1.0 + 0.04 * (f64::from(i % 5) - 2.0);
            let queue = if i % 6 == 0 { 3.0 * rest } else { rest };
            (blank.calibration.api_overhead_ms + rest, (120.0 + queue) * noise)
        })
        .collect();
    let learned = blank.clone().with_first_tokens(&pairs);
    assert!(
        (learned.calibration.api_overhead_ms / 120.0 - 1.0).abs() < 0.12,
        "{}",
        learned.calibration.api_overhead_ms
    );
    assert!(learned.sd(Coefficient::ApiOverhead) < 0.5 * blank.sd(Coefficient::ApiOverhead));
    for k in Coefficient::ALL.into_iter().filter(|k| *k != Coefficient::ApiOverhead) {
        assert_eq!(k.of(&learned.calibration), k.of(&blank.calibration), "{k}");
        assert_eq!(learned.sd(k), blank.sd(k), "{k}");
    }
    // Nothing usable leaves everything as it was.
    for nothing in [&[][..], &[(f64::NAN, 1.0), (1.0, 0.0), (f64::INFINITY, 5.0)]] {
        assert_eq!(blank.clone().with_first_tokens(nothing), blank);
    }
}

#[test]
fn without_fits_a_pooled_prior_is_the_fallback() {
    let acc = presets::accelerator("l4").unwrap();
    let prior = Prior::pooled(&[], &Traits::new("vllm", "", &acc), &Prior::shipped());
    for k in Coefficient::ALL {
        let (a, b) = (k.of(&prior.calibration()), k.of(&Prior::shipped().calibration()));
        assert!((a / b - 1.0).abs() < 1e-6, "{k}: {a} and {b}");
        assert!(prior.sd(k) >= Prior::shipped().sd(k));
    }
    assert!(prior.stated().relative_error > 0.15);
}

/// Ten chosen points leave less unknown than ten at the head of the list.
#[test]
fn the_most_telling_points_are_spread() {
    let mut rng = StdRng::seed_from_u64(9);
    let truth = presets::accelerator("h100").unwrap().calibration;
    let all = grid(0.03, &truth, &mut rng);
    let prior = Prior::shipped();
    let chosen = most_telling(&all, &prior, 10);
    assert_eq!(chosen.len(), 10);
    assert!(chosen.iter().any(|i| all[*i].subject.shape.tensor_parallel > 1), "links show");
    let volume = |points: &[Observation]| {
        let found = fit(points, &prior).unwrap();
        Coefficient::ALL.iter().map(|k| found.sd(*k).ln()).sum::<f64>()
    };
    let few: Vec<Observation> = chosen.iter().map(|i| all[*i].clone()).collect();
    assert!(volume(&few) < volume(&all[..10]));
    assert!(most_telling(&all[..3], &prior, 10).len() == 3);
}
