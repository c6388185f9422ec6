//! CustomResourceDefinitions and what their schemas say.

use super::*;

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
    let (code, _, message) =
        status_of(boats.patch("u", &params, &Patch::Merge(json!({"spec": {"mast": 1}}))).await);
    assert_eq!(code, 422);
    assert!(
        message.starts_with(r#" "" is invalid: patch: Invalid value: "{"#)
            && message.ends_with(r#"strict decoding error: unknown field "spec.mast""#),
        "{message}"
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
    assert!(made.data["status"]["conditions"].is_null(), "names are accepted in a write of its own");
    let made = crds.get(&made.metadata.name.unwrap()).await.unwrap();
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

#[tokio::test]
async fn a_definitions_scope_and_names_stay_as_they_were_established() {
    let w = world().await;
    let crds = w.crds();
    let name = crds.create(&PostParams::default(), &object(boats_definition())).await.unwrap().metadata.name;
    let name = name.unwrap();
    for (change, field) in [
        (json!({"spec": {"scope": "Cluster"}}), "spec.scope"),
        (json!({"spec": {"names": {"kind": "Ship"}}}), "spec.names.kind"),
    ] {
        let patched = crds.patch(&name, &PatchParams::default(), &Patch::Merge(&change)).await;
        let (code, _, message) = status_of(patched);
        assert_eq!(code, 422, "{message}");
        assert!(message.contains(field) && message.contains("field is immutable"), "{message}");
    }
}

fn boats_definition() -> Value {
    boats()
}
