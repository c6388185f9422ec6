//! Many requests while replicas join, die, drain and hang: none may be lost or answered twice, and memory stays flat.
//!
//! `cargo run --release -p plimsoll-agent --example soak -- 1000000` sends a million. Every answer names its request and counts
//! its tokens, so that a lost, doubled or foreign token is seen. Requests that are refused (429, 503) are sent again, as
//! clients do. It fails if any is lost or doubled, or if memory has grown by a fifth since the first tenth.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use plimsoll_agent::AgentHandle;
use plimsoll_fleet::Endpoint;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use support::{agent, client, endpoint, post, table};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

const TOKENS: usize = 6;
const CLIENTS: usize = 48;

/// An engine that answers with its request's name, until it hangs or dies.
struct Engine {
    address: SocketAddr,
    hangs: Arc<AtomicBool>,
    dies: CancellationToken,
}

impl Engine {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hangs, dies) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let (state, stop) = (hangs.clone(), dies.clone());
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let (state, stop) = (state.clone(), stop.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |r| {
                        let state = state.clone();
                        async move { Ok::<_, Infallible>(answer(r, state).await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = connection => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
        });
        Self { address, hangs, dies }
    }
}

type Answer = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>, hangs: Arc<AtomicBool>) -> Response<Answer> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    if hangs.load(Relaxed) {
        std::future::pending::<()>().await;
    }
    if path != "/v1/chat/completions" {
        return Response::new(Full::default().boxed());
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let name = body["messages"][0]["content"].as_str().unwrap_or_default().to_owned();
    let continued = body["continue_final_message"] == true;
    let last = body["messages"].as_array().and_then(|m| m.last()).filter(|_| continued);
    let begun = last.map_or(0, |m| m["content"].as_str().unwrap_or_default().split_whitespace().count());
    let (tx, rx) = tokio::sync::mpsc::channel::<Bytes>(4);
    tokio::spawn(async move {
        for i in begun..TOKENS {
            if hangs.load(Relaxed) {
                std::future::pending::<()>().await;
            }
            let event = json!({"id": name, "model": "engine-model", "choices": [{"index": 0, "delta": {"content": format!("{name}.{i} ")}}]});
            if tx.send(Bytes::from(format!("data: {event}\n\n"))).await.is_err() {
                return;
            }
            if i % 3 == 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let end = json!({"id": name, "model": "engine-model", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
        let _ = tx.send(Bytes::from(format!("data: {end}\n\ndata: [DONE]\n\n"))).await;
    });
    let body = StreamBody::new(ReceiverStream::new(rx).map(|data| Ok(Frame::data(data))));
    Response::builder().header("content-type", "text/event-stream").body(BodyExt::boxed(body)).unwrap()
}

#[derive(Default)]
struct Count {
    done: AtomicU64,
    refused: AtomicU64,
    lost: AtomicU64,
    doubled: AtomicU64,
}

/// Sends one request until it is answered; how it ended otherwise.
async fn one(http: &support::HttpClient, to: SocketAddr, name: &str, count: &Count) -> Result<(), String> {
    let body =
        json!({"model": "chat-model", "stream": true, "messages": [{"role": "user", "content": name}]})
            .to_string();
    for _ in 0..200 {
        let response = http
            .request(post(to, "/v1/chat/completions", body.clone()))
            .await
            .map_err(|e| format!("{e:?}"))?;
        let status = response.status().as_u16();
        let text = response.into_body().collect().await.map_err(|e| format!("{e:?}"))?.to_bytes();
        let text = String::from_utf8_lossy(&text).into_owned();
        if matches!(status, 429 | 503) {
            count.refused.fetch_add(1, Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        let got: String = text
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l.strip_prefix("data: ")?).ok())
            .filter_map(|v| v["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect();
        let wanted: String = (0..TOKENS).map(|i| format!("{name}.{i} ")).collect();
        if status == 200 && got == wanted && text.matches("[DONE]").count() == 1 {
            return Ok(());
        }
        if got.len() > wanted.len() {
            count.doubled.fetch_add(1, Relaxed);
        }
        return Err(format!("{status}: {text}"));
    }
    Err("refused 200 times".into())
}

fn resident_mib() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|p| p.parse::<f64>().ok()).unwrap_or(0.0) * 4096.0 / 1048576.0
}

/// The fleet: engines by replica, and the table that every agent has.
struct Fleet {
    agents: Vec<AgentHandle>,
    engines: Vec<(String, Engine, bool)>,
    made: u64,
    version: u64,
}

impl Fleet {
    async fn join(&mut self) {
        self.made += 1;
        let engine = Engine::start().await;
        self.engines.push((format!("chat-{}", self.made), engine, false));
        self.publish();
    }

    fn publish(&mut self) {
        self.version += 1;
        let endpoints: Vec<Endpoint> = self
            .engines
            .iter()
            .map(|(name, engine, draining)| {
                // Half of them have an agent beside them.
                let node = &self.agents[1];
                let beside = name.ends_with(['0', '2', '4', '6', '8']);
                let on = if beside { "n1" } else { "elsewhere" };
                let mut e = endpoint(name, on, engine.address, beside.then(|| node.addr()));
                e.draining = *draining;
                e
            })
            .collect();
        for agent in &self.agents {
            agent.set_routes(table(self.version, endpoints.clone()));
        }
    }

    /// Something happens to one of them; another takes its place.
    async fn strike(&mut self, rng: &mut SmallRng) -> &'static str {
        let i = rng.random_range(0..self.engines.len());
        match rng.random_range(0..4) {
            0 => {
                self.join().await;
                if self.engines.len() > 6 {
                    self.drain(0).await;
                }
                "joined"
            }
            1 => {
                // Dead at once; the table learns of it later.
                self.engines[i].1.dies.cancel();
                tokio::time::sleep(Duration::from_millis(300)).await;
                self.engines.remove(i);
                self.join().await;
                "died"
            }
            2 => {
                self.drain(i).await;
                self.join().await;
                "drained"
            }
            _ => {
                self.engines[i].1.hangs.store(true, Relaxed);
                tokio::time::sleep(Duration::from_millis(4_000)).await;
                let (_, engine, _) = self.engines.remove(i);
                self.join().await;
                engine.dies.cancel();
                "hung"
            }
        }
    }

    async fn drain(&mut self, i: usize) {
        self.engines[i].2 = true;
        self.publish();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (_, engine, _) = self.engines.remove(i);
        self.publish();
        // What had begun is over by now.
        tokio::time::sleep(Duration::from_millis(200)).await;
        engine.dies.cancel();
    }
}

async fn soak(requests: u64) -> bool {
    let change = |c: &mut plimsoll_agent::AgentConfig| {
        // Long enough that a busy machine is no hung engine.
        c.limits.first_byte_timeout = Duration::from_secs(3);
        c.limits.idle_timeout = Duration::from_secs(3);
        c.limits.settle_wait = Duration::from_secs(5);
    };
    let agents = vec![agent("gw", None, change).await, agent("n1", Some("n1"), change).await];
    let gateway = agents[0].addr();
    let mut fleet = Fleet { agents, engines: Vec::new(), made: 0, version: 0 };
    for _ in 0..4 {
        fleet.join().await;
    }
    let count = Arc::new(Count::default());
    let next = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (count, next) = (count.clone(), next.clone());
            tokio::spawn(async move {
                let http = client();
                loop {
                    let id = next.fetch_add(1, Relaxed);
                    if id >= requests {
                        return;
                    }
                    if let Err(what) = one(&http, gateway, &format!("q{id}"), &count).await {
                        println!("request {id} is lost: {what}");
                        count.lost.fetch_add(1, Relaxed);
                    }
                    count.done.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut struck = std::collections::BTreeMap::<&str, u64>::new();
    let (mut base_mib, mut shown) = (None, 0);
    while count.done.load(Relaxed) < requests {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        *struck.entry(fleet.strike(&mut rng).await).or_default() += 1;
        let done = count.done.load(Relaxed);
        if base_mib.is_none() && done * 10 >= requests {
            base_mib = Some(resident_mib());
        }
        if done * 10 / requests > shown {
            shown = done * 10 / requests;
            println!(
                "{done} of {requests}: lost {}, doubled {}, refused and sent again {}; {:.0} MiB; replicas {struck:?}",
                count.lost.load(Relaxed),
                count.doubled.load(Relaxed),
                count.refused.load(Relaxed),
                resident_mib()
            );
        }
    }
    for client in clients {
        client.await.unwrap();
    }
    let (lost, doubled) = (count.lost.load(Relaxed), count.doubled.load(Relaxed));
    let (first, last) = (base_mib.unwrap_or_else(resident_mib), resident_mib());
    println!(
        "{requests} requests: {lost} lost, {doubled} doubled; memory {first:.0} → {last:.0} MiB; replicas {struck:?}"
    );
    lost == 0 && doubled == 0 && last < 1.2 * first + 8.0
}

fn main() -> std::process::ExitCode {
    let requests = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if runtime.block_on(soak(requests)) {
        std::process::ExitCode::SUCCESS
    } else {
        std::process::ExitCode::FAILURE
    }
}
