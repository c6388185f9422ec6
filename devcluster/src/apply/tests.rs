use serde_json::json;

use super::*;
use crate::gvk::GroupKind;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn request(manager: &str, kind: &str) -> Request {
    let group = if kind == "Deployment" { "apps" } else { "" };
    Request {
        manager: manager.into(),
        force: false,
        subresource: None,
        now: at(0),
        typing: Typing::builtin(&GroupKind::new(group, kind)).unwrap(),
    }
}

fn fields(object: &Value, manager: &str, operation: &str) -> Value {
    object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|e| e["manager"] == manager && e["operation"] == operation)
        .map_or(Value::Null, |e| e["fieldsV1"].clone())
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "default"}, "spec": spec})
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
}

#[test]
fn first_apply_owns_what_it_names() {
    let mut config = deployment(json!({"replicas": 2, "template": {"spec": {"containers": [
        {"name": "a", "image": "x", "ports": [{"containerPort": 80}]}]}}}));
    config["metadata"]["labels"] = json!({"app": "d"});
    let out = apply(None, &config, &request("me", "Deployment")).unwrap();
    assert_eq!(
        out["metadata"]["managedFields"],
        json!([{
            "manager": "me", "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
            "time": "2023-11-14T22:13:20Z",
            "fieldsV1": {
                "f:metadata": {"f:labels": {"f:app": {}}},
                "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {
                    "k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:image": {}, "f:ports": {
                        "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}},
            }
        }])
    );
}

#[test]
fn applying_twice_changes_nothing_not_even_the_time() {
    let config = config_map(json!({"a": "1"}));
    let first = apply(None, &config, &request("me", "ConfigMap")).unwrap();
    let again = apply(Some(&first), &config, &Request { now: at(60), ..request("me", "ConfigMap") }).unwrap();
    assert_eq!(first, again);
}

#[test]
fn a_field_no_longer_applied_goes_unless_co_owned() {
    let first =
        apply(None, &config_map(json!({"a": "1", "b": "2", "c": "3"})), &request("me", "ConfigMap")).unwrap();
    let shared = apply(Some(&first), &config_map(json!({"b": "2"})), &request("you", "ConfigMap")).unwrap();
    let out = apply(Some(&shared), &config_map(json!({"c": "3"})), &request("me", "ConfigMap")).unwrap();
    assert_eq!(out["data"], json!({"b": "2", "c": "3"}));
    assert_eq!(fields(&out, "me", "Apply"), json!({"f:data": {"f:c": {}}}));
    let out = apply(Some(&out), &config_map(json!({})), &request("me", "ConfigMap")).unwrap();
    assert_eq!(out["data"], json!({"b": "2"}));
    let out = apply(Some(&out), &config_map(json!({})), &request("you", "ConfigMap")).unwrap();
    assert!(out.get("data").is_none() || out["data"] == json!({}), "{out}");
}

#[test]
fn conflicts_are_worded_as_the_api_server_words_them() {
    let live = track_update(
        None,
        &deployment(json!({"replicas": 1, "paused": true})),
        "kubectl",
        None,
        at(0),
        &request("x", "Deployment").typing,
    );
    let one =
        apply(Some(&live), &deployment(json!({"replicas": 2})), &request("me", "Deployment")).unwrap_err();
    assert_eq!(
        one.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl\" using apps/v1: .spec.replicas"
    );
    let two = apply(
        Some(&live),
        &deployment(json!({"replicas": 2, "paused": false})),
        &request("me", "Deployment"),
    )
    .unwrap_err();
    assert_eq!(
        two.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl\" using apps/v1:\n- .spec.paused\n- .spec.replicas"
    );
    let applied = apply(None, &deployment(json!({"replicas": 1})), &request("a", "Deployment")).unwrap();
    let error =
        apply(Some(&applied), &deployment(json!({"replicas": 2})), &request("b", "Deployment")).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas");
}

#[test]
fn the_same_value_is_shared_and_force_takes_over() {
    let a = apply(None, &deployment(json!({"replicas": 1})), &request("a", "Deployment")).unwrap();
    let b = apply(Some(&a), &deployment(json!({"replicas": 1})), &request("b", "Deployment")).unwrap();
    let replicas = json!({"f:spec": {"f:replicas": {}}});
    assert_eq!((fields(&b, "a", "Apply"), fields(&b, "b", "Apply")), (replicas.clone(), replicas.clone()));
    let forced = apply(
        Some(&b),
        &deployment(json!({"replicas": 3})),
        &Request { force: true, ..request("b", "Deployment") },
    )
    .unwrap();
    assert_eq!((fields(&forced, "a", "Apply"), fields(&forced, "b", "Apply")), (Value::Null, replicas));
    assert_eq!(forced["spec"]["replicas"], 3);
}

#[test]
fn list_items_merge_by_key_and_keep_their_place() {
    let pod = |containers: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}});
    let first = apply(
        None,
        &pod(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])),
        &request("x", "Pod"),
    )
    .unwrap();
    let second =
        apply(Some(&first), &pod(json!([{"name": "sidecar", "image": "s"}])), &request("y", "Pod")).unwrap();
    let names: Vec<_> = second["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["a", "b", "sidecar"]);
    let third =
        apply(Some(&second), &pod(json!([{"name": "b", "image": "2"}])), &request("x", "Pod")).unwrap();
    assert_eq!(
        third["spec"]["containers"],
        json!([{"name": "b", "image": "2"}, {"name": "sidecar", "image": "s"}])
    );
}

#[test]
fn duplicate_keys_and_undeclared_fields_are_refused() {
    let config = deployment(json!({"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}}));
    let error = apply(None, &config, &request("me", "Deployment")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to create typed patch object (default/d; apps/v1, Kind=Deployment): \
         .spec.template.spec.containers: duplicate entries for key [name=\"a\"]"
    );
    let error = apply(None, &deployment(json!({"replica": 1})), &request("me", "Deployment")).unwrap_err();
    assert!(error.to_string().ends_with(".spec.replica: field not declared in schema"), "{error}");
}

#[test]
fn updates_own_what_they_change_and_take_it_from_appliers() {
    let applied =
        apply(None, &deployment(json!({"replicas": 1, "paused": true})), &request("a", "Deployment"))
            .unwrap();
    let mut edited = applied.clone();
    edited["spec"]["replicas"] = json!(5);
    let typing = request("a", "Deployment").typing;
    let out = track_update(Some(&applied), &edited, "kubectl-edit", None, at(9), &typing);
    assert_eq!(fields(&out, "a", "Apply"), json!({"f:spec": {"f:paused": {}}}));
    assert_eq!(fields(&out, "kubectl-edit", "Update"), json!({"f:spec": {"f:replicas": {}}}));
    let same = track_update(Some(&out), &out, "kubectl-edit", None, at(99), &typing);
    assert_eq!(same, out);
    let mut removed = out.clone();
    removed["spec"].as_object_mut().unwrap().remove("replicas");
    let gone = track_update(Some(&out), &removed, "someone", None, at(10), &typing);
    assert_eq!(fields(&gone, "kubectl-edit", "Update"), Value::Null);
}

#[test]
fn create_tracks_maps_with_their_dot() {
    let mut object = config_map(json!({"a": "1"}));
    object["metadata"]["labels"] = json!({"x": "y"});
    object["metadata"]["finalizers"] = json!(["f/1"]);
    let out = track_update(None, &object, "kubectl-create", None, at(0), &request("x", "ConfigMap").typing);
    assert_eq!(
        fields(&out, "kubectl-create", "Update"),
        json!({"f:data": {".": {}, "f:a": {}}, "f:metadata": {
            "f:finalizers": {".": {}, "v:\"f/1\"": {}}, "f:labels": {".": {}, "f:x": {}}}})
    );
}

#[test]
fn status_and_main_resource_keep_apart() {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"n": {"type": "integer"}}},
        "status": {"type": "object", "properties": {
            "conditions": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
                "items": {"type": "object", "properties": {"type": {"type": "string"}, "status": {"type": "string"}}}}}}}});
    let typing = Typing::from_schema(&schema).with_status_subresource(true);
    let req = |manager: &str, subresource: Option<&str>| Request {
        manager: manager.into(),
        force: false,
        subresource: subresource.map(str::to_owned),
        now: at(0),
        typing: typing.clone(),
    };
    let object = |body: Value| {
        let mut o = json!({"apiVersion": "x.dev/v1", "kind": "X", "metadata": {"name": "x"}});
        o.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        o
    };
    let live = apply(None, &object(json!({"spec": {"n": 1}, "status": {"conditions": []}})), &req("a", None))
        .unwrap();
    assert!(live.get("status").is_none());
    let status =
        object(json!({"spec": {"n": 7}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
    let live = apply(Some(&live), &status, &req("a", Some("status"))).unwrap();
    assert_eq!(live["spec"]["n"], 1);
    assert_eq!(live["metadata"]["managedFields"].as_array().unwrap().len(), 2);
    let other = object(json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}));
    let error = apply(Some(&live), &other, &req("b", Some("status"))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"a\" with subresource \"status\": \
         .status.conditions[type=\"Ready\"].status"
    );
    // Dropping the spec in a later main apply leaves the status alone.
    let live = apply(Some(&live), &object(json!({})), &req("a", None)).unwrap();
    assert!(live.get("spec").is_none() && live["status"]["conditions"][0]["status"] == "True", "{live}");
}

#[test]
fn objects_from_before_tracking_get_an_owner() {
    let live = config_map(json!({"a": "1"}));
    let error = apply(Some(&live), &config_map(json!({"a": "2"})), &request("me", "ConfigMap")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.a"
    );
}

#[test]
fn given_managed_fields_replace_and_the_empty_entry_forgets() {
    let typing = request("x", "ConfigMap").typing;
    let live = apply(None, &config_map(json!({"a": "1"})), &request("me", "ConfigMap")).unwrap();
    let mut migrated = live.clone();
    migrated["metadata"]["managedFields"][0]["manager"] = json!("you");
    let out = track_update(Some(&live), &migrated, "kubectl", None, at(1), &typing);
    assert_eq!(fields(&out, "you", "Apply"), json!({"f:data": {"f:a": {}}}));
    migrated["metadata"]["managedFields"] = json!([{}]);
    let out = track_update(Some(&live), &migrated, "kubectl", None, at(1), &typing);
    assert!(out["metadata"].get("managedFields").is_none());
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    fn data() -> impl Strategy<Value = Value> {
        proptest::collection::btree_map("[a-e]", "[0-2]", 0..5).prop_map(|m| json!(m))
    }

    proptest! {
        #[test]
        fn apply_is_idempotent(a in data(), b in data()) {
            let first = apply(None, &config_map(a), &request("a", "ConfigMap")).unwrap();
            let force = Request { force: true, ..request("b", "ConfigMap") };
            let config = config_map(b);
            let second = apply(Some(&first), &config, &force).unwrap();
            prop_assert_eq!(&apply(Some(&second), &config, &Request { now: at(5), ..force }).unwrap(), &second);
        }

        #[test]
        fn what_a_lone_applier_drops_is_gone(a in data(), b in data()) {
            let first = apply(None, &config_map(a), &request("a", "ConfigMap")).unwrap();
            let second = apply(Some(&first), &config_map(b.clone()), &request("a", "ConfigMap")).unwrap();
            let left = second.get("data").cloned().unwrap_or_else(|| json!({}));
            prop_assert_eq!(left, b);
        }

        #[test]
        fn fields_round_trip(a in data()) {
            let out = apply(None, &config_map(a), &request("a", "ConfigMap")).unwrap();
            let v1 = fields(&out, "a", "Apply");
            if !v1.is_null() {
                prop_assert_eq!(Set::from_fields_v1(&v1).to_fields_v1(), v1);
            }
        }

        #[test]
        fn force_always_wins(a in data(), b in data()) {
            let first = apply(None, &config_map(a), &request("a", "ConfigMap")).unwrap();
            let second = apply(Some(&first), &config_map(b.clone()), &Request { force: true, ..request("b", "ConfigMap") }).unwrap();
            for (key, value) in b.as_object().unwrap() {
                prop_assert_eq!(&second["data"][key], value);
            }
        }
    }
}
