//! One shape, in full.

use plimsoll_engine::outlook::Percentiles;
use plimsoll_fleet::{Objective, Percentile};

use super::rows::{Fit, Load, Question, Row, open_loop};
use super::table::title;
use crate::paint::{Paint, Tone, bar, figure, left, millis, right, thousands};

/// Width of bars.
const BAR: usize = 24;
/// Width of the bars beside latencies.
const GAUGE: usize = 8;

/// Everything about a row that fits.
pub fn detail(question: &Question, row: &Row, fit: &Fit, paint: Paint) -> Vec<String> {
    let mut lines = title(question, paint);
    lines.push(String::new());
    lines.push(paint.bold(&format!(
        "{}   {} GPU{}, ${}/h",
        row.name,
        row.gpus,
        if row.gpus == 1 { "" } else { "s" },
        figure(row.replica_usd_per_hour)
    )));
    lines.extend(memory(row, fit, paint));
    lines.push(fact(
        "alone",
        &format!(
            "TTFT {} ms, TPOT {} ms (each ± {:.0} %)",
            millis(fit.alone.ttft_ms),
            millis(fit.alone.tpot_ms),
            100.0 * fit.relative_error
        ),
    ));
    lines.extend(line(question, fit));
    if let Some(at) = &fit.at {
        lines.push(String::new());
        lines.extend(breakdown(question, fit, at.rps, at.running, paint));
    }
    if fit.load_line_rps > 0.0 {
        lines.push(String::new());
        lines.extend(curve(question, fit, paint));
    }
    lines
}

fn fact(name: &str, text: &str) -> String {
    format!("  {} {text}", left(name, 12))
}

fn memory(row: &Row, fit: &Fit, paint: Paint) -> Vec<String> {
    let m = &fit.memory;
    let total = row.memory_bytes_per_gpu;
    let gb = |bytes: f64| format!("{} GB", figure(bytes / 1e9));
    let others = m.lora_bytes_per_gpu + m.draft_bytes_per_gpu;
    let kv = m.usable_bytes_per_gpu - m.weights_bytes_per_gpu - m.reserve_bytes_per_gpu - others;
    let columns = |bytes: f64| (bytes / total * BAR as f64).round() as usize;
    let (weights, cache) = (columns(m.weights_bytes_per_gpu), columns(kv));
    let engine = columns(m.reserve_bytes_per_gpu).max(1);
    let rest = BAR.saturating_sub(weights + cache + engine);
    let drawn = format!(
        "{}{}{}{}",
        paint.accent(&"█".repeat(weights)),
        "▓".repeat(cache),
        "▒".repeat(engine),
        paint.dim(&"·".repeat(rest))
    );
    let context = format!(
        "{} tokens{}",
        thousands(f64::from(fit.max_context_tokens)),
        if fit.context_shortened { ", as much as memory allows" } else { "" }
    );
    vec![
        fact(
            "memory",
            &format!(
                "{drawn} of {} a GPU: █ weights {}, ▓ KV cache {}, ▒ engine {}",
                gb(total),
                gb(m.weights_bytes_per_gpu),
                gb(kv),
                gb(m.reserve_bytes_per_gpu)
            ),
        ),
        fact(
            "KV cache",
            &format!(
                "{} tokens: {} such requests at once; longest request {context}",
                thousands(m.kv_tokens),
                thousands(f64::from(fit.requests_at_once))
            ),
        ),
    ]
}

fn line(question: &Question, fit: &Fit) -> Vec<String> {
    let mut lines = Vec::new();
    if fit.load_line_rps > 0.0 {
        let mut text = format!(
            "{} rps ({} answer tokens/s)",
            figure(fit.load_line_rps),
            thousands(fit.load_line_rps * question.mean_output())
        );
        if fit.margin > 0.0 {
            text += &format!(
                " with {:.0} % to spare, {} rps if predictions were exact",
                100.0 * fit.margin,
                figure(fit.bare_load_line_rps)
            );
        }
        text += &format!("; the queue grows for ever from {} rps", figure(fit.saturation_rps));
        lines.push(fact("load line", &text));
        lines.push(fact("limited by", &fit.limited_by));
    }
    if let Some(reason) = &fit.infeasible {
        lines.push(fact("misses", reason));
    }
    if let Some(at) = &fit.at {
        let what = match question.load {
            Load::Line => "at the line".to_owned(),
            Load::Rps(_) if fit.replicas == 1 => "1 replica".to_owned(),
            Load::Rps(_) => format!("{} replicas", fit.replicas),
            Load::Concurrency(n) => format!("{n} clients"),
        };
        let p = question.percentiles();
        let mut text = format!(
            "TTFT {} {} ms, TPOT {} {} ms, E2E {} {} ms at {} rps",
            p.ttft,
            millis(at.ttft_ms),
            p.tpot,
            millis(at.tpot_ms),
            p.e2e,
            millis(at.e2e_ms),
            figure(at.rps)
        );
        if fit.replicas > 1 {
            text += " each";
        }
        lines.push(fact(&what, &text));
        if let (Some(s), false) = (&fit.simulated, matches!(question.load, Load::Concurrency(_))) {
            lines.push(fact("simulated", &format!(
                "TTFT {} {} ms, TPOT {} {} ms, E2E {} {} ms; all objectives met by {:.1} % of {} requests",
                p.ttft,
                millis(s.ttft_ms),
                p.tpot,
                millis(s.tpot_ms),
                p.e2e,
                millis(s.e2e_ms),
                100.0 * s.attainment,
                thousands(s.requests as f64)
            )));
        }
        if let Some(usd) = fit.usd_per_million_output_tokens {
            let text = format!("${}/h, ${} per million answer tokens", figure(fit.usd_per_hour), figure(usd));
            lines.push(fact("cost", &text));
        }
        lines.extend(energy(fit, at.watts));
    }
    lines
}

fn energy(fit: &Fit, watts: f64) -> Option<String> {
    let (joules, grams) = (fit.joules_per_output_token?, fit.grams_co2e_per_million_output_tokens?);
    let each = if fit.replicas > 1 { " each" } else { "" };
    Some(fact(
        "energy",
        &format!(
            "{} W{each} ({} W idle), {} J per answer token, {} g CO₂e per million of them",
            thousands(watts),
            thousands(fit.model.idle_watts()),
            figure(joules),
            thousands(grams)
        ),
    ))
}

fn breakdown(question: &Question, fit: &Fit, rps: f64, running: f64, paint: Paint) -> Vec<String> {
    let step = fit.model.step_at(&question.classes, rps, question.arrival_scv);
    let total = step.total_ms();
    let mut lines = vec![format!(
        "  {}",
        paint.bold(&format!("a step takes {} ms with {:.0} running:", millis(total), running.max(1.0)))
    )];
    for (name, ms) in [
        ("compute", step.compute_ms),
        ("reading weights", step.weights_ms),
        ("reading KV cache", step.kv_ms),
        ("links", step.link_ms),
        ("overheads (CPU)", step.overhead_ms),
    ] {
        lines.push(format!(
            "    {} {} {} ms {} %",
            left(name, 17),
            paint.accent(&bar(ms / total, BAR)),
            right(&format!("{ms:.2}"), 7),
            right(&format!("{:.0}", 100.0 * ms / total), 3)
        ));
    }
    lines
}

fn gauge(ms: f64, objective: Option<Objective>, paint: Paint) -> String {
    match objective {
        Some(o) => {
            let used = ms / o.ms;
            format!(" {}", paint.tone(Tone::of(used), &bar(used, GAUGE)))
        }
        None => String::new(),
    }
}

/// Latencies from a tenth of the line to all of it.
fn curve(question: &Question, fit: &Fit, paint: Paint) -> Vec<String> {
    let high = question.percentiles();
    let median = Percentiles::all(Percentile::P50);
    let slo = question.default_slo();
    let room = |o: Option<Objective>| if o.is_some() { GAUGE + 1 } else { 0 };
    let mut head = format!(
        "  {} {} {} {}  {} {}{}  {} {}{}  {}",
        right("LOAD", 6),
        right("RPS", 7),
        right("RUNNING", 8),
        right("KV", 6),
        right("TTFT p50", 9),
        right(&high.ttft.to_string(), 7),
        " ".repeat(room(slo.ttft)),
        right("TPOT p50", 9),
        right(&high.tpot.to_string(), 7),
        " ".repeat(room(slo.tpot)),
        right(&format!("E2E {}", high.e2e), 9),
    );
    if question.check {
        head += &format!("  {}", right(&format!("SIMULATED TTFT {}/TPOT {}", high.ttft, high.tpot), 28));
    }
    let mut lines = vec![paint.bold(&head)];
    for tenth in 1..=10 {
        let rps = fit.load_line_rps * f64::from(tenth) / 10.0;
        let point =
            |p: &Percentiles| fit.model.operating_point(&question.classes, rps, question.arrival_scv, p);
        let (p50, p) = (point(&median), point(&high));
        let mut text = format!(
            "  {} {} {} {}  {} {}{}  {} {}{}  {}",
            right(&format!("{} %", tenth * 10), 6),
            right(&figure(rps), 7),
            right(&format!("{:.1}", p.running), 8),
            right(&format!("{:.0} %", 100.0 * p.kv_usage), 6),
            right(&millis(p50.ttft_ms), 9),
            right(&millis(p.ttft_ms), 7),
            gauge(p.ttft_ms, slo.ttft, paint),
            right(&millis(p50.tpot_ms), 9),
            right(&millis(p.tpot_ms), 7),
            gauge(p.tpot_ms, slo.tpot, paint),
            right(&millis(p.e2e_ms), 9),
        );
        if question.check
            && let Some(s) = open_loop(fit, question, rps, &high)
        {
            let both = format!("{} / {} ms", millis(s.ttft_ms), millis(s.tpot_ms));
            text += &format!("  {}", right(&both, 28));
        }
        lines.push(text);
    }
    if slo.ttft.is_some() || slo.tpot.is_some() {
        lines.push(paint.dim("  milliseconds; bars: share of the objective"));
    }
    lines
}
