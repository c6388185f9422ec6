//! The endpoint picker behind a real Envoy, with the configuration of docs/interop.md. Where Envoy cannot be had
//! (`scripts/test-tools` gets it from PyPI) nothing is tested, and said so.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use plimsoll_agent::AgentHandle;
use plimsoll_fleet::StepCoefficients;
use plimsoll_simulator::engine_server::EngineServer;
use serde_json::{Value, json};
use support::*;

const SPEED: f64 = 50.0;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Envoy's program: of `PLIMSOLL_ENVOY`, of the path, or of what `scripts/test-tools` installed.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("PLIMSOLL_ENVOY").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("envoy"));
    let installed = workspace().join(".cache/venv/bin/envoy");
    named.into_iter().chain(on_path).chain([installed]).find(|p| p.is_file())
}

/// The configuration that the page shows.
fn documented() -> String {
    let page = std::fs::read_to_string(workspace().join("docs/interop.md")).unwrap();
    let after = page.split("```yaml\n").find(|block| block.starts_with("static_resources:")).unwrap();
    after.split("```").next().unwrap().to_owned()
}

async fn engine() -> (EngineServer, StepCoefficients) {
    simulated_engine(|config| {
        config.served_model = "chat-model".into();
        config.speed = SPEED;
    })
    .await
}

/// Two engines, a gateway that picks among them, and Envoy in front of all.
struct World {
    envoy: Child,
    address: SocketAddr,
    gateway: AgentHandle,
    engines: Vec<EngineServer>,
    _folder: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.envoy.kill();
        let _ = self.envoy.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl World {
    async fn start(program: &Path, change: impl Fn(String) -> String) -> Self {
        let (mut engines, mut endpoints) = (Vec::new(), Vec::new());
        for i in 0..2 {
            let (engine, coefficients) = engine().await;
            let mut e = endpoint(&format!("r{i}"), "n1", engine.addr(), None);
            e.engine_model = "chat-model".into();
            e.coefficients = coefficients;
            endpoints.push(e);
            engines.push(engine);
        }
        let gateway = agent("gw", None, |c| {
            c.time_scale = SPEED;
            c.picker_listen = Some(([127, 0, 0, 1], 0).into());
        })
        .await;
        gateway.set_routes(table(1, endpoints));
        let port = free_port();
        let ports = [
            ("10000", port),
            ("8000", engines[0].addr().port()),
            ("8001", engines[1].addr().port()),
            ("9002", gateway.picker_addr().unwrap().port()),
        ];
        let mut config = change(documented());
        for (shown, real) in ports {
            let shown = format!("port_value: {shown}}}");
            assert_eq!(config.matches(&shown).count(), 1, "{shown} in {config}");
            config = config.replace(&shown, &format!("port_value: {real}}}"));
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("envoy.yaml");
        std::fs::write(&file, config).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let envoy = Command::new(program)
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning", "-c"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut world = Self { envoy, address, gateway, engines, _folder: folder };
        for _ in 0..600 {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return world;
            }
            if let Some(status) = world.envoy.try_wait().unwrap() {
                let log = std::fs::read_to_string(world._folder.path().join("log")).unwrap();
                panic!("Envoy ended with {status}: {log}");
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("Envoy does not listen")
    }

    async fn chat(&self, content: &str, more: Value) -> Got {
        let mut body = json!({"model": "chat-model", "stream": true, "max_tokens": 12, "ignore_eos": true,
            "messages": [{"role": "user", "content": content}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        send(post(self.address, "/v1/chat/completions", body.to_string())).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_through_envoy_reach_the_replica_that_was_picked() {
    let Some(program) = program() else {
        // Past the capture of output, which is shown for failures alone.
        writeln!(std::io::stdout(), "not run: no Envoy on PATH nor in .cache/venv (make test-tools)")
            .unwrap();
        return;
    };
    let world = World::start(&program, |config| config).await;
    // A conversation stays where its prompt is cached, and the answer says who that is.
    let mut homes = Vec::new();
    for conversation in ["red", "green", "blue"] {
        let content = format!("tell me about {conversation}. ").repeat(300);
        for _ in 0..3 {
            let got = world.chat(&content, json!({})).await;
            assert_eq!(got.status, 200, "{}", got.text);
            assert!(got.text.ends_with("data: [DONE]\n\n"), "{}", got.text);
            assert_eq!(got.events().iter().filter(|e| e["choices"][0]["delta"]["content"] != "").count(), 12);
            homes.push((conversation, got.header("x-plimsoll-replica").to_owned()));
        }
    }
    for of in homes.chunks(3) {
        assert!(of.iter().all(|h| h == &of[0] && !h.1.is_empty()), "{homes:?}");
    }
    let by_engine: Vec<usize> = world.engines.iter().map(|e| e.stats().finished as usize).collect();
    let said: Vec<usize> = ["r0", "r1"].iter().map(|r| homes.iter().filter(|h| h.1 == *r).count()).collect();
    assert_eq!(by_engine, said, "who answered is who was named");
    let traffic = world.gateway.take_traffic().remove(0);
    assert_eq!((traffic.arrived, traffic.finished, traffic.failed), (9, 9, 0));
    assert_eq!(traffic.ttft_ms.count(), 9, "tokens were seen as they came");

    // A prompt of 100,000 tokens, and an answer that does not stream.
    let got = world.chat(&"many ".repeat(80_000), json!({"stream": false})).await;
    assert_eq!(got.status, 200, "{}", got.text);
    assert!(got.json()["usage"]["prompt_tokens"].as_u64() >= Some(100_000), "{}", got.text);
    assert_eq!(world.gateway.take_traffic()[0].input_tokens.sum as u64, got.json()["usage"]["prompt_tokens"]);

    // What is refused is refused by us, in OpenAI's shape.
    let got = world.chat("x", json!({"model": "other"})).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (404, Some("model_not_found")));
    assert_eq!(got.header("content-type"), "application/json");
    let mut models = post(world.address, "/v1/models", "");
    *models.method_mut() = http::Method::GET;
    assert_eq!(send(models).await.json()["data"][0]["id"], "chat-model");

    // A replica dies: each request that was to go there goes to the other.
    world.engines[0].kill();
    for i in 0..8 {
        let got = world.chat(&format!("after {i}"), json!({})).await;
        assert_eq!((got.status, got.header("x-plimsoll-replica")), (200, "r1"), "{}", got.text);
    }
    world.engines[1].kill();
    assert_eq!(world.chat("anybody?", json!({})).await.status, 503);
    assert_eq!(world.gateway.take_traffic()[0].failed, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_may_be_buffered_by_envoy() {
    let Some(program) = program() else {
        writeln!(std::io::stdout(), "not run: no Envoy on PATH nor in .cache/venv (make test-tools)")
            .unwrap();
        return;
    };
    let buffered = |config: String| {
        let config = config.replace("request_body_mode: FULL_DUPLEX_STREAMED", "request_body_mode: BUFFERED");
        config
            .replace("response_body_mode: FULL_DUPLEX_STREAMED", "response_body_mode: NONE")
            .replace("trailer_mode: SEND", "trailer_mode: SKIP")
    };
    let world = World::start(&program, buffered).await;
    for i in 0..4 {
        let got = world.chat(&format!("number {i} ").repeat(200), json!({})).await;
        assert_eq!(got.status, 200, "{}", got.text);
        assert!(got.text.ends_with("data: [DONE]\n\n"), "{}", got.text);
        assert!(!got.header("x-plimsoll-replica").is_empty());
    }
    let finished: u64 = world.engines.iter().map(|e| e.stats().finished).sum();
    assert_eq!(finished, 4);
    // They are demand; how long their answers took was not shown.
    let traffic = world.gateway.take_traffic().remove(0);
    assert_eq!((traffic.arrived, traffic.finished, traffic.refused, traffic.failed), (4, 0, 0, 0));
}
