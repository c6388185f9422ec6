//! Figures and their table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tokio::time::Instant;

/// A line of the table.
#[derive(Debug)]
pub struct Line {
    what: String,
    figure: String,
    target: String,
    /// Whether the target is met, if there is one.
    pub met: Option<bool>,
}

/// Times that something took, seconds.
#[derive(Debug, Default, Clone)]
pub struct Times(Vec<f64>);

impl Times {
    /// Adds what took from one moment to another.
    pub fn add(&mut self, from: Instant, to: Instant) {
        self.0.push(to.saturating_duration_since(from).as_secs_f64());
    }

    /// These and others.
    pub fn and(mut self, others: &Times) -> Times {
        self.0.extend(&others.0);
        self
    }

    /// The least time that a share (0–1) of them does not exceed, seconds.
    fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
    }

    /// Their line; the target is of the 99th percentile, seconds.
    pub fn line(&self, what: String, target: Option<f64>) -> Line {
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|q| self.quantile(q));
        Line {
            what,
            figure: format!(
                "p50 {p50:.2} s, p90 {p90:.2} s, p99 {p99:.2} s, max {max:.2} s (n = {})",
                self.0.len()
            ),
            target: target.map(|t| format!("p99 ≤ {t} s")).unwrap_or_default(),
            met: target.map(|t| !self.0.is_empty() && p99 <= t),
        }
    }
}

/// Lines for requests, each verb and resource, within some seconds.
pub fn requests(requests: &[(String, String)], seconds: f64, target: f64) -> Vec<Line> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (verb, resource) in requests {
        *counts.entry(format!("{verb} {resource}")).or_default() += 1;
    }
    let watches = requests.iter().filter(|(verb, _)| verb == "watch").count();
    let rate = |n: usize| n as f64 / seconds;
    let kinds: Vec<String> = counts.iter().map(|(kind, n)| format!("{kind} {:.2}", rate(*n))).collect();
    vec![Line {
        what: format!("settled: operator's requests over {seconds:.0} s"),
        figure: format!(
            "{:.2}/s, {:.2}/s without watches ({})",
            rate(requests.len()),
            rate(requests.len() - watches),
            kinds.join(", ")
        ),
        target: format!("≤ {target}/s"),
        met: Some(rate(requests.len()) <= target),
    }]
}

/// A line for memory; the target is of the peak, MiB.
pub fn memory(what: String, now_bytes: u64, peak_bytes: u64, target: Option<f64>) -> Line {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Line {
        what,
        figure: format!("{:.0} / {:.0} MiB", mib(now_bytes), mib(peak_bytes)),
        target: target.map(|t| format!("≤ {t} MiB")).unwrap_or_default(),
        met: target.map(|t| mib(peak_bytes) <= t),
    }
}

/// How many plans came into force, by the scheduler's log, and how long the slowest took, milliseconds.
pub fn plans(log: &str) -> (usize, f64) {
    let lines = log.lines().filter(|line| line.contains("plan in force"));
    let times = lines.map(|line| {
        let field = line.split("solve_ms=").nth(1).and_then(|rest| rest.split_whitespace().next());
        field.and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0)
    });
    times.fold((0, 0.0), |(n, slowest), ms| (n + 1, slowest.max(ms)))
}

/// The lines as Markdown.
pub fn table(lines: &[Line]) -> String {
    let mut text = "| what | figure | target | |\n|---|---|---|---|\n".to_owned();
    for Line { what, figure, target, met } in lines {
        let met = match met {
            None => "",
            Some(true) => "met",
            Some(false) => "missed",
        };
        let _ = writeln!(text, "| {what} | {figure} | {target} | {met} |");
    }
    text
}
