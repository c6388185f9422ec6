//! Changes of pools, as people make them.

use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use plimsoll_e2e::Error;
use serde_json::Value;
use tokio::time::Instant;

use crate::fleet;

/// The kind ModelPool.
pub fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("plimsoll.dev", "v1alpha1", "ModelPool"),
        "modelpools",
    )
}

fn api(client: &Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &resource())
}

/// Applies a pool; its generation, and when the API had answered.
///
/// # Errors
/// If the API refuses.
pub async fn apply(client: &Client, manifest: &Value) -> Result<(i64, Instant), Error> {
    let part = |name: &str| manifest["metadata"][name].as_str().ok_or("the manifest has no name");
    let params = PatchParams::apply("kubectl").force();
    let applied =
        api(client, part("namespace")?).patch(part("name")?, &params, &Patch::Apply(manifest)).await?;
    let at = Instant::now();
    Ok((applied.metadata.generation.ok_or("no generation")?, at))
}

/// Deletes a pool; when the API had answered.
///
/// # Errors
/// If the API refuses.
pub async fn delete(client: &Client, name: &str, i: usize) -> Result<Instant, Error> {
    api(client, &fleet::namespace(i)).delete(name, &DeleteParams::default()).await?;
    Ok(Instant::now())
}

/// Pools that still exist.
///
/// # Errors
/// If the API does not answer.
pub async fn names(client: &Client) -> Result<Vec<String>, Error> {
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource());
    Ok(all.list_metadata(&Default::default()).await?.iter().map(|o| o.name_any()).collect())
}
