//! Events about pods and nodes.

use std::fmt::Debug;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, PostParams};
use kube::{Client, Resource, ResourceExt};
use tracing::debug;

/// Records one event. Events are best effort: a failure is only traced.
pub(super) async fn record<K>(
    client: &Client,
    object: &K,
    kind: &str,
    reason: &str,
    message: &str,
    component: &str,
    host: &str,
) where
    K: Resource<DynamicType = ()> + Debug,
{
    let namespace = object.namespace().unwrap_or_else(|| "default".into());
    let now = Timestamp::now();
    let name = object.name_any();
    let event = Event {
        metadata: ObjectMeta {
            // Kubelets name events after the object and the time.
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            name: Some(name.clone()),
            namespace: object.namespace(),
            uid: object.uid(),
            resource_version: object.resource_version(),
            ..ObjectReference::default()
        },
        type_: Some(kind.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        source: Some(EventSource {
            component: Some(component.to_owned()),
            host: (!host.is_empty()).then(|| host.to_owned()),
        }),
        reporting_component: Some(component.to_owned()),
        reporting_instance: Some(host.to_owned()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    };
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    if let Err(error) = api.create(&PostParams::default(), &event).await {
        debug!(object = name, reason, %error, "cannot record an event");
    }
}
