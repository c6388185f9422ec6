//! Latencies of replicas that serve requests whole and of pairs of which each does a part, as one prediction.

use plimsoll_engine::{KvTransfer, LinkTier};
use plimsoll_fleet::plan::Prediction;
use plimsoll_fleet::{ClusterSnapshot, ModelPool, RequestClass, Role, Shape};

/// Predictions by role, each the worst of its shapes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Predictions {
    whole: Option<Prediction>,
    prefill: Option<Prediction>,
    decode: Option<Prediction>,
}

fn worst(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(x), Some(y)) => Some(x.max(y)),
        (x, y) => x.or(y),
    }
}

fn merged(a: Option<Prediction>, b: Prediction) -> Prediction {
    let Some(a) = a else { return b };
    Prediction {
        ttft_ms: worst(a.ttft_ms, b.ttft_ms),
        tpot_ms: worst(a.tpot_ms, b.tpot_ms),
        e2e_ms: worst(a.e2e_ms, b.e2e_ms),
        relative_error: a.relative_error.max(b.relative_error),
    }
}

impl Predictions {
    /// Takes in one shape's.
    pub(crate) fn add(&mut self, role: Role, of: Prediction) {
        let at = match role {
            Role::Mixed => &mut self.whole,
            Role::Prefill => &mut self.prefill,
            Role::Decode => &mut self.decode,
        };
        *at = Some(merged(*at, of));
    }

    /// All of them: of pairs the times of both add up with the transfer's, and TPOT is decode's. Percentiles that add up are on the safe side.
    pub(crate) fn whole(self, transfer_ms: f64) -> Prediction {
        let pair = self.prefill.zip(self.decode).map(|(p, d)| {
            let with_prefill =
                |x: Option<f64>| p.ttft_ms.zip(x).map(|(first, rest)| first + transfer_ms + rest);
            Prediction {
                ttft_ms: with_prefill(d.ttft_ms),
                tpot_ms: d.tpot_ms,
                e2e_ms: with_prefill(d.e2e_ms),
                relative_error: p.relative_error.max(d.relative_error),
            }
        });
        match pair {
            Some(pair) => merged(self.whole, pair),
            None => self.whole.unwrap_or_default(),
        }
    }
}

/// Mean time of a transfer between the slowest prefill and decode replicas in use, milliseconds; 0 without such replicas.
pub(crate) fn transfer_ms(
    snapshot: &ClusterSnapshot,
    pool: &ModelPool,
    used: &[(Shape, Vec<RequestClass>)],
) -> f64 {
    let of = |role: Role| used.iter().filter(move |(shape, _)| shape.role == role);
    let class = |shape: &Shape| snapshot.accelerators.iter().find(|a| a.name == shape.accelerator);
    let mut slowest: f64 = 0.0;
    for (p, mix) in of(Role::Prefill) {
        for (d, _) in of(Role::Decode) {
            let (Some(a), Some(b), Some(variant)) = (class(p), class(d), pool.variant(&p.variant)) else {
                continue;
            };
            let transfer = KvTransfer::new(&pool.architecture, variant, (a, p), (b, d), LinkTier::Network);
            let total: f64 = mix.iter().map(|c| c.rps).sum();
            let mean = mix.iter().map(|c| c.rps / total.max(1e-12) * transfer.ms(c.input_tokens)).sum();
            slowest = slowest.max(mean);
        }
    }
    slowest
}
