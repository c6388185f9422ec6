//! Takes the finalizer off ModelPools, for when there is no operator left to do it: a pool that waits for one holds up its
//! own deletion and that of its namespace.

use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use plimsoll_crds::ModelPool;
use serde_json::json;

use crate::names;

/// Tries for a pool that others change at the same time.
const TRIES: u32 = 5;

/// What is left of the finalizers without ours; `None` if it is not among them.
fn without_ours(finalizers: &[String]) -> Option<Vec<String>> {
    let left: Vec<String> = finalizers.iter().filter(|f| *f != names::FINALIZER).cloned().collect();
    (left.len() < finalizers.len()).then_some(left)
}

/// Releases the pools of a namespace (`None`: of all); returns the names of those released, as namespace/name. Pods of
/// pools that are being deleted are then collected by Kubernetes.
///
/// # Errors
/// If the API refuses, other than because a pool, or the kind itself, is gone.
pub async fn release(client: &Client, namespace: Option<&str>) -> Result<Vec<String>, kube::Error> {
    let all: Api<ModelPool> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let pools = match all.list_metadata(&ListParams::default()).await {
        Ok(pools) => pools,
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut released = Vec::new();
    for pool in pools.iter().filter(|p| without_ours(p.finalizers()).is_some()) {
        let (namespace, name) = (pool.namespace().unwrap_or_default(), pool.name_any());
        if one(&Api::namespaced(client.clone(), &namespace), &name).await? {
            released.push(format!("{namespace}/{name}"));
        }
    }
    Ok(released)
}

/// Releases one pool; `false` if it is gone or not held.
async fn one(api: &Api<ModelPool>, name: &str) -> Result<bool, kube::Error> {
    for tried in 1..=TRIES {
        let Some(pool) = api.get_metadata_opt(name).await? else { return Ok(false) };
        let Some(left) = without_ours(pool.finalizers()) else { return Ok(false) };
        let patch = json!({"metadata": {"resourceVersion": pool.resource_version(), "finalizers": left}});
        match api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => return Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(false),
            Err(kube::Error::Api(status)) if status.code == 409 && tried < TRIES => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_finalizer_goes() {
        let both = ["example.com/mine".to_owned(), names::FINALIZER.to_owned()];
        assert_eq!(without_ours(&both), Some(vec!["example.com/mine".to_owned()]));
        assert_eq!(without_ours(&both[..1]), None);
    }
}
