//! Predictions of measured times with coefficients that know more or less of them.

use std::collections::BTreeMap;

use plimsoll_engine::calibrate::{Fit, Metric, Observation, Prior, Traits, Workload, fit, most_telling};
use plimsoll_engine::measurements::Measurement;
use plimsoll_fleet::Calibration;

/// What the coefficients were fitted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    /// Nothing here: the presets'.
    Shipped,
    /// The engine's measurements of other models on the GPU, and a prior from everything else but this model.
    OtherModels,
    /// A prior from all other GPUs.
    OtherGpus,
    /// Ten measurements, and a prior from all other GPUs; judged by the rest.
    Ten,
    /// All measurements of the engine on the GPU, the judged ones included.
    All,
}

impl Scheme {
    pub const ALL: [Self; 5] = [Self::Shipped, Self::OtherModels, Self::OtherGpus, Self::Ten, Self::All];

    pub fn name(self) -> &'static str {
        match self {
            Self::Shipped => "shipped",
            Self::OtherModels => "other models",
            Self::OtherGpus => "other GPUs",
            Self::Ten => "10 samples",
            Self::All => "full fit",
        }
    }
}

/// What coefficients belong to: a version of an engine on a GPU with one weight format, dense models and mixtures of
/// experts apart.
pub type Group = (String, String, String);

/// One prediction.
#[derive(Debug, Clone)]
pub struct Prediction {
    pub row: usize,
    pub scheme: Scheme,
    pub metric: Metric,
    pub predicted_ms: f64,
    pub measured_ms: f64,
    /// Error that the coefficients state for themselves (p90).
    pub stated: f64,
}

impl Prediction {
    pub fn error(&self) -> f64 {
        self.predicted_ms / self.measured_ms - 1.0
    }
}

pub struct Study {
    pub rows: Vec<Measurement>,
    pub predictions: Vec<Prediction>,
    pub fits: BTreeMap<Group, Fit>,
    /// What all of them together say of each engine on each GPU.
    pub carried: BTreeMap<Group, Prior>,
    /// Measured replicas that the model says cannot exist.
    pub impossible: BTreeMap<String, usize>,
}

pub fn group(m: &Measurement) -> Group {
    let s = &m.subject;
    let experts = if s.architecture.moe.is_some() { " MoE" } else { "" };
    let engine = format!("{} {}", s.engine, s.engine_version);
    (engine.trim_end().to_owned(), s.accelerator.name.clone(), format!("{}{experts}", s.variant.weights))
}

/// Whether what is known of one group may serve another.
fn related(a: &Group, b: &Group) -> bool {
    a.2.ends_with("MoE") == b.2.ends_with("MoE")
}

fn traits(m: &Measurement) -> Traits {
    Traits::new(&m.subject.engine, &m.subject.engine_version, &m.subject.accelerator)
}

/// Groups of the rows for which `keep` holds, fitted each by itself.
fn fit_groups(rows: &[Measurement], keep: &dyn Fn(&Measurement) -> bool) -> BTreeMap<Group, (Traits, Fit)> {
    let mut by_group: BTreeMap<Group, Vec<&Measurement>> = BTreeMap::new();
    for m in rows.iter().filter(|m| keep(m)) {
        by_group.entry(group(m)).or_default().push(m);
    }
    let fitted = |(g, members): (Group, Vec<&Measurement>)| {
        let first = members.first()?;
        Some((g, (traits(first), fitted(&members, &neutral(first))?)))
    };
    by_group.into_iter().filter_map(fitted).collect()
}

/// Coefficients of these rows: of the closed forms, then the API time from first tokens under load.
fn fitted(rows: &[&Measurement], prior: &Prior) -> Option<Fit> {
    let observed: Vec<Observation> = rows.iter().filter_map(|m| m.observation()).collect();
    let found = fit(&observed, prior).ok()?;
    let pairs: Vec<(f64, f64)> = rows
        .iter()
        .filter_map(|m| Some((m.simulated_ttft_ms(&found.calibration)?, m.measured.ttft_ms?)))
        .collect();
    Some(found.with_first_tokens(&pairs))
}

fn pooled(fits: &BTreeMap<Group, (Traits, Fit)>, m: &Measurement) -> Prior {
    let own = group(m);
    let near = fits.iter().filter(|(g, _)| related(g, &own));
    let fits: Vec<(Traits, &Fit)> = near.map(|(_, (t, f))| (t.clone(), f)).collect();
    Prior::pooled(&fits, &traits(m), &neutral(m))
}

/// Round figures, since the presets' own were fitted to public measurements: whoever judges by those must not
/// start there.
fn neutral(m: &Measurement) -> Prior {
    Prior::around(&Calibration {
        eta_compute: 0.6,
        eta_attention: 0.6,
        eta_weights: 0.9,
        eta_kv: 0.9,
        eta_link: 0.7,
        layer_overhead_us: 60.0,
        step_overhead_us: 50.0,
        request_overhead_us: 20.0,
        allreduce_alpha_us: 3.0,
        api_overhead_ms: 15.0,
        ..m.subject.accelerator.calibration.clone()
    })
}

impl Study {
    /// Predicts every measured time under every scheme; without `simulate`, no mean times to first token under load.
    pub fn new(rows: Vec<Measurement>, simulate: bool) -> Self {
        let mut impossible = BTreeMap::new();
        let rows: Vec<Measurement> = rows
            .into_iter()
            .filter(|m| match m.subject.model(&m.subject.accelerator.calibration) {
                Ok(_) => true,
                Err(e) => {
                    *impossible.entry(format!("{}: {e}", m.subject.engine)).or_insert(0) += 1;
                    false
                }
            })
            .collect();
        let mut rows = rows;
        if !simulate {
            rows.iter_mut().for_each(|m| m.requests_per_client = None);
        }
        let mut study = Self {
            rows,
            predictions: Vec::new(),
            fits: BTreeMap::new(),
            carried: BTreeMap::new(),
            impossible,
        };
        let all = fit_groups(&study.rows, &|_| true);
        let mut out = Vec::new();
        for (row, m) in study.rows.iter().enumerate() {
            predict(row, m, Scheme::Shipped, &m.subject.accelerator.calibration, &mut out);
            if let Some((_, f)) = all.get(&group(m)) {
                predict(row, m, Scheme::All, &f.calibration, &mut out);
            }
        }
        study.without_models(&mut out);
        study.without_gpus(&mut out);
        study.predictions = out;
        for m in &study.rows {
            study.carried.entry(group(m)).or_insert_with(|| pooled(&all, m));
        }
        study.fits = all.into_iter().map(|(g, (_, f))| (g, f)).collect();
        study
    }

    fn names(&self, f: &dyn Fn(&Measurement) -> String) -> Vec<String> {
        let mut names: Vec<String> = self.rows.iter().map(f).collect();
        names.sort();
        names.dedup();
        names
    }

    fn without_models(&self, out: &mut Vec<Prediction>) {
        let model = |m: &Measurement| m.subject.architecture.name.clone();
        for held in self.names(&model) {
            let fits = fit_groups(&self.rows, &|m| model(m) != held);
            let mut done: BTreeMap<Group, Calibration> = BTreeMap::new();
            for (row, m) in self.rows.iter().enumerate().filter(|(_, m)| model(m) == held) {
                let calibration = done.entry(group(m)).or_insert_with(|| {
                    let others: BTreeMap<_, _> = fits
                        .iter()
                        .filter(|(g, _)| **g != group(m))
                        .map(|(g, f)| (g.clone(), f.clone()))
                        .collect();
                    let prior = pooled(&others, m);
                    let near: Vec<&Measurement> =
                        self.rows.iter().filter(|r| group(r) == group(m) && model(r) != held).collect();
                    fitted(&near, &prior).map_or_else(|| prior.stated(), |f| f.calibration)
                });
                predict(row, m, Scheme::OtherModels, calibration, out);
            }
        }
    }

    fn without_gpus(&self, out: &mut Vec<Prediction>) {
        let gpu = |m: &Measurement| m.subject.accelerator.name.clone();
        for held in self.names(&gpu) {
            let fits = fit_groups(&self.rows, &|m| gpu(m) != held);
            let mut done: BTreeMap<Group, Calibration> = BTreeMap::new();
            let mut groups: BTreeMap<Group, Vec<usize>> = BTreeMap::new();
            for (row, m) in self.rows.iter().enumerate().filter(|(_, m)| gpu(m) == held) {
                let calibration = done.entry(group(m)).or_insert_with(|| pooled(&fits, m).stated());
                predict(row, m, Scheme::OtherGpus, calibration, out);
                groups.entry(group(m)).or_default().push(row);
            }
            for members in groups.values() {
                self.ten(&fits, members, out);
            }
        }
    }

    /// The ten rows that a designer of the measurement would have chosen, not knowing the results.
    fn ten(&self, fits: &BTreeMap<Group, (Traits, Fit)>, members: &[usize], out: &mut Vec<Prediction>) {
        let Some(first) = members.first().and_then(|i| self.rows.get(*i)) else { return };
        let rows = members.iter().filter_map(|i| Some((*i, self.rows.get(*i)?.observation()?)));
        let (rows, observed): (Vec<usize>, Vec<Observation>) = rows.unzip();
        if rows.len() < 15 {
            return;
        }
        let prior = pooled(fits, first);
        // As with probes, nothing that nearly fills the cache: queueing would be measured there.
        let (at, roomy): (Vec<usize>, Vec<Observation>) =
            observed.iter().cloned().enumerate().filter(|(_, o)| has_room(o)).unzip();
        let chosen = most_telling(&roomy, &prior, 10);
        let chosen: Vec<usize> = chosen.iter().filter_map(|i| at.get(*i).copied()).collect();
        let few: Vec<&Measurement> = chosen.iter().filter_map(|i| self.rows.get(*rows.get(*i)?)).collect();
        let Some(found) = fitted(&few, &prior) else { return };
        for (_, row) in rows.iter().enumerate().filter(|(at, _)| !chosen.contains(at)) {
            if let Some(m) = self.rows.get(*row) {
                predict(*row, m, Scheme::Ten, &found.calibration, out);
            }
        }
    }
}

fn has_room(o: &Observation) -> bool {
    let Ok(model) = o.subject.model(&o.subject.accelerator.calibration) else { return false };
    let tokens = match o.workload {
        Workload::ClosedLoop { concurrency: n, input_tokens, output_tokens }
        | Workload::StaticBatch { batch: n, input_tokens, output_tokens } => {
            n * (input_tokens + output_tokens)
        }
        _ => 0.0,
    };
    tokens < 0.8 * model.memory().kv_tokens
}

fn predict(row: usize, m: &Measurement, scheme: Scheme, c: &Calibration, out: &mut Vec<Prediction>) {
    let Some(o) = m.observation() else { return };
    let Ok(model) = m.subject.model(c) else { return };
    let simulated = m.simulated_ttft_ms(c);
    for metric in Metric::ALL {
        let Some(measured_ms) = o.measured.get(metric) else { continue };
        let closed = || o.workload.predict(&model, metric);
        let predicted = if metric == Metric::Ttft { simulated.or_else(closed) } else { closed() };
        if let Some(predicted_ms) = predicted {
            out.push(Prediction { row, scheme, metric, predicted_ms, measured_ms, stated: c.relative_error });
        }
    }
}
