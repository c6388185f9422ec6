//! Probes and lifecycle hooks, over real sockets.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Where container ports really are.
pub(super) type Ports = std::sync::Arc<dyn Fn(u16) -> SocketAddr + Send + Sync>;

/// What the probes of a container say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The startup probe has succeeded, or there is none.
    pub(super) started: bool,
    /// The readiness probe succeeds, or there is none.
    pub(super) ready: bool,
    /// Neither the startup nor the liveness probe has given up.
    pub(super) alive: bool,
}

/// Runs a container's probes until the receiver is dropped.
pub(super) async fn watch_container(container: Container, ports: Ports, out: watch::Sender<Verdict>) {
    if let Some(probe) = &container.startup_probe {
        if !until_success(probe, &container, &ports, &out).await {
            out.send_modify(|v| v.alive = false);
            return;
        }
        out.send_modify(|v| v.started = true);
    }
    let readiness = async {
        if let Some(probe) = &container.readiness_probe {
            repeat(probe, &container, &ports, &out, |v, ok| v.ready = ok).await;
        }
    };
    let liveness = async {
        if let Some(probe) = &container.liveness_probe {
            repeat(probe, &container, &ports, &out, |v, ok| v.alive &= ok).await;
        }
    };
    tokio::join!(readiness, liveness);
}

/// The verdict on a container before any probe has run.
pub(super) fn first_verdict(container: &Container) -> Verdict {
    Verdict {
        started: container.startup_probe.is_none(),
        ready: container.readiness_probe.is_none(),
        alive: true,
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default))
}

fn threshold(value: Option<i32>, default: i32) -> i32 {
    value.filter(|v| *v > 0).unwrap_or(default)
}

async fn until_success(
    probe: &Probe,
    container: &Container,
    ports: &Ports,
    out: &watch::Sender<Verdict>,
) -> bool {
    sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let mut failures = 0;
    while !out.is_closed() {
        if run(probe, container, ports).await {
            return true;
        }
        failures += 1;
        if failures >= threshold(probe.failure_threshold, 3) {
            return false;
        }
        sleep(seconds(probe.period_seconds, 10)).await;
    }
    false
}

/// Runs a probe for ever and reports each change of its thresholded result.
async fn repeat(
    probe: &Probe,
    container: &Container,
    ports: &Ports,
    out: &watch::Sender<Verdict>,
    set: impl Fn(&mut Verdict, bool),
) {
    sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let (mut successes, mut failures) = (0, 0);
    while !out.is_closed() {
        if run(probe, container, ports).await {
            (successes, failures) = (successes + 1, 0);
        } else {
            (successes, failures) = (0, failures + 1);
        }
        let verdict = if successes >= threshold(probe.success_threshold, 1) {
            Some(true)
        } else if failures >= threshold(probe.failure_threshold, 3) {
            Some(false)
        } else {
            None
        };
        if let Some(ok) = verdict {
            out.send_if_modified(|v| {
                let before = *v;
                set(v, ok);
                *v != before
            });
        }
        sleep(seconds(probe.period_seconds, 10)).await;
    }
}

/// One probe. `exec` and `grpc` probes succeed: there is no container to run them in.
async fn run(probe: &Probe, container: &Container, ports: &Ports) -> bool {
    let limit = seconds(probe.timeout_seconds, 1);
    if let Some(get) = &probe.http_get {
        return http_get(get, container, ports, limit).await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        let Some(port) = port_number(&tcp.port, container) else { return false };
        let connect = tokio::net::TcpStream::connect(ports(port));
        return matches!(timeout(limit, connect).await, Ok(Ok(_)));
    }
    true
}

fn port_number(port: &IntOrString, container: &Container) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name));
            named.and_then(|p| u16::try_from(p.container_port).ok()).or_else(|| name.parse().ok())
        }
    }
}

/// A GET against a container port; success is a status from 200 to 399 within the limit.
pub(super) async fn http_get(
    get: &HTTPGetAction,
    container: &Container,
    ports: &Ports,
    limit: Duration,
) -> bool {
    let Some(port) = port_number(&get.port, container) else { return false };
    let path = get.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let uri = format!("http://{}{slash}{path}", ports(port));
    let mut request = http::Request::get(uri).header(http::header::USER_AGENT, "kube-probe/1.35");
    for header in get.http_headers.iter().flatten() {
        request = request.header(&header.name, &header.value);
    }
    let Ok(request) = request.body(Empty::<Bytes>::new()) else { return false };
    let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    match timeout(limit, client.request(request)).await {
        Ok(Ok(response)) => (200..400).contains(&response.status().as_u16()),
        _ => false,
    }
}
