//! Tables of errors.

use std::collections::BTreeMap;

/// Order statistics of relative errors.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    pub n: usize,
    pub median: f64,
    pub p90: f64,
    /// Median of signed errors: above 0 if predictions are too slow.
    pub bias: f64,
}

pub fn quantile(sorted: &[f64], p: f64) -> f64 {
    let at = ((sorted.len() as f64 * p) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

impl Summary {
    pub fn of(errors: &[f64]) -> Self {
        let mut signed = errors.to_vec();
        signed.sort_by(f64::total_cmp);
        let mut abs: Vec<f64> = errors.iter().map(|e| e.abs()).collect();
        abs.sort_by(f64::total_cmp);
        Self {
            n: abs.len(),
            median: quantile(&abs, 0.5),
            p90: quantile(&abs, 0.9),
            bias: quantile(&signed, 0.5),
        }
    }
}

/// Lines by name, columns by name, cells filled or not.
pub fn print(out: &mut String, title: &str, columns: &[&str], lines: &BTreeMap<String, Vec<Option<String>>>) {
    use std::fmt::Write as _;
    let _ = writeln!(out, "\n## {title}\n");
    let _ = writeln!(out, "| | {} |", columns.join(" | "));
    let _ = writeln!(out, "|---|{}", "---|".repeat(columns.len()));
    for (name, cells) in lines {
        let cells: Vec<&str> = cells.iter().map(|c| c.as_deref().unwrap_or("–")).collect();
        let _ = writeln!(out, "| {name} | {} |", cells.join(" | "));
    }
}

/// Spearman's rank correlation; `None` for fewer than three pairs.
pub fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.len() < 3 {
        return None;
    }
    let ranks = |f: &dyn Fn(&(f64, f64)) -> f64| -> Vec<f64> {
        let below = |x: f64| pairs.iter().filter(|p| f(p) < x).count() as f64;
        let equal = |x: f64| pairs.iter().filter(|p| f(p) == x).count() as f64;
        pairs.iter().map(|p| below(f(p)) + 0.5 * (equal(f(p)) + 1.0)).collect()
    };
    let (a, b) = (ranks(&|p| p.0), ranks(&|p| p.1));
    let mean = 0.5 * (pairs.len() as f64 + 1.0);
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(p, q)| (p - mean) * (q - mean)).sum::<f64>();
    Some(product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt().max(1e-12))
}
