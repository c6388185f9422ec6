//! What a replay found.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use plimsoll_fleet::{Objective, Percentile, Slo};
use serde::{Deserialize, Serialize};

use super::ReplayConfig;
use super::measure::{Measured, Outcome, RequestRecord};

/// Exact percentiles of a set of values (nearest rank), in the set's unit. All zero where the set is empty.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Percentiles {
    /// Number of values.
    pub count: usize,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

/// The value of which `percentile` percent of the sorted values are at most as large (nearest rank).
fn nearest_rank(sorted: &[f64], percentile: f64) -> f64 {
    let rank = (percentile / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
}

impl Percentiles {
    fn of_sorted(sorted: &[f64]) -> Self {
        Self {
            count: sorted.len(),
            mean: sorted.iter().sum::<f64>() / sorted.len().max(1) as f64,
            p50: nearest_rank(sorted, 50.0),
            p90: nearest_rank(sorted, 90.0),
            p99: nearest_rank(sorted, 99.0),
            max: sorted.last().copied().unwrap_or(0.0),
        }
    }
}

/// One latency over all answered requests, and its objective.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Percentiles, reported milliseconds.
    pub ms: Percentiles,
    /// The objective, if there is one.
    pub objective: Option<Objective>,
    /// The latency at the objective's own percentile, reported milliseconds.
    pub at_objective_ms: Option<f64>,
    /// Share of all requests (failed ones miss) within the objective's limit, 0–1.
    pub attainment: Option<f64>,
}

impl LatencySummary {
    fn new(mut values: Vec<f64>, objective: Option<Objective>, met: usize, requests: usize) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            ms: Percentiles::of_sorted(&values),
            objective,
            at_objective_ms: objective
                .filter(|_| !values.is_empty())
                .map(|o| nearest_rank(&values, o.percentile.value())),
            attainment: objective.map(|_| met as f64 / requests.max(1) as f64),
        }
    }

    /// Whether the objective's percentile holds, failed requests counted as misses. `None` without an
    /// objective.
    pub fn met(&self) -> Option<bool> {
        Some(self.attainment? >= self.objective?.percentile.fraction())
    }
}

/// Failures of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ErrorCount {
    /// How many.
    pub count: usize,
    /// What the first of them said.
    pub example: String,
}

/// The result of a replay. Latencies and token rates are in reported time: wall time multiplied by
/// `time_scale`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReplayReport {
    /// The trace's name.
    pub trace: String,
    /// The address.
    pub url: String,
    /// The model.
    pub model: String,
    /// Requests in the trace.
    pub total: usize,
    /// Requests that ended: answered and failed (fewer than `total` after an interruption).
    pub requests: usize,
    /// Requests answered whole.
    pub answered: usize,
    /// Failures by kind.
    pub errors: BTreeMap<String, ErrorCount>,
    /// How many times as fast as the trace requests were sent.
    pub speed: f64,
    /// Reported milliseconds in a wall millisecond.
    pub time_scale: f64,
    /// Wall time, seconds.
    pub wall_s: f64,
    /// Requests ended per second of wall time.
    pub wall_rps: f64,
    /// How late requests left, wall milliseconds.
    pub lag_ms: Percentiles,
    /// Prompt tokens of answered requests, as the endpoint counted them.
    pub input_tokens: u64,
    /// Of these, found in a prefix cache.
    pub cached_tokens: u64,
    /// Answer tokens.
    pub output_tokens: u64,
    /// Prompt tokens per reported second.
    pub input_tokens_per_second: f64,
    /// Answer tokens per reported second.
    pub output_tokens_per_second: f64,
    /// Requests that met every objective, per reported second.
    pub goodput_rps: f64,
    /// Time to first token.
    pub ttft: LatencySummary,
    /// Time per output token after the first, a request's own mean.
    pub tpot: LatencySummary,
    /// From sending to the last token.
    pub e2e: LatencySummary,
    /// Share of all requests that met every objective (failed ones do not), 0–1; `None` without objectives.
    pub attainment: Option<f64>,
}

fn share_of(met: usize, all: usize) -> f64 {
    met as f64 / all.max(1) as f64
}

impl ReplayReport {
    pub(super) fn new(config: &ReplayConfig, records: &[RequestRecord], wall: Duration) -> Self {
        let scale = config.time_scale;
        let mut errors: BTreeMap<String, ErrorCount> = BTreeMap::new();
        for failure in records.iter().filter_map(RequestRecord::failure) {
            let entry = errors.entry(failure.kind.clone()).or_default();
            if entry.count == 0 {
                entry.example.clone_from(&failure.detail);
            }
            entry.count += 1;
        }
        let answered: Vec<Measured> = records
            .iter()
            .filter_map(|r| match &r.outcome {
                Outcome::Answered(m) => Some(Measured {
                    ttft_ms: m.ttft_ms * scale,
                    tpot_ms: m.tpot_ms.map(|t| t * scale),
                    e2e_ms: m.e2e_ms * scale,
                    ..*m
                }),
                Outcome::Failed(_) => None,
            })
            .collect();
        let met = |slo: Slo| answered.iter().filter(|m| slo.met_by(m.ttft_ms, m.tpot_ms, m.e2e_ms)).count();
        let Slo { ttft, tpot, e2e } = config.slo;
        let none = Slo::default();
        let requests = records.len();
        let mut lags: Vec<f64> = records.iter().map(|r| r.lag_ms).collect();
        lags.sort_by(f64::total_cmp);
        let reported_s = (wall.as_secs_f64() * scale).max(1e-9);
        let sum = |f: fn(&Measured) -> u64| answered.iter().map(f).sum::<u64>();
        let (input_tokens, output_tokens) = (sum(|m| m.input_tokens), sum(|m| m.output_tokens));
        let all_met = met(config.slo);
        Self {
            trace: config.trace.name.clone(),
            url: config.url.clone(),
            model: config.model.clone(),
            total: config.trace.requests.len(),
            requests,
            answered: answered.len(),
            errors,
            speed: config.speed,
            time_scale: scale,
            wall_s: wall.as_secs_f64(),
            wall_rps: requests as f64 / wall.as_secs_f64().max(1e-9),
            lag_ms: Percentiles::of_sorted(&lags),
            input_tokens,
            cached_tokens: sum(|m| m.cached_tokens),
            output_tokens,
            input_tokens_per_second: input_tokens as f64 / reported_s,
            output_tokens_per_second: output_tokens as f64 / reported_s,
            goodput_rps: all_met as f64 / reported_s,
            ttft: LatencySummary::new(
                answered.iter().map(|m| m.ttft_ms).collect(),
                ttft,
                met(Slo { ttft, ..none }),
                requests,
            ),
            tpot: LatencySummary::new(
                answered.iter().filter_map(|m| m.tpot_ms).collect(),
                tpot,
                met(Slo { tpot, ..none }),
                requests,
            ),
            e2e: LatencySummary::new(
                answered.iter().map(|m| m.e2e_ms).collect(),
                e2e,
                met(Slo { e2e, ..none }),
                requests,
            ),
            attainment: (!config.slo.is_empty()).then(|| share_of(all_met, requests)),
        }
    }

    /// Requests that failed.
    pub fn failed(&self) -> usize {
        self.requests - self.answered
    }

    /// Whether every objective holds at its percentile, failures counted as misses. True without objectives.
    pub fn met(&self) -> bool {
        [&self.ttft, &self.tpot, &self.e2e].iter().all(|l| l.met() != Some(false))
    }
}

/// `1234.5` → `1,235`; below 10 with one decimal.
fn number(value: f64) -> String {
    if value < 9.95 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

fn ms(value: f64) -> String {
    format!("{} ms", number(value))
}

fn percentile_name(p: Percentile) -> String {
    p.to_string()
}

impl fmt::Display for ReplayReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}/{} requests   rate {} rps   errors {}   {}",
            number(self.requests as f64).trim_end_matches(".0"),
            number(self.total as f64).trim_end_matches(".0"),
            number(self.wall_rps),
            self.failed(),
            match self.wall_s {
                s if s < 120.0 => format!("{s:.1} s"),
                s => format!("{:.0} min {:.0} s", (s / 60.0).floor(), s % 60.0),
            },
        )?;
        let with_objectives = self.attainment.is_some();
        write!(f, "{:<5}{:>11}{:>11}{:>11}", "", "p50", "p90", "p99")?;
        writeln!(
            f,
            "{}",
            if with_objectives { format!("{:>22}{:>13}", "objective", "attainment") } else { String::new() }
        )?;
        for (name, l) in [("TTFT", &self.ttft), ("TPOT", &self.tpot), ("E2E", &self.e2e)] {
            if l.ms.count == 0 {
                write!(f, "{name:<5}{:>11}{:>11}{:>11}", "–", "–", "–")?;
            } else {
                write!(f, "{name:<5}{:>11}{:>11}{:>11}", ms(l.ms.p50), ms(l.ms.p90), ms(l.ms.p99))?;
            }
            if let (Some(o), Some(attainment)) = (l.objective, l.attainment) {
                let found = l.at_objective_ms.map_or_else(|| "–".to_owned(), number);
                let mark = if l.met() == Some(true) { "✓" } else { "✗" };
                let objective = format!("{} {found}/{}", percentile_name(o.percentile), ms(o.ms));
                write!(f, "{objective:>22}{:>10.1} % {mark}", attainment * 100.0)?;
            }
            writeln!(f)?;
        }
        if let Some(attainment) = self.attainment {
            writeln!(
                f,
                "all objectives met by {:.1} % of requests, goodput {} rps",
                attainment * 100.0,
                number(self.goodput_rps)
            )?;
        }
        writeln!(
            f,
            "tokens/s in {}, out {}; prompt tokens cached {:.0} %; sent late by p50 {}, p99 {}",
            number(self.input_tokens_per_second),
            number(self.output_tokens_per_second),
            100.0 * self.cached_tokens as f64 / self.input_tokens.max(1) as f64,
            ms(self.lag_ms.p50),
            ms(self.lag_ms.p99),
        )?;
        if (self.time_scale - 1.0).abs() > 1e-9 {
            writeln!(
                f,
                "latencies, goodput and tokens/s are in virtual time: 1 ms of wall time counts as {} ms",
                number(self.time_scale).trim_end_matches(".0")
            )?;
        }
        for (kind, e) in &self.errors {
            writeln!(f, "error {kind}: {}×, first: {}", e.count, e.example)?;
        }
        if self.requests < self.total {
            writeln!(
                f,
                "stopped early: {} of {} requests have no result",
                self.total - self.requests,
                self.total
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::measure::Failure;
    use super::*;
    use crate::trace::Trace;

    fn answered(ttft_ms: f64, tpot_ms: Option<f64>) -> RequestRecord {
        let outcome = Outcome::Answered(Measured {
            ttft_ms,
            tpot_ms,
            e2e_ms: ttft_ms + 100.0,
            input_tokens: 100,
            cached_tokens: 25,
            output_tokens: 10,
        });
        RequestRecord { lag_ms: 1.0, outcome }
    }

    fn config() -> ReplayConfig {
        let mut config = ReplayConfig::new("http://x", "m", Trace::default());
        config.slo = Slo {
            ttft: Some(Objective { percentile: Percentile::P95, ms: 50.0 }),
            tpot: Some(Objective { percentile: Percentile::P50, ms: 10.0 }),
            e2e: None,
        };
        config
    }

    #[test]
    fn failures_miss_every_objective() {
        let mut records: Vec<_> =
            (1..=9).map(|i| answered(f64::from(i) * 10.0, Some(f64::from(i)))).collect();
        let failed = Outcome::Failed(Failure::new("HTTP 503", "busy"));
        records.push(RequestRecord { lag_ms: 0.0, outcome: failed });
        let r = ReplayReport::new(&config(), &records, Duration::from_secs(2));
        assert_eq!((r.requests, r.answered, r.failed()), (10, 9, 1));
        assert_eq!(r.ttft.attainment, Some(0.5));
        assert_eq!(r.tpot.attainment, Some(0.9));
        assert_eq!(r.attainment, Some(0.5));
        assert_eq!((r.ttft.met(), r.tpot.met(), r.met()), (Some(false), Some(true), false));
        assert_eq!(r.ttft.at_objective_ms, Some(90.0));
        assert_eq!(r.ttft.ms.p50, 50.0);
        assert_eq!(r.errors["HTTP 503"].count, 1);
        assert_eq!((r.output_tokens_per_second, r.goodput_rps), (45.0, 2.5));
        let table = r.to_string();
        for part in [
            "p95 90.0",
            "p95 90/50 ms",
            "50.0 % ✗",
            "errors 1",
            "error HTTP 503: 1×, first: busy",
            "cached 25 %",
        ]
        .iter()
        .skip(1)
        {
            assert!(table.contains(part), "{part} not in\n{table}");
        }
    }

    #[test]
    fn time_scale_multiplies_latencies_and_divides_rates() {
        let mut config = config();
        config.time_scale = 20.0;
        let r = ReplayReport::new(&config, &[answered(2.0, Some(0.4))], Duration::from_secs(1));
        assert_eq!((r.ttft.ms.p50, r.tpot.ms.p50, r.output_tokens_per_second), (40.0, 8.0, 0.5));
        assert_eq!(r.attainment, Some(1.0));
        assert!(r.to_string().contains("counts as 20 ms"), "{r}");
    }

    #[test]
    fn an_empty_report_prints() {
        let r = ReplayReport::new(&config(), &[], Duration::ZERO);
        assert!(r.to_string().contains('–'), "{r}");
        let json = serde_json::to_string(&r).unwrap();
        assert_eq!(serde_json::from_str::<ReplayReport>(&json).unwrap(), r);
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            ["0.0", "9.9", "10", "1,235", "1,234,568"],
            [0.0, 9.94, 9.96, 1234.5f64 + 0.1, 1_234_567.8].map(number).each_ref().map(String::as_str)
        );
    }
}
