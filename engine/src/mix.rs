//! A mix of request classes on one replica: work per request, step times and completion rates by batch size.

use plimsoll_fleet::{RequestClass, Role};

use crate::ranks::PromptCost;
use crate::{ReplicaModel, StepBreakdown, StepLoad};

/// Share of the mean answer by which a full KV cache holds less than mean contexts.
const GROWTH: f64 = 0.1;

/// One class's part of a mix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ClassWork {
    /// Share of the mix's requests.
    pub(crate) share: f64,
    /// Prompt tokens computed.
    pub(crate) new: f64,
    /// Prompt tokens found in the cache.
    pub(crate) cached: f64,
    /// Prefill work of one request alone in the replica, milliseconds.
    pub(crate) prefill_ms: f64,
    /// Time that its prompt takes from others, milliseconds (less than `prefill_ms` with pipeline stages): on its
    /// attention rank …
    rank_ms: f64,
    /// … and on all of them.
    all_ms: f64,
    /// Steps without decoding that carry its prompt, were no other to share them, milliseconds (0 where prompts join
    /// decoding).
    pub(crate) alone_ms: f64,
    /// Share of these that it takes however many share them.
    least_steps: f64,
    /// Steps that prefill takes at an empty batch.
    pub(crate) prefill_steps: f64,
    /// Decode steps: one fewer than answer tokens, the first of which comes from prefill; fewer still where steps
    /// yield several tokens.
    pub(crate) decode_steps: f64,
    /// Mean context while decoding, tokens.
    pub(crate) context: f64,
    /// Longest context, tokens.
    pub(crate) peak: f64,
}

impl ClassWork {
    fn new(model: &ReplicaModel, class: &RequestClass, share: f64) -> Self {
        let input = finite(class.input_tokens).max(1.0);
        let output = finite(class.output_tokens).max(1.0);
        // A prefill replica hands over after the first token.
        let output = if model.role == Role::Prefill { 1.0 } else { output };
        let decode_steps = (output - 1.0) / model.times.yielded;
        let (context, peak) = (input + 0.5 * output, input + output);
        // The last prompt token is always computed: its logits give the first answer token. A decode replica starts
        // with the keys and values of the others.
        let hits =
            if model.role == Role::Decode { 1.0 } else { finite(class.cached_fraction).clamp(0.0, 1.0) };
        let cached = (input * hits).min(input - 1.0);
        // Of the rest, what another tier holds is loaded while others are served, if that is sooner than computing
        // it.
        let held = model
            .config
            .kv_offload
            .map_or(0.0, |o| (o.hit_fraction * (input - cached)).min(input - cached - 1.0));
        let loaded = model.restore(held, cached).filter(|r| held > 0.0 && r.loads());
        let cached = if loaded.is_some() { cached + held } else { cached };
        let new = input - cached;
        let (rank_ms, all_ms) = model.times.work(new, cached);
        let prefill_steps = (new / model.batched_tokens()).ceil();
        let alone_ms = if model.prompts_first() {
            prefill_steps * model.times.prompts_alone(new / prefill_steps)
        } else {
            0.0
        };
        Self {
            share,
            new,
            cached,
            prefill_ms: model.prefill_ms(new, cached) + loaded.map_or(0.0, |r| r.load_ms),
            rank_ms,
            all_ms,
            alone_ms,
            least_steps: new / (prefill_steps * model.batched_tokens() * model.times.ranks.count),
            prefill_steps,
            decode_steps,
            context,
            peak,
        }
    }
}

impl ClassWork {
    /// Time that its prompt takes from others, milliseconds, where prompts cost this.
    pub(crate) fn work(&self, cost: &PromptCost) -> f64 {
        let steps = if cost.steps > 0.0 { cost.steps.max(self.least_steps) } else { 0.0 };
        cost.rank * self.rank_ms + self.all_ms + steps * self.alone_ms
    }

    /// Second moment of the work that prompts bring, ms²: of `N` in a step their parts on all ranks add up, those on one
    /// rank only as far as they fall on the same.
    pub(crate) fn square(&self, cost: &PromptCost) -> f64 {
        let all = self.work(&PromptCost { rank: 0.0, ..*cost });
        self.rank_ms * (cost.variance * self.rank_ms + 2.0 * cost.rank * all) + all * all
    }
}

fn finite(x: f64) -> f64 {
    if x.is_finite() { x } else { 0.0 }
}

/// A mix, with everything that does not depend on its rate.
#[derive(Debug, Clone)]
pub(crate) struct Mix {
    pub(crate) classes: Vec<ClassWork>,
    /// Mean context over decode steps, tokens.
    pub(crate) context: f64,
    /// Standard deviation of contexts from it, tokens.
    pub(crate) deviation: f64,
    /// Mean prompt tokens computed.
    pub(crate) new: f64,
    /// Most requests in one batch.
    pub(crate) limit: usize,
    /// Whether KV capacity sets that limit.
    pub(crate) limited_by_kv: bool,
    /// Milliseconds a completion takes with `n` requests present, by `n` from 0 (unused) to `limit`.
    pub(crate) completion_ms: Vec<f64>,
}

impl Mix {
    /// Shares follow the classes' own rates; where all are zero, they are even.
    pub(crate) fn new(model: &ReplicaModel, mix: &[RequestClass]) -> Self {
        let total: f64 = mix.iter().map(|c| finite(c.rps).max(0.0)).sum();
        let classes: Vec<ClassWork> = mix
            .iter()
            .map(|c| {
                let share = if total > 0.0 { finite(c.rps).max(0.0) / total } else { 1.0 / mix.len() as f64 };
                ClassWork::new(model, c, share)
            })
            .collect();
        let mean = |f: &dyn Fn(&ClassWork) -> f64| classes.iter().map(|c| c.share * f(c)).sum::<f64>();
        let steps = mean(&|c| c.prefill_steps + c.decode_steps).max(1.0);
        let context = mean(&|c| (c.prefill_steps + c.decode_steps) * c.context) / steps;
        // While an answer of `o` tokens grows, its context is uniform over as many.
        let square = mean(&|c| {
            (c.prefill_steps + c.decode_steps) * (c.context.powi(2) + (c.peak - c.context).powi(2) / 3.0)
        }) / steps;
        let deviation = (square - context * context).max(0.0).sqrt();
        let new = mean(&|c| c.new);
        // Answers grow in step when requests started together, and a request that no longer fits is computed twice:
        // simulation shows room for about a tenth of the answers less than the mean context suggests. A block is
        // half empty on average.
        let footprint = context
            + GROWTH * mean(&|c| c.peak - c.context) * 2.0
            + 0.5 * f64::from(model.config.block_tokens);
        let ranks = model.times.ranks.count;
        let of_rank = (model.memory.kv_tokens / ranks / model.kv.footprint(footprint).max(1.0)).floor();
        let by_kv = (of_rank * ranks).max(1.0);
        let max_running = f64::from(model.max_running());
        let limit = by_kv.min(max_running) as usize;
        // Beyond this many requests, prefill at `new` tokens a request fills every step's token budget.
        let full = ranks * steps * model.batched_tokens() / (new + model.times.budget(steps));
        let mut mix = Self {
            classes,
            context,
            deviation,
            new,
            limit,
            limited_by_kv: by_kv < max_running,
            completion_ms: Vec::with_capacity(limit + 1),
        };
        let first = model.prompts_first();
        let decoding: f64 = mix.classes.iter().map(|c| c.share * c.decode_steps).sum();
        let plain = PromptCost::BESIDE;
        let work_ms = mix.work_ms(&plain);
        let mut completion_ms = mix.completion_ms.clone();
        completion_ms.push(0.0);
        completion_ms.extend((1..=limit).map(|n| {
            let n = n as f64;
            if first {
                // A request decodes in all steps but those of its own prompt, and prompts begin when requests end.
                let work_ms = mix.work_ms(&model.prompt_cost(n / decoding.max(1.0), 1.0, 1.0));
                return work_ms + decoding * mix.decode(model, n) / n;
            }
            let n = n.min(full);
            let work_ms = if model.times.ranks.alone() {
                work_ms
            } else {
                let (prompts, decode) = (n / steps, mix.decode(model, n));
                let work = |decoding| mix.work_ms(&model.prompt_cost(prompts, 1.0, decoding));
                // The share of decoding, from what prompts cost were they to come evenly.
                work(decode / (decode + prompts * work(1.0)))
            };
            work_ms + steps * mix.decode(model, n) / n
        }));
        mix.completion_ms = completion_ms;
        mix
    }

    /// Mean work that a prompt takes from others, milliseconds, where prompts cost this.
    pub(crate) fn work_ms(&self, cost: &PromptCost) -> f64 {
        self.classes.iter().map(|c| c.share * c.work(cost)).sum()
    }

    /// A decode step of `running` requests of this mix, milliseconds.
    pub(crate) fn decode(&self, model: &ReplicaModel, running: f64) -> f64 {
        model.times.decode_of(running, running * self.context, self.deviation)
    }

    /// What prompts cost at this rate (requests per millisecond) beside decode steps of `decode_ms`, and how many begin
    /// in one: `ν = λ(D + ν w(ν))`. `None` if they come faster than they can be computed.
    pub(crate) fn settle(
        &self,
        model: &ReplicaModel,
        rate: f64,
        decode_ms: f64,
        burst: f64,
    ) -> Option<(PromptCost, f64)> {
        const HALVINGS: u32 = 30;
        let bare = rate * decode_ms;
        let steady = |prompts: f64| {
            let cost = model.prompt_cost(prompts, burst, bare / prompts);
            rate * (decode_ms + prompts * self.work_ms(&cost)) <= prompts
        };
        if model.times.ranks.alone() && !model.prompts_first() {
            let cost = PromptCost::BESIDE;
            let busy = rate * self.work_ms(&cost);
            return (busy < 1.0).then(|| (cost, bare / (1.0 - busy)));
        }
        if bare.is_nan() || bare > 1e9 {
            return None;
        }
        if bare <= 0.0 {
            return Some((model.prompt_cost(0.0, burst, 1.0), 0.0));
        }
        let (mut low, mut high) = (bare, 2.0 * bare);
        while !steady(high) {
            (low, high) = (high, 2.0 * high);
            if high > 1e12 {
                return None;
            }
        }
        for _ in 0..HALVINGS {
            let mid = 0.5 * (low + high);
            if steady(mid) { high = mid } else { low = mid }
        }
        Some((model.prompt_cost(high, burst, bare / high), high))
    }

    /// The highest rate at which the queue does not grow for ever, requests per millisecond.
    pub(crate) fn saturation_per_ms(&self) -> f64 {
        self.completion_ms.get(self.limit).map_or(0.0, |ms| 1.0 / ms)
    }

    /// A step with `running` requests while prompts come at `rate` requests per millisecond.
    pub(crate) fn load(&self, model: &ReplicaModel, running: f64, rate: f64) -> StepLoad {
        let decode = self.decode(model, running);
        let busy = self.settle(model, rate, decode, 1.0).map_or(1.0, |(cost, _)| rate * self.work_ms(&cost));
        let step = decode / (1.0 - busy.min(0.999));
        let adapters = model.times.expected_adapters(running);
        let mut load =
            StepLoad { running, context_tokens: running * self.context, adapters, ..StepLoad::default() };
        for c in &self.classes {
            let per_step = rate * step * c.share;
            load.prefill_tokens += per_step * c.new;
            load.prefill_attention += per_step * c.new * (c.new + 2.0 * c.cached);
        }
        load
    }

    /// Where step time goes then.
    pub(crate) fn breakdown(&self, model: &ReplicaModel, running: f64, rate: f64) -> StepBreakdown {
        model.times.breakdown(&self.load(model, running, rate))
    }
}
