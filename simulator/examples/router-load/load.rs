//! Sends traffic, open or closed loop, and prints what came of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::prompt::prompts;
use crate::{Args, usage};

type Http = Client<HttpConnector, Full<Bytes>>;

/// One request: first byte and end, ms after it was due; `None` where it failed.
type Sample = Option<(f64, f64)>;

async fn one(client: &Http, url: &str, body: Bytes, due: Instant) -> Sample {
    let request =
        Request::post(url).header("content-type", "application/json").body(Full::new(body)).unwrap();
    let response = client.request(request).await.ok()?;
    let fine = response.status().is_success();
    let mut body = response.into_body();
    let (mut first, mut last) = (None, Vec::new());
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            first.get_or_insert_with(|| due.elapsed());
            last.drain(..last.len().saturating_sub(64));
            last.extend_from_slice(&data[data.len().saturating_sub(64)..]);
        }
    }
    let whole = fine && last.windows(6).any(|w| w == b"[DONE]");
    whole.then(|| (first.unwrap_or_default().as_secs_f64() * 1e3, due.elapsed().as_secs_f64() * 1e3))
}

/// Processor seconds that process groups have used.
fn cpu_seconds(groups: &[i64]) -> f64 {
    let ticks = |stat: &str| -> Option<(i64, f64)> {
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let spent = |i: usize| fields.get(i)?.parse::<f64>().ok();
        Some((fields.get(2)?.parse().ok()?, spent(11)? + spent(12)?))
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = processes.filter_map(|p| std::fs::read_to_string(p.path().join("stat")).ok());
    stats.filter_map(|s| ticks(&s)).filter(|(g, _)| groups.contains(g)).map(|(_, t)| t).sum::<f64>() / 100.0
}

/// Blocks of prompts at all engines, those that were cached, and loads of adapters.
async fn stats(client: &Http, engines: &str) -> (f64, f64, f64) {
    let (mut all, mut hit, mut loads) = (0.0, 0.0, 0.0);
    for engine in engines.split(',').filter(|e| !e.is_empty()) {
        let request = Request::get(format!("{engine}/stats")).body(Full::default()).unwrap();
        let Ok(response) = client.request(request).await else { continue };
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let stats: Value = serde_json::from_slice(&body).unwrap_or_default();
        all += stats["prompt_blocks"].as_f64().unwrap_or(0.0);
        hit += stats["cached_blocks"].as_f64().unwrap_or(0.0);
        loads += stats["adapter_loads"].as_f64().unwrap_or(0.0);
    }
    (all, hit, loads)
}

pub async fn run(args: &Args) {
    let urls = args.text("url", "http://127.0.0.1:9001");
    let urls: Arc<Vec<String>> =
        Arc::new(urls.split(',').map(|u| format!("{u}/v1/chat/completions")).collect());
    let model = args.text("model", "bench-model");
    let kind = args.text("traffic", "chat");
    let rate = args.number("rate", 0.0);
    let together = args.number("connections", 32.0) as usize;
    let seconds = args.number("seconds", 8.0);
    let within_ms = args.number("within-ms", f64::INFINITY);
    let groups = args.text("cpu-groups", "");
    let groups: Vec<i64> = groups.split(',').filter_map(|g| g.parse().ok()).collect();
    let engines = args.text("engines", "");
    let count = if rate > 0.0 { (rate * seconds).ceil() as usize } else { 4_096 };
    let Some(made) = prompts(&kind, count, args.number("seed", 1.0) as u64, &args.text("trace", "")) else {
        usage(&kind)
    };
    let bodies: Arc<Vec<Bytes>> = Arc::new(
        made.messages
            .iter()
            .enumerate()
            .map(|(i, messages)| {
                let model = made.adapters.get(i).map_or_else(|| model.clone(), |a| format!("adapter-{a}"));
                let messages: Vec<Value> =
                    messages.iter().map(|(role, text)| json!({"role": role, "content": text})).collect();
                Bytes::from(json!({"model": model, "stream": true, "messages": messages}).to_string())
            })
            .collect(),
    );
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Http = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(4_096).build(connector);
    let before = stats(&client, &engines).await;
    let cpu = cpu_seconds(&groups);
    let began = Instant::now();
    let mut samples: Vec<Sample> = Vec::new();
    if rate > 0.0 {
        let mut rng = SmallRng::seed_from_u64(2);
        let burst = if kind == "bursts" { 16.0 } else { 1.0 };
        let mut due = began;
        let mut tasks = Vec::with_capacity(count);
        for i in 0..count {
            if let Some(gap) = made.gaps.get(i % made.gaps.len().max(1)) {
                due += Duration::from_secs_f64(gap / rate);
            } else if rng.random::<f64>() >= 1.0 - 1.0 / burst {
                due += Duration::from_secs_f64(-rng.random_range(1e-12f64..1.0).ln() * burst / rate);
            }
            tokio::time::sleep_until(due).await;
            let (client, urls, bodies) = (client.clone(), urls.clone(), bodies.clone());
            tasks.push(tokio::spawn(async move {
                let body = bodies[i % bodies.len()].clone();
                tokio::time::timeout(Duration::from_secs(20), one(&client, &urls[i % urls.len()], body, due))
                    .await
                    .ok()
                    .flatten()
            }));
        }
        for task in tasks {
            samples.push(task.await.unwrap());
        }
    } else {
        let next = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..together)
            .map(|_| {
                let (client, urls, bodies, next) =
                    (client.clone(), urls.clone(), bodies.clone(), next.clone());
                tokio::spawn(async move {
                    let mut samples = Vec::new();
                    while began.elapsed().as_secs_f64() < seconds {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let sent = Instant::now();
                        let left = Duration::from_secs(20);
                        let body = bodies[i % bodies.len()].clone();
                        let sample =
                            tokio::time::timeout(left, one(&client, &urls[i % urls.len()], body, sent))
                                .await
                                .ok()
                                .flatten();
                        if sample.is_none() {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                        samples.push(sample);
                    }
                    samples
                })
            })
            .collect();
        for task in tasks {
            samples.extend(task.await.unwrap());
        }
    }
    let took = began.elapsed().as_secs_f64();
    let cpu = cpu_seconds(&groups) - cpu;
    let after = stats(&client, &engines).await;
    let mut first: Vec<f64> = samples.iter().flatten().map(|s| s.0).collect();
    let mut whole: Vec<f64> = samples.iter().flatten().map(|s| s.1).collect();
    first.sort_by(f64::total_cmp);
    whole.sort_by(f64::total_cmp);
    let at = |sorted: &[f64], p: f64| {
        sorted.get(((sorted.len() as f64 * p) as usize).min(sorted.len().saturating_sub(1))).copied()
    };
    let attained = first.iter().filter(|f| **f <= within_ms).count();
    let blocks = after.0 - before.0;
    println!(
        "{}",
        json!({
            "requests": samples.len(), "errors": samples.len() - first.len(), "seconds": took,
            "rps": first.len() as f64 / took,
            "first_ms": {"p50": at(&first, 0.5), "p90": at(&first, 0.9), "p99": at(&first, 0.99)},
            "whole_ms": {"p50": at(&whole, 0.5), "p90": at(&whole, 0.9), "p99": at(&whole, 0.99)},
            "cpu_ms_per_request": 1e3 * cpu / samples.len().max(1) as f64,
            "cached": (blocks > 0.0).then(|| (after.1 - before.1) / blocks), "oracle": made.oracle,
            "adapter_loads": after.2 - before.2, "attained": attained as f64 / samples.len().max(1) as f64,
        })
    );
}
