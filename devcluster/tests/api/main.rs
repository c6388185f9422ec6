//! The API as a client meets it: kube-rs over a socket against [`DevCluster`].

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests")]

mod definitions;
mod endings;
mod reads;
mod service;
mod writes;

use std::future::Future;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, pin_mut};
use http::Request;
use http_body_util::BodyExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, EvictParams, ListParams, Patch, PatchParams, PostParams,
    Preconditions, PropagationPolicy, ValidationDirective, WatchEvent, WatchParams,
};
use kube::core::{GroupVersionKind, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Error};
use plimsoll_devcluster::{DevCluster, DevClusterConfig};
use serde_json::{Value, json};

struct World {
    cluster: DevCluster,
    client: Client,
}

async fn world() -> World {
    World::of(DevCluster::start(DevClusterConfig::default()).await.unwrap())
}

/// Nothing here takes long; what never comes fails rather than hangs.
async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("{what} never came"))
}

const GROUP: &str = "test.plimsoll.dev";

fn boats() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("boats.{GROUP}")},
        "spec": {
            "group": GROUP, "scope": "Namespaced",
            "names": {"plural": "boats", "singular": "boat", "kind": "Boat", "listKind": "BoatList", "shortNames": ["bo"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.crew", "statusReplicasPath": ".status.aboard", "labelSelectorPath": ".status.selector"}},
                "selectableFields": [{"jsonPath": ".spec.flag"}],
                "schema": {"openAPIV3Schema": {
                    "type": "object", "required": ["spec"],
                    "properties": {
                        "spec": {
                            "type": "object",
                            "x-kubernetes-validations": [{
                                "rule": "self.draft <= self.depth", "message": "a boat draws no more water than there is"}],
                            "properties": {
                                "crew": {"type": "integer", "default": 1, "minimum": 0},
                                "draft": {"type": "integer", "default": 1},
                                "depth": {"type": "integer", "default": 10},
                                "flag": {"type": "string", "enum": ["red", "green"],
                                    "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "a flag is for life"}]},
                                "loads": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                                    "items": {"type": "object", "required": ["name"], "properties": {
                                        "name": {"type": "string"}, "tons": {"type": "integer"}}}},
                            },
                        },
                        "status": {"type": "object", "properties": {
                            "aboard": {"type": "integer"}, "selector": {"type": "string"}}},
                    },
                }},
            }],
        },
    })
}

fn resource(kind: &str) -> ApiResource {
    match kind {
        "Boat" => ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, "v1", "Boat"), "boats"),
        _ => ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
            "customresourcedefinitions",
        ),
    }
}

fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn boat(name: &str, spec: Value) -> DynamicObject {
    object(
        json!({"apiVersion": format!("{GROUP}/v1"), "kind": "Boat", "metadata": {"name": name}, "spec": spec}),
    )
}

fn status_of<T: std::fmt::Debug>(result: Result<T, Error>) -> (u16, String, String) {
    match result {
        Err(Error::Api(status)) => (status.code, status.reason, status.message),
        other => panic!("expected a failure, got {other:?}"),
    }
}

impl World {
    /// With a client that shows refusals at once rather than tries again.
    fn of(cluster: DevCluster) -> Self {
        let mut config = kube::Config::new(format!("http://{}", cluster.addr()).parse().unwrap());
        config.default_retry = false;
        let client = Client::try_from(config).unwrap();
        Self { cluster, client }
    }

    fn crds(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &resource("CRD"))
    }

    fn boats(&self) -> Api<DynamicObject> {
        Api::default_namespaced_with(self.client.clone(), &resource("Boat"))
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::default_namespaced(self.client.clone())
    }

    async fn define(&self) -> Api<DynamicObject> {
        self.crds().create(&PostParams::default(), &object(boats())).await.unwrap();
        self.boats()
    }

    async fn map(&self, name: &str, metadata: Value) -> ConfigMap {
        let mut value = json!({"metadata": {"name": name}, "data": {"a": "1"}});
        json_patch::merge(&mut value["metadata"], &metadata);
        let value: ConfigMap = serde_json::from_value(value).unwrap();
        self.maps().create(&PostParams::default(), &value).await.unwrap()
    }

    async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(kube::client::Body::from(body.into())).unwrap();
        let response = self.client.send(request).await.unwrap();
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// Waits until an object is gone.
    async fn gone<K>(&self, api: &Api<K>, name: &str)
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + kube::Resource + Send + 'static,
    {
        let wait = kube::runtime::wait::await_condition(api.clone(), name, |o: Option<&K>| o.is_none());
        soon(name, wait).await.unwrap();
    }
}

fn version(meta: &kube::core::ObjectMeta) -> u64 {
    meta.resource_version.as_ref().unwrap().parse().unwrap()
}
