//! The manifests in docs/interop.md are what they say they are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use plimsoll_crds::ModelPool;
use serde_json::{Value, json};

fn manifests() -> Vec<Value> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/interop.md");
    let page = std::fs::read_to_string(page).unwrap();
    let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(|block| serde_saphyr::from_str(block).unwrap()).collect()
}

fn of_kind(kind: &str) -> Vec<Value> {
    let found: Vec<Value> = manifests().into_iter().filter(|m| m["kind"] == kind).collect();
    assert!(!found.is_empty(), "no {kind}");
    found
}

#[test]
fn pools_are_accepted() {
    for manifest in of_kind("ModelPool") {
        let pool: ModelPool = serde_json::from_value(manifest).unwrap();
        pool.to_fleet().unwrap();
        assert!(pool.spec.adopt.is_some());
    }
}

#[test]
fn the_hpa_has_the_fields_of_its_kind_and_targets_the_scale_subresource() {
    for manifest in of_kind("HorizontalPodAutoscaler") {
        let hpa: HorizontalPodAutoscaler = serde_json::from_value(manifest.clone()).unwrap();
        // Unknown fields would have been dropped.
        assert_eq!(serde_json::to_value(&hpa).unwrap(), manifest);
        let target = hpa.spec.unwrap().scale_target_ref;
        assert_eq!(
            (target.api_version.as_deref(), target.kind.as_str()),
            (Some("plimsoll.dev/v1alpha1"), "ModelPool")
        );
    }
    let crd = plimsoll_crds::all().into_iter().find(|c| c.spec.names.kind == "ModelPool").unwrap();
    let scale = crd.spec.versions[0].subresources.as_ref().unwrap().scale.clone().unwrap();
    assert_eq!(scale.spec_replicas_path, ".spec.scaling.min");
    assert_eq!(scale.label_selector_path.as_deref(), Some(".status.selector"));
}

#[test]
fn keda_and_aibrix_ask_where_the_scheduler_answers() {
    let host = "plimsoll-scheduler.plimsoll.svc.cluster.local:9091";
    let triggers: Vec<Value> = of_kind("ScaledObject")
        .iter()
        .flat_map(|m| m["spec"]["triggers"].as_array().unwrap().clone())
        .collect();
    let api = triggers.iter().find(|t| t["type"] == "metrics-api").unwrap();
    assert_eq!(api["metadata"]["url"], json!(format!("http://{host}/advice/default/chat")));
    assert_eq!(api["metadata"]["valueLocation"], "advisedReplicas");
    let cron = triggers.iter().find(|t| t["type"] == "cron").unwrap();
    // KEDA takes strings only.
    assert!(cron["metadata"].as_object().unwrap().values().all(Value::is_string), "{cron}");
    for pa in of_kind("PodAutoscaler") {
        let source = &pa["spec"]["metricsSources"][0];
        assert_eq!(source["endpoint"], host);
        assert_eq!(source["path"], "/metrics/default/chat");
        assert_eq!(source["targetMetric"], "plimsoll_advised_replicas");
    }
}
