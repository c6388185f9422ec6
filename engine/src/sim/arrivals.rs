//! Requests of a mix, drawn at random but the same for the same seed.

use plimsoll_fleet::RequestClass;

use super::{Arrival, SimRequest};
use crate::queue::burst_size;

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1].
    fn share(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

fn request(mix: &[RequestClass], id: u64, random: &mut Random) -> SimRequest {
    let weight = |c: &RequestClass| if c.rps.is_finite() { c.rps.max(0.0) } else { 0.0 };
    let total: f64 = mix.iter().map(weight).sum();
    let mut pick = random.share() * total;
    let class = mix.iter().find(|c| {
        pick -= weight(c);
        pick <= 0.0
    });
    let tokens = |x: f64| if x.is_finite() { x.round().max(1.0) as u32 } else { 1 };
    class.or(mix.last()).map_or_else(SimRequest::default, |c| SimRequest {
        id,
        prompt_tokens: tokens(c.input_tokens * (1.0 - c.cached_fraction.clamp(0.0, 1.0))),
        output_tokens: tokens(c.output_tokens),
        ..SimRequest::default()
    })
}

/// Requests of a mix without times, for runs that keep a number of them under way.
pub fn requests(mix: &[RequestClass], count: u64, seed: u64) -> Vec<SimRequest> {
    let mut random = Random(seed);
    if mix.is_empty() { Vec::new() } else { (0..count).map(|id| request(mix, id, &mut random)).collect() }
}

/// Requests whose lengths are uniform within `spread` (a share, 0 to 1) of these means to either side, tokens.
pub fn requests_within(
    input_tokens: f64,
    output_tokens: f64,
    spread: f64,
    count: u64,
    seed: u64,
) -> Vec<SimRequest> {
    let spread = if spread.is_finite() { spread.clamp(0.0, 1.0) } else { 0.0 };
    let mut random = Random(seed);
    let mut length = |mean: f64| {
        let share = 1.0 + spread * (2.0 * random.share() - 1.0);
        ((mean * share).round() as u32).max(1)
    };
    (0..count)
        .map(|id| SimRequest {
            id,
            prompt_tokens: length(input_tokens),
            output_tokens: length(output_tokens),
            ..SimRequest::default()
        })
        .collect()
}

/// Requests of a mix at `rps` a second: Poisson where `arrival_scv` is 1, and where it is more, in bursts of geometric
/// size with the same dispersion, as [`crate::ReplicaModel::predict`] takes them. A cached prefix is left out of the
/// prompt; that its attention is still paid for is neglected.
pub fn arrivals(mix: &[RequestClass], rps: f64, arrival_scv: f64, count: u64, seed: u64) -> Vec<Arrival> {
    if mix.is_empty() || !(rps.is_finite() && rps > 0.0) {
        return Vec::new();
    }
    let burst = burst_size(arrival_scv);
    let gap_ms = 1e3 * burst / rps;
    let mut random = Random(seed);
    let mut at_ms = 0.0;
    (0..count)
        .map(|id| {
            // The burst goes on with this chance.
            if random.share() > 1.0 - 1.0 / burst {
                at_ms -= random.share().ln() * gap_ms;
            }
            Arrival { at_ms, request: request(mix, id, &mut random) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(input: f64, output: f64, rps: f64) -> RequestClass {
        RequestClass {
            name: String::new(),
            slo_class: String::new(),
            input_tokens: input,
            output_tokens: output,
            cached_fraction: 0.0,
            rps,
        }
    }

    #[test]
    fn rates_shares_and_dispersion_are_as_asked() {
        let mix = [class(10.0, 2.0, 3.0), class(99.0, 5.0, 1.0)];
        for scv in [1.0, 5.0] {
            let drawn = arrivals(&mix, 4.0, scv, 40_000, 7);
            let seconds = drawn.last().unwrap().at_ms / 1e3;
            assert!((40_000.0 / seconds / 4.0 - 1.0).abs() < 0.06, "{scv}: {seconds}");
            let small = drawn.iter().filter(|a| a.request.prompt_tokens == 10).count();
            assert!((0.74..0.76).contains(&(small as f64 / 40_000.0)), "{small}");
            // Counts in windows of ten seconds have the index of dispersion of the arrivals.
            let mut counts = vec![0.0_f64; (seconds / 10.0) as usize];
            for a in &drawn {
                if let Some(n) = counts.get_mut((a.at_ms / 1e4) as usize) {
                    *n += 1.0;
                }
            }
            let mean = counts.iter().sum::<f64>() / counts.len() as f64;
            let variance = counts.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / counts.len() as f64;
            assert!((0.8..1.2).contains(&(variance / mean / scv)), "{scv}: {}", variance / mean);
        }
        assert_eq!(arrivals(&mix, 4.0, 1.0, 5, 7), arrivals(&mix, 4.0, 1.0, 5, 7));
        assert!(arrivals(&[], 4.0, 1.0, 5, 7).is_empty() && arrivals(&mix, f64::NAN, 1.0, 5, 7).is_empty());
    }
}
