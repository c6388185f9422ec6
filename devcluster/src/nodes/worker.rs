//! The life of one pod on its node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::events;
use super::probe::{self, Ports, Verdict};
use super::runtime::{PodExit, PodLogs, PodRuntime, RunningPod, Stop};
use super::status::{self, Ended, State, View};
use super::{Options, PORTS_ANNOTATION};

/// What every worker shares.
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) runtime: Arc<dyn PodRuntime>,
    pub(super) options: Options,
    pub(super) logs: PodLogs,
}

/// What the node tells a pod's worker.
#[derive(Debug, Clone)]
pub(super) enum Signal {
    /// The pod as the API last showed it.
    Run(Arc<Pod>),
    /// The pod is no longer in the API.
    Gone,
    /// The node lost power: stop at once and report nothing.
    NodeDown,
}

/// Why a worker ends.
enum Leave {
    /// Nothing is left to do or to report.
    Silent,
    /// The pod is to be deleted from the API.
    Delete,
}

enum Supervised {
    Left(Leave),
    Exited(PodExit),
}

/// Runs a pod until it is gone.
pub(super) async fn run(shared: Arc<Shared>, signal: watch::Receiver<Signal>) {
    let Signal::Run(pod) = signal.borrow().clone() else { return };
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let mut worker = Worker {
        api: Api::namespaced(shared.client.clone(), &namespace),
        view: initial_view(&pod),
        shared,
        signal,
        pod: (*pod).clone(),
        written: None,
        name,
        namespace,
    };
    if let Leave::Delete = worker.live().await {
        worker.delete().await;
    }
    worker.shared.logs.remove(&worker.namespace, &worker.name);
}

struct Worker {
    shared: Arc<Shared>,
    api: Api<Pod>,
    signal: watch::Receiver<Signal>,
    pod: Pod,
    view: View,
    written: Option<Value>,
    name: String,
    namespace: String,
}

/// What is known of a pod before this worker starts it; one that ran before lost its containers.
fn initial_view(pod: &Pod) -> View {
    let now = Timestamp::now();
    let before = pod.status.as_ref();
    let container = before.and_then(|s| s.container_statuses.as_ref()?.first());
    let ran = container.and_then(|c| c.state.as_ref()?.running.as_ref());
    let lost = ran.map(|running| Ended {
        code: 255,
        reason: "Unknown".into(),
        message: Some("the container was lost when its node restarted".into()),
        started: running.started_at.as_ref().map(|t| t.0),
        finished: now,
    });
    View {
        state: State::Waiting { reason: "ContainerCreating".into(), message: None },
        restarts: container.map_or(0, |c| c.restart_count) + i32::from(lost.is_some()),
        last: lost,
        ready: false,
        started: false,
        pod_ip: None,
        start_time: before.and_then(|s| s.start_time.as_ref()).map_or(now, |t| t.0),
    }
}

impl Worker {
    async fn live(&mut self) -> Leave {
        let phase = self.pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            return self.until_deleted().await;
        }
        let mut failures = 0;
        loop {
            if let Some(leave) = self.leaving() {
                return leave;
            }
            self.view.ready = false;
            let reason = State::Waiting { reason: "ContainerCreating".into(), message: None };
            if failures == 0 {
                self.report(reason).await;
            }
            let (runtime, pod) = (Arc::clone(&self.shared.runtime), self.pod.clone());
            let started = tokio::select! {
                started = runtime.start(&pod) => started,
                leave = self.until_leaving() => return leave,
            };
            let running = match started {
                Ok(running) => running,
                Err(error) => {
                    warn!(pod = self.name, namespace = self.namespace, %error, "pod does not start");
                    self.event("Warning", "Failed", &format!("Error: {error}")).await;
                    let waiting = State::Waiting { reason: error.reason, message: Some(error.message) };
                    self.report(waiting).await;
                    let delay = self.shared.options.backoff(failures);
                    failures += 1;
                    if let Some(leave) = self.pause(delay).await {
                        return leave;
                    }
                    continue;
                }
            };
            let began = Instant::now();
            let exit = match self.supervise(running).await {
                Supervised::Left(leave) => return leave,
                Supervised::Exited(exit) => exit,
            };
            let ended = self.ended(&exit);
            info!(pod = self.name, namespace = self.namespace, code = exit.code, "pod exited");
            let policy = self.pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
            if policy == "Never" || (policy == "OnFailure" && exit.code == 0) {
                self.report(State::Ended(ended)).await;
                return self.until_deleted().await;
            }
            self.view.last = Some(ended);
            self.view.restarts += 1;
            if began.elapsed() >= self.shared.options.restart_backoff_reset {
                failures = 0;
            }
            // The first crash restarts at once; from then on the wait doubles.
            if failures > 0 {
                let delay = self.shared.options.backoff(failures - 1);
                let names = self.container_names();
                let text = format!(
                    "back-off {}s restarting failed container={names} pod={}_{}({})",
                    delay.as_secs(),
                    self.name,
                    self.namespace,
                    self.pod.uid().unwrap_or_default()
                );
                self.event(
                    "Warning",
                    "BackOff",
                    &format!("Back-off restarting failed container {names} in pod {}", self.name),
                )
                .await;
                self.report(State::Waiting { reason: "CrashLoopBackOff".into(), message: Some(text) }).await;
                if let Some(leave) = self.pause(delay).await {
                    return leave;
                }
            }
            failures += 1;
        }
    }

    /// Watches over a started pod until it exits or has to go.
    async fn supervise(&mut self, running: RunningPod) -> Supervised {
        let began = Timestamp::now();
        let RunningPod { ip, ports: map, ready, mut exit, stop, logs } = running;
        if let Some(logs) = logs {
            self.shared.logs.set(&self.namespace, &self.name, logs);
        }
        self.publish_ports(&map).await;
        let ports: Ports =
            Arc::new(move |port| map.get(&port).copied().unwrap_or(std::net::SocketAddr::new(ip, port)));
        let mut probes = JoinSet::new();
        let mut verdicts: Vec<watch::Receiver<Verdict>> = Vec::new();
        for container in self.containers().to_vec() {
            let (out, verdict) = watch::channel(probe::first_verdict(&container));
            verdicts.push(verdict);
            probes.spawn(probe::watch_container(container, Arc::clone(&ports), out));
        }
        self.view.pod_ip = Some(ip.to_string());
        let names = self.container_names();
        self.event("Normal", "Started", &format!("Started container {names}")).await;
        let mut ready = ready;
        loop {
            let said = |verdict: &watch::Receiver<Verdict>| *verdict.borrow();
            self.view.started = verdicts.iter().all(|v| said(v).started);
            self.view.ready = self.view.started
                && verdicts.iter().all(|v| said(v).ready)
                && ready.as_ref().is_none_or(|r| *r.borrow());
            if !verdicts.iter().all(|v| said(v).alive) {
                self.event(
                    "Normal",
                    "Killing",
                    &format!("Container {names} failed liveness probe, will be restarted"),
                )
                .await;
                let grace = self.grace();
                let _ = timeout(grace + Duration::from_secs(1), stop(grace)).await;
                let message = Some("the container failed its liveness or startup probe".to_owned());
                return Supervised::Exited(PodExit { code: 137, reason: None, message });
            }
            self.report(State::Running { since: began }).await;
            tokio::select! {
                ended = &mut exit => {
                    // Whatever the runtime still holds for the pod goes too.
                    let _ = timeout(Duration::from_secs(1), stop(Duration::ZERO)).await;
                    return Supervised::Exited(ended);
                }
                () = changed(&mut ready) => {}
                () = any_changed(&mut verdicts) => {}
                _ = self.signal.changed() => {
                    self.take_signal();
                    match self.leaving() {
                        None => {}
                        Some(Leave::Silent) => {
                            let _ = timeout(Duration::from_secs(1), stop(Duration::ZERO)).await;
                            return Supervised::Left(Leave::Silent);
                        }
                        Some(Leave::Delete) => return Supervised::Left(self.terminate(exit, stop, &ports).await),
                    }
                }
            }
        }
    }

    /// Graceful stop: hooks, then the runtime's own stop, within the grace period and not a moment longer.
    async fn terminate(&mut self, exit: BoxFuture<'static, PodExit>, stop: Stop, ports: &Ports) -> Leave {
        let grace = self.grace();
        let deadline = Instant::now() + grace;
        let names = self.container_names();
        self.event("Normal", "Killing", &format!("Stopping container {names}")).await;
        let containers = self.containers().to_vec();
        let hooks = containers.iter().map(|container| pre_stop(container, ports, grace));
        let mut signal = self.signal.clone();
        let left = tokio::select! {
            _ = timeout(grace, futures::future::join_all(hooks)) => deadline.saturating_duration_since(Instant::now()),
            _ = exit => Duration::ZERO,
            () = until_cut_short(&mut signal) => {
                let _ = timeout(Duration::from_secs(1), stop(Duration::ZERO)).await;
                return Leave::Silent;
            }
        };
        let mut stopping = std::pin::pin!(timeout(left + Duration::from_secs(1), stop(left)));
        let stopped = tokio::select! {
            outcome = &mut stopping => outcome.is_ok(),
            () = until_cut_short(&mut signal) => {
                // A forced deletion waits no longer than it takes a willing runtime to let go.
                let _ = timeout(Duration::from_secs(1), stopping).await;
                return Leave::Silent;
            }
        };
        let exit = PodExit { code: if stopped { 0 } else { 137 }, reason: None, message: None };
        let ended = self.ended(&exit);
        self.view.ready = false;
        self.report(State::Ended(ended)).await;
        Leave::Delete
    }

    fn ended(&self, exit: &PodExit) -> Ended {
        let reason = exit.reason.clone();
        Ended {
            code: exit.code,
            reason: reason.unwrap_or_else(|| if exit.code == 0 { "Completed" } else { "Error" }.to_owned()),
            message: exit.message.clone(),
            started: match &self.view.state {
                State::Running { since } => Some(*since),
                _ => None,
            },
            finished: Timestamp::now(),
        }
    }

    fn containers(&self) -> &[Container] {
        self.pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default()
    }

    fn container_names(&self) -> String {
        self.containers().iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(",")
    }

    fn grace(&self) -> Duration {
        let asked = self.pod.metadata.deletion_grace_period_seconds;
        let own = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
        Duration::from_secs(asked.or(own).and_then(|s| u64::try_from(s).ok()).unwrap_or(30))
    }

    /// Takes over the newest pod that was signalled.
    fn take_signal(&mut self) {
        let version = |pod: &Pod| pod.resource_version().and_then(|v| v.parse::<u64>().ok());
        if let Signal::Run(pod) = &*self.signal.borrow_and_update() {
            // The answer to a status write may overtake the watch.
            if version(pod).zip(version(&self.pod)).is_none_or(|(theirs, ours)| theirs > ours) {
                self.pod = (**pod).clone();
            }
        }
    }

    fn leaving(&self) -> Option<Leave> {
        match &*self.signal.borrow() {
            Signal::Gone | Signal::NodeDown => Some(Leave::Silent),
            Signal::Run(pod) if pod.metadata.deletion_timestamp.is_some() => Some(Leave::Delete),
            Signal::Run(_) => self.pod.metadata.deletion_timestamp.is_some().then_some(Leave::Delete),
        }
    }

    async fn until_leaving(&mut self) -> Leave {
        loop {
            self.take_signal();
            if let Some(leave) = self.leaving() {
                return leave;
            }
            if self.signal.changed().await.is_err() {
                return Leave::Silent;
            }
        }
    }

    async fn until_deleted(&mut self) -> Leave {
        self.until_leaving().await
    }

    /// Waits, unless the pod has to go first.
    async fn pause(&mut self, delay: Duration) -> Option<Leave> {
        tokio::select! {
            () = sleep(delay) => None,
            leave = self.until_leaving() => Some(leave),
        }
    }

    async fn event(&self, kind: &str, reason: &str, message: &str) {
        let node = self.pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
        events::record(&self.shared.client, &self.pod, kind, reason, message, "kubelet", &node).await;
    }

    /// Tells the real addresses of container ports where they are not simply at the pod's own address.
    async fn publish_ports(&mut self, map: &BTreeMap<u16, std::net::SocketAddr>) {
        if map.is_empty() {
            return;
        }
        let addresses: BTreeMap<String, String> =
            map.iter().map(|(port, address)| (port.to_string(), address.to_string())).collect();
        let text = json!(addresses).to_string();
        if self.pod.annotations().get(PORTS_ANNOTATION) == Some(&text) {
            return;
        }
        let patch = json!({"metadata": {"annotations": {PORTS_ANNOTATION: text}}});
        match self.api.patch(&self.name, &kubelet(), &Patch::Merge(patch)).await {
            Ok(pod) => self.pod = pod,
            Err(error) => debug!(pod = self.name, %error, "cannot publish the pod's ports"),
        }
    }

    /// Writes the pod's status, if it changed, for as long as it takes.
    async fn report(&mut self, state: State) {
        self.view.state = state;
        let mut signal = self.signal.clone();
        let mut delay = Duration::from_millis(100);
        loop {
            let status = status::build(&self.pod, &self.view, Timestamp::now());
            if self.written.as_ref() == Some(&status) && !self.was_overwritten() {
                return;
            }
            let patch = json!({"metadata": {"uid": self.pod.uid()}, "status": status});
            match self.api.patch_status(&self.name, &kubelet(), &Patch::Strategic(patch)).await {
                Ok(pod) => {
                    self.pod = pod;
                    self.written = Some(status::build(&self.pod, &self.view, Timestamp::now()));
                    return;
                }
                Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409 | 422) => {
                    debug!(pod = self.name, %error, "status is no longer wanted");
                    return;
                }
                Err(error) => debug!(pod = self.name, %error, "cannot write the pod's status yet"),
            }
            tokio::select! {
                () = sleep(delay) => delay = (delay * 2).min(Duration::from_secs(5)),
                () = until_cut_short(&mut signal) => return,
            }
        }
    }

    /// Whether somebody else changed what this worker reported.
    fn was_overwritten(&self) -> bool {
        let status = self.pod.status.as_ref();
        let phase = status.and_then(|s| s.phase.as_deref());
        let ours = self.written.as_ref().and_then(|w| w.get("phase")).and_then(Value::as_str);
        phase != ours || status.and_then(|s| s.pod_ip.as_ref()) != self.view.pod_ip.as_ref()
    }

    /// Removes the pod from the API: its containers are gone.
    async fn delete(&mut self) {
        let preconditions = Preconditions { uid: self.pod.uid(), ..Preconditions::default() };
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        let mut delay = Duration::from_millis(100);
        loop {
            match self.api.delete(&self.name, &params).await {
                Ok(_) => return,
                Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409) => return,
                Err(error) => debug!(pod = self.name, %error, "cannot delete the pod yet"),
            }
            let mut signal = self.signal.clone();
            tokio::select! {
                () = sleep(delay) => delay = (delay * 2).min(Duration::from_secs(5)),
                () = until_cut_short(&mut signal) => return,
            }
        }
    }
}

fn kubelet() -> PatchParams {
    PatchParams { field_manager: Some("kubelet".into()), ..PatchParams::default() }
}

/// Resolves once the node is down, or the pod gone from the API.
async fn until_cut_short(signal: &mut watch::Receiver<Signal>) {
    // A dropped sender means that the simulator is gone, and so is the node.
    let _ = signal.wait_for(|s| matches!(s, Signal::Gone | Signal::NodeDown)).await;
}

async fn changed(ready: &mut Option<watch::Receiver<bool>>) {
    match ready {
        Some(receiver) => {
            if receiver.changed().await.is_err() {
                // No more news: what was said last holds.
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}

async fn any_changed(verdicts: &mut [watch::Receiver<Verdict>]) {
    let waits = verdicts.iter_mut().map(|verdict| {
        Box::pin(async move {
            if verdict.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    });
    let waits: Vec<_> = waits.collect();
    if waits.is_empty() {
        std::future::pending::<()>().await;
    }
    futures::future::select_all(waits).await;
}

async fn pre_stop(container: &Container, ports: &Ports, grace: Duration) {
    let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) else { return };
    if let Some(get) = &hook.http_get {
        probe::http_get(get, container, ports, grace).await;
    }
    if let Some(pause) = &hook.sleep {
        let pause = Duration::from_secs(u64::try_from(pause.seconds).unwrap_or(0));
        sleep(pause.min(grace)).await;
    }
}
