//! Steps in which nothing happens but decoding, many at once.
//!
//! Between one arrival or completion and the next, every step gives each running request one token. What such steps
//! do to a rank is known beforehand, so that only their lengths are worked out one by one. The outcome is that of the
//! same steps taken singly, to the last bit; only which of the blocks without known content a request holds differs.

use super::{Job, Rank, beside_blocks};
use crate::StepLoad;

/// Steps taken together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::sim) struct Coasted {
    /// How many.
    pub(in crate::sim) steps: u32,
    /// When the last of them ends, milliseconds.
    pub(in crate::sim) now_ms: f64,
}

impl Rank {
    /// Runs steps that start before `until_ms` for as long as no request begins, ends or is preempted in them. To be
    /// called after a step in which none was: whoever waits then waits on, as only an end makes room.
    pub(in crate::sim) fn coast(&mut self, now_ms: f64, until_ms: f64) -> Coasted {
        let mut done = Coasted { steps: 0, now_ms };
        let most = self.uneventful_steps();
        if most == 0 {
            return done;
        }
        let running = self.running.len() as f64;
        let mut load = StepLoad { running, ..StepLoad::default() };
        for job in &self.running {
            load.context_tokens += f64::from(job.known());
        }
        if self.model().config().lora.is_some() {
            load.adapters = self.adapters().len() as f64;
        }
        while done.steps < most && done.now_ms < until_ms {
            done.now_ms += self.model().times.breakdown(&load).total_ms();
            // Sums of whole numbers far below 2^53: exact in any order.
            load.context_tokens += running;
            done.steps += 1;
        }
        self.advance(done.steps);
        done
    }

    /// Steps that are sure to give every running request one token each and do nothing else.
    fn uneventful_steps(&self) -> u32 {
        let decodes = |job: &Job| job.generated > 0 && job.remaining() == 1;
        if self.running.is_empty() || self.drafts() > 0 || !self.running.iter().all(decodes) {
            return 0;
        }
        // What a waiting request finds in the cache may be evicted meanwhile, which changes what it needs.
        let full = self.running.len() >= self.model().config().max_running as usize;
        if !full && self.policy.prefix_cache && self.next_waiting().is_some_and(|(_, j)| !j.hashes.is_empty())
        {
            return 0;
        }
        let to_go = self.running.iter().map(|job| job.output - job.generated).min().unwrap_or(0);
        let mut steps = to_go.saturating_sub(1);
        while steps > 0 {
            let missing = self.running.iter().map(|job| {
                let (blocks, beside) = self.missing(job, steps);
                u64::from(blocks) + u64::from(beside)
            });
            if missing.sum::<u64>() <= u64::from(self.pool.available()) {
                break;
            }
            steps /= 2;
        }
        steps
    }

    /// Blocks that a decoding job needs beyond those it has for this many steps: of its sequence, and beside it.
    fn missing(&self, job: &Job, steps: u32) -> (u32, u32) {
        let reach = job.computed + steps;
        let blocks = self.blocks_for(reach).saturating_sub(job.blocks.len() as u32);
        let beside = self.beside_for(reach).saturating_sub(job.beside.len() as u32);
        (blocks, beside)
    }

    fn advance(&mut self, steps: u32) {
        if steps == 0 {
            return;
        }
        let block = self.block_tokens();
        let kv = (!self.plain).then_some(self.model().kv);
        let pool = &mut self.pool;
        for job in &mut self.running {
            job.computed += steps;
            job.generated += steps;
            while (job.blocks.len() as u32) * block < job.computed
                && let Some(id) = pool.allocate()
            {
                job.blocks.push(id);
            }
            let beside = kv.map_or(0, |kv| beside_blocks(&kv, job.computed, block));
            while (job.beside.len() as u32) < beside
                && let Some(id) = pool.allocate()
            {
                job.beside.push(id);
            }
        }
        self.stats.generation_tokens += u64::from(steps) * self.running.len() as u64;
    }
}
