//! `plimsoll profile`: measures a running endpoint at a few points and calibrates the engine model of its GPU.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use plimsoll_engine::calibrate::{Fit, Observation, Prior, Subject, fit};
use plimsoll_engine::measurements::{self, Measurement};
use plimsoll_engine::{EngineConfig, ReplicaModel};
use plimsoll_fleet::{AcceleratorClass, Dtype, Role, Shape, presets};
use plimsoll_simulator::profile::{ProfileConfig, Profiler, Sample};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, Outcome};
use crate::paint::Paint;
use crate::prediction::ask::{accelerator, configured, named, positive, share, variant};
use crate::profiling::points::{Limits, Point, measurement, points};
use crate::profiling::{manifest, report};
use crate::{manifests, signals};

/// Measure a running OpenAI endpoint at a few points and write a calibration of its GPU for plans and predictions
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Base URL of the endpoint, e.g. `http://127.0.0.1:8000/v1`: the engine itself, with nothing else using it
    #[arg(long)]
    url: String,
    /// Model to ask for
    #[arg(long)]
    model: String,
    /// Which model that is: a preset's name, e.g. llama-3.1-8b [default: --model]
    #[arg(long, value_name = "PRESET", conflicts_with = "config")]
    arch: Option<String>,
    /// Which model that is: its config.json as on Hugging Face
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Accelerator class that it runs on, e.g. h100
    #[arg(long, visible_alias = "accelerator", value_name = "CLASS")]
    gpu: String,
    /// Manifest file or folder that describes the class, if it is no preset; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Tensor-parallel degree it runs with
    #[arg(long, visible_alias = "tensor-parallel", default_value_t = 1, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    tp: u32,
    /// Pipeline-parallel degree it runs with
    #[arg(long, visible_alias = "pipeline-parallel", default_value_t = 1, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=64))]
    pp: u32,
    /// Its weight format [default: as the model is published]
    #[arg(long, visible_alias = "dtype", value_name = "DTYPE")]
    weights: Option<Dtype>,
    /// Its KV-cache format
    #[arg(long, default_value = "bf16", value_name = "DTYPE")]
    kv: Dtype,
    /// Its --max-num-seqs
    #[arg(long, default_value_t = EngineConfig::default().max_running, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=65536))]
    max_num_seqs: u32,
    /// Its --max-num-batched-tokens
    #[arg(long, default_value_t = EngineConfig::default().max_batched_tokens, value_name = "TOKENS")]
    max_num_batched_tokens: u32,
    /// Its --gpu-memory-utilization
    #[arg(long, default_value_t = EngineConfig::default().memory_utilisation, value_name = "SHARE", value_parser = share)]
    gpu_memory_utilization: f64,
    /// Engine: vllm, sglang, trtllm, …
    #[arg(long, default_value = "vllm")]
    engine: String,
    /// Environment variable that holds the API key
    #[arg(long, value_name = "VAR", default_value = "OPENAI_API_KEY")]
    api_key_env: String,
    /// Time for all points together, minutes
    #[arg(long, default_value_t = 5.0, value_name = "MINUTES", value_parser = positive)]
    max_minutes: f64,
    /// Most points
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=24))]
    max_points: u8,
    /// Most requests under way at once
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_concurrency: u32,
    /// Longest request to send, tokens [default: 8192, or what the endpoint takes]
    #[arg(long, default_value_t = 8192, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(64..))]
    max_tokens: u32,
    /// Write the calibrated AcceleratorClass to this file
    #[arg(long, default_value = "calibration.yaml", value_name = "FILE")]
    out: PathBuf,
    /// Write what was measured to this file, as CSV
    #[arg(long, value_name = "FILE")]
    measurements: Option<PathBuf>,
    /// Seed of the prompts [default: the time, so that no prompt was seen before]
    #[arg(long)]
    seed: Option<u64>,
    /// Show the points and leave the endpoint alone
    #[arg(long)]
    dry_run: bool,
}

/// Exit status when the endpoint was measured in part only: interrupted, or points failed.
const IN_PART: u8 = 3;

/// Runs it.
///
/// # Errors
/// If the model or class is not known, the endpoint cannot be measured, or a file cannot be written.
pub async fn run(args: &Args) -> Outcome {
    let paint = Paint::stdout();
    let (mut subject, notes) = subject(args)?;
    for note in notes {
        eprintln!("note: {note}");
    }
    if args.dry_run {
        subject.architecture.max_context_tokens =
            subject.architecture.max_context_tokens.min(args.max_tokens);
        for point in chosen(args, &subject)? {
            println!("{}   about {:.0} s   {}", load(&point), point.estimate_ms / 1e3, point.why);
        }
        return Ok(());
    }
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone());
    let profiler = tokio::select! {
        met = Profiler::connect(endpoint(args)) => met.map_err(|e| Failure::new(e.to_string()))?,
        () = stop.cancelled() => return Err(interrupted()),
    };
    for note in &profiler.notes {
        eprintln!("note: {note}");
    }
    let longest = args.max_tokens.min(profiler.max_model_len.unwrap_or(u32::MAX));
    subject.architecture.max_context_tokens = subject.architecture.max_context_tokens.min(longest);
    let points = chosen(args, &subject)?;
    let (samples, mut failures) = measure(args, &profiler, &points, &stop).await;
    if samples.is_empty() {
        let why =
            failures.pop().unwrap_or_else(|| "interrupted before the first point was measured".to_owned());
        return Err(Failure::new(format!("nothing was measured: {why}")));
    }
    let cached = samples.iter().filter(|s| s.cached_tokens > 32.0).count();
    if cached > 0 {
        eprintln!(
            "note: at {cached} points part of the prompt came from a cache; it is not counted as computed"
        );
    }
    let subject = Arc::new(subject);
    let source = format!("plimsoll profile of {}", args.model);
    let measured: Vec<Measurement> = samples.iter().map(|s| measurement(&subject, s, &source)).collect();
    if let Some(path) = &args.measurements {
        write(path, &measurements::write(&measured))?;
    }
    let observations: Vec<Observation> = measured.iter().filter_map(Measurement::observation).collect();
    finish(args, &subject, &observations, paint)?;
    if stop.is_cancelled() {
        failures.push("interrupted".to_owned());
    }
    if failures.is_empty() {
        return Ok(());
    }
    let all = points.len();
    Err(Failure::new(format!("{} of {all} points measured: {}", samples.len(), failures.join("; ")))
        .code(IN_PART))
}

fn interrupted() -> Failure {
    Failure::new("interrupted before anything was measured")
}

fn endpoint(args: &Args) -> ProfileConfig {
    ProfileConfig {
        url: args.url.clone(),
        model: args.model.clone(),
        api_key: std::env::var(&args.api_key_env).ok().filter(|key| !key.is_empty()),
        timeout: Duration::try_from_secs_f64(60.0 * args.max_minutes).unwrap_or(Duration::from_secs(300)),
        // Nanoseconds since 1970 fit into 64 bits until 2554.
        seed: args.seed.unwrap_or_else(|| jiff::Timestamp::now().as_nanosecond() as u64),
    }
}

/// What is measured: model, format, class, shape.
fn subject(args: &Args) -> Result<(Subject, Vec<String>), Failure> {
    let mut notes = Vec::new();
    let (known, pools) = if args.files.is_empty() {
        (presets::accelerators(), Vec::new())
    } else {
        let loaded = manifests::load(&args.files)?;
        notes.extend(loaded.problems.iter().map(|p| format!("skipped {p}")));
        (loaded.snapshot.accelerators, loaded.snapshot.pools)
    };
    let class: AcceleratorClass = accelerator(&args.gpu, &known)?;
    let pool = match &args.config {
        Some(path) => configured(path, Some(&args.model), &mut notes)?,
        None => named(args.arch.as_ref().unwrap_or(&args.model), &pools).map_err(|e| {
            if args.arch.is_some() { e } else { e.hint("say with --arch or --config which model it is") }
        })?,
    };
    let published = pool.variants.first().map_or(Dtype::Bf16, |v| v.weights);
    let variant = variant(args.weights.unwrap_or(published), Some(args.kv));
    let shape = Shape {
        variant: variant.name.clone(),
        accelerator: class.name.clone(),
        tensor_parallel: args.tp,
        pipeline_parallel: args.pp,
        data_parallel: 1,
        expert_parallel: 1,
        role: Role::Mixed,
    };
    let config = EngineConfig {
        max_running: args.max_num_seqs,
        max_batched_tokens: args.max_num_batched_tokens,
        memory_utilisation: args.gpu_memory_utilization,
        ..EngineConfig::of(&args.engine)
    };
    let subject = Subject {
        engine: args.engine.clone(),
        engine_version: String::new(),
        architecture: pool.architecture,
        variant,
        accelerator: class,
        shape,
        config,
    };
    Ok((subject, notes))
}

fn chosen(args: &Args, subject: &Subject) -> Result<Vec<Point>, Failure> {
    let limits = Limits {
        count: usize::from(args.max_points),
        max_concurrency: args.max_concurrency,
        max_tokens: args.max_tokens.min(subject.architecture.max_context_tokens),
        budget_ms: 60e3 * args.max_minutes,
    };
    let chosen = points(subject, &limits).map_err(|e| Failure::new(e.to_string()))?;
    if chosen.is_empty() {
        return Err(Failure::new(format!("no point fits into {} minutes", args.max_minutes))
            .hint("allow more time with --max-minutes, or longer requests with --max-tokens"));
    }
    Ok(chosen)
}

fn load(point: &Point) -> String {
    let l = &point.load;
    format!("{} × {} in, {} out", l.concurrency, l.input_tokens, l.output_tokens)
}

/// Measures the points in order until the time is over or a signal comes. Points that fail are told, and passed over.
async fn measure(
    args: &Args,
    profiler: &Profiler,
    points: &[Point],
    stop: &CancellationToken,
) -> (Vec<Sample>, Vec<String>) {
    let bar = Progress::new(points);
    let end =
        Instant::now() + Duration::try_from_secs_f64(60.0 * args.max_minutes).unwrap_or(Duration::MAX / 4);
    let (mut samples, mut failures) = (Vec::new(), Vec::new());
    for (i, point) in points.iter().enumerate() {
        let begun = Instant::now();
        bar.begin(i, point);
        let outcome = tokio::select! {
            outcome = profiler.measure(&point.load, |done, all| bar.within(i, f64::from(done) / f64::from(all))) => outcome,
            () = stop.cancelled() => break,
            () = tokio::time::sleep_until(end) => {
                failures.push(format!("the time was over at {}", load(point)));
                break;
            }
        };
        match outcome {
            Ok(sample) => {
                bar.measured(i, begun.elapsed(), &sample);
                samples.push(sample);
            }
            Err(e) => failures.push(format!("{}: {e}", load(point))),
        }
    }
    bar.bar.finish_and_clear();
    (samples, failures)
}

/// A bar in estimated milliseconds, corrected by what the points so far took.
struct Progress {
    bar: ProgressBar,
    /// Where each point begins, and where the last ends.
    edges: Vec<f64>,
}

impl Progress {
    fn new(points: &[Point]) -> Self {
        let mut edges = vec![0.0];
        for p in points {
            edges.push(edges.last().copied().unwrap_or(0.0) + p.estimate_ms);
        }
        let total = edges.last().copied().unwrap_or(0.0);
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total as u64), target);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:24.cyan/blue} {msg}   {elapsed}, about {eta} left")
        {
            bar.set_style(style.progress_chars("━━╌"));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, edges }
    }

    fn begin(&self, i: usize, point: &Point) {
        self.bar.set_message(format!("{}/{}  {}", i + 1, self.edges.len() - 1, load(point)));
        self.within(i, 0.0);
    }

    fn within(&self, i: usize, share: f64) {
        let edge = |i: usize| self.edges.get(i).copied().unwrap_or(0.0);
        self.bar.set_position((edge(i) + share * (edge(i + 1) - edge(i))) as u64);
    }

    fn measured(&self, i: usize, took: Duration, sample: &Sample) {
        self.within(i, 1.0);
        if !std::io::stderr().is_terminal() {
            let tpot = sample.tpot_ms.map(|t| format!(", TPOT {t:.1} ms")).unwrap_or_default();
            eprintln!(
                "{}/{}  {} × {:.0} in, {:.0} out: TTFT {:.0} ms{tpot}   {:.0} s",
                i + 1,
                self.edges.len() - 1,
                sample.concurrency,
                sample.input_tokens,
                sample.output_tokens,
                sample.ttft_ms,
                took.as_secs_f64()
            );
        }
    }
}

/// Fits, shows and writes.
fn finish(args: &Args, subject: &Arc<Subject>, observations: &[Observation], paint: Paint) -> Outcome {
    let shape = format!("{} as {}", subject.architecture.name, subject.shape);
    let before = subject.model(&subject.accelerator.calibration).map_err(|e| Failure::new(e.to_string()))?;
    let found: Fit = fit(observations, &Prior::around(&subject.accelerator.calibration))
        .map_err(|e| Failure::caused("no coefficients were found", e))?;
    let after: ReplicaModel = subject.model(&found.calibration).map_err(|e| Failure::new(e.to_string()))?;
    println!("{}", paint.bold(&format!("{shape}, measured against predicted")));
    for line in report::table(&before, Some(&after), observations, paint) {
        println!("{line}");
    }
    let summary = report::summary(&before, &after, observations);
    for line in &summary {
        println!("{line}");
    }
    println!("error to expect of other loads: ± {:.0} %", 100.0 * found.relative_error);
    if let Some(doubt) = report::doubt(&before, observations, &shape) {
        eprintln!("warning: {doubt}");
    }
    let class = &subject.accelerator.name;
    let own = if args.files.is_empty() { None } else { manifests::accelerator_class(&args.files, class)? };
    let mut comments = vec![format!(
        "Measured by plimsoll profile on {}: {shape}, {} points.",
        jiff::Timestamp::now().strftime("%Y-%m-%d"),
        observations.len()
    )];
    comments.extend(summary);
    let text = manifest::manifest(class, own, &found.calibration, &comments)?;
    write(&args.out, &text)?;
    let out = args.out.display();
    println!("wrote {out}; to use it: kubectl apply -f {out}, or plimsoll plan -f {out} -f DIR");
    Ok(())
}

fn write(path: &std::path::Path, text: &str) -> Outcome {
    std::fs::write(path, text).map_err(|e| Failure::caused(format!("failed to write {}", path.display()), e))
}
