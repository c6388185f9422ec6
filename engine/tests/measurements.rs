//! The measurement format: what is read, what is refused and how, and that the example files are as they should be.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

use plimsoll_engine::calibrate::{Metric, Workload};
use plimsoll_engine::measurements::{COLUMNS, Measurement, MeasurementError, parse, write};
use plimsoll_engine::{EngineConfig, Scheduling};
use plimsoll_fleet::{Dtype, presets};

fn read(text: &str) -> Result<Vec<Measurement>, MeasurementError> {
    parse(text, &presets::model, &presets::accelerator)
}

const HEADER: &str =
    "engine,model,gpu,weights,tensor_parallel,workload,concurrency,input_tokens,output_tokens,tpot_ms";

fn line(text: &str) -> Result<Vec<Measurement>, MeasurementError> {
    read(&format!("{HEADER}\n{text}\n"))
}

#[test]
fn reads_a_row_with_defaults() {
    let rows = line("sglang,llama-3.1-8b,h100,fp8,2,closed,16,1000,200,7.5").unwrap();
    let m = &rows[0];
    assert_eq!(m.subject.engine, "sglang");
    assert_eq!((m.subject.variant.weights, m.subject.variant.kv), (Dtype::Fp8, Dtype::Bf16));
    assert_eq!(m.subject.shape.tensor_parallel, 2);
    assert_eq!(
        m.subject.config,
        EngineConfig { scheduling: Scheduling::PrefillFirst, ..EngineConfig::default() }
    );
    assert_eq!(m.subject.architecture.max_context_tokens, 1200, "the longest request of the file");
    let load = Workload::ClosedLoop { concurrency: 16.0, input_tokens: 1000.0, output_tokens: 200.0 };
    assert_eq!(m.workload, Some(load));
    assert_eq!(m.measured.get(Metric::Tpot), Some(7.5));
    assert_eq!(m.measured.get(Metric::Ttft), None);
    assert_eq!(m.requests_per_client, None);
}

#[test]
fn names_line_and_column() {
    let cases = [
        (",llama-3.1-8b,h100,fp8,2,closed,16,1000,200,7.5", "line 2, column engine: `` must not be empty"),
        (
            "vllm,llama-9,h100,fp8,2,closed,16,1000,200,7.5",
            "line 2, column model: `llama-9` is not a known model",
        ),
        ("vllm,llama-3.1-8b,h101,fp8,2,closed,16,1000,200,7.5", "line 2, column gpu: `h101` is not a known"),
        (
            "vllm,llama-3.1-8b,h100,fp9,2,closed,16,1000,200,7.5",
            "column weights: `fp9` is not a number format; use one of fp32",
        ),
        (
            "vllm,llama-3.1-8b,h100,fp8,0,closed,16,1000,200,7.5",
            "column tensor_parallel: `0` must be at least 1",
        ),
        (
            "vllm,llama-3.1-8b,h100,fp8,2,looped,16,1000,200,7.5",
            "column workload: `looped` is not a workload; use closed",
        ),
        (
            "vllm,llama-3.1-8b,h100,fp8,2,closed,,1000,200,7.5",
            "column concurrency: `` must not be empty for workload closed",
        ),
        (
            "vllm,llama-3.1-8b,h100,fp8,2,closed,16,1000,200,-1",
            "column tpot_ms: `-1` must be a finite number above 0",
        ),
        ("vllm,llama-3.1-8b,h100,fp8,2,closed,16,1000,200,fast", "column tpot_ms: `fast` is not a number"),
        ("vllm,llama-3.1-8b,h100,fp8,2,closed,16,1000,200", "line 2: "),
    ];
    for (text, expected) in cases {
        let error = line(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert_eq!(read(""), Err(MeasurementError::Empty));
    let error = read("engine,modle\nvllm,x\n").unwrap_err().to_string();
    assert!(error.contains("column `modle` is unknown; the columns are engine, "), "{error}");
    let error = read("engine,engine\nvllm,x\n").unwrap_err().to_string();
    assert!(error.contains("column `engine` is there twice"), "{error}");
}

#[test]
fn writes_what_it_reads() {
    let text = include_str!("data/example_measurements.csv");
    let rows = read(text).unwrap();
    assert!(rows.len() > 100);
    assert_eq!(read(&write(&rows)).unwrap(), rows);
    assert!(rows.iter().all(|m| m.source.starts_with("synthetic")), "nothing measured is shipped");
}

/// Every column is explained.
#[test]
fn columns_are_documented() {
    let page = include_str!("../../docs/engine-model.md");
    for column in COLUMNS {
        assert!(page.contains(&format!("`{column}`")), "{column}");
    }
}
