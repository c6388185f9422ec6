//! What a router believes each replica's prefix cache holds: its own sends, least recently used forgotten first.

use std::collections::VecDeque;

use crate::hash::QuickMap;

/// Most replicas remembered for one block; the one touched longest ago gives way.
const MAX_HOLDERS: usize = 64;

/// A block that was followed by others so often belongs to many prompts.
const FORKS: u32 = 4;
/// Blocks looked at for the end of what is shared.
const MOST_SHARED: usize = 256;

#[derive(Debug, Clone, Copy)]
struct Holder {
    replica: u64,
    stamp: u64,
}

#[derive(Debug, Default)]
struct Block {
    holders: Vec<Holder>,
    /// The block that came after it last.
    next: u64,
    /// How often that was another one than before.
    forks: u32,
}

#[derive(Debug, Default)]
struct Shelf {
    /// Blocks in order of use; an entry whose stamp is not the holder's is stale.
    order: VecDeque<(u64, u64)>,
    live: usize,
}

/// Block hashes by the replicas that were sent them. Hashes are chained: a block's hash stands for the whole prefix
/// up to its end, so a replica that holds block `i` holds the prefix.
#[derive(Debug, Default)]
pub struct PrefixHistory {
    blocks: QuickMap<u64, Block>,
    shelves: QuickMap<u64, Shelf>,
    clock: u64,
}

impl PrefixHistory {
    /// Notes that `replica` was sent the prefix of these blocks; it remembers at most `capacity` blocks.
    pub fn insert(&mut self, replica: u64, prefix: &[u64], capacity: usize) {
        let kept = prefix.len().min(capacity);
        // Tail first: the head of a prefix is then the last to be forgotten.
        for (i, &block) in prefix[..kept].iter().enumerate().rev() {
            self.clock += 1;
            let stamp = self.clock;
            let entry = self.blocks.entry(block).or_default();
            if let Some(next) = prefix.get(i + 1).filter(|next| **next != entry.next) {
                entry.forks += u32::from(entry.next != 0);
                entry.next = *next;
            }
            let holders = &mut entry.holders;
            let shelf = self.shelves.entry(replica).or_default();
            match holders.iter_mut().find(|h| h.replica == replica) {
                Some(holder) => holder.stamp = stamp,
                None => {
                    shelf.live += 1;
                    if holders.len() < MAX_HOLDERS {
                        holders.push(Holder { replica, stamp });
                    } else if let Some(oldest) = holders.iter_mut().min_by_key(|h| h.stamp) {
                        let displaced = std::mem::replace(oldest, Holder { replica, stamp }).replica;
                        if let Some(other) = self.shelves.get_mut(&displaced) {
                            other.live = other.live.saturating_sub(1);
                        }
                    }
                }
            }
            if let Some(shelf) = self.shelves.get_mut(&replica) {
                shelf.order.push_back((block, stamp));
            }
        }
        self.trim(replica, capacity);
    }

    fn trim(&mut self, replica: u64, capacity: usize) {
        let Some(shelf) = self.shelves.get_mut(&replica) else { return };
        let blocks = &mut self.blocks;
        while shelf.live > capacity || shelf.order.len() > 2 * capacity + 64 {
            let Some((block, stamp)) = shelf.order.pop_front() else { break };
            let Some(Block { holders, .. }) = blocks.get_mut(&block) else { continue };
            let Some(at) = holders.iter().position(|h| h.replica == replica && h.stamp == stamp) else {
                continue;
            };
            if shelf.live <= capacity {
                // Only the list of uses is too long; the block itself stays.
                shelf.order.push_back((block, stamp));
                shelf.order.retain(|(b, s)| {
                    blocks
                        .get(b)
                        .is_some_and(|b| b.holders.iter().any(|h| h.replica == replica && h.stamp == *s))
                });
                break;
            }
            holders.swap_remove(at);
            if holders.is_empty() {
                blocks.remove(&block);
            }
            shelf.live -= 1;
        }
    }

    /// Forgets a replica (it is gone or was restarted).
    pub fn forget(&mut self, replica: u64) {
        if let Some(shelf) = self.shelves.remove(&replica) {
            for (block, _) in shelf.order {
                if let Some(Block { holders, .. }) = self.blocks.get_mut(&block) {
                    holders.retain(|h| h.replica != replica);
                    if holders.is_empty() {
                        self.blocks.remove(&block);
                    }
                }
            }
        }
    }

    /// Replicas remembered.
    pub fn replicas(&self) -> impl Iterator<Item = u64> + '_ {
        self.shelves.keys().copied()
    }

    /// The replicas that hold a block.
    pub fn with_block(&self, block: u64) -> impl Iterator<Item = u64> + '_ {
        self.blocks.get(&block).into_iter().flat_map(|b| &b.holders).map(|h| h.replica)
    }

    /// How many of the first blocks are shared by prompts that go on differently: a system prompt, say. Looks at no more
    /// than [`MOST_SHARED`].
    pub fn shared(&self, prefix: &[u64]) -> usize {
        let known = prefix.iter().take(MOST_SHARED).map_while(|block| self.blocks.get(block));
        known.enumerate().filter(|(_, b)| b.forks >= FORKS).last().map_or(0, |(i, _)| i + 1)
    }

    /// The replicas that hold the longest parts of the prefix, deepest first: `(replica, blocks)`, at most `most`.
    /// O(most · log blocks).
    pub fn holders(&self, prefix: &[u64], most: usize) -> Vec<(u64, usize)> {
        let mut found: Vec<(u64, usize)> = Vec::new();
        let count = |i: usize| self.blocks.get(&prefix[i]).map_or(0, |b| b.holders.len());
        let mut end = prefix.len();
        let mut above = 0;
        while end > 0 && found.len() < most {
            // The longest prefix (≤ end) held by more replicas than the one before.
            let (mut low, mut high) = (0, end);
            while low < high {
                let middle = low + (high - low).div_ceil(2);
                if count(middle - 1) > above { low = middle } else { high = middle - 1 }
            }
            if low == 0 {
                break;
            }
            for holder in self.blocks.get(&prefix[low - 1]).into_iter().flat_map(|b| &b.holders) {
                if found.len() < most && !found.iter().any(|(r, _)| *r == holder.replica) {
                    found.push((holder.replica, low));
                }
            }
            above = count(low - 1);
            end = low - 1;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_deepest_holder_comes_first() {
        let mut h = PrefixHistory::default();
        h.insert(1, &[10, 11, 12, 13], 100);
        h.insert(2, &[10, 11], 100);
        h.insert(3, &[10, 99], 100);
        assert_eq!(h.holders(&[10, 11, 12, 55], 8), [(1, 3), (2, 2), (3, 1)]);
        assert_eq!(h.holders(&[7], 8), []);
        h.forget(1);
        assert_eq!(h.holders(&[10, 11, 12, 55], 8)[0], (2, 2));
    }

    #[test]
    fn the_least_recently_used_is_forgotten_and_memory_is_bounded() {
        let mut h = PrefixHistory::default();
        for i in 0..10_000u64 {
            h.insert(1, &[i], 100);
            h.insert(1, &[0], 100);
        }
        assert_eq!(h.holders(&[0], 1), [(1, 1)], "kept in use");
        assert_eq!(h.holders(&[500], 1), []);
        assert_eq!(h.blocks.len(), 100);
        assert!(h.shelves[&1].order.len() <= 300);
    }

    #[test]
    fn what_many_prompts_begin_with_is_told_from_their_own_part() {
        let mut h = PrefixHistory::default();
        for session in 0..20u64 {
            for turn in 1..4u64 {
                let mut prompt = vec![1, 2, 3];
                prompt.extend((0..turn).map(|t| 1_000 * (session + 1) + t));
                h.insert(session % 4, &prompt, 1_000);
            }
        }
        assert_eq!(h.shared(&[1, 2, 3, 77, 78]), 3);
        assert_eq!(
            h.shared(&[1, 2, 3, 1_000, 1_001, 1_002, 1_003]),
            3,
            "a conversation that grows is one prompt"
        );
        assert_eq!(h.shared(&[9, 9]), 0);
    }

    proptest! {
        #[test]
        fn never_claims_what_was_not_sent(
            sends in prop::collection::vec((0u64..5, prop::collection::vec(0u64..4, 1..6)), 0..60), capacity in 1usize..20,
        ) {
            let mut h = PrefixHistory::default();
            let chain = |path: &[u64]| {
                let mut seed = 7u64;
                path.iter().map(|p| { seed = seed.wrapping_mul(31).wrapping_add(p + 1); seed }).collect::<Vec<_>>()
            };
            for (replica, path) in &sends {
                h.insert(*replica, &chain(path), capacity);
            }
            for (_, path) in &sends {
                for (replica, depth) in h.holders(&chain(path), 8) {
                    prop_assert!(sends.iter().any(|(r, p)| *r == replica && p.len() >= depth && p[..depth] == path[..depth]));
                }
            }
            for shelf in h.shelves.values() {
                prop_assert!(shelf.live <= capacity);
            }
        }
    }
}
