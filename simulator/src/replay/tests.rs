//! Replays against the simulated engine server and against servers that misbehave.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::routing::{get, post};
use parking_lot::Mutex;
use plimsoll_fleet::{Objective, Percentile};
use tokio::net::TcpListener;

use super::*;
use crate::engine_server::{EngineServer, EngineServerConfig};
use crate::trace::{Arrivals, GeneratorConfig, Profile, TraceRequest, generate};

async fn engine() -> EngineServer {
    let mut config = EngineServerConfig::from_presets("llama-3.1-8b", "h100", 1, "bf16").unwrap();
    config.speed = 20.0;
    EngineServer::start(config).await.unwrap()
}

fn trace(requests: usize, input_tokens: u32, output_tokens: u32) -> Trace {
    let requests = (0..requests)
        .map(|i| TraceRequest { at_ms: i as f64 * 50.0, input_tokens, output_tokens, blocks: vec![] })
        .collect();
    Trace { name: "test".into(), requests, notes: vec![] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_is_replayed_with_its_lengths() {
    let engine = engine().await;
    let mut generator = GeneratorConfig::new(Profile::Constant { rps: 10.0 }, 10.0, 1);
    generator.arrivals = Arrivals::Even;
    let trace = generate(&generator);
    let (input, output): (u64, u64) = trace
        .requests
        .iter()
        .fold((0, 0), |(i, o), r| (i + u64::from(r.input_tokens.max(8)), o + u64::from(r.output_tokens)));
    let mut config = ReplayConfig::new(engine.base_url(), "llama-3.1-8b", trace);
    config.speed = 20.0;
    config.time_scale = 20.0;
    config.slo.e2e = Some(Objective { percentile: Percentile::P99, ms: 3.6e6 });
    let seen = Mutex::new(Vec::new());
    let report = Replay::run(config, |p| seen.lock().push(p)).await.unwrap();
    assert_eq!((report.requests, report.answered, report.failed()), (100, 100, 0), "{report}");
    assert_eq!((report.input_tokens, report.output_tokens), (input, output));
    assert_eq!(report.attainment, Some(1.0));
    assert!(report.met());
    assert!(report.ttft.ms.p50 >= 17.0 && report.ttft.ms.p50 <= report.ttft.ms.p99, "{report}");
    assert!(report.tpot.ms.count > 90 && report.tpot.ms.p50 > 1.0, "{report}");
    let last = *seen.lock().last().unwrap();
    assert_eq!((last.done, last.total, last.in_flight, last.errors), (100, 100, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_become_shared_prefixes() {
    let engine = engine().await;
    let requests = [vec![1, 2, 3], vec![1, 2, 4], vec![5, 6, 7]]
        .into_iter()
        .enumerate()
        .map(|(i, blocks)| TraceRequest {
            at_ms: i as f64 * 20_000.0,
            input_tokens: 1500,
            output_tokens: 3,
            blocks,
        })
        .collect();
    let trace = Trace { name: "blocks".into(), requests, notes: vec![] };
    let mut config = ReplayConfig::new(format!("http://{}", engine.addr()), "llama-3.1-8b", trace);
    config.speed = 40.0;
    let report = Replay::run(config, |_| ()).await.unwrap();
    assert_eq!(report.answered, 3, "{report}");
    // Two blocks of 512 tokens behind four of template, in whole KV blocks of 16.
    assert_eq!(report.cached_tokens, 1024, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_dies_is_an_error_by_kind() {
    let mut slow = EngineServerConfig::from_presets("llama-3.1-8b", "h100", 1, "bf16").unwrap();
    slow.speed = 1.0;
    let engine = Arc::new(EngineServer::start(slow).await.unwrap());
    let config = ReplayConfig::new(engine.base_url(), "llama-3.1-8b", trace(4, 50, 20_000));
    let victim = engine.clone();
    let report = Replay::run(config, |p| {
        if p.in_flight == 4 && victim.stats().generation_tokens > 20 {
            victim.kill();
        }
    })
    .await
    .unwrap();
    assert_eq!(report.failed(), 4, "{report}");
    assert!(report.errors.contains_key("stream cut off"), "{report}");
}

/// A server whose answer to every generation request is `answer`.
async fn fake(answer: &'static str, status: u16) -> (String, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let app = Router::new()
        .route("/v1/models", get(|| async { r#"{"object":"list","data":[{"id":"m"}]}"# }))
        .route(
            "/v1/chat/completions",
            post(move || async move {
                counter.fetch_add(1, Ordering::SeqCst);
                (http_status(status), answer)
            }),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, count)
}

fn http_status(status: u16) -> axum::http::StatusCode {
    axum::http::StatusCode::from_u16(status).unwrap()
}

#[tokio::test]
async fn bad_answers_are_counted_by_kind() {
    for (answer, status, kind) in [
        ("busy", 503, "HTTP 503"),
        ("data: {oops\n\n", 200, "malformed event"),
        ("data: {\"error\":{\"message\":\"boom\"}}\n\ndata: [DONE]\n\n", 200, "error in stream"),
        ("data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n", 200, "stream cut off"),
        ("data: [DONE]\n\n", 200, "empty answer"),
    ] {
        let (url, count) = fake(answer, status).await;
        let report = Replay::run(ReplayConfig::new(url, "m", trace(3, 10, 5)), |_| ()).await.unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 3);
        assert_eq!(report.errors.get(kind).map(|e| e.count), Some(3), "{report}");
    }
}

#[tokio::test]
async fn answers_without_usage_are_counted_by_event() {
    let answer = ": ping\r\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\r\n\r\n\
                  data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\r\n\r\n\
                  data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}],\"usage\":null}\r\n\r\ndata: [DONE]\r\n\r\n";
    let (url, _) = fake(answer, 200).await;
    let report = Replay::run(ReplayConfig::new(url, "m", trace(2, 10, 2)), |_| ()).await.unwrap();
    assert_eq!((report.answered, report.output_tokens, report.tpot.ms.count), (2, 4, 2), "{report}");
}

#[tokio::test]
async fn what_cannot_begin_says_why() {
    let engine = engine().await;
    let good = ReplayConfig::new(engine.base_url(), "llama-3.1-8b", trace(1, 10, 1));
    let with = |change: fn(&mut ReplayConfig)| {
        let mut config = good.clone();
        change(&mut config);
        config
    };
    for (config, part) in [
        (with(|c| c.url = "127.0.0.1:80".into()), "is no http:// address"),
        (with(|c| c.url = "http://127.0.0.1:1/v1".into()), "is the endpoint up"),
        (with(|c| c.model = "other".into()), "it serves: llama-3.1-8b"),
        (with(|c| c.speed = 0.0), "speed: 0 is not a positive number"),
        (with(|c| c.trace.requests.clear()), "has no requests"),
        (with(|c| c.max_in_flight = 0), "max in flight"),
        (with(|c| c.headers = vec![("bad name".into(), "v".into())]), "headers: \"bad name\""),
        (with(|c| c.api_key = Some("a\nb".into())), "api key"),
    ] {
        let e = Replay::run(config, |_| ()).await.unwrap_err().to_string();
        assert!(e.contains(part), "{e}");
    }
}

#[tokio::test]
async fn slow_answers_time_out_and_excess_requests_are_not_sent() {
    let mut slow = EngineServerConfig::from_presets("llama-3.1-8b", "h100", 1, "bf16").unwrap();
    slow.speed = 1.0;
    let engine = EngineServer::start(slow).await.unwrap();
    let mut config = ReplayConfig::new(engine.base_url(), "llama-3.1-8b", trace(5, 10, 50_000));
    config.speed = 1000.0;
    config.timeout = Duration::from_millis(300);
    config.max_in_flight = 3;
    let report = Replay::run(config, |_| ()).await.unwrap();
    assert_eq!(report.errors.get("timeout").map(|e| e.count), Some(3), "{report}");
    assert_eq!(report.errors.get("in-flight limit").map(|e| e.count), Some(2), "{report}");
}

#[tokio::test]
async fn stopping_reports_what_there_is() {
    let engine = engine().await;
    let config = ReplayConfig::new(engine.base_url(), "llama-3.1-8b", trace(10_000, 10, 1));
    let stop = config.stop.clone();
    let report = Replay::run(config, |p| {
        if p.done >= 3 {
            stop.cancel();
        }
    })
    .await
    .unwrap();
    assert!(report.requests >= 3 && report.requests < 10_000);
    assert!(report.to_string().contains("stopped early"), "{report}");
}
