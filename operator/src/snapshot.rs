//! The cluster's state as handed to the scheduler. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use plimsoll_crds::model_pool::EngineKind;
use plimsoll_fleet::{ClusterSnapshot, ReplicaId, ReplicaPhase};

use crate::adopt;
use crate::build::template;
use crate::devices::Devices;
use crate::fault::FaultCondition;
use crate::group;
use crate::observe::{self, Observed, Unadoptable};
use crate::validate::Validated;
use crate::world::World;

/// The replicas among the pods, in order of pool and identity, and the pods that only claim to be.
pub fn replicas(world: &World) -> (Vec<Observed>, Vec<Unadoptable>) {
    let (mut replicas, mut unadoptable) = group::replicas(&world.pods);
    replicas.sort_by(|a, b| (&a.status.pool, &a.status.id).cmp(&(&b.status.pool, &b.status.id)));
    // Replica names are unique in the cluster; of two pods that claim one name, the older is the replica.
    let mut oldest: BTreeMap<ReplicaId, (Timestamp, String)> = BTreeMap::new();
    for r in &replicas {
        let claim = (r.status.created_at, r.pod_uid.clone());
        let best = oldest.entry(r.status.id.clone()).or_insert_with(|| claim.clone());
        *best = std::cmp::min(best.clone(), claim);
    }
    replicas.retain(|r| {
        let first = oldest.get(&r.status.id).is_none_or(|(_, uid)| *uid == r.pod_uid);
        if !first {
            unadoptable.push(Unadoptable {
                namespace: r.status.pool.namespace().to_owned(),
                name: r.status.id.to_string(),
                problem: "another pod in the cluster has that replica's name".to_owned(),
            });
        }
        first
    });
    (replicas, unadoptable)
}

/// The snapshot: accepted resources, accelerator nodes, and every replica, those of pools being deleted or rejected
/// included (they hold accelerators).
pub fn snapshot(
    world: &World,
    validated: &Validated,
    replicas: &[Observed],
    faults: &[FaultCondition],
) -> ClusterSnapshot {
    // Of a replica that is not wholly bound and was not planned onto nodes, what is bound counts by itself.
    let counted = |r: &&Observed| r.group.is_none() || !r.status.nodes.is_empty();
    let adopted: BTreeSet<&str> = replicas
        .iter()
        .filter(counted)
        .flat_map(|r| {
            let workers = r.group.iter().flat_map(|g| &g.workers);
            std::iter::once(r.pod_uid.as_str()).chain(workers.map(|w| w.uid.as_str()))
        })
        .collect();
    // What claims to be a replica and is not holds accelerators all the same.
    let strangers =
        world.pods.iter().filter(|p| !adopted.contains(p.metadata.uid.as_deref().unwrap_or_default()));
    let foreign_pods: Vec<_> = world.foreign_pods.iter().chain(strangers).cloned().collect();
    let resources = validated.accelerator_classes().filter_map(|c| c.resource_name()).collect();
    let foreign = observe::foreign_use(&foreign_pods, &resources);
    let devices = Devices::read(&world.dynamic, validated.accelerator_classes());
    let held = devices.foreign(&world.dynamic.claims, &adopted);
    let mut nodes: Vec<_> = world
        .nodes
        .iter()
        .filter_map(|n| observe::node(n, validated.accelerator_classes(), &devices, &foreign, &held, faults))
        .collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let uids: BTreeMap<_, _> = validated.accepted().map(|(_, a)| (&a.pool.id, a.pool.uid.as_str())).collect();
    let accepted =
        validated.accepted().map(|(r, a)| (&a.pool.id, (r, a, validated.adapter_room(&a.pool.id))));
    let accepted: BTreeMap<_, _> = accepted.collect();
    let mut statuses: Vec<_> = replicas
        .iter()
        .map(|r| {
            let mut status = r.status.clone();
            // Left over from a pool of the same name that is gone: on its way out.
            if uids.get(&status.pool).is_some_and(|uid| !r.owner_uid.is_empty() && *uid != r.owner_uid) {
                status.phase = ReplicaPhase::Draining;
            }
            // While the newest spec is invalid, an earlier one stays in force and nothing rolls out.
            status.outdated =
                accepted.get(&r.status.pool).filter(|(_, a, _)| a.outdated.is_none()).is_some_and(
                    |(resource, a, room)| !template::outdated(r, resource, &a.pool, *room).is_empty(),
                );
            status
        })
        .collect();
    for (resource, accepted) in validated.accepted() {
        if resource.spec.engine.kind == EngineKind::External {
            let created =
                resource.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
            statuses.extend(observe::external_replicas(
                &accepted.pool,
                &resource.spec.engine.endpoints,
                created,
            ));
        }
    }
    let mut pools: Vec<_> = validated.accepted().map(|(_, a)| a.pool.clone()).collect();
    pools.sort_by(|a, b| a.id.cmp(&b.id));
    ClusterSnapshot {
        pools,
        accelerators: validated.accelerator_classes().cloned().collect(),
        nodes,
        replicas: statuses,
        budgets: validated.budgets.iter().filter_map(|j| j.verdict.as_ref().ok().cloned()).collect(),
        tenants: validated.tenants.iter().filter_map(|j| j.verdict.as_ref().ok().cloned()).collect(),
        adapters: validated.adapters.iter().filter_map(|j| j.verdict.as_ref().ok().cloned()).collect(),
        adopted: adopt::adopt(world, validated),
        priorities: world.priorities.iter().filter(|p| accepted.contains_key(&p.pool)).cloned().collect(),
    }
}
