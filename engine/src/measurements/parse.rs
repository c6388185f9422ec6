//! From text.

use std::str::FromStr;
use std::sync::Arc;

use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{AcceleratorClass, Dtype, ModelArchitecture, Role, Shape};

use super::{COLUMNS, Measurement, MeasurementError};
use crate::EngineConfig;
use crate::calibrate::{Measured, Subject, Workload};

/// One line, by column.
struct Line<'a> {
    number: u64,
    columns: &'a [Option<usize>; COLUMNS.len()],
    record: &'a csv::StringRecord,
}

impl Line<'_> {
    /// The cell's text; empty where there is no such column.
    fn text(&self, column: &'static str) -> &str {
        let at = COLUMNS.iter().position(|c| *c == column);
        let at = at.and_then(|i| self.columns.get(i).copied().flatten());
        at.and_then(|i| self.record.get(i)).map_or("", str::trim)
    }

    fn error(&self, column: &'static str, problem: impl Into<String>) -> MeasurementError {
        let value = self.text(column).to_owned();
        MeasurementError::Cell { line: self.number, column, value, problem: problem.into() }
    }

    fn required(&self, column: &'static str) -> Result<&str, MeasurementError> {
        match self.text(column) {
            "" => Err(self.error(column, "must not be empty")),
            text => Ok(text),
        }
    }

    fn parsed<T: FromStr>(&self, column: &'static str, what: &str) -> Result<Option<T>, MeasurementError> {
        match self.text(column) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| self.error(column, format!("is not {what}"))),
        }
    }

    /// A finite number above 0.
    fn positive(&self, column: &'static str) -> Result<Option<f64>, MeasurementError> {
        match self.parsed::<f64>(column, "a number")? {
            Some(x) if !(x.is_finite() && x > 0.0) => {
                Err(self.error(column, "must be a finite number above 0, or empty if it was not measured"))
            }
            x => Ok(x),
        }
    }

    fn share(&self, column: &'static str) -> Result<f64, MeasurementError> {
        match self.parsed::<f64>(column, "a number")?.unwrap_or(0.0) {
            x if (0.0..1.0).contains(&x) => Ok(x),
            _ => Err(self.error(column, "must be at least 0 and below 1")),
        }
    }

    fn needed(&self, column: &'static str) -> Result<f64, MeasurementError> {
        let kind = self.text("workload");
        self.positive(column)?
            .ok_or_else(|| self.error(column, format!("must not be empty for workload {kind}")))
    }

    fn count(&self, column: &'static str) -> Result<Option<u32>, MeasurementError> {
        match self.parsed::<u32>(column, "a whole number")? {
            Some(0) => Err(self.error(column, "must be at least 1")),
            n => Ok(n),
        }
    }

    fn dtype(&self, column: &'static str) -> Result<Option<Dtype>, MeasurementError> {
        let names: Vec<&str> = Dtype::ALL.iter().map(|d| d.as_str()).collect();
        self.parsed(column, &format!("a number format; use one of {}", names.join(", ")))
    }

    fn workload(&self) -> Result<Option<Workload>, MeasurementError> {
        let cached_tokens = self.positive_or_zero("cached_tokens")?;
        Ok(Some(match self.text("workload") {
            "" => return Ok(None),
            "closed" => Workload::ClosedLoop {
                concurrency: self.needed("concurrency")?,
                input_tokens: self.needed("input_tokens")?,
                output_tokens: self.needed("output_tokens")?,
            },
            "open" => Workload::OpenLoop {
                rps: self.needed("rps")?,
                input_tokens: self.needed("input_tokens")?,
                cached_tokens,
                output_tokens: self.needed("output_tokens")?,
            },
            "static" => Workload::StaticBatch {
                batch: self.needed("batch")?,
                input_tokens: self.needed("input_tokens")?,
                output_tokens: self.needed("output_tokens")?,
            },
            "prefill" => Workload::Prefill {
                batch: self.needed("batch")?,
                new_tokens: self.needed("input_tokens")?,
                cached_tokens,
            },
            "decode" => Workload::Decode {
                batch: self.needed("batch")?,
                context_tokens: self.needed("context_tokens")?,
            },
            _ => {
                return Err(self.error(
                    "workload",
                    "is not a workload; use closed, open, static, prefill, decode, or nothing for KV capacity alone",
                ));
            }
        }))
    }

    fn positive_or_zero(&self, column: &'static str) -> Result<f64, MeasurementError> {
        match self.parsed::<f64>(column, "a number")?.unwrap_or(0.0) {
            x if x.is_finite() && x >= 0.0 => Ok(x),
            _ => Err(self.error(column, "must be a finite number of at least 0")),
        }
    }

    fn subject(
        &self,
        model: &dyn Fn(&str) -> Option<ModelArchitecture>,
        accelerator: &dyn Fn(&str) -> Option<AcceleratorClass>,
    ) -> Result<Subject, MeasurementError> {
        let architecture = model(self.required("model")?)
            .ok_or_else(|| self.error("model", "is not a known model; use the name of a preset"))?;
        let gpu = accelerator(self.required("gpu")?)
            .ok_or_else(|| self.error("gpu", "is not a known accelerator class; use the name of a preset"))?;
        let weights = self.dtype("weights")?.ok_or_else(|| self.error("weights", "must not be empty"))?;
        let kv = self.dtype("kv")?.unwrap_or(Dtype::Bf16);
        let usual = EngineConfig::of(self.required("engine")?);
        let utilisation = self.positive("memory_utilisation")?.unwrap_or(usual.memory_utilisation);
        let max_running = self.count("max_running")?.unwrap_or(usual.max_running);
        let batched = self.count("max_batched_tokens")?.unwrap_or(usual.max_batched_tokens.max(max_running));
        Ok(Subject {
            engine: self.required("engine")?.to_owned(),
            engine_version: self.text("engine_version").to_owned(),
            architecture,
            variant: Variant { name: weights.to_string(), weights, kv, quality: 1.0, source: None },
            shape: Shape {
                variant: weights.to_string(),
                accelerator: gpu.name.clone(),
                tensor_parallel: self.count("tensor_parallel")?.unwrap_or(1),
                pipeline_parallel: self.count("pipeline_parallel")?.unwrap_or(1),
                data_parallel: self.count("data_parallel")?.unwrap_or(1),
                expert_parallel: self.count("expert_parallel")?.unwrap_or(1),
                role: Role::Mixed,
            },
            accelerator: gpu,
            config: EngineConfig {
                memory_utilisation: utilisation,
                max_running,
                max_batched_tokens: batched,
                block_tokens: self.count("block_tokens")?.unwrap_or(usual.block_tokens),
                cuda_graphs: self.yes_no("cuda_graphs")?.unwrap_or(usual.cuda_graphs),
                ..usual
            },
        })
    }

    fn yes_no(&self, column: &'static str) -> Result<Option<bool>, MeasurementError> {
        match self.text(column) {
            "" => Ok(None),
            "yes" => Ok(Some(true)),
            "no" => Ok(Some(false)),
            _ => Err(self.error(column, "is neither yes nor no; leave it empty if it is not known")),
        }
    }
}

/// Longest request of a load, tokens.
fn tokens(m: &Measurement) -> f64 {
    let most = |mean: f64| mean * (1.0 + m.length_spread);
    match m.workload {
        Some(
            Workload::ClosedLoop { input_tokens, output_tokens, .. }
            | Workload::OpenLoop { input_tokens, output_tokens, .. }
            | Workload::StaticBatch { input_tokens, output_tokens, .. },
        ) => most(input_tokens) + most(output_tokens),
        Some(Workload::Prefill { new_tokens, cached_tokens, .. }) => new_tokens + cached_tokens,
        Some(Workload::Decode { context_tokens, .. }) => context_tokens,
        None => 0.0,
    }
}

/// How long requests can be that the replica holds one of, among `lengths`; `None` if it holds none of them.
fn longest_held(subject: &Subject, lengths: &[f64]) -> Option<u32> {
    let held = |tokens: u32| {
        let mut replica = subject.clone();
        replica.architecture.max_context_tokens = tokens;
        replica.model(&replica.accelerator.calibration).is_ok()
    };
    let mut sorted: Vec<u32> = lengths.iter().map(|tokens| whole(*tokens)).collect();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted.dedup();
    // Memory decides, so that the first that is held is the longest.
    let at = sorted.partition_point(|tokens| !held(*tokens));
    sorted.get(at).copied()
}

fn whole(tokens: f64) -> u32 {
    (tokens.ceil() as u32).max(1)
}

/// Reads measurements. `model` and `accelerator` know names: the presets', and whatever the caller adds. The longest
/// context of a replica is that of its longest request in the text that it has room for; a row with a longer one is of
/// a replica of its own, which does not fit, and disturbs no other row.
///
/// # Errors
/// [`MeasurementError`], with the line and the column.
pub fn parse(
    text: &str,
    model: &dyn Fn(&str) -> Option<ModelArchitecture>,
    accelerator: &dyn Fn(&str) -> Option<AcceleratorClass>,
) -> Result<Vec<Measurement>, MeasurementError> {
    let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(text.as_bytes());
    let csv_error = |e: csv::Error| {
        let line = e.position().map_or(1, csv::Position::line);
        MeasurementError::Csv { line, message: e.to_string() }
    };
    let header = reader.headers().map_err(csv_error)?.clone();
    if header.iter().all(|h| h.trim().is_empty()) {
        return Err(MeasurementError::Empty);
    }
    let mut columns = [None; COLUMNS.len()];
    for (i, name) in header.iter().enumerate() {
        let column = || name.trim().to_owned();
        let Some(at) = COLUMNS.iter().position(|c| *c == name.trim()) else {
            return Err(MeasurementError::Column { column: column(), problem: "is unknown" });
        };
        if columns[at].replace(i).is_some() {
            return Err(MeasurementError::Column { column: column(), problem: "is there twice" });
        }
    }
    let mut out: Vec<Measurement> = Vec::new();
    // Each replica, and the lengths of its rows' requests.
    let mut subjects: Vec<(Subject, Vec<f64>)> = Vec::new();
    let mut of = Vec::new();
    for record in reader.records() {
        let record = record.map_err(csv_error)?;
        let number = record.position().map_or(0, csv::Position::line);
        let line = Line { number, columns: &columns, record: &record };
        let subject = line.subject(model, accelerator)?;
        let at = subjects.iter().position(|(s, _)| *s == subject).unwrap_or_else(|| {
            subjects.push((subject.clone(), Vec::new()));
            subjects.len() - 1
        });
        let row = Measurement {
            subject: Arc::new(subject),
            workload: line.workload()?,
            measured: Measured {
                ttft_ms: line.positive("ttft_ms")?,
                tpot_ms: line.positive("tpot_ms")?,
                e2e_ms: line.positive("e2e_ms")?,
                step_ms: line.positive("step_ms")?,
            },
            length_spread: line.share("length_spread")?,
            requests_per_client: line.count("requests_per_client")?,
            saturated: line.yes_no("saturated")?,
            kv_tokens: line.positive("kv_tokens")?,
            source: line.text("source").to_owned(),
        };
        if let Some((_, lengths)) = subjects.get_mut(at) {
            lengths.push(tokens(&row));
        }
        of.push(at);
        out.push(row);
    }
    let with_context = |subject: &Subject, tokens: u32| {
        let mut subject = subject.clone();
        subject.architecture.max_context_tokens = tokens;
        Arc::new(subject)
    };
    let shared: Vec<(Arc<Subject>, u32)> = subjects
        .iter()
        .map(|(subject, lengths)| {
            let most = lengths.iter().map(|tokens| whole(*tokens)).max().unwrap_or(1);
            // Where none fits, that is for the reader of all of them to see.
            let longest = longest_held(subject, lengths).unwrap_or(most);
            (with_context(subject, longest), longest)
        })
        .collect();
    for (row, at) in out.iter_mut().zip(of) {
        if let Some((subject, longest)) = shared.get(at) {
            let own = whole(tokens(row));
            row.subject = if own <= *longest { Arc::clone(subject) } else { with_context(subject, own) };
        }
    }
    Ok(out)
}
