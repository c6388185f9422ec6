//! Replicas over several nodes, as pods and as LeaderWorkerSets.

use super::*;

/// What the LeaderWorkerSet API's v1 asks of the objects here, in its own words where it matters.
fn leader_worker_sets() -> Value {
    let template = json!({"type": "object", "required": ["spec"], "x-kubernetes-preserve-unknown-fields": true,
                          "properties": {"spec": {"type": "object", "required": ["containers"],
                                                  "x-kubernetes-preserve-unknown-fields": true}}});
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["leaderWorkerTemplate"], "properties": {
            "replicas": {"type": "integer", "format": "int32", "default": 1},
            "startupPolicy": {"type": "string", "enum": ["LeaderCreated", "LeaderReady"], "default": "LeaderCreated"},
            "leaderWorkerTemplate": {"type": "object", "required": ["workerTemplate"], "properties": {
                "size": {"type": "integer", "format": "int32", "default": 1, "minimum": 1},
                "restartPolicy": {"type": "string", "default": "RecreateGroupOnPodRestart",
                                  "enum": ["Default", "RecreateGroupOnPodRestart", "None"]},
                "leaderTemplate": template, "workerTemplate": template}}}},
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "leaderworkersets.leaderworkerset.x-k8s.io"},
        "spec": {"group": "leaderworkerset.x-k8s.io", "scope": "Namespaced",
                 "names": {"kind": "LeaderWorkerSet", "plural": "leaderworkersets", "shortNames": ["lws"]},
                 "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                               "schema": {"openAPIV3Schema": schema}}]}})
}

impl Rig {
    /// A plan of one replica over two nodes.
    async fn plan_wide(&self, number: u64, wanted: bool) {
        let pool = self.pools().get("chat").await.unwrap();
        let mut wide = assignment("chat-1", "gpu-1");
        (wide.shape.tensor_parallel, wide.shape.pipeline_parallel) = (8, 2);
        wide.nodes.push("gpu-2".parse().unwrap());
        let replicas = Vec::from_iter(wanted.then_some(wide));
        self.script.plan.send_replace(Some(Arc::new(common::plan(number, &pool, replicas))));
    }

    fn phase(&self, id: &str) -> Option<ReplicaPhase> {
        self.script.last()?.replicas.iter().find(|r| r.id.as_str() == id).map(|r| r.phase)
    }

    async fn delete_now(&self, pod: &str) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        self.pods().delete(pod, &now).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_pods_lives_and_dies_as_one() {
    let rig = Rig::start().await;
    let chat: Value = serde_saphyr::from_str(CHAT).unwrap();
    apply(&rig.pools(), &chat).await.unwrap();
    until("the pool exists", || async { rig.pools().get_opt("chat").await.unwrap().is_some() }).await;
    rig.plan_wide(1, true).await;
    until("both pods", || async { rig.pod_names().await == ["chat-1", "chat-1-w1"] }).await;
    let services: Api<k8s_openapi::api::core::v1::Service> = Api::default_namespaced(rig.client.clone());
    let spec = services.get("chat-ranks").await.unwrap().spec.unwrap();
    assert_eq!((spec.cluster_ip.as_deref(), spec.publish_not_ready_addresses), (Some("None"), Some(true)));
    rig.serve_all().await;
    until("it is one replica, and serves", || async {
        rig.summary()
            .await
            .is_some_and(|s| s.ready == "1/1" && rig.phase("chat-1") == Some(ReplicaPhase::Ready))
    })
    .await;

    // Somebody deletes a worker.
    rig.delete_now("chat-1-w1").await;
    until("the replica has failed", || async { rig.phase("chat-1") == Some(ReplicaPhase::Failed) }).await;
    rig.plan_wide(2, false).await;
    until("all of it is gone", || async { rig.pod_names().await.is_empty() }).await;

    // Somebody deletes the leader: its worker goes with it, and the next group is whole.
    rig.plan_wide(3, true).await;
    until("a new group", || async { rig.pod_names().await == ["chat-1", "chat-1-w1"] }).await;
    let before = rig.pods().get("chat-1-w1").await.unwrap().uid();
    rig.delete_now("chat-1").await;
    until("the worker is another one", || async {
        let worker = rig.pods().get_opt("chat-1-w1").await.unwrap();
        rig.pod_names().await.len() == 2 && worker.is_some_and(|w| w.uid() != before)
    })
    .await;
    rig.pools().delete("chat", &DeleteParams::default()).await.unwrap();
    until("nothing is left", || async {
        rig.pods().list(&ListParams::default()).await.unwrap().items.is_empty()
            && services.get_opt("chat-ranks").await.unwrap().is_none()
    })
    .await;
    rig.stop.cancel();
    rig.running.await.unwrap();
    rig.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_are_leader_worker_sets_they_make_the_pods() {
    let rig = Rig::start().await;
    let crds: Api<CustomResourceDefinition> = Api::all(rig.client.clone());
    apply(&crds, &leader_worker_sets()).await.unwrap();
    let kind =
        ApiResource::from_gvk(&GroupVersionKind::gvk("leaderworkerset.x-k8s.io", "v1", "LeaderWorkerSet"));
    let sets: Api<DynamicObject> = Api::default_namespaced_with(rig.client.clone(), &kind);
    until("the API is there", || async { sets.list(&ListParams::default()).await.is_ok() }).await;
    let chat: Value = serde_saphyr::from_str(CHAT).unwrap();
    apply(&rig.pools(), &chat).await.unwrap();
    until("the pool exists", || async { rig.pools().get_opt("chat").await.unwrap().is_some() }).await;
    rig.plan_wide(1, true).await;
    until("a set", || async { sets.get_opt("chat-1").await.unwrap().is_some() }).await;
    let set = sets.get("chat-1").await.unwrap();
    assert_eq!(set.data["spec"]["leaderWorkerTemplate"]["size"], 2);
    assert_eq!(rig.pod_names().await, [""; 0], "its controller makes the pods");

    // Which is this test.
    for (which, name, index) in [("leaderTemplate", "chat-1-0", "0"), ("workerTemplate", "chat-1-0-1", "1")] {
        let template = &set.data["spec"]["leaderWorkerTemplate"][which];
        let mut pod = json!({"metadata": template["metadata"], "spec": template["spec"]});
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["labels"]["leaderworkerset.sigs.k8s.io/name"] = json!("chat-1");
        pod["metadata"]["labels"]["leaderworkerset.sigs.k8s.io/worker-index"] = json!(index);
        rig.pods().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    }
    rig.serve_all().await;
    until("it is one replica, and serves", || async {
        rig.summary()
            .await
            .is_some_and(|s| s.ready == "1/1" && rig.phase("chat-1") == Some(ReplicaPhase::Ready))
    })
    .await;
    rig.plan_wide(2, false).await;
    until("its leader drains", || async {
        let leader = rig.pods().get("chat-1-0").await.unwrap();
        leader.annotations().contains_key("plimsoll.dev/draining")
    })
    .await;
    let drained = Observations { drained: ["chat-1".parse().unwrap()].into(), ..Observations::default() };
    rig.script.observations.send_replace(Arc::new(drained));
    until("the set is gone", || async { sets.get_opt("chat-1").await.unwrap().is_none() }).await;
    rig.stop.cancel();
    rig.running.await.unwrap();
    rig.cluster.shutdown().await;
}
