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
    /// The engines that run, by their pods' uids.
    running: Mutex<HashMap<String, Exited>>,
}

impl EngineRuntime {
    /// Engines that run `speed` times as fast as real ones and need `startup` (virtual) to come up.
    pub fn new(speed: f64, startup: Duration) -> Self {
        Self { speed, startup, addresses: LoopbackIps::default(), running: Mutex::default() }
    }

    /// Kills a pod's engine, if one runs, as `kill -9` does; the kubelet starts another.
    pub fn crash(&self, uid: &str) {
        if let Some(exited) = self.running.lock().remove(uid) {
            exited.send_replace(Some(KILLED));
        }
    }

    async fn start_engine(&self, pod: &Pod) -> Result<RunningPod, RuntimeError> {
        let record = record(pod)?;
        let start = |ip| EngineServer::start(self.config(&record, SocketAddr::from((ip, ENGINE_PORT))));
        let taken = |error: &EngineServerError| matches!(error, EngineServerError::Listen { source, .. } if source.kind() == ErrorKind::AddrInUse);
        match self.addresses.start_on_free(start, taken).await {
            Ok((ip, server)) => {
                let (pod_runs, exited) = running(IpAddr::V4(ip), server, record);
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

    fn config(&self, record: &ReplicaRecord, listen: SocketAddr) -> EngineServerConfig {
        EngineServerConfig {
            listen,
            served_model: record.served_name.clone(),
            architecture: record.architecture.clone(),
            variant: record.variant.clone(),
            accelerator: record.accelerator.clone(),
            shape: record.shape.clone(),
            engine: EngineConfig::default(),
            speed: self.speed,
            startup: self.startup,
            max_lora_slots: 8,
            lora_load: Duration::from_millis(300),
            answer: LengthDistribution { mean_tokens: 220.0, p95_tokens: 600.0 },
            max_body_bytes: 32 << 20,
            max_model_len: record.max_context_tokens,
            seed: 0,
        }
    }
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

fn running(ip: IpAddr, server: EngineServer, record: ReplicaRecord) -> (RunningPod, Exited) {
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
    let watched = Arc::clone(&server);
    let ready_log = Arc::clone(&log);
    tokio::spawn(async move {
        tokio::select! {
            () = watched.ready() => {
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
            let code = exit.wait_for(Option::is_some).await.ok().and_then(|code| *code).unwrap_or(0);
            PodExit { code, reason: None, message: None }
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

    #[tokio::test]
    async fn a_pod_that_is_no_replica_is_refused_with_a_reason() {
        let runtime = EngineRuntime::new(1.0, Duration::ZERO);
        let error = runtime.start(&Pod::default()).await.unwrap_err();
        assert_eq!(error.reason, "ErrImagePull");
        assert!(error.message.contains("plimsoll.dev/replica"), "{}", error.message);
    }
}
