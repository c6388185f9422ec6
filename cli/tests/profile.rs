//! `plimsoll profile` against a simulated engine whose coefficients are known: are they found?

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const PLIMSOLL: &str = env!("CARGO_BIN_EXE_plimsoll");

/// A simulated engine, ended with the test.
struct Engine {
    child: Child,
    url: String,
}

impl Engine {
    /// In real time, with the coefficients of the preset.
    fn start() -> Self {
        let args = ["engine-sim", "--model", "llama-3.1-8b", "--accelerator", "l4", "--dtype", "fp8"];
        let mut child = Command::new(PLIMSOLL)
            .args(args)
            .args(["--listen", "127.0.0.1:0", "--log", "warn"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().rsplit(' ').next().unwrap().to_owned();
        Self { child, url }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn plimsoll(dir: &Path, args: &[&str]) -> Output {
    Command::new(PLIMSOLL).args(args).current_dir(dir).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// TTFT and TPOT of a lone request, as predicted for a class.
fn alone(dir: &Path, files: &[&str], input: &str) -> (f64, f64) {
    let base = ["predict", "llama-3.1-8b", "--gpu", "l4", "--weights", "fp8", "--tp", "1", "--input", input];
    let more = ["--ttft-ms", "60000", "--tpot-ms", "1000", "-o", "json"];
    let output = plimsoll(dir, &[&base[..], &more, files].concat());
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let fit = &value["shapes"][0]["fit"];
    assert!(!fit.is_null(), "{}", text(&output));
    (fit["alone"]["ttft_ms"].as_f64().unwrap(), fit["alone"]["tpot_ms"].as_f64().unwrap())
}

/// A class of L4s about which everything that matters is believed wrongly.
const WRONG: &str = "
apiVersion: plimsoll.dev/v1alpha1
kind: AcceleratorClass
metadata: {name: l4}
spec:
  preset: l4
  usdPerHour: 0.4
  calibration: {etaCompute: 0.4, etaWeights: 0.75, layerOverheadUs: 120, apiOverheadMs: 40, relativeError: 0.3}
";
const POOL: &str = "
apiVersion: plimsoll.dev/v1alpha1
kind: ModelPool
metadata: {name: small}
spec:
  model: {name: llama-3.1-8b, preset: llama-3.1-8b}
  slo: {ttft: {p95: 4s}, tpot: {p95: 150ms}}
  placement: {accelerators: [l4]}
  demand: {rps: 0.2, input: {mean: 500}, output: {mean: 100}}
  maxContextTokens: 8192
";

/// Measured on a machine with other things to do, so that times are longer than simulated by a little.
const TOLERANCE: f64 = 0.12;

#[test]
fn coefficients_are_found_and_plans_take_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("wrong.yaml"), WRONG).unwrap();
    std::fs::write(dir.join("pool.yaml"), POOL).unwrap();
    let engine = Engine::start();
    let output = plimsoll(
        dir,
        &[
            "profile",
            "--url",
            &engine.url,
            "--model",
            "llama-3.1-8b",
            "--gpu",
            "l4",
            "-f",
            "wrong.yaml",
            "--weights",
            "fp8",
            "--max-minutes",
            "0.8",
            "--max-points",
            "6",
            "--max-concurrency",
            "8",
            "--max-tokens",
            "4300",
            "--out",
            "calibrated.yaml",
            "--measurements",
            "measured.csv",
        ],
    );
    let said = text(&output);
    println!("{said}");
    assert!(output.status.success(), "{said}");
    for part in ["POINT", "before", "after", "TPOT: median error", "wrote calibrated.yaml"] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    for input in ["200", "1000", "3000"] {
        let wrong = alone(dir, &["-f", "wrong.yaml"], input);
        let found = alone(dir, &["-f", "calibrated.yaml"], input);
        let truth = alone(dir, &[], input);
        println!(
            "{input}: TTFT {:.0} → {:.0} of {:.0}, TPOT {:.1} → {:.1} of {:.1}",
            wrong.0, found.0, truth.0, wrong.1, found.1, truth.1
        );
        let off = |x: f64, y: f64| (x / y - 1.0).abs();
        assert!(off(wrong.0, truth.0) > TOLERANCE && off(wrong.1, truth.1) > TOLERANCE, "nothing to find");
        assert!(off(found.0, truth.0) < TOLERANCE, "TTFT at {input}: {} of {}", found.0, truth.0);
        assert!(off(found.1, truth.1) < TOLERANCE, "TPOT at {input}: {} of {}", found.1, truth.1);
    }
    let rows = std::fs::read_to_string(dir.join("measured.csv")).unwrap();
    assert!(rows.starts_with("engine,") && rows.lines().count() > 4, "{rows}");
    let plan = plimsoll(
        dir,
        &["plan", "-f", "calibrated.yaml", "-f", "pool.yaml", "--nodes", "1x1xl4", "-o", "json"],
    );
    let said = text(&plan);
    assert!(plan.status.success() && !said.contains("skipped"), "{said}");
    let calibrated = std::fs::read_to_string(dir.join("calibrated.yaml")).unwrap();
    assert!(calibrated.contains("usdPerHour: 0.4") && calibrated.contains("relativeError"), "{calibrated}");
}

#[test]
fn endpoints_and_flags_that_are_wrong_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let engine = Engine::start();
    let url = engine.url.as_str();
    for (args, code, says) in [
        (
            &["--url", url, "--model", "gpt-9", "--arch", "llama-3.1-8b", "--gpu", "l4"][..],
            1,
            "it serves: llama-3.1-8b",
        ),
        (&["--url", "http://127.0.0.1:9", "--model", "llama-3.1-8b", "--gpu", "l4"], 1, "is the endpoint up"),
        (&["--url", url, "--model", "my-model", "--gpu", "l4"], 1, "--arch or --config"),
        (&["--url", url, "--model", "llama-3.1-8b", "--gpu", "l5"], 1, "there are h100"),
        (&["--url", url, "--model", "llama-3.1-70b", "--gpu", "l4"], 1, "of weights"),
        (
            &["--url", url, "--model", "llama-3.1-8b", "--gpu", "l4", "--max-minutes", "0.0001"],
            1,
            "no point fits",
        ),
    ] {
        let output = plimsoll(dir, &[&["profile"][..], args].concat());
        let said = text(&output);
        assert!(output.status.code() == Some(code) && said.contains(says), "{args:?}: {said}");
    }
    let dry =
        plimsoll(dir, &["profile", "--url", url, "--model", "llama-3.1-8b", "--gpu", "l4", "--dry-run"]);
    assert!(dry.status.success() && text(&dry).contains("about"), "{}", text(&dry));
}
