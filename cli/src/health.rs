//! What a part that runs alone tells the cluster it runs in: `/livez` and `/readyz` by named gate, and `/metrics`.
//!
//! The probes speak as the Kubernetes API server's do: `ok` if every gate is open, each gate's state with `?verbose` or if
//! one is shut, `?exclude=GATE` to leave one out, `/readyz/GATE` for one alone.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// An address to call oneself at: where a part listens on every address, the loopback one.
pub fn own_address(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

/// Keeps a gate current until `stop`: asks every 5 seconds, and takes 5 seconds without an answer for a no.
pub async fn keep_asking<F>(gate: Watched, stop: CancellationToken, ask: impl Fn() -> F)
where
    F: Future<Output = Opinion>,
{
    const PERIOD: Duration = Duration::from_secs(5);
    loop {
        let answer = tokio::time::timeout(PERIOD, ask());
        gate.set(answer.await.unwrap_or_else(|_| Err(format!("no answer within {} s", PERIOD.as_secs()))));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Whether a gate is open; if not, why and what to do.
pub type Opinion = Result<(), String>;

/// An opinion that somebody keeps up to date.
#[derive(Clone)]
pub struct Watched(Arc<Mutex<Opinion>>);

impl Watched {
    /// Shut for now, for this reason.
    pub fn shut(why: &str) -> Self {
        Self(Arc::new(Mutex::new(Err(why.to_owned()))))
    }

    /// The newest opinion.
    pub fn set(&self, opinion: Opinion) {
        *self.0.lock() = opinion;
    }

    /// The last opinion.
    pub fn get(&self) -> Opinion {
        self.0.lock().clone()
    }
}

/// Which question a gate helps to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Would a restart help? Only what a restart can mend belongs here.
    Live,
    /// Should it get work now?
    Ready,
}

struct Gate {
    name: &'static str,
    question: Question,
    look: Box<dyn Fn() -> Opinion + Send + Sync>,
}

/// The gates and metrics of one part.
pub struct Health {
    gates: Vec<Gate>,
    metrics: Arc<Mutex<Registry>>,
    more: Router,
}

impl Health {
    /// Metrics, and one gate for each question: `runtime` is open if an answer comes at all, `shutdown` until `stop`.
    pub fn new(metrics: Registry, stop: CancellationToken) -> Self {
        let metrics = Arc::new(Mutex::new(metrics));
        Self { gates: Vec::new(), metrics, more: Router::new() }.live("runtime", || Ok(())).ready(
            "shutdown",
            move || if stop.is_cancelled() { Err("it is stopping".to_owned()) } else { Ok(()) },
        )
    }

    /// Adds a gate of `/livez`.
    #[must_use]
    pub fn live(self, name: &'static str, look: impl Fn() -> Opinion + Send + Sync + 'static) -> Self {
        self.gate(name, Question::Live, look)
    }

    /// Adds a gate of `/readyz`.
    #[must_use]
    pub fn ready(self, name: &'static str, look: impl Fn() -> Opinion + Send + Sync + 'static) -> Self {
        self.gate(name, Question::Ready, look)
    }

    /// Serves more under the same address.
    #[must_use]
    pub fn routes(mut self, more: Router) -> Self {
        self.more = self.more.merge(more);
        self
    }

    fn gate(
        mut self,
        name: &'static str,
        question: Question,
        look: impl Fn() -> Opinion + Send + Sync + 'static,
    ) -> Self {
        self.gates.push(Gate { name, question, look: Box::new(look) });
        self
    }

    /// Listens; it answers until the handle is aborted, so also while the part stops.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn serve(mut self, listen: SocketAddr) -> Result<JoinHandle<()>, Failure> {
        let listener = TcpListener::bind(listen).await.map_err(|e| {
            Failure::caused(format!("probes and metrics cannot listen on {listen}"), e)
                .hint("stop what uses the port, or choose another with --http-listen")
        })?;
        let addr =
            listener.local_addr().map_err(|e| Failure::caused("the probes' listener has no address", e))?;
        let more = std::mem::take(&mut self.more);
        let router = Router::new()
            .route("/livez", get(live))
            .route("/livez/{gate}", get(live_one))
            .route("/readyz", get(ready))
            .route("/readyz/{gate}", get(ready_one))
            .route("/metrics", get(metrics))
            .with_state(Arc::new(self))
            .merge(more);
        tracing::info!(%addr, "probes and metrics");
        Ok(tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "probes and metrics stopped");
            }
        }))
    }

    fn answer(&self, question: Question, only: Option<&str>, query: Option<&str>) -> Response {
        let seen: Vec<(&str, Opinion)> = self
            .gates
            .iter()
            .filter(|g| g.question == question && only.is_none_or(|name| name == g.name))
            .map(|g| (g.name, (g.look)()))
            .collect();
        if let (Some(name), true) = (only, seen.is_empty()) {
            return (StatusCode::NOT_FOUND, format!("there is no gate {name:?}\n")).into_response();
        }
        let path = if question == Question::Live { "livez" } else { "readyz" };
        let (open, text) = report(path, &seen, query.unwrap_or_default());
        let status = if open { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, text).into_response()
    }
}

/// The answer's text, and whether every gate that counts is open.
fn report(path: &str, gates: &[(&str, Opinion)], query: &str) -> (bool, String) {
    let pairs = || query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let verbose = pairs().any(|(key, _)| key == "verbose");
    let excluded = |name: &str| pairs().any(|(key, value)| key == "exclude" && value == name);
    let open = gates.iter().all(|(name, opinion)| opinion.is_ok() || excluded(name));
    if open && !verbose {
        return (true, "ok".to_owned());
    }
    let mut text = String::new();
    for (name, opinion) in gates {
        let _ = match opinion {
            _ if excluded(name) => writeln!(text, "[+]{name} excluded: ok"),
            Ok(()) => writeln!(text, "[+]{name} ok"),
            Err(why) => writeln!(text, "[-]{name} failed: {why}"),
        };
    }
    let _ = writeln!(text, "{path} check {}", if open { "passed" } else { "failed" });
    (open, text)
}

async fn live(State(health): State<Arc<Health>>, RawQuery(query): RawQuery) -> Response {
    health.answer(Question::Live, None, query.as_deref())
}

async fn live_one(
    State(health): State<Arc<Health>>,
    Path(gate): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    health.answer(Question::Live, Some(&gate), query.as_deref())
}

async fn ready(State(health): State<Arc<Health>>, RawQuery(query): RawQuery) -> Response {
    health.answer(Question::Ready, None, query.as_deref())
}

async fn ready_one(
    State(health): State<Arc<Health>>,
    Path(gate): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    health.answer(Question::Ready, Some(&gate), query.as_deref())
}

async fn metrics(State(health): State<Arc<Health>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &health.metrics.lock()) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_reported_as_the_api_server_does() {
        let shut = [("a", Ok(())), ("b", Err("no routes yet".to_owned()))];
        let (open, text) = report("readyz", &shut, "");
        assert!(!open);
        assert_eq!(text, "[+]a ok\n[-]b failed: no routes yet\nreadyz check failed\n");
        assert_eq!(report("readyz", &shut, "exclude=b"), (true, "ok".to_owned()));
        assert_eq!(
            report("readyz", &shut, "verbose&exclude=b"),
            (true, "[+]a ok\n[+]b excluded: ok\nreadyz check passed\n".to_owned())
        );
        assert_eq!(report("livez", &shut[..1], ""), (true, "ok".to_owned()));
        assert_eq!(
            report("livez", &shut[..1], "verbose"),
            (true, "[+]a ok\nlivez check passed\n".to_owned())
        );
    }

    #[tokio::test]
    async fn a_part_that_stops_is_not_ready_but_alive() {
        let stop = CancellationToken::new();
        let gate = Watched::shut("not yet");
        let health = Health::new(Registry::default(), stop.clone()).ready("x", {
            let gate = gate.clone();
            move || gate.get()
        });
        let status = |q, only| health.answer(q, only, None).status().as_u16();
        assert_eq!(status(Question::Ready, None), 503);
        gate.set(Ok(()));
        assert_eq!(status(Question::Ready, None), 200);
        stop.cancel();
        assert_eq!(status(Question::Ready, None), 503);
        assert_eq!(status(Question::Ready, Some("x")), 200);
        assert_eq!(status(Question::Ready, Some("y")), 404);
        assert_eq!(status(Question::Live, None), 200);
    }
}
