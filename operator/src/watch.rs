//! Reads the cluster: a reflector for every kind, and the digests of tenants' API keys.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use parking_lot::Mutex;
use plimsoll_crds::{AcceleratorClass, Budget, LoraAdapter, ModelPool, Tenant};
use plimsoll_fleet::RequestPriority;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

use crate::adopt;
use crate::backoff::Backoff;
use crate::names;
use crate::objectives;
use crate::world::{Broken, World};

/// Time between two looks at the Secrets that tenants name (they are read one by one: a watch would need all Secrets).
const SECRETS_INTERVAL: Duration = Duration::from_secs(30);

type ApiKeys = BTreeMap<(String, String, String), String>;

/// Live copies of everything the operator reads.
#[derive(Clone)]
pub struct Watches {
    pools: Store<DeserializeGuard<ModelPool>>,
    accelerators: Store<DeserializeGuard<AcceleratorClass>>,
    budgets: Store<DeserializeGuard<Budget>>,
    tenants: Store<DeserializeGuard<Tenant>>,
    adapters: Store<DeserializeGuard<LoraAdapter>>,
    nodes: Store<Node>,
    pods: Store<Pod>,
    foreign_pods: Store<Pod>,
    api_keys: Arc<Mutex<ApiKeys>>,
    priorities: Arc<Mutex<Vec<RequestPriority>>>,
    changed: Arc<Notify>,
}

impl Watches {
    /// Starts all watches; they end when `stop` is cancelled.
    pub fn start(client: &Client, stop: &CancellationToken) -> Self {
        let changed = Arc::new(Notify::new());
        let tenants_changed = Arc::new(Notify::new());
        let all = watcher::Config::default;
        let own = all().labels(names::REPLICA);
        let foreign = all().labels(&format!("!{}", names::REPLICA));
        let pools = reflect(Api::all(client.clone()), all(), "ModelPool", keep, &changed, None, stop);
        let accelerators =
            reflect(Api::all(client.clone()), all(), "AcceleratorClass", keep, &changed, None, stop);
        let budgets = reflect(Api::all(client.clone()), all(), "Budget", keep, &changed, None, stop);
        let tenants =
            reflect(Api::all(client.clone()), all(), "Tenant", keep, &changed, Some(&tenants_changed), stop);
        let adapters = reflect(Api::all(client.clone()), all(), "LoraAdapter", keep, &changed, None, stop);
        let nodes = reflect(Api::all(client.clone()), all(), "Node", prune_node, &changed, None, stop);
        let pods =
            reflect(Api::all(client.clone()), own, "Pod (replicas)", forget_managers, &changed, None, stop);
        let foreign_pods =
            reflect(Api::all(client.clone()), foreign, "Pod (others)", prune_pod, &changed, None, stop);
        let api_keys = Arc::new(Mutex::new(ApiKeys::new()));
        let priorities = Arc::default();
        let watches = Self {
            pools,
            accelerators,
            budgets,
            tenants,
            adapters,
            nodes,
            pods,
            foreign_pods,
            api_keys,
            priorities,
            changed,
        };
        let (found, changed) = (watches.priorities.clone(), watches.changed.clone());
        tokio::spawn(objectives::follow(client.clone(), found, changed, stop.clone()));
        tokio::spawn(follow_secrets(watches.clone(), client.clone(), tenants_changed, stop.clone()));
        watches
    }

    /// Waits until every kind was listed once.
    pub async fn ready(&self) {
        let _ = tokio::join!(
            self.pools.wait_until_ready(),
            self.accelerators.wait_until_ready(),
            self.budgets.wait_until_ready(),
            self.tenants.wait_until_ready(),
            self.adapters.wait_until_ready(),
            self.nodes.wait_until_ready(),
            self.pods.wait_until_ready(),
            self.foreign_pods.wait_until_ready(),
        );
    }

    /// Waits for a change since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Everything as it is now.
    pub fn world(&self) -> World {
        let mut broken = Vec::new();
        World {
            pools: read(&self.pools, "ModelPool", &mut broken),
            accelerators: read(&self.accelerators, "AcceleratorClass", &mut broken),
            budgets: read(&self.budgets, "Budget", &mut broken),
            tenants: read(&self.tenants, "Tenant", &mut broken),
            adapters: read(&self.adapters, "LoraAdapter", &mut broken),
            nodes: self.nodes.state(),
            pods: self.pods.state(),
            foreign_pods: self.foreign_pods.state(),
            api_keys: self.api_keys.lock().clone(),
            priorities: self.priorities.lock().clone(),
            broken,
        }
    }
}

fn keep<K>(_: &mut K) {}

fn forget_managers(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
}

/// Keeps of another's pod only what holds accelerators, and what an engine there runs: clusters have many pods.
fn prune_pod(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
    if let Some(spec) = &mut pod.spec {
        spec.volumes = None;
        spec.affinity = None;
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            *container = adopt::keep(container);
        }
    }
    if let Some(status) = &mut pod.status {
        status.container_statuses = None;
        status.init_container_statuses = None;
    }
}

/// Nodes list every image they hold.
fn prune_node(node: &mut Node) {
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}

/// Waits before a watch is tried again: short enough that what people change right after an outage of the API is seen
/// within seconds (kube's own default waits up to half a minute), random so that watches do not return all at once.
fn watch_backoff(kind: &str) -> Backoff {
    let mut hasher = std::hash::DefaultHasher::new();
    kind.hash(&mut hasher);
    Backoff::new(Duration::from_millis(500), Duration::from_secs(8), hasher.finish())
}

fn reflect<K>(
    api: Api<K>,
    config: watcher::Config,
    kind: &'static str,
    prune: fn(&mut K),
    changed: &Arc<Notify>,
    also: Option<&Arc<Notify>>,
    stop: &CancellationToken,
) -> Store<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let (store, writer) = reflector::store();
    let (changed, also, stop) = (changed.clone(), also.cloned(), stop.clone());
    tokio::spawn(
        async move {
            let events = watcher(api, config).backoff(watch_backoff(kind)).modify(prune).reflect(writer);
            let mut events = std::pin::pin!(events);
            loop {
                let event = tokio::select! {
                    () = stop.cancelled() => return,
                    event = events.next() => event,
                };
                match event {
                    // Objects listed one by one become visible together at InitDone.
                    Some(Ok(watcher::Event::Init | watcher::Event::InitApply(_))) => {}
                    Some(Ok(_)) => {
                        changed.notify_one();
                        if let Some(also) = &also {
                            also.notify_one();
                        }
                    }
                    Some(Err(error)) => warn!(%error, "the watch failed; it goes on from what is known"),
                    None => return,
                }
            }
        }
        .instrument(info_span!("watch", kind)),
    );
    store
}

/// The readable objects of a store; the others go to `broken`.
fn read<K>(store: &Store<DeserializeGuard<K>>, kind: &'static str, broken: &mut Vec<Broken>) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store
        .state()
        .iter()
        .filter_map(|guard| match &guard.0 {
            Ok(object) => Some(object.clone()),
            Err(error) => {
                let meta = guard.meta();
                broken.push(Broken {
                    kind,
                    namespace: meta.namespace.clone(),
                    name: guard.name_any(),
                    uid: meta.uid.clone().unwrap_or_default(),
                    generation: meta.generation.unwrap_or(0),
                    error: error.error.clone(),
                });
                None
            }
        })
        .collect()
}

async fn follow_secrets(
    watches: Watches,
    client: Client,
    tenants_changed: Arc<Notify>,
    stop: CancellationToken,
) {
    loop {
        let mut keys = ApiKeys::new();
        let mut ignored = Vec::new();
        for tenant in read(&watches.tenants, "Tenant", &mut ignored) {
            for s in tenant.spec.api_key_secrets {
                let api: Api<Secret> = Api::namespaced(client.clone(), &s.namespace);
                match api.get_opt(&s.name).await {
                    Ok(secret) => {
                        let value = secret.and_then(|secret| secret.data?.remove(&s.key));
                        if let Some(value) = value {
                            keys.insert((s.namespace, s.name, s.key), sha256_hex(&value.0));
                        } else {
                            debug!(tenant = %tenant.metadata.name.clone().unwrap_or_default(), secret = %s.name, key = %s.key, "a tenant's API key does not exist yet");
                        }
                    }
                    Err(error) => {
                        // What was known of it stays.
                        warn!(%error, secret = %s.name, "failed to read a tenant's Secret");
                        let key = (s.namespace, s.name, s.key);
                        if let Some(known) = watches.api_keys.lock().get(&key) {
                            keys.insert(key.clone(), known.clone());
                        }
                    }
                }
            }
        }
        let different = {
            let mut known = watches.api_keys.lock();
            let different = *known != keys;
            *known = keys;
            different
        };
        if different {
            watches.changed.notify_one();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tenants_changed.notified() => {}
            () = tokio::time::sleep(SECRETS_INTERVAL) => {}
        }
    }
}

/// SHA-256 of an API key without surrounding white space (files often end in a newline), lower-case hex.
fn sha256_hex(key: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.trim_ascii());
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_digested_without_their_newline() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_hex(b"abc"), expected);
        assert_eq!(sha256_hex(b"abc\n"), expected);
    }
}
