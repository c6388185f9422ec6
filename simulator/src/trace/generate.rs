//! Generated traces: the shapes of the public ones, and test loads, from a seed.

use std::str::FromStr;

use plimsoll_fleet::LengthDistribution;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Exp1, LogNormal};
use serde::{Deserialize, Serialize};

use super::{TRACE_BLOCK_TOKENS, Trace, TraceRequest};

/// What the load looks like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Like Azure's 2023 conversation trace: 5.5 requests/s that swell and ebb, nearly Poisson, about 1,150
    /// tokens in, 210 out.
    AzureConv,
    /// Like Azure's 2023 code trace: 2.6 requests/s in heavy bursts (gap CV about 13), about 2,050 tokens in,
    /// 28 out.
    AzureCode,
    /// Like Mooncake's conversation trace: 3.4 requests/s in groups every 3 s, long prompts (about 12,000
    /// tokens) that share prefixes, 340 tokens out.
    Mooncake,
    /// One rate.
    Constant {
        /// Requests per second.
        rps: f64,
    },
    /// A straight line from one rate to another.
    Ramp {
        /// Requests per second at the start.
        from_rps: f64,
        /// Requests per second at the end.
        to_rps: f64,
    },
    /// Rates held for equal times, one after another.
    Staircase {
        /// Requests per second of each step.
        steps_rps: Vec<f64>,
    },
    /// A base rate with one sudden peak in the middle third.
    FlashCrowd {
        /// Requests per second before and after.
        base_rps: f64,
        /// Requests per second in the crowd.
        peak_rps: f64,
    },
}

/// An unknown profile's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown trace profile {0:?}; use azure-conv, azure-code, mooncake, constant, ramp, staircase or flash-crowd, \
     or give a file"
)]
pub struct UnknownProfile(pub String);

impl FromStr for Profile {
    type Err = UnknownProfile;

    /// By name, with rates around 5 requests/s where the profile has rates; [`GeneratorConfig::rps`] scales
    /// them.
    fn from_str(name: &str) -> Result<Self, UnknownProfile> {
        Ok(match name {
            "azure-conv" => Self::AzureConv,
            "azure-code" => Self::AzureCode,
            "mooncake" => Self::Mooncake,
            "constant" => Self::Constant { rps: 5.0 },
            "ramp" => Self::Ramp { from_rps: 1.0, to_rps: 9.0 },
            "staircase" => Self::Staircase { steps_rps: vec![2.0, 4.0, 6.0, 8.0, 6.0, 4.0] },
            "flash-crowd" => Self::FlashCrowd { base_rps: 2.0, peak_rps: 12.0 },
            _ => return Err(UnknownProfile(name.to_owned())),
        })
    }
}

impl Profile {
    /// The name that [`FromStr`] reads.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AzureConv => "azure-conv",
            Self::AzureCode => "azure-code",
            Self::Mooncake => "mooncake",
            Self::Constant { .. } => "constant",
            Self::Ramp { .. } => "ramp",
            Self::Staircase { .. } => "staircase",
            Self::FlashCrowd { .. } => "flash-crowd",
        }
    }
}

/// How requests arrive around the rate (test loads only; the Azure and Mooncake shapes have arrivals of their
/// own).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// A Poisson process.
    #[default]
    Poisson,
    /// Evenly.
    Even,
}

/// What to generate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GeneratorConfig {
    /// The load's shape.
    pub profile: Profile,
    /// Length, seconds.
    pub duration_s: f64,
    /// Seed: same configuration, same trace.
    pub seed: u64,
    /// Scales the whole profile to this mean rate, requests per second.
    pub rps: Option<f64>,
    /// Prompt lengths instead of the profile's own.
    pub input: Option<LengthDistribution>,
    /// Answer lengths instead of the profile's own.
    pub output: Option<LengthDistribution>,
    /// Arrivals of the test loads.
    pub arrivals: Arrivals,
}

impl GeneratorConfig {
    /// A profile for a time, all else by default.
    pub fn new(profile: Profile, duration_s: f64, seed: u64) -> Self {
        Self {
            profile,
            duration_s,
            seed,
            rps: None,
            input: None,
            output: None,
            arrivals: Arrivals::default(),
        }
    }
}

/// An inverse distribution function given at a few points, log-linear between them.
type Quantiles = &'static [(f64, f64)];

// Quantiles of the public traces (Azure LLM inference traces 2023, CC-BY-4.0; Mooncake FAST'25, Apache-2.0).
const CONV_INPUT: Quantiles = &[
    (0.0, 20.0),
    (0.1, 207.0),
    (0.25, 396.0),
    (0.5, 1020.0),
    (0.75, 1189.0),
    (0.9, 2735.0),
    (0.95, 4083.0),
    (0.99, 4142.0),
    (0.999, 6212.0),
    (1.0, 14_000.0),
];
const CONV_OUTPUT: Quantiles = &[
    (0.0, 7.0),
    (0.1, 54.0),
    (0.25, 85.0),
    (0.5, 129.0),
    (0.75, 395.0),
    (0.9, 424.0),
    (0.95, 451.0),
    (0.99, 601.0),
    (0.999, 954.0),
    (1.0, 1000.0),
];
const CODE_INPUT: Quantiles = &[
    (0.0, 30.0),
    (0.1, 147.0),
    (0.25, 578.0),
    (0.5, 1469.0),
    (0.75, 2745.0),
    (0.9, 5194.0),
    (0.95, 7315.0),
    (1.0, 7437.0),
];
const CODE_OUTPUT: Quantiles = &[
    (0.0, 6.0),
    (0.1, 7.0),
    (0.25, 9.0),
    (0.5, 13.0),
    (0.75, 24.0),
    (0.9, 55.0),
    (0.95, 90.0),
    (0.99, 252.0),
    (0.999, 831.0),
    (1.0, 1900.0),
];
/// Gaps between arrivals of the code trace, seconds.
const CODE_GAPS: Quantiles = &[
    (0.0, 6e-6),
    (0.1, 2.1e-4),
    (0.5, 0.0638),
    (0.9, 0.273),
    (0.99, 2.205),
    (0.9985, 30.0),
    (0.999, 82.8),
    (1.0, 217.0),
];
const MOONCAKE_INPUT: Quantiles = &[
    (0.0, 890.0),
    (0.05, 901.0),
    (0.1, 964.0),
    (0.25, 2306.0),
    (0.5, 6909.0),
    (0.75, 15_368.0),
    (0.9, 27_367.0),
    (0.99, 85_401.0),
    (1.0, 123_000.0),
];
const MOONCAKE_OUTPUT: Quantiles = &[
    (0.0, 2.0),
    (0.05, 10.0),
    (0.1, 24.0),
    (0.25, 156.0),
    (0.5, 350.0),
    (0.75, 472.0),
    (0.9, 597.0),
    (0.99, 1120.0),
    (1.0, 2000.0),
];

/// Rates of the conversation trace over its hour, requests per second at equal distances.
const CONV_RATES: [f64; 13] = [3.6, 5.4, 4.7, 5.3, 5.1, 5.4, 6.2, 7.4, 7.6, 6.9, 5.6, 4.6, 4.2];

/// Requests of a continued conversation, as a share; gives the public trace's 0.37 of shareable blocks.
const MOONCAKE_CONTINUED: f64 = 0.44;
/// Conversations that may still be continued.
const MOONCAKE_OPEN_SESSIONS: usize = 400;
/// Arrivals of the Mooncake trace come in groups this far apart.
const MOONCAKE_GROUP_MS: f64 = 3000.0;

/// More requests than this in one generated trace are refused by ending it early.
const MAX_REQUESTS: usize = 5_000_000;

fn sample(table: Quantiles, rng: &mut SmallRng) -> f64 {
    let u: f64 = rng.random();
    let above = table.partition_point(|(q, _)| *q <= u).clamp(1, table.len() - 1);
    let ((q0, v0), (q1, v1)) = (table[above - 1], table[above]);
    (v0.ln() + (u - q0) / (q1 - q0) * (v1.ln() - v0.ln())).exp()
}

enum Lengths {
    Table(Quantiles),
    LogNormal(LogNormal<f64>),
}

impl Lengths {
    fn new(wanted: Option<LengthDistribution>, table: Quantiles) -> Self {
        wanted
            .and_then(|w| {
                let (mu, sigma) = w.log_normal();
                LogNormal::new(mu, sigma).ok()
            })
            .map_or(Self::Table(table), Self::LogNormal)
    }

    fn draw(&self, rng: &mut SmallRng) -> u32 {
        let tokens = match self {
            Self::Table(t) => sample(t, rng),
            Self::LogNormal(d) => d.sample(rng),
        };
        // The cast saturates.
        tokens.round().max(1.0) as u32
    }
}

/// Generates a trace. Durations and rates that are not positive numbers give an empty one.
pub fn generate(config: &GeneratorConfig) -> Trace {
    let mut rng = SmallRng::seed_from_u64(config.seed);
    let duration_ms = if config.duration_s.is_finite() { config.duration_s.max(0.0) * 1000.0 } else { 0.0 };
    let (input, output) = match config.profile {
        Profile::AzureCode => (CODE_INPUT, CODE_OUTPUT),
        Profile::Mooncake => (MOONCAKE_INPUT, MOONCAKE_OUTPUT),
        _ => (CONV_INPUT, CONV_OUTPUT),
    };
    let (input, output) = (Lengths::new(config.input, input), Lengths::new(config.output, output));
    let times = arrivals(config, duration_ms, &mut rng);
    let mut sessions = Sessions::default();
    let requests = times
        .into_iter()
        .map(|at_ms| {
            let input_tokens = input.draw(&mut rng);
            let output_tokens = output.draw(&mut rng);
            let blocks = match config.profile {
                Profile::Mooncake => sessions.blocks(input_tokens, &mut rng),
                _ => Vec::new(),
            };
            TraceRequest { at_ms, input_tokens, output_tokens, blocks }
        })
        .collect();
    Trace { name: format!("{} (seed {})", config.profile.name(), config.seed), requests, notes: Vec::new() }
}

/// Ascending arrival times, milliseconds.
fn arrivals(config: &GeneratorConfig, duration_ms: f64, rng: &mut SmallRng) -> Vec<f64> {
    if let Profile::AzureCode = config.profile {
        return bursty(config.rps, duration_ms, rng);
    }
    let shape: Vec<(f64, f64)> = match &config.profile {
        Profile::AzureConv => {
            let last = (CONV_RATES.len() - 1) as f64;
            CONV_RATES.iter().enumerate().map(|(i, r)| (i as f64 / last, *r)).collect()
        }
        Profile::Mooncake | Profile::AzureCode => vec![(0.0, 3.4), (1.0, 3.4)],
        Profile::Constant { rps } => vec![(0.0, *rps), (1.0, *rps)],
        Profile::Ramp { from_rps, to_rps } => vec![(0.0, *from_rps), (1.0, *to_rps)],
        Profile::Staircase { steps_rps } => {
            let n = steps_rps.len() as f64;
            let ends = |(i, r): (usize, &f64)| [(i as f64 / n, *r), ((i + 1) as f64 / n, *r)];
            steps_rps.iter().enumerate().flat_map(ends).collect()
        }
        Profile::FlashCrowd { base_rps, peak_rps } => vec![
            (0.0, *base_rps),
            (1.0 / 3.0, *base_rps),
            (1.0 / 3.0, *peak_rps),
            (2.0 / 3.0, *peak_rps),
            (2.0 / 3.0, *base_rps),
            (1.0, *base_rps),
        ],
    };
    let even = config.arrivals == Arrivals::Even
        && !matches!(config.profile, Profile::AzureConv | Profile::AzureCode | Profile::Mooncake);
    let times = along(&shape, config.rps, duration_ms, even, rng);
    match config.profile {
        Profile::Mooncake => {
            times.into_iter().map(|t| (t / MOONCAKE_GROUP_MS).floor() * MOONCAKE_GROUP_MS).collect()
        }
        _ => times,
    }
}

/// Arrivals at a rate that is piecewise linear over the duration, by inverting its integral: unit-rate
/// arrivals, Poisson or even, mapped through it.
fn along(
    shape: &[(f64, f64)],
    rps: Option<f64>,
    duration_ms: f64,
    even: bool,
    rng: &mut SmallRng,
) -> Vec<f64> {
    let usable = |r: f64| if r.is_finite() { r.max(0.0) } else { 0.0 };
    let mean: f64 =
        shape.windows(2).map(|w| (w[1].0 - w[0].0) * (usable(w[0].1) + usable(w[1].1)) / 2.0).sum();
    let scale = match rps {
        Some(wanted) if mean > 0.0 => usable(wanted) / mean,
        _ => 1.0,
    };
    let mut times = Vec::new();
    let mut next: f64 = if even { 0.5 } else { rng.sample(Exp1) };
    let mut before = 0.0;
    for w in shape.windows(2) {
        let (start_ms, length_ms) = (w[0].0 * duration_ms, (w[1].0 - w[0].0) * duration_ms);
        let (r0, r1) = (usable(w[0].1) * scale / 1000.0, usable(w[1].1) * scale / 1000.0);
        let area = (r0 + r1) / 2.0 * length_ms;
        while next <= before + area && times.len() < MAX_REQUESTS {
            // Solve r0 x + (r1 − r0) x² / (2 length) = next − before for x, in the form that is stable as r1 →
            // r0.
            let wanted = next - before;
            let slope = (r1 - r0) / length_ms.max(f64::MIN_POSITIVE);
            let x =
                2.0 * wanted / (r0 + (r0 * r0 + 2.0 * slope * wanted).max(0.0).sqrt()).max(f64::MIN_POSITIVE);
            times.push(start_ms + x.clamp(0.0, length_ms));
            next += if even { 1.0 } else { rng.sample::<f64, _>(Exp1) };
        }
        before += area;
    }
    times
}

/// Arrivals with the code trace's gaps, at a mean rate if one is wanted.
fn bursty(rps: Option<f64>, duration_ms: f64, rng: &mut SmallRng) -> Vec<f64> {
    let mean_gap_s: f64 = CODE_GAPS
        .windows(2)
        .map(|w| (w[1].0 - w[0].0) * (w[1].1 - w[0].1) / (w[1].1.ln() - w[0].1.ln()))
        .sum();
    let scale = match rps {
        Some(wanted) if wanted.is_finite() && wanted > 0.0 => 1.0 / (wanted * mean_gap_s),
        Some(_) => return Vec::new(),
        None => 1.0,
    };
    let mut times = Vec::new();
    let mut at_ms = 0.0;
    while at_ms < duration_ms && times.len() < MAX_REQUESTS {
        times.push(at_ms);
        at_ms += sample(CODE_GAPS, rng) * scale * 1000.0;
    }
    times
}

/// Conversations that later requests continue.
#[derive(Default)]
struct Sessions {
    open: Vec<Vec<u64>>,
    next_block: u64,
}

impl Sessions {
    /// Blocks for a prompt: all of them start with the system prompt (block 0); some go on from an earlier
    /// prompt.
    fn blocks(&mut self, input_tokens: u32, rng: &mut SmallRng) -> Vec<u64> {
        let wanted = input_tokens.div_ceil(TRACE_BLOCK_TOKENS) as usize;
        let mut blocks = vec![0];
        let mut replaces = None;
        if rng.random_bool(MOONCAKE_CONTINUED) {
            // The longest of a few open conversations that this prompt can contain whole.
            let fits = (0..12)
                .filter(|_| !self.open.is_empty())
                .map(|_| rng.random_range(0..self.open.len()))
                .filter(|i| self.open[*i].len() <= wanted)
                .max_by_key(|i| self.open[*i].len());
            if let Some(i) = fits {
                // Its last block was partial, and is another one now that text follows.
                let whole = self.open[i].len().saturating_sub(1).max(1);
                blocks = self.open[i][..whole].to_vec();
                replaces = Some(i);
            }
        }
        while blocks.len() < wanted {
            self.next_block += 1;
            blocks.push(self.next_block);
        }
        blocks.truncate(wanted.max(1));
        match replaces {
            Some(i) => self.open[i] = blocks.clone(),
            None if self.open.len() < MOONCAKE_OPEN_SESSIONS => self.open.push(blocks.clone()),
            None => {
                let i = rng.random_range(0..self.open.len());
                self.open[i] = blocks.clone();
            }
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn make(profile: Profile, duration_s: f64) -> Trace {
        generate(&GeneratorConfig::new(profile, duration_s, 7))
    }

    #[rstest]
    // Public traces: rate, mean input, mean output.
    #[case("azure-conv", 5.53, 1155.0, 211.0)]
    #[case("azure-code", 2.57, 2048.0, 27.9)]
    #[case("mooncake", 3.40, 12_035.0, 343.0)]
    fn generated_shapes_are_near_the_public_ones(
        #[case] name: &str,
        #[case] rps: f64,
        #[case] input: f64,
        #[case] output: f64,
    ) {
        let s = make(name.parse().unwrap(), 3600.0 * 4.0).stats();
        for (what, got, wanted) in [
            ("rps", s.rps, rps),
            ("input", s.mean_input_tokens, input),
            ("output", s.mean_output_tokens, output),
        ] {
            assert!((got / wanted - 1.0).abs() < 0.15, "{name} {what}: {got} instead of {wanted}");
        }
    }

    #[test]
    fn burstiness_and_sharing_are_near_the_public_ones() {
        let conv = make(Profile::AzureConv, 3600.0).stats();
        assert!((0.95..1.25).contains(&conv.gap_cv), "{conv:?}");
        let code = make(Profile::AzureCode, 3600.0 * 8.0).stats();
        assert!((10.0..16.0).contains(&code.gap_cv), "{code:?}");
        let mooncake = make(Profile::Mooncake, 3600.0).stats();
        assert!((0.30..0.44).contains(&mooncake.shareable_blocks), "{mooncake:?}");
    }

    #[test]
    fn same_seed_same_trace() {
        let config = GeneratorConfig::new(Profile::Mooncake, 60.0, 3);
        assert_eq!(generate(&config), generate(&config));
        assert_ne!(generate(&config), generate(&GeneratorConfig { seed: 4, ..config.clone() }));
    }

    #[test]
    fn rates_follow_the_profile() {
        let count = |t: &Trace, a: f64, b: f64| t.slice(a * 1000.0, (b - a) * 1000.0).requests.len() as f64;
        let flash = make(Profile::FlashCrowd { base_rps: 5.0, peak_rps: 50.0 }, 300.0);
        assert!((count(&flash, 100.0, 200.0) / 5000.0 - 1.0).abs() < 0.1);
        assert!((count(&flash, 0.0, 100.0) / 500.0 - 1.0).abs() < 0.2);
        let mut config = GeneratorConfig::new(Profile::Ramp { from_rps: 0.0, to_rps: 20.0 }, 100.0, 1);
        config.arrivals = Arrivals::Even;
        let ramp = generate(&config);
        assert_eq!(ramp.requests.len(), 1000);
        assert_eq!(count(&ramp, 0.0, 50.0), 250.0);
        let stairs = make(Profile::Staircase { steps_rps: vec![0.0, 100.0] }, 100.0);
        assert_eq!(count(&stairs, 0.0, 50.0), 0.0);
        assert!((count(&stairs, 50.0, 100.0) / 5000.0 - 1.0).abs() < 0.1);
    }

    #[test]
    fn rate_and_lengths_can_be_chosen() {
        let mut config = GeneratorConfig::new(Profile::AzureCode, 36_000.0, 1);
        config.rps = Some(10.0);
        config.input = Some(LengthDistribution { mean_tokens: 100.0, p95_tokens: 300.0 });
        let s = generate(&config).stats();
        assert!(
            (s.rps / 10.0 - 1.0).abs() < 0.15 && (s.mean_input_tokens / 100.0 - 1.0).abs() < 0.05,
            "{s:?}"
        );
    }

    #[test]
    fn nonsense_gives_an_empty_trace() {
        for duration in [0.0, -5.0, f64::NAN, f64::INFINITY] {
            assert!(make(Profile::Constant { rps: 5.0 }, duration).requests.is_empty());
        }
        assert!(make(Profile::Constant { rps: f64::NAN }, 10.0).requests.is_empty());
        assert!(make(Profile::Staircase { steps_rps: vec![] }, 10.0).requests.is_empty());
        assert_eq!("wave".parse::<Profile>().unwrap_err().0, "wave");
    }
}
