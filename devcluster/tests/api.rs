//! The API as a client meets it: kube-rs over a socket against [`DevCluster`].

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests")]

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

#[tokio::test]
async fn objects_are_created_read_replaced_and_deleted() {
    let w = world().await;
    let maps = w.maps();
    let made = w.map("one", json!({"labels": {"x": "y"}})).await;
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
    let (code, reason, message) = status_of(
        maps.create(&PostParams::default(), &{
            let mut again = made.clone();
            again.metadata.resource_version = None;
            again
        })
        .await,
    );
    assert_eq!(
        (code, reason.as_str(), message.as_str()),
        (409, "AlreadyExists", r#"configmaps "one" already exists"#)
    );
    assert_eq!(
        status_of(maps.create(&PostParams::default(), &made).await).0,
        500,
        "versions are the server's"
    );
    let mut changed = made.clone();
    changed.data = Some([("a".to_owned(), "2".to_owned())].into());
    let replaced = maps.replace("one", &PostParams::default(), &changed).await.unwrap();
    assert!(version(&replaced.metadata) > version(&made.metadata));
    let (code, reason, message) = status_of(maps.replace("one", &PostParams::default(), &changed).await);
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    assert!(message.contains("the object has been modified; please apply your changes"), "{message}");
    // Writing the same again writes nothing.
    let same = maps.replace("one", &PostParams::default(), &replaced).await.unwrap();
    assert_eq!(version(&same.metadata), version(&replaced.metadata));
    let wrong = DeleteParams {
        preconditions: Some(Preconditions { uid: Some("other".into()), resource_version: None }),
        ..Default::default()
    };
    assert_eq!(status_of(maps.delete("one", &wrong).await).0, 409);
    let deleted = maps.delete("one", &DeleteParams::default()).await.unwrap().right().unwrap();
    assert!(deleted.is_success());
    let (code, reason, message) = status_of(maps.get("one").await);
    assert_eq!((code, reason.as_str(), message.as_str()), (404, "NotFound", r#"configmaps "one" not found"#));
    assert_eq!(status_of(maps.delete("one", &DeleteParams::default()).await).0, 404);

    let prefixed: ConfigMap = serde_json::from_value(json!({"metadata": {"generateName": "gen-"}})).unwrap();
    let (a, b) = (
        maps.create(&PostParams::default(), &prefixed).await.unwrap(),
        maps.create(&PostParams::default(), &prefixed).await.unwrap(),
    );
    let (a, b) = (a.metadata.name.unwrap(), b.metadata.name.unwrap());
    assert!(a != b && a.starts_with("gen-") && a.len() == 9, "{a} {b}");
    let long: ConfigMap =
        serde_json::from_value(json!({"metadata": {"generateName": "é".repeat(60)}})).unwrap();
    assert_eq!(status_of(maps.create(&PostParams::default(), &long).await).0, 422);

    let elsewhere: Api<ConfigMap> = Api::namespaced(w.client.clone(), "nowhere");
    let (code, _, message) = status_of(elsewhere.create(&PostParams::default(), &prefixed).await);
    assert_eq!((code, message.as_str()), (404, r#"namespaces "nowhere" not found"#));
    let all = maps.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    assert_eq!(all.left().unwrap().items.len(), 3, "two made here, and kube-root-ca.crt, which comes back");
    for name in [a, b] {
        assert!(maps.get_opt(&name).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn generations_count_changes_of_spec_only() {
    let w = world().await;
    let boats = w.define().await;
    let made = boats.create(&PostParams::default(), &boat("a", json!({"flag": "red"}))).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    assert_eq!(made.data["spec"], json!({"crew": 1, "draft": 1, "depth": 10, "flag": "red"}), "defaulted");
    let label = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    assert_eq!(boats.patch("a", &PatchParams::default(), &label).await.unwrap().metadata.generation, Some(1));
    let crew = Patch::Merge(json!({"spec": {"crew": 4}, "status": {"aboard": 9}}));
    let patched = boats.patch("a", &PatchParams::default(), &crew).await.unwrap();
    assert_eq!(patched.metadata.generation, Some(2));
    assert!(patched.data.get("status").is_none(), "status is written apart");
    let status = Patch::Merge(json!({"spec": {"crew": 9}, "status": {"aboard": 3, "selector": "a=b"}}));
    let patched = boats.patch_status("a", &PatchParams::default(), &status).await.unwrap();
    assert_eq!(
        (patched.metadata.generation, &patched.data["spec"]["crew"], &patched.data["status"]["aboard"]),
        (Some(2), &json!(4), &json!(3))
    );

    let scale = boats.get_scale("a").await.unwrap();
    assert_eq!(
        (scale.spec.as_ref().unwrap().replicas, scale.status.as_ref().unwrap().replicas),
        (Some(4), 3)
    );
    assert_eq!(scale.status.unwrap().selector.as_deref(), Some("a=b"));
    let scaled = boats
        .patch_scale("a", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 6}})))
        .await
        .unwrap();
    assert_eq!(scaled.spec.unwrap().replicas, Some(6));
    let now = boats.get("a").await.unwrap();
    assert_eq!((now.metadata.generation, &now.data["spec"]["crew"]), (Some(3), &json!(6)));
    let (code, _, message) = status_of(
        boats
            .patch_scale("a", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": -1}})))
            .await,
    );
    assert_eq!(code, 422);
    assert!(
        message.contains("spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        "{message}"
    );
    let mut blind = now.clone();
    blind.metadata.resource_version = None;
    let (code, _, message) = status_of(boats.replace("a", &PostParams::default(), &blind).await);
    assert_eq!(code, 422);
    assert!(
        message.ends_with("metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"),
        "{message}"
    );
}

#[tokio::test]
async fn every_kind_of_patch_applies() {
    let w = world().await;
    let maps = w.maps();
    w.map("m", json!({})).await;
    let pp = PatchParams::default();
    let ops: json_patch::Patch = serde_json::from_value(json!([{"op": "test", "path": "/data/a", "value": "1"}, {"op": "add", "path": "/data/b", "value": "2"}])).unwrap();
    assert_eq!(maps.patch("m", &pp, &Patch::Json::<()>(ops.clone())).await.unwrap().data.unwrap()["b"], "2");
    let fails: json_patch::Patch =
        serde_json::from_value(json!([{"op": "test", "path": "/data/a", "value": "7"}])).unwrap();
    assert_eq!(status_of(maps.patch("m", &pp, &Patch::Json::<()>(fails)).await).0, 422);
    let merged = maps.patch("m", &pp, &Patch::Merge(json!({"data": {"a": null, "c": "3"}}))).await.unwrap();
    assert_eq!(merged.data.unwrap().into_keys().collect::<Vec<_>>(), ["b", "c"]);
    let pods: Api<Pod> = Api::default_namespaced(w.client.clone());
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}})).unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let strategic = Patch::Strategic(json!({"spec": {"containers": [{"name": "b", "image": "z"}]}}));
    let images: Vec<_> = pods
        .patch("p", &pp, &strategic)
        .await
        .unwrap()
        .spec
        .unwrap()
        .containers
        .into_iter()
        .map(|c| c.image.unwrap())
        .collect();
    assert_eq!(images, ["x", "z"]);
    let boats = w.define().await;
    boats.create(&PostParams::default(), &boat("a", json!({}))).await.unwrap();
    assert_eq!(status_of(boats.patch("a", &pp, &Patch::Strategic(json!({"spec": {}}))).await).0, 415);
    assert_eq!(status_of(maps.patch("none", &pp, &Patch::Merge(json!({}))).await).0, 404);
    // Patches that leave no object are refused, whatever they are.
    let path = "/api/v1/namespaces/default/configmaps/m";
    let merge = [("content-type", "application/merge-patch+json")];
    assert!(matches!(w.raw("PATCH", path, &merge, "7").await.0, 400 | 422));
    assert!(matches!(w.raw("PATCH", path, &merge, r#"{"metadata": 3}"#).await.0, 400 | 422));
    let json = [("content-type", "application/json-patch+json")];
    assert!(matches!(
        w.raw("PATCH", path, &json, r#"[{"op": "replace", "path": "", "value": []}]"#).await.0,
        400 | 422
    ));
    let (code, after) = w.raw("PATCH", path, &json, r#"[{"op": "remove", "path": "/metadata"}]"#).await;
    assert!(code >= 400 || after["metadata"]["uid"].is_string(), "{after}");
}

#[tokio::test]
async fn server_side_apply_owns_fields() {
    let w = world().await;
    let boats = w.define().await;
    let config = |spec: Value| {
        Patch::Apply(
            json!({"apiVersion": format!("{GROUP}/v1"), "kind": "Boat", "metadata": {"name": "a"}, "spec": spec}),
        )
    };
    let (one, two) = (PatchParams::apply("one"), PatchParams::apply("two"));
    let made = boats
        .patch("a", &one, &config(json!({"crew": 2, "loads": [{"name": "salt", "tons": 1}]})))
        .await
        .unwrap();
    let managed = made.metadata.managed_fields.clone().unwrap();
    assert_eq!(
        (managed[0].manager.as_deref(), managed[0].operation.as_deref()),
        (Some("one"), Some("Apply"))
    );
    let again = boats
        .patch("a", &one, &config(json!({"crew": 2, "loads": [{"name": "salt", "tons": 1}]})))
        .await
        .unwrap();
    assert_eq!(version(&again.metadata), version(&made.metadata), "an apply of the same writes nothing");
    let (code, _, message) = status_of(boats.patch("a", &two, &config(json!({"crew": 3}))).await);
    assert_eq!(
        (code, message.as_str()),
        (409, r#"Apply failed with 1 conflict: conflict with "one": .spec.crew"#)
    );
    let forced = boats
        .patch("a", &two.clone().force(), &config(json!({"crew": 3, "loads": [{"name": "tea"}]})))
        .await
        .unwrap();
    assert_eq!(forced.data["spec"]["crew"], 3);
    assert_eq!(forced.data["spec"]["loads"].as_array().unwrap().len(), 2, "lists merge by key");
    // What a manager no longer applies goes, what another owns stays.
    let less = boats.patch("a", &one, &config(json!({}))).await.unwrap();
    assert_eq!(less.data["spec"]["loads"], json!([{"name": "tea"}]));
    assert_eq!(less.data["spec"]["crew"], 3);
    let path = format!("/apis/{GROUP}/v1/namespaces/default/boats/a");
    let body =
        json!({"apiVersion": format!("{GROUP}/v1"), "kind": "Boat", "metadata": {"name": "a"}}).to_string();
    let (code, status) =
        w.raw("PATCH", &path, &[("content-type", "application/apply-patch+yaml")], body).await;
    assert_eq!(code, 400);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("fieldManager: Required value: is required for apply patch"),
        "{status}"
    );
    // Updates take ownership, too.
    let updated = boats
        .patch(
            "a",
            &PatchParams { field_manager: Some("three".into()), ..Default::default() },
            &Patch::Merge(json!({"spec": {"depth": 20}})),
        )
        .await
        .unwrap();
    let managers: Vec<_> = updated
        .metadata
        .managed_fields
        .unwrap()
        .into_iter()
        .map(|m| (m.manager.unwrap(), m.operation.unwrap()))
        .collect();
    assert!(managers.contains(&("three".into(), "Update".into())), "{managers:?}");
    let uid = Patch::Apply(
        json!({"apiVersion": format!("{GROUP}/v1"), "kind": "Boat", "metadata": {"name": "new", "uid": "x"}, "spec": {}}),
    );
    assert_eq!(status_of(boats.patch("new", &one, &uid).await).0, 409);
}

#[tokio::test]
async fn schemas_default_prune_and_refuse() {
    let w = world().await;
    let boats = w.define().await;
    let unknown = boat("u", json!({"flag": "red", "mast": 3}));
    let made = boats.create(&PostParams::default(), &unknown).await.unwrap();
    assert!(made.data["spec"].get("mast").is_none(), "unknown fields are pruned");
    let path = format!("/apis/{GROUP}/v1/namespaces/default/boats?fieldValidation=Strict");
    let mut value = json!(unknown);
    value["metadata"]["name"] = "v".into();
    let (code, status) =
        w.raw("POST", &path, &[("content-type", "application/json")], value.to_string()).await;
    assert_eq!(code, 400);
    assert!(
        status["message"].as_str().unwrap().contains(r#"strict decoding error: unknown field "spec.mast""#),
        "{status}"
    );
    let params = PatchParams { field_validation: Some(ValidationDirective::Strict), ..Default::default() };
    assert_eq!(
        status_of(boats.patch("u", &params, &Patch::Merge(json!({"spec": {"mast": 1}}))).await).0,
        400
    );

    let post = PostParams::default();
    let (code, reason, message) = status_of(boats.create(&post, &boat("b", json!({"draft": 11}))).await);
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert!(
        message.contains(r#"Boat.test.plimsoll.dev "b" is invalid: spec: Invalid value:"#)
            && message.contains("a boat draws no more water than there is"),
        "{message}"
    );
    let (_, _, message) = status_of(boats.create(&post, &boat("b", json!({"flag": "blue"}))).await);
    assert!(
        message.contains(r#"spec.flag: Unsupported value: "blue": supported values: "red", "green""#),
        "{message}"
    );
    let (_, _, message) = status_of(boats.create(&post, &boat("b", json!({"crew": "many"}))).await);
    assert!(
        message.contains(
            "spec.crew: Invalid value: \"string\": spec.crew in body must be of type integer: \"string\""
        ),
        "{message}"
    );
    let (_, _, message) = status_of(
        boats.patch("u", &PatchParams::default(), &Patch::Merge(json!({"spec": {"flag": "green"}}))).await,
    );
    assert!(message.contains("a flag is for life"), "{message}");
    let (_, _, message) = status_of(boats.create(&post, &boat("Bad_Name", json!({}))).await);
    assert!(message.contains("a lowercase RFC 1123 subdomain"), "{message}");
    let (_, _, message) = status_of(
        boats
            .create(
                &post,
                &object(
                    json!({"apiVersion": format!("{GROUP}/v1"), "kind": "Boat", "metadata": {"name": "b"}}),
                ),
            )
            .await,
    );
    assert!(message.contains("spec: Required value"), "{message}");
}

#[tokio::test]
async fn definitions_are_served_while_they_exist() {
    let w = world().await;
    let boats = w.boats();
    assert_eq!(status_of(boats.list(&ListParams::default()).await).0, 404);
    let crds = w.crds();
    let made = crds.create(&PostParams::default(), &object(boats_definition())).await.unwrap();
    let conditions = made.data["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True"));
    boats.create(&PostParams::default(), &boat("a", json!({}))).await.unwrap();
    let groups = w.client.list_api_groups().await.unwrap();
    assert!(groups.groups.iter().any(|g| g.name == GROUP));
    let held = Patch::Merge(json!({"metadata": {"finalizers": ["test.plimsoll.dev/hold"]}}));
    boats.patch("a", &PatchParams::default(), &held).await.unwrap();
    let watch = boats.watch(&WatchParams::default(), "0").await.unwrap();
    crds.delete(&made.metadata.name.clone().unwrap(), &DeleteParams::default()).await.unwrap();
    let (code, _, message) = status_of(boats.create(&PostParams::default(), &boat("b", json!({}))).await);
    assert_eq!(
        (code, message.as_str()),
        (405, "create not allowed while custom resource definition is terminating")
    );
    let marked = kube::runtime::wait::await_condition(boats.clone(), "a", |b: Option<&DynamicObject>| {
        b.is_some_and(|b| b.metadata.deletion_timestamp.is_some())
    });
    soon("deletion of the boat", marked).await.unwrap();
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    boats.patch("a", &PatchParams::default(), &free).await.unwrap();
    w.gone(&crds, &format!("boats.{GROUP}")).await;
    assert_eq!(status_of(boats.list(&ListParams::default()).await).0, 404);
    // Its watches end rather than wait forever.
    let events: Vec<_> = soon("the watch's end", watch.try_collect::<Vec<_>>()).await.unwrap();
    assert!(events.iter().any(|e| matches!(e, WatchEvent::Deleted(_))), "{events:?}");
    let mut broken = boats_definition();
    broken["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"]
        [0]["rule"] = "self.nope >".into();
    let (code, _, message) = status_of(crds.create(&PostParams::default(), &object(broken)).await);
    assert_eq!(code, 422, "{message}");
}

fn boats_definition() -> Value {
    boats()
}

#[tokio::test]
async fn lists_page_and_select() {
    let w = world().await;
    let maps = w.maps();
    for i in 0..7 {
        w.map(&format!("m{i}"), json!({"labels": {"parity": if i % 2 == 0 { "even" } else { "odd" }}})).await;
    }
    let first = maps.list(&ListParams::default().limit(3)).await.unwrap();
    assert_eq!((first.items.len(), first.metadata.remaining_item_count), (3, Some(5)));
    maps.delete("m6", &DeleteParams::default()).await.unwrap();
    let token = first.metadata.continue_.unwrap();
    let rest = maps.list(&ListParams::default().continue_token(&token)).await.unwrap();
    assert_eq!(rest.items.len(), 5, "pages are of one moment");
    assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);
    assert_eq!(status_of(maps.list(&ListParams::default().continue_token("bogus")).await).0, 400);
    let names = |list: kube::core::ObjectList<ConfigMap>| {
        list.items.into_iter().map(|m| m.metadata.name.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(
        names(maps.list(&ListParams::default().labels("parity=odd")).await.unwrap()),
        ["m1", "m3", "m5"]
    );
    assert_eq!(
        names(maps.list(&ListParams::default().labels("parity notin (odd),parity")).await.unwrap()),
        ["m0", "m2", "m4"]
    );
    assert_eq!(names(maps.list(&ListParams::default().fields("metadata.name=m4")).await.unwrap()), ["m4"]);
    let (code, _, message) = status_of(maps.list(&ListParams::default().fields("data.a=1")).await);
    assert_eq!((code, message.as_str()), (400, "field label not supported: data.a"));
    let boats = w.define().await;
    boats.create(&PostParams::default(), &boat("r", json!({"flag": "red"}))).await.unwrap();
    boats.create(&PostParams::default(), &boat("g", json!({"flag": "green"}))).await.unwrap();
    assert_eq!(boats.list(&ListParams::default().fields("spec.flag=green")).await.unwrap().items.len(), 1);
    let all: Api<ConfigMap> = Api::all(w.client.clone());
    // The maps made here, and four namespaces' kube-root-ca.crt.
    assert_eq!(all.list(&ListParams::default()).await.unwrap().items.len(), 6 + 4);
    let future = w.raw("GET", "/api/v1/configmaps?resourceVersion=99999999", &[], "").await;
    assert_eq!(future.0, 504);
    let metadata = maps.list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!((metadata.items.len(), metadata.types.kind.as_str()), (7, "PartialObjectMetadataList"));
}

#[tokio::test]
async fn watches_see_what_they_select() {
    let w = world().await;
    let maps = w.maps();
    let start = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let odd = maps.watch(&WatchParams::default().labels("on=yes"), &start).await.unwrap();
    pin_mut!(odd);
    w.map("m", json!({})).await;
    for on in ["yes", "yes-not", "yes"] {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"on": on}}}));
        maps.patch("m", &PatchParams::default(), &patch).await.unwrap();
    }
    maps.patch("m", &PatchParams::default(), &Patch::Merge(json!({"data": {"a": "2"}}))).await.unwrap();
    maps.delete("m", &DeleteParams::default()).await.unwrap();
    let mut seen = Vec::new();
    let mut last = version(&w.map("other", json!({"labels": {"on": "yes"}})).await.metadata);
    while let Some(event) = soon("an event", odd.next()).await {
        match event.unwrap() {
            WatchEvent::Added(m) if m.metadata.name.as_deref() == Some("other") => {
                assert_eq!(version(&m.metadata), last);
                break;
            }
            WatchEvent::Added(m) => seen.push(("added", m)),
            WatchEvent::Modified(m) => seen.push(("modified", m)),
            WatchEvent::Deleted(m) => seen.push(("deleted", m)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        seen.iter().map(|(k, _)| *k).collect::<Vec<_>>(),
        ["added", "deleted", "added", "modified", "deleted"]
    );
    assert_eq!(seen[1].1.metadata.labels.as_ref().unwrap()["on"], "yes", "as it last matched");
    last = 0;
    for (_, m) in &seen {
        assert!(version(&m.metadata) > last, "versions only grow");
        last = version(&m.metadata);
    }
    // Resuming from the past replays; from before the history it is gone.
    let again = maps.watch(&WatchParams::default(), &start).await.unwrap();
    pin_mut!(again);
    assert!(matches!(soon("the replay", again.next()).await, Some(Ok(WatchEvent::Added(_)))));
    for old in ["0000000001", "99999999"] {
        let old = if old == "0000000001" { continue_old(&w).await } else { old.to_owned() };
        let stream = maps.watch(&WatchParams::default(), &old).await.unwrap();
        pin_mut!(stream);
        match soon("the refusal", stream.next()).await {
            Some(Ok(WatchEvent::Error(status))) => {
                assert_eq!((status.code, status.reason.as_str()), (410, "Expired"))
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A version that the history of config maps no longer reaches back to.
async fn continue_old(w: &World) -> String {
    let old = w.cluster.store().revision().to_string();
    let maps = w.maps();
    w.map("busy", json!({})).await;
    let store = w.cluster.store();
    let key = plimsoll_devcluster::store::ObjectKey::new(
        plimsoll_devcluster::store::GroupResource::new("", "configmaps"),
        "default",
        "busy",
    );
    for i in 0..5000 {
        store
            .update(&key, |o| {
                o["data"]["n"] = i.to_string().into();
                true
            })
            .unwrap();
    }
    let token = maps.list(&ListParams::default().limit(1)).await.unwrap();
    assert!(token.metadata.continue_.is_some());
    old
}

#[tokio::test]
async fn watchers_and_controllers_of_kube_work() {
    let w = world().await;
    let boats = w.define().await;
    for streaming in [false, true] {
        let config =
            if streaming { watcher::Config::default().streaming_lists() } else { watcher::Config::default() };
        boats.create(&PostParams::default(), &boat("a", json!({}))).await.unwrap();
        let stream = watcher::watcher(boats.clone(), config);
        pin_mut!(stream);
        let mut names = Vec::new();
        loop {
            match soon("the initial list", stream.try_next()).await.unwrap().unwrap() {
                watcher::Event::InitApply(b) => names.push(b.metadata.name.unwrap()),
                watcher::Event::InitDone => break,
                _ => {}
            }
        }
        assert_eq!(names, ["a"]);
        boats.delete("a", &DeleteParams::default()).await.unwrap();
        assert!(matches!(
            soon("the deletion", stream.try_next()).await.unwrap(),
            Some(watcher::Event::Delete(_))
        ));
    }
    let partial: Api<PartialObjectMeta<DynamicObject>> =
        Api::default_namespaced_with(w.client.clone(), &resource("Boat"));
    let metadata = watcher::watcher(partial, watcher::Config::default()).touched_objects();
    pin_mut!(metadata);
    boats.create(&PostParams::default(), &boat("b", json!({"crew": 3}))).await.unwrap();
    let seen = soon("metadata", metadata.try_next()).await.unwrap().unwrap();
    assert_eq!(
        (seen.metadata.name.as_deref(), seen.types.unwrap().kind.as_str()),
        (Some("b"), "PartialObjectMetadata")
    );

    // A controller that says how many are aboard.
    let (done, mut finished) = tokio::sync::mpsc::channel(8);
    let reconcile = |boat: std::sync::Arc<DynamicObject>, api: std::sync::Arc<Api<DynamicObject>>| async move {
        let name = boat.metadata.name.clone().unwrap();
        let status = Patch::Merge(json!({"status": {"aboard": boat.data["spec"]["crew"]}}));
        api.patch_status(&name, &PatchParams::default(), &status).await?;
        Ok::<_, kube::Error>(kube::runtime::controller::Action::await_change())
    };
    let controller =
        kube::runtime::Controller::new_with(boats.clone(), watcher::Config::default(), resource("Boat"))
            .run(
                reconcile,
                |_, _: &kube::Error, _| {
                    kube::runtime::controller::Action::requeue(Duration::from_millis(100))
                },
                std::sync::Arc::new(boats.clone()),
            )
            .for_each(move |result| {
                let done = done.clone();
                async move {
                    let _ = done.try_send(result.map(|_| ()).map_err(|e| e.to_string()));
                }
            });
    let task = tokio::spawn(controller);
    soon("a reconciliation", finished.recv()).await.unwrap().unwrap();
    let aboard = kube::runtime::wait::await_condition(boats.clone(), "b", |b: Option<&DynamicObject>| {
        b.is_some_and(|b| b.data["status"]["aboard"] == 5)
    });
    boats.patch("b", &PatchParams::default(), &Patch::Merge(json!({"spec": {"crew": 5}}))).await.unwrap();
    soon("the status", aboard).await.unwrap();
    task.abort();
}

#[tokio::test]
async fn finalizers_hold_and_release() {
    let w = world().await;
    let boats = w.define().await;
    let mut held = boat("a", json!({}));
    held.metadata.finalizers = Some(vec!["test.plimsoll.dev/a".into(), "test.plimsoll.dev/b".into()]);
    boats.create(&PostParams::default(), &held).await.unwrap();
    let marked = boats.delete("a", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert!(marked.metadata.deletion_timestamp.is_some() && marked.metadata.generation == Some(2));
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(0));
    let again = boats.delete("a", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(again.metadata.resource_version, marked.metadata.resource_version);
    let set = |all: Value| Patch::Merge(json!({"metadata": {"finalizers": all}}));
    let (code, _, message) =
        status_of(boats.patch("a", &PatchParams::default(), &set(json!(["test.plimsoll.dev/new"]))).await);
    assert_eq!(code, 422);
    assert!(message.contains("no new finalizers can be added if the object is being deleted"), "{message}");
    boats.patch("a", &PatchParams::default(), &set(json!(["test.plimsoll.dev/b"]))).await.unwrap();
    let last = boats.patch("a", &PatchParams::default(), &set(json!([]))).await.unwrap();
    assert!(last.metadata.deletion_timestamp.is_some());
    assert_eq!(
        status_of(boats.get("a").await).0,
        404,
        "the write that removes the last finalizer ends the object"
    );
}

#[tokio::test]
async fn owners_take_their_dependents_along() {
    let w = world().await;
    let maps = w.maps();
    let owned = |owners: &[&ConfigMap], block: bool| {
        let refs: Vec<Value> = owners.iter().map(|o| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": o.metadata.name, "uid": o.metadata.uid, "blockOwnerDeletion": block})).collect();
        json!({"ownerReferences": refs})
    };
    // Background: the owner goes first. A dependent that has another owner stays, without the gone one.
    let (a, b) = (w.map("a", json!({})).await, w.map("b", json!({})).await);
    w.map("of-a", owned(&[&a], true)).await;
    w.map("of-both", owned(&[&a, &b], true)).await;
    maps.delete("a", &DeleteParams::background()).await.unwrap();
    assert_eq!(status_of(maps.get("a").await).0, 404);
    w.gone(&maps, "of-a").await;
    let one_owner = kube::runtime::wait::await_condition(maps.clone(), "of-both", |m: Option<&ConfigMap>| {
        m.is_some_and(|m| m.metadata.owner_references.as_ref().is_some_and(|o| o.len() == 1))
    });
    soon("the other owner alone", one_owner).await.unwrap();
    // Foreground: dependents that block go first.
    let c = w.map("c", json!({})).await;
    let mut held = owned(&[&c], true);
    held["finalizers"] = json!(["test.plimsoll.dev/hold"]);
    w.map("of-c", held).await;
    let marked = maps.delete("c", &DeleteParams::foreground()).await.unwrap().left().unwrap();
    assert_eq!(marked.metadata.finalizers.as_deref(), Some(&["foregroundDeletion".to_owned()][..]));
    let dependent_marked =
        kube::runtime::wait::await_condition(maps.clone(), "of-c", |m: Option<&ConfigMap>| {
            m.is_some_and(|m| m.metadata.deletion_timestamp.is_some())
        });
    soon("the dependent's deletion", dependent_marked).await.unwrap();
    assert!(maps.get_opt("c").await.unwrap().is_some());
    maps.patch("of-c", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}})))
        .await
        .unwrap();
    w.gone(&maps, "c").await;
    // Orphan: dependents stay, without the owner.
    w.map("of-b", owned(&[&b], false)).await;
    let orphan = DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..Default::default() };
    maps.delete("b", &orphan).await.unwrap();
    w.gone(&maps, "b").await;
    for name in ["of-b", "of-both"] {
        assert!(
            maps.get(name).await.unwrap().metadata.owner_references.is_none_or(|o| o.is_empty()),
            "{name}"
        );
    }
    // An owner that never was.
    let ghost = json!({"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "ghost", "uid": "ghost"}]});
    w.map("of-ghost", ghost).await;
    w.gone(&maps, "of-ghost").await;
}

#[tokio::test]
async fn namespaces_end_with_what_is_in_them() {
    let w = world().await;
    let namespaces: Api<Namespace> = Api::all(w.client.clone());
    let ns: Namespace = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    let made = namespaces.create(&PostParams::default(), &ns).await.unwrap();
    assert_eq!(made.status.unwrap().phase.as_deref(), Some("Active"));
    let maps: Api<ConfigMap> = Api::namespaced(w.client.clone(), "team");
    let map = |name: &str, finalizers: Value| {
        serde_json::from_value::<ConfigMap>(json!({"metadata": {"name": name, "finalizers": finalizers}}))
            .unwrap()
    };
    maps.create(&PostParams::default(), &map("free", json!(null))).await.unwrap();
    maps.create(&PostParams::default(), &map("held", json!(["test.plimsoll.dev/hold"]))).await.unwrap();
    let marked = namespaces.delete("team", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(marked.status.unwrap().phase.as_deref(), Some("Terminating"));
    let (code, _, message) = status_of(maps.create(&PostParams::default(), &map("late", json!(null))).await);
    assert_eq!(code, 403);
    assert!(
        message.contains("unable to create new content in namespace team because it is being terminated"),
        "{message}"
    );
    w.gone(&maps, "free").await;
    assert!(namespaces.get_opt("team").await.unwrap().is_some());
    maps.patch("held", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}})))
        .await
        .unwrap();
    w.gone(&namespaces, "team").await;
    assert_eq!(status_of(namespaces.delete("default", &DeleteParams::default()).await).0, 403);
}

#[tokio::test]
async fn every_namespace_holds_its_standing_objects() {
    let w = world().await;
    let namespaces: Api<Namespace> = Api::all(w.client.clone());
    let ns: Namespace = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    namespaces.create(&PostParams::default(), &ns).await.unwrap();
    let there = |o: Option<&ServiceAccount>| o.is_some();
    let accounts: Api<ServiceAccount> = Api::namespaced(w.client.clone(), "team");
    soon("the account", kube::runtime::wait::await_condition(accounts.clone(), "default", there))
        .await
        .unwrap();
    // What is deleted or changed comes back.
    let first = accounts.get("default").await.unwrap().metadata.uid;
    accounts.delete("default", &DeleteParams::default()).await.unwrap();
    let again =
        kube::runtime::wait::await_condition(accounts.clone(), "default", |o: Option<&ServiceAccount>| {
            o.is_some_and(|o| o.metadata.uid != first)
        });
    soon("another account", again).await.unwrap();
    let patch = Patch::Merge(json!({"data": {"ca.crt": "mine"}}));
    w.maps().patch("kube-root-ca.crt", &PatchParams::default(), &patch).await.unwrap();
    let back =
        |o: Option<&ConfigMap>| o.is_some_and(|o| o.data.as_ref().is_some_and(|d| d["ca.crt"].is_empty()));
    soon("the bundle", kube::runtime::wait::await_condition(w.maps(), "kube-root-ca.crt", back))
        .await
        .unwrap();
    let services: Api<Service> = Api::default_namespaced(w.client.clone());
    let ports = services.get("kubernetes").await.unwrap().spec.unwrap().ports.unwrap();
    assert_eq!(ports[0].target_port, Some(IntOrString::Int(w.cluster.addr().port().into())));
    // None of it keeps a namespace from ending.
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    w.gone(&namespaces, "team").await;
    assert_eq!(accounts.list(&ListParams::default()).await.unwrap().items.len(), 0);
}

#[tokio::test]
async fn events_have_two_faces_and_leases_renew() {
    let w = world().await;
    let events: Api<Event> = Api::default_namespaced(w.client.clone());
    let event: Event = serde_json::from_value(json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "Why", "message": "because", "type": "Normal"})).unwrap();
    events.create(&PostParams::default(), &event).await.unwrap();
    let new: Api<k8s_openapi::api::events::v1::Event> = Api::default_namespaced(w.client.clone());
    let seen = new.get("e").await.unwrap();
    assert_eq!((seen.note.as_deref(), seen.regarding.unwrap().name.as_deref()), (Some("because"), Some("p")));
    let recorder = kube::runtime::events::Recorder::new(w.client.clone(), "tests".into());
    let about = k8s_openapi::api::core::v1::ObjectReference {
        kind: Some("Pod".into()),
        name: Some("q".into()),
        namespace: Some("default".into()),
        ..Default::default()
    };
    let note = kube::runtime::events::Event {
        type_: kube::runtime::events::EventType::Warning,
        reason: "Lost".into(),
        note: Some("it is gone".into()),
        action: "Look".into(),
        secondary: None,
    };
    recorder.publish(&note, &about).await.unwrap();
    recorder.publish(&note, &about).await.unwrap();
    let old =
        events.list(&ListParams::default().fields("involvedObject.name=q,type=Warning")).await.unwrap().items;
    assert_eq!(
        (old.len(), old[0].message.as_deref(), old[0].reporting_component.as_deref()),
        (1, Some("it is gone"), Some("tests"))
    );
    assert_eq!(old[0].series.as_ref().unwrap().count, Some(2));

    let leases: Api<Lease> = Api::default_namespaced(w.client.clone());
    let lease: Lease = serde_json::from_value(json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a", "leaseDurationSeconds": 5, "renewTime": "2026-01-01T00:00:00.123456Z"}})).unwrap();
    let made = leases.create(&PostParams::default(), &lease).await.unwrap();
    let (mut first, mut second) = (made.clone(), made);
    first.spec.as_mut().unwrap().holder_identity = Some("b".into());
    second.spec.as_mut().unwrap().holder_identity = Some("c".into());
    leases.replace("l", &PostParams::default(), &first).await.unwrap();
    assert_eq!(
        status_of(leases.replace("l", &PostParams::default(), &second).await).0,
        409,
        "one of two wins"
    );
}

#[tokio::test]
async fn pods_are_bound_evicted_and_wait_for_their_kubelet() {
    let w = world().await;
    let pods: Api<Pod> = Api::default_namespaced(w.client.clone());
    let pod = |name: &str| {
        serde_json::from_value::<Pod>(json!({"metadata": {"name": name, "labels": {"app": "x"}}, "spec": {"containers": [{"name": "m", "image": "i"}]}})).unwrap()
    };
    pods.create(&PostParams::default(), &pod("a")).await.unwrap();
    let bind = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n1"}}).to_string();
    let path = "/api/v1/namespaces/default/pods/a/binding";
    let json_type = [("content-type", "application/json")];
    assert_eq!(w.raw("POST", path, &json_type, bind.clone()).await.0, 201);
    assert_eq!(pods.get("a").await.unwrap().spec.unwrap().node_name.as_deref(), Some("n1"));
    assert_eq!(w.raw("POST", path, &json_type, bind).await.0, 409);
    let marked = pods.delete("a", &DeleteParams::default().grace_period(7)).await.unwrap().left().unwrap();
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(7));
    let gone = pods.delete("a", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(gone.is_left(), "a pod's deletion answers with the pod");
    assert_eq!(status_of(pods.get("a").await).0, 404);

    for name in ["b", "c"] {
        pods.create(&PostParams::default(), &pod(name)).await.unwrap();
        let ready = Patch::Merge(
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}),
        );
        pods.patch_status(name, &PatchParams::default(), &ready).await.unwrap();
    }
    let budgets: Api<k8s_openapi::api::policy::v1::PodDisruptionBudget> =
        Api::default_namespaced(w.client.clone());
    let budget = serde_json::from_value(json!({"metadata": {"name": "x"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}})).unwrap();
    budgets.create(&PostParams::default(), &budget).await.unwrap();
    pods.evict("b", &EvictParams::default()).await.unwrap();
    assert_eq!(status_of(pods.get("b").await).0, 404);
    let (code, reason, message) = status_of(pods.evict("c", &EvictParams::default()).await);
    assert_eq!(
        (code, reason.as_str(), message.as_str()),
        (429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.")
    );
}

#[tokio::test]
async fn dry_runs_change_nothing() {
    let w = world().await;
    let maps = w.maps();
    let map = w.map("m", json!({})).await;
    let create = PostParams { dry_run: true, ..Default::default() };
    let other: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
    assert!(maps.create(&create, &other).await.unwrap().metadata.uid.is_some());
    assert!(maps.get_opt("n").await.unwrap().is_none());
    let patch = PatchParams { dry_run: true, ..Default::default() };
    let patched = maps.patch("m", &patch, &Patch::Merge(json!({"data": {"a": "9"}}))).await.unwrap();
    assert_eq!(patched.data.unwrap()["a"], "9");
    assert!(maps.delete("m", &DeleteParams::default().dry_run()).await.is_ok());
    assert_eq!(maps.get("m").await.unwrap(), map);
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = DevClusterConfig { data_dir: Some(dir.path().into()), ..Default::default() };
    let cluster = DevCluster::start(config.clone()).await.unwrap();
    let first = World::of(cluster);
    let boats = first.define().await;
    let made = boats.create(&PostParams::default(), &boat("a", json!({"crew": 7}))).await.unwrap();
    let version = first.cluster.store().revision();
    first.cluster.shutdown().await;
    let cluster = DevCluster::start(config).await.unwrap();
    let second = World::of(cluster);
    assert_eq!(json!(second.boats().get("a").await.unwrap()), json!(made));
    assert!(second.cluster.store().revision() >= version, "versions never go back");
    second.cluster.shutdown().await;
}

#[tokio::test]
async fn bad_requests_are_told_so() {
    let w = world().await;
    let json_type = [("content-type", "application/json")];
    let maps = "/api/v1/namespaces/default/configmaps";
    let (code, status) = w.raw("POST", maps, &json_type, "{").await;
    assert_eq!((code, &status["kind"], &status["reason"]), (400, &json!("Status"), &json!("BadRequest")));
    for body in ["[]", "3", "\"x\"", "null", "{\"metadata\": []}", "{}"] {
        assert_eq!(w.raw("POST", maps, &json_type, body).await.0, 400, "{body}");
        let review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        assert!(w.raw("POST", review, &json_type, body).await.0 < 500, "{body}");
    }
    let big = json!({"metadata": {"name": "big"}, "data": {"x": "x".repeat(4 << 20)}}).to_string();
    let (code, status) = w.raw("POST", maps, &json_type, big).await;
    assert_eq!((code, &status["reason"]), (413, &json!("RequestEntityTooLarge")));
    for path in [
        "/nope",
        "/apis/none/v1/things",
        "/api/v1/namespaces/default/boats",
        "/api/v1/namespaces/default/nodes/x",
    ] {
        let (code, status) = w.raw("GET", path, &[], "").await;
        assert_eq!(
            (code, &status["message"]),
            (404, &json!("the server could not find the requested resource")),
            "{path}"
        );
    }
    for (method, path) in [
        ("PUT", maps),
        ("POST", "/api/v1/configmaps"),
        ("DELETE", "/api/v1/configmaps"),
        ("POST", "/api/v1/namespaces/default/configmaps/x"),
        ("GET", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"),
    ] {
        assert_eq!(w.raw(method, path, &json_type, "{}").await.0, 405, "{method} {path}");
    }
    assert_eq!(w.raw("POST", maps, &[("content-type", "text/html")], "{}").await.0, 415);
    assert_eq!(w.raw("GET", maps, &[("accept", "application/vnd.kubernetes.protobuf")], "").await.0, 406);
    assert_eq!(w.raw("GET", &format!("{maps}?labelSelector=a+in+("), &[], "").await.0, 400);
    assert_eq!(w.raw("GET", &format!("{maps}?watch=1&resourceVersion=x"), &[], "").await.0, 400);
    assert_eq!(w.raw("GET", &format!("{maps}?limit=x"), &[], "").await.0, 400);
    let (code, _) = w.raw("GET", &format!("{maps}?watch=1&timeoutSeconds=1"), &[], "").await;
    assert_eq!(code, 200);
    assert_eq!(w.raw("HEAD", "/api/v1/namespaces/default", &[], "").await, (200, Value::Null));
    assert_eq!(w.raw("HEAD", "/version", &[], "").await, (200, Value::Null));
    w.map("m", json!({})).await;
    let delete = format!("{maps}/m?propagationPolicy=Sideways");
    assert_eq!(w.raw("DELETE", &delete, &[], "").await.0, 422);
    assert_eq!(
        w.raw("DELETE", &format!("{maps}/m"), &json_type, r#"{"gracePeriodSeconds": 9223372036854775807}"#)
            .await
            .0,
        200
    );
    let warned = w
        .client
        .send(
            Request::post(format!("{maps}?fieldValidation=Warn"))
                .header("content-type", "application/json")
                .body(kube::client::Body::from(br#"{"metadata": {"name": "w"}, "dta": {}}"#.to_vec()))
                .unwrap(),
        )
        .await
        .unwrap();
    assert_eq!(warned.headers()["warning"], "299 - \"unknown field \\\"dta\\\"\"");
}
