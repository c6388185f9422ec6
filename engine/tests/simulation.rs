//! The simulated engine follows vLLM's rules.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use common::{arch, arrivals, class, replica, shape, variant};
use plimsoll_engine::sim::{
    Arrival, Replica, SimPolicy, SimRequest, StepOutcome, SubmitError, simulate, simulate_closed,
};
use plimsoll_engine::{EngineConfig, Lora, ReplicaModel, Scheduling};
use plimsoll_fleet::{Dtype, ModelArchitecture, SlidingWindow, presets};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// An 8B model with a KV cache of `blocks` blocks.
fn small(blocks: u64, config: EngineConfig) -> ReplicaModel {
    let mut acc = presets::accelerator("h100").unwrap();
    let arch = arch("llama-3.1-8b", (blocks * 16) as u32);
    let (v, s) = (variant(Dtype::Bf16, Dtype::Bf16), shape("h100", 1, 1));
    let weights =
        *ReplicaModel::new(&common::arch("llama-3.1-8b", 16), &v, &acc, &s, &config).unwrap().memory();
    let kv = (blocks as f64 + 0.5) * 16.0 * weights.kv_bytes_per_token_per_gpu;
    let held = weights.weights_bytes_per_gpu + weights.lora_bytes_per_gpu + config.reserve_bytes;
    acc.memory_bytes = (held + kv) / config.memory_utilisation;
    let model = ReplicaModel::new(&arch, &v, &acc, &s, &config).unwrap();
    assert_eq!(model.memory().kv_blocks, blocks);
    model
}

/// The same with three layers in four that see no more than 64 tokens.
fn windowed(blocks: u64, config: EngineConfig) -> ReplicaModel {
    let mut acc = presets::accelerator("h100").unwrap();
    let arch = arch("llama-3.1-8b", 800);
    let arch = ModelArchitecture { sliding: Some(SlidingWindow { layers: 24, window_tokens: 64 }), ..arch };
    let (v, s) = (variant(Dtype::Bf16, Dtype::Bf16), shape("h100", 1, 1));
    let all = *ReplicaModel::new(&arch, &v, &acc, &s, &config).unwrap().memory();
    let kv = (blocks as f64 + 0.5) * 16.0 * all.kv_bytes_per_token_per_gpu;
    acc.memory_bytes = (all.weights_bytes_per_gpu + config.reserve_bytes + kv) / config.memory_utilisation;
    ReplicaModel::new(&arch, &v, &acc, &s, &config).unwrap()
}

fn request(id: u64, prompt: u32, output: u32) -> SimRequest {
    SimRequest { id, prompt_tokens: prompt, output_tokens: output, ..SimRequest::default() }
}

/// Runs until idle; returns the steps with their starting times.
fn drain(engine: &mut Replica) -> Vec<(f64, StepOutcome)> {
    let (mut now, mut steps) = (0.0, Vec::new());
    while let Some(step) = engine.step(now) {
        let start = now;
        now += step.duration_ms;
        steps.push((start, step));
        assert!(steps.len() < 1_000_000, "the engine does not come to rest");
    }
    steps
}

#[test]
fn a_lone_request_takes_what_the_model_says() {
    let model = replica("llama-3.1-8b", Dtype::Bf16, "h100", 1);
    let mut engine = Replica::new(model.clone(), SimPolicy::default());
    engine.submit(0.0, request(1, 1000, 3)).unwrap();
    let steps = drain(&mut engine);
    assert_eq!(steps.len(), 3);
    let prefill = model.decode_ms(0.0, 0.0) + model.prefill_ms(1000.0, 0.0);
    assert!((steps[0].1.duration_ms - prefill).abs() < 1e-9);
    // The second token is computed on a context of 1,001 tokens.
    assert!((steps[1].1.duration_ms - model.decode_ms(1.0, 1001.0)).abs() < 1e-9);
    assert!(steps[0].1.tokens[0].first && !steps[0].1.tokens[0].finished);
    assert!(steps[2].1.tokens[0].finished && steps[2].1.tokens[0].index == 2);
    assert!(engine.is_idle() && engine.step(0.0).is_none());
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.finished, stats.generation_tokens), (0, 0, 1, 3));
    assert_eq!(stats.kv_usage, 0.0);
}

#[test]
fn prompts_are_chunked_and_decode_goes_first() {
    let config = EngineConfig { max_batched_tokens: 256, ..EngineConfig::default() };
    let mut engine = Replica::new(small(4096, config), SimPolicy::default());
    engine.submit(0.0, request(1, 100, 50)).unwrap();
    let first = engine.step(0.0).unwrap();
    assert_eq!(first.load.prefill_tokens, 100.0);
    engine.submit(0.0, request(2, 1000, 5)).unwrap();
    // One token of each step's 256 goes to the running request: 255 + 255 + 255 + 235.
    let chunks: Vec<StepOutcome> = (0..4).map(|_| engine.step(0.0).unwrap()).collect();
    let sizes: Vec<f64> = chunks.iter().map(|s| s.load.prefill_tokens).collect();
    assert_eq!(sizes, [255.0, 255.0, 255.0, 235.0]);
    assert!(chunks.iter().all(|s| s.load.running == 1.0 && s.tokens.iter().any(|t| t.id == 1)));
    assert!(chunks[3].tokens.iter().any(|t| t.id == 2 && t.first));
    assert!(chunks[..3].iter().all(|s| s.tokens.len() == 1));
}

#[test]
fn prefixes_are_found_again() {
    let mut engine = Replica::new(small(4096, EngineConfig::default()), SimPolicy::default());
    let blocks: Vec<u64> = (1..=64).collect();
    let with = |id, prompt_blocks: Vec<u64>, adapter: Option<&str>| SimRequest {
        prompt_blocks,
        adapter: adapter.map(str::to_owned),
        ..request(id, 1024, 2)
    };
    engine.submit(0.0, with(1, blocks.clone(), None)).unwrap();
    drain(&mut engine);
    // All 64 blocks are known, but the last token must be computed: 63 blocks are used.
    engine.submit(0.0, with(2, blocks.clone(), None)).unwrap();
    let step = engine.step(0.0).unwrap();
    assert_eq!(step.tokens[0].cached_tokens, 63 * 16);
    assert_eq!(step.load.prefill_tokens, 16.0);
    drain(&mut engine);
    // Another tail from block 32 on; another adapter; no cache.
    let mut other = blocks.clone();
    other[32..].iter_mut().for_each(|h| *h += 1000);
    engine.submit(0.0, with(3, other, None)).unwrap();
    assert_eq!(engine.step(0.0).unwrap().tokens[0].cached_tokens, 32 * 16);
    drain(&mut engine);
    engine.submit(0.0, with(4, blocks.clone(), Some("lora"))).unwrap();
    assert_eq!(engine.step(0.0).unwrap().tokens[0].cached_tokens, 0);
    drain(&mut engine);
    let stats = engine.stats();
    assert_eq!((stats.prefix_query_tokens, stats.prefix_hit_tokens), (4 * 1024, (63 + 32) * 16));
    let off = SimPolicy { prefix_cache: false, ..SimPolicy::default() };
    let mut engine = Replica::new(small(4096, EngineConfig::default()), off);
    for id in 0..2 {
        engine.submit(0.0, with(id, blocks.clone(), None)).unwrap();
        assert_eq!(engine.step(0.0).unwrap().tokens[0].cached_tokens, 0);
        drain(&mut engine);
    }
    assert_eq!(engine.stats().prefix_query_tokens, 0);
}

#[test]
fn a_full_cache_preempts_the_latest_arrival() {
    // 40 blocks: two requests of 16 blocks grow to 24 each.
    let mut engine = Replica::new(small(40, EngineConfig::default()), SimPolicy::default());
    for id in [1, 2] {
        engine.submit(0.0, request(id, 256, 128)).unwrap();
    }
    let steps = drain(&mut engine);
    let preempted: Vec<u64> = steps.iter().flat_map(|(_, s)| s.preempted.clone()).collect();
    assert_eq!(preempted, [2]);
    assert_eq!(engine.stats().preemptions, 1);
    for id in [1, 2] {
        let indices: Vec<u32> =
            steps.iter().flat_map(|(_, s)| &s.tokens).filter(|t| t.id == id).map(|t| t.index).collect();
        assert_eq!(indices, (0..128).collect::<Vec<_>>(), "each token of {id} exactly once, in order");
    }
}

#[test]
fn lower_priority_values_go_first() {
    let config = EngineConfig { max_running: 1, ..EngineConfig::default() };
    let mut engine = Replica::new(small(4096, config), SimPolicy::default());
    for (id, priority) in [(1, 5), (2, 0), (3, -1), (4, 0)] {
        engine.submit(0.0, SimRequest { priority, ..request(id, 32, 1) }).unwrap();
    }
    let order: Vec<u64> = drain(&mut engine).iter().flat_map(|(_, s)| &s.tokens).map(|t| t.id).collect();
    assert_eq!(order, [3, 2, 4, 1]);
}

#[test]
fn cancelled_requests_leave_nothing_behind() {
    let config = EngineConfig { max_running: 1, ..EngineConfig::default() };
    let mut engine = Replica::new(small(64, config), SimPolicy::default());
    engine.submit(0.0, request(1, 500, 100)).unwrap();
    engine.submit(0.0, request(2, 500, 100)).unwrap();
    engine.step(0.0);
    assert_eq!((engine.stats().running, engine.stats().waiting), (1, 1));
    engine.cancel(2);
    engine.cancel(1);
    engine.cancel(99);
    assert!(engine.is_idle());
    assert_eq!(engine.stats().kv_usage, 0.0);
    // The identity may be used again.
    engine.submit(0.0, request(1, 500, 2)).unwrap();
    assert_eq!(drain(&mut engine).len(), 2);
}

#[test]
fn impossible_requests_are_refused() {
    let policy = SimPolicy { max_waiting: Some(1), ..SimPolicy::default() };
    let mut engine = Replica::new(small(64, EngineConfig::default()), policy);
    let error = engine.submit(0.0, request(1, 1000, 25)).unwrap_err();
    assert_eq!(error, SubmitError::TooLong { id: 1, tokens: 1025, max_tokens: 1024 });
    assert_eq!(engine.submit(0.0, request(1, 0, 5)), Err(SubmitError::EmptyPrompt { id: 1 }));
    engine.submit(0.0, request(1, 10, 5)).unwrap();
    assert_eq!(engine.submit(0.0, request(2, 10, 5)), Err(SubmitError::QueueFull { id: 2, waiting: 1 }));
    engine.step(0.0);
    assert_eq!(engine.submit(0.0, request(1, 10, 5)), Err(SubmitError::Duplicate { id: 1 }));
    // In a run, a refused request is an outcome like any other, and holds up nobody.
    let requests = [request(1, 5000, 5), request(2, 10, 5)];
    let arrivals: Vec<Arrival> =
        requests.iter().map(|r| Arrival { at_ms: f64::NAN, request: r.clone() }).collect();
    let engine = Replica::new(small(64, EngineConfig::default()), SimPolicy::default());
    for out in [simulate(engine.clone(), &arrivals), simulate_closed(engine, &requests, 1)] {
        assert!(matches!(out[0].rejected, Some(SubmitError::TooLong { .. })) && out[0].ttft_ms.is_infinite());
        assert!(out[1].rejected.is_none() && out[1].output_tokens == 5 && out[1].e2e_ms.is_finite());
    }
}

#[test]
fn a_closed_loop_keeps_its_concurrency() {
    let model = replica("llama-3.1-70b", Dtype::Fp8, "h100", 2);
    // Lengths differ, or all would prefill together and then never disturb one another.
    let requests: Vec<SimRequest> =
        (0..320).map(|id| request(id, 1000, 20 + (id * 7919 % 361) as u32)).collect();
    let out = simulate_closed(Replica::new(model.clone(), SimPolicy::default()), &requests, 32);
    assert_eq!(out.len(), 320);
    let tpot = out.iter().filter_map(|o| o.tpot_ms).sum::<f64>() / 320.0;
    let form = model.closed_loop_tpot_ms(32.0, 1000.0, 200.0);
    assert!((form / tpot - 1.0).abs() < 0.08, "simulated {tpot}, closed form {form}");
}

#[test]
fn runs_are_reproducible() {
    let model = replica("llama-3.1-8b", Dtype::Bf16, "h100", 1);
    let load = arrivals(&[class(512.0, 64.0)], 20.0, 4.0, 300, 3);
    let run = || simulate(Replica::new(model.clone(), SimPolicy::default()), &load);
    assert_eq!(run(), run());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    /// Whatever comes, in a cache so small that preemption is common: every request gets each of its tokens once and
    /// in order, and no block is lost.
    #[test]
    fn every_token_appears_once(
        requests in proptest::collection::vec((1u32..500, 1u32..200, -1i32..2, 0u64..4, 0u32..20), 1..60),
        blocks in 48u64..200, batched in 64u32..1024, running in 1u32..64, prefix_cache: bool,
    ) {
        let config = EngineConfig { max_running: running, max_batched_tokens: batched, ..EngineConfig::default() };
        let policy = SimPolicy { prefix_cache, ..SimPolicy::default() };
        let mut engine = Replica::new(small(blocks, config), policy);
        let mut pending = requests.iter().enumerate().peekable();
        let mut next = vec![0u32; requests.len()];
        let mut now = 0.0;
        let mut steps = 0;
        loop {
            for (id, (prompt, output, priority, family, _)) in pending.by_ref().take(2) {
                let prompt_blocks = (0..u64::from(prompt / 16)).map(|b| family * 1000 + b).collect();
                let r = SimRequest {
                    prompt_blocks, priority: *priority, ..request(id as u64, *prompt, *output)
                };
                engine.submit(now, r).unwrap();
            }
            let Some(step) = engine.step(now) else {
                if pending.peek().is_none() { break }
                continue;
            };
            prop_assert!(step.duration_ms > 0.0);
            prop_assert!(step.load.prefill_tokens + step.load.running <= f64::from(batched));
            now += step.duration_ms;
            for t in &step.tokens {
                let i = t.id as usize;
                prop_assert_eq!(t.index, next[i]);
                next[i] += 1;
                prop_assert_eq!(t.finished, next[i] == requests[i].1);
                // Some clients leave early.
                if requests[i].4 == 0 && t.index == 3 && !t.finished {
                    engine.cancel(t.id);
                    next[i] = requests[i].1;
                }
            }
            let stats = engine.stats();
            prop_assert!(stats.running <= running as usize && (0.0..=1.0).contains(&stats.kv_usage));
            steps += 1;
            prop_assert!(steps < 200_000);
        }
        for (n, r) in next.iter().zip(&requests) {
            prop_assert_eq!(*n, r.1);
        }
        prop_assert_eq!(engine.stats().kv_usage, 0.0);
    }
}

/// What `simulate` says, found one step at a time.
fn step_by_step(mut engine: Replica, arrivals: &[Arrival]) -> Vec<(u64, f64, f64, u32)> {
    let api = engine.model().api_overhead_ms();
    let mut times: Vec<(u64, f64, f64, u32)> =
        arrivals.iter().map(|a| (a.request.id, f64::INFINITY, f64::INFINITY, 0)).collect();
    let (mut now, mut next) = (0.0_f64, 0);
    loop {
        while let Some(a) = arrivals.get(next).filter(|a| a.at_ms + api <= now) {
            engine.submit(a.at_ms + api, a.request.clone()).unwrap();
            next += 1;
        }
        let Some(step) = engine.step(now) else {
            match arrivals.get(next) {
                Some(a) => now = now.max(a.at_ms + api),
                None => return times,
            }
            continue;
        };
        now += step.duration_ms;
        step.preempted.iter().for_each(|id| times[*id as usize].3 += 1);
        for t in &step.tokens {
            let (at, seen) = (arrivals[t.id as usize].at_ms, &mut times[t.id as usize]);
            if t.first {
                seen.1 = now - at;
            }
            if t.finished {
                seen.2 = now - at;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, rng_seed: RngSeed::Fixed(2), ..ProptestConfig::default() })]

    /// Steps in which nothing but decoding happens are taken together by whole runs: to the last bit as if they were not.
    #[test]
    fn runs_are_those_of_single_steps(
        requests in proptest::collection::vec((1u32..400, 1u32..300, 0u64..4, 0.0f64..300.0), 1..40),
        blocks in 48u64..300, batched in 64u32..1024, running in 1u32..64, prefix_cache: bool, prefill_first: bool,
        adapters in 0u64..3, window: bool,
    ) {
        let config = EngineConfig {
            max_running: running,
            max_batched_tokens: batched.max(running),
            scheduling: if prefill_first { Scheduling::PrefillFirst } else { Scheduling::Mixed },
            ..EngineConfig::default()
        };
        let model = if window {
            windowed(blocks, config)
        } else if adapters > 0 {
            let lora = Lora { slots: 1, adapters: 2, ..Lora::default() };
            small(blocks, EngineConfig { lora: Some(lora), ..config })
        } else {
            small(blocks, config)
        };
        let engine = Replica::new(model, SimPolicy { prefix_cache, ..SimPolicy::default() });
        let mut at_ms = 0.0;
        let arrivals: Vec<Arrival> = requests.iter().enumerate().map(|(id, (prompt, output, family, gap))| {
            at_ms += gap;
            let prompt_blocks = (0..u64::from(prompt / 16)).map(|b| family * 1000 + b).collect();
            let adapter = (adapters > 0).then(|| format!("a{}", family % adapters));
            Arrival { at_ms, request: SimRequest { prompt_blocks, adapter, ..request(id as u64, *prompt, *output) } }
        }).collect();
        let whole = simulate(engine.clone(), &arrivals);
        let single = step_by_step(engine, &arrivals);
        for (a, b) in whole.iter().zip(&single) {
            prop_assert_eq!((a.id, a.ttft_ms, a.e2e_ms, a.preemptions), *b);
        }
    }
}

/// The closed form of a closed loop against the simulation, with prompts beside decoding and with prompts first.
#[test]
fn closed_loop_tpot_agrees_with_the_closed_form() {
    for scheduling in [Scheduling::Mixed, Scheduling::PrefillFirst] {
        for (concurrency, input, output) in [(1, 1024, 256), (8, 4096, 256), (32, 1024, 512), (64, 2048, 256)]
        {
            let acc = plimsoll_fleet::presets::accelerator("h100").unwrap();
            let model = plimsoll_engine::ReplicaModel::new(
                &common::arch("llama-3.1-8b", 8192),
                &common::variant(plimsoll_fleet::Dtype::Bf16, plimsoll_fleet::Dtype::Bf16),
                &acc,
                &common::shape("h100", 1, 1),
                &EngineConfig { scheduling, ..EngineConfig::default() },
            )
            .unwrap();
            for equal in [false, true] {
                // As they come, prompts beside decoding: equal lengths fall into step there only as far as
                // clients' times to their next request allow, which the closed form leaves out.
                if equal && scheduling == Scheduling::Mixed {
                    continue;
                }
                let requests: Vec<SimRequest> = (0..10 * concurrency)
                    .map(|id| (id, if equal { 1.0 } else { 0.7 + 0.06 * ((id * 7) % 11) as f64 }))
                    .map(|(id, share)| SimRequest {
                        id,
                        prompt_tokens: (f64::from(input) * share) as u32,
                        output_tokens: (f64::from(output) * share) as u32,
                        ..SimRequest::default()
                    })
                    .collect();
                let (c, i, o) = (concurrency as f64, f64::from(input), f64::from(output));
                let closed = if equal {
                    model.closed_loop_tpot_equal_ms(c, i, o)
                } else {
                    model.closed_loop_tpot_ms(c, i, o)
                };
                let engine = Replica::new(model.clone(), SimPolicy::default());
                let out = simulate_closed(engine, &requests, concurrency as usize);
                let mean = out.iter().filter_map(|o| o.tpot_ms).sum::<f64>() / out.len() as f64;
                let error = closed / mean - 1.0;
                let load = format!("{scheduling:?} {concurrency} × {input}/{output}, equal: {equal}");
                println!("{load}: {closed:.2} ms, simulated {mean:.2} ({error:+.3})");
                assert!(error.abs() < 0.04, "{load}: {error:+.3}");
            }
        }
    }
}
