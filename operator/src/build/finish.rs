//! What an engine does between being told to go, by whomever, and SIGTERM. Pure.
//!
//! Engines cut their answers off at SIGTERM. A pod that is deleted by its operator was drained before; one that is evicted
//! was not, and its agent, which sees the deletion, only stops sending it more. So the pod itself waits (`preStop`) until
//! its engine has had nothing to do for [`QUIET_SECONDS`], which covers the time until every agent knows. (A plain sleep
//! would do too, but the kubelet runs a hook to its end whatever happens meanwhile, and drains would take minutes.)

use k8s_openapi::api::core::v1::{EnvVar, ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use plimsoll_fleet::EngineKind;

use super::group::Seat;
use super::pod::literal;
use crate::names::ENGINE_PORT;

/// An engine counts as idle once it has had nothing to do for so long, seconds.
const QUIET_SECONDS: u32 = 5;

/// Variable of the pods that do not lead a group: the host whose engine they work for.
const LEADER: &str = "PLIMSOLL_LEADER";

/// Asks `/metrics` once a second; ends when the engine is idle, gone, or `limit` seconds have passed.
const WATCH_PYTHON: &str = r#"import os, re, time, urllib.request
url = "http://%s:{port}/metrics" % os.environ.get("{leader}", "127.0.0.1")
busy = re.compile(r"^(?:{metrics})(?:\{.*\})?\s+(\S+)", re.M)
end = time.monotonic() + {limit}
quiet = time.monotonic()
while time.monotonic() < end and time.monotonic() - quiet < {quiet}:
    try:
        page = urllib.request.urlopen(url, timeout=2).read().decode()
    except OSError:
        break
    if any(float(n) > 0 for n in busy.findall(page)):
        quiet = time.monotonic()
    time.sleep(1)
"#;

/// The same for images without Python. `curl` is what llama.cpp's images check their own health with.
const WATCH_SHELL: &str = r#"left={limit}; quiet=0
while [ "$left" -gt 0 ] && [ "$quiet" -lt {quiet} ]; do
  page=$(curl -fsm 2 http://127.0.0.1:{port}/metrics) || break
  if printf '%s\n' "$page" | grep -Eq '^({metrics})(\{.*\})? +[0-9.]*[1-9]'; then quiet=0; else quiet=$((quiet + 1)); fi
  left=$((left - 1)); sleep 1
done
"#;

/// The hook of one pod of an engine whose requests may take `limit_seconds` more; none where there is nothing to ask.
pub fn hook(kind: EngineKind, seat: &Seat, limit_seconds: i64) -> Option<Lifecycle> {
    let watch = |text: &str, metrics: &str| {
        text.replace("{metrics}", metrics)
            .replace("{port}", &ENGINE_PORT.to_string())
            .replace("{leader}", LEADER)
            .replace("{limit}", &limit_seconds.to_string())
            .replace("{quiet}", &QUIET_SECONDS.to_string())
    };
    let run = |program: &[&str], text: String| {
        let command = program.iter().map(|p| (*p).to_owned()).chain([text]).collect();
        LifecycleHandler { exec: Some(ExecAction { command: Some(command) }), ..LifecycleHandler::default() }
    };
    let pre_stop = match kind {
        _ if limit_seconds <= 0 => return None,
        EngineKind::Vllm => run(
            &["python3", "-c"],
            watch(WATCH_PYTHON, "vllm:num_requests_running|vllm:num_requests_waiting"),
        ),
        EngineKind::Sglang => {
            run(&["python3", "-c"], watch(WATCH_PYTHON, "sglang:num_running_reqs|sglang:num_queue_reqs"))
        }
        EngineKind::Llamacpp => {
            run(&["sh", "-c"], watch(WATCH_SHELL, "llamacpp:requests_processing|llamacpp:requests_deferred"))
        }
        // Answers when it is idle. Its workers serve nothing that could be asked.
        EngineKind::Simulated if seat.leads => LifecycleHandler {
            http_get: Some(HTTPGetAction {
                path: Some("/idle".to_owned()),
                port: IntOrString::Int(ENGINE_PORT),
                ..HTTPGetAction::default()
            }),
            ..LifecycleHandler::default()
        },
        EngineKind::Simulated | EngineKind::External => return None,
    };
    Some(Lifecycle { pre_stop: Some(pre_stop), ..Lifecycle::default() })
}

/// What the hook of a pod that does not lead needs to know.
pub fn variable(seat: &Seat) -> Option<EnvVar> {
    (!seat.leads).then(|| literal(LEADER, &seat.leader))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::process::Command;
    use std::time::Duration;
    use tokio::time::Instant;

    fn command(kind: EngineKind, limit: i64) -> Vec<String> {
        hook(kind, &Seat::alone(&[]), limit).unwrap().pre_stop.unwrap().exec.unwrap().command.unwrap()
    }

    /// Serves a metrics page on a free port: busy for so long, then idle.
    fn engine(busy: &'static str, idle: &'static str, for_: Duration) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let began = Instant::now();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 1024]);
                let body = if began.elapsed() < for_ { busy } else { idle };
                let length = body.len();
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            }
        });
        port
    }

    /// How long the hook takes beside an engine at this port; `None` where its program is not installed.
    fn wait(kind: EngineKind, port: u16, limit: i64) -> Option<Duration> {
        let words: Vec<String> = command(kind, limit)
            .iter()
            .map(|w| w.replace(&ENGINE_PORT.to_string(), &port.to_string()))
            .collect();
        let missing = kind == EngineKind::Llamacpp && Command::new("curl").arg("--version").output().is_err();
        let began = Instant::now();
        let done = Command::new(&words[0]).args(&words[1..]).output().ok().filter(|_| !missing)?;
        assert!(done.status.success() && done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
        Some(began.elapsed())
    }

    #[test]
    fn hooks_wait_until_the_engine_has_been_idle_for_a_while() {
        let cases = [
            (
                EngineKind::Vllm,
                "# HELP x\nvllm:num_requests_running{engine=\"0\",model_name=\"a b\"} 0.0\nvllm:num_requests_waiting{engine=\"0\"} 2.0\n",
                "vllm:num_requests_running{engine=\"0\"} 0.0\nvllm:num_requests_waiting{engine=\"0\"} 0.0\nother 7\n",
            ),
            (
                EngineKind::Llamacpp,
                "llamacpp:requests_processing 10\nllamacpp:requests_deferred 0\n",
                "llamacpp:requests_processing 0\nllamacpp:requests_deferred 0\nllamacpp:tokens_predicted_total 9\n",
            ),
        ];
        std::thread::scope(|scope| {
            for (kind, busy, idle) in cases {
                scope.spawn(move || {
                    let port = engine(busy, idle, Duration::from_secs(2));
                    let Some(took) = wait(kind, port, 60) else { return };
                    assert!((6.0..30.0).contains(&took.as_secs_f64()), "{kind:?}: {took:?}");
                });
                scope.spawn(move || {
                    let port = engine(busy, busy, Duration::from_secs(600));
                    let Some(took) = wait(kind, port, 3) else { return };
                    assert!((2.0..30.0).contains(&took.as_secs_f64()), "{kind:?}: {took:?}");
                });
                // An engine that is gone keeps nobody waiting. (Port 1 answers nobody.)
                scope.spawn(move || {
                    let Some(took) = wait(kind, 1, 60) else { return };
                    assert!(took < Duration::from_secs(30), "{kind:?}: {took:?}");
                });
            }
        });
    }

    #[test]
    fn workers_ask_their_leader_and_who_has_nothing_to_ask_does_not_wait() {
        let leader = "chat-1.default".to_owned();
        let seat =
            Seat { leads: false, rank: "1".to_owned(), size: 2, leader, nodes: Vec::new(), in_set: false };
        assert!(hook(EngineKind::Simulated, &seat, 60).is_none());
        assert!(hook(EngineKind::Vllm, &seat, 60).is_some());
        assert_eq!(variable(&seat).unwrap().value.as_deref(), Some("chat-1.default"));
        assert!(variable(&Seat::alone(&[])).is_none());
        assert!(hook(EngineKind::Vllm, &Seat::alone(&[]), 0).is_none());
    }
}
