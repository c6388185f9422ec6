//! Lists and watches.

use super::*;

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
    let why = "\"data.a\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"";
    assert_eq!((code, message.as_str()), (400, why));
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
