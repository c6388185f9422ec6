//! What actually runs a simulated pod; implementations live elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use tokio::sync::watch;

/// Starts pods.
pub trait PodRuntime: Send + Sync + 'static {
    /// Starts all containers of `pod` as one unit. Called again after every exit that the restart policy answers with a
    /// restart. The future is dropped if the pod has to go before it is started: nothing may be left running then.
    ///
    /// # Errors
    /// [`RuntimeError`]; the kubelet shows its reason on the containers and tries again with backoff.
    fn start<'a>(&'a self, pod: &'a Pod) -> BoxFuture<'a, Result<RunningPod, RuntimeError>>;
}

/// Why a pod could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct RuntimeError {
    /// One word as kubelets use them: `ErrImagePull`, `CreateContainerError`, `RunContainerError`.
    pub reason: String,
    /// What went wrong and what to do about it.
    pub message: String,
}

/// How a pod's containers ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodExit {
    /// Exit code; 0 is success.
    pub code: i32,
    /// One word; `Completed` or `Error` by code if absent.
    pub reason: Option<String>,
    /// More, if there is more to say.
    pub message: Option<String>,
}

/// Stops a running pod within a grace period; resolves once it is gone.
pub type Stop = Box<dyn FnOnce(Duration) -> BoxFuture<'static, ()> + Send>;

/// Yields a pod's log so far.
pub type LogSource = Arc<dyn Fn() -> String + Send + Sync>;

/// A started pod.
pub struct RunningPod {
    /// The pod's address. Real pods each have their own; on one machine that may be one of 127.0.0.0/8, or 127.0.0.1 with
    /// `ports` telling where each container port really is.
    pub ip: IpAddr,
    /// Real address of each container port; ports not named are at `ip`.
    pub ports: BTreeMap<u16, SocketAddr>,
    /// Readiness as the runtime knows it, beside any readiness probe; always ready if absent.
    pub ready: Option<watch::Receiver<bool>>,
    /// Resolves when the containers end by themselves.
    pub exit: BoxFuture<'static, PodExit>,
    /// Stops the containers.
    pub stop: Stop,
    /// Where `kubectl logs` reads.
    pub logs: Option<LogSource>,
}

impl std::fmt::Debug for RunningPod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningPod").field("ip", &self.ip).field("ports", &self.ports).finish_non_exhaustive()
    }
}

impl RunningPod {
    /// A pod at 127.0.0.1 that is ready at once.
    pub fn new(exit: BoxFuture<'static, PodExit>, stop: Stop) -> Self {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self { ip, ports: BTreeMap::new(), ready: None, exit, stop, logs: None }
    }

    /// Gives the pod an address of its own.
    #[must_use]
    pub fn with_ip(mut self, ip: IpAddr) -> Self {
        self.ip = ip;
        self
    }

    /// Says where a container port really is.
    #[must_use]
    pub fn with_port(mut self, container_port: u16, address: SocketAddr) -> Self {
        self.ports.insert(container_port, address);
        self
    }

    /// Says when the pod is ready.
    #[must_use]
    pub fn with_ready(mut self, ready: watch::Receiver<bool>) -> Self {
        self.ready = Some(ready);
        self
    }

    /// Says where the log is.
    #[must_use]
    pub fn with_logs(mut self, logs: LogSource) -> Self {
        self.logs = Some(logs);
        self
    }

    /// The real address of a container port.
    pub fn address(&self, container_port: u16) -> SocketAddr {
        self.ports.get(&container_port).copied().unwrap_or(SocketAddr::new(self.ip, container_port))
    }
}

/// The logs of running pods, and of the last run of those that wait; cheap to clone. The API serves `pods/log` from it.
#[derive(Clone, Default)]
pub struct PodLogs {
    sources: Arc<RwLock<HashMap<(String, String), LogSource>>>,
}

impl std::fmt::Debug for PodLogs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodLogs").field("pods", &self.sources.read().len()).finish()
    }
}

impl PodLogs {
    /// The log of a pod; `None` if it has none.
    pub fn read(&self, namespace: &str, name: &str) -> Option<String> {
        let key = (namespace.to_owned(), name.to_owned());
        let source = self.sources.read().get(&key).cloned()?;
        Some(source())
    }

    pub(super) fn set(&self, namespace: &str, name: &str, source: LogSource) {
        self.sources.write().insert((namespace.to_owned(), name.to_owned()), source);
    }

    pub(super) fn remove(&self, namespace: &str, name: &str) {
        self.sources.write().remove(&(namespace.to_owned(), name.to_owned()));
    }
}
