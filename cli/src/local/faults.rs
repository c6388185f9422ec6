//! Faults on request: annotations that people and tests put on nodes and pods of a local cluster.
//!
//! `kubectl annotate node NODE devcluster.plimsoll.dev/power=off` cuts a node's power until the annotation goes;
//! `kubectl annotate pod POD devcluster.plimsoll.dev/crash=WORD` kills an engine once for each new WORD.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use plimsoll_devcluster::nodes::NodeHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::EngineRuntime;

/// On a node: `off` means that it has no power.
const POWER: &str = "devcluster.plimsoll.dev/power";
/// On a pod: a new value kills its engine.
const CRASH: &str = "devcluster.plimsoll.dev/crash";

/// Brings about the faults that annotations ask for, until `stop`.
pub async fn run(
    client: Client,
    nodes: Arc<NodeHandle>,
    runtime: Arc<EngineRuntime>,
    stop: CancellationToken,
) {
    let config = watcher::Config::default;
    let mut node_events = watcher(Api::<Node>::all(client.clone()), config()).default_backoff().boxed();
    let mut pod_events = watcher(Api::<Pod>::all(client), config()).default_backoff().boxed();
    let mut off = BTreeSet::new();
    let mut crashes = Crashes::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            event = node_events.try_next() => match event {
                Ok(Some(watcher::Event::Apply(node) | watcher::Event::InitApply(node))) => {
                    switch(&nodes, &node, &mut off).await;
                }
                Ok(Some(watcher::Event::Delete(node))) => {
                    off.remove(&node.name_any());
                }
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => debug!(%error, "the node watch failed and is retried"),
            },
            event = pod_events.try_next() => match event {
                Ok(Some(event)) => {
                    if let Some(uid) = crashes.wanted(&event) {
                        info!(uid, "an engine is killed, as its pod's annotation {CRASH} asks");
                        runtime.crash(&uid);
                    }
                }
                Ok(None) => return,
                Err(error) => debug!(%error, "the pod watch failed and is retried"),
            },
        }
    }
}

/// Makes a node's power what its annotation says.
async fn switch(nodes: &NodeHandle, node: &Node, off: &mut BTreeSet<String>) {
    let name = node.name_any();
    let wanted = node.annotations().get(POWER).is_some_and(|power| power == "off");
    if wanted == off.contains(&name) {
        return;
    }
    let outcome = if wanted { nodes.fail_node(&name).await } else { nodes.recover_node(&name).await };
    if let Err(error) = outcome {
        // Noted as done all the same: the next change of the annotation is the next try.
        warn!(node = name, %error, "the power of a node was not switched");
    }
    if wanted {
        off.insert(name);
    } else {
        off.remove(&name);
    }
}

/// The crashes asked for so far, by the pods' uids.
#[derive(Debug, Default)]
struct Crashes(HashMap<String, String>);

impl Crashes {
    /// The uid of the pod whose engine an event asks to kill. What was asked before this watch began is over.
    fn wanted(&mut self, event: &watcher::Event<Pod>) -> Option<String> {
        let (watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) | watcher::Event::Delete(pod)) =
            event
        else {
            return None;
        };
        let uid = pod.uid()?;
        if matches!(event, watcher::Event::Delete(_)) {
            self.0.remove(&uid);
            return None;
        }
        let word = pod.annotations().get(CRASH)?;
        let before = self.0.insert(uid.clone(), word.clone());
        (matches!(event, watcher::Event::Apply(_)) && before.as_ref() != Some(word)).then_some(uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, word: Option<&str>) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_owned());
        if let Some(word) = word {
            pod.annotations_mut().insert(CRASH.to_owned(), word.to_owned());
        }
        pod
    }

    #[test]
    fn an_engine_crashes_once_for_each_new_word() {
        use watcher::Event::{Apply, Delete, InitApply};
        let mut crashes = Crashes::default();
        assert_eq!(crashes.wanted(&InitApply(pod("a", Some("1")))), None, "asked before the watch");
        assert_eq!(crashes.wanted(&Apply(pod("a", Some("1")))), None);
        assert_eq!(crashes.wanted(&Apply(pod("a", Some("2")))).as_deref(), Some("a"));
        assert_eq!(crashes.wanted(&Apply(pod("a", Some("2")))), None, "once");
        assert_eq!(crashes.wanted(&Apply(pod("b", None))), None);
        assert_eq!(crashes.wanted(&Apply(pod("b", Some("1")))).as_deref(), Some("b"));
        assert_eq!(crashes.wanted(&Delete(pod("b", Some("1")))), None);
        assert_eq!(crashes.0.len(), 1);
    }
}
