//! One attention rank of an engine as a state machine: a scheduler, a batch and a cache of its own.

mod coast;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use plimsoll_fleet::Role;

use super::blocks::BlockPool;
use super::request::{SimPolicy, SimRequest, SimStats, StepOutcome, SubmitError, TokenEvent};
use crate::ReplicaModel;
use crate::kv::KvLayout;

/// Place in line: priority, then arrival.
type Key = (i32, u64);

#[derive(Debug, Clone)]
struct Job {
    key: Key,
    id: u64,
    hashes: Vec<u64>,
    prompt: u32,
    output: u32,
    submitted_ms: f64,
    queue_ms: Option<f64>,
    cached_at_first: u32,
    /// Answer tokens so far.
    generated: u32,
    /// Tokens whose keys and values are in the cache.
    computed: u32,
    /// Blocks already named in the prefix index.
    named: usize,
    blocks: Vec<u32>,
    /// Blocks beside the sequence: of layers with a window, and states.
    beside: Vec<u32>,
    /// Adapter, hashed.
    adapter: Option<u64>,
    /// Part of a token that steps of speculative decoding still owe.
    owed: f64,
    /// Its prompt is computed here whatever the replica's role.
    prefill_here: bool,
}

impl Job {
    fn known(&self) -> u32 {
        self.prompt + self.generated
    }

    fn remaining(&self) -> u32 {
        self.known() - self.computed
    }
}

/// Which tokens a step tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tokens {
    /// Each.
    All,
    /// The first and the last of each request: all that a run needs to know.
    Ends,
}

/// One rank: pure state, no clock.
#[derive(Debug, Clone)]
pub(super) struct Rank {
    model: ReplicaModel,
    policy: SimPolicy,
    /// Whether requests keep their sequence of blocks and nothing beside it.
    plain: bool,
    pool: BlockPool,
    /// In order of their keys.
    running: Vec<Job>,
    waiting: BTreeMap<Key, Job>,
    /// Places in line of all requests here.
    keys: HashMap<u64, Key>,
    stats: SimStats,
}

impl Rank {
    /// An idle rank with an empty cache.
    pub(super) fn new(model: ReplicaModel, policy: SimPolicy) -> Self {
        let blocks = model.memory().kv_blocks as f64 / model.times.ranks.count;
        let pool = BlockPool::new((blocks / model.kv.sequence_unit()) as u64);
        Self {
            plain: model.kv.beside_sequence(1e9) == 0.0,
            model,
            policy,
            pool,
            running: Vec::new(),
            waiting: BTreeMap::new(),
            keys: HashMap::new(),
            stats: SimStats::default(),
        }
    }

    /// The performance model that sets step times.
    pub(super) fn model(&self) -> &ReplicaModel {
        &self.model
    }

    /// Whether the request is here.
    pub(super) fn has(&self, id: u64) -> bool {
        self.keys.contains_key(&id)
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What decides to which rank a request goes: a waiting one counts as four running ones.
    pub(super) fn load(&self) -> usize {
        4 * self.waiting.len() + self.running.len()
    }

    fn block_tokens(&self) -> u32 {
        self.model.config().block_tokens
    }

    /// Whether a request could ever run here.
    pub(super) fn check(&self, req: &SimRequest) -> Result<(), SubmitError> {
        let id = req.id;
        if req.prompt_tokens == 0 {
            return Err(SubmitError::EmptyPrompt { id });
        }
        let tokens = u64::from(req.prompt_tokens) + u64::from(req.output_tokens.max(1));
        let longest = u64::from(self.model.max_context_tokens());
        if tokens > longest || !self.holds(tokens) {
            return Err(SubmitError::TooLong { id, tokens, max_tokens: self.longest_request(longest) });
        }
        Ok(())
    }

    /// Puts a request that [`Rank::check`] lets through into the queue, as the `arrival`th of the replica.
    pub(super) fn submit(&mut self, now_ms: f64, arrival: u64, req: SimRequest) {
        let id = req.id;
        let output = req.output_tokens.max(1);
        let mut hashes = req.prompt_blocks;
        hashes.truncate((req.prompt_tokens / self.block_tokens()) as usize);
        let adapter = req.adapter.as_ref().map(|adapter| {
            let mut hasher = DefaultHasher::new();
            adapter.hash(&mut hasher);
            hasher.finish()
        });
        if let Some(salt) = adapter {
            hashes.iter_mut().for_each(|h| *h ^= salt);
        }
        let key = (req.priority, arrival);
        let job = Job {
            key,
            id,
            hashes,
            prompt: req.prompt_tokens,
            output,
            submitted_ms: now_ms,
            queue_ms: None,
            cached_at_first: 0,
            generated: 0,
            computed: 0,
            named: 0,
            blocks: Vec::new(),
            beside: Vec::new(),
            adapter,
            owed: 0.0,
            prefill_here: req.prefill_here,
        };
        self.keys.insert(id, key);
        self.waiting.insert(key, job);
    }

    /// Forgets a request wherever it is; an unknown one is ignored.
    pub(super) fn cancel(&mut self, id: u64) {
        let Some(key) = self.keys.remove(&id) else { return };
        if self.waiting.remove(&key).is_none()
            && let Ok(i) = self.running.binary_search_by(|j| j.key.cmp(&key))
        {
            let job = self.running.remove(i);
            Self::release(&mut self.pool, &job);
        }
    }

    /// Lets a job's blocks go, the last first: a shared prefix outlives what follows it.
    fn release(pool: &mut BlockPool, job: &Job) {
        for id in job.beside.iter().chain(job.blocks.iter().rev()) {
            pool.release(*id);
        }
    }

    /// Whether an empty cache holds a request of this many tokens. The last answer token is never computed on, so it
    /// needs no place.
    fn holds(&self, tokens: u64) -> bool {
        let computed = u32::try_from(tokens.saturating_sub(1)).unwrap_or(u32::MAX);
        u64::from(self.blocks_for(computed)) + u64::from(self.beside_for(computed))
            <= u64::from(self.pool.capacity())
    }

    /// Longest request of at most `limit` tokens that the cache holds.
    fn longest_request(&self, limit: u64) -> u64 {
        let (mut low, mut high) = (0, limit);
        while low < high {
            let mid = low + (high - low).div_ceil(2);
            if self.holds(mid) { low = mid } else { high = mid - 1 }
        }
        low
    }

    /// Whether nothing runs and nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Throws the last running job out of the batch; it will be computed again from its cached prefix.
    fn preempt_last(&mut self, out: &mut StepOutcome) -> Option<Key> {
        let mut job = self.running.pop()?;
        Self::release(&mut self.pool, &job);
        job.blocks.clear();
        job.beside.clear();
        job.computed = 0;
        job.named = 0;
        out.preempted.push(job.id);
        self.stats.preemptions += 1;
        let key = job.key;
        self.waiting.insert(key, job);
        Some(key)
    }

    fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.block_tokens())
    }

    /// Blocks that a request of this many computed tokens keeps beside its sequence.
    fn beside_for(&self, tokens: u32) -> u32 {
        if self.plain { 0 } else { beside_blocks(&self.model.kv, tokens, self.block_tokens()) }
    }

    /// Draft tokens verified beside each decoded one.
    fn drafts(&self) -> u32 {
        self.model.config().speculation.map_or(0, |s| s.draft_tokens)
    }

    /// Gives the running job at `i` its next tokens, preempting later ones for room. Returns the share of the step's
    /// budget that it takes: none if it was itself preempted.
    fn schedule_running(&mut self, i: usize, budget: u32, out: &mut StepOutcome) -> u32 {
        let (block, drafts) = (self.block_tokens(), self.drafts());
        let beside_kept = (!self.plain).then_some(self.model.kv);
        let Some(job) = self.running.get_mut(i) else { return 0 };
        let remaining = job.remaining();
        let tokens = remaining.min(budget);
        let drafted = if job.generated > 0 && remaining == 1 { drafts.min(budget - tokens) } else { 0 };
        // Room for what a step may yield, but for no more than the whole request needs.
        let most = (job.prompt + job.output).saturating_sub(1);
        let reach = (job.computed + tokens + drafted).min(most.max(job.computed + tokens));
        // Mostly there is room: dividing only where there is none is faster.
        let missing = reach.saturating_sub(job.blocks.len() as u32 * block);
        let blocks = if missing > 0 { missing.div_ceil(block) } else { 0 };
        let beside = beside_kept
            .map_or(0, |kv| beside_blocks(&kv, reach, block).saturating_sub(job.beside.len() as u32));
        if blocks + beside == 0 {
            Self::begin(&mut self.pool, self.policy, job, tokens, block, out);
            return tokens + drafted;
        }
        while self.pool.available() < blocks + beside {
            if self.preempt_last(out).is_none() || self.running.len() <= i {
                return 0;
            }
        }
        if let Some(job) = self.running.get_mut(i) {
            job.blocks.extend((0..blocks).map_while(|_| self.pool.allocate()));
            job.beside.extend((0..beside).map_while(|_| self.pool.allocate()));
            Self::begin(&mut self.pool, self.policy, job, tokens, block, out);
        }
        tokens + drafted
    }

    /// Counts a job's tokens as computed in this step and names the prompt blocks that become full.
    fn begin(
        pool: &mut BlockPool,
        policy: SimPolicy,
        job: &mut Job,
        tokens: u32,
        block: u32,
        out: &mut StepOutcome,
    ) {
        if job.generated > 0 && tokens == 1 && job.remaining() == 1 {
            out.load.add_decode(f64::from(job.known()));
        } else {
            out.load.add_prefill(f64::from(tokens), f64::from(job.computed));
        }
        job.computed += tokens;
        // Mostly all that can be named is.
        if policy.prefix_cache && job.named < job.hashes.len() {
            let full = ((job.computed / block) as usize).min(job.hashes.len());
            for (id, hash) in job.blocks.iter().zip(&job.hashes).take(full).skip(job.named) {
                pool.name(*id, *hash);
            }
            job.named = job.named.max(full);
        }
    }

    /// Distinct adapters in the batch.
    fn adapters(&self) -> HashSet<u64> {
        self.running.iter().filter_map(|j| j.adapter).collect()
    }

    /// The first waiting job; one whose adapter finds no slot is passed over.
    fn next_waiting(&self) -> Option<(&Key, &Job)> {
        let Some(lora) = self.model.config().lora else { return self.waiting.first_key_value() };
        let held = self.adapters();
        let full = held.len() >= lora.slots as usize;
        self.waiting.iter().find(|(_, job)| !full || job.adapter.is_none_or(|a| held.contains(&a)))
    }

    /// Moves the first waiting job into the batch if it can have blocks for its next tokens.
    fn admit(&mut self, now_ms: f64, budget: u32, out: &mut StepOutcome) -> Option<u32> {
        let (&key, job) = self.next_waiting()?;
        let block = self.block_tokens();
        // At least one token is computed: its logits give the next one.
        let most = ((job.known() - 1) / block) as usize;
        let hits: Vec<u32> = if self.policy.prefix_cache {
            job.hashes.iter().take(most).map_while(|h| self.pool.find(*h)).collect()
        } else {
            Vec::new()
        };
        let found = hits.len() as u32 * block;
        // A prefill replica has sent all but the last token; a request that was preempted here is computed here.
        let came = self.model.role() == Role::Decode && !job.prefill_here && job.queue_ms.is_none();
        let sent = if came { job.prompt - 1 } else { 0 };
        let cached = found.max(sent);
        let tokens = (job.known() - cached).min(budget);
        let needed = self.blocks_for(cached + tokens) - hits.len() as u32;
        let beside = self.beside_for(cached + tokens);
        let revived = hits.iter().filter(|id| self.pool.is_unused(**id)).count() as u32;
        if self.pool.available() < needed + beside + revived {
            return None;
        }
        let mut job = self.waiting.remove(&key)?;
        hits.iter().for_each(|id| self.pool.take(*id));
        if job.queue_ms.is_none() {
            job.queue_ms = Some(now_ms - job.submitted_ms);
            job.cached_at_first = cached;
            if self.policy.prefix_cache {
                self.stats.prefix_query_tokens += u64::from(job.prompt);
                self.stats.prefix_hit_tokens += u64::from(found);
            }
        }
        job.named = hits.len();
        job.blocks = hits;
        job.blocks.extend((0..needed).map_while(|_| self.pool.allocate()));
        job.beside.extend((0..beside).map_while(|_| self.pool.allocate()));
        job.computed = cached;
        Self::begin(&mut self.pool, self.policy, &mut job, tokens, block, out);
        let at = self.running.partition_point(|j| j.key < job.key);
        self.running.insert(at, job);
        Some(tokens)
    }

    /// Admits waiting jobs while blocks, places and budget last.
    fn admit_all(&mut self, now_ms: f64, budget: &mut u32, out: &mut StepOutcome) {
        if !out.preempted.is_empty() {
            return;
        }
        while *budget > 0 && self.running.len() < self.model.config().max_running as usize {
            match self.admit(now_ms, *budget, out) {
                Some(tokens) => *budget -= tokens,
                None => break,
            }
        }
    }

    /// Gives prompts, begun or waiting, the whole step. Returns whether there were any.
    fn step_prompts(&mut self, now_ms: f64, budget: &mut u32, out: &mut StepOutcome) -> bool {
        let all = *budget;
        let mut i = 0;
        while i < self.running.len() && *budget > 0 {
            if self.running.get(i).is_some_and(|j| j.generated == 0 || j.remaining() > 1) {
                *budget -= self.schedule_running(i, *budget, out);
            }
            i += 1;
        }
        self.admit_all(now_ms, budget, out);
        *budget < all
    }

    /// Runs the next iteration, which starts at `now_ms`; `None` when there is nothing to do. How long it takes is the
    /// replica's to say.
    pub(super) fn step(&mut self, now_ms: f64, tokens: Tokens) -> Option<StepOutcome> {
        if self.is_idle() {
            return None;
        }
        let room = if tokens == Tokens::All { self.running.len() } else { 0 };
        let mut out = StepOutcome { tokens: Vec::with_capacity(room), ..StepOutcome::default() };
        let mut budget = self.model.config().max_batched_tokens;
        let prompts_alone = self.model.prompts_first() && self.step_prompts(now_ms, &mut budget, &mut out);
        if !prompts_alone {
            let mut i = 0;
            while i < self.running.len() && budget > 0 {
                budget -= self.schedule_running(i, budget, &mut out);
                i += 1;
            }
            self.admit_all(now_ms, &mut budget, &mut out);
        }
        if self.model.config().lora.is_some() {
            out.load.adapters = self.adapters().len() as f64;
        }
        self.stats.prefill_tokens += out.load.prefill_tokens as u64;
        let yielded = self.model.tokens_per_step();
        let mut done = false;
        // A job that got no tokens in this step still has some to compute, so all that have none yield one.
        for job in self.running.iter_mut().filter(|j| j.remaining() == 0) {
            // The expected number of accepted drafts, spread evenly over steps; the step that ends the prompt has
            // none.
            let mut more = 1;
            if yielded > 1.0 && job.generated > 0 {
                job.owed += yielded;
                more = (job.owed as u32).clamp(1, job.output - job.generated);
                job.owed -= f64::from(more);
            }
            job.computed += more - 1;
            self.stats.generation_tokens += u64::from(more);
            let first = job.generated;
            job.generated += more;
            let finished = job.generated >= job.output;
            done |= finished;
            if tokens == Tokens::All || first == 0 || finished {
                let event = |index| TokenEvent {
                    id: job.id,
                    index,
                    first: index == 0,
                    finished: finished && index + 1 == job.generated,
                    cached_tokens: job.cached_at_first,
                    queue_ms: job.queue_ms.unwrap_or(0.0),
                };
                let from = if tokens == Tokens::All || first == 0 { first } else { job.generated - 1 };
                out.tokens.extend((from..job.generated).map(event));
            }
        }
        if done {
            for job in self.running.iter().filter(|j| j.generated >= j.output) {
                self.keys.remove(&job.id);
                Self::release(&mut self.pool, job);
                self.stats.finished += 1;
            }
            self.running.retain(|j| j.generated < j.output);
        }
        Some(out)
    }

    /// Counters and gauges.
    pub(super) fn stats(&self) -> SimStats {
        SimStats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            kv_usage: self.pool.usage(),
            kv_blocks: u64::from(self.pool.capacity()),
            ..self.stats
        }
    }
}

/// Blocks beside a sequence of this many tokens.
fn beside_blocks(kv: &KvLayout, tokens: u32, block: u32) -> u32 {
    (kv.beside_sequence(f64::from(tokens)) / f64::from(block)).ceil() as u32
}
