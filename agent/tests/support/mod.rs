//! Engines and schedulers small enough to misbehave on request.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod hub;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use plimsoll_agent::{Agent, AgentConfig, AgentHandle};
use plimsoll_fleet::{
    Endpoint, EngineKind, NodeName, Objective, Percentile, PoolRoute, ReplicaId, Role, RouteTable, Slo,
    SloClass, StepCoefficients,
};
use plimsoll_simulator::engine_server::{EngineServer, EngineServerConfig};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How a fake engine treats its next request (the default when its script is empty: answer).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Act {
    Answer,
    /// Answers 503.
    Unavailable,
    /// Answers 500, as vLLM does while it dies.
    Fail,
    /// Answers 400.
    Complain,
    /// Closes the connection before answering.
    HangUp,
    /// Sends the head and then closes, before any event.
    HangUpAfterHead,
    /// Streams so many tokens, then breaks the connection.
    DieAfter(usize),
    /// Streams so many tokens, then ends cleanly without finishing.
    EndEarlyAfter(usize),
    /// Never ends its answer.
    Endless,
}

#[derive(Debug)]
pub struct EngineState {
    pub script: Arc<Mutex<VecDeque<Act>>>,
    pub requests: AtomicUsize,
    pub open: AtomicUsize,
    pub cancelled: AtomicUsize,
    pub last_body: Mutex<Value>,
    pub last_headers: Mutex<http::HeaderMap>,
    pub tokens: AtomicUsize,
    /// Tokens of one event of a stream.
    pub per_event: AtomicUsize,
    pub pause: Mutex<Duration>,
    pub healthy: AtomicBool,
    /// There is no `/health`.
    pub no_health: AtomicBool,
    pub metrics: Mutex<Option<String>>,
}

pub struct Engine {
    pub addr: SocketAddr,
    pub state: Arc<EngineState>,
    stop: CancellationToken,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Open {
    state: Arc<EngineState>,
    done: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.state.open.fetch_sub(1, Ordering::SeqCst);
        if !self.done {
            self.state.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

type FakeBody = BoxBody<Bytes, std::io::Error>;

/// The sending side of a streamed body.
struct Sender(tokio::sync::mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>);

impl Sender {
    fn channel() -> (Self, FakeBody) {
        let (tx, rx) = tokio::sync::mpsc::channel(4);
        (Self(tx), BodyExt::boxed(StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(rx))))
    }

    async fn send_data(&self, data: Bytes) -> Result<(), ()> {
        self.0.send(Ok(Frame::data(data))).await.map_err(|_| ())
    }

    /// Breaks the connection.
    async fn abort(self) {
        self.0.send(Err(std::io::Error::other("killed"))).await.ok();
    }
}

fn full(text: impl Into<Bytes>) -> FakeBody {
    Full::new(text.into()).map_err(|e| match e {}).boxed()
}

impl Engine {
    pub async fn start() -> Self {
        Self::start_with(Arc::default()).await
    }

    /// Engines that share a script: whoever is asked next plays the next act.
    pub async fn start_with(script: Arc<Mutex<VecDeque<Act>>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(EngineState {
            script,
            requests: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
            last_body: Mutex::default(),
            last_headers: Mutex::default(),
            tokens: AtomicUsize::new(3),
            per_event: AtomicUsize::new(1),
            pause: Mutex::new(Duration::ZERO),
            healthy: AtomicBool::new(true),
            no_health: AtomicBool::new(false),
            metrics: Mutex::new(Some("vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n".into())),
        });
        let stop = CancellationToken::new();
        let (s, token) = (state.clone(), stop.clone());
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    () = token.cancelled() => return,
                    r = listener.accept() => r.unwrap().0,
                };
                let (s, token) = (s.clone(), token.clone());
                tokio::spawn(async move {
                    let (hang_up, mut hung) = tokio::sync::mpsc::channel::<()>(1);
                    let service = service_fn(move |request| {
                        let (s, hang_up) = (s.clone(), hang_up.clone());
                        async move { Ok::<_, Infallible>(serve(s, request, hang_up).await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = connection => {}
                        _ = hung.recv() => {}
                        () = token.cancelled() => {}
                    }
                });
            }
        });
        Self { addr, state, stop }
    }

    pub fn next(&self, acts: &[Act]) {
        self.state.script.lock().extend(acts.iter().copied());
    }

    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// Stops as a killed process does: every connection breaks.
    pub fn kill(&self) {
        self.stop.cancel();
    }
}

async fn serve(
    s: Arc<EngineState>,
    request: Request<Incoming>,
    hang_up: tokio::sync::mpsc::Sender<()>,
) -> Response<FakeBody> {
    let path = request.uri().path().to_owned();
    if path == "/health" {
        let status = match s.healthy.load(Ordering::SeqCst) {
            _ if s.no_health.load(Ordering::SeqCst) => 404,
            true => 200,
            false => 503,
        };
        return Response::builder().status(status).body(full("")).unwrap();
    }
    if path == "/v1/models" {
        return Response::new(full("{\"object\":\"list\",\"data\":[]}"));
    }
    if path == "/tokenize" {
        // A word is a token.
        let body =
            request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let count = body["prompt"].as_str().unwrap_or_default().split_whitespace().count();
        return Response::new(full(json!({"count": count, "max_model_len": 8192}).to_string()));
    }
    if path == "/metrics" {
        let text = s.metrics.lock().clone();
        return match text {
            Some(text) => Response::new(full(text)),
            None => Response::builder().status(404).body(full("")).unwrap(),
        };
    }
    s.requests.fetch_add(1, Ordering::SeqCst);
    s.open.fetch_add(1, Ordering::SeqCst);
    let mut open = Open { state: s.clone(), done: false };
    *s.last_headers.lock() = request.headers().clone();
    let body =
        request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    *s.last_body.lock() = body.clone();
    let act = s.script.lock().pop_front().unwrap_or(Act::Answer);
    let tokens = s.tokens.load(Ordering::SeqCst);
    let per_event = s.per_event.load(Ordering::SeqCst);
    let pause = *s.pause.lock();
    let model = body["model"].clone();
    // A message to be continued holds so many tokens of the answer.
    let begun =
        body["messages"].as_array().and_then(|m| m.last()).filter(|_| body["continue_final_message"] == true);
    let begun = begun.map_or(0, |m| m["content"].as_str().unwrap().split_whitespace().count());
    let usage = json!({"prompt_tokens": 40 + begun, "completion_tokens": tokens - begun, "prompt_tokens_details": {"cached_tokens": 16}});
    match act {
        Act::Unavailable => {
            open.done = true;
            return Response::builder().status(503).body(full("{}")).unwrap();
        }
        Act::Fail => {
            open.done = true;
            let error = json!({"error": {"message": "the engine died", "code": 500}});
            return Response::builder().status(500).body(full(error.to_string())).unwrap();
        }
        Act::Complain => {
            open.done = true;
            let error = json!({"error": {"message": "no such template", "code": 400}});
            return Response::builder().status(400).body(full(error.to_string())).unwrap();
        }
        Act::HangUp => {
            open.done = true;
            hang_up.send(()).await.ok();
            std::future::pending::<()>().await;
        }
        _ => {}
    }
    if body["stream"] != true {
        if act == Act::Endless {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(pause * tokens as u32).await;
        open.done = true;
        if let Act::DieAfter(_) = act {
            let (tx, channel) = Sender::channel();
            tokio::spawn(async move {
                tx.send_data(Bytes::from_static(b"{\"id\":")).await.ok();
                tokio::time::sleep(Duration::from_millis(20)).await;
                tx.abort().await;
            });
            return Response::new(channel);
        }
        let text = "x".repeat(tokens);
        let answer = json!({"model": model, "choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage});
        return Response::builder()
            .header("content-type", "application/json")
            .body(full(answer.to_string()))
            .unwrap();
    }
    let (tx, channel) = Sender::channel();
    let with_usage = body["stream_options"]["include_usage"] == true;
    tokio::spawn(async move {
        // Moved whole: else only its flag would be.
        let mut open = open;
        if act == Act::HangUpAfterHead {
            open.done = true;
            tokio::time::sleep(Duration::from_millis(20)).await;
            tx.abort().await;
            return;
        }
        let id = format!("id-{begun}");
        let role = json!({"id": id, "created": begun, "model": model,
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]});
        if tx.send_data(Bytes::from(format!("data: {role}\n\n"))).await.is_err() {
            return;
        }
        let mut sent = begun;
        loop {
            match act {
                Act::DieAfter(n) if sent == n => {
                    open.done = true;
                    tx.abort().await;
                    return;
                }
                Act::EndEarlyAfter(n) if sent == n => {
                    open.done = true;
                    return;
                }
                Act::Endless => {}
                _ if sent == tokens => break,
                _ => {}
            }
            let upto = if act == Act::Endless { sent + per_event } else { (sent + per_event).min(tokens) };
            let content: String = (sent..upto).map(|n| format!("t{n} ")).collect();
            let event = json!({"id": id, "created": begun, "model": model, "choices": [{"index": 0, "delta": {"content": content}}]});
            // In two parts, so that events are cut.
            let text = format!("data: {event}\n\n");
            let (a, b) = text.split_at(9);
            if tx.send_data(Bytes::copy_from_slice(a.as_bytes())).await.is_err()
                || tx.send_data(Bytes::copy_from_slice(b.as_bytes())).await.is_err()
            {
                return;
            }
            sent = upto;
            tokio::time::sleep(if act == Act::Endless { pause.max(Duration::from_millis(5)) } else { pause })
                .await;
        }
        let mut end = format!(
            "data: {}\n\n",
            json!({"id": id, "model": model, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        );
        if with_usage {
            end.push_str(&format!(
                "data: {}\n\n",
                json!({"id": id, "model": model, "choices": [], "usage": usage})
            ));
        }
        end.push_str("data: [DONE]\n\n");
        open.done = tx.send_data(Bytes::from(end)).await.is_ok();
    });
    Response::builder().header("content-type", "text/event-stream").body(channel).unwrap()
}

pub fn coefficients() -> StepCoefficients {
    StepCoefficients {
        base_ms: 10.0,
        per_request_ms: 0.1,
        per_context_token_ms: 1e-4,
        per_prefill_token_ms: 0.05,
        api_overhead_ms: 1.0,
        kv_tokens: 1e6,
        max_running: 256,
        max_batched_tokens: 8192,
    }
}

pub fn endpoint(replica: &str, node: &str, engine: SocketAddr, agent: Option<SocketAddr>) -> Endpoint {
    Endpoint {
        replica: ReplicaId::new(replica).unwrap(),
        node: NodeName::new(node).unwrap(),
        zone: "a".into(),
        role: Role::Mixed,
        agent_address: agent.map(|a| a.to_string()),
        engine_address: engine.to_string(),
        engine_model: "engine-model".into(),
        weights: vec![],
        coefficients: coefficients(),
        draining: false,
        engine: EngineKind::Vllm,
        hand_over: None,
    }
}

pub fn pool(endpoints: Vec<Endpoint>) -> PoolRoute {
    PoolRoute {
        pool: "default/chat".parse().unwrap(),
        served_name: "chat-model".into(),
        slo_classes: vec![
            SloClass {
                name: "default".into(),
                slo: Slo {
                    ttft: Some(Objective { percentile: Percentile::P95, ms: 60_000.0 }),
                    ..Slo::default()
                },
                match_headers: Default::default(),
                expected_share: 1.0,
            },
            SloClass {
                name: "batch".into(),
                slo: Slo::default(),
                match_headers: [("x-kind".to_owned(), "batch".to_owned())].into(),
                expected_share: 0.0,
            },
        ],
        priority: 0,
        max_context_tokens: 8192,
        endpoints,
        wake_wait_ms: 0.0,
        usd_per_million_tokens: (0.0, 0.0),
        unavailable_reason: String::new(),
        objectives: Vec::new(),
        adapters: Vec::new(),
    }
}

pub fn table(version: u64, endpoints: Vec<Endpoint>) -> RouteTable {
    RouteTable { version, plan: 30 + version, pools: vec![pool(endpoints)], ..RouteTable::default() }
}

pub async fn agent(name: &str, node: Option<&str>, change: impl FnOnce(&mut AgentConfig)) -> AgentHandle {
    let mut config = AgentConfig::new(name);
    config.node = node.map(|n| NodeName::new(n).unwrap());
    config.limits.probe_interval = Duration::from_millis(50);
    config.limits.report_interval = Duration::from_millis(50);
    config.limits.drain_settle = Duration::from_millis(100);
    config.limits.settle_wait = Duration::from_millis(300);
    config.limits.shutdown_grace = Duration::from_secs(10);
    change(&mut config);
    Agent::start(config, CancellationToken::new()).await.unwrap()
}

pub type HttpClient = Client<HttpConnector, Full<Bytes>>;

pub fn client() -> HttpClient {
    Client::builder(TokioExecutor::new()).build_http()
}

pub fn post(addr: SocketAddr, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(format!("http://{addr}{path}")).body(Full::new(body.into())).unwrap()
}

pub fn chat(addr: SocketAddr, stream: bool) -> Request<Full<Bytes>> {
    let body =
        json!({"model": "chat-model", "stream": stream, "messages": [{"role": "user", "content": "hello"}]});
    post(addr, "/v1/chat/completions", body.to_string())
}

pub struct Got {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub text: String,
}

impl Got {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }
    pub fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
    /// The events of a stream, without `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let data = self.text.lines().filter_map(|l| l.strip_prefix("data: "));
        data.filter_map(|d| serde_json::from_str(d).ok()).collect()
    }
    /// The streamed content put together.
    pub fn content(&self) -> String {
        self.text
            .lines()
            .filter_map(|l| l.strip_prefix("data: "))
            .filter_map(|d| serde_json::from_str::<Value>(d).ok())
            .filter_map(|v| v["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect()
    }
}

pub async fn send(request: Request<Full<Bytes>>) -> Got {
    let response = client().request(request).await.unwrap();
    let (head, body) = response.into_parts();
    let text = body.collect().await.unwrap().to_bytes();
    Got {
        status: head.status.as_u16(),
        headers: head.headers,
        text: String::from_utf8(text.to_vec()).unwrap(),
    }
}

/// Waits until a condition holds; fails the test after ten seconds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain until {what}");
}

/// A simulated engine that is ready, and how long its steps take.
pub async fn simulated_engine(
    configure: impl FnOnce(&mut EngineServerConfig),
) -> (EngineServer, StepCoefficients) {
    let mut config = EngineServerConfig::from_presets("llama-3.1-8b", "h100", 1, "bf16").unwrap();
    configure(&mut config);
    let model = plimsoll_engine::ReplicaModel::new(
        &config.architecture,
        &config.variant,
        &config.accelerator,
        &config.shape,
        &config.engine,
    );
    let coefficients = model.unwrap().coefficients(2000.0);
    let engine = EngineServer::start(config).await.unwrap();
    engine.ready().await;
    (engine, coefficients)
}

/// A request's body that is in order.
pub const BODY: &str = r#"{"model":"chat-model","messages":[]}"#;

/// A request as bytes on a connection.
pub fn raw_request(headers: &str, body: &str) -> String {
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{headers}\r\n{body}")
}

/// Other requests are answered as ever.
pub async fn still_serves(gateway: &AgentHandle) {
    let got = send(chat(gateway.addr(), true)).await;
    assert_eq!((got.status, got.content()), (200, "t0 t1 t2 ".to_owned()));
}
