//! How much of the prompts routers find cached, against one that knows every replica's cache.
//!
//! `cargo bench -p plimsoll-agent --bench prefix [-- TRACE.jsonl]` prints it for generated sessions and, where given, for a trace in
//! Mooncake's form (`timestamp` in ms, `input_length`, `output_length`, `hash_ids` of blocks of 512 tokens). Replicas are a
//! prefill queue, a batch and an LRU cache; times are simulated, so every run prints the same.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::HashSet;

use plimsoll_agent::route::residency::{self, Held, News, Place, marks};
use plimsoll_agent::route::{Memory, PoolView, PrefixHistory, ReplicaLoad, Request, choose};
use plimsoll_fleet::StepCoefficients;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::{endpoint, pool};

/// Tokens of a router's block.
const BLOCK_TOKENS: f64 = 64.0;
const TOKEN_MS: f64 = 25.0;

struct Arrival {
    at_ms: f64,
    prefix: Vec<u64>,
    prompt_tokens: f64,
    output_tokens: f64,
}

fn step() -> StepCoefficients {
    StepCoefficients {
        base_ms: 10.0,
        per_request_ms: 0.1,
        per_context_token_ms: 1e-4,
        per_prefill_token_ms: 0.1,
        api_overhead_ms: 5.0,
        kv_tokens: 400_000.0,
        max_running: 256,
        max_batched_tokens: 8192,
    }
}

fn mix(chain: u64, block: u64) -> u64 {
    let wide = u128::from(chain ^ block.wrapping_add(0x9E37_79B9)) * 0xD6E8_FEB8_6659_FD93;
    (wide >> 64) as u64 ^ wide as u64
}

/// Conversations of up to ten turns that share one of eight system prompts of 2,000 tokens.
fn sessions(per_second: f64) -> Vec<Arrival> {
    let mut rng = SmallRng::seed_from_u64(5);
    let mut open: Vec<(Vec<u64>, usize)> = Vec::new();
    let (mut at_ms, mut next) = (0.0, 1_000u64);
    (0..12_000)
        .map(|_| {
            at_ms += -rng.random_range(1e-12f64..1.0).ln() * 1_000.0 / per_second;
            let i = if open.len() < 400 || rng.random_range(0..8) == 0 {
                let system = rng.random_range(0..8u64);
                let mut prefix = Vec::new();
                (0..32)
                    .for_each(|b| prefix.push(mix(prefix.last().copied().unwrap_or(0), system * 1_000 + b)));
                if open.len() < 400 {
                    open.push((prefix, 0));
                    open.len() - 1
                } else {
                    let i = rng.random_range(0..open.len());
                    open[i] = (prefix, 0);
                    i
                }
            } else {
                rng.random_range(0..open.len())
            };
            let (prefix, turns) = &mut open[i];
            for _ in 0..rng.random_range(2..24) {
                next += 1;
                prefix.push(mix(prefix.last().copied().unwrap_or(0), next));
            }
            *turns += 1;
            let arrival = Arrival {
                at_ms,
                prefix: prefix.clone(),
                prompt_tokens: BLOCK_TOKENS * prefix.len() as f64,
                output_tokens: 200.0,
            };
            if *turns >= 10 {
                prefix.truncate(32);
                *turns = 0;
            }
            arrival
        })
        .collect()
}

fn trace(path: &str) -> Vec<Arrival> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    text.lines()
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let mut prefix: Vec<u64> = Vec::new();
            // A block of the trace is eight of the router's.
            for id in row["hash_ids"].as_array().unwrap() {
                for part in 0..8 {
                    prefix.push(mix(prefix.last().copied().unwrap_or(0), id.as_u64().unwrap() * 8 + part));
                }
            }
            let prompt_tokens = row["input_length"].as_f64().unwrap();
            prefix.truncate((prompt_tokens / BLOCK_TOKENS) as usize);
            Arrival {
                at_ms: row["timestamp"].as_f64().unwrap(),
                prefix,
                prompt_tokens,
                output_tokens: row["output_length"].as_f64().unwrap(),
            }
        })
        .collect()
}

#[derive(Default)]
struct Replica {
    free_ms: f64,
    batch: Vec<(f64, f64)>,
}

/// Who chooses.
#[derive(Clone, Copy)]
enum Knows {
    /// So many routers side by side, each with the history of its own sends.
    Own(usize),
    /// The same, each told with every answer what others have sent the replica that gave it.
    Told(usize),
    /// One that sees all caches as they are.
    All,
    /// Nobody: in turn.
    Nothing,
}

/// What came of it.
struct Outcome {
    /// Share of prompt tokens found cached.
    cached: f64,
    /// Median time to first token, ms.
    p50_ms: f64,
    p99_ms: f64,
    /// What routers and agents told each other of marks, per second and all together.
    bytes_per_second: f64,
}

/// News under way to a router with an answer's first byte.
struct UnderWay {
    at_ms: f64,
    router: usize,
    replica: usize,
    news: News,
}

fn run(arrivals: &[Arrival], replicas: usize, knows: Knows) -> Outcome {
    let addr = ([127, 0, 0, 1], 1).into();
    let mut endpoints: Vec<_> =
        (0..replicas).map(|i| endpoint(&format!("r{i}"), &format!("n{i}"), addr, None)).collect();
    endpoints.iter_mut().for_each(|e| e.coefficients = step());
    let view = PoolView::new(pool(endpoints), 1);
    let c = step();
    let capacity = (c.kv_tokens / BLOCK_TOKENS) as usize;
    let routers = if let Knows::Own(n) | Knows::Told(n) = knows { n } else { 1 };
    let mut held: Vec<Held> = (0..replicas).map(|i| Held::new(i as u64)).collect();
    let mut seen: Vec<Vec<Option<Place>>> = vec![vec![None; replicas]; routers];
    let (mut under_way, mut bytes): (Vec<UnderWay>, usize) = (Vec::new(), 0);
    let mut memories: Vec<Memory> = (0..routers).map(|i| Memory::new(i as u64)).collect();
    let mut truth = PrefixHistory::default();
    let mut fleet: Vec<Replica> = (0..replicas).map(|_| Replica::default()).collect();
    let (mut cached, mut all) = (0.0, 0.0);
    let mut first = Vec::with_capacity(arrivals.len());
    let mut rng = SmallRng::seed_from_u64(9);
    for (n, a) in arrivals.iter().enumerate() {
        for r in &mut fleet {
            r.batch.retain(|(end, _)| *end > a.at_ms);
        }
        let load = |i: usize| ReplicaLoad {
            running: fleet[i].batch.len() as f64,
            context_tokens: fleet[i].batch.iter().map(|(_, t)| t).sum(),
            prefill_tokens: (fleet[i].free_ms - a.at_ms).max(0.0) / c.per_prefill_token_ms,
            ..ReplicaLoad::default()
        };
        let request = Request {
            class: "default",
            prefix: &a.prefix,
            prompt_tokens: a.prompt_tokens,
            tokens_per_block: BLOCK_TOKENS,
            expected_output: 200.0,
            adapter: None,
            ttft_objective_ms: None,
        };
        let router = rng.random_range(0..routers);
        under_way.retain(|told| {
            let come = told.at_ms <= a.at_ms;
            if come {
                memories[told.router].hear(&view, told.replica, BLOCK_TOKENS, &told.news);
                let seen = &mut seen[told.router][told.replica];
                if seen.is_none_or(|s| s.marks < told.news.upto.marks) {
                    *seen = Some(told.news.upto);
                }
            }
            !come
        });
        let memory = &mut memories[router];
        let to = match knows {
            Knows::Nothing => n % replicas,
            Knows::All => {
                std::mem::swap(&mut memory.history, &mut truth);
                let to = choose(&view, &request, load, memory).order[0].endpoint;
                std::mem::swap(&mut memory.history, &mut truth);
                to
            }
            Knows::Own(_) | Knows::Told(_) => {
                let to = choose(&view, &request, load, memory).order[0].endpoint;
                memory.record(&view, &request, to);
                to
            }
        };
        let holders = truth.holders(&a.prefix, replicas);
        let depth = holders.iter().find(|(key, _)| *key == view.keys[to]).map_or(0, |(_, depth)| *depth);
        let found = (depth as f64 * BLOCK_TOKENS).min(a.prompt_tokens);
        truth.insert(view.keys[to], &a.prefix, capacity);
        cached += found;
        all += a.prompt_tokens;
        let r = &mut fleet[to];
        r.free_ms = r.free_ms.max(a.at_ms) + (a.prompt_tokens - found) * c.per_prefill_token_ms + c.base_ms;
        r.batch.push((r.free_ms + a.output_tokens * TOKEN_MS, a.prompt_tokens + a.output_tokens));
        if let Knows::Told(_) = knows {
            let (sent, stands) = (marks(&a.prefix), seen[router][to]);
            let news = held[to].exchange(stands, &sent);
            bytes += residency::to_text(&sent).len() + stands.map_or(0, |s| s.to_text().len());
            bytes += news.to_text().len();
            under_way.push(UnderWay { at_ms: r.free_ms, router, replica: to, news });
        }
        first.push(r.free_ms - a.at_ms);
    }
    first.sort_by(f64::total_cmp);
    let seconds = arrivals.last().map_or(1.0, |a| a.at_ms / 1_000.0);
    Outcome {
        cached: cached / all,
        p50_ms: first[first.len() / 2],
        p99_ms: first[first.len() * 99 / 100],
        bytes_per_second: bytes as f64 / seconds,
    }
}

fn table(name: &str, arrivals: &[Arrival], replicas: usize) {
    let (mut seen, mut hit, mut all) = (HashSet::new(), 0, 0);
    for a in arrivals {
        hit += a.prefix.iter().take_while(|b| seen.contains(*b)).count();
        all += a.prefix.len();
        seen.extend(a.prefix.iter().copied());
    }
    println!(
        "{name}: {} requests on {replicas} replicas; one cache without a limit would hold {:.1} %",
        arrivals.len(),
        100.0 * hit as f64 / all as f64
    );
    for (who, knows) in [
        ("one that sees every cache", Knows::All),
        ("one router, by its own history", Knows::Own(1)),
        ("four routers, each by its own", Knows::Own(4)),
        ("four routers, with sketches", Knows::Told(4)),
        ("sixteen routers, each by its own", Knows::Own(16)),
        ("sixteen routers, with sketches", Knows::Told(16)),
        ("in turn", Knows::Nothing),
    ] {
        let Outcome { cached, p50_ms, p99_ms, bytes_per_second } = run(arrivals, replicas, knows);
        let told = match knows {
            Knows::Told(_) => format!("   told {bytes_per_second:.0} bytes/s in all"),
            _ => String::new(),
        };
        println!(
            "  {who:<34} cached {:>5.1} %   TTFT p50 {p50_ms:>8.0} ms   p99 {p99_ms:>8.0} ms{told}",
            100.0 * cached
        );
    }
}

fn main() {
    table("sessions with shared prefixes", &sessions(24.0), 16);
    for path in std::env::args().skip(1).filter(|a| !a.starts_with('-')) {
        table(&path, &trace(&path), 32);
    }
}
