//! Measured against predicted, before and after the fit.

use plimsoll_engine::ReplicaModel;
use plimsoll_engine::calibrate::{Metric, Observation, Workload};

use crate::paint::{Paint, Tone, left, millis, right, thousands};

/// Errors of predictions, as shares of what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Errors {
    /// Median of absolute errors.
    pub median: f64,
    /// The largest.
    pub worst: f64,
    /// Median of predicted over measured.
    pub ratio: f64,
    /// Times compared.
    pub count: usize,
}

fn predicted(model: &ReplicaModel, o: &Observation, metric: Metric) -> Option<(f64, f64)> {
    let measured = o.measured.get(metric)?;
    o.workload.predict(model, metric).filter(|p| p.is_finite()).map(|p| (measured, p))
}

/// How far a model is off in one metric.
pub fn errors(model: &ReplicaModel, observations: &[Observation], metric: Metric) -> Errors {
    let pairs: Vec<(f64, f64)> = observations.iter().filter_map(|o| predicted(model, o, metric)).collect();
    let sorted = |f: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(f).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let off = sorted(|(m, p)| (p / m - 1.0).abs());
    let ratios = sorted(|(m, p)| p / m);
    let middle = |v: &[f64]| v.get(v.len() / 2).copied().unwrap_or(0.0);
    Errors {
        median: middle(&off),
        worst: off.last().copied().unwrap_or(0.0),
        ratio: middle(&ratios),
        count: pairs.len(),
    }
}

fn name(workload: &Workload) -> String {
    match *workload {
        Workload::ClosedLoop { concurrency, input_tokens, output_tokens } => {
            format!("{concurrency:.0} × {} in, {} out", thousands(input_tokens), thousands(output_tokens))
        }
        other => format!("{other:?}"),
    }
}

fn compared(models: &[&ReplicaModel], o: &Observation, metric: Metric, paint: Paint) -> String {
    let measured = o.measured.get(metric);
    let mut text = right(&measured.map_or_else(|| "–".to_owned(), millis), 9);
    for model in models {
        let cell = match predicted(model, o, metric) {
            Some((m, p)) => {
                let off = p / m - 1.0;
                let cell = right(&format!("{} {:+.0} %", millis(p), 100.0 * off), 14);
                // A tenth is as good as the model's form gets.
                paint.tone(Tone::of(off.abs() / 0.15), &cell)
            }
            None => right("–", 14),
        };
        text.push_str(&cell);
    }
    text
}

/// The table, a line for each point.
pub fn table(
    before: &ReplicaModel,
    after: Option<&ReplicaModel>,
    observations: &[Observation],
    paint: Paint,
) -> Vec<String> {
    let models: Vec<&ReplicaModel> = [Some(before), after].into_iter().flatten().collect();
    let names: Vec<String> = observations.iter().map(|o| name(&o.workload)).collect();
    let width = names.iter().map(|n| n.chars().count()).chain([5]).max().unwrap_or(5);
    let heads = |metric: &str| {
        let mut text = right(metric, 9);
        text.push_str(&right("before", 14));
        if after.is_some() {
            text.push_str(&right("after", 14));
        }
        text
    };
    let mut lines =
        vec![paint.bold(&format!("{}  {}   {}", left("POINT", width), heads("TTFT ms"), heads("TPOT ms")))];
    for (o, name) in observations.iter().zip(&names) {
        lines.push(format!(
            "{}  {}   {}",
            left(name, width),
            compared(&models, o, Metric::Ttft, paint),
            compared(&models, o, Metric::Tpot, paint)
        ));
    }
    lines
}

/// `TPOT: median error 12 % → 1.4 %, worst 31 % → 4 %`.
pub fn summary(before: &ReplicaModel, after: &ReplicaModel, observations: &[Observation]) -> Vec<String> {
    [Metric::Ttft, Metric::Tpot]
        .into_iter()
        .filter_map(|metric| {
            let (b, a) = (errors(before, observations, metric), errors(after, observations, metric));
            (b.count > 0).then(|| {
                format!(
                    "{metric}: median error {:.1} % → {:.1} %, worst {:.0} % → {:.0} %",
                    100.0 * b.median,
                    100.0 * a.median,
                    100.0 * b.worst,
                    100.0 * a.worst
                )
            })
        })
        .collect()
}

/// A warning where measurements look like those of something else.
pub fn doubt(before: &ReplicaModel, observations: &[Observation], what: &str) -> Option<String> {
    let ratio = errors(before, observations, Metric::Tpot);
    if ratio.count == 0 || (0.5..2.0).contains(&ratio.ratio) {
        return None;
    }
    let (factor, word) =
        if ratio.ratio < 1.0 { (1.0 / ratio.ratio, "slower") } else { (ratio.ratio, "faster") };
    Some(format!(
        "the endpoint is {factor:.1} times {word} than expected of {what}; check --arch, --gpu, --tp and --weights, and that \
         nothing else uses it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profiling::points::tests::subject;
    use plimsoll_engine::calibrate::Measured;
    use std::sync::Arc;

    #[test]
    fn errors_and_doubts_are_told() {
        let subject = Arc::new(subject("h100"));
        let model = subject.model(&subject.accelerator.calibration).unwrap();
        let seen = |factor: f64| -> Vec<Observation> {
            [1.0, 8.0, 32.0]
                .into_iter()
                .map(|concurrency| {
                    let workload =
                        Workload::ClosedLoop { concurrency, input_tokens: 1000.0, output_tokens: 100.0 };
                    let time = |metric| workload.predict(&model, metric).map(|t| t * factor);
                    let (ttft_ms, tpot_ms) = (time(Metric::Ttft), time(Metric::Tpot));
                    Observation {
                        subject: Arc::clone(&subject),
                        workload,
                        measured: Measured { ttft_ms, tpot_ms, ..Measured::default() },
                    }
                })
                .collect()
        };
        let e = errors(&model, &seen(0.8), Metric::Tpot);
        assert!((e.median - 0.25).abs() < 1e-9 && e.count == 3, "{e:?}");
        assert_eq!(errors(&model, &seen(1.0), Metric::Ttft).count, 1);
        assert_eq!(doubt(&model, &seen(1.3), "x"), None);
        assert!(doubt(&model, &seen(3.0), "x").unwrap().contains("3.0 times slower"));
        assert!(doubt(&model, &seen(0.25), "x").unwrap().contains("4.0 times faster"));
        let lines = table(&model, Some(&model), &seen(0.8), Paint::plain());
        assert!(lines[1].starts_with("1 × 1,000 in, 100 out") && lines[1].contains("+25 %"), "{lines:?}");
        assert!(lines[2].contains('–'), "{lines:?}");
    }
}
