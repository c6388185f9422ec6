//! [`Performance`] by `plimsoll-engine`'s closed form.

use plimsoll_engine::{DoesNotFit, EngineConfig, InfeasibleReason, LoadLine, Lora, ReplicaModel};
use plimsoll_fleet::plan::Prediction;
use plimsoll_fleet::{Adapter, AdapterRoom, ModelPool, Percentile, RequestClass, StepCoefficients};

use super::performance::{Evaluation, Misfit, Miss, Performance, Query};

/// The engine model.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineModel;

/// The settings that a pool's engines are started with, as far as the engine model knows them: those of its kind, and room for its
/// LoRA adapters where the engine is started with them. All requests count as using one: how many do is not known.
pub fn engine_config(pool: &ModelPool, adapters: &[Adapter]) -> EngineConfig {
    let usual = EngineConfig::of(pool.engine.kind.as_str());
    let own = || adapters.iter().filter(|a| a.base_pool == pool.id);
    let room = AdapterRoom::wanted(pool.engine.kind, own());
    if room.slots == 0 {
        return usual;
    }
    let ranks: Vec<u32> = own().map(|a| a.rank).collect();
    let count = ranks.len() as u32;
    let lora = Lora {
        slots: room.slots,
        max_rank: room.max_rank,
        adapters: count,
        mean_rank: ranks.iter().map(|r| f64::from(*r)).sum::<f64>() / f64::from(count),
        ..Lora::default()
    };
    EngineConfig { lora: Some(lora), ..usual }
}

fn replica(q: &Query<'_>) -> Result<ReplicaModel, Misfit> {
    ReplicaModel::new(&q.pool.served_architecture(), q.variant, q.accelerator, q.shape, &q.engine)
        .map_err(|e| misfit(q, &e))
}

fn misfit(q: &Query<'_>, e: &DoesNotFit) -> Misfit {
    let (weight_bytes, usable_bytes) = match e {
        DoesNotFit::Weights { needed_bytes, available_bytes_per_gpu, gpus, .. } => {
            (*needed_bytes, available_bytes_per_gpu.max(0.0) * f64::from(*gpus))
        }
        _ => (0.0, q.accelerator.memory_bytes * f64::from(q.shape.gpus())),
    };
    Misfit { weight_bytes, usable_bytes, text: e.to_string() }
}

fn miss(q: &Query<'_>, line: &LoadLine) -> Option<Miss> {
    let reason = line.infeasible.as_ref()?;
    let stretch = 1.0 + q.margin.max(0.0);
    Some(match reason {
        InfeasibleReason::Objective { metric, objective, predicted_ms, .. } => Miss {
            metric: (*metric).to_owned(),
            objective: objective.to_string(),
            best_ms: predicted_ms / stretch,
            needed_ms: *predicted_ms,
            text: reason.to_string(),
        },
        InfeasibleReason::Burst { metric, objective, predicted_ms, .. } => Miss {
            metric: (*metric).to_owned(),
            objective: objective.to_string(),
            best_ms: predicted_ms / stretch,
            needed_ms: *predicted_ms,
            text: reason.to_string(),
        },
        InfeasibleReason::ContextTooLong { .. } | InfeasibleReason::EmptyMix => Miss {
            metric: String::new(),
            objective: String::new(),
            best_ms: 0.0,
            needed_ms: 0.0,
            text: reason.to_string(),
        },
    })
}

impl Performance for EngineModel {
    fn evaluate(&self, q: &Query<'_>) -> Result<Evaluation, Misfit> {
        let model = replica(q)?;
        let slos = |name: &str| q.slo(name);
        let mix = model.load_line(q.classes, &slos, q.arrival_scv, q.margin);
        // Which of the classes come to this shape is not known yet: the most power that any of them, or all, ask for.
        let watts = |classes: &[RequestClass], rps: f64| model.predict(classes, rps, q.arrival_scv).watts;
        let mut most_watts = watts(q.classes, mix.rps);
        let mut rates = Vec::with_capacity(q.classes.len());
        let mut misses = Vec::with_capacity(q.classes.len());
        for class in q.classes {
            if q.classes.len() == 1 {
                rates.push(mix.rps);
                misses.push(miss(q, &mix));
                continue;
            }
            let line = model.class_rate(class, &q.slo(&class.slo_class), q.arrival_scv, q.margin);
            // An objective is over all requests of its SLO class: a few long ones may miss it within a mix that
            // holds it. Such a class counts by its share of the work.
            let rate = if line.rps <= 0.0 && mix.rps > 0.0 && mix.saturation_rps > 0.0 {
                line.saturation_rps * mix.rps / mix.saturation_rps
            } else {
                line.rps
            };
            misses.push(if rate > 0.0 { None } else { miss(q, &line) });
            most_watts = most_watts.max(watts(std::slice::from_ref(class), rate));
            rates.push(rate);
        }
        Ok(Evaluation { rates, mix_rps: mix.rps, watts: most_watts, misses })
    }

    fn predict(&self, q: &Query<'_>, rps: f64) -> Option<Prediction> {
        let model = replica(q).ok()?;
        let load = model.predict(q.classes, rps, q.arrival_scv);
        if load.saturated {
            return None;
        }
        // The default SLO class speaks for the pool; the others only where it has no traffic.
        let default = q.pool.slo_classes.first().map(|c| c.name.as_str()).unwrap_or_default();
        let of = |c: &RequestClass| c.slo_class == default;
        let chosen: Vec<&str> = if q.classes.iter().any(of) {
            vec![default]
        } else {
            q.classes.iter().map(|c| c.slo_class.as_str()).take(1).collect()
        };
        let objectives = q.slo(chosen.first().copied().unwrap_or_default());
        let value = |p: Option<Percentile>, metric: &dyn Fn(usize, Percentile) -> f64| {
            let p = p.unwrap_or(Percentile::P95);
            let members: Vec<usize> =
                (0..q.classes.len()).filter(|i| chosen.contains(&q.classes[*i].slo_class.as_str())).collect();
            mixture_quantile(&members, q.classes, p, metric)
        };
        Some(Prediction {
            ttft_ms: value(objectives.ttft.map(|o| o.percentile), &|i, p| load.classes[i].ttft_ms(p)),
            tpot_ms: value(objectives.tpot.map(|o| o.percentile), &|i, p| load.classes[i].tpot_ms(p)),
            e2e_ms: objectives.e2e.and_then(|o| value(Some(o.percentile), &|i, p| load.classes[i].e2e_ms(p))),
            relative_error: load.relative_error,
        })
    }

    fn coefficients(&self, q: &Query<'_>) -> Option<StepCoefficients> {
        let model = replica(q).ok()?;
        let (mut weight, mut context) = (0.0, 0.0);
        for c in q.classes {
            let w = c.rps.max(1e-9) * c.output_tokens.max(1.0);
            weight += w;
            context += w * (c.input_tokens + 0.5 * c.output_tokens);
        }
        Some(model.coefficients(if weight > 0.0 { context / weight } else { 1024.0 }))
    }
}

/// Quantile of a mixture of classes, by bisection on the value: the share of requests above it, summed by class.
fn mixture_quantile(
    members: &[usize],
    classes: &[RequestClass],
    p: Percentile,
    metric: &dyn Fn(usize, Percentile) -> f64,
) -> Option<f64> {
    let values: Vec<f64> = members.iter().map(|i| metric(*i, p)).collect();
    let (low, high) =
        (values.iter().copied().fold(f64::INFINITY, f64::min), values.iter().copied().fold(0.0, f64::max));
    if members.is_empty() || !high.is_finite() {
        return None;
    }
    let total: f64 = members.iter().map(|i| classes[*i].rps.max(1e-12)).sum();
    let above = |limit: f64| -> f64 {
        members
            .iter()
            .map(|i| {
                let (mut a, mut b) = (0.0_f64, 100.0_f64);
                for _ in 0..10 {
                    let mid = 0.5 * (a + b);
                    match Percentile::new(mid) {
                        Ok(q) if metric(*i, q) <= limit => a = mid,
                        _ => b = mid,
                    }
                }
                (1.0 - a / 100.0) * classes[*i].rps.max(1e-12) / total
            })
            .sum()
    };
    let (mut low, mut high) = (low, high);
    for _ in 0..12 {
        if high - low <= 0.01 * high {
            break;
        }
        let mid = 0.5 * (low + high);
        if above(mid) > 1.0 - p.fraction() { low = mid } else { high = mid }
    }
    Some(high)
}
