//! One shape after the other: does it fit, how fast, how much, for what money.

use plimsoll_engine::outlook::{OperatingPoint, Percentiles, Simulated};
use plimsoll_engine::power::Grid;
use plimsoll_engine::sim::{Replica, SimPolicy, arrivals, requests, simulate, simulate_closed};
use plimsoll_engine::{
    DoesNotFit, EngineConfig, InfeasibleReason, LoadLine, MemoryFit, ReplicaModel, UnloadedLatency,
};
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{AcceleratorClass, ModelPool, Percentile, RequestClass, Role, Shape, Slo};
use plimsoll_scheduler::plan::PlannerConfig;
use serde::Serialize;

/// Requests of one simulated run, and those of them that only fill the batch.
const SIMULATED: (u64, usize) = (2200, 200);
/// More replicas than anybody runs.
const MOST_REPLICAS: f64 = 1e6;
/// Seed of simulated runs: the same question gets the same answer.
const SEED: u64 = 1;

/// How much load the shape is asked about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// As much as it takes.
    Line,
    /// So many requests per second, over as many replicas as they need.
    Rps(f64),
    /// So many requests under way at all times, on one replica.
    Concurrency(u32),
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// Model, objectives, allowed formats and parallelism.
    pub pool: ModelPool,
    /// Demand; rates are shares where the load is not given.
    pub classes: Vec<RequestClass>,
    /// Burstiness: squared coefficient of variation of inter-arrival times.
    pub arrival_scv: f64,
    /// The load.
    pub load: Load,
    /// Share by which predictions must stay below the objectives (`None`: each calibration's own error).
    pub margin: Option<f64>,
    /// Percentile of latencies that have no objective.
    pub percentile: Percentile,
    /// Whether to simulate as well.
    pub check: bool,
    /// Engine settings.
    pub engine: EngineConfig,
    /// Tensor-parallel degrees asked for by name (empty: those that make sense).
    pub tensor: Vec<u32>,
    /// Pipeline-parallel degrees (empty: the pool's).
    pub pipeline: Vec<u32>,
    /// Attention data-parallel degrees (empty: 1).
    pub data: Vec<u32>,
    /// Expert-parallel degrees (empty: 1).
    pub expert: Vec<u32>,
    /// Remarks to show.
    pub notes: Vec<String>,
}

impl Question {
    /// Objectives of an SLO class.
    pub fn slo(&self, name: &str) -> Slo {
        self.pool.slo_class(name).map(|c| c.slo).unwrap_or_default()
    }

    /// Objectives of the default class.
    pub fn default_slo(&self) -> Slo {
        self.pool.slo_classes.first().map(|c| c.slo).unwrap_or_default()
    }

    /// Which percentiles are shown.
    pub fn percentiles(&self) -> Percentiles {
        Percentiles::of(&self.default_slo(), self.percentile)
    }

    fn mean(&self, f: impl Fn(&RequestClass) -> f64) -> f64 {
        let total: f64 = self.classes.iter().map(|c| c.rps).sum();
        let n = self.classes.len().max(1) as f64;
        self.classes.iter().map(|c| f(c) * if total > 0.0 { c.rps / total } else { 1.0 / n }).sum()
    }

    /// Mean prompt, tokens.
    pub fn mean_input(&self) -> f64 {
        self.mean(|c| c.input_tokens)
    }

    /// Mean answer, tokens.
    pub fn mean_output(&self) -> f64 {
        self.mean(|c| c.output_tokens)
    }

    fn margin(&self, class: &AcceleratorClass) -> f64 {
        self.margin.unwrap_or_else(|| PlannerConfig::default().margin(class.calibration.relative_error))
    }
}

/// Latencies of a request that has the replica to itself, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Alone {
    /// To the first token.
    pub ttft_ms: f64,
    /// Per token after it.
    pub tpot_ms: f64,
}

/// What a shape that fits does.
#[derive(Debug, Clone, Serialize)]
pub struct Fit {
    /// Memory of the fullest GPU.
    pub memory: MemoryFit,
    /// Longest request, tokens.
    pub max_context_tokens: u32,
    /// Whether that is less than the model's own, for want of memory.
    pub context_shortened: bool,
    /// Requests of mean length that run at once.
    pub requests_at_once: u32,
    /// Latencies without other load.
    pub alone: Alone,
    /// Load line of one replica, requests per second; 0 if an objective is out of reach.
    pub load_line_rps: f64,
    /// The same if predictions were exact.
    pub bare_load_line_rps: f64,
    /// Rate above which the queue grows for ever.
    pub saturation_rps: f64,
    /// Share by which the line stays below the objectives.
    pub margin: f64,
    /// Relative error to expect of each latency (p90).
    pub relative_error: f64,
    /// What binds, in words.
    pub limited_by: String,
    /// Why there is no load line.
    pub infeasible: Option<String>,
    /// Replicas that the load needs.
    pub replicas: u32,
    /// One replica at the load: at its line unless a rate or a concurrency was asked for.
    pub at: Option<OperatingPoint>,
    /// The same, simulated.
    pub simulated: Option<Simulated>,
    /// Dollars per hour, all replicas.
    pub usd_per_hour: f64,
    /// Dollars per million answer tokens at that load.
    pub usd_per_million_output_tokens: Option<f64>,
    /// Energy at the accelerators, prompts and idle time included, joules per answer token at that load.
    pub joules_per_output_token: Option<f64>,
    /// Emissions of a million answer tokens, grams of CO₂ equivalent: the class's data centre and grid.
    pub grams_co2e_per_million_output_tokens: Option<f64>,
    /// For views that ask on.
    #[serde(skip)]
    pub model: ReplicaModel,
}

/// One shape.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The shape, as people say it.
    pub name: String,
    /// The shape.
    pub shape: Shape,
    /// GPUs of one replica.
    pub gpus: u32,
    /// List price of one replica, dollars per hour.
    pub replica_usd_per_hour: f64,
    /// Memory of one GPU, bytes.
    pub memory_bytes_per_gpu: f64,
    /// Why it cannot run at all.
    pub does_not_fit: Option<String>,
    /// What it does.
    pub fit: Option<Box<Fit>>,
}

impl Row {
    /// Whether it serves within the objectives.
    pub fn serves(&self) -> bool {
        self.fit.as_ref().is_some_and(|f| f.infeasible.is_none())
    }
}

/// Every allowed shape of the question on these classes: those that serve first, the cheapest on top.
pub fn rows(question: &Question, classes: &[AcceleratorClass], variants: &[Variant]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for class in classes {
        for variant in variants {
            for shape in shapes(question, class, variant) {
                rows.push(row(question, class, variant, shape));
            }
        }
    }
    let key = |r: &Row| match &r.fit {
        Some(f) if f.infeasible.is_none() => {
            let tokens = f.usd_per_million_output_tokens.unwrap_or(f64::INFINITY);
            let usd = if matches!(question.load, Load::Rps(_)) { f.usd_per_hour } else { tokens };
            (0, usd, f.at.map_or(f64::INFINITY, |a| a.tpot_ms))
        }
        Some(f) => (1, r.replica_usd_per_hour, f.alone.tpot_ms),
        None => (2, 0.0, 0.0),
    };
    rows.sort_by(|a, b| {
        let (a, b) = (key(a), key(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.total_cmp(&b.2))
    });
    rows
}

fn shapes(question: &Question, class: &AcceleratorClass, variant: &Variant) -> Vec<Shape> {
    let pool = &question.pool;
    let of_pool =
        |asked: &[u32], pools: &[u32]| if asked.is_empty() { pools.to_vec() } else { asked.to_vec() };
    let mut tensor = of_pool(&question.tensor, &pool.parallelism.tensor);
    if tensor.is_empty() {
        let degrees = (0..8).map(|e| 1_u32 << e).filter(|tp| *tp <= class.link_domain_size.max(1));
        tensor = degrees.filter(|tp| pool.architecture.supports_tensor_parallel(*tp)).collect();
    }
    let mut pipeline = of_pool(&question.pipeline, &pool.parallelism.pipeline);
    if pipeline.is_empty() {
        pipeline.push(1);
    }
    let (data, expert) = (of_pool(&question.data, &[1]), of_pool(&question.expert, &[1]));
    let mut shapes = Vec::new();
    for pipeline_parallel in &pipeline {
        for (data_parallel, expert_parallel) in data.iter().flat_map(|d| expert.iter().map(move |e| (*d, *e)))
        {
            shapes.extend(tensor.iter().map(|tensor_parallel| Shape {
                variant: variant.name.clone(),
                accelerator: class.name.clone(),
                tensor_parallel: *tensor_parallel,
                pipeline_parallel: *pipeline_parallel,
                data_parallel,
                expert_parallel,
                role: Role::Mixed,
            }));
        }
    }
    shapes
}

/// The replica's model. Where the longest request was left open, it becomes what the KV cache holds, as engines do it
/// with `--max-model-len auto`, as long as the requests asked about still fit.
fn replica(
    question: &Question,
    class: &AcceleratorClass,
    variant: &Variant,
    shape: &Shape,
) -> Result<(ReplicaModel, bool), DoesNotFit> {
    let pool = &question.pool;
    let mut architecture = pool.served_architecture();
    let longest = question.classes.iter().map(|c| c.input_tokens + c.output_tokens).fold(1.0, f64::max);
    match ReplicaModel::new(&architecture, variant, class, shape, &question.engine) {
        Err(DoesNotFit::KvCache { kv_tokens, .. })
            if pool.max_context_tokens.is_none() && kv_tokens >= longest =>
        {
            architecture.max_context_tokens = kv_tokens as u32;
            ReplicaModel::new(&architecture, variant, class, shape, &question.engine).map(|m| (m, true))
        }
        other => other.map(|m| (m, false)),
    }
}

fn row(question: &Question, class: &AcceleratorClass, variant: &Variant, shape: Shape) -> Row {
    let gpus = shape.gpus();
    let usd = class.usd_per_hour * f64::from(gpus);
    let (does_not_fit, fit) = match replica(question, class, variant, &shape) {
        Ok((model, shortened)) => (None, Some(Box::new(fit(question, class, model, shortened, usd)))),
        Err(reason) => (Some(reason.to_string()), None),
    };
    Row {
        name: shape.to_string(),
        shape,
        gpus,
        replica_usd_per_hour: usd,
        memory_bytes_per_gpu: class.memory_bytes,
        does_not_fit,
        fit,
    }
}

fn alone(question: &Question, unloaded: &[UnloadedLatency]) -> Alone {
    let total: f64 = question.classes.iter().map(|c| c.rps).sum();
    let n = unloaded.len().max(1) as f64;
    let mean = |f: &dyn Fn(&UnloadedLatency) -> f64| -> f64 {
        let weighted = question.classes.iter().zip(unloaded);
        weighted.map(|(c, u)| f(u) * if total > 0.0 { c.rps / total } else { 1.0 / n }).sum()
    };
    Alone { ttft_ms: mean(&|u| u.ttft_ms), tpot_ms: mean(&|u| u.tpot_ms) }
}

/// Why there is no load line: the margin is told apart from the prediction.
fn no_line(question: &Question, reason: &InfeasibleReason, margin: f64) -> String {
    let (metric, objective, ms, class, how) = match reason {
        InfeasibleReason::Objective { metric, objective, predicted_ms, class } => {
            (metric, objective, predicted_ms, class, "alone".to_owned())
        }
        InfeasibleReason::Burst { metric, objective, predicted_ms, burst, class } => {
            (metric, objective, predicted_ms, class, format!("in a burst of {burst:.0} requests"))
        }
        other => return other.to_string(),
    };
    let of = match question.classes.iter().find(|c| &c.name == class) {
        Some(c) if question.classes.len() > 1 => format!(" for prompts of {:.0} tokens", c.input_tokens),
        _ => String::new(),
    };
    let spare = if margin > 0.0 {
        format!(", {ms:.0} ms with {:.0} % to spare", 100.0 * margin)
    } else {
        String::new()
    };
    format!(
        "{metric} {} is {:.0} ms {how}{of}{spare}: more than {:.0} ms",
        objective.percentile,
        ms / (1.0 + margin),
        objective.ms
    )
}

fn fit(
    question: &Question,
    class: &AcceleratorClass,
    model: ReplicaModel,
    context_shortened: bool,
    usd: f64,
) -> Fit {
    let (mix, scv) = (question.classes.as_slice(), question.arrival_scv);
    let slos = |name: &str| question.slo(name);
    let margin = question.margin(class);
    let line: LoadLine = model.load_line(mix, &slos, scv, margin);
    let bare = if margin > 0.0 { model.load_line(mix, &slos, scv, 0.0).rps } else { line.rps };
    let infeasible = line.infeasible.as_ref().map(|r| no_line(question, r, margin));
    let mut made = Fit {
        memory: *model.memory(),
        max_context_tokens: model.max_context_tokens(),
        context_shortened,
        requests_at_once: model.requests_at_once(mix),
        alone: alone(question, &line.unloaded),
        load_line_rps: line.rps,
        bare_load_line_rps: bare,
        saturation_rps: line.saturation_rps,
        margin,
        relative_error: model.relative_error(),
        limited_by: line.binding.as_ref().map(ToString::to_string).unwrap_or_default(),
        infeasible,
        replicas: 1,
        at: None,
        simulated: None,
        usd_per_hour: usd,
        usd_per_million_output_tokens: None,
        joules_per_output_token: None,
        grams_co2e_per_million_output_tokens: None,
        model,
    };
    operate(question, class, &mut made, usd);
    made
}

/// Puts the replicas to work.
fn operate(question: &Question, class: &AcceleratorClass, fit: &mut Fit, usd: f64) {
    let percentiles = question.percentiles();
    let slo = question.default_slo();
    let (mix, scv) = (question.classes.as_slice(), question.arrival_scv);
    let rps = match question.load {
        Load::Concurrency(clients) => {
            let Some(seen) = closed_loop(fit, question, clients) else { return };
            fit.infeasible = missed(&slo, &percentiles, &seen).or(fit.infeasible.take());
            fit.at = Some(OperatingPoint {
                rps: seen.rps,
                running: f64::from(clients.min(fit.requests_at_once)),
                kv_usage: (seen.rps * 1e-3 * seen.e2e_ms).min(f64::from(clients))
                    * (question.mean_input() + 0.5 * question.mean_output())
                    / fit.memory.kv_tokens,
                ttft_ms: seen.ttft_ms,
                tpot_ms: seen.tpot_ms,
                e2e_ms: seen.e2e_ms,
                watts: fit.model.operating_point(mix, seen.rps, 1.0, &percentiles).watts,
            });
            fit.simulated = Some(seen);
            seen.rps
        }
        Load::Line | Load::Rps(_) if fit.load_line_rps <= 0.0 => return,
        Load::Line => fit.load_line_rps,
        Load::Rps(rps) => {
            let replicas = (rps / fit.load_line_rps - 1e-9).ceil().max(1.0);
            if replicas > MOST_REPLICAS {
                fit.infeasible = Some(format!("{rps:.3e} rps take more than {MOST_REPLICAS:.0e} replicas"));
                return;
            }
            fit.replicas = replicas as u32;
            rps / f64::from(fit.replicas)
        }
    };
    if !matches!(question.load, Load::Concurrency(_)) {
        fit.at = Some(fit.model.operating_point(mix, rps, scv, &percentiles));
        if question.check {
            fit.simulated = open_loop(fit, question, rps, &percentiles);
        }
    }
    fit.usd_per_hour = usd * f64::from(fit.replicas);
    let tokens_per_hour = 3600.0 * rps * question.mean_output();
    fit.usd_per_million_output_tokens = (tokens_per_hour > 0.0).then(|| 1e6 * usd / tokens_per_hour);
    fit.joules_per_output_token =
        fit.at.filter(|_| tokens_per_hour > 0.0).map(|at| 3600.0 * at.watts / tokens_per_hour);
    // Where the zone is not known, the dirtiest grid that it may be.
    let electricity = &class.electricity;
    let grid = Grid { pue: electricity.pue, grams_per_kwh: electricity.intensity("") };
    fit.grams_co2e_per_million_output_tokens = fit.joules_per_output_token.map(|j| grid.grams(1e6 * j));
}

/// A simulated run at a rate.
pub fn open_loop(fit: &Fit, question: &Question, rps: f64, percentiles: &Percentiles) -> Option<Simulated> {
    let (count, warm_up) = SIMULATED;
    let arrivals = arrivals(&question.classes, rps, question.arrival_scv, count, SEED);
    let outcomes = simulate(Replica::new(fit.model.clone(), SimPolicy::default()), &arrivals);
    Simulated::of(&outcomes, warm_up, percentiles, &question.default_slo())
}

fn closed_loop(fit: &Fit, question: &Question, clients: u32) -> Option<Simulated> {
    let count = (u64::from(clients) * 8).clamp(100, 20_000);
    let requests = requests(&question.classes, count, SEED);
    let replica = Replica::new(fit.model.clone(), SimPolicy::default());
    let outcomes = simulate_closed(replica, &requests, clients as usize);
    // The first of all clients come at one moment, and so do, nearly, their second ones.
    let warm_up = (2 * clients as usize).min(outcomes.len() / 2);
    Simulated::of(&outcomes, warm_up, &question.percentiles(), &question.default_slo())
}

/// The first objective that a run misses.
fn missed(slo: &Slo, percentiles: &Percentiles, seen: &Simulated) -> Option<String> {
    [
        ("TTFT", slo.ttft, percentiles.ttft, seen.ttft_ms),
        ("TPOT", slo.tpot, percentiles.tpot, seen.tpot_ms),
        ("E2E", slo.e2e, percentiles.e2e, seen.e2e_ms),
    ]
    .into_iter()
    .find_map(|(name, objective, p, ms)| {
        let limit = objective.filter(|o| ms > o.ms)?;
        Some(format!("{name} {p} is {ms:.0} ms at that concurrency, more than {:.0} ms", limit.ms))
    })
}
