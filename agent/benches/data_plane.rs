//! How long a choice takes, and what the proxy adds to a request on loopback.
//!
//! `cargo bench -p plimsoll-agent` prints both. The engine behind the proxy answers at once, so what is measured is the
//! proxy and the client; the same client straight to the engine is the line to compare with.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use http_body_util::BodyExt;
use plimsoll_agent::route::{Memory, PoolView, ReplicaLoad, Request, choose};
use support::*;
use tokio::time::Instant;

fn percentile(sorted: &[Duration], p: f64) -> f64 {
    let at = ((sorted.len() as f64 * p) as usize).min(sorted.len() - 1);
    sorted[at].as_secs_f64() * 1e6
}

/// `blocks` hashes of 256 bytes a prompt: 16 are 1,000 tokens, 1,563 are 100,000.
fn choice(replicas: usize, blocks: u64) {
    let addr = ([127, 0, 0, 1], 1).into();
    let endpoints = (0..replicas).map(|i| endpoint(&format!("r{i}"), &format!("n{i}"), addr, None)).collect();
    let view = PoolView::new(pool(endpoints), 1);
    let mut memory = Memory::new(7);
    let loads: Vec<ReplicaLoad> = (0..replicas)
        .map(|i| ReplicaLoad {
            running: (i % 30) as f64,
            context_tokens: (i % 30) as f64 * 900.0,
            ..Default::default()
        })
        .collect();
    // 500 conversations that share a fifth of their prompt.
    let prompts: Vec<Vec<u64>> = (0..500u64)
        .map(|c| (0..blocks).map(|b| if b < blocks / 5 { b + 1 } else { (c + 1) * 1_000_003 + b }).collect())
        .collect();
    let rounds = if blocks > 1_000 { 4_000 } else { 20_000 };
    let (mut times, mut notes) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    for i in 0..rounds {
        let prefix = &prompts[(i * 7919) % prompts.len()];
        let request = Request {
            class: "default",
            prefix,
            prompt_tokens: 64.0 * blocks as f64,
            tokens_per_block: 64.0,
            expected_output: 200.0,
            adapter: None,
            ttft_objective_ms: Some(1000.0),
        };
        let began = Instant::now();
        let chosen = choose(&view, &request, |i| loads[i], &mut memory);
        times.push(began.elapsed());
        let began = Instant::now();
        memory.record(&view, &request, chosen.order[0].endpoint);
        notes.push(began.elapsed());
    }
    times.sort_unstable();
    notes.sort_unstable();
    println!(
        "choice, {replicas:>5} replicas, prompts of {:>6} tokens   p50 {:>7.1} µs   p99 {:>7.1} µs   remembering it p50 {:>7.1} µs",
        64 * blocks,
        percentile(&times, 0.5),
        percentile(&times, 0.99),
        percentile(&notes, 0.5)
    );
}

async fn latencies(addr: std::net::SocketAddr, requests: usize, together: usize) -> Vec<Duration> {
    let client = client();
    let mut tasks = Vec::new();
    for _ in 0..together {
        let client = client.clone();
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            for _ in 0..requests / together {
                let began = Instant::now();
                let response = client.request(chat(addr, false)).await.unwrap();
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap();
                times.push(began.elapsed());
            }
            times
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    all.sort_unstable();
    all
}

async fn proxy() {
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |_| {}).await;
    let node = agent("n1", Some("n1"), |_| {}).await;
    let hop = table(1, vec![endpoint("chat-1", "n1", engine.addr, Some(node.addr()))]);
    gateway.set_routes(hop.clone());
    node.set_routes(hop);
    for together in [1, 16] {
        let mut base = (0.0, 0.0);
        for (name, addr) in [
            ("engine itself", engine.addr),
            ("node agent", node.addr()),
            ("gateway + node agent", gateway.addr()),
        ] {
            // The fake engine knows no model names, so the same request will do for all three.
            latencies(addr, 400, together).await;
            let began = Instant::now();
            let times = latencies(addr, 4000, together).await;
            let rate = times.len() as f64 / began.elapsed().as_secs_f64();
            let (p50, p99) = (percentile(&times, 0.5), percentile(&times, 0.99));
            if name == "engine itself" {
                base = (p50, p99);
            }
            println!(
                "{name:<22} {together:>3} at once   p50 {p50:>7.0} µs   p99 {p99:>7.0} µs   added p50 {:>6.0} µs   added p99 {:>6.0} µs   {rate:>7.0} rps",
                p50 - base.0,
                p99 - base.1
            );
        }
    }
}

fn main() {
    for blocks in [16, 100, 1_563] {
        for replicas in [10, 100, 1_000] {
            choice(replicas, blocks);
        }
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(proxy());
}
