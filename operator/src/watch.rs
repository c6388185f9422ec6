//! Reads the cluster: a reflector for every kind, and the digests of tenants' API keys.
//!
//! Of what there are thousands only what is used is kept, and only a change of that is news: kubelets report nodes every
//! few minutes, and most pods of a cluster hold no accelerators.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{
    Container, Node, NodeCondition, NodeSpec, NodeStatus, Pod, PodCondition, PodSpec, PodStatus, Secret,
};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, ObjectRef, Store};
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
use crate::backoff::{Backoff, WatchBackoff};
use crate::devices::DynamicResources;
use crate::revision::reader::Revisions;
use crate::world::{Broken, World};
use crate::{names, objectives, observe, optional};

/// Least time between two looks at the Secrets that tenants name (they are read one by one: a watch would need all Secrets).
const SECRETS_INTERVAL: Duration = Duration::from_secs(30);
/// Least time for each Secret between two looks at all: however many there are, they make two requests a second at most.
const SECRET_INTERVAL: Duration = Duration::from_millis(500);

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
    device_classes: Store<DeviceClass>,
    slices: Store<ResourceSlice>,
    claims: Store<ResourceClaim>,
    revisions: Revisions,
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
        let tell = [&changed];
        let pools = reflect(client, all(), "ModelPool", Keep::all(), &tell, stop);
        let accelerators = reflect(client, all(), "AcceleratorClass", Keep::all(), &tell, stop);
        let budgets = reflect(client, all(), "Budget", Keep::all(), &tell, stop);
        let tenants = reflect(client, all(), "Tenant", Keep::all(), &[&changed, &tenants_changed], stop);
        let adapters = reflect(client, all(), "LoraAdapter", Keep::all(), &tell, stop);
        let nodes = reflect(client, all(), "Node", Keep::part(prune_node), &tell, stop);
        let pods = reflect(client, own, "Pod (replicas)", Keep::all(), &tell, stop);
        let foreign_pods = reflect(client, foreign, "Pod (others)", Keep::part(prune_pod), &tell, stop);
        let dynamic = {
            let accelerators: Store<DeserializeGuard<AcceleratorClass>> = accelerators.clone();
            move || accelerators.state().iter().any(|c| c.0.as_ref().is_ok_and(|c| c.spec.dra.is_some()))
        };
        let remedy = "AcceleratorClasses with spec.dra need resource.k8s.io/v1, and the grants that the chart gives for it";
        let (needed, api) = (dynamic.clone(), Api::all(client.clone()));
        let device_classes = optional::reflect(api, "DeviceClass", remedy, needed, &changed, stop);
        let (needed, api) = (dynamic.clone(), Api::all(client.clone()));
        let slices = optional::reflect(api, "ResourceSlice", remedy, needed, &changed, stop);
        let api = Api::all(client.clone());
        let claims = optional::reflect(api, "ResourceClaim", remedy, dynamic, &changed, stop);
        let revisions = Revisions::start(client, &changed, stop);
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
            device_classes,
            slices,
            claims,
            revisions,
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
            self.revisions.ready(),
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
            dynamic: DynamicResources {
                classes: self.device_classes.state().iter().map(|c| c.name_any()).collect(),
                slices: self.slices.state(),
                claims: self.claims.state(),
            },
            revisions: self.revisions.all(),
            api_keys: self.api_keys.lock().clone(),
            priorities: self.priorities.lock().clone(),
            broken,
        }
    }
}

/// What is kept of a kind's objects.
struct Keep<K> {
    prune: fn(&mut K),
    /// Whether two objects say the same (`None`: every event is news).
    same: Option<fn(&K, &K) -> bool>,
}

impl<K: Resource> Keep<K> {
    /// Everything but notes of who wrote what.
    fn all() -> Self {
        Self { prune: forget_writers, same: None }
    }
}

impl<K: PartialEq> Keep<K> {
    /// What `prune` leaves, and only a change of that is news.
    fn part(prune: fn(&mut K)) -> Self {
        Self { prune, same: Some(K::eq) }
    }
}

/// Annotation in which `kubectl apply` keeps the whole object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

fn forget_writers<K: Resource>(object: &mut K) {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

/// What identifies an object, and what others know it by; versions change with everything that is not kept.
fn prune_meta(meta: &mut ObjectMeta) {
    *meta = ObjectMeta {
        name: meta.name.take(),
        namespace: meta.namespace.take(),
        uid: meta.uid.take(),
        labels: meta.labels.take(),
        owner_references: meta.owner_references.take(),
        creation_timestamp: meta.creation_timestamp.take(),
        deletion_timestamp: meta.deletion_timestamp.take(),
        ..ObjectMeta::default()
    };
}

/// Keeps of another's pod only what holds accelerators, and what an engine there runs: clusters have many pods.
fn prune_pod(pod: &mut Pod) {
    prune_meta(&mut pod.metadata);
    let spec = pod.spec.take().unwrap_or_default();
    if !observe::may_hold_accelerators(&spec) {
        // Its place in the cache is all that is left of it.
        pod.metadata.labels = None;
        pod.metadata.owner_references = None;
        pod.status = None;
        return;
    }
    let bare = |mut container: Container| adopt::keep(&mut container);
    pod.spec = Some(PodSpec {
        node_name: spec.node_name,
        containers: spec.containers.into_iter().map(bare).collect(),
        init_containers: spec.init_containers.map(|all| all.into_iter().map(bare).collect()),
        resource_claims: spec.resource_claims,
        ..PodSpec::default()
    });
    let ready = |c: &PodCondition| c.type_ == "Ready";
    pod.status = pod.status.take().map(|status| PodStatus {
        phase: status.phase,
        conditions: status.conditions.map(|all| all.into_iter().filter(ready).collect()),
        ..PodStatus::default()
    });
}

/// Keeps of a node what its accelerators depend on: nodes list every image they hold, and say again and again that
/// nothing has changed.
fn prune_node(node: &mut Node) {
    prune_meta(&mut node.metadata);
    node.spec = node.spec.take().map(|spec| NodeSpec {
        unschedulable: spec.unschedulable,
        taints: spec.taints,
        ..NodeSpec::default()
    });
    node.status = node.status.take().map(|status| NodeStatus {
        allocatable: status.allocatable,
        capacity: status.capacity,
        conditions: status.conditions.map(|all| all.into_iter().map(bare_condition).collect()),
        ..NodeStatus::default()
    });
}

fn bare_condition(condition: NodeCondition) -> NodeCondition {
    NodeCondition { last_heartbeat_time: None, ..condition }
}

/// Waits before a watch is tried again: short enough that what people change right after an outage of the API is seen
/// within seconds (kube's own default waits up to half a minute), random so that watches do not return all at once.
pub(crate) fn watch_backoff(kind: &str) -> WatchBackoff {
    let mut hasher = std::hash::DefaultHasher::new();
    kind.hash(&mut hasher);
    let delays = Backoff::new(Duration::from_millis(500), Duration::from_secs(8), hasher.finish());
    WatchBackoff::new(delays, Duration::from_secs(20))
}

fn reflect<K>(
    client: &Client,
    config: watcher::Config,
    kind: &'static str,
    keep: Keep<K>,
    tell: &[&Arc<Notify>],
    stop: &CancellationToken,
) -> Store<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let (store, mut writer) = reflector::store();
    let known: Store<K> = store.clone();
    let (api, stop) = (Api::all(client.clone()), stop.clone());
    let tell: Vec<Arc<Notify>> = tell.iter().map(|t| Arc::clone(t)).collect();
    tokio::spawn(
        async move {
            let events = watcher(api, config).backoff(watch_backoff(kind)).modify(keep.prune);
            let mut events = std::pin::pin!(events);
            loop {
                let event = tokio::select! {
                    () = stop.cancelled() => return,
                    event = events.next() => event,
                };
                match event {
                    Some(Ok(event)) => {
                        let news = is_news(&event, &known, keep.same);
                        writer.apply_watcher_event(&event);
                        if news {
                            tell.iter().for_each(|t| t.notify_one());
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

/// Whether an event changes anything of what is known.
fn is_news<K>(event: &watcher::Event<K>, known: &Store<K>, same: Option<fn(&K, &K) -> bool>) -> bool
where
    K: Resource + Clone,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    match event {
        // Objects listed one by one become visible together at InitDone.
        watcher::Event::Init | watcher::Event::InitApply(_) => false,
        watcher::Event::InitDone | watcher::Event::Delete(_) => true,
        watcher::Event::Apply(object) => match same {
            None => true,
            Some(same) => known.get(&ObjectRef::from_obj(object)).is_none_or(|before| !same(&before, object)),
        },
    }
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
        let mut named: u32 = 0;
        for tenant in read(&watches.tenants, "Tenant", &mut ignored) {
            for s in tenant.spec.api_key_secrets {
                named = named.saturating_add(1);
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
            () = tokio::time::sleep(secrets_interval(named)) => {}
        }
    }
}

/// Time between two looks at this many Secrets.
fn secrets_interval(named: u32) -> Duration {
    SECRETS_INTERVAL.max(SECRET_INTERVAL.saturating_mul(named))
}

/// SHA-256 of an API key without surrounding white space (files often end in a newline), lower-case hex.
fn sha256_hex(key: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.trim_ascii());
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(heartbeat: &str, ready: &str, gpus: &str) -> Node {
        let mut node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "gpu-1", "uid": "u", "resourceVersion": heartbeat, "labels": {"zone": "a"},
                "annotations": {"x": "y"}, "managedFields": []},
            "spec": {"unschedulable": true, "podCIDR": "10.0.0.0/24"},
            "status": {"allocatable": {"nvidia.com/gpu": gpus}, "images": [{"names": ["a"]}],
                "conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat}]},
        }))
        .unwrap();
        prune_node(&mut node);
        node
    }

    #[test]
    fn a_nodes_heartbeat_is_no_news_and_what_it_offers_is() {
        let (store, mut writer) = reflector::store::<Node>();
        let first = node("2026-01-01T00:00:00Z", "True", "8");
        assert_eq!(first.metadata.labels.as_ref().unwrap()["zone"], "a");
        assert_eq!(first.spec.as_ref().unwrap().unschedulable, Some(true));
        let apply = |node| watcher::Event::Apply(node);
        assert!(is_news(&apply(first.clone()), &store, Some(Node::eq)));
        writer.apply_watcher_event(&apply(first));
        let news = |node| is_news(&apply(node), &store, Some(Node::eq));
        assert!(!news(node("2026-01-01T00:05:00Z", "True", "8")));
        assert!(news(node("2026-01-01T00:05:00Z", "False", "8")));
        assert!(news(node("2026-01-01T00:05:00Z", "True", "7")));
        let gone = watcher::Event::Delete(node("2026-01-01T00:05:00Z", "True", "8"));
        assert!(is_news(&gone, &store, Some(Node::eq)));
        let listed = watcher::Event::InitApply(node("2026-01-01T00:05:00Z", "True", "1"));
        assert!(!is_news(&listed, &store, Some(Node::eq)), "it counts when the list is complete");
    }

    #[test]
    fn of_others_pods_only_what_holds_accelerators_is_kept() {
        let pod = |gpus: Option<&str>| {
            let mut pod: Pod = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": {"app": "x"}},
                "spec": {"nodeName": "gpu-1", "volumes": [{"name": "v"}],
                    "containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}}}]},
                "status": {"phase": "Running", "podIP": "10.0.0.1"},
            }))
            .unwrap();
            if let Some(gpus) = gpus {
                let limits = serde_json::json!({"limits": {"nvidia.com/gpu": gpus}});
                pod.spec.as_mut().unwrap().containers[0].resources = serde_json::from_value(limits).unwrap();
            }
            prune_pod(&mut pod);
            pod
        };
        let plain = pod(None);
        assert_eq!((plain.spec, plain.status, plain.metadata.labels), (None, None, None));
        assert_eq!(plain.metadata.name.as_deref(), Some("p"));
        let holder = pod(Some("2"));
        assert_eq!(
            observe::foreign_use(&[Arc::new(holder.clone())], &["nvidia.com/gpu"].into())
                [&("gpu-1".to_owned(), "nvidia.com/gpu".to_owned())],
            2
        );
        let spec = holder.spec.unwrap();
        assert_eq!(
            (spec.containers[0].image.as_deref(), spec.volumes),
            (Some("i"), None),
            "an engine tells what it runs"
        );
        assert_eq!(holder.status.unwrap().pod_ip, None);
    }

    #[test]
    fn many_secrets_are_read_more_seldom() {
        assert_eq!(secrets_interval(3), Duration::from_secs(30));
        assert_eq!(secrets_interval(1000), Duration::from_secs(500));
    }

    #[test]
    fn keys_are_digested_without_their_newline() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_hex(b"abc"), expected);
        assert_eq!(sha256_hex(b"abc\n"), expected);
    }
}
