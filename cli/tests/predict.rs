//! `plimsoll predict` as people run it.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

use std::path::Path;
use std::process::{Command, Output};

fn predict(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .arg("predict")
        .args(args)
        .env_remove("CLICOLOR_FORCE")
        .output()
        .unwrap()
}

fn ok(args: &[&str]) -> String {
    let output = predict(args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Exit status and what was said, both streams.
fn fails(args: &[&str]) -> (i32, String) {
    let output = predict(args);
    let text = [output.stdout, output.stderr].map(|s| String::from_utf8(s).unwrap()).concat();
    (output.status.code().unwrap(), text)
}

fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&ok(args)).unwrap()
}

const CHAT: [&str; 8] = ["--input", "1000", "--output", "200", "--ttft-ms", "500", "--tpot-ms", "50"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    more.iter().copied().chain(CHAT).collect()
}

#[test]
fn one_shape_is_explained() {
    let text = ok(&with(&["llama-3.1-70b", "--gpu", "h100", "--tp", "4", "--weights", "fp8"]));
    for part in [
        "llama-3.1-70b: prompts of 1,000 tokens, answers of 200; TTFT p95 ≤ 500 ms, TPOT p95 ≤ 50 ms",
        "fp8 TP4 H100   4 GPUs, $9.20/h",
        "load line",
        "limited by",
        "reading weights",
        "overheads (CPU)",
        " 100 %",
        "per million answer tokens",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(!text.contains('\x1b'), "no colour outside a terminal");
    assert!(text.lines().all(|l| l.chars().count() <= 160), "{text}");
}

#[test]
fn every_shape_gets_a_row_and_the_cheapest_is_first() {
    let value = json(&with(&["llama-3.1-70b", "-o", "json"]));
    let shapes = value["shapes"].as_array().unwrap();
    assert!(shapes.len() > 30, "{}", shapes.len());
    let price = |s: &serde_json::Value| s["fit"]["usd_per_million_output_tokens"].as_f64();
    let served: Vec<f64> =
        shapes.iter().filter(|s| s["fit"]["infeasible"].is_null()).filter_map(price).collect();
    assert!(served.len() > 5 && served.is_sorted(), "{served:?}");
    for shape in shapes {
        assert_ne!(shape["fit"].is_null(), shape["does_not_fit"].is_null(), "{shape}");
    }
    let text = ok(&with(&["llama-3.1-70b"]));
    for part in
        ["SHAPE", "KV TOKENS", "LINE", "$/M OUT", "LIMITED BY", "MISSES", "DOES NOT FIT", "of weights"]
    {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn the_simulation_agrees_with_the_closed_form() {
    let args = ["llama-3.1-70b", "--gpu", "h100", "--tp", "2,4", "--weights", "fp8", "--check", "-o", "json"];
    for shape in json(&with(&args))["shapes"].as_array().unwrap() {
        let fit = &shape["fit"];
        for latency in ["ttft_ms", "tpot_ms"] {
            let (form, seen) =
                (fit["at"][latency].as_f64().unwrap(), fit["simulated"][latency].as_f64().unwrap());
            assert!((form / seen - 1.0).abs() < 0.25, "{latency}: {form} {seen}");
        }
        assert!(fit["simulated"]["attainment"].as_f64().unwrap() > 0.93, "{fit}");
    }
}

#[test]
fn rates_and_concurrencies_are_answered() {
    let one = ["llama-3.1-70b", "--gpu", "h100", "--tp", "2", "--weights", "fp8", "-o", "json"];
    let at = |more: &[&str]| json(&with(&[&one, more].concat()))["shapes"][0]["fit"].clone();
    let (line, many) = (at(&[]), at(&["--rps", "50"]));
    let rps = line["load_line_rps"].as_f64().unwrap();
    assert_eq!(many["replicas"].as_f64().unwrap(), (50.0 / rps).ceil());
    assert!(many["at"]["tpot_ms"].as_f64().unwrap() <= line["at"]["tpot_ms"].as_f64().unwrap() * 1.001);
    // All clients begin at once, and so does the queue of their prompts: judged by looser objectives.
    let loose = |clients| {
        let args = ["--concurrency", clients, "--ttft-ms", "9000", "--tpot-ms", "500"];
        json(&[&one[..], &args].concat())["shapes"][0]["fit"].clone()
    };
    let (few, more) = (loose("2"), loose("16"));
    assert!(few["at"]["tpot_ms"].as_f64() < more["at"]["tpot_ms"].as_f64());
    assert!(few["at"]["rps"].as_f64() < more["at"]["rps"].as_f64());
}

/// What flags of the engine do, against the same question without them.
#[test]
fn the_engine_can_be_described() {
    let one = with(&["llama-3.1-70b", "--gpu", "h100", "--tp", "4", "--weights", "fp8", "-o", "json"]);
    let fit = |more: &[&str]| json(&[&one[..], more].concat())["shapes"][0]["fit"].clone();
    let number =
        |fit: &serde_json::Value, at: &str| fit.pointer(at).and_then(serde_json::Value::as_f64).unwrap();
    let plain = fit(&[]);
    let tpot = |fit: &serde_json::Value| number(fit, "/alone/tpot_ms");
    let drafted = fit(&["--speculate", "4,0.8"]);
    assert!(tpot(&drafted) < 0.5 * tpot(&plain));
    let by_model = fit(&["--speculate", "4,0.8", "--draft-model", "llama-3.1-8b"]);
    assert!(tpot(&by_model) > tpot(&drafted) && number(&by_model, "/memory/draft_bytes_per_gpu") > 1e9);
    assert!(tpot(&fit(&["--speculate", "4,0.8", "--draft-elsewhere", "3,1"])) > tpot(&drafted));
    let lora = fit(&["--lora", "20,16"]);
    assert!(
        tpot(&lora) > tpot(&plain)
            && number(&lora, "/memory/kv_tokens") < number(&plain, "/memory/kv_tokens")
    );
    let ttft = |fit: &serde_json::Value| number(fit, "/alone/ttft_ms");
    let long =
        ["llama-3.1-70b", "--gpu", "h100", "--tp", "4", "--weights", "fp8", "-o", "json", "--input", "8000"];
    let long = |more: &[&str]| json(&[&long[..], more].concat())["shapes"][0]["fit"].clone();
    assert!(ttft(&long(&["--kv-offload", "50,0.9"])) < ttft(&long(&[])));
    assert!(tpot(&fit(&["--enforce-eager"])) > tpot(&plain));
    assert!(number(&fit(&["--engine", "sglang"]), "/load_line_rps") != number(&plain, "/load_line_rps"));
    let capped = fit(&["--power-cap", "350"]);
    assert!(ttft(&capped) > ttft(&plain) && number(&capped, "/at/watts") < 1400.0 + 1.0);
    // Watts, joules and grams belong together: H100s stand in a data centre with a PUE of 1.2 on 473 g/kWh.
    let (rps, watts) = (number(&plain, "/at/rps"), number(&plain, "/at/watts"));
    let joules = number(&plain, "/joules_per_output_token");
    assert!((joules / (watts / rps / 200.0) - 1.0).abs() < 1e-9 && watts < 4.0 * 700.0);
    let grams = number(&plain, "/grams_co2e_per_million_output_tokens");
    assert!((grams / (joules / 3.6 * 1.2 * 473.0) - 1.0).abs() < 1e-9);
}

#[test]
fn what_cannot_be_served_is_an_error_with_the_reason() {
    let (code, text) = fails(&["deepseek-v3", "--gpu", "l4"]);
    assert!(code == 2 && text.contains("of weights") && text.contains("error: no shape fits"), "{text}");
    let slow = ["llama-3.1-70b", "--gpu", "l40s", "--weights", "bf16", "--ttft-ms", "10", "--tpot-ms", "5"];
    let (code, text) = fails(&slow);
    assert!(code == 2 && text.contains(" ms alone") && text.contains("no shape holds"), "{text}");
    let (code, text) = fails(&["llama-3.1-70b", "--gpu", "h100", "--tp", "3"]);
    assert!(code == 2 && text.contains("64 attention heads"), "{text}");
}

#[test]
fn bad_input_is_told_what_to_do() {
    for (args, code, says) in [
        (&["lama-3.1-8b"][..], 1, "llama-3.1-8b"),
        (&[], 1, "name one"),
        (&["llama-3.1-8b", "--gpu", "h1000"], 1, "there are h100"),
        (&["llama-3.1-8b", "--percentile", "100"], 2, "below 100"),
        (&["llama-3.1-8b", "--input=-5"], 2, "from 1 to"),
        (&["llama-3.1-8b", "--ttft-ms=-5"], 2, "above 0"),
        (&["llama-3.1-8b", "--tpot-ms", "NaN"], 2, "above 0"),
        (&["llama-3.1-8b", "--burstiness", "1e300"], 2, "to 1000000"),
        (&["llama-3.1-8b", "--gpu", "h100", "--rps", "1e300"], 2, "replicas"),
        (
            &["llama-3.1-8b", "--gpu", "h100", "--power-cap", "1"],
            2,
            "power_cap_watts is 1; use more than idle_watts",
        ),
        (&["llama-3.1-8b", "--speculate", "4"], 2, "two figures"),
        (&["llama-3.1-8b", "--speculate", "4,0.5", "--draft-model", "no-such"], 1, "no-such"),
        (&["llama-3.1-8b", "--weights", "fp7"], 2, "use one of fp32"),
        (&["llama-3.1-8b", "--rps", "2", "--concurrency", "3"], 2, "cannot be used with"),
        (&["--config", "/no/such.json"], 1, "failed to read /no/such.json"),
        (&["-f", "/no/such"], 1, "failed to read /no/such"),
    ] {
        let (got, text) = fails(args);
        assert!(got == code && text.contains(says), "{args:?}: {got} {text}");
    }
}

#[test]
fn pools_of_manifests_are_answered_with_their_own_demand() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let examples = examples.to_str().unwrap();
    let all = json(&["-f", examples, "-o", "json"]);
    assert_eq!(all.as_array().unwrap().len(), 3);
    let text = ok(&["chat", "-f", examples]);
    assert!(text.contains("llama-3.1-70b") && text.contains("REPLICAS"), "{text}");
}

#[test]
fn a_config_from_hugging_face_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    let config = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": false}"#;
    std::fs::write(&file, config).unwrap();
    let path = file.to_str().unwrap();
    let one = ["--gpu", "h100", "--tp", "1", "--weights", "bf16", "-o", "json"];
    let alone = |head: &[&str]| {
        json(&with(&[head, &one].concat()))["shapes"][0]["fit"]["alone"]["tpot_ms"].as_f64().unwrap()
    };
    let (read, preset) = (alone(&["--config", path]), alone(&["llama-3.1-8b"]));
    assert!((read / preset - 1.0).abs() < 0.005, "{read} {preset}");
    std::fs::write(&file, config.replace("\"vocab_size\": 128256,", "")).unwrap();
    let (code, text) = fails(&["--config", path]);
    assert!(code == 1 && text.contains("vocab_size is missing"), "{text}");
    std::fs::write(&file, "{").unwrap();
    assert_eq!(fails(&["--config", path]).0, 1);
    std::fs::write(&file, config.replace("\"hidden_size\": 4096", "\"hidden_size\": -1")).unwrap();
    let (code, text) = fails(&["--config", path]);
    assert!(code == 1 && text.contains("hidden_size: invalid value"), "{text}");
}

#[test]
fn a_reader_that_has_had_enough_ends_it_quietly() {
    use std::process::Stdio;
    let mut child = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["predict", "llama-3.1-70b", "--all"])
        .args(CHAT)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert_eq!(output.status.code(), Some(141));
}
