//! From lengths and SLO-class shares to a few representative request classes.

use std::collections::BTreeMap;

use plimsoll_fleet::{DemandPrior, LengthDistribution, ModelPool, RequestClass};
use serde::{Deserialize, Serialize};

use super::DemandConfig;
use super::burstiness::Burstiness;

/// Requests (by decayed count) at which what was seen weighs as much as what was expected.
const PRIOR_REQUESTS: f64 = 30.0;
/// Cells kept before clustering; the rest joins its nearest neighbour.
const MAX_CELLS: usize = 24;
/// Lengths assumed for a pool that says nothing and has seen nothing, tokens.
const DEFAULT_LENGTHS: (f64, f64) = (512.0, 128.0);

/// Lengths and arrivals of one SLO class of one pool, decaying with time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Mix {
    updated: f64,
    /// Decayed arrivals.
    pub arrivals: f64,
    cells: Vec<(u8, u8, f64)>,
    input: (f64, f64),
    output: (f64, f64),
    cached_tokens: f64,
    /// How unevenly requests come.
    #[serde(default)]
    pub burstiness: Burstiness,
}

impl Mix {
    /// Lets time pass.
    fn decay(&mut self, now: f64, config: &DemandConfig) {
        let age = (now - self.updated).max(0.0);
        self.updated = self.updated.max(now);
        let k = (-age / config.mix_half_life_seconds).exp2();
        self.arrivals *= k;
        for cell in &mut self.cells {
            cell.2 *= k;
        }
        self.cells.retain(|c| c.2 > 1e-3);
        for value in [
            &mut self.input.0,
            &mut self.input.1,
            &mut self.output.0,
            &mut self.output.1,
            &mut self.cached_tokens,
        ] {
            *value *= k;
        }
    }

    /// Takes in one report. Figures that are not finite or are negative are left out, one by one.
    pub fn observe(&mut self, r: &plimsoll_fleet::telemetry::TrafficReport, now: f64, config: &DemandConfig) {
        self.decay(now, config);
        let good = |x: f64| if x.is_finite() && x >= 0.0 { x } else { 0.0 };
        self.arrivals += r.arrived as f64;
        for &(i, o, count) in &r.lengths {
            let (i, o) = (i.min(40), o.min(40));
            match self.cells.iter_mut().find(|c| (c.0, c.1) == (i, o)) {
                Some(cell) => cell.2 += count as f64,
                None => self.cells.push((i, o, count as f64)),
            }
        }
        if r.input_tokens.sum.is_finite() {
            self.input.0 += r.input_tokens.count() as f64;
            self.input.1 += good(r.input_tokens.sum);
            self.cached_tokens += r.cached_tokens as f64;
        }
        if r.output_tokens.sum.is_finite() {
            self.output.0 += r.output_tokens.count() as f64;
            self.output.1 += good(r.output_tokens.sum);
        }
        let (squares, sum) = r.interarrival_moments;
        self.burstiness.observe(r.arrived, sum, squares, now);
    }

    fn cached_fraction(&self) -> f64 {
        if self.input.1 > 0.0 { (self.cached_tokens / self.input.1).clamp(0.0, 0.95) } else { 0.0 }
    }

    /// Cells with representative lengths: a bucket `[2^i, 2^(i+1))` stands for `2^i/ln 2` (the mean of a log-uniform
    /// draw), all scaled so that the overall mean is the exact one that the histograms' sums give.
    fn cells(&self, slo: &str) -> Vec<Cell> {
        let weight: f64 = self.cells.iter().map(|c| c.2).sum();
        if weight <= 0.0 {
            return Vec::new();
        }
        let middle = |log2: u8| f64::from(log2).exp2() / std::f64::consts::LN_2;
        let scale = |pick: fn(&(u8, u8, f64)) -> u8, (n, sum): (f64, f64)| {
            let rough = self.cells.iter().map(|c| c.2 * middle(pick(c))).sum::<f64>() / weight;
            if n > 0.0 && sum > 0.0 { (sum / n / rough).clamp(0.7, 1.4) } else { 1.0 }
        };
        let (si, so) = (scale(|c| c.0, self.input), scale(|c| c.1, self.output));
        let cached = self.cached_fraction();
        self.cells
            .iter()
            .map(|c| Cell {
                slo: slo.to_owned(),
                input: (middle(c.0) * si).max(1.0),
                output: (middle(c.1) * so).max(1.0),
                cached,
                weight: c.2 / weight,
            })
            .collect()
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Cell {
    slo: String,
    input: f64,
    output: f64,
    cached: f64,
    weight: f64,
}

/// Mean of a log-normal's lower 80 % and upper 20 %: `E[X | X < q] = m·Φ(z−σ)/Φ(z)` and its complement.
fn split(d: &LengthDistribution) -> [(f64, f64); 2] {
    const Z80: f64 = 0.841_621_233_572_914_3;
    let mean = d.mean_tokens.max(1.0);
    let (_, sigma) = d.log_normal();
    if sigma < 1e-3 {
        return [(0.8, mean), (0.2, mean)];
    }
    let below = normal_cdf(Z80 - sigma);
    [(0.8, (mean * below / 0.8).max(1.0)), (0.2, (mean * (1.0 - below) / 0.2).max(1.0))]
}

/// Standard normal distribution function (Abramowitz & Stegun 7.1.26, error below 1.5e-7).
fn normal_cdf(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * (x.abs() / std::f64::consts::SQRT_2));
    let poly = t
        * (0.254_829_592
            + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let erf = 1.0 - poly * (-x * x / 2.0).exp();
    if x >= 0.0 { 0.5 * (1.0 + erf) } else { 0.5 * (1.0 - erf) }
}

fn prior_cells(prior: Option<&DemandPrior>, slo: &str) -> Vec<Cell> {
    let cell = |input: f64, output: f64, weight: f64| Cell {
        slo: slo.to_owned(),
        input,
        output,
        cached: 0.0,
        weight,
    };
    match prior {
        None => vec![cell(DEFAULT_LENGTHS.0, DEFAULT_LENGTHS.1, 1.0)],
        Some(p) => split(&p.input)
            .into_iter()
            .flat_map(|(wi, i)| split(&p.output).map(|(wo, o)| cell(i, o, wi * wo)))
            .collect(),
    }
}

/// Merges cells of one SLO class, the least different first (Ward's criterion on log lengths), until `limit` are left
/// or every SLO class has one. Merged lengths are weighted means, so that total tokens are kept.
fn cluster(mut cells: Vec<Cell>, limit: usize) -> Vec<Cell> {
    fn cost(a: &Cell, b: &Cell) -> f64 {
        let (di, d_out) = ((a.input / b.input).ln(), (a.output / b.output).ln());
        a.weight * b.weight / (a.weight + b.weight).max(1e-12) * (di * di + d_out * d_out)
    }
    fn merge(a: &mut Cell, b: &Cell) {
        let total = (a.weight + b.weight).max(1e-12);
        let mean = |x: f64, y: f64| (x * a.weight + y * b.weight) / total;
        let tokens = (a.input * a.weight + b.input * b.weight).max(1e-12);
        let cached = (a.cached * a.input * a.weight + b.cached * b.input * b.weight) / tokens;
        (a.input, a.output, a.cached, a.weight) =
            (mean(a.input, b.input), mean(a.output, b.output), cached, total);
    }
    cells.retain(|c| c.weight > 0.0);
    cells.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    while cells.len() > MAX_CELLS.max(limit) {
        let Some(last) = cells.pop() else { break };
        match cells
            .iter_mut()
            .filter(|c| c.slo == last.slo)
            .min_by(|a, b| cost(a, &last).total_cmp(&cost(b, &last)))
        {
            Some(nearest) => merge(nearest, &last),
            // The only cell of its SLO class must stay: swap it with the lightest that has company.
            None => {
                cells.insert(0, last);
                if !cells.iter().enumerate().any(|(i, c)| cells[..i].iter().any(|d| d.slo == c.slo)) {
                    break;
                }
            }
        }
    }
    while cells.len() > limit {
        let mut best: Option<(f64, usize, usize)> = None;
        for i in 0..cells.len() {
            for j in i + 1..cells.len() {
                if cells[i].slo == cells[j].slo {
                    let c = cost(&cells[i], &cells[j]);
                    if best.is_none_or(|(b, _, _)| c < b) {
                        best = Some((c, i, j));
                    }
                }
            }
        }
        let Some((_, i, j)) = best else { break };
        let gone = cells.remove(j);
        merge(&mut cells[i], &gone);
    }
    cells
}

/// The classes of one pool at `rps` requests per second in all. What was seen outweighs what was expected as requests
/// come in: `n/(n + 30)` after `n` of them, for lengths within an SLO class and for the SLO classes' shares alike.
pub fn request_classes(
    pool: &ModelPool,
    mixes: &BTreeMap<String, Mix>,
    rps: f64,
    config: &DemandConfig,
) -> Vec<RequestClass> {
    let names: Vec<&str> = if pool.slo_classes.is_empty() {
        vec![plimsoll_fleet::slo::DEFAULT_SLO_CLASS]
    } else {
        pool.slo_classes.iter().map(|c| c.name.as_str()).collect()
    };
    let expected_total: f64 = pool.slo_classes.iter().map(|c| c.expected_share.max(0.0)).sum();
    let seen_total: f64 = mixes.values().map(|m| m.arrivals).sum();
    let trust = |n: f64| n / (n + PRIOR_REQUESTS);
    let mut cells = Vec::new();
    for (k, name) in names.iter().enumerate() {
        let expected = match pool.slo_classes.get(k) {
            Some(c) if expected_total > 0.0 => c.expected_share.max(0.0) / expected_total,
            _ => f64::from(u8::from(k == 0)),
        };
        let mix = mixes.get(*name);
        let seen = mix.map_or(0.0, |m| m.arrivals) / seen_total.max(1e-12);
        let share = expected + trust(seen_total) * (seen - expected);
        let known = mix.map_or(0.0, |m| trust(m.cells.iter().map(|c| c.2).sum()));
        let weighted =
            |list: Vec<Cell>, by: f64| list.into_iter().map(move |c| Cell { weight: c.weight * by, ..c });
        cells.extend(weighted(mix.map(|m| m.cells(name)).unwrap_or_default(), share * known));
        cells.extend(weighted(prior_cells(pool.demand.as_ref(), name), share * (1.0 - known)));
    }
    let limit = pool.max_context_tokens.unwrap_or(pool.architecture.max_context_tokens).max(2);
    let total: f64 = cells.iter().map(|c| c.weight).sum();
    let mut classes: Vec<RequestClass> = Vec::new();
    for cell in cluster(cells, config.max_classes.max(names.len())) {
        let input = cell.input.min(f64::from(limit) - 1.0);
        let output = cell.output.min(f64::from(limit) - input).max(1.0);
        let (i, o) = (nearest_power(input), nearest_power(output));
        let mut name = format!("{}/in{i}-out{o}", cell.slo);
        if classes.iter().any(|c| c.name == name) {
            name = format!("{}/in{}-out{}", cell.slo, input.round(), output.round());
        }
        if classes.iter().any(|c| c.name == name) {
            name = format!("{name}-{}", classes.len());
        }
        classes.push(RequestClass {
            name,
            slo_class: cell.slo,
            input_tokens: input,
            output_tokens: output,
            cached_fraction: cell.cached,
            rps: if total > 0.0 { rps * cell.weight / total } else { 0.0 },
        });
    }
    classes.sort_by(|a, b| a.name.cmp(&b.name));
    classes
}

fn nearest_power(tokens: f64) -> u64 {
    tokens.max(1.0).log2().round().exp2() as u64
}

impl Mix {
    /// Adds another class's figures to this one's.
    pub fn absorb(&mut self, other: &Self) {
        self.arrivals += other.arrivals;
        for &(i, o, n) in &other.cells {
            match self.cells.iter_mut().find(|c| (c.0, c.1) == (i, o)) {
                Some(cell) => cell.2 += n,
                None => self.cells.push((i, o, n)),
            }
        }
        let add = |a: &mut (f64, f64), b: (f64, f64)| *a = (a.0 + b.0, a.1 + b.1);
        add(&mut self.input, other.input);
        add(&mut self.output, other.output);
        self.cached_tokens += other.cached_tokens;
        self.burstiness.absorb(&other.burstiness);
    }
}
