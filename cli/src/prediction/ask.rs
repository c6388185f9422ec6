//! From flags and files to questions.

use std::path::{Path, PathBuf};

use plimsoll_crds as crds;
use plimsoll_fleet::hf_config::HfConfig;
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{
    AcceleratorClass, Dtype, ModelPool, Objective, Percentile, RequestClass, Slo, SloClass, presets, slo,
};
use plimsoll_scheduler::demand::{DemandConfig, DemandTracker};
use plimsoll_scheduler::plan::candidates::planned_classes;
use serde_json::json;

use super::engine_flags::EngineFlags;
use super::rows::{Load, Question};
use crate::failure::Failure;
use crate::manifests;

/// Lengths and objectives of a question that gives none, tokens and milliseconds.
const ASSUMED: (f64, f64, f64, f64) = (1000.0, 200.0, 1000.0, 50.0);

/// What to predict.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    /// Model: a preset's name, e.g. llama-3.1-70b, or with -f a pool's [default with -f: every pool]
    pub model: Option<String>,
    /// Model: a config.json as on Hugging Face, instead of a preset
    #[arg(long, value_name = "FILE", conflicts_with = "files")]
    pub config: Option<PathBuf>,
    /// Manifest file or folder with ModelPools and AcceleratorClasses; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub files: Vec<PathBuf>,
    /// Accelerator classes, e.g. h100,l40s [default: those the pool allows, or all]
    #[arg(long, visible_alias = "accelerator", value_delimiter = ',', value_name = "CLASS")]
    pub gpu: Vec<String>,
    /// Tensor-parallel degrees [default: powers of two up to a link domain]
    #[arg(long, visible_alias = "tensor-parallel", value_delimiter = ',', value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub tp: Vec<u32>,
    /// Pipeline-parallel degrees [default: 1]
    #[arg(long, visible_alias = "pipeline-parallel", value_delimiter = ',', value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=64))]
    pub pp: Vec<u32>,
    /// Attention data-parallel degrees, of models with experts [default: 1]
    #[arg(long, visible_alias = "data-parallel", value_delimiter = ',', value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub dp: Vec<u32>,
    /// Expert-parallel degrees: into how many parts whole experts are divided over a stage's GPUs [default: 1]
    #[arg(long, visible_alias = "expert-parallel", value_delimiter = ',', value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ep: Vec<u32>,
    /// Weight formats: bf16, fp8, int4, … [default: the pool's, or as published and fp8]
    #[arg(long, visible_alias = "dtype", value_delimiter = ',', value_name = "DTYPE")]
    pub weights: Vec<Dtype>,
    /// KV-cache format [default: bf16]
    #[arg(long, value_name = "DTYPE")]
    pub kv: Option<Dtype>,
    /// Longest request to serve, tokens [default: the model's own, or what memory allows]
    #[arg(long, visible_alias = "max-model-len", value_name = "TOKENS")]
    pub context: Option<u32>,
    /// Mean prompt, tokens [default: the pool's, or 1000]
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    pub input: Option<f64>,
    /// Mean answer, tokens [default: the pool's, or 200]
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    pub output: Option<f64>,
    /// Share of prompt tokens found in the prefix cache, 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub cached: Option<f64>,
    /// Objective: time to first token, milliseconds
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub ttft_ms: Option<f64>,
    /// Objective: time per output token after the first, milliseconds
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub tpot_ms: Option<f64>,
    /// Objective: end to end, milliseconds
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub e2e_ms: Option<f64>,
    /// Percentile of the objectives given here, and of latencies that have none
    #[arg(long, default_value = "95", value_parser = percentile)]
    pub percentile: Percentile,
    /// Requests per second to serve [default: the pool's demand, or as many as one replica takes]
    #[arg(long, value_parser = positive, conflicts_with = "concurrency")]
    pub rps: Option<f64>,
    /// Requests kept under way on one replica, instead of a rate
    #[arg(long, value_name = "CLIENTS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub concurrency: Option<u32>,
    /// Burstiness: squared coefficient of variation of inter-arrival times (1 is Poisson)
    #[arg(long, value_name = "SCV", value_parser = burstiness)]
    pub burstiness: Option<f64>,
    /// Share by which predictions must stay below the objectives [default: each GPU's known error, as in plans]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub margin: Option<f64>,
    #[command(flatten)]
    pub engine: EngineFlags,
    /// Verify the closed form by simulating every step of the engine, and show both
    #[arg(long)]
    pub check: bool,
}

pub(crate) fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err("use a number above 0".to_owned()) }
}

pub(crate) fn share(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err("use a share from 0 to 1".to_owned()) }
}

fn within(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(format!("use a number from {least} to {most}"))
    }
}

fn tokens(text: &str) -> Result<f64, String> {
    within(text, 1.0, 1e9)
}

fn burstiness(text: &str) -> Result<f64, String> {
    within(text, 0.01, 1e6)
}

fn percentile(text: &str) -> Result<Percentile, String> {
    let number = text.strip_prefix('p').unwrap_or(text);
    let value: f64 = number.parse().map_err(|_| format!("{text:?} is not a percentile such as 95"))?;
    Percentile::new(value).map_err(|e| e.to_string())
}

/// A question with the accelerator classes and formats that it is about.
#[derive(Debug)]
pub struct Asked {
    /// The question.
    pub question: Question,
    /// Classes.
    pub classes: Vec<AcceleratorClass>,
    /// Formats.
    pub variants: Vec<Variant>,
}

/// Makes questions of flags and the files that they name; more than one only for files with several pools.
///
/// # Errors
/// If a file cannot be read, or a model, pool or class is not known.
pub fn ask(flags: &Flags) -> Result<Vec<Asked>, Failure> {
    let (pools, known, mut notes) = if flags.files.is_empty() {
        (Vec::new(), presets::accelerators(), Vec::new())
    } else {
        let loaded = manifests::load(&flags.files)?;
        let notes = loaded.problems.iter().map(|p| format!("skipped {p}")).collect();
        (loaded.snapshot.pools, loaded.snapshot.accelerators, notes)
    };
    let chosen = match (&flags.model, &flags.config) {
        (name, Some(path)) => vec![configured(path, name.as_deref(), &mut notes)?],
        (Some(name), None) => vec![named(name, &pools)?],
        (None, None) if !pools.is_empty() => pools,
        (None, None) => return Err(no_model(!flags.files.is_empty())),
    };
    chosen.into_iter().map(|pool| question(flags, pool, &known, notes.clone())).collect()
}

fn no_model(files: bool) -> Failure {
    let message =
        if files { "the files hold no valid ModelPool, and no model is named" } else { "no model is named" };
    Failure::new(message)
        .hint(format!("name one: plimsoll predict llama-3.1-8b; presets: {}", preset_names()))
}

fn preset_names() -> String {
    presets::models().into_iter().map(|m| m.name).collect::<Vec<_>>().join(", ")
}

pub(crate) fn named(name: &str, pools: &[ModelPool]) -> Result<ModelPool, Failure> {
    let is = |p: &&ModelPool| p.id.to_string() == name || p.id.name() == name;
    if let Some(pool) = pools.iter().find(is) {
        return Ok(pool.clone());
    }
    if presets::model(name).is_some() {
        return pool_of(json!({"name": name, "preset": name}));
    }
    let mut names: Vec<String> = presets::models().into_iter().map(|m| m.name).collect();
    names.extend(pools.iter().map(|p| p.id.name().to_owned()));
    let near = crds::names::nearest(name, names).join(", ");
    Err(Failure::new(format!("there is no model {name:?}; nearest: {near}")).hint(format!(
        "presets: {}; any other model: --config FILE with its config.json from Hugging Face",
        preset_names()
    )))
}

/// A pool as a manifest with this model would make it: the same formats by default as in plans.
fn pool_of(model: serde_json::Value) -> Result<ModelPool, Failure> {
    let manifest = json!({
        "apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelPool",
        "metadata": {"name": "predict", "namespace": "default", "uid": "predict"},
        "spec": {"model": model, "slo": {"ttft": {"p95": "1s"}}},
    });
    let object: crds::ModelPool = serde_json::from_value(manifest)
        .map_err(|e| Failure::caused("failed to describe the model as a pool", e))?;
    let mut pool = object.to_fleet().map_err(|e| Failure::new(crds::invalid::describe(&e)))?;
    // Objectives come from flags.
    pool.slo_classes.clear();
    Ok(pool)
}

pub(crate) fn configured(
    path: &Path,
    name: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<ModelPool, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::caused(format!("failed to read {}", path.display()), e))?;
    let unreadable = |e: String| {
        Failure::new(format!("{}: {e}", path.display()))
            .hint("give the config.json that lies beside a model's weights on Hugging Face")
    };
    let config: HfConfig = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(&text))
        .map_err(|e| match e.path().to_string() {
        path if path == "." => unreadable(e.into_inner().to_string()),
        path => unreadable(format!("{path}: {}", e.into_inner())),
    })?;
    // Downloads keep a folder for each model; the file itself does not say what it is called.
    let folder = path.parent().and_then(Path::file_name).and_then(|n| n.to_str()).map(str::to_owned);
    let class = config.architectures.as_ref().and_then(|a| a.first().cloned());
    let name = name.map(str::to_owned).or(folder).or(class).unwrap_or_else(|| "model".to_owned());
    let read = config.read(&name).map_err(|e| unreadable(e.to_string()))?;
    notes.extend(read.notes);
    let mut pool = pool_of(json!({"name": "any", "preset": "llama-3.1-8b"}))?;
    pool.served_name = name;
    pool.architecture = read.architecture;
    let published = read.weights;
    pool.variants.retain(|v| published == Dtype::Bf16 || v.weights != Dtype::Bf16);
    if published != Dtype::Bf16 {
        pool.variants = vec![variant(published, None)];
    }
    Ok(pool)
}

pub(crate) fn variant(weights: Dtype, kv: Option<Dtype>) -> Variant {
    Variant {
        name: weights.as_str().to_owned(),
        weights,
        kv: kv.unwrap_or(Dtype::Bf16),
        quality: 1.0,
        source: None,
    }
}

fn question(
    flags: &Flags,
    mut pool: ModelPool,
    known: &[AcceleratorClass],
    mut notes: Vec<String>,
) -> Result<Asked, Failure> {
    let mut classes = accelerators(flags, &pool, known)?;
    if flags.engine.power_cap.is_some() {
        classes.iter_mut().for_each(|class| class.power_cap_watts = flags.engine.power_cap);
    }
    let mut variants: Vec<Variant> = if flags.weights.is_empty() {
        pool.eligible_variants().cloned().collect()
    } else {
        flags.weights.iter().map(|w| variant(*w, None)).collect()
    };
    if let Some(kv) = flags.kv {
        variants.iter_mut().for_each(|v| v.kv = kv);
    }
    if flags.context.is_some() {
        pool.max_context_tokens = flags.context;
    }
    if flags.dp.iter().any(|ranks| *ranks > 1) {
        notes.push(
            "that ranks of --dp wait for each other is priced as simulated, not as measured".to_owned(),
        );
    }
    objectives(flags, &mut pool, &mut notes);
    let (requests, arrival_scv, rps) = demand(flags, &pool);
    let load = match (flags.rps.or(rps), flags.concurrency) {
        (_, Some(clients)) => Load::Concurrency(clients),
        (Some(rps), None) => Load::Rps(rps),
        (None, None) => Load::Line,
    };
    let question = Question {
        pool,
        classes: requests,
        arrival_scv: flags.burstiness.unwrap_or(arrival_scv),
        load,
        margin: flags.margin,
        percentile: flags.percentile,
        check: flags.check,
        engine: flags.engine.config()?,
        tensor: flags.tp.clone(),
        pipeline: flags.pp.clone(),
        data: flags.dp.clone(),
        expert: flags.ep.clone(),
        notes,
    };
    Ok(Asked { question, classes, variants })
}

fn accelerators(
    flags: &Flags,
    pool: &ModelPool,
    known: &[AcceleratorClass],
) -> Result<Vec<AcceleratorClass>, Failure> {
    let wanted = if flags.gpu.is_empty() { &pool.placement.accelerators } else { &flags.gpu };
    if wanted.is_empty() {
        return Ok(known.to_vec());
    }
    wanted.iter().map(|name| accelerator(name, known)).collect()
}

/// The class of this name.
pub(crate) fn accelerator(name: &str, known: &[AcceleratorClass]) -> Result<AcceleratorClass, Failure> {
    known.iter().find(|c| c.name.eq_ignore_ascii_case(name)).cloned().ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|c| c.name.as_str()).collect();
        Failure::new(format!("there is no accelerator class {name:?}; there are {}", names.join(", ")))
            .hint("describe another GPU in an AcceleratorClass manifest and give it with -f")
    })
}

/// Objectives given as flags replace the pool's; a model without any gets those assumed.
fn objectives(flags: &Flags, pool: &mut ModelPool, notes: &mut Vec<String>) {
    let limit = |ms: Option<f64>| ms.map(|ms| Objective { percentile: flags.percentile, ms });
    let mut slo = Slo { ttft: limit(flags.ttft_ms), tpot: limit(flags.tpot_ms), e2e: limit(flags.e2e_ms) };
    if slo.is_empty() {
        if !pool.slo_classes.is_empty() {
            return;
        }
        slo = Slo { ttft: limit(Some(ASSUMED.2)), tpot: limit(Some(ASSUMED.3)), e2e: None };
        notes.push("objectives are assumed; set --ttft-ms and --tpot-ms".to_owned());
    }
    let name = pool.slo_classes.first().map_or(slo::DEFAULT_SLO_CLASS, |c| c.name.as_str()).to_owned();
    pool.slo_classes =
        vec![SloClass { name, slo, match_headers: std::collections::BTreeMap::new(), expected_share: 1.0 }];
}

/// Request classes, burstiness and, where the pool says it, the rate to serve.
fn demand(flags: &Flags, pool: &ModelPool) -> (Vec<RequestClass>, f64, Option<f64>) {
    let given = flags.input.is_some() || flags.output.is_some();
    let prior = pool.demand;
    if given || prior.is_none() {
        let mean =
            |flag: Option<f64>, of_pool: Option<f64>, assumed: f64| flag.or(of_pool).unwrap_or(assumed);
        let class = RequestClass {
            name: "all".to_owned(),
            slo_class: pool.slo_classes.first().map(|c| c.name.clone()).unwrap_or_default(),
            input_tokens: mean(flags.input, prior.map(|d| d.input.mean_tokens), ASSUMED.0),
            output_tokens: mean(flags.output, prior.map(|d| d.output.mean_tokens), ASSUMED.1),
            cached_fraction: flags.cached.unwrap_or(0.0),
            rps: 1.0,
        };
        return (vec![class], 1.0, prior.map(|d| d.rps).filter(|rps| *rps > 0.0));
    }
    let mut tracker = DemandTracker::new(DemandConfig::default());
    tracker.sync_pools(std::slice::from_ref(pool));
    let estimate = tracker.estimate(pool, 0.0);
    let mut classes = planned_classes(pool, &estimate.classes);
    if let Some(cached) = flags.cached {
        classes.iter_mut().for_each(|c| c.cached_fraction = cached);
    }
    let rps = Some(estimate.total_rps()).filter(|rps| *rps > 0.0);
    (classes, estimate.arrival_scv.max(1.0), rps)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    /// What a command line asks.
    pub(crate) fn asked(line: &str) -> Asked {
        let flags =
            Line::try_parse_from(["predict"].into_iter().chain(line.split_whitespace())).unwrap().flags;
        ask(&flags).unwrap().remove(0)
    }

    #[test]
    fn what_is_not_said_is_assumed_and_told() {
        let Asked { question, classes, variants } = asked("llama-3.1-8b");
        assert!(question.notes[0].contains("--ttft-ms"), "{:?}", question.notes);
        assert_eq!(question.default_slo().to_string(), "TTFT p95 ≤ 1000 ms, TPOT p95 ≤ 50 ms");
        assert_eq!(
            (question.mean_input(), question.mean_output(), question.load),
            (1000.0, 200.0, Load::Line)
        );
        assert_eq!(classes.len(), presets::accelerators().len());
        let names: Vec<&str> = variants.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names, ["bf16", "fp8"]);
    }

    #[test]
    fn ranks_and_experts_can_be_spread() {
        let Asked { question, classes, variants } =
            asked("deepseek-v3 --gpu h200 --tp 1 --dp 8 --ep 8 --weights fp8");
        let rows = super::super::rows::rows(&question, &classes, &variants);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].name.as_str(), rows[0].gpus), ("fp8 TP1 DP8 EP8 H200", 8));
        assert!(rows[0].fit.is_some(), "{:?}", rows[0].does_not_fit);
        assert!(question.notes.iter().any(|note| note.contains("--dp")), "{:?}", question.notes);
    }

    #[test]
    fn the_engine_is_as_asked() {
        let line = "llama-3.1-70b --gpu h100 --tp 4 --weights fp8 --engine sglang --speculate 4,0.7 --draft-model \
                    llama-3.1-8b --lora 20,16 --kv-offload 25,0.6 --enforce-eager --power-cap 400";
        let Asked { question, classes, variants } = asked(line);
        let engine = question.engine;
        assert_eq!(engine.scheduling, plimsoll_engine::Scheduling::PrefillFirst);
        assert!(!engine.cuda_graphs);
        assert_eq!(classes[0].power_cap_watts, Some(400.0));
        let speculation = engine.speculation.unwrap();
        assert_eq!((speculation.draft_tokens, speculation.acceptance), (4, 0.7));
        // 32 layers of 8 key and 8 value heads of 128, in two bytes.
        assert!(matches!(
            speculation.draft,
            plimsoll_engine::Draft::SameGpus { layers: 32, kv_bytes_per_token: 131_072.0, .. }
        ));
        assert_eq!(engine.lora.map(|l| (l.slots, l.adapters, l.max_rank)), Some((8, 20, 16)));
        assert_eq!(engine.kv_offload.map(|o| o.bytes_per_second), Some(25e9));
        let rows = super::super::rows::rows(&question, &classes, &variants);
        let fit = rows[0].fit.as_ref().unwrap();
        assert!(fit.memory.draft_bytes_per_gpu > 4e9 && fit.memory.lora_bytes_per_gpu > 0.0);
        let flags =
            |more: &str| Line::try_parse_from(["predict", "llama-3.1-8b"].into_iter().chain(more.split(' ')));
        for wrong in [
            "--speculate 4",
            "--speculate 0,0.5",
            "--speculate 4,1.5",
            "--lora 3,0",
            "--kv-offload -1,0.5",
            "--draft-elsewhere 1,1",
            "--burstiness 1e300",
            "--input 0.5",
            "--power-cap NaN",
        ] {
            assert!(flags(wrong).is_err(), "{wrong}");
        }
        let unknown =
            Line::try_parse_from("predict llama-3.1-8b --speculate 4,0.5 --draft-model no-such".split(' '));
        assert!(ask(&unknown.unwrap().flags).unwrap_err().to_string().contains("no-such"));
    }

    #[test]
    fn what_is_said_holds() {
        let line = "llama-3.1-70b --gpu H100 --weights fp8 --kv fp8 --context 4096 --e2e-ms 9000 --percentile p99 --rps 7";
        let Asked { question, classes, variants } = asked(line);
        assert_eq!(question.default_slo().to_string(), "E2E p99 ≤ 9000 ms");
        assert_eq!((question.load, question.pool.max_context_tokens), (Load::Rps(7.0), Some(4096)));
        assert_eq!((classes.len(), classes[0].name.as_str()), (1, "h100"));
        assert_eq!((variants.len(), variants[0].kv), (1, Dtype::Fp8));
        assert_eq!(question.percentiles().ttft.value(), 99.0);
    }
}
