//! Traffic traces: requests with arrival times and lengths.
//!
//! [`read`] reads the two public formats (Azure's CSV, Mooncake's JSON lines), [`generate`] makes traces of the
//! same shapes from a seed, so that nothing needs a download.

mod generate;
mod read;

pub use generate::{Arrivals, GeneratorConfig, Profile, UnknownProfile, generate};
pub use read::{ReadOptions, TraceError, TraceFormat, parse, read};

use serde::{Deserialize, Serialize};

/// Tokens in one block of [`TraceRequest::blocks`], as in Mooncake's traces.
pub const TRACE_BLOCK_TOKENS: u32 = 512;

/// One request of a trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceRequest {
    /// Arrival, milliseconds after the trace's start.
    pub at_ms: f64,
    /// Prompt length, tokens; at least 1.
    pub input_tokens: u32,
    /// Answer length, tokens; at least 1.
    pub output_tokens: u32,
    /// Identities of the prompt's blocks of [`TRACE_BLOCK_TOKENS`] tokens, the last one possibly partial: two
    /// requests share the prefix over which these agree. Empty: nothing known, nothing shared.
    pub blocks: Vec<u64>,
}

/// A trace: requests in order of arrival.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Trace {
    /// Name, e.g. the file it came from.
    pub name: String,
    /// Requests, ascending by `at_ms`.
    pub requests: Vec<TraceRequest>,
    /// What a person should know about how it was read ("3 timestamps were out of order: sorted").
    pub notes: Vec<String>,
}

/// Summary figures of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct TraceStats {
    /// Requests.
    pub requests: usize,
    /// First to last arrival, milliseconds.
    pub duration_ms: f64,
    /// Requests per second over that time.
    pub rps: f64,
    /// Mean prompt length, tokens.
    pub mean_input_tokens: f64,
    /// Mean answer length, tokens.
    pub mean_output_tokens: f64,
    /// Coefficient of variation of the gaps between arrivals (1 = Poisson).
    pub gap_cv: f64,
    /// Share of prompt blocks that a cache of unlimited size would have held.
    pub shareable_blocks: f64,
}

/// A trace from what a person wrote: a file's path, or a [`Profile`]'s name if no such file exists, generated
/// as `generated` says (its own profile is replaced).
///
/// # Errors
/// As [`read`]; a name that is neither is an error of the file.
pub fn open(spec: &str, options: &ReadOptions, generated: &GeneratorConfig) -> Result<Trace, TraceError> {
    let path = std::path::Path::new(spec);
    match spec.parse::<Profile>() {
        Ok(profile) if !path.exists() => Ok(generate(&GeneratorConfig { profile, ..generated.clone() })),
        _ => read(path, options),
    }
}

impl Trace {
    /// First to last arrival, milliseconds.
    pub fn duration_ms(&self) -> f64 {
        match (self.requests.first(), self.requests.last()) {
            (Some(a), Some(b)) => b.at_ms - a.at_ms,
            _ => 0.0,
        }
    }

    /// The requests that arrive in `[start_ms, start_ms + duration_ms)`, with times counted from `start_ms`.
    pub fn slice(&self, start_ms: f64, duration_ms: f64) -> Self {
        let end_ms = start_ms + duration_ms;
        let from = self.requests.partition_point(|r| r.at_ms < start_ms);
        let to = self.requests.partition_point(|r| r.at_ms < end_ms).max(from);
        let requests = self.requests[from..to]
            .iter()
            .map(|r| TraceRequest { at_ms: r.at_ms - start_ms, ..r.clone() })
            .collect();
        Self { name: self.name.clone(), requests, notes: self.notes.clone() }
    }

    /// The same requests arriving `factor` times as fast (2 = twice the rate in half the time). A factor that
    /// is not a positive number leaves the trace as it is.
    pub fn scale_rate(&self, factor: f64) -> Self {
        let mut scaled = self.clone();
        if factor.is_finite() && factor > 0.0 {
            for r in &mut scaled.requests {
                r.at_ms /= factor;
            }
        }
        scaled
    }

    /// Summary figures.
    pub fn stats(&self) -> TraceStats {
        let n = self.requests.len();
        if n == 0 {
            return TraceStats::default();
        }
        let count = n as f64;
        let duration_ms = self.duration_ms();
        let gaps: Vec<f64> = self.requests.windows(2).map(|w| w[1].at_ms - w[0].at_ms).collect();
        let gap_mean = gaps.iter().sum::<f64>() / gaps.len().max(1) as f64;
        let gap_var = gaps.iter().map(|g| (g - gap_mean).powi(2)).sum::<f64>() / gaps.len().max(1) as f64;
        let mut seen = std::collections::HashSet::new();
        let (mut hits, mut blocks) = (0usize, 0usize);
        for r in &self.requests {
            hits += r.blocks.iter().take_while(|b| seen.contains(*b)).count();
            blocks += r.blocks.len();
            seen.extend(r.blocks.iter().copied());
        }
        TraceStats {
            requests: n,
            duration_ms,
            rps: if duration_ms > 0.0 { (count - 1.0).max(0.0) * 1000.0 / duration_ms } else { 0.0 },
            mean_input_tokens: self.requests.iter().map(|r| f64::from(r.input_tokens)).sum::<f64>() / count,
            mean_output_tokens: self.requests.iter().map(|r| f64::from(r.output_tokens)).sum::<f64>() / count,
            gap_cv: if gap_mean > 0.0 { gap_var.sqrt() / gap_mean } else { 0.0 },
            shareable_blocks: hits as f64 / blocks.max(1) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(times: &[f64]) -> Trace {
        let requests = times
            .iter()
            .map(|&at_ms| TraceRequest { at_ms, input_tokens: 10, output_tokens: 2, blocks: vec![] })
            .collect();
        Trace { name: "t".into(), requests, notes: vec![] }
    }

    #[test]
    fn slice_takes_a_half_open_window_and_restarts_the_clock() {
        let s = trace(&[0.0, 10.0, 20.0, 30.0]).slice(10.0, 20.0);
        assert_eq!(s.requests.iter().map(|r| r.at_ms).collect::<Vec<_>>(), [0.0, 10.0]);
        assert!(trace(&[0.0]).slice(5.0, -10.0).requests.is_empty());
    }

    #[test]
    fn scale_rate_divides_times_and_ignores_nonsense() {
        let t = trace(&[0.0, 10.0]);
        assert_eq!(t.scale_rate(2.0).requests[1].at_ms, 5.0);
        assert_eq!(t.scale_rate(0.0), t);
        assert_eq!(t.scale_rate(f64::NAN), t);
    }

    #[test]
    fn a_spec_is_a_file_or_a_profile() {
        let generated = GeneratorConfig::new(Profile::AzureConv, 60.0, 1);
        let trace = open("flash-crowd", &ReadOptions::default(), &generated).unwrap();
        assert!(trace.name.starts_with("flash-crowd"));
        let e = open("flash-mob", &ReadOptions::default(), &generated).unwrap_err().to_string();
        assert!(e.contains("flash-mob") && e.contains("azure-conv"), "{e}");
    }

    #[test]
    fn stats_of_an_even_trace() {
        let s = trace(&[0.0, 100.0, 200.0]).stats();
        assert_eq!((s.requests, s.rps, s.gap_cv), (3, 10.0, 0.0));
        assert_eq!(Trace::default().stats(), TraceStats::default());
    }
}
