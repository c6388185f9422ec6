//! A cluster as it would be once manifests were applied to it.

use std::collections::BTreeSet;

use plimsoll_fleet::{Adapter, ClusterSnapshot, ModelPool, PoolId};

/// What applying objects does beside what plans show.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Pools whose demand has to be estimated anew: they are new, or expect other requests than before.
    pub demand_anew: BTreeSet<PoolId>,
    /// Remarks for people, one line each.
    pub remarks: Vec<String>,
}

/// Puts each object in the place of that of the same name, or beside the others. What is not named stays, as with `kubectl apply`; nodes and
/// replicas of `objects` are not looked at. O(objects × objects there are).
pub fn apply(snapshot: &mut ClusterSnapshot, objects: ClusterSnapshot) -> Applied {
    // Destructured without `..`, so that a kind of object that is added is not forgotten here.
    let ClusterSnapshot {
        pools,
        accelerators,
        budgets,
        adapters,
        tenants,
        nodes: _,
        replicas: _,
        adopted: _,
        priorities: _,
    } = objects;
    let mut applied = Applied::default();
    for pool in pools {
        apply_pool(snapshot, pool, &mut applied);
    }
    replace(&mut snapshot.accelerators, accelerators, |a, b| a.name == b.name);
    replace(&mut snapshot.budgets, budgets, |a, b| a.name == b.name);
    let seen = |a: &Adapter| {
        let old = snapshot.adapters.iter().find(|old| old.served_name == a.served_name);
        old.and_then(|old| old.observed_rps)
    };
    let adapters: Vec<Adapter> =
        adapters.into_iter().map(|a| Adapter { observed_rps: seen(&a), ..a }).collect();
    replace(&mut snapshot.adapters, adapters, |a, b| (&a.namespace, &a.name) == (&b.namespace, &b.name));
    replace(&mut snapshot.tenants, tenants, |a, b| a.name == b.name);
    applied
}

fn replace<T>(all: &mut Vec<T>, new: Vec<T>, same: impl Fn(&T, &T) -> bool) {
    for object in new {
        match all.iter_mut().find(|old| same(old, &object)) {
            Some(old) => *old = object,
            None => all.push(object),
        }
    }
}

fn apply_pool(snapshot: &mut ClusterSnapshot, pool: ModelPool, applied: &mut Applied) {
    let id = pool.id.clone();
    let Some(old) = snapshot.pools.iter_mut().find(|p| p.id == id) else {
        applied.demand_anew.insert(id);
        snapshot.pools.push(pool);
        return;
    };
    let classes = |p: &ModelPool| p.slo_classes.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    if old.demand != pool.demand || classes(old) != classes(&pool) {
        applied.demand_anew.insert(id.clone());
    }
    let differs = engine_inputs(old, &pool);
    let running = snapshot.replicas.iter().filter(|r| r.pool == id).count();
    if !differs.is_empty() && running > 0 {
        applied.remarks.push(format!(
            "{id}: {} differs, so all {running} running replicas are replaced in a rollout",
            differs.join(", ")
        ));
    }
    // What the cluster has found out about the pool is still so.
    let (generation, observed) = (old.generation, std::mem::take(&mut old.observed));
    let measured = std::mem::take(&mut old.engine.measured_cold_start_seconds);
    let (uid, revision) = (std::mem::take(&mut old.uid), std::mem::take(&mut old.revision));
    *old = ModelPool { uid, generation, revision, observed, ..pool };
    old.engine.measured_cold_start_seconds = measured;
}

/// What engines are made from that differs, by the field of a ModelPool that says it.
fn engine_inputs(old: &ModelPool, new: &ModelPool) -> Vec<&'static str> {
    let formats = |p: &ModelPool| {
        p.variants.iter().map(|v| (v.name.clone(), v.weights, v.kv, v.source.clone())).collect::<Vec<_>>()
    };
    // A variant that comes or goes makes no other engines of those that stay.
    let shared = |p: &ModelPool, other: &ModelPool| {
        formats(p).into_iter().filter(|v| other.variant(&v.0).is_some()).collect::<BTreeSet<_>>()
    };
    let (a, b) = (&old.engine, &new.engine);
    [
        ("spec.engine.kind", a.kind != b.kind),
        ("spec.engine.image", a.image != b.image),
        ("spec.engine.args", a.args != b.args),
        ("spec.engine.env", a.env != b.env),
        ("spec.engine.resources", a.resources != b.resources),
        ("spec.model.source", old.source != new.source),
        ("spec.variants", shared(old, new) != shared(new, old)),
        ("spec.parallelism.expert", old.parallelism.expert != new.parallelism.expert),
        ("spec.maxContextTokens", old.max_context_tokens != new.max_context_tokens),
    ]
    .into_iter()
    .filter_map(|(field, differs)| differs.then_some(field))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::support::{World, budget, class, demand, pool};

    fn running() -> World {
        let mut w = World::up();
        w.add(pool("chat", "llama-3.1-70b", 800.0, 50.0), demand(vec![class("a", 3.0, 1200.0, 250.0)]));
        w.add(pool("code", "qwen3-32b", 1500.0, 80.0), demand(vec![class("a", 1.0, 2000.0, 300.0)]));
        w.snapshot.budgets.push(budget("all", 100.0));
        w.run();
        w
    }

    fn objects(pools: Vec<ModelPool>) -> ClusterSnapshot {
        ClusterSnapshot { pools, ..ClusterSnapshot::default() }
    }

    #[test]
    fn what_is_named_is_replaced_or_joins_and_what_is_not_stays() {
        let mut w = running();
        let before = w.snapshot.clone();
        let mut code = pool("code", "qwen3-32b", 1500.0, 80.0);
        (code.uid, code.generation, code.scaling.min_replicas) = ("of-the-file".into(), 0, 3);
        let mut given = objects(vec![code, pool("new", "llama-3.1-8b", 1500.0, 80.0)]);
        given.budgets = vec![budget("all", 7.0), budget("other", 9.0)];
        let applied = apply(&mut w.snapshot, given);
        assert_eq!(applied.demand_anew, BTreeSet::from(["default/new".parse().unwrap()]));
        assert!(applied.remarks.is_empty(), "{:?}", applied.remarks);
        let of = |s: &ClusterSnapshot, id: &str| s.pools.iter().find(|p| p.id.name() == id).unwrap().clone();
        assert_eq!(of(&w.snapshot, "chat"), of(&before, "chat"));
        let code = of(&w.snapshot, "code");
        assert_eq!((code.uid, code.generation), (of(&before, "code").uid, 1), "the same object");
        assert_eq!(code.scaling.min_replicas, 3);
        let caps: Vec<_> = w.snapshot.budgets.iter().map(|b| (b.name.as_str(), b.usd_per_hour)).collect();
        assert_eq!(caps, [("all", Some(7.0)), ("other", Some(9.0))]);
        assert_eq!((w.snapshot.nodes, w.snapshot.replicas), (before.nodes, before.replicas));
    }

    #[test]
    fn what_starts_all_engines_anew_is_said() {
        let mut w = running();
        let mut chat = pool("chat", "llama-3.1-70b", 800.0, 50.0);
        (chat.engine.image, chat.max_context_tokens) = (Some("vllm:next".into()), Some(4096));
        chat.variants.pop();
        let remarks = apply(&mut w.snapshot, objects(vec![chat])).remarks;
        let [remark] = remarks.as_slice() else { panic!("{remarks:?}") };
        assert!(
            remark.starts_with("default/chat: spec.engine.image, spec.maxContextTokens differs"),
            "{remark}"
        );
    }

    #[test]
    fn applying_what_is_there_changes_nothing() {
        let mut w = running();
        let before = w.snapshot.clone();
        let pools =
            before.pools.iter().map(|p| ModelPool { uid: "of-the-file".into(), ..p.clone() }).collect();
        let applied = apply(&mut w.snapshot, objects(pools));
        assert_eq!((applied, w.snapshot), (Applied::default(), before));
    }
}
