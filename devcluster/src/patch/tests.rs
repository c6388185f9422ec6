use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;

#[rstest]
#[case(json!({"a": 1}), json!({"a": 2}), json!({"a": 2}))]
#[case(json!({"a": {"b": 1, "c": 2}}), json!({"a": {"b": null}}), json!({"a": {"c": 2}}))]
#[case(json!({"a": [1, 2]}), json!({"a": [3]}), json!({"a": [3]}))]
#[case(json!({"a": 1}), json!({"b": {"c": null, "d": 1}}), json!({"a": 1, "b": {"d": 1}}))]
fn merge_patches(#[case] current: Value, #[case] patch: Value, #[case] want: Value) {
    assert_eq!(merge(&current, &patch), want);
}

#[test]
fn json_patches_are_atomic_and_typed() {
    let current = json!({"spec": {"n": 1}});
    let patch = json!([{"op": "test", "path": "/spec/n", "value": 1}, {"op": "replace", "path": "/spec/n", "value": 2}]);
    assert_eq!(json(&current, &patch).unwrap(), json!({"spec": {"n": 2}}));
    let failing = json!([{"op": "remove", "path": "/spec/n"}, {"op": "test", "path": "/x", "value": 1}]);
    assert!(matches!(json(&current, &failing), Err(PatchError::Rejected(_))));
    assert!(matches!(json(&current, &json!({"op": "add"})), Err(PatchError::Malformed(_))));
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "p"}, "spec": spec})
}

#[rstest]
#[case::containers_merge_by_name(
    json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}),
    json!({"containers": [{"name": "b", "image": "2"}]}),
    json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}))]
#[case::new_item(
    json!({"containers": [{"name": "a"}]}),
    json!({"containers": [{"name": "z"}]}),
    json!({"containers": [{"name": "z"}, {"name": "a"}]}))]
#[case::delete_item(
    json!({"containers": [{"name": "a"}, {"name": "b"}]}),
    json!({"containers": [{"name": "a", "$patch": "delete"}]}),
    json!({"containers": [{"name": "b"}]}))]
#[case::replace_list(
    json!({"containers": [{"name": "a"}, {"name": "b"}]}),
    json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
    json!({"containers": [{"name": "c"}]}))]
#[case::replace_map(
    json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}}),
    json!({"securityContext": {"$patch": "replace", "fsGroup": 3}}),
    json!({"securityContext": {"fsGroup": 3}}))]
#[case::tolerations_are_atomic(
    json!({"tolerations": [{"key": "a"}]}),
    json!({"tolerations": [{"key": "b"}]}),
    json!({"tolerations": [{"key": "b"}]}))]
#[case::env_in_container(
    json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "1"}]}]}),
    json!({"containers": [{"name": "a", "env": [{"name": "X", "$patch": "delete"}, {"name": "Z", "value": "3"}]}]}),
    json!({"containers": [{"name": "a", "env": [{"name": "Z", "value": "3"}, {"name": "Y", "value": "1"}]}]}))]
#[case::ports_by_number_and_protocol(
    json!({"containers": [{"name": "a", "ports": [{"containerPort": 53, "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP"}]}]}),
    json!({"containers": [{"name": "a", "ports": [{"containerPort": 53, "protocol": "UDP", "name": "dns"}]}]}),
    json!({"containers": [{"name": "a", "ports": [{"containerPort": 53, "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP", "name": "dns"}]}]}))]
#[case::set_element_order(
    json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}),
    json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [{"name": "c", "image": "x"}]}),
    json!({"containers": [{"name": "b"}, {"name": "c", "image": "x"}, {"name": "a"}]}))]
#[case::order_alone(
    json!({"volumes": [{"name": "a"}, {"name": "b"}]}),
    json!({"$setElementOrder/volumes": [{"name": "b"}, {"name": "a"}]}),
    json!({"volumes": [{"name": "b"}, {"name": "a"}]}))]
#[case::retain_keys(
    json!({"volumes": [{"name": "a", "emptyDir": {}}]}),
    json!({"volumes": [{"name": "a", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}]}),
    json!({"volumes": [{"name": "a", "secret": {"secretName": "s"}}]}))]
#[case::null_deletes(json!({"nodeName": "n", "hostname": "h"}), json!({"nodeName": null}), json!({"hostname": "h"}))]
#[case::directives_do_not_leak(
    json!({}),
    json!({"containers": [{"name": "a", "securityContext": {"$patch": "replace", "runAsUser": 1}}]}),
    json!({"containers": [{"name": "a", "securityContext": {"runAsUser": 1}}]}))]
fn strategic_pods(#[case] current: Value, #[case] patch: Value, #[case] want: Value) {
    let kind = GroupKind::new("", "Pod");
    let got = strategic(&pod(current), &json!({"spec": patch}), &kind).unwrap();
    assert_eq!(got["spec"], want);
}

#[rstest]
#[case::finalizers_are_a_set(
    json!({"finalizers": ["a", "b"]}), json!({"finalizers": ["b", "c"]}), json!({"finalizers": ["a", "b", "c"]}))]
#[case::delete_from_primitive_list(
    json!({"finalizers": ["a", "b"]}), json!({"$deleteFromPrimitiveList/finalizers": ["a"]}), json!({"finalizers": ["b"]}))]
#[case::owners_by_uid(
    json!({"ownerReferences": [{"uid": "1", "name": "x"}]}),
    json!({"ownerReferences": [{"uid": "1", "$patch": "delete"}, {"uid": "2", "name": "y"}]}),
    json!({"ownerReferences": [{"uid": "2", "name": "y"}]}))]
fn strategic_metadata(#[case] current: Value, #[case] patch: Value, #[case] want: Value) {
    let kind = GroupKind::new("", "ConfigMap");
    let got = strategic(&json!({"metadata": current}), &json!({"metadata": patch}), &kind).unwrap();
    assert_eq!(got["metadata"], want);
}

#[test]
fn strategic_conditions_merge_by_type() {
    let kind = GroupKind::new("", "Node");
    let current = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Disk", "status": "False"}]}});
    let patch = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    let got = strategic(&current, &patch, &kind).unwrap();
    assert_eq!(got["status"]["conditions"].as_array().unwrap().len(), 2);
    assert_eq!(got["status"]["conditions"][0]["status"], "Unknown");
}

#[test]
fn strategic_errors() {
    let kind = GroupKind::new("", "Pod");
    let current = pod(json!({"containers": [{"name": "a"}]}));
    for bad in [json!({"spec": {"containers": [{"$patch": "delete"}]}}), json!([1])] {
        assert!(matches!(strategic(&current, &bad, &kind), Err(PatchError::Malformed(_))), "{bad}");
    }
    for (odd, why) in [
        (
            json!({"spec": {"containers": [{"image": "x"}]}}),
            "map: map[image:x] does not contain declared merge key: name",
        ),
        (json!({"spec": {"$patch": "explode"}}), "unknown patch type: explode in map: map[$patch:explode]"),
    ] {
        assert_eq!(strategic(&current, &odd, &kind), Err(PatchError::Unexpected(why.into())));
    }
    assert_eq!(
        strategic(&current, &json!({}), &GroupKind::new("x.dev", "Pod")),
        Err(PatchError::Unsupported)
    );
}

fn document() -> impl Strategy<Value = Value> {
    let leaf =
        prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), (0..5i64).prop_map(Value::from)];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::btree_map("[a-d]", inner.clone(), 0..4).prop_map(|m| json!(m)),
            proptest::collection::vec(inner, 0..3).prop_map(Value::from),
        ]
    })
}

proptest! {
    #[test]
    fn merge_patch_is_idempotent(current in document(), patch in document()) {
        let once = merge(&current, &patch);
        prop_assert_eq!(&merge(&once, &patch), &once);
    }

    #[test]
    fn strategic_never_panics(current in document(), patch in document()) {
        let kind = GroupKind::new("", "Pod");
        let _ = strategic(&json!({"spec": current}), &json!({"spec": patch}), &kind);
    }
}
