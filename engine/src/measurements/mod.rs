//! Measurements as text: a CSV format, documented column by column in `docs/engine-model.md`.

mod parse;
mod write;

use std::sync::Arc;

use plimsoll_fleet::Calibration;

use crate::calibrate::{Measured, Observation, Subject, Workload};
use crate::sim::{Replica, SimPolicy, requests_within, simulate_closed};
use crate::{EngineConfig, Scheduling};

pub use parse::parse;
pub use write::write;

/// The columns, in the order in which they are written. Files may have them in any order, leave out optional ones,
/// and have no others.
pub const COLUMNS: [&str; 32] = [
    "engine",
    "engine_version",
    "model",
    "gpu",
    "weights",
    "kv",
    "tensor_parallel",
    "pipeline_parallel",
    "data_parallel",
    "expert_parallel",
    "memory_utilisation",
    "max_running",
    "max_batched_tokens",
    "block_tokens",
    "cuda_graphs",
    "workload",
    "concurrency",
    "rps",
    "batch",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "context_tokens",
    "length_spread",
    "requests_per_client",
    "ttft_ms",
    "tpot_ms",
    "e2e_ms",
    "step_ms",
    "saturated",
    "kv_tokens",
    "source",
];

/// Most requests, and most clients, of one simulated run: far above what benchmarks send.
const MOST_SIMULATED: usize = 100_000;
const SEED: u64 = 1;

/// One row of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// What was measured.
    pub subject: Arc<Subject>,
    /// Under which load; `None` if the row only says how much KV cache there is.
    pub workload: Option<Workload>,
    /// Times.
    pub measured: Measured,
    /// Lengths are uniform within this share of their means to either side; 0 if all are equal.
    pub length_spread: f64,
    /// Requests that each client of a closed loop sent, all clients starting at once with a cold cache; `None` if
    /// unknown, and then the time to first token cannot be compared (except a lone client's).
    pub requests_per_client: Option<u32>,
    /// Whether the load was found to be more than the replica sustains; `None` if nobody looked.
    pub saturated: Option<bool>,
    /// KV-cache capacity that the engine reported, tokens.
    pub kv_tokens: Option<f64>,
    /// Where it comes from.
    pub source: String,
}

impl Measurement {
    /// As the fit takes it; `None` if there was no load. Mean times to first token of a closed loop whose protocol is
    /// unknown are left out.
    pub fn observation(&self) -> Option<Observation> {
        let workload = self.workload?;
        let mut measured = self.measured;
        let mut subject = Arc::clone(&self.subject);
        if matches!(workload, Workload::ClosedLoop { .. }) {
            if self.requests_per_client.is_none() {
                measured.ttft_ms = None;
            }
            if self.length_spread > 0.0 && subject.config.scheduling == Scheduling::PrefillFirst {
                // Clients with requests of varied lengths do not fall into step; then the order within a step does
                // not matter to mean TPOT, as simulation shows.
                let config = EngineConfig { scheduling: Scheduling::Mixed, ..subject.config };
                subject = Arc::new(Subject { config, ..(*subject).clone() });
            }
        }
        Some(Observation { subject, workload, measured })
    }
}

impl Measurement {
    /// Mean time to first token of a closed loop under load, simulated with these coefficients, milliseconds: all
    /// clients start at once, on a cold cache, and send requests of lengths drawn evenly from their range (the same ones
    /// for the same row). `None` if that is not what was measured, the protocol is not known, or the replica cannot
    /// exist.
    pub fn simulated_ttft_ms(&self, calibration: &Calibration) -> Option<f64> {
        self.measured.ttft_ms?;
        let each = self.requests_per_client?;
        let Some(Workload::ClosedLoop { concurrency, input_tokens, output_tokens }) = self.workload else {
            return None;
        };
        let model = self.subject.model(calibration).ok()?;
        let clients = (concurrency.round() as usize).clamp(1, MOST_SIMULATED);
        let count = (clients as u64).saturating_mul(u64::from(each)).min(MOST_SIMULATED as u64);
        let requests = requests_within(input_tokens, output_tokens, self.length_spread, count, SEED);
        let out = simulate_closed(Replica::new(model, SimPolicy::default()), &requests, clients);
        Some(out.iter().map(|o| o.ttft_ms).sum::<f64>() / out.len().max(1) as f64)
    }
}

/// Why a file was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasurementError {
    /// No header line.
    #[error("the file is empty; its first line must name the columns (engine, model, gpu, …)")]
    Empty,
    /// Not CSV.
    #[error("line {line}: {message}; check quotes and the number of commas")]
    Csv {
        /// Line, from 1.
        line: u64,
        /// What the reader says.
        message: String,
    },
    /// A column that nobody knows, or has twice.
    #[error("line 1: column `{column}` {problem}; the columns are {}", COLUMNS.join(", "))]
    Column {
        /// Its name.
        column: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A cell that makes no sense.
    #[error("line {line}, column {column}: `{value}` {problem}")]
    Cell {
        /// Line, from 1.
        line: u64,
        /// Column.
        column: &'static str,
        /// What is there.
        value: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
}
