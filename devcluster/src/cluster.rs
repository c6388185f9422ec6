//! Starting and stopping the API.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::serve::ListenerExt as _;
use jiff::Timestamp;
use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::Cluster;
use crate::gc;
use crate::nodes::PodLogs;
use crate::resources::Registry;
use crate::store::{GroupResource, PersistError, Store};
use crate::upkeep::{self, standing};

/// Changes of each resource that watches can resume from.
const HISTORY: usize = 4096;
/// Changes that a watcher may lag by before it is cut off: a burst of a whole fleet's pods fits.
const WATCH_QUEUE: usize = 8192;

/// How to run the API.
#[derive(Debug, Clone)]
pub struct DevClusterConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where objects are kept; in memory only if absent.
    pub data_dir: Option<PathBuf>,
}

impl Default for DevClusterConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 0)), data_dir: None }
    }
}

/// Why the API could not start.
#[derive(Debug, thiserror::Error)]
pub enum DevClusterError {
    /// The address cannot be listened on.
    #[error("failed to listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] PersistError),
    /// The built-in resources are broken.
    #[error("the table of built-in resources is broken, which is a defect: {0}")]
    Resources(String),
    /// A stored object that must exist could not be made.
    #[error("failed to prepare the cluster: {0}")]
    Prepare(String),
    /// No client could be made.
    #[error("failed to make a client")]
    Client(#[source] kube::Error),
}

/// A running API.
pub struct DevCluster {
    addr: SocketAddr,
    store: Arc<Store>,
    client: kube::Client,
    logs: Arc<RwLock<PodLogs>>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl DevCluster {
    /// Starts the API.
    ///
    /// # Errors
    /// [`DevClusterError`] if the address is taken or kept data cannot be read.
    pub async fn start(config: DevClusterConfig) -> Result<Self, DevClusterError> {
        let listen = |source| DevClusterError::Listen { addr: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        let store = Arc::new(Store::open(config.data_dir.as_deref(), HISTORY, WATCH_QUEUE)?);
        let registry = Arc::new(Registry::new().map_err(DevClusterError::Resources)?);
        standing::first_namespaces(&store, Timestamp::now())
            .map_err(|e| DevClusterError::Prepare(e.to_string()))?;
        standing::restore_all(&store, addr, Timestamp::now());
        serve_definitions(&store, &registry);
        let stop = CancellationToken::new();
        let logs = Arc::new(RwLock::new(PodLogs::default()));
        let cluster = Arc::new(Cluster {
            store: Arc::clone(&store),
            registry: Arc::clone(&registry),
            logs: Arc::clone(&logs),
            clock: Arc::new(Timestamp::now),
            stop: stop.clone(),
            address: addr.to_string(),
            documents: Default::default(),
        });
        let router = Router::new().fallback(move |request| Arc::clone(&cluster).handle(request));
        let stopped = stop.clone();
        // Watches send small pieces that must not wait for more.
        let listener = listener.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        let server = tokio::spawn(async move {
            let serving = axum::serve(listener, router).with_graceful_shutdown(stopped.cancelled_owned());
            if let Err(error) = serving.await {
                tracing::error!(%error, "the API server stopped");
            }
        });
        let collector = tokio::spawn(gc::run(Arc::clone(&store), registry, stop.clone()));
        let keeper =
            tokio::spawn(upkeep::run(Arc::clone(&store), addr, Arc::new(Timestamp::now), stop.clone()));
        let uri = format!("http://{addr}").parse().map_err(|e| DevClusterError::Prepare(format!("{e}")))?;
        let mut client_config = kube::Config::new(uri);
        client_config.default_namespace = "default".into();
        let client = kube::Client::try_from(client_config).map_err(DevClusterError::Client)?;
        Ok(Self { addr, store, client, logs, stop, tasks: vec![server, collector, keeper] })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A client of it.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// The objects.
    pub fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }

    /// Answers `pods/log` from these: the node simulator's.
    pub fn serve_logs(&self, logs: PodLogs) {
        *self.logs.write() = logs;
    }

    /// A kubeconfig for kubectl.
    pub fn kubeconfig_yaml(&self) -> String {
        let addr = self.addr;
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: plimsoll\n  cluster: {{server: \"http://{addr}\"}}\nusers:\n- name: \
             plimsoll\n  user: {{}}\ncontexts:\n- name: plimsoll\n  context: {{cluster: plimsoll, user: plimsoll, namespace: \
             default}}\ncurrent-context: plimsoll\n"
        )
    }

    /// Ends watches and connections and writes everything to disk.
    pub async fn shutdown(self) {
        self.stop.cancel();
        if let Err(error) = self.store.close() {
            tracing::error!(%error, "the last changes may not be on disk");
        }
        for task in self.tasks {
            // Clients may hold connections open; they are not waited for.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(2), task).await;
        }
    }
}

/// Serves the definitions that were kept from an earlier run.
fn serve_definitions(store: &Store, registry: &Registry) {
    let (definitions, _) =
        store.list(&GroupResource::new("apiextensions.k8s.io", "customresourcedefinitions"), None);
    for crd in definitions {
        if let Err(causes) = registry.define(&crd.value) {
            tracing::error!(name = crd.meta("name"), ?causes, "a kept definition is not served");
        }
    }
}
