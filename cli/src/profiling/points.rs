//! Which points to measure in the time there is.

use std::sync::Arc;

use plimsoll_engine::calibrate::{Measured, Metric, Probe, ProbeLimits, Subject, Workload, probes};
use plimsoll_engine::measurements::Measurement;
use plimsoll_engine::{DoesNotFit, ReplicaModel};
use plimsoll_simulator::profile::{ClosedLoop, SPREAD, Sample};

/// Points from which those that fit into the time are taken.
const CANDIDATES: usize = 24;

/// A point to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// The load.
    pub load: ClosedLoop,
    /// What it tells.
    pub why: String,
    /// How long it should take, milliseconds.
    pub estimate_ms: f64,
}

/// What may be measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Most points.
    pub count: usize,
    /// Most requests under way.
    pub max_concurrency: u32,
    /// Longest request, tokens.
    pub max_tokens: u32,
    /// Time for all of them, milliseconds.
    pub budget_ms: f64,
}

fn workload(concurrency: f64, input_tokens: f64, output_tokens: f64) -> Workload {
    Workload::ClosedLoop { concurrency, input_tokens, output_tokens }
}

/// How long a load takes, its uncounted first round included, milliseconds.
fn estimate(model: &ReplicaModel, load: &ClosedLoop) -> f64 {
    let (input, output) = (f64::from(load.input_tokens), f64::from(load.output_tokens));
    let say =
        |concurrency: f64, metric| workload(concurrency, input, output).predict(model, metric).unwrap_or(0.0);
    let answer = say(1.0, Metric::Ttft) + output * say(f64::from(load.concurrency), Metric::Tpot);
    f64::from(load.rounds()) * answer
}

/// The points that tell most about the coefficients and fit into the time together, most telling first.
///
/// # Errors
/// [`DoesNotFit`] if the replica cannot exist.
pub fn points(subject: &Subject, limits: &Limits) -> Result<Vec<Point>, DoesNotFit> {
    let model = subject.model(&subject.accelerator.calibration)?;
    let wanted = ProbeLimits {
        count: CANDIDATES,
        max_concurrency: limits.max_concurrency,
        max_tokens: limits.max_tokens,
    };
    let mut left_ms = limits.budget_ms;
    let mut chosen = Vec::new();
    for Probe { concurrency, input_tokens, output_tokens, why } in probes(subject, &wanted)? {
        let load = ClosedLoop::new(concurrency, input_tokens, output_tokens);
        let estimate_ms = estimate(&model, &load);
        // Lengths vary; the longest must be allowed too.
        let longest =
            f64::from(input_tokens + output_tokens) * if concurrency > 1 { 1.0 + SPREAD } else { 1.0 };
        // No point may take most of the time: the others together tell more.
        let affordable = estimate_ms <= left_ms && estimate_ms <= 0.4 * limits.budget_ms;
        if chosen.len() < limits.count && affordable && longest <= f64::from(limits.max_tokens) {
            left_ms -= estimate_ms;
            chosen.push(Point { load, why, estimate_ms });
        }
    }
    Ok(chosen)
}

/// What was measured, as files keep it and the fit takes it. Prompt tokens that a cache answered all the same are not
/// counted.
pub fn measurement(subject: &Arc<Subject>, sample: &Sample, source: &str) -> Measurement {
    let computed = (sample.input_tokens - sample.cached_tokens).max(1.0);
    let lone = sample.concurrency == 1;
    Measurement {
        subject: Arc::clone(subject),
        workload: Some(workload(f64::from(sample.concurrency), computed, sample.output_tokens)),
        measured: Measured {
            // With more clients it depends on how they meet.
            ttft_ms: lone.then_some(sample.ttft_ms),
            tpot_ms: sample.tpot_ms,
            ..Measured::default()
        },
        length_spread: if lone { 0.0 } else { SPREAD },
        requests_per_client: if lone { u32::try_from(sample.requests + 1).ok() } else { None },
        saturated: None,
        kv_tokens: None,
        source: source.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use plimsoll_engine::EngineConfig;
    use plimsoll_fleet::shape::Variant;
    use plimsoll_fleet::{Dtype, Role, Shape, presets};

    pub(crate) fn subject(gpu: &str) -> Subject {
        let weights = Dtype::Fp8;
        let mut architecture = presets::model("llama-3.1-8b").unwrap();
        architecture.max_context_tokens = 20_000;
        Subject {
            engine: "vllm".to_owned(),
            engine_version: String::new(),
            architecture,
            variant: Variant { name: "fp8".to_owned(), weights, kv: Dtype::Bf16, quality: 1.0, source: None },
            accelerator: presets::accelerator(gpu).unwrap(),
            shape: Shape {
                variant: "fp8".to_owned(),
                accelerator: gpu.to_owned(),
                tensor_parallel: 1,
                pipeline_parallel: 1,
                data_parallel: 1,
                expert_parallel: 1,
                role: Role::Mixed,
            },
            config: EngineConfig::default(),
        }
    }

    #[test]
    fn points_fit_into_the_time_and_the_limits() {
        for (gpu, minutes) in [("h100", 5.0), ("h100", 0.5), ("l4", 5.0), ("l4", 1.0)] {
            let limits =
                Limits { count: 10, max_concurrency: 64, max_tokens: 8192, budget_ms: minutes * 60e3 };
            let chosen = points(&subject(gpu), &limits).unwrap();
            let total: f64 = chosen.iter().map(|p| p.estimate_ms).sum();
            println!("{gpu} in {minutes} min: {total:.0} ms");
            for p in &chosen {
                println!("  {:?} {:.0} ms {}", p.load, p.estimate_ms, p.why);
            }
            assert!(total <= limits.budget_ms && (4..=10).contains(&chosen.len()), "{gpu} {minutes}");
            assert!(chosen.iter().any(|p| p.load.concurrency == 1), "{gpu} {minutes}: none tells TTFT");
            assert!(chosen.iter().any(|p| p.load.concurrency > 4), "{gpu} {minutes}: none tells batches");
            assert!(
                chosen
                    .iter()
                    .all(|p| p.load.concurrency <= 64 && p.load.input_tokens + p.load.output_tokens <= 8192)
            );
        }
    }

    #[test]
    fn only_a_lone_client_tells_ttft() {
        let subject = Arc::new(subject("h100"));
        let sample = |concurrency| Sample {
            concurrency,
            requests: 8,
            input_tokens: 1000.0,
            cached_tokens: 16.0,
            output_tokens: 32.0,
            ttft_ms: 50.0,
            tpot_ms: Some(9.0),
            e2e_ms: 330.0,
        };
        let of = |n| measurement(&subject, &sample(n), "test").observation().unwrap();
        let (one, many) = (of(1), of(8));
        assert_eq!(one.measured.ttft_ms, Some(50.0));
        assert_eq!((many.measured.ttft_ms, many.measured.tpot_ms), (None, Some(9.0)));
        assert_eq!(one.workload, workload(1.0, 984.0, 32.0));
    }
}
