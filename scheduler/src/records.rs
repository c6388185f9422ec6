//! From plan to plan: what changed enough to count, and the record of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use plimsoll_fleet::plan::{BudgetUse, PoolOutcome, ScalingRecord};
use plimsoll_fleet::{ClusterSnapshot, Plan, PoolId, PoolPlan, ReplicaId, ReplicaPhase};

/// Whether a new plan differs from the one in force in anything that somebody acts on or that a person would notice.
pub fn differs(old: &Plan, new: &Plan) -> bool {
    let caps = |plan: &Plan| -> Vec<_> {
        let cap = |b: &BudgetUse| (b.budget.clone(), b.unit, b.cap, b.on_limit, b.excess().is_some());
        plan.budgets.iter().map(cap).collect()
    };
    old.pools.len() != new.pools.len()
        || caps(old) != caps(new)
        || old.pools.iter().zip(&new.pools).any(|(a, b)| a.pool != b.pool || pool_differs(a, b))
}

fn pool_differs(a: &PoolPlan, b: &PoolPlan) -> bool {
    let moved = |x: f64, y: f64| (x - y).abs() > 0.2 * x.abs().max(y.abs()).max(1e-6);
    let mut old: Vec<_> = a.replicas.iter().collect();
    let mut new: Vec<_> = b.replicas.iter().collect();
    old.sort_by(|x, y| x.id.cmp(&y.id));
    new.sort_by(|x, y| x.id.cmp(&y.id));
    a.uid != b.uid
        || a.generation != b.generation
        || a.outcome != b.outcome
        || a.envelope != b.envelope
        || old != new
        || moved(a.demand.total_rps(), b.demand.total_rps())
        || moved(a.unserved_rps, b.unserved_rps)
        || (a.usd_per_hour - b.usd_per_hour).abs() > 1e-9
        || moved(a.watts, b.watts)
        || moved(a.grams_co2e_per_hour, b.grams_co2e_per_hour)
        || shapes_differ(a, b)
}

/// Whether a share of traffic above a tenth goes to another shape.
fn shapes_differ(a: &PoolPlan, b: &PoolPlan) -> bool {
    let share = |p: &PoolPlan, shape: &plimsoll_fleet::Shape| {
        let total: f64 = p.flows.iter().map(|f| f.rps).sum();
        p.flows.iter().filter(|f| &f.shape == shape).map(|f| f.rps).sum::<f64>() / total.max(1e-9)
    };
    a.flows.iter().chain(&b.flows).any(|f| (share(a, &f.shape) - share(b, &f.shape)).abs() > 0.1)
}

/// Records of the pools whose fleet changed from `old` to `new`.
pub fn scaling_records(old: Option<&Plan>, new: &Plan, at: Timestamp) -> Vec<(PoolId, ScalingRecord)> {
    let mut out = Vec::new();
    for pool in &new.pools {
        let before = old.and_then(|p| p.pool(&pool.pool)).filter(|b| b.uid == pool.uid);
        let same_fleet = before.map_or(pool.replicas.is_empty(), |b| b.by_shape() == pool.by_shape());
        let same_outcome = before.is_some_and(|b| b.outcome == pool.outcome);
        if same_fleet && (same_outcome || pool.replicas.is_empty() && before.is_none()) {
            continue;
        }
        let to = pool.demand.total_rps();
        let mut reason = match before.map(|b| b.demand.total_rps()) {
            Some(from) if (from - to).abs() > 0.05 => format!("demand {from:.1} → {to:.1} rps"),
            Some(_) => format!("demand {to:.1} rps"),
            None => format!("first plan, demand {to:.1} rps"),
        };
        if !pool.demand.source.is_empty() {
            reason = format!("{reason} ({})", pool.demand.source);
        }
        if pool.outcome != PoolOutcome::Served {
            reason = format!("{reason}; {}", pool.outcome);
        }
        if new.trigger.contains(&pool.pool.to_string()) {
            reason = format!("{}; {reason}", new.trigger);
        }
        if !pool.why.summary.is_empty() {
            reason = format!("{reason}; {}", pool.why.summary);
        }
        out.push((
            pool.pool.clone(),
            ScalingRecord {
                pool: Some(pool.pool.clone()),
                at,
                plan: new.number,
                from: before.map_or_else(|| "–".to_owned(), PoolPlan::fleet_text),
                to: pool.fleet_text(),
                replicas: (before.map_or(0, |b| b.replicas.len() as u32), pool.replicas.len() as u32),
                reason,
            },
        ));
    }
    out
}

/// What in a newer snapshot calls for a new plan (`None`: nothing; replicas that start or become ready do not).
pub fn material_snapshot_change(old: Option<&ClusterSnapshot>, new: &ClusterSnapshot) -> Option<String> {
    let Some(old) = old else { return Some("first look at the cluster".to_owned()) };
    if let Some(pool) = new.pools.iter().find(|p| !old.pools.contains(p)) {
        let known = old.pools.iter().any(|p| p.id == pool.id);
        return Some(format!("{} {}", pool.id, if known { "changed" } else { "was added" }));
    }
    if let Some(pool) = old.pools.iter().find(|p| !new.pools.iter().any(|n| n.id == p.id)) {
        return Some(format!("{} was deleted", pool.id));
    }
    // Labels change all the time and seldom matter, but which do is the planner's business.
    // Nearly always all are as they were, and they are many.
    let nodes_changed = old.nodes != new.nodes;
    if nodes_changed && let Some(node) = new.nodes.iter().find(|n| !old.nodes.contains(n)) {
        return Some(format!("node {} changed", node.name));
    }
    if nodes_changed
        && let Some(node) = old.nodes.iter().find(|o| !new.nodes.iter().any(|n| n.name == o.name))
    {
        return Some(format!("node {} is gone", node.name));
    }
    if old.accelerators != new.accelerators {
        return Some("accelerator classes changed".to_owned());
    }
    if old.budgets != new.budgets {
        return Some("budgets changed".to_owned());
    }
    if old.adapters != new.adapters {
        return Some("adapters changed".to_owned());
    }
    let failed = |s: &ClusterSnapshot, id: &ReplicaId| {
        s.replicas.iter().any(|r| &r.id == id && r.phase == ReplicaPhase::Failed)
    };
    new.replicas
        .iter()
        .find(|r| failed(new, &r.id) && !failed(old, &r.id))
        .map(|r| format!("replica {} of {} failed", r.id, r.pool))
}

/// What others took away of what the plan wants: a replica that is being evicted or deleted, or that is gone. Unlike what the
/// plan itself ends, it needs a successor at once.
pub fn taken_away(plan: &Plan, old: &ClusterSnapshot, new: &ClusterSnapshot) -> Option<String> {
    let phases = |s: &ClusterSnapshot| -> BTreeMap<ReplicaId, ReplicaPhase> {
        s.replicas.iter().map(|r| (r.id.clone(), r.phase)).collect()
    };
    let (old, new) = (phases(old), phases(new));
    plan.pools.iter().flat_map(|p| p.replicas.iter().map(move |r| (&p.pool, &r.id))).find_map(|(pool, id)| {
        match (old.get(id)?, new.get(id)) {
            (ReplicaPhase::Draining, _) => None,
            (_, Some(ReplicaPhase::Draining)) => {
                Some(format!("replica {id} of {pool} is being evicted or deleted"))
            }
            (_, None) => Some(format!("replica {id} of {pool} is gone")),
            _ => None,
        }
    })
}

/// The first serial number that no replica, existing or planned, can have: ids end in `-<serial>`.
pub fn free_serial(stored: u64, snapshot: &ClusterSnapshot, plan: Option<&Plan>) -> u64 {
    let ids = snapshot
        .replicas
        .iter()
        .map(|r| r.id.as_str())
        .chain(plan.iter().flat_map(|p| &p.pools).flat_map(|p| p.replicas.iter().map(|r| r.id.as_str())));
    ids.filter_map(|id| id.rsplit_once('-')?.1.parse::<u64>().ok())
        // Text that only looks like a serial must not use up the numbers.
        .filter(|n| *n < 1 << 48)
        .map(|n| n + 1)
        .fold(stored.max(1), u64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    #[test]
    fn what_others_take_away_calls_for_a_plan() {
        let plan = plan(1, vec![pool_plan("default/a", vec![assignment("a-1", "n1")], 1.0)]);
        let with = |replicas: &[(&str, ReplicaPhase)]| {
            let replicas = replicas.iter().map(|(id, phase)| replica(id, "default/a", "n1", *phase));
            snapshot(vec![pool("default/a", None)], vec![node("n1", 4)], replicas.collect())
        };
        let (ready, evicted) =
            (with(&[("a-1", ReplicaPhase::Ready)]), with(&[("a-1", ReplicaPhase::Draining)]));
        let why = taken_away(&plan, &ready, &evicted).unwrap();
        assert_eq!(why, "replica a-1 of default/a is being evicted or deleted");
        assert!(taken_away(&plan, &ready, &with(&[])).unwrap().ends_with("is gone"));
        assert_eq!(taken_away(&plan, &evicted, &with(&[])), None, "known already");
        assert_eq!(taken_away(&plan, &with(&[]), &ready), None);
        let own = with(&[("a-1", ReplicaPhase::Ready), ("a-0", ReplicaPhase::Draining)]);
        assert_eq!(
            taken_away(&plan, &with(&[("a-1", ReplicaPhase::Ready), ("a-0", ReplicaPhase::Ready)]), &own),
            None
        );
    }

    #[test]
    fn a_plan_with_other_caps_or_emissions_differs() {
        use plimsoll_fleet::{BudgetUnit, OnLimit};
        let old = plan(1, vec![pool_plan("default/a", vec![assignment("a-1", "n1")], 5.0)]);
        let mut new = old.clone();
        new.pools[0].grams_co2e_per_hour = 90.0;
        assert!(differs(&old, &new), "another grid");
        let used = |cap, planned| {
            let (budget, unit, on_limit) = ("green".to_owned(), BudgetUnit::Watts, OnLimit::Alert);
            Plan { budgets: vec![BudgetUse { budget, unit, cap, planned, on_limit }], ..old.clone() }
        };
        assert!(!differs(&used(600.0, 500.0), &used(600.0, 510.0)));
        assert!(differs(&used(600.0, 500.0), &used(600.0, 700.0)), "exceeded");
        assert!(differs(&used(600.0, 500.0), &used(700.0, 500.0)), "another cap");
        assert!(differs(&old, &used(600.0, 500.0)), "another budget");
    }

    #[test]
    fn a_plan_counts_only_if_it_differs() {
        let old = plan(1, vec![pool_plan("default/a", vec![assignment("a-1", "n1")], 5.0)]);
        let mut new = plan(2, vec![pool_plan("default/a", vec![assignment("a-1", "n1")], 5.5)]);
        assert!(!differs(&old, &new));
        new.pools[0].demand.classes[0].rps = 8.0;
        assert!(differs(&old, &new));
        let moved = plan(2, vec![pool_plan("default/a", vec![assignment("a-1", "n2")], 5.0)]);
        assert!(differs(&old, &moved));
        assert!(differs(&old, &plan(2, vec![])));
    }

    #[test]
    fn records_say_what_changed_and_why() {
        let old = plan(1, vec![pool_plan("default/a", vec![assignment("a-1", "n1")], 4.0)]);
        let mut new = plan(
            2,
            vec![pool_plan("default/a", vec![assignment("a-1", "n1"), assignment("a-2", "n1")], 7.2)],
        );
        new.pools[0].why.summary = "cheapest".into();
        let records = scaling_records(Some(&old), &new, at(5));
        assert_eq!(records.len(), 1);
        let r = &records[0].1;
        assert_eq!(
            (r.replicas, r.from.as_str(), r.to.as_str()),
            ((1, 2), "1× bf16 TP1 L4", "2× bf16 TP1 L4")
        );
        assert_eq!(r.reason, "demand 4.0 → 7.2 rps; cheapest");
        assert!(scaling_records(Some(&new), &new, at(6)).is_empty());
    }

    #[test]
    fn only_what_matters_calls_for_a_plan() {
        let old = snapshot(vec![pool("default/a", None)], vec![node("n1", 4)], vec![]);
        let mut new = old.clone();
        new.replicas.push(replica("a-1", "default/a", "n1", ReplicaPhase::Starting));
        assert_eq!(material_snapshot_change(Some(&old), &new), None);
        let mut failed = new.clone();
        failed.replicas[0].phase = ReplicaPhase::Failed;
        assert!(material_snapshot_change(Some(&new), &failed).unwrap().contains("a-1"));
        assert_eq!(material_snapshot_change(Some(&failed), &failed), None, "once");
        new.nodes.clear();
        assert_eq!(material_snapshot_change(Some(&old), &new).unwrap(), "node n1 is gone");
        assert!(material_snapshot_change(None, &old).is_some());
    }

    #[test]
    fn serial_numbers_are_never_used_twice() {
        let s = snapshot(vec![], vec![], vec![replica("a-41", "default/a", "n1", ReplicaPhase::Ready)]);
        let p = plan(1, vec![pool_plan("default/a", vec![assignment("a-50", "n1")], 1.0)]);
        assert_eq!(free_serial(3, &s, None), 42);
        assert_eq!(free_serial(3, &s, Some(&p)), 51);
        assert_eq!(free_serial(99, &s, Some(&p)), 99);
        let odd = snapshot(
            vec![],
            vec![],
            vec![replica("a-99999999999999999999", "default/a", "n1", ReplicaPhase::Ready)],
        );
        assert_eq!(free_serial(0, &odd, None), 1);
    }
}
