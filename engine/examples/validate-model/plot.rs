//! Predicted against measured, as SVG.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use plimsoll_engine::calibrate::Metric;

use crate::study::{Prediction, Scheme, Study};

pub const PAGE_START: &str = "<!doctype html><html><head><meta charset=\"utf-8\"><title>Engine model against measurements\
</title><style>body{font-family:sans-serif;margin:2em}svg{max-width:32em;margin:1em}</style></head><body>\n";

const SIZE: f64 = 480.0;
const MARGIN: f64 = 60.0;
/// Colours that colour-blind people tell apart (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// Whole decades around all values.
    fn around(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) =
            values.map(f64::log10).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        Self { low: low.floor(), high: high.ceil().max(low.floor() + 1.0) }
    }

    fn at(&self, log: f64) -> f64 {
        (SIZE - 2.0 * MARGIN) * (log - self.low) / (self.high - self.low)
    }

    fn x(&self, value: f64) -> f64 {
        MARGIN + self.at(value.log10())
    }

    fn y(&self, value: f64) -> f64 {
        SIZE - MARGIN - self.at(value.log10())
    }
}

fn svg(study: &Study, points: &[&Prediction], title: &str) -> String {
    let axis = Axis::around(points.iter().flat_map(|p| [p.predicted_ms, p.measured_ms]));
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {SIZE} {SIZE}\" font-family=\"sans-serif\" font-size=\"11\">\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\
         <text x=\"{}\" y=\"20\" text-anchor=\"middle\" font-size=\"13\">{title}</text>",
        SIZE / 2.0
    );
    let (first, last) = (10f64.powf(axis.low), 10f64.powf(axis.high));
    let mut decade = axis.low;
    while decade <= axis.high {
        let v = 10f64.powf(decade);
        let (x, y) = (axis.x(v), axis.y(v));
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {MARGIN}V{}M{MARGIN} {y:.1}H{}\" stroke=\"#ddd\" fill=\"none\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{v}</text><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{v}</text>",
            SIZE - MARGIN,
            SIZE - MARGIN,
            SIZE - MARGIN + 16.0,
            MARGIN - 6.0,
            y + 4.0
        );
        decade += 1.0;
    }
    // Equality, and a fifth to either side.
    for (factor, dash) in [(1.0, "none"), (1.2, "4 3"), (1.0 / 1.2, "4 3")] {
        let (from, to) = ((first, first * factor), (last, last * factor));
        let _ = writeln!(
            out,
            "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#888\" stroke-dasharray=\"{dash}\"/>",
            axis.x(from.0),
            axis.y(from.1),
            axis.x(to.0),
            axis.y(to.1)
        );
    }
    let mut colours: BTreeMap<&str, &str> = BTreeMap::new();
    for p in points {
        let Some(m) = study.rows.get(p.row) else { continue };
        let next = COLOURS[colours.len() % COLOURS.len()];
        let colour = colours.entry(m.subject.accelerator.name.as_str()).or_insert(next);
        let _ = writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.2\" fill=\"{colour}\" fill-opacity=\"0.6\"/>",
            axis.x(p.measured_ms),
            axis.y(p.predicted_ms)
        );
    }
    for (i, (gpu, colour)) in colours.iter().enumerate() {
        let y = MARGIN + 14.0 * (i as f64 + 1.0);
        let _ = writeln!(
            out,
            "<circle cx=\"{}\" cy=\"{}\" r=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"{y}\">{gpu}</text>",
            MARGIN + 12.0,
            y - 4.0,
            MARGIN + 20.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{0}\" y=\"{1}\" text-anchor=\"middle\">measured, ms</text>\
         <text x=\"16\" y=\"{0}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {0})\">predicted, ms (lines: ±20 %)</text></svg>",
        SIZE / 2.0,
        SIZE - 16.0
    );
    out
}

/// Plots by file name: one a metric and scheme that holds something out.
pub fn all(study: &Study) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for scheme in [Scheme::OtherModels, Scheme::OtherGpus] {
        for metric in Metric::ALL {
            let points: Vec<&Prediction> = study
                .predictions
                .iter()
                .filter(|p| {
                    p.scheme == scheme
                        && p.metric == metric
                        && p.predicted_ms.is_finite()
                        && p.predicted_ms > 0.0
                })
                .collect();
            if !points.is_empty() {
                let title = format!(
                    "{metric}, fitted without the {} judged",
                    if scheme == Scheme::OtherModels { "model" } else { "GPU" }
                );
                let name = format!(
                    "{}-{}",
                    metric.name().to_lowercase(),
                    scheme.name().replace(' ', "-").to_lowercase()
                );
                out.push((name, svg(study, &points, &title)));
            }
        }
    }
    out
}
