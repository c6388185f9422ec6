//! Differences between two plans, pool by pool.

use std::collections::BTreeSet;
use std::fmt;

use plimsoll_fleet::{Plan, PoolId, PoolPlan};

use super::signed_usd;

/// How a pool differs between two plans.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolDiff {
    /// Pool.
    pub pool: PoolId,
    /// Fleet before (`None`: the pool was not planned).
    pub from: Option<String>,
    /// Fleet after (`None`: the pool is gone).
    pub to: Option<String>,
    /// Cost after less cost before, dollars per hour.
    pub usd_per_hour: f64,
    /// Share of the demand served, before and after, 0–1.
    pub served: (f64, f64),
    /// Replicas to start.
    pub starts: u32,
    /// Replicas to stop.
    pub stops: u32,
    /// Why the new plan has it so.
    pub reason: String,
}

impl PoolDiff {
    /// Whether anything differs.
    pub fn is_change(&self) -> bool {
        self.from != self.to
            || self.starts + self.stops > 0
            || self.usd_per_hour.abs() >= 0.005
            || (self.served.0 - self.served.1).abs() >= 5e-4
    }
}

impl fmt::Display for PoolDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match (&self.from, &self.to) {
            (None, _) => '+',
            (_, None) => '-',
            _ if self.is_change() => '~',
            _ => ' ',
        };
        let none = || "–".to_owned();
        let (from, to) = (self.from.clone().unwrap_or_else(none), self.to.clone().unwrap_or_else(none));
        let fleets = if from == to { to } else { format!("{from} → {to}") };
        write!(f, "{sign} {}   {fleets}   {}", self.pool, signed_usd(self.usd_per_hour))?;
        if (self.served.0 - self.served.1).abs() >= 5e-4 {
            write!(f, "   served {:.1} % → {:.1} %", 100.0 * self.served.0, 100.0 * self.served.1)?;
        }
        if self.is_change() && !self.reason.is_empty() {
            write!(f, "   ({})", self.reason)?;
        }
        Ok(())
    }
}

fn served(pool: Option<&PoolPlan>) -> f64 {
    let Some(p) = pool else { return 1.0 };
    let total = p.demand.total_rps();
    if total > 0.0 { (1.0 - p.unserved_rps / total).clamp(0.0, 1.0) } else { 1.0 }
}

/// What changes from `before` to `after`: every pool of either, in order of identity.
pub fn diff(before: &Plan, after: &Plan) -> Vec<PoolDiff> {
    let ids: BTreeSet<&PoolId> = before.pools.iter().chain(&after.pools).map(|p| &p.pool).collect();
    ids.into_iter()
        .map(|id| {
            let (a, b) = (before.pool(id), after.pool(id));
            let replicas = |p: Option<&PoolPlan>| -> BTreeSet<String> {
                p.map(|p| p.replicas.iter().map(|r| r.id.to_string()).collect()).unwrap_or_default()
            };
            let (old, new) = (replicas(a), replicas(b));
            PoolDiff {
                pool: id.clone(),
                from: a.map(PoolPlan::fleet_text),
                to: b.map(PoolPlan::fleet_text),
                usd_per_hour: b.map_or(0.0, |p| p.usd_per_hour) - a.map_or(0.0, |p| p.usd_per_hour),
                served: (served(a), served(b)),
                starts: new.difference(&old).count() as u32,
                stops: old.difference(&new).count() as u32,
                reason: b.map(|p| p.why.summary.clone()).unwrap_or_default(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::support::*;

    #[test]
    fn a_diff_reads_as_people_say_it() {
        let mut w = World::up();
        w.add(pool("chat", "llama-3.1-8b", 800.0, 50.0), demand(vec![class("a", 3.0, 1200.0, 250.0)]));
        let before = w.plan();
        assert!(diff(&before, &before).iter().all(|d| !d.is_change()));
        w.snapshot.budgets.push(budget("tight", 0.01));
        let after = w.plan();
        let d = diff(&before, &after).remove(0);
        let text = d.to_string();
        assert!(text.starts_with("~ default/chat   1× ") && text.contains(" → –   −$"), "{text}");
        assert!(text.contains("served 100.0 % → 0.0 %") && text.contains("budget tight"), "{text}");
        let mut gone = before.clone();
        gone.pools.clear();
        assert!(diff(&before, &gone)[0].to_string().starts_with("- default/chat"));
        assert!(diff(&gone, &before)[0].to_string().starts_with("+ default/chat"));
    }
}
