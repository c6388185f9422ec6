//! The KV cache as blocks: reference counts, a prefix index, and least-recently-used eviction.

use std::collections::HashMap;

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Block {
    hash: Option<u64>,
    users: u32,
    /// Neighbours among unused blocks.
    older: u32,
    newer: u32,
}

/// Blocks are made when first needed, so that a large, mostly empty cache costs nothing.
#[derive(Debug, Clone)]
pub(super) struct BlockPool {
    blocks: Vec<Block>,
    capacity: u32,
    index: HashMap<u64, u32>,
    /// Unused blocks, from the one to be evicted first to the last one.
    oldest: u32,
    newest: u32,
    unused: u32,
}

impl BlockPool {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            blocks: Vec::new(),
            capacity: u32::try_from(capacity).unwrap_or(NONE - 1).min(NONE - 1),
            index: HashMap::new(),
            oldest: NONE,
            newest: NONE,
            unused: 0,
        }
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    fn made(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Blocks that can be had, by eviction if need be.
    pub(super) fn available(&self) -> u32 {
        self.capacity - self.made() + self.unused
    }

    /// Share of blocks in use by requests.
    pub(super) fn usage(&self) -> f64 {
        f64::from(self.capacity - self.available()) / f64::from(self.capacity.max(1))
    }

    /// The block that holds this content.
    pub(super) fn find(&self, hash: u64) -> Option<u32> {
        self.index.get(&hash).copied()
    }

    /// Whether no request uses the block.
    pub(super) fn is_unused(&self, id: u32) -> bool {
        self.blocks.get(id as usize).is_some_and(|b| b.users == 0)
    }

    fn neighbour(&mut self, id: u32) -> Option<&mut Block> {
        self.blocks.get_mut(id as usize)
    }

    fn unlink(&mut self, id: u32) {
        let Some(Block { older, newer, .. }) = self.blocks.get(id as usize).copied() else { return };
        match self.neighbour(older) {
            Some(b) => b.newer = newer,
            None => self.oldest = newer,
        }
        match self.neighbour(newer) {
            Some(b) => b.older = older,
            None => self.newest = older,
        }
        self.unused -= 1;
    }

    /// Adds a user to a block.
    pub(super) fn take(&mut self, id: u32) {
        if self.is_unused(id) {
            self.unlink(id);
        }
        if let Some(b) = self.neighbour(id) {
            b.users += 1;
        }
    }

    /// A block with unknown content and one user; `None` when all are in use.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        if self.made() < self.capacity {
            self.blocks.push(Block { hash: None, users: 1, older: NONE, newer: NONE });
            return Some(self.made() - 1);
        }
        let id = self.oldest;
        if id == NONE {
            return None;
        }
        self.unlink(id);
        let block = self.blocks.get_mut(id as usize)?;
        block.users = 1;
        let hash = block.hash.take();
        if let Some(hash) = hash
            && self.index.get(&hash) == Some(&id)
        {
            self.index.remove(&hash);
        }
        Some(id)
    }

    /// Records what a block holds, so that it can be found. The first block with some content keeps the name.
    pub(super) fn name(&mut self, id: u32, hash: u64) {
        if let std::collections::hash_map::Entry::Vacant(entry) = self.index.entry(hash)
            && let Some(b) = self.blocks.get_mut(id as usize)
        {
            b.hash = Some(hash);
            entry.insert(id);
        }
    }

    /// Removes a user; a block without users may be evicted, after all that were let go before it.
    pub(super) fn release(&mut self, id: u32) {
        let newest = self.newest;
        let Some(block) = self.blocks.get_mut(id as usize).filter(|b| b.users > 0) else { return };
        block.users -= 1;
        if block.users > 0 {
            return;
        }
        block.older = newest;
        block.newer = NONE;
        match self.neighbour(newest) {
            Some(b) => b.newer = id,
            None => self.oldest = id,
        }
        self.newest = id;
        self.unused += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evicts_the_least_recently_used() {
        let mut pool = BlockPool::new(3);
        let ids: Vec<u32> = (0..3).map(|_| pool.allocate().unwrap()).collect();
        assert_eq!(pool.allocate(), None);
        for (i, id) in ids.iter().enumerate() {
            pool.name(*id, i as u64);
            pool.release(*id);
        }
        assert_eq!(pool.available(), 3);
        pool.take(ids[0]);
        pool.release(ids[0]);
        // 1 is now the oldest, then 2, then 0.
        assert_eq!(pool.allocate(), Some(ids[1]));
        assert_eq!(pool.find(1), None);
        assert_eq!(pool.find(0), Some(ids[0]));
        assert_eq!(pool.allocate(), Some(ids[2]));
        assert_eq!(pool.allocate(), Some(ids[0]));
        assert_eq!(pool.available(), 0);
    }

    #[test]
    fn shared_blocks_stay_until_the_last_user_leaves() {
        let mut pool = BlockPool::new(2);
        let a = pool.allocate().unwrap();
        pool.name(a, 7);
        pool.take(a);
        pool.release(a);
        assert_eq!(pool.available(), 1);
        assert!((pool.usage() - 0.5).abs() < 1e-12);
        pool.release(a);
        assert_eq!(pool.available(), 2);
        // One release too many changes nothing.
        pool.release(a);
        assert_eq!(pool.available(), 2);
    }
}
