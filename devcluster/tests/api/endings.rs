//! Deletion, what it takes along, and what comes back.

use super::*;

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
