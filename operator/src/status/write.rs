//! Writes statuses: server-side apply under a field manager of its own, and only what changed.

use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Client, Resource};
use serde::Serialize;
use serde_json::{Value, json};
use tracing::{debug, warn};

use crate::apply::explain;

/// Writes under way at one time.
const CONCURRENCY: usize = 16;
/// Longest time one write may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// One write, as a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// Kind.
    pub resource: ApiResource,
    /// Namespace (`None` for cluster-wide kinds).
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Whether it goes to the status subresource, else to the object itself.
    pub subresource: bool,
    /// What is applied.
    pub body: Value,
}

impl Write {
    /// A write of a resource's status.
    pub fn status<K: Resource<DynamicType = ()>>(
        namespace: Option<&str>,
        name: &str,
        uid: Option<&str>,
        status: &impl Serialize,
    ) -> Self {
        let resource = ApiResource::erase::<K>(&());
        let mut metadata = json!({"name": name});
        if let Some(uid) = uid {
            // Keeps the write from reaching another object of the same name.
            metadata["uid"] = json!(uid);
        }
        let body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": metadata,
            "status": status,
        });
        Self {
            resource,
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            subresource: true,
            body,
        }
    }

    /// A write of a whole cluster-wide object.
    pub fn object<K: Resource<DynamicType = ()>>(name: &str, spec: &impl Serialize) -> Self {
        let resource = ApiResource::erase::<K>(&());
        let body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name},
            "spec": spec,
        });
        Self { resource, namespace: None, name: name.to_owned(), subresource: false, body }
    }
}

/// Makes the writes; returns for each whether it was made. A failed one is tried again at the next look.
pub async fn write(client: &Client, field_manager: &str, writes: Vec<Write>) -> Vec<(Write, bool)> {
    futures::stream::iter(writes)
        .map(|write| async move {
            let made = match tokio::time::timeout(REQUEST_TIMEOUT, one(client, field_manager, &write)).await {
                Ok(Ok(())) => {
                    debug!(kind = %write.resource.kind, name = %write.name, "status written");
                    true
                }
                Ok(Err(error)) => {
                    // Gone, or re-created under the same name: the next look sees that.
                    let gone = matches!(&error, kube::Error::Api(s) if s.code == 404 || s.code == 409);
                    if !gone {
                        warn!(kind = %write.resource.kind, name = %write.name, error = %explain(&error), "failed to write a status");
                    }
                    false
                }
                Err(_) => {
                    warn!(kind = %write.resource.kind, name = %write.name, "writing a status timed out");
                    false
                }
            };
            (write, made)
        })
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await
}

async fn one(client: &Client, field_manager: &str, write: &Write) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> = match &write.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &write.resource),
        None => Api::all_with(client.clone(), &write.resource),
    };
    let params = PatchParams::apply(field_manager).force();
    let patch = Patch::Apply(&write.body);
    if write.subresource {
        api.patch_status(&write.name, &params, &patch).await.map(drop)
    } else {
        api.patch(&write.name, &params, &patch).await.map(drop)
    }
}
