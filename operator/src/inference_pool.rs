//! An InferencePool (`inference.networking.k8s.io/v1`, the Gateway API Inference Extension) for each ModelPool, so that
//! gateways that know that API route to its replicas. Made only if asked for and where the cluster has that API.
//!
//! Fields as in the extension's v1 API: `selector.matchLabels`, `targetPorts[].number` and `endpointPickerRef`, of which a
//! Service needs `name` and `port.number`. The reference is required up to release 1.4 and optional from 1.5 on
//! (gateway-api-inference-extension #2898). The owner reference removes an InferencePool with its ModelPool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt, discovery};
use plimsoll_crds::ModelPool;
use plimsoll_crds::model_pool::EngineKind;
use plimsoll_fleet::pool::Mode;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::apply::explain;
use crate::events::{Events, Note, reference};
use crate::names;
use crate::validate::Validated;

const GROUP: &str = "inference.networking.k8s.io";
const VERSION: &str = "v1";
const KIND: &str = "InferencePool";
/// Longest time one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What an installation chooses about InferencePools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferencePools {
    /// Service of the endpoint picker, in the ModelPool's namespace; `{pool}` stands for the ModelPool's name. `None` leaves
    /// the reference out.
    pub picker: Option<Picker>,
    /// Time between two looks at what there is: one list request each, however many pools there are.
    pub recheck: Duration,
}

impl Default for InferencePools {
    fn default() -> Self {
        Self { picker: None, recheck: Duration::from_secs(60) }
    }
}

/// An endpoint picker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picker {
    /// Name of its Service.
    pub service: String,
    /// Port of its external-processing API.
    pub port: u16,
}

/// An InferencePool that there should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    owner: ObjectReference,
    owner_uid: String,
    body: Value,
}

/// By namespace and name.
pub type AllWanted = BTreeMap<(String, String), Wanted>;

/// The InferencePools that there should be: one for each accepted pool whose replicas Plimsoll runs.
pub fn wanted(validated: &Validated, settings: &InferencePools) -> AllWanted {
    validated
        .accepted()
        .filter(|(resource, accepted)| {
            accepted.pool.mode == Mode::Enforce && resource.spec.engine.kind != EngineKind::External
        })
        .map(|(resource, accepted)| {
            let id = &accepted.pool.id;
            let key = (id.namespace().to_owned(), id.name().to_owned());
            let wanted = Wanted {
                owner: reference(resource),
                owner_uid: accepted.pool.uid.clone(),
                body: body(resource, id.name(), settings),
            };
            (key, wanted)
        })
        .collect()
}

fn body(resource: &ModelPool, name: &str, settings: &InferencePools) -> Value {
    let mut spec = json!({
        "selector": {"matchLabels": {names::MANAGED_BY: names::PLIMSOLL, names::POOL: names::label_value(name)}},
        "targetPorts": [{"number": names::ENGINE_PORT}],
    });
    if let Some(picker) = &settings.picker {
        spec["endpointPickerRef"] = json!({
            "group": "", "kind": "Service", "name": picker.service.replace("{pool}", name),
            "port": {"number": picker.port},
            // Without its picker a gateway still reaches replicas that serve.
            "failureMode": "FailOpen",
        });
    }
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": KIND,
        "metadata": {
            "name": name,
            "labels": {names::MANAGED_BY: names::PLIMSOLL, names::POOL: names::label_value(name)},
            "ownerReferences": Vec::from_iter(resource.controller_owner_ref(&())),
        },
        "spec": spec,
    })
}

/// What to do about one InferencePool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is as it should be.
    Keep,
    /// Create or correct it.
    Apply,
    /// There is one of that name that is not this pool's.
    Taken,
}

/// Decides from what exists.
pub fn step(wanted: &Wanted, existing: Option<&DynamicObject>) -> Step {
    let Some(existing) = existing else { return Step::Apply };
    if !existing.owner_references().iter().any(|o| o.uid == wanted.owner_uid) {
        return Step::Taken;
    }
    if contains(&existing.data["spec"], &wanted.body["spec"]) { Step::Keep } else { Step::Apply }
}

/// Whether a value holds all of another; what defaults or others added is not looked at.
fn contains(value: &Value, part: &Value) -> bool {
    match (value, part) {
        (Value::Object(value), Value::Object(part)) => {
            part.iter().all(|(key, p)| value.get(key).is_some_and(|v| contains(v, p)))
        }
        (Value::Array(value), Value::Array(part)) => {
            value.len() == part.len() && value.iter().zip(part).all(|(v, p)| contains(v, p))
        }
        _ => value == part,
    }
}

/// Keeps InferencePools as wanted until `stop`.
pub async fn run(
    client: Client,
    field_manager: String,
    settings: InferencePools,
    mut wanted: watch::Receiver<Option<Arc<AllWanted>>>,
    events: Events,
    stop: CancellationToken,
) {
    let kind = GroupVersionKind::gvk(GROUP, VERSION, KIND);
    let mut present = None;
    loop {
        let asked = wanted.borrow_and_update().clone();
        if let Some(asked) = asked.filter(|a| !a.is_empty()) {
            // The API may be installed, or removed, at any time.
            let resource =
                tokio::time::timeout(REQUEST_TIMEOUT, discovery::pinned_kind(&client, &kind)).await;
            let resource = resource.ok().and_then(Result::ok).map(|(resource, _)| resource);
            if present != Some(resource.is_some()) {
                present = Some(resource.is_some());
                info!(present = resource.is_some(), "{GROUP}/{VERSION} {KIND}");
            }
            if let Some(resource) = resource {
                look(&client, &field_manager, &resource, &asked, &events).await;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(settings.recheck) => {}
        }
    }
}

async fn look(
    client: &Client,
    field_manager: &str,
    resource: &ApiResource,
    wanted: &AllWanted,
    events: &Events,
) {
    let all: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let list = match tokio::time::timeout(REQUEST_TIMEOUT, all.list(&ListParams::default())).await {
        Ok(Ok(list)) => list,
        Ok(Err(error)) => {
            warn!(error = %explain(&error), "failed to list InferencePools; none is made until that works");
            return;
        }
        Err(_) => {
            warn!("listing InferencePools timed out");
            return;
        }
    };
    let existing: BTreeMap<(String, String), &DynamicObject> =
        list.iter().map(|o| ((o.namespace().unwrap_or_default(), o.name_any()), o)).collect();
    let note = |wanted: &Wanted, reason: &'static str, message: String| {
        warn!(pool = ?wanted.owner.name, %message, "no InferencePool");
        // The key makes a repetition raise the count of the Event that is there.
        let (key, at) = (String::new(), Timestamp::now());
        events.note(Note { regarding: wanted.owner.clone(), warning: true, reason, message, key, at });
    };
    for (key, wanted) in wanted {
        let (namespace, name) = key;
        match step(wanted, existing.get(key).copied()) {
            Step::Keep => {}
            Step::Taken => note(
                wanted,
                "InferencePoolTaken",
                format!(
                    "InferencePool {name} exists and is not this pool's; delete or rename it to have one made"
                ),
            ),
            Step::Apply => {
                let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
                let params = PatchParams::apply(field_manager).force();
                let patch = Patch::Apply(&wanted.body);
                match tokio::time::timeout(REQUEST_TIMEOUT, api.patch(name, &params, &patch)).await {
                    Ok(Ok(_)) => debug!(%namespace, %name, "InferencePool applied"),
                    Ok(Err(error)) => {
                        let missing = wanted.body["spec"].get("endpointPickerRef").is_none();
                        let help = if missing {
                            "; releases before 1.5 of that API need an endpoint picker: name its Service to the operator"
                        } else {
                            ""
                        };
                        note(
                            wanted,
                            "InferencePoolRefused",
                            format!("InferencePool {name} was refused: {}{help}", explain(&error)),
                        );
                    }
                    Err(_) => warn!(%namespace, %name, "applying an InferencePool timed out"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted_of(picker: Option<Picker>) -> Wanted {
        let resource: ModelPool = serde_json::from_value(json!({
            "apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelPool",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 1},
            "spec": {"model": {"name": "m", "preset": "phi-4"}, "slo": {"tpot": {"p95": "50ms"}}},
        }))
        .unwrap();
        let settings = InferencePools { picker, ..InferencePools::default() };
        let body = body(&resource, "chat", &settings);
        Wanted { owner: reference(&resource), owner_uid: "u".to_owned(), body }
    }

    fn object(owner: &str, spec: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
            "metadata": {"name": "chat", "namespace": "team", "ownerReferences": [
                {"apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelPool", "name": "chat", "uid": owner}]},
            "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn what_others_add_stays_and_what_they_change_does_not() {
        let wanted = wanted_of(Some(Picker { service: "{pool}-epp".to_owned(), port: 9002 }));
        assert_eq!(wanted.body["spec"]["endpointPickerRef"]["name"], "chat-epp");
        assert_eq!(step(&wanted, None), Step::Apply);
        let mut spec = wanted.body["spec"].clone();
        spec["appProtocol"] = json!("http");
        assert_eq!(step(&wanted, Some(&object("u", spec.clone()))), Step::Keep);
        spec["targetPorts"] = json!([{"number": 8001}]);
        assert_eq!(step(&wanted, Some(&object("u", spec.clone()))), Step::Apply);
        assert_eq!(step(&wanted, Some(&object("another", spec))), Step::Taken);
    }

    #[test]
    fn without_a_picker_there_is_no_reference() {
        let wanted = wanted_of(None);
        assert_eq!(wanted.body["spec"].get("endpointPickerRef"), None);
        assert_eq!(
            wanted.body["spec"]["selector"]["matchLabels"],
            json!({"app.kubernetes.io/managed-by": "plimsoll", "plimsoll.dev/pool": "chat"})
        );
        assert_eq!(wanted.body["metadata"]["ownerReferences"][0]["uid"], "u");
    }
}
