//! Binds pending pods to nodes: a shell around [`fit`](super::fit).

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::fit::{self, NodeView, Resources};
use super::{Mirror, events, status};

/// How long after a failed write the pods are looked at again even if nothing changed.
const RETRY: Duration = Duration::from_secs(1);

/// Schedules pods until cancelled.
pub(super) async fn run(client: Client, cancel: CancellationToken) {
    let mut pod_events =
        watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()).default_backoff().boxed();
    let mut node_events =
        watcher(Api::<Node>::all(client.clone()), watcher::Config::default()).default_backoff().boxed();
    let mut scheduler =
        Scheduler { client, pods: Mirror::default(), nodes: Mirror::default(), assumed: HashMap::new() };
    let mut retry: Option<Instant> = None;
    loop {
        let wake = async {
            match retry {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = wake => {}
            event = pod_events.try_next() => match event {
                Ok(Some(event)) => { scheduler.pods.take(event); }
                Ok(None) => return,
                Err(error) => debug!(%error, "the pod watch failed and is retried"),
            },
            event = node_events.try_next() => match event {
                Ok(Some(event)) => { scheduler.nodes.take(event); }
                Ok(None) => return,
                Err(error) => debug!(%error, "the node watch failed and is retried"),
            },
        }
        retry = match scheduler.pass().await {
            Ok(()) => None,
            Err(error) => {
                debug!(%error, "a pod could not be bound and is tried again");
                Some(Instant::now() + RETRY)
            }
        };
    }
}

struct Scheduler {
    client: Client,
    pods: Mirror<Pod>,
    nodes: Mirror<Node>,
    /// Pods bound by this scheduler whose binding the watch has not shown yet, by uid.
    assumed: HashMap<String, String>,
}

/// Whether a pod waits for a node.
fn is_pending(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = spec.scheduler_name.as_deref().is_none_or(|n| n == "default-scheduler");
    ours && spec.node_name.as_deref().unwrap_or_default().is_empty()
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        && pod.metadata.deletion_timestamp.is_none()
        && !is_over(pod)
}

/// Whether a pod holds no resources any more.
fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    matches!(phase, "Succeeded" | "Failed")
}

impl Scheduler {
    /// Looks at every pending pod once, by priority and then by age.
    async fn pass(&mut self) -> Result<(), kube::Error> {
        if !self.pods.synced() || !self.nodes.synced() {
            return Ok(());
        }
        let pods = &self.pods;
        self.assumed.retain(|uid, _| pods.values().any(|p| p.uid().as_deref() == Some(uid) && is_pending(p)));
        let mut pending: Vec<Pod> = self
            .pods
            .values()
            .filter(|p| is_pending(p) && !self.assumed.contains_key(&p.uid().unwrap_or_default()))
            .cloned()
            .collect();
        if pending.is_empty() {
            return Ok(());
        }
        pending.sort_by_key(|pod| {
            let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
            let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (std::cmp::Reverse(priority), created, pod.namespace(), pod.name_any())
        });
        let mut used = self.used();
        let nodes: BTreeMap<String, Node> = self.nodes.values().map(|n| (n.name_any(), n.clone())).collect();
        let mut outcome = Ok(());
        for pod in pending {
            let views: Vec<NodeView<'_>> = nodes
                .iter()
                .map(|(name, node)| NodeView { node, used: used.get(name).cloned().unwrap_or_default() })
                .collect();
            let done = match fit::choose(&pod, &views) {
                Ok(node) => {
                    let bound = self.bind(&pod, &node).await;
                    if bound.is_ok() {
                        add(used.entry(node.clone()).or_default(), &fit::requests(&pod));
                        self.assumed.insert(pod.uid().unwrap_or_default(), node);
                    }
                    bound
                }
                Err(unschedulable) => self.refuse(&pod, &unschedulable.message).await,
            };
            if let Err(error) = done
                && !is_settled(&error)
            {
                outcome = Err(error);
            }
        }
        outcome
    }

    /// What the pods on each node hold.
    fn used(&self) -> BTreeMap<String, Resources> {
        let mut out: BTreeMap<String, Resources> = BTreeMap::new();
        for pod in self.pods.values().filter(|p| !is_over(p)) {
            let bound = pod.spec.as_ref().and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty());
            if let Some(node) = bound.or_else(|| self.assumed.get(&pod.uid().unwrap_or_default()).cloned()) {
                add(out.entry(node).or_default(), &fit::requests(pod));
            }
        }
        out
    }

    async fn bind(&self, pod: &Pod, node: &str) -> Result<(), kube::Error> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                uid: pod.uid(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let params = PostParams { field_manager: Some("kube-scheduler".into()), ..PostParams::default() };
        let _: Status = api.create_subresource("binding", &name, &params, &binding).await?;
        info!(pod = name, namespace, node, "bound");
        let message = format!("Successfully assigned {namespace}/{name} to {node}");
        events::record(&self.client, pod, "Normal", "Scheduled", &message, "default-scheduler", "").await;
        Ok(())
    }

    /// Says why a pod stays pending, once per reason.
    async fn refuse(&self, pod: &Pod, message: &str) -> Result<(), kube::Error> {
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let before = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False");
        if before.is_some_and(|c| c.message.as_deref() == Some(message)) {
            return Ok(());
        }
        let since =
            before.and_then(|c| c.last_transition_time.as_ref()).map_or_else(jiff::Timestamp::now, |t| t.0);
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastProbeTime": null, "lastTransitionTime": status::rfc3339(since),
        }]}});
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let params = PatchParams { field_manager: Some("kube-scheduler".into()), ..PatchParams::default() };
        api.patch_status(&pod.name_any(), &params, &Patch::Strategic(patch)).await?;
        events::record(&self.client, pod, "Warning", "FailedScheduling", message, "default-scheduler", "")
            .await;
        Ok(())
    }
}

fn add(total: &mut Resources, more: &Resources) {
    for (name, amount) in more {
        *total.entry(name.clone()).or_default() += amount;
    }
}

/// Whether trying again cannot help: the pod is gone or was bound by somebody else.
fn is_settled(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409 | 422))
}
