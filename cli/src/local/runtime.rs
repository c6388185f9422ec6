//! Simulated nodes have no GPUs: whatever engine a replica's pod names, they run a simulated one of the same shape.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use parking_lot::Mutex;
use plimsoll_devcluster::nodes::{LoopbackIps, PodExit, PodRuntime, RunningPod, RuntimeError};
use plimsoll_engine::EngineConfig;
use plimsoll_fleet::LengthDistribution;
use plimsoll_operator::ReplicaRecord;
use plimsoll_simulator::engine_server::{EngineServer, EngineServerConfig, EngineServerError};
use tokio::sync::watch;

use super::group::{self, Groups, Member};

/// Annotation with the replica's record.
const RECORD: &str = "plimsoll.dev/replica";
/// Port of an engine's API within its pod, as the operator gives it to every engine.
const ENGINE_PORT: u16 = 8000;
/// Exit code of what was killed.
const KILLED: i32 = 137;

/// Tells how an engine exited, once it has.
type Exited = watch::Sender<Option<i32>>;

/// Starts simulated engines for pods, each on a loopback address of its own, as real pods have.
#[derive(Debug)]
pub struct EngineRuntime {
    speed: f64,
    startup: Duration,
    addresses: LoopbackIps,
    groups: Groups,
    /// The engines that run, by their pods' uids.
    running: Mutex<HashMap<String, Exited>>,
}

impl EngineRuntime {
    /// Engines that run `speed` times as fast as real ones and need `startup` (virtual) to come up.
    pub fn new(speed: f64, startup: Duration) -> Self {
        Self {
            speed,
            startup,
            addresses: LoopbackIps::default(),
            groups: Groups::default(),
            running: Mutex::default(),
        }
    }

    /// Kills a pod's engine, if one runs, as `kill -9` does; the kubelet starts another.
    pub fn crash(&self, uid: &str) {
        if let Some(exited) = self.running.lock().remove(uid) {
            exited.send_replace(Some(KILLED));
        }
    }

    async fn start_engine(&self, pod: &Pod) -> Result<RunningPod, RuntimeError> {
        let rank = group::rank(pod);
        if let Some(rank) = rank.filter(|rank| *rank > 0) {
            let ip = IpAddr::V4(self.addresses.allocate());
            return Ok(worker(ip, rank, self.groups.join(pod, rank)));
        }
        let record = record(pod)?;
        let speed = self.speed * own_speed(pod)?;
        let member = rank.zip(record.group.as_ref()).map(|(rank, _)| self.groups.join(pod, rank));
        let start =
            |ip| EngineServer::start(self.config(&record, speed, SocketAddr::from((ip, ENGINE_PORT))));
        let taken = |error: &EngineServerError| matches!(error, EngineServerError::Listen { source, .. } if source.kind() == ErrorKind::AddrInUse);
        match self.addresses.start_on_free(start, taken).await {
            Ok((ip, server)) => {
                let (pod_runs, exited) = running(IpAddr::V4(ip), server, record, member);
                let mut all = self.running.lock();
                all.retain(|_, exited| !exited.is_closed());
                all.insert(pod.uid().unwrap_or_default(), exited);
                Ok(pod_runs)
            }
            Err(error) if taken(&error) => {
                Err(failed("RunContainerError", format!("no free loopback address: {error}")))
            }
            Err(error) => Err(failed("RunContainerError", error.to_string())),
        }
    }

    fn config(&self, record: &ReplicaRecord, speed: f64, listen: SocketAddr) -> EngineServerConfig {
        EngineServerConfig {
            listen,
            served_model: record.served_name.clone(),
            architecture: record.architecture.clone(),
            variant: record.variant.clone(),
            accelerator: record.accelerator.clone(),
            shape: record.shape.clone(),
            engine: EngineConfig::default(),
            speed,
            startup: self.startup,
            max_lora_slots: 8,
            lora_load: Duration::from_millis(300),
            answer: LengthDistribution { mean_tokens: 220.0, p95_tokens: 600.0 },
            max_body_bytes: 32 << 20,
            max_model_len: record.max_context_tokens,
            needs_room: false,
            seed: 0,
        }
    }
}

/// What `--speed` among the engine's arguments says: how fast this engine is beside others of its shape. A worse release of an
/// engine is a slower one.
fn own_speed(pod: &Pod) -> Result<f64, RuntimeError> {
    let args: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|s| &s.containers)
        .flat_map(|c| c.args.iter().flatten())
        .flat_map(|a| a.split('='))
        .collect();
    let Some(at) = args.iter().rposition(|a| *a == "--speed") else { return Ok(1.0) };
    let text = args.get(at + 1).copied().unwrap_or_default();
    text.parse::<f64>().ok().filter(|s| s.is_finite() && *s > 0.0).ok_or_else(|| {
        failed(
            "RunContainerError",
            format!("argument --speed {text:?} is not a positive number, such as 0.5"),
        )
    })
}

fn failed(reason: &str, message: String) -> RuntimeError {
    RuntimeError { reason: reason.to_owned(), message }
}

fn record(pod: &Pod) -> Result<ReplicaRecord, RuntimeError> {
    let text = pod.annotations().get(RECORD).ok_or_else(|| {
        failed(
            "ErrImagePull",
            format!(
                "simulated nodes run only Plimsoll's replicas (pods with annotation {RECORD}); {} is none",
                pod.name_any()
            ),
        )
    })?;
    serde_json::from_str(text)
        .map_err(|e| failed("CreateContainerConfigError", format!("annotation {RECORD} cannot be read: {e}")))
}

/// A pod that does its part for the leader of its group, and ends when another pod of the group does.
fn worker(ip: IpAddr, rank: u32, member: Member) -> RunningPod {
    let (stopped, mut stop) = watch::channel(false);
    let broken = member.broken();
    let exit = async move {
        let code = tokio::select! {
            _ = stop.wait_for(|stopped| *stopped) => 0,
            () = broken.cancelled() => 1,
        };
        drop(member);
        let message = (code > 0).then(|| "another pod of its group ended".to_owned());
        PodExit { code, reason: None, message }
    };
    // Held by its own task: what the kubelet drops must not keep the group waiting.
    let exit = tokio::spawn(exit);
    let exit = async move { exit.await.unwrap_or(PodExit { code: 1, reason: None, message: None }) };
    let end = move |_grace: Duration| -> BoxFuture<'static, ()> {
        async move {
            stopped.send_replace(true);
        }
        .boxed()
    };
    let log = format!("simulated worker of rank {rank} on {ip}\n");
    RunningPod::new(exit.boxed(), Box::new(end)).with_ip(ip).with_logs(Arc::new(move || log.clone()))
}

fn running(
    ip: IpAddr,
    server: EngineServer,
    record: ReplicaRecord,
    member: Option<Member>,
) -> (RunningPod, Exited) {
    let (exited, mut exit) = watch::channel(None);
    let crashed = exited.clone();
    let (ready_tx, ready) = watch::channel(false);
    let server = Arc::new(server);
    let log = Arc::new(Mutex::new(format!(
        "simulated {} for {} ({}) on {ip}:{ENGINE_PORT}\n",
        record.engine.as_str(),
        record.served_name,
        record.shape
    )));
    let broken = member.as_ref().map(Member::broken).unwrap_or_default();
    let watched = Arc::clone(&server);
    let ready_log = Arc::clone(&log);
    tokio::spawn(async move {
        let ready = async {
            if let Some((member, group)) = member.as_ref().zip(record.group.as_ref()) {
                member.complete(group.size).await;
            }
            watched.ready().await;
        };
        tokio::select! {
            () = ready => {
                ready_log.lock().push_str("ready\n");
                ready_tx.send_replace(true);
                // Held until the pod ends: a closed channel would read as an end of readiness news.
                ready_tx.closed().await;
            }
            () = ready_tx.closed() => {}
        }
    });
    let pod = RunningPod {
        ip,
        ports: [].into(),
        ready: Some(ready),
        exit: async move {
            tokio::select! {
                code = exit.wait_for(Option::is_some) => {
                    let code = code.ok().and_then(|code| *code).unwrap_or(0);
                    PodExit { code, reason: None, message: None }
                }
                () = broken.cancelled() => {
                    let message = Some("a worker of its group ended".to_owned());
                    PodExit { code: 1, reason: None, message }
                }
            }
        }
        .boxed(),
        stop: Box::new(move |_grace: Duration| -> BoxFuture<'static, ()> {
            async move {
                server.kill();
                exited.send_replace(Some(0));
            }
            .boxed()
        }),
        logs: Some(Arc::new(move || log.lock().clone())),
    };
    (pod, crashed)
}

impl PodRuntime for EngineRuntime {
    fn start<'a>(&'a self, pod: &'a Pod) -> BoxFuture<'a, Result<RunningPod, RuntimeError>> {
        self.start_engine(pod).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engines_own_speed_is_heeded() {
        let pod = |args: serde_json::Value| -> Pod {
            serde_json::from_value(
                serde_json::json!({"spec": {"containers": [{"name": "engine", "args": args}]}}),
            )
            .unwrap()
        };
        assert_eq!(own_speed(&pod(serde_json::json!(["--model", "m"]))).unwrap(), 1.0);
        assert_eq!(own_speed(&pod(serde_json::json!(["--model", "m", "--speed", "0.5"]))).unwrap(), 0.5);
        assert_eq!(own_speed(&pod(serde_json::json!(["--speed=0.25"]))).unwrap(), 0.25);
        assert!(own_speed(&pod(serde_json::json!(["--speed", "-1"]))).is_err());
        assert!(own_speed(&pod(serde_json::json!(["--speed"]))).is_err());
    }

    #[tokio::test]
    async fn a_pod_that_is_no_replica_is_refused_with_a_reason() {
        let runtime = EngineRuntime::new(1.0, Duration::ZERO);
        let error = runtime.start(&Pod::default()).await.unwrap_err();
        assert_eq!(error.reason, "ErrImagePull");
        assert!(error.message.contains("plimsoll.dev/replica"), "{}", error.message);
    }
}
