//! Engines with a prompt queue and a prefix cache, and nothing else.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::Args;
use crate::prompt::{TOKEN_BYTES, blocks};

/// Least recently used blocks give way.
struct Cache {
    used: HashMap<u64, u64>,
    clock: u64,
    capacity: usize,
}

impl Cache {
    /// Blocks of the prefix that are there; all of it is afterwards.
    fn take(&mut self, prefix: &[u64]) -> usize {
        let cached = prefix.iter().take_while(|b| self.used.contains_key(b)).count();
        for block in prefix.iter().rev() {
            self.clock += 1;
            self.used.insert(*block, self.clock);
        }
        if self.used.len() > self.capacity {
            let mut stamps: Vec<u64> = self.used.values().copied().collect();
            // A tenth at once: sorting for every block would cost more than the engine may.
            let keep = self.capacity - self.capacity / 10;
            let cut = stamps.len() - keep;
            let (_, least, _) = stamps.select_nth_unstable(cut);
            let least = *least;
            self.used.retain(|_, stamp| *stamp >= least);
        }
        cached
    }
}

struct Engine {
    free_at: Instant,
    cache: Cache,
    prompt_blocks: u64,
    cached_blocks: u64,
    requests: u64,
    /// Adapters at hand, the one used last at the end.
    adapters: Vec<String>,
    adapter_loads: u64,
}

impl Engine {
    /// Whether a model is an adapter that has to be loaded; the one used longest ago gives way.
    fn takes_adapter(&mut self, model: &str, slots: usize) -> bool {
        if !model.starts_with("adapter-") {
            return false;
        }
        let known = self.adapters.iter().position(|a| a == model);
        if let Some(at) = known {
            self.adapters.remove(at);
        } else {
            self.adapter_loads += 1;
            self.adapters.drain(..(self.adapters.len() + 1).saturating_sub(slots));
        }
        self.adapters.push(model.to_owned());
        known.is_none()
    }
}

#[derive(Clone, Copy)]
struct Timing {
    prefill_us_per_token: f64,
    events: usize,
    adapter_slots: usize,
    adapter_load: Duration,
}

pub async fn serve(args: &Args) {
    let timing = Timing {
        prefill_us_per_token: args.number("prefill-us-per-token", 0.0),
        events: args.number("events", 4.0) as usize,
        adapter_slots: args.number("adapter-slots", 4.0) as usize,
        adapter_load: Duration::from_secs_f64(args.number("adapter-load-ms", 0.0) / 1e3),
    };
    let capacity = args.number("cache-blocks", 100_000.0) as usize;
    let mut tasks = Vec::new();
    for port in args.text("ports", "9001").split(',') {
        let listener =
            tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await.expect("port is free");
        let engine = Arc::new(Mutex::new(Engine {
            free_at: Instant::now(),
            cache: Cache { used: HashMap::new(), clock: 0, capacity },
            prompt_blocks: 0,
            cached_blocks: 0,
            requests: 0,
            adapters: Vec::new(),
            adapter_loads: 0,
        }));
        tasks.push(tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let _ = stream.set_nodelay(true);
                let engine = engine.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |r| {
                        let engine = engine.clone();
                        async move { Ok::<_, Infallible>(answer(&engine, timing, r).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        }));
    }
    for task in tasks {
        let _ = task.await;
    }
}

fn reply(kind: &str, text: String) -> Response<Full<Bytes>> {
    Response::builder().header("content-type", kind).body(Full::new(text.into())).unwrap()
}

async fn answer(engine: &Mutex<Engine>, timing: Timing, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/v1/models" => {
            return reply(
                "application/json",
                json!({"object": "list", "data": [{"id": "bench-model", "object": "model"}]}).to_string(),
            );
        }
        "/metrics" => {
            return reply("text/plain", "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n".into());
        }
        "/stats" => {
            let e = engine.lock();
            let stats = json!({"requests": e.requests, "prompt_blocks": e.prompt_blocks, "cached_blocks": e.cached_blocks,
                "adapter_loads": e.adapter_loads});
            return reply("application/json", stats.to_string());
        }
        "/v1/chat/completions" => {}
        _ => return reply("application/json", "{}".into()),
    }
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let parsed: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut prompt = String::new();
    for message in parsed["messages"].as_array().into_iter().flatten() {
        prompt.push_str(message["content"].as_str().unwrap_or_default());
    }
    let prefix = blocks(prompt.as_bytes());
    let model = parsed["model"].as_str().unwrap_or("bench-model");
    let (cached, ready) = {
        let mut e = engine.lock();
        let cached = e.cache.take(&prefix);
        e.requests += 1;
        e.prompt_blocks += prefix.len() as u64;
        e.cached_blocks += cached as u64;
        let tokens =
            (prompt.len() / TOKEN_BYTES).saturating_sub(cached * crate::prompt::BLOCK_BYTES / TOKEN_BYTES);
        let work = Duration::from_secs_f64(tokens as f64 * timing.prefill_us_per_token / 1e6);
        let load =
            if e.takes_adapter(model, timing.adapter_slots) { timing.adapter_load } else { Duration::ZERO };
        e.free_at = e.free_at.max(Instant::now()) + work + load;
        (cached, e.free_at)
    };
    if timing.prefill_us_per_token > 0.0 || !timing.adapter_load.is_zero() {
        tokio::time::sleep_until(ready).await;
    }
    let usage = json!({"prompt_tokens": prompt.len() / TOKEN_BYTES, "completion_tokens": timing.events, "total_tokens": prompt.len() / TOKEN_BYTES + timing.events,
        "prompt_tokens_details": {"cached_tokens": cached * crate::prompt::BLOCK_BYTES / TOKEN_BYTES}});
    if parsed["stream"] != true {
        let choice = json!({"index": 0, "message": {"role": "assistant", "content": "word ".repeat(timing.events)}, "finish_reason": "stop"});
        return reply("application/json", json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage}).to_string());
    }
    let chunk = |delta: Value, finish: Value| {
        json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
    };
    let mut text = String::new();
    for i in 0..timing.events {
        let delta = if i == 0 {
            json!({"role": "assistant", "content": "word "})
        } else {
            json!({"content": "word "})
        };
        text.push_str(&format!("data: {}\n\n", chunk(delta, Value::Null)));
    }
    text.push_str(&format!("data: {}\n\n", chunk(json!({}), "stop".into())));
    if parsed["stream_options"]["include_usage"] == true {
        text.push_str(&format!(
            "data: {}\n\n",
            json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [], "usage": usage})
        ));
    }
    text.push_str("data: [DONE]\n\n");
    reply("text/event-stream", text)
}
