//! How a pool's replicas lie on nodes: the loss or drain of one node should leave most of them.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_fleet::{NodeName, Role};

use super::Want;

/// Most of a pool's replicas that a node should hold: a third of three or more (rounded up), one of two.
pub(crate) fn fair_share(replicas: u32) -> u32 {
    replicas.div_ceil(3).max(1)
}

/// Counts a pool's replicas by node while they are placed. A replica over several nodes counts on each.
#[derive(Debug, Clone)]
pub(super) struct Spread {
    /// Most replicas of a pool that a node should hold, by index of the pool.
    limit: BTreeMap<usize, u32>,
    held: BTreeMap<(usize, NodeName), u32>,
    /// Nodes with prefill or decode replicas of a pool.
    parts: BTreeSet<(usize, Role, NodeName)>,
}

impl Spread {
    pub(super) fn new(wants: &[Want]) -> Self {
        let mut totals: BTreeMap<usize, u32> = BTreeMap::new();
        for want in wants {
            *totals.entry(want.pool).or_default() += want.count;
        }
        let limit = totals.into_iter().map(|(pool, n)| (pool, fair_share(n))).collect();
        Self { limit, held: BTreeMap::new(), parts: BTreeSet::new() }
    }

    /// Whether one more replica of the pool on any of these nodes would be too many of one pool there.
    pub(super) fn is_crowded<'n>(&self, pool: usize, nodes: impl IntoIterator<Item = &'n NodeName>) -> bool {
        let limit = self.limit.get(&pool).copied().unwrap_or(u32::MAX);
        nodes.into_iter().any(|n| self.held.get(&(pool, n.clone())).is_some_and(|held| *held >= limit))
    }

    /// Whether a prefill or decode replica would be beside one that it can exchange caches with without the network.
    pub(super) fn has_counterpart(&self, pool: usize, role: Role, node: &Option<NodeName>) -> bool {
        let other = match role {
            Role::Mixed => return false,
            Role::Prefill => Role::Decode,
            Role::Decode => Role::Prefill,
        };
        node.as_ref().is_some_and(|node| self.parts.contains(&(pool, other, node.clone())))
    }

    /// Counts a replica.
    pub(super) fn take(&mut self, pool: usize, role: Role, nodes: &[NodeName]) {
        for node in nodes {
            if role != Role::Mixed {
                self.parts.insert((pool, role, node.clone()));
            }
            *self.held.entry((pool, node.clone())).or_default() += 1;
        }
    }
}
