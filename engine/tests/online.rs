//! Calibration that follows telemetry: converges, ignores what says nothing of step times, finds drift and only
//! drift.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use std::sync::Arc;

use common::{arch, shape, variant};
use plimsoll_engine::EngineConfig;
use plimsoll_engine::calibrate::{Ignored, Online, OnlineConfig, Prior, Subject, Taken, Window};
use plimsoll_fleet::{Calibration, Dtype, presets};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Normal};

fn subject() -> Arc<Subject> {
    Arc::new(Subject {
        engine: "vllm".to_owned(),
        engine_version: String::new(),
        architecture: arch("llama-3.1-8b", 8192),
        variant: variant(Dtype::Bf16, Dtype::Bf16),
        accelerator: presets::accelerator("h100").unwrap(),
        shape: shape("h100", 1, 1),
        config: EngineConfig::default(),
    })
}

struct Replica {
    truth: Calibration,
    slower: f64,
    noise: f64,
    rng: StdRng,
    minutes: f64,
}

impl Replica {
    fn new(seed: u64, noise: f64) -> Self {
        let truth = presets::accelerator("h100").unwrap().calibration;
        Self { truth, slower: 1.0, noise, rng: StdRng::seed_from_u64(seed), minutes: 0.0 }
    }

    /// The next minute, under some load.
    fn window(&mut self) -> Window {
        let model = subject().model(&self.truth).unwrap();
        let (running, input, output) = (
            self.rng.random_range(1.0..100.0_f64),
            self.rng.random_range(200.0..2000.0),
            self.rng.random_range(50.0..500.0),
        );
        let step = model.decode_ms(running, input + 0.5 * output);
        // B = λ (n − 1) TPOT and TPOT = D/(1 − λw) give λ.
        let work = model.prefill_ms(input, 0.0);
        let rate = running / (output * step + running * work);
        let tpot = self.slower * step / (1.0 - rate * work);
        self.minutes += 1.0;
        let noise = f64::exp(Normal::new(0.0, self.noise).unwrap().sample(&mut self.rng));
        Window {
            engine_age_seconds: 600.0 + 60.0 * self.minutes,
            ended_seconds: 60.0 * self.minutes,
            seconds: 60.0,
            finished: 60_000.0 * rate,
            running,
            waiting: 0.0,
            kv_usage: 0.3,
            input_tokens: input,
            cached_tokens: 0.0,
            output_tokens: output,
            tpot_ms: tpot * noise,
        }
    }
}

fn online(start: &Calibration) -> Online {
    Online::from_prior(subject(), &Prior::around(start), 0.12, OnlineConfig::default())
}

#[test]
fn converges_to_what_the_replica_does() {
    for seed in 0..5 {
        let mut replica = Replica::new(seed, 0.05);
        let mut start = replica.truth.clone();
        start.eta_weights *= 0.85;
        start.eta_kv *= 0.8;
        start.request_overhead_us *= 1.5;
        let mut online = online(&start);
        let mut late = Vec::new();
        for i in 0..400 {
            if let Taken::Used { log_error } = online.observe(&replica.window())
                && i >= 300
            {
                late.push(log_error);
            }
        }
        let bias = late.iter().sum::<f64>() / late.len() as f64;
        assert!(bias.abs() < 0.02, "seed {seed}: bias {bias}");
        assert_eq!(online.drifted(), None, "what was wrong from the start is no drift");
    }
}

#[test]
fn a_slow_down_of_30_percent_is_found_in_ten_windows() {
    for seed in 0..50 {
        let mut replica = Replica::new(seed, 0.05);
        let mut online = online(&replica.truth.clone());
        for _ in 0..100 {
            online.observe(&replica.window());
        }
        let calm = online.relative_error();
        replica.slower = 1.3;
        let found = (1..=10).find(|_| {
            online.observe(&replica.window());
            online.drifted().is_some()
        });
        let drift = online.drifted().unwrap_or_else(|| panic!("seed {seed}: not found"));
        assert!(found.is_some());
        assert!((1.1..1.45).contains(&drift.factor), "seed {seed}: {}", drift.factor);
        assert!((drift.since_seconds / 60.0 - 100.0).abs() <= 10.0, "seed {seed}: {}", drift.since_seconds);
        assert!(online.relative_error() > calm + 0.1, "the margin widens");
        // The coefficients follow, and once accepted the change is the new normal.
        for _ in 0..100 {
            online.observe(&replica.window());
        }
        online.accept();
        for _ in 0..100 {
            online.observe(&replica.window());
        }
        assert_eq!(online.drifted(), None, "seed {seed}");
        assert!(online.relative_error() < calm + 0.1);
    }
}

/// Fifty replicas, a day of minutes each: 72,000 windows as noisy as stated (p90 of 12 % is a deviation of 0.069).
#[test]
fn stationary_noise_is_no_drift() {
    let mut alarms = 0;
    for seed in 0..50 {
        let mut replica = Replica::new(1000 + seed, 0.069);
        let mut online = online(&replica.truth.clone());
        let mut before = false;
        for _ in 0..1440 {
            online.observe(&replica.window());
            alarms += u32::from(online.drifted().is_some() && !before);
            before = online.drifted().is_some();
        }
    }
    println!("{alarms} false alarms in 72,000 windows");
    assert!(alarms <= 5, "{alarms}");
}

#[test]
fn ignores_what_says_nothing_of_step_times() {
    let mut replica = Replica::new(3, 0.0);
    let mut online = online(&replica.truth.clone());
    let good = replica.window();
    let before = online.calibration();
    let slow = Window { tpot_ms: 10.0 * good.tpot_ms, ..good };
    let cases = [
        (Window { engine_age_seconds: 30.0, ..slow }, Ignored::WarmUp),
        (Window { waiting: 8.0, ..slow }, Ignored::Overload),
        (Window { kv_usage: 0.97, ..slow }, Ignored::Overload),
        (Window { finished: 3.0, ..slow }, Ignored::TooFew),
        (Window { running: 0.1, ..slow }, Ignored::TooFew),
        (Window { tpot_ms: f64::NAN, ..slow }, Ignored::Nonsense),
        (Window { finished: 1e9, ..slow }, Ignored::Unpredictable),
    ];
    for (window, reason) in cases {
        for _ in 0..50 {
            assert_eq!(online.observe(&window), Taken::Ignored(reason));
        }
    }
    assert_eq!(online.calibration(), before);
    assert_eq!((online.used(), online.drifted()), (0, None));
    assert!(matches!(online.observe(&good), Taken::Used { .. }));
}
