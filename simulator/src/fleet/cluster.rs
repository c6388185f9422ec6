//! The cluster and its operator: assignments become replicas that take accelerators, start, serve and go.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use plimsoll_fleet::plan::ReplicaAssignment;
use plimsoll_fleet::{ClusterSnapshot, NodeName, Plan, PoolId, ReplicaId, ReplicaPhase, ReplicaStatus};
use plimsoll_scheduler::fast::price;
use plimsoll_scheduler::plan::inventory::gpus_by_node;

/// A virtual time as a timestamp, counted from the start of 1970.
pub(super) fn timestamp(ms: f64) -> Timestamp {
    SignedDuration::try_from_secs_f64(ms.max(0.0) / 1000.0)
        .ok()
        .and_then(|d| Timestamp::UNIX_EPOCH.checked_add(d).ok())
        .unwrap_or(Timestamp::MAX)
}

#[derive(Debug)]
struct Member {
    status: ReplicaStatus,
    /// Where it is to run.
    wanted_nodes: Vec<NodeName>,
    usd_per_hour: f64,
    /// When it will serve, once it has its accelerators.
    ready_ms: f64,
}

/// Nodes and replicas.
#[derive(Debug)]
pub(super) struct Cluster {
    base: ClusterSnapshot,
    members: BTreeMap<ReplicaId, Member>,
    changed: bool,
}

impl Cluster {
    pub(super) fn new(mut base: ClusterSnapshot) -> Self {
        base.replicas.clear();
        Self { base, members: BTreeMap::new(), changed: true }
    }

    /// Brings replicas in line with a plan: what it wants and is not there is created, and of what it does not want,
    /// what has drained is deleted. The replicas deleted.
    pub(super) fn apply(
        &mut self,
        plan: &Plan,
        drained: &BTreeSet<ReplicaId>,
        now_ms: f64,
    ) -> Vec<ReplicaId> {
        let wanted: BTreeMap<&ReplicaId, (&PoolId, &ReplicaAssignment)> =
            plan.pools.iter().flat_map(|p| p.replicas.iter().map(move |r| (&r.id, (&p.pool, r)))).collect();
        let gone: Vec<ReplicaId> = self
            .members
            .keys()
            .filter(|id| drained.contains(*id) && !wanted.contains_key(id))
            .cloned()
            .collect();
        for id in &gone {
            self.members.remove(id);
        }
        for (id, (pool, assignment)) in wanted {
            if !self.members.contains_key(id) {
                let member = self.create(plan.number, pool, assignment, now_ms);
                self.members.insert(id.clone(), member);
                self.changed = true;
            }
        }
        self.changed |= !gone.is_empty();
        self.bind(now_ms);
        gone
    }

    fn create(&self, plan: u64, pool: &PoolId, assignment: &ReplicaAssignment, now_ms: f64) -> Member {
        let at = timestamp(now_ms);
        let revision = self.base.pools.iter().find(|p| &p.id == pool).map(|p| p.revision.clone());
        Member {
            status: ReplicaStatus {
                id: assignment.id.clone(),
                pool: pool.clone(),
                shape: assignment.shape.clone(),
                nodes: Vec::new(),
                phase: ReplicaPhase::Pending,
                address: None,
                plan,
                since: at,
                created_at: at,
                ready_at: None,
                message: "waits for its accelerators".to_owned(),
                outdated: false,
                gated: false,
                revision: revision.unwrap_or_default(),
                ended: false,
            },
            wanted_nodes: assignment.nodes.clone(),
            usd_per_hour: price(&assignment.shape, assignment.spot, &self.base),
            ready_ms: f64::INFINITY,
        }
    }

    /// Gives replicas their accelerators where these are free, oldest first.
    fn bind(&mut self, now_ms: f64) {
        let mut free: BTreeMap<&NodeName, u32> = self
            .base
            .nodes
            .iter()
            .map(|n| (&n.name, n.allocatable_gpus.saturating_sub(n.foreign_gpus)))
            .collect();
        for member in self.members.values() {
            for (node, gpus) in gpus_by_node(&member.status.shape, &member.status.nodes) {
                if let Some(left) = free.get_mut(node) {
                    *left = left.saturating_sub(gpus);
                }
            }
        }
        let mut waiting: Vec<&mut Member> = self
            .members
            .values_mut()
            .filter(|m| m.status.nodes.is_empty() && !m.wanted_nodes.is_empty())
            .collect();
        waiting.sort_by(|a, b| (a.status.created_at, &a.status.id).cmp(&(b.status.created_at, &b.status.id)));
        for member in waiting {
            let needed = gpus_by_node(&member.status.shape, &member.wanted_nodes);
            if needed.iter().any(|(node, gpus)| free.get(node).is_none_or(|left| left < gpus)) {
                continue;
            }
            for (node, gpus) in needed {
                if let Some(left) = free.get_mut(node) {
                    *left -= gpus;
                }
            }
            let engine = self.base.pools.iter().find(|p| p.id == member.status.pool).map(|p| &p.engine);
            let cold = engine.map_or(0.0, |e| e.cold_start_seconds_on(&member.status.shape.accelerator));
            member.status.nodes.clone_from(&member.wanted_nodes);
            member.status.phase = ReplicaPhase::Starting;
            member.status.since = timestamp(now_ms);
            member.status.message = "loads its weights".to_owned();
            member.ready_ms = now_ms + cold.max(0.0) * 1000.0;
            self.changed = true;
        }
    }

    /// Replicas that have come to serve by now.
    pub(super) fn advance(&mut self, now_ms: f64) -> Vec<ReplicaStatus> {
        let mut ready = Vec::new();
        for member in self.members.values_mut() {
            if member.status.phase == ReplicaPhase::Starting && member.ready_ms <= now_ms {
                let at = timestamp(member.ready_ms);
                member.status.phase = ReplicaPhase::Ready;
                (member.status.since, member.status.ready_at) = (at, Some(at));
                member.status.address = Some(format!("{}.replica:8000", member.status.id));
                member.status.message.clear();
                ready.push(member.status.clone());
                self.changed = true;
            }
        }
        ready
    }

    /// The cluster as the operator sees it, if it has changed since the last time.
    pub(super) fn news(&mut self) -> Option<ClusterSnapshot> {
        std::mem::take(&mut self.changed).then(|| {
            let replicas = self.members.values().map(|m| m.status.clone()).collect();
            ClusterSnapshot { replicas, ..self.base.clone() }
        })
    }

    /// Every node that replicas may run on.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.base.nodes.iter().map(|n| &n.name)
    }

    /// A pool's replicas that hold accelerators, how many of them serve, and what they cost, $/h.
    pub(super) fn held(&self, pool: &PoolId) -> (u32, u32, f64) {
        let own = self.members.values().filter(|m| &m.status.pool == pool && !m.status.nodes.is_empty());
        own.fold((0, 0, 0.0), |(held, ready, usd), m| {
            let serves = u32::from(m.status.phase == ReplicaPhase::Ready);
            (held + 1, ready + serves, usd + m.usd_per_hour)
        })
    }
}
