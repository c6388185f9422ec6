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

/// A row whose request no replica could hold is a replica of its own: those beside it are judged as if it were not there.
#[test]
fn an_absurd_row_disturbs_no_other() {
    let usual = "vllm,llama-3.1-8b,h100,fp8,2,closed,16,1000,200,7.5";
    for absurd in ["1e18,200", "1000,1e300", "4000000000,1", "90000000,200"] {
        let rows =
            line(&format!("{usual}\nvllm,llama-3.1-8b,h100,fp8,2,closed,1,{absurd},7.5\n{usual}")).unwrap();
        assert_eq!(rows[0], line(usual).unwrap()[0], "{absurd}");
        assert!(std::sync::Arc::ptr_eq(&rows[0].subject, &rows[2].subject));
        let fits = |m: &Measurement| m.subject.model(&m.subject.accelerator.calibration).is_ok();
        assert!(fits(&rows[0]) && !fits(&rows[1]), "{absurd}");
    }
    // Of what is held, the longest counts, wherever it stands.
    let longer = usual.replace("1000,200", "30000,2000");
    let rows = line(&format!("{longer}\n{usual}")).unwrap();
    assert!(rows.iter().all(|m| m.subject.architecture.max_context_tokens == 32_000));
}

/// Simulated first tokens are those of the protocol, and there are none where it is not known.
#[test]
fn first_tokens_are_simulated_where_the_protocol_is_known() {
    let head = format!("{HEADER},length_spread,requests_per_client,ttft_ms");
    let of = |row: &str| {
        let m = read(&format!("{head}\n{row}\n")).unwrap().remove(0);
        m.simulated_ttft_ms(&m.subject.accelerator.calibration)
    };
    let row = |clients: u32, rest: &str| {
        format!("vllm,llama-3.1-8b,h100,fp8,2,closed,{clients},1000,200,7.5,{rest}")
    };
    let (one, many) = (of(&row(1, "0.1,10,60")).unwrap(), of(&row(64, "0.1,10,60")).unwrap());
    assert!(one > 17.0 && many > 2.0 * one, "{one} {many}");
    // All begin at once: with one request a client, most wait longest.
    assert!(of(&row(64, "0.1,1,60")).unwrap() > many);
    assert_eq!(of(&row(1, "0.1,10,")), None, "not measured");
    assert_eq!(of(&row(1, "0.1,,60")), None, "not known");
    assert!(of(&row(1, "0.1,4000000000,60")).unwrap().is_finite(), "simulated as far as makes sense");
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
