//! The schemas as an API server sees them: rules compile and answer with clear messages, and `kubectl explain` teaches.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use kube_cel::Validator;
use serde_json::{Value, json};

fn schema(kind: &str) -> Value {
    let crd = plimsoll_crds::all().into_iter().find(|c| c.spec.names.kind == kind).unwrap();
    serde_json::to_value(crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap())
        .unwrap()
}

fn pool(spec: Value) -> Value {
    json!({"apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelPool", "metadata": {"name": "x"}, "spec": spec})
}

fn messages(kind: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
    match Validator::new().validate(&schema(kind), object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec().iter().map(ToString::to_string).collect(),
    }
}

fn chat() -> Value {
    pool(json!({
        "model": {"name": "llama-3.1-70b", "preset": "llama-3.1-70b"},
        "slo": {"ttft": {"p95": "800ms"}, "tpot": {"p95": "50ms"}},
        "demand": {"rps": 4, "input": {"mean": 1200, "p95": 4000}, "output": {"mean": 250, "p95": 800}}
    }))
}

#[test]
fn the_first_manifest_passes() {
    assert_eq!(messages("ModelPool", &chat(), None), Vec::<String>::new());
}

#[test]
fn rules_answer_with_field_and_remedy() {
    let with = |path: &str, value: Value| {
        let mut object = chat();
        *object.pointer_mut(path).unwrap() = value;
        messages("ModelPool", &object, None)
    };
    assert_eq!(
        with("/spec/slo/tpot/p95", json!("0ms")),
        ["spec.slo.tpot: p95 must be between 1ms and 10s (got 0ms)"]
    );
    assert_eq!(with("/spec/slo/tpot", json!({"p50": "1ms", "p99": "2s"})).len(), 1);
    assert_eq!(with("/spec/slo/ttft/p95", json!("1.5s")), Vec::<String>::new());
    assert!(with("/spec/slo", json!({}))[0].contains("at least one objective"));
    assert!(with("/spec/model", json!({"name": "x"}))[0].contains("exactly one of preset"));
    assert!(with("/spec/demand/input/p95", json!(10))[0].contains("p95 must be at least mean"));
    let mut object = chat();
    object["spec"]["scaling"] = json!({"min": 3, "max": 2});
    assert_eq!(messages("ModelPool", &object, None), ["spec.scaling: max must be at least min"]);
    object["spec"]["scaling"] = json!({});
    object["spec"]["parallelism"] = json!({"tensor": [2, 2]});
    assert!(messages("ModelPool", &object, None)[0].contains("unique"));
    object["spec"]["parallelism"] = json!({});
    object["spec"]["engine"] = json!({"kind": "external"});
    assert!(messages("ModelPool", &object, None)[0].contains("engine.endpoints"));
    object["spec"]["engine"] = json!({});
    object["spec"]["adopt"] = json!({"selector": {"matchLabels": {"app": "vllm"}}});
    object["spec"]["mode"] = json!("Advise");
    assert_eq!(messages("ModelPool", &object, None), Vec::<String>::new());
    object["spec"]["mode"] = json!("Enforce");
    assert!(messages("ModelPool", &object, None)[0].contains("adopt only reads: set mode: Advise"));
}

#[test]
fn the_model_is_immutable() {
    let mut other = chat();
    other["spec"]["model"]["preset"] = json!("llama-3.1-8b");
    let found = messages("ModelPool", &other, Some(&chat()));
    assert!(found[0].contains("model is immutable"), "{found:?}");
    assert_eq!(messages("ModelPool", &chat(), Some(&chat())), Vec::<String>::new());
}

#[test]
fn other_kinds_have_rules_too() {
    let object = |kind: &str, spec: Value| json!({"apiVersion": "plimsoll.dev/v1alpha1", "kind": kind, "metadata": {"name": "x"}, "spec": spec});
    assert!(messages("Budget", &object("Budget", json!({})), None)[0].contains("at least one cap"));
    assert!(messages("Budget", &object("Budget", json!({"usdPerHour": 20})), None).is_empty());
    let bare = messages("AcceleratorClass", &object("AcceleratorClass", json!({"vendor": "nvidia"})), None);
    assert!(bare[0].contains("without a preset give vendor"), "{bare:?}");
    assert!(
        messages("AcceleratorClass", &object("AcceleratorClass", json!({"preset": "h100"})), None).is_empty()
    );
}

/// Walks all schemas: `(path, schema)`.
fn walk(path: String, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(&path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(format!("{path}.{name}"), property, visit);
    }
    for key in ["items", "additionalProperties"] {
        if schema[key].is_object() {
            walk(format!("{path}[]"), &schema[key], visit);
        }
    }
}

#[test]
fn every_field_is_described_and_no_format_is_unknown_to_kubernetes() {
    for crd in plimsoll_crds::all() {
        let kind = crd.spec.names.kind;
        walk(kind.clone(), &schema(&kind), &mut |path, field| {
            let last = path.rsplit('.').next().unwrap_or_default();
            let ours = !path.contains(".env[]")
                && !path.contains(".conditions[]")
                && !path.ends_with("[]")
                && path.contains('.');
            if ours && !matches!(last, "spec" | "status" | "metadata") {
                assert!(
                    field["description"].as_str().is_some_and(|d| d.len() > 3),
                    "{path} has no description"
                );
            }
            if let Some(format) = field["format"].as_str() {
                assert!(
                    ["int32", "int64", "double", "float", "date-time"].contains(&format),
                    "{path}: format {format}"
                );
            }
        });
    }
}

#[test]
fn every_rule_compiles_and_is_bounded() {
    for crd in plimsoll_crds::all() {
        let kind = crd.spec.names.kind;
        walk(kind.clone(), &schema(&kind), &mut |path, field| {
            let compiled = kube_cel::compile_schema(field);
            assert!(compiled.compilation_errors().is_empty(), "{path}: {:?}", compiled.compilation_errors());
        });
    }
}
