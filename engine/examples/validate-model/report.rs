//! The report's text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use plimsoll_engine::calibrate::{Coefficient, Metric, Prior, Workload};
use plimsoll_engine::measurements::Measurement;

use crate::study::{Group, Prediction, Scheme, Study};
use crate::table::{self, Summary};

/// MoE models are judged apart.
fn kind(m: &Measurement) -> &'static str {
    if m.subject.architecture.moe.is_some() { "MoE" } else { "dense" }
}

fn percent(x: f64) -> String {
    format!("{:.1} %", 100.0 * x)
}

fn cell(errors: &[f64]) -> Option<String> {
    if errors.is_empty() {
        return None;
    }
    let s = Summary::of(errors);
    Some(format!("{} / {} ({:+.0} %, n {})", percent(s.median), percent(s.p90), 100.0 * s.bias, s.n))
}

type Name<'a> = &'a dyn Fn(&Measurement, &Prediction) -> String;

/// Rows named by `name`, a column for each scheme.
fn errors(out: &mut String, study: &Study, title: &str, name: Name<'_>) {
    let mut cells: BTreeMap<String, Vec<Vec<f64>>> = BTreeMap::new();
    for p in &study.predictions {
        let Some(m) = study.rows.get(p.row) else { continue };
        let line = cells.entry(name(m, p)).or_insert_with(|| vec![Vec::new(); Scheme::ALL.len()]);
        if let Some(column) = line.get_mut(p.scheme as usize) {
            column.push(p.error());
        }
    }
    let lines = cells.into_iter().map(|(n, c)| (n, c.iter().map(|e| cell(e)).collect())).collect();
    let columns: Vec<&str> = Scheme::ALL.iter().map(|s| s.name()).collect();
    table::print(out, title, &columns, &lines);
}

/// How often errors stay within what the coefficients state; should be about 90 %.
fn coverage(out: &mut String, study: &Study) {
    let mut cells: BTreeMap<String, Vec<(usize, usize)>> = BTreeMap::new();
    for p in &study.predictions {
        // Waiting times are not what the stated error is about.
        if p.metric == Metric::Ttft {
            continue;
        }
        let Some(m) = study.rows.get(p.row) else { continue };
        let line = cells
            .entry(format!("{} {}", kind(m), p.metric))
            .or_insert_with(|| vec![(0, 0); Scheme::ALL.len()]);
        if let Some((within, all)) = line.get_mut(p.scheme as usize) {
            *all += 1;
            *within += usize::from(p.error().abs() <= p.stated);
        }
    }
    let show = |(within, all): &(usize, usize)| {
        (*all > 0).then(|| format!("{:.0} %", 100.0 * *within as f64 / *all as f64))
    };
    let lines = cells.iter().map(|(n, c)| (n.clone(), c.iter().map(show).collect())).collect();
    let columns: Vec<&str> = Scheme::ALL.iter().map(|s| s.name()).collect();
    table::print(out, "Errors within the stated one (aim: 90 %)", &columns, &lines);
}

/// What ten samples leave of a full fit's accuracy, both judged on the rows that are not among the ten.
fn few_samples(out: &mut String, study: &Study) {
    let key = |p: &Prediction| (p.row, p.metric);
    let judged: BTreeSet<(usize, Metric)> =
        study.predictions.iter().filter(|p| p.scheme == Scheme::Ten).map(key).collect();
    let mut by: BTreeMap<String, [Vec<f64>; 2]> = BTreeMap::new();
    for p in study.predictions.iter().filter(|p| judged.contains(&key(p))) {
        let Some(m) = study.rows.get(p.row) else { continue };
        let column = match p.scheme {
            Scheme::Ten => 0,
            Scheme::All => 1,
            _ => continue,
        };
        if let Some(errors) = by.entry(format!("{} {}", kind(m), p.metric)).or_default().get_mut(column) {
            errors.push(p.error());
        }
    }
    let line = |[ten, all]: &[Vec<f64>; 2]| {
        let ratio = Summary::of(ten).median / Summary::of(all).median;
        vec![cell(ten), cell(all), Some(format!("{ratio:.2}"))]
    };
    let lines = by.iter().map(|(n, e)| (n.clone(), line(e))).collect();
    let columns = ["10 samples", "full fit", "ratio of medians"];
    table::print(out, "Ten samples against the full fit, on the same rows", &columns, &lines);
}

/// Output tokens a second and GPU: what ranks configurations of one model under one kind of request.
fn throughput(m: &Measurement, ttft_ms: Option<f64>, tpot_ms: f64) -> Option<f64> {
    let Some(Workload::ClosedLoop { concurrency, output_tokens, .. }) = m.workload else { return None };
    let per_token = ttft_ms.map_or(tpot_ms, |t| (t + (output_tokens - 1.0) * tpot_ms) / output_tokens);
    Some(1e3 * concurrency / per_token / f64::from(m.subject.shape.gpus()))
}

fn ranking(out: &mut String, study: &Study) {
    type Pairs = Vec<Vec<(f64, f64)>>;
    let mut groups: BTreeMap<String, Pairs> = BTreeMap::new();
    let ttft: BTreeMap<(usize, Scheme), f64> = study
        .predictions
        .iter()
        .filter(|p| p.metric == Metric::Ttft)
        .map(|p| ((p.row, p.scheme), p.predicted_ms))
        .collect();
    for p in study.predictions.iter().filter(|p| p.metric == Metric::Tpot && p.scheme != Scheme::Ten) {
        let Some(m) = study.rows.get(p.row) else { continue };
        let Some(Workload::ClosedLoop { input_tokens, output_tokens, .. }) = m.workload else { continue };
        let known = m.requests_per_client.and(m.measured.ttft_ms);
        let predicted = known.and_then(|_| ttft.get(&(p.row, p.scheme)).copied());
        let both = (throughput(m, known, p.measured_ms), throughput(m, predicted, p.predicted_ms));
        let s = &m.subject;
        let name = format!(
            "{} {} {} {} {input_tokens:.0}/{output_tokens:.0}",
            s.engine, s.accelerator.name, s.architecture.name, s.variant.weights
        );
        if let (Some(a), Some(b)) = both
            && let Some(pairs) = groups
                .entry(name)
                .or_insert_with(|| vec![Vec::new(); Scheme::ALL.len()])
                .get_mut(p.scheme as usize)
        {
            pairs.push((a, b));
        }
    }
    let mut worst: Vec<Vec<f64>> = vec![Vec::new(); Scheme::ALL.len()];
    let mut lines = BTreeMap::new();
    for (name, pairs) in &groups {
        let all: Vec<Option<f64>> = pairs.iter().map(|p| table::spearman(p)).collect();
        for (w, s) in worst.iter_mut().zip(&all) {
            w.extend(*s);
        }
        lines.insert(name.clone(), all.iter().map(|s| s.map(|s| format!("{s:.3}"))).collect());
    }
    let summary = |w: &Vec<f64>| {
        let mut w = w.clone();
        w.sort_by(f64::total_cmp);
        let high = w.iter().filter(|s| **s >= 0.95).count();
        (!w.is_empty())
            .then(|| format!("least {:.3}, {high} of {} ≥ 0.95", table::quantile(&w, 0.0), w.len()))
    };
    lines.insert("(all groups)".to_owned(), worst.iter().map(summary).collect());
    let columns: Vec<&str> = Scheme::ALL.iter().map(|s| s.name()).collect();
    table::print(out, "Rank correlation of throughput per GPU over (TP, concurrency)", &columns, &lines);
}

fn memory(out: &mut String, study: &Study) {
    let mut by: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for m in &study.rows {
        let (Some(kv), Ok(model)) = (m.kv_tokens, m.subject.model(&m.subject.accelerator.calibration)) else {
            continue;
        };
        let name = format!("{} {}", m.subject.engine, m.subject.accelerator.name);
        by.entry(name).or_default().push(model.memory().kv_tokens / kv - 1.0);
    }
    let lines = by.into_iter().map(|(n, e)| (n, vec![cell(&e)])).collect();
    table::print(out, "KV-cache tokens", &["median / p90 (bias, n)"], &lines);
}

fn saturation(out: &mut String, study: &Study) {
    let (mut right, mut all) = (0, 0);
    for m in &study.rows {
        let (Some(truth), Some(Workload::OpenLoop { .. })) = (m.saturated, m.workload) else { continue };
        let Ok(model) = m.subject.model(&m.subject.accelerator.calibration) else { continue };
        let tpot = m.workload.and_then(|w| w.predict(&model, Metric::Tpot));
        all += 1;
        right += usize::from(tpot.is_none_or(f64::is_infinite) == truth);
    }
    let _ = writeln!(out, "\n## Saturation verdicts of open loops\n\n{right} of {all} right");
}

fn coefficients(out: &mut String, study: &Study) {
    let columns: Vec<&str> =
        Coefficient::ALL.iter().map(|k| k.name()).chain(["scatter", "stated error"]).collect();
    let lines = study
        .fits
        .iter()
        .map(|((e, g, w), f)| {
            let known =
                |k: &Coefficient| Some(format!("{:.3} ±{:.0} %", k.of(&f.calibration), 100.0 * f.sd(*k)));
            let mut cells: Vec<Option<String>> = Coefficient::ALL.iter().map(known).collect();
            cells.extend([Some(percent(f.scatter)), Some(percent(f.relative_error))]);
            (format!("{e} {g} {w}"), cells)
        })
        .collect();
    table::print(out, "Coefficients of the full fits", &columns, &lines);
}

/// What would be shipped for each engine on each GPU.
fn carried(out: &mut String, study: &Study) {
    let columns: Vec<&str> = Coefficient::ALL.iter().map(|k| k.name()).chain(["stated error"]).collect();
    let line = |((e, g, w), p): (&Group, &Prior)| {
        let c = p.stated();
        let mut cells: Vec<Option<String>> = Coefficient::ALL
            .iter()
            .map(|k| Some(format!("{:.3} ±{:.0} %", k.of(&c), 100.0 * p.sd(*k))))
            .collect();
        cells.push(Some(percent(c.relative_error)));
        (format!("{e} {g} {w}"), cells)
    };
    let lines = study.carried.iter().map(line).collect();
    table::print(out, "Carried over between groups (Prior::pooled over all fits)", &columns, &lines);
}

pub fn text(study: &Study) -> String {
    let mut out = String::from("# Engine model against measurements\n");
    let _ = writeln!(
        out,
        "\n{} measurements. Cells: median / p90 of the relative error (median signed error, n).\n\n\
         - *shipped*: the presets' coefficients;\n\
         - *other models*, *other GPUs*: fitted without the model or GPU that is judged;\n\
         - *10 samples*: ten measurements of the engine on the GPU, chosen by design, prior from other GPUs, judged by the rest;\n\
         - *full fit*: the judged rows took part. It bounds what the form can do and is no accuracy.",
        study.rows.len()
    );
    for (reason, n) in &study.impossible {
        let _ = writeln!(out, "\nLeft out, {n} rows: {reason}");
    }
    errors(&mut out, study, "By kind and metric", &|m, p| format!("{} {}", kind(m), p.metric));
    errors(&mut out, study, "By engine", &|m, p| format!("{} {} {}", kind(m), p.metric, m.subject.engine));
    errors(&mut out, study, "By GPU", &|m, p| {
        format!("{} {} {}", kind(m), p.metric, m.subject.accelerator.name)
    });
    errors(&mut out, study, "By model", &|m, p| format!("{} {}", p.metric, m.subject.architecture.name));
    errors(&mut out, study, "By engine, GPU and model", &|m, p| {
        let s = &m.subject;
        format!("{} {} {} {}", p.metric, s.engine, s.accelerator.name, s.architecture.name)
    });
    few_samples(&mut out, study);
    coverage(&mut out, study);
    ranking(&mut out, study);
    memory(&mut out, study);
    saturation(&mut out, study);
    coefficients(&mut out, study);
    carried(&mut out, study);
    out
}

/// Every prediction, for whoever wants to look closer.
pub fn predictions(study: &Study) -> String {
    let mut out = String::from(
        "engine,gpu,model,weights,tensor_parallel,expert_parallel,workload,fitted_to,metric,predicted_ms,measured_ms,stated_error\n",
    );
    for p in &study.predictions {
        let Some(m) = study.rows.get(p.row) else { continue };
        let s = &m.subject;
        // As the debug format has it, without the commas.
        let load = m.workload.map(|w| format!("{w:?}").replace(',', ";")).unwrap_or_default();
        let _ = writeln!(
            out,
            "{},{},{},{},{},{},{load},{},{},{:.4},{:.4},{:.3}",
            s.engine,
            s.accelerator.name,
            s.architecture.name,
            s.variant.weights,
            s.shape.tensor_parallel,
            s.shape.expert_parallel,
            p.scheme.name(),
            p.metric,
            p.predicted_ms,
            p.measured_ms,
            p.stated
        );
    }
    out
}
