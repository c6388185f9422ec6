//! Differences between two plans, pool by pool.

use std::collections::BTreeSet;
use std::fmt;

use plimsoll_fleet::{Plan, PoolId, PoolPlan};
use serde::Serialize;

use super::signed_usd;

/// What becomes of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It stays as it is.
    None,
    /// It was not planned before.
    Add,
    /// Its fleet, its cost or what of it is served differs.
    Change,
    /// It is gone.
    Remove,
}

/// How a pool differs between two plans.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolDiff {
    /// What becomes of it.
    pub action: Action,
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
        self.action != Action::None
    }
}

impl fmt::Display for PoolDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.action {
            Action::Add => '+',
            Action::Remove => '-',
            Action::Change => '~',
            Action::None => ' ',
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
            let mut diff = PoolDiff {
                action: Action::None,
                pool: id.clone(),
                from: a.map(PoolPlan::fleet_text),
                to: b.map(PoolPlan::fleet_text),
                usd_per_hour: b.map_or(0.0, |p| p.usd_per_hour) - a.map_or(0.0, |p| p.usd_per_hour),
                served: (served(a), served(b)),
                starts: new.difference(&old).count() as u32,
                stops: old.difference(&new).count() as u32,
                reason: b.map(|p| p.why.summary.clone()).unwrap_or_default(),
            };
            diff.action = match (a, b) {
                (None, _) => Action::Add,
                (_, None) => Action::Remove,
                _ if diff.from != diff.to
                    || diff.starts + diff.stops > 0
                    || diff.usd_per_hour.abs() >= 0.005
                    || (diff.served.0 - diff.served.1).abs() >= 5e-4 =>
                {
                    Action::Change
                }
                _ => Action::None,
            };
            diff
        })
        .collect()
}

/// A diff in one line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Pools that come.
    pub add: usize,
    /// Pools that change.
    pub change: usize,
    /// Pools that go.
    pub remove: usize,
    /// Replicas to start.
    pub starts: u32,
    /// Replicas to stop.
    pub stops: u32,
    /// Cost of the fleet before and after, dollars per hour.
    pub usd_per_hour: (f64, f64),
}

impl Summary {
    /// Of a diff between two plans.
    pub fn of(diffs: &[PoolDiff], before: &Plan, after: &Plan) -> Self {
        let count = |action| diffs.iter().filter(|d| d.action == action).count();
        Self {
            add: count(Action::Add),
            change: count(Action::Change),
            remove: count(Action::Remove),
            starts: diffs.iter().map(|d| d.starts).sum(),
            stops: diffs.iter().map(|d| d.stops).sum(),
            usd_per_hour: (before.usd_per_hour, after.usd_per_hour),
        }
    }

    /// Whether anything changes.
    pub fn is_change(&self) -> bool {
        self.add + self.change + self.remove > 0
    }
}

impl fmt::Display for Summary {
    /// `1 to add, 2 to change, 0 to remove; 3 replicas start, 1 stops; $4.60/h → $11.50/h (+$6.90/h)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = self.usd_per_hour;
        if !self.is_change() {
            return write!(f, "no changes; ${to:.2}/h");
        }
        let replicas = |n: u32| if n == 1 { "replica starts" } else { "replicas start" };
        write!(
            f,
            "{} to add, {} to change, {} to remove; {} {}, {} {}; ${from:.2}/h → ${to:.2}/h ({})",
            self.add,
            self.change,
            self.remove,
            self.starts,
            replicas(self.starts),
            self.stops,
            if self.stops == 1 { "stops" } else { "stop" },
            signed_usd(to - from)
        )
    }
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
        let added = diff(&gone, &before);
        assert!(added[0].to_string().starts_with("+ default/chat"));
        gone.usd_per_hour = 0.0;
        let text = Summary::of(&added, &gone, &before).to_string();
        assert!(
            text.starts_with("1 to add, 0 to change, 0 to remove; 1 replica starts, 0 stop; $0.00/h → $"),
            "{text}"
        );
        let none = Summary::of(&diff(&before, &before), &before, &before);
        assert!(!none.is_change() && none.to_string().starts_with("no changes; $"), "{none}");
    }
}
