//! Groups of simulated pods that run one replica: it is ready once all of them run, and ends with any of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Label of each pod of a group: its rank.
const RANK: &str = "plimsoll.dev/rank";

/// The groups of a local cluster, by their leader's UID: a group that is made anew is another one.
#[derive(Debug, Clone, Default)]
pub(super) struct Groups {
    groups: Arc<Mutex<HashMap<String, Arc<Group>>>>,
}

#[derive(Debug)]
struct Group {
    ranks: watch::Sender<BTreeSet<u32>>,
    broken: CancellationToken,
}

/// A pod's part in its group; dropped when the pod ends, which ends the group.
#[derive(Debug)]
pub(super) struct Member {
    groups: Groups,
    key: String,
    group: Arc<Group>,
}

/// A pod's rank in its group; `None` if it is in none.
pub(super) fn rank(pod: &Pod) -> Option<u32> {
    pod.labels().get(RANK)?.parse().ok()
}

impl Groups {
    /// Takes a pod into its group.
    pub(super) fn join(&self, pod: &Pod, rank: u32) -> Member {
        let leader = || pod.owner_references().iter().find(|o| o.kind == "Pod").map(|o| o.uid.clone());
        let key = if rank == 0 { pod.uid() } else { leader() }.unwrap_or_default();
        let new =
            || Arc::new(Group { ranks: watch::channel(BTreeSet::new()).0, broken: CancellationToken::new() });
        let group = Arc::clone(self.groups.lock().entry(key.clone()).or_insert_with(new));
        group.ranks.send_modify(|ranks| {
            ranks.insert(rank);
        });
        Member { groups: self.clone(), key, group }
    }
}

impl Member {
    /// Resolves once so many pods run.
    pub(super) async fn complete(&self, size: u32) {
        let mut ranks = self.group.ranks.subscribe();
        // The sender lives as long as this.
        let _ = ranks.wait_for(|ranks| ranks.len() as u32 >= size).await;
    }

    /// Cancelled once a pod of the group ended.
    pub(super) fn broken(&self) -> CancellationToken {
        self.group.broken.clone()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.group.broken.cancel();
        self.groups.groups.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tokio::time::timeout;

    use super::*;

    fn pod(uid: &str, leader: Option<&str>) -> Pod {
        let owners: Vec<_> = leader
            .map(|uid| json!({"apiVersion": "v1", "kind": "Pod", "name": "chat-1", "uid": uid}))
            .into_iter()
            .collect();
        let rank = if leader.is_some() { "1" } else { "0" };
        let meta = json!({"name": "x", "uid": uid, "labels": {RANK: rank}, "ownerReferences": owners});
        serde_json::from_value(json!({"metadata": meta})).unwrap()
    }

    #[tokio::test]
    async fn a_group_is_complete_with_all_and_ends_with_any() {
        let groups = Groups::default();
        let (leader, worker) = (pod("a", None), pod("b", Some("a")));
        assert_eq!((rank(&leader), rank(&worker), rank(&Pod::default())), (Some(0), Some(1), None));
        let leads = groups.join(&leader, 0);
        assert!(timeout(Duration::from_millis(50), leads.complete(2)).await.is_err());
        let works = groups.join(&worker, 1);
        timeout(Duration::from_secs(5), leads.complete(2)).await.unwrap();
        assert!(!leads.broken().is_cancelled());
        drop(works);
        assert!(leads.broken().is_cancelled());
        // A worker of the next leader does not join what is left.
        let next = groups.join(&pod("c", None), 0);
        assert!(!next.broken().is_cancelled());
        drop(leads);
        assert!(!next.broken().is_cancelled());
        let late = groups.join(&pod("d", Some("c")), 1);
        timeout(Duration::from_secs(5), next.complete(2)).await.unwrap();
        drop(late);
        assert!(next.broken().is_cancelled());
    }
}
