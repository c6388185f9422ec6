//! Events and leases, restarts, and answers to bad requests.

use super::*;

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
        let code = if ["{}", "null"].contains(&body) { 422 } else { 400 };
        assert_eq!(w.raw("POST", maps, &json_type, body).await.0, code, "{body}");
        let review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        assert!(w.raw("POST", review, &json_type, body).await.0 < 500, "{body}");
    }
    let big = json!({"metadata": {"name": "big"}, "data": {"x": "x".repeat(4 << 20)}}).to_string();
    let (code, status) = w.raw("POST", maps, &json_type, big).await;
    assert_eq!((code, &status["reason"]), (413, &json!("RequestEntityTooLarge")));
    for path in ["/nope", "/apis/none/v1/things"] {
        // Nothing of the API's is there, so the API has no words for it.
        assert_eq!(w.raw("GET", path, &[], "").await, (404, serde_json::Value::Null), "{path}");
    }
    for path in ["/api/v1/namespaces/default/boats", "/api/v1/namespaces/default/nodes/x"] {
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
    assert_eq!(w.raw("GET", &format!("{maps}?watch=1&resourceVersion=x"), &[], "").await.0, 500);
    assert_eq!(w.raw("GET", &format!("{maps}?limit=x"), &[], "").await.0, 400);
    let (code, _) = w.raw("GET", &format!("{maps}?watch=1&timeoutSeconds=1"), &[], "").await;
    assert_eq!(code, 200);
    assert_eq!(w.raw("HEAD", "/api/v1/namespaces/default", &[], "").await, (405, Value::Null));
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
