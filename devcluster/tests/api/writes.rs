//! Creating, replacing, patching and applying.

use super::*;

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
    assert!(message.contains(".spec.crew: Invalid value: -1: should be a non-negative integer"), "{message}");
    let mut blind = now.clone();
    blind.metadata.resource_version = None;
    let (code, _, message) = status_of(boats.replace("a", &PostParams::default(), &blind).await);
    assert_eq!(code, 422);
    assert!(
        message.ends_with("metadata.resourceVersion: Invalid value: 0: must be specified for an update"),
        "{message}"
    );
    assert_eq!(
        w.map("m", json!({"generation": 7})).await.metadata.generation,
        Some(7),
        "kinds without spec count nothing, and keep what they are given"
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
    assert_eq!(code, 422);
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
