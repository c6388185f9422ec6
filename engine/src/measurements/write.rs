//! To text.

use super::{COLUMNS, Measurement};
use crate::calibrate::Workload;

fn yes_no(x: bool) -> &'static str {
    if x { "yes" } else { "no" }
}

fn cell(column: &str, m: &Measurement) -> String {
    let s = &m.subject;
    let number = |x: f64| x.to_string();
    let maybe = |x: Option<f64>| x.map(|x| format!("{x:.4}")).unwrap_or_default();
    let load = |f: &dyn Fn(&Workload) -> Option<f64>| {
        m.workload.as_ref().and_then(f).map(number).unwrap_or_default()
    };
    match column {
        "engine" => s.engine.clone(),
        "engine_version" => s.engine_version.clone(),
        "model" => s.architecture.name.clone(),
        "gpu" => s.accelerator.name.clone(),
        "weights" => s.variant.weights.to_string(),
        "kv" => s.variant.kv.to_string(),
        "tensor_parallel" => s.shape.tensor_parallel.to_string(),
        "pipeline_parallel" => s.shape.pipeline_parallel.to_string(),
        "data_parallel" => s.shape.data_parallel.to_string(),
        "expert_parallel" => s.shape.expert_parallel.to_string(),
        "memory_utilisation" => number(s.config.memory_utilisation),
        "max_running" => s.config.max_running.to_string(),
        "max_batched_tokens" => s.config.max_batched_tokens.to_string(),
        "block_tokens" => s.config.block_tokens.to_string(),
        "cuda_graphs" => yes_no(s.config.cuda_graphs).to_owned(),
        "workload" => match m.workload {
            None => "",
            Some(Workload::ClosedLoop { .. }) => "closed",
            Some(Workload::OpenLoop { .. }) => "open",
            Some(Workload::StaticBatch { .. }) => "static",
            Some(Workload::Prefill { .. }) => "prefill",
            Some(Workload::Decode { .. }) => "decode",
        }
        .to_owned(),
        "concurrency" => load(&|w| match *w {
            Workload::ClosedLoop { concurrency, .. } => Some(concurrency),
            _ => None,
        }),
        "rps" => load(&|w| match *w {
            Workload::OpenLoop { rps, .. } => Some(rps),
            _ => None,
        }),
        "batch" => load(&|w| match *w {
            Workload::StaticBatch { batch, .. }
            | Workload::Prefill { batch, .. }
            | Workload::Decode { batch, .. } => Some(batch),
            _ => None,
        }),
        "input_tokens" => load(&|w| match *w {
            Workload::ClosedLoop { input_tokens, .. }
            | Workload::OpenLoop { input_tokens, .. }
            | Workload::StaticBatch { input_tokens, .. } => Some(input_tokens),
            Workload::Prefill { new_tokens, .. } => Some(new_tokens),
            Workload::Decode { .. } => None,
        }),
        "cached_tokens" => load(&|w| match *w {
            Workload::OpenLoop { cached_tokens, .. } | Workload::Prefill { cached_tokens, .. } => {
                Some(cached_tokens).filter(|c| *c > 0.0)
            }
            _ => None,
        }),
        "output_tokens" => load(&|w| match *w {
            Workload::ClosedLoop { output_tokens, .. }
            | Workload::OpenLoop { output_tokens, .. }
            | Workload::StaticBatch { output_tokens, .. } => Some(output_tokens),
            _ => None,
        }),
        "context_tokens" => load(&|w| match *w {
            Workload::Decode { context_tokens, .. } => Some(context_tokens),
            _ => None,
        }),
        "length_spread" if m.length_spread > 0.0 => number(m.length_spread),
        "requests_per_client" => m.requests_per_client.map(|n| n.to_string()).unwrap_or_default(),
        "ttft_ms" => maybe(m.measured.ttft_ms),
        "tpot_ms" => maybe(m.measured.tpot_ms),
        "e2e_ms" => maybe(m.measured.e2e_ms),
        "step_ms" => maybe(m.measured.step_ms),
        "saturated" => m.saturated.map_or("", yes_no).to_owned(),
        "kv_tokens" => m.kv_tokens.map(number).unwrap_or_default(),
        "source" => m.source.clone(),
        _ => String::new(),
    }
}

/// Writes measurements as [`super::parse`] reads them. Times are rounded to a tenth of a microsecond.
pub fn write(measurements: &[Measurement]) -> String {
    let quoted = |text: String| {
        if text.contains([',', '"', '\n', '#']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
    };
    let mut out = COLUMNS.join(",");
    out.push('\n');
    for m in measurements {
        let cells: Vec<String> = COLUMNS.iter().map(|c| quoted(cell(c, m))).collect();
        out.push_str(&cells.join(","));
        out.push('\n');
    }
    out
}
