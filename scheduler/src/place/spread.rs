//! How a pool's replicas lie on nodes: the loss or drain of one node should leave most of them.

use std::collections::BTreeMap;

use plimsoll_fleet::NodeName;

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
}

impl Spread {
    pub(super) fn new(wants: &[Want]) -> Self {
        let mut totals: BTreeMap<usize, u32> = BTreeMap::new();
        for want in wants {
            *totals.entry(want.pool).or_default() += want.count;
        }
        let limit = totals.into_iter().map(|(pool, n)| (pool, fair_share(n))).collect();
        Self { limit, held: BTreeMap::new() }
    }

    /// Whether one more replica of the pool on any of these nodes would be too many of one pool there.
    pub(super) fn is_crowded<'n>(&self, pool: usize, nodes: impl IntoIterator<Item = &'n NodeName>) -> bool {
        let limit = self.limit.get(&pool).copied().unwrap_or(u32::MAX);
        nodes.into_iter().any(|n| self.held.get(&(pool, n.clone())).is_some_and(|held| *held >= limit))
    }

    /// Counts a replica.
    pub(super) fn take(&mut self, pool: usize, nodes: &[NodeName]) {
        for node in nodes {
            *self.held.entry((pool, node.clone())).or_default() += 1;
        }
    }
}
