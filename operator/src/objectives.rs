//! InferenceObjectives (llm-d, formerly of the Gateway API Inference Extension): which requests of a pool go first. Read
//! where the cluster has that API and the operator may; elsewhere the feature is off and nobody waits for it.
//!
//! Fields as in v1alpha2 of both groups: `spec.priority` (unset is 0) and `spec.poolRef.name`, the InferencePool of the same
//! namespace, which has its ModelPool's name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, DynamicObject, GroupVersionKind, ListParams};
use kube::{Client, ResourceExt, discovery};
use parking_lot::Mutex;
use plimsoll_fleet::{PoolId, RequestPriority};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::apply::explain;

/// API groups, the newer first: its objects win.
const GROUPS: [&str; 2] = ["llm-d.ai", "inference.networking.x-k8s.io"];
const VERSION: &str = "v1alpha2";
const KIND: &str = "InferenceObjective";
/// Time between two looks: one list request for each group that is there.
const INTERVAL: Duration = Duration::from_secs(15);
/// Time between two looks for the API itself, where it is not there.
const ABSENT_INTERVAL: Duration = Duration::from_secs(60);
/// Longest time one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of one API group.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    Absent,
    Refused(String),
    Present(usize),
}

/// Keeps `found` as the cluster has it until `stop`; rings `changed` when it differs.
pub async fn follow(
    client: Client,
    found: Arc<Mutex<Vec<RequestPriority>>>,
    changed: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut known: BTreeMap<&str, Known> = BTreeMap::new();
    let mut lists: BTreeMap<&str, Vec<DynamicObject>> = BTreeMap::new();
    loop {
        for group in GROUPS {
            let (now, list) = look(&client, group).await;
            // Silence of the API is no news: what was known stays.
            let Some(now) = now else { continue };
            if known.get(group).is_none_or(|before| differs(before, &now)) {
                tell(group, &now, known.contains_key(group));
            }
            known.insert(group, now);
            lists.insert(group, list);
        }
        let priorities = priorities(GROUPS.iter().filter_map(|g| lists.get(g)).flatten());
        let different = {
            let mut found = found.lock();
            let different = *found != priorities;
            *found = priorities;
            different
        };
        if different {
            changed.notify_one();
        }
        let present = known.values().any(|k| matches!(k, Known::Present(_)));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(if present { INTERVAL } else { ABSENT_INTERVAL }) => {}
        }
    }
}

fn differs(before: &Known, now: &Known) -> bool {
    match (before, now) {
        (Known::Present(_), Known::Present(_)) => false,
        _ => before != now,
    }
}

fn tell(group: &str, now: &Known, again: bool) {
    match now {
        Known::Present(objects) => info!(group, objects, "InferenceObjectives order requests"),
        Known::Refused(why) => warn!(
            group,
            %why,
            "InferenceObjectives are not read; grant the operator list on inferenceobjectives (helm upgrade does)"
        ),
        // That a cluster has no such API is what most have.
        Known::Absent if again => info!(group, "the API InferenceObjective is gone"),
        Known::Absent => {}
    }
}

/// One look at a group; `None` if the API did not answer.
async fn look(client: &Client, group: &str) -> (Option<Known>, Vec<DynamicObject>) {
    let kind = GroupVersionKind::gvk(group, VERSION, KIND);
    let asked = async {
        let resource = match discovery::pinned_kind(client, &kind).await {
            Ok((resource, _)) => resource,
            Err(kube::Error::Discovery(_)) => return Ok(None),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
            Err(error) => return Err(error),
        };
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        api.list(&ListParams::default()).await.map(|list| Some(list.items))
    };
    match tokio::time::timeout(REQUEST_TIMEOUT, asked).await {
        Ok(Ok(Some(list))) => (Some(Known::Present(list.len())), list),
        Ok(Ok(None)) => (Some(Known::Absent), Vec::new()),
        Ok(Err(error)) => match &error {
            kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
                (Some(Known::Refused(explain(&error))), Vec::new())
            }
            kube::Error::Api(status) if status.code == 404 => (Some(Known::Absent), Vec::new()),
            _ => (None, Vec::new()),
        },
        Err(_) => (None, Vec::new()),
    }
}

/// Priorities by pool and name; of two objects of one name the first counts. What names no pool is left out.
pub fn priorities<'a>(objects: impl Iterator<Item = &'a DynamicObject>) -> Vec<RequestPriority> {
    let mut all: BTreeMap<(PoolId, String), i32> = BTreeMap::new();
    for object in objects.filter(|o| o.metadata.deletion_timestamp.is_none()) {
        let spec = &object.data["spec"];
        let kind = spec["poolRef"]["kind"].as_str().unwrap_or("InferencePool");
        let pool = spec["poolRef"]["name"].as_str().unwrap_or_default();
        let Ok(pool) = PoolId::new(object.namespace().unwrap_or_default(), pool) else { continue };
        if !matches!(kind, "" | "InferencePool" | "ModelPool") {
            continue;
        }
        let wide = spec["priority"].as_i64().unwrap_or(0);
        let priority = i32::try_from(wide).unwrap_or(if wide < 0 { i32::MIN } else { i32::MAX });
        all.entry((pool, object.name_any())).or_insert(priority);
    }
    all.into_iter()
        .map(|((pool, objective), priority)| RequestPriority { pool, objective, priority })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(group: &str, name: &str, spec: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": format!("{group}/v1alpha2"), "kind": "InferenceObjective",
            "metadata": {"name": name, "namespace": "team"}, "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn priorities_are_by_pool_and_name_and_the_newer_group_wins() {
        let reference = |name: &str| json!({"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": name});
        let objects = [
            object("llm-d.ai", "batch", json!({"priority": -1, "poolRef": {"name": "chat"}})),
            object("llm-d.ai", "plain", json!({"poolRef": reference("chat")})),
            object(
                "llm-d.ai",
                "elsewhere",
                json!({"priority": 5, "poolRef": {"kind": "Service", "name": "chat"}}),
            ),
            object("llm-d.ai", "nowhere", json!({"priority": 5, "poolRef": {}})),
            object("llm-d.ai", "huge", json!({"priority": 1_i64 << 40, "poolRef": {"name": "code"}})),
            object(
                "inference.networking.x-k8s.io",
                "batch",
                json!({"priority": 9, "poolRef": {"name": "chat"}}),
            ),
        ];
        let found: Vec<(String, String, i32)> = priorities(objects.iter())
            .into_iter()
            .map(|p| (p.pool.to_string(), p.objective, p.priority))
            .collect();
        let one = |pool: &str, name: &str, priority| (pool.to_owned(), name.to_owned(), priority);
        assert_eq!(
            found,
            [one("team/chat", "batch", -1), one("team/chat", "plain", 0), one("team/code", "huge", i32::MAX)]
        );
    }

    #[test]
    fn only_news_is_told() {
        assert!(!differs(&Known::Present(1), &Known::Present(2)));
        assert!(differs(&Known::Absent, &Known::Present(0)));
        assert!(differs(&Known::Present(1), &Known::Refused("no".to_owned())));
    }
}
