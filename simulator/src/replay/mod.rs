//! Replays a trace against an OpenAI-compatible endpoint: an open-loop load generator.
//!
//! Requests leave at the trace's times divided by [`ReplayConfig::speed`], whatever the answers do: a slow
//! endpoint is not spared. How late they leave is measured and reported; a request that would exceed
//! [`ReplayConfig::max_in_flight`] is not sent and counts as an error.
//!
//! **Two factors.** `speed` says how fast the trace is sent. `time_scale` says how latencies are reported:
//! measured wall time times `time_scale`. Against a real system leave `time_scale` at 1: `speed` 20 is then 20
//! times the load. Against simulated engines that run 20 times as fast as real ones, set both to 20: the load
//! is the trace's own as the engines see it, and the report is in the engines' (virtual) milliseconds and
//! seconds. Delays of the client, the network and the gateway are then multiplied too.

pub(crate) mod http;
pub(crate) mod measure;
mod prompt;
mod report;

use std::time::Duration;

use plimsoll_fleet::Slo;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use report::{ErrorCount, LatencySummary, Percentiles, ReplayReport};

use self::http::Target;
use self::measure::{Failure, Outcome, RequestRecord};
use crate::trace::Trace;

/// Which endpoint requests go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayEndpoint {
    /// `/v1/chat/completions`, one user message.
    #[default]
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// How answers get the trace's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputLength {
    /// `max_tokens` and vLLM's `ignore_eos`: exactly the trace's length.
    #[default]
    Exact,
    /// `max_tokens` alone, for endpoints that refuse `ignore_eos`: at most the trace's length.
    AtMost,
}

/// What to replay, where, and how.
#[derive(Debug, Clone)]
pub struct ReplayConfig {
    /// Base address, `http://host:port/v1`; the `/v1` may be left out.
    pub url: String,
    /// Model in the requests.
    pub model: String,
    /// Sent as bearer token.
    pub api_key: Option<String>,
    /// The requests.
    pub trace: Trace,
    /// How many times as fast as the trace says requests are sent.
    pub speed: f64,
    /// Reported milliseconds in a measured one; see the module's text.
    pub time_scale: f64,
    /// Most requests under way at once; more are not sent and count as errors.
    pub max_in_flight: usize,
    /// Longest wait for a whole answer, wall time.
    pub timeout: Duration,
    /// Headers sent with each request.
    pub headers: Vec<(String, String)>,
    /// Objectives to report attainment of, in reported milliseconds.
    pub slo: Slo,
    /// Which endpoint.
    pub endpoint: ReplayEndpoint,
    /// How answers get their length.
    pub output_length: OutputLength,
    /// Prompts longer than this are shortened to it, tokens (for models with a short context).
    pub max_input_tokens: Option<u32>,
    /// Seed of the prompts' words. Another seed meets no prefix that an earlier replay left in caches.
    pub seed: u64,
    /// When cancelled, no more requests are sent, those under way are dropped, and the report covers the rest.
    pub stop: CancellationToken,
}

impl ReplayConfig {
    /// A replay at the trace's own speed: chat, exact lengths, 4,096 requests in flight, five minutes'
    /// patience.
    pub fn new(url: impl Into<String>, model: impl Into<String>, trace: Trace) -> Self {
        Self {
            url: url.into(),
            model: model.into(),
            api_key: None,
            trace,
            speed: 1.0,
            time_scale: 1.0,
            max_in_flight: 4096,
            timeout: Duration::from_secs(300),
            headers: Vec::new(),
            slo: Slo::default(),
            endpoint: ReplayEndpoint::default(),
            output_length: OutputLength::default(),
            max_input_tokens: None,
            seed: 0,
            stop: CancellationToken::new(),
        }
    }
}

/// Why a replay could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A setting cannot be used.
    #[error("{field}: {problem}")]
    Invalid {
        /// The setting.
        field: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Nothing answers at the address.
    #[error("{url}: {problem}; is the endpoint up, and is this its address?")]
    Unreachable {
        /// The address.
        url: String,
        /// What happened.
        problem: String,
    },
    /// The endpoint does not serve the model.
    #[error("{url} does not serve model {model:?}; it serves: {served}")]
    UnknownModel {
        /// The address.
        url: String,
        /// The model asked for.
        model: String,
        /// The models there are.
        served: String,
    },
}

/// Where a replay stands.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ReplayProgress {
    /// Requests ended, well or not.
    pub done: usize,
    /// Requests in the trace.
    pub total: usize,
    /// Requests under way.
    pub in_flight: usize,
    /// Requests that failed.
    pub errors: usize,
    /// Requests ended per second of wall time, over about the last two seconds.
    pub rate_rps: f64,
    /// Wall time since the start, seconds.
    pub elapsed_s: f64,
    /// How late the latest request left, wall milliseconds.
    pub lag_ms: f64,
}

/// The load generator.
#[derive(Debug, Clone, Copy)]
pub struct Replay;

/// Between two calls of the progress function.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Progress ticks that the rate looks back over.
const RATE_TICKS: usize = 20;

impl Replay {
    /// Replays a trace; `progress` is called about ten times a second and at the end.
    ///
    /// # Errors
    /// [`ReplayError`] if a setting cannot be used, nothing answers, or the model is not served. Errors of
    /// single requests are counted in the report.
    pub async fn run(
        config: ReplayConfig,
        progress: impl Fn(ReplayProgress),
    ) -> Result<ReplayReport, ReplayError> {
        validate(&config)?;
        let key = config.api_key.as_deref();
        let target = Target::new(&config.url, config.endpoint, key, &config.headers)?;
        target.check_model(&config.url, &config.model).await?;
        let run = send_all(&config, &target, progress).await;
        Ok(ReplayReport::new(&config, &run.records, run.wall))
    }
}

fn validate(config: &ReplayConfig) -> Result<(), ReplayError> {
    let invalid = |field, problem: String| Err(ReplayError::Invalid { field, problem });
    for (field, value) in [("speed", config.speed), ("time scale", config.time_scale)] {
        if !(value.is_finite() && value > 0.0) {
            return invalid(field, format!("{value} is not a positive number, such as 1 or 20"));
        }
    }
    if config.trace.requests.is_empty() {
        return invalid("trace", format!("{} has no requests in the chosen part", config.trace.name));
    }
    if config.max_in_flight == 0 {
        return invalid("max in flight", "0 sends nothing; use at least 1".to_owned());
    }
    if config.model.is_empty() {
        return invalid("model", "is empty; give the name under which the model is served".to_owned());
    }
    Ok(())
}

struct Run {
    records: Vec<RequestRecord>,
    wall: Duration,
}

/// Sends each request at its time and collects what became of it.
async fn send_all(config: &ReplayConfig, target: &Target, progress: impl Fn(ReplayProgress)) -> Run {
    let total = config.trace.requests.len();
    let first_ms = config.trace.requests.first().map_or(0.0, |r| r.at_ms);
    let mut records: Vec<RequestRecord> = Vec::with_capacity(total);
    let mut under_way: JoinSet<RequestRecord> = JoinSet::new();
    let mut state = ReplayProgress { total, ..ReplayProgress::default() };
    let mut recent = std::collections::VecDeque::with_capacity(RATE_TICKS + 1);
    let start = Instant::now();
    let mut tick = tokio::time::interval(PROGRESS_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut next = 0;
    loop {
        let due = config.trace.requests.get(next).map(|r| {
            let after_s = (r.at_ms - first_ms).max(0.0) / 1000.0 / config.speed;
            start + Duration::try_from_secs_f64(after_s).unwrap_or(Duration::MAX / 4)
        });
        if due.is_none() && under_way.is_empty() {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep_until(due.unwrap_or(start)), if due.is_some() => {
                let (Some(due), Some(request)) = (due, config.trace.requests.get(next)) else { continue };
                let lag_ms = due.elapsed().as_secs_f64() * 1000.0;
                state.lag_ms = lag_ms;
                if under_way.len() >= config.max_in_flight {
                    let detail = format!("{} requests were under way", under_way.len());
                    let outcome = Outcome::Failed(Failure::new("in-flight limit", detail));
                    records.push(RequestRecord { lag_ms, outcome });
                    state.errors += 1;
                } else {
                    let (target, part) = (target.clone(), config.clone_for_request());
                    under_way.spawn(measure::measure(target, part, request.clone(), next as u64, lag_ms));
                }
                next += 1;
            }
            Some(ended) = under_way.join_next() => {
                match ended {
                    Ok(record) => {
                        state.errors += usize::from(record.failure().is_some());
                        records.push(record);
                    }
                    Err(error) => tracing::warn!(%error, "a request's task failed"),
                }
            }
            _ = tick.tick() => {
                state.done = records.len();
                state.in_flight = under_way.len();
                let elapsed = start.elapsed().as_secs_f64();
                recent.push_back((elapsed, state.done));
                if recent.len() > RATE_TICKS {
                    recent.pop_front();
                }
                if let (Some((t0, d0)), Some((t1, d1))) = (recent.front(), recent.back())
                    && t1 > t0
                {
                    state.rate_rps = (d1 - d0) as f64 / (t1 - t0);
                }
                state.elapsed_s = elapsed;
                progress(state);
            }
            () = config.stop.cancelled() => {
                under_way.shutdown().await;
                break;
            }
        }
    }
    let wall = start.elapsed();
    state.done = records.len();
    state.in_flight = 0;
    state.elapsed_s = wall.as_secs_f64();
    progress(state);
    Run { records, wall }
}

#[cfg(test)]
mod tests;
