//! Pods that Kueue admits: how a pool names its queue, and how a pod that waits for admission is told. Pure.
//!
//! Kueue's webhook puts a scheduling gate on each pod that names a queue, and takes it away on admission. It ends a pod
//! that it preempts; the plan then makes another, which waits in the queue in its turn.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use plimsoll_crds::ModelPool;

/// Label: name of the LocalQueue.
pub const QUEUE: &str = "kueue.x-k8s.io/queue-name";
/// Label: pods that are admitted together.
const GROUP: &str = "kueue.x-k8s.io/pod-group-name";
/// Annotation: how many pods a group has.
const GROUP_SIZE: &str = "kueue.x-k8s.io/pod-group-total-count";
/// Scheduling gates that Kueue puts on pods: until admission, and until it has chosen a topology domain.
const GATES: [&str; 2] = ["kueue.x-k8s.io/admission", "kueue.x-k8s.io/topology"];

/// The queue of a pool's pods: `spec.placement.queueName`, else the pool's own label.
pub fn name(resource: &ModelPool) -> Option<&str> {
    let label = || resource.labels().get(QUEUE).map(String::as_str);
    resource.spec.placement.queue_name.as_deref().or_else(label).filter(|name| !name.is_empty())
}

/// Labels and annotations of one of a replica's `pods` pods; several are admitted together or not at all.
pub fn metadata(
    resource: &ModelPool,
    replica: &str,
    pods: u32,
) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let (mut labels, mut annotations) = (BTreeMap::new(), BTreeMap::new());
    if let Some(queue) = name(resource) {
        labels.insert(QUEUE.to_owned(), queue.to_owned());
        if pods > 1 {
            labels.insert(GROUP.to_owned(), crate::names::label_value(replica));
            annotations.insert(GROUP_SIZE.to_owned(), pods.to_string());
        }
    }
    (labels, annotations)
}

/// What a pod waits for that somebody holds back from being scheduled.
pub fn held_back(pod: &Pod) -> Option<String> {
    let gates: Vec<&str> =
        pod.spec.as_ref()?.scheduling_gates.iter().flatten().map(|g| g.name.as_str()).collect();
    match (gates.as_slice(), pod.labels().get(QUEUE)) {
        ([], _) => None,
        (gates, Some(queue)) if gates.iter().all(|g| GATES.contains(g)) => {
            Some(format!("waits for admission by Kueue queue {queue}"))
        }
        (gates, _) => Some(format!("is held back by scheduling gates: {}", gates.join(", "))),
    }
}
