//! Creates, updates and their conflicts.

use http::Method;
use serde_json::json;

use super::{at, y};
use crate::script::Script;

pub fn objects() -> Script {
    let mut s = Script::new("objects");
    let (maps, one) = (at("configmaps"), at("configmaps") + "/a");
    s.post(
        "create",
        &maps,
        y("{apiVersion: v1, kind: ConfigMap, metadata: {name: a, labels: {x: y}}, data: {k: v}}"),
    );
    s.post("create again", &maps, y("{metadata: {name: a}}"));
    s.get("get", &one);
    s.get("get nothing", &(at("configmaps") + "/nothing"));
    s.get("get in no namespace", "/api/v1/namespaces/nowhere/configmaps/a");
    s.put("update", &one, y("{metadata: {name: a}, data: {k: w}}"));
    s.put("update, same", &one, y("{metadata: {name: a}, data: {k: w}}"));
    s.put("update, version", &one, y("{metadata: {name: a, resourceVersion: '@{update, same:/metadata/resourceVersion}'}, data: {k: u}}"));
    s.put(
        "update, old version",
        &one,
        y("{metadata: {name: a, resourceVersion: '@{create:/metadata/resourceVersion}'}, data: {k: t}}"),
    );
    s.put("update, bad version", &one, y("{metadata: {name: a, resourceVersion: nonsense}, data: {k: t}}"));
    s.put(
        "update, other uid",
        &one,
        y("{metadata: {name: a, uid: 00000000-0000-4000-8000-000000000000}, data: {k: t}}"),
    );
    s.put("update, other name", &one, y("{metadata: {name: b}, data: {k: t}}"));
    s.put("update, other namespace", &one, y("{metadata: {name: a, namespace: default}, data: {k: t}}"));
    s.put("update nothing", &(at("configmaps") + "/nothing"), y("{metadata: {name: nothing}}"));
    s.put("update, no name", &one, y("{data: {k: n}}"));
    s.put("update, wrong kind", &one, y("{apiVersion: v1, kind: Secret, metadata: {name: a}}"));
    s.put("update, wrong group", &one, y("{apiVersion: apps/v1, kind: ConfigMap, metadata: {name: a}}"));
    s.put("update, unknown field", &one, y("{metadata: {name: a}, data: {k: n}, extra: 1}"));
    s.put(
        "update, unknown field, strict",
        &(one.clone() + "?fieldValidation=Strict"),
        y("{metadata: {name: a}, data: {k: n}, extra: 1}"),
    );
    s.put(
        "update, unknown field, ignored",
        &(one.clone() + "?fieldValidation=Ignore"),
        y("{metadata: {name: a}, data: {k: n}, extra: 1}"),
    );
    s.put(
        "update, bad field validation",
        &(one.clone() + "?fieldValidation=Maybe"),
        y("{metadata: {name: a}}"),
    );
    s.put("update, dry", &(one.clone() + "?dryRun=All"), y("{metadata: {name: a}, data: {k: dry}}"));
    s.put("update, bad dry run", &(one.clone() + "?dryRun=Some"), y("{metadata: {name: a}, data: {k: dry}}"));
    s.get("get after dry run", &one);
    s.post("create, dry", &(maps.clone() + "?dryRun=All"), y("{metadata: {name: dry}}"));
    s.get("get dry", &(at("configmaps") + "/dry"));
    s.post("create dry, exists", &(maps.clone() + "?dryRun=All"), y("{metadata: {name: a}}"));
    s.post("create in no namespace", "/api/v1/namespaces/nowhere/configmaps", y("{metadata: {name: a}}"));
    s.post("create, other namespace", &maps, y("{metadata: {name: c, namespace: default}}"));
    s.post("create with version", &maps, y("{metadata: {name: c, resourceVersion: '5'}}"));
    s.post("create with uid", &maps, y("{metadata: {name: c, uid: 00000000-0000-4000-8000-000000000000, generation: 7, selfLink: x, deletionTimestamp: '2020-01-01T00:00:00Z'}}"));
    s.post("create, managed fields", &maps, y("{metadata: {name: d, managedFields: [{manager: me, operation: Apply, apiVersion: v1, fieldsType: FieldsV1, fieldsV1: {'f:data': {'f:k': {}}}}]}, data: {k: v}}"));
    s.post(
        "create, bad managed fields",
        &maps,
        y("{metadata: {name: e, managedFields: [{manager: me, operation: Bad}]}, data: {k: v}}"),
    );
    s.post(
        "create, field manager",
        &(maps.clone() + "?fieldManager=somebody"),
        y("{metadata: {name: f}, data: {k: v}}"),
    );
    s.post(
        "create, long field manager",
        &(maps.clone() + "?fieldManager=" + &"m".repeat(129)),
        y("{metadata: {name: g}}"),
    );
    s.post("create, wrong types", &maps, y("{metadata: {name: h}, data: {k: 1}}"));
    s.post("create, wrong types of metadata", &maps, y("{metadata: {name: h, labels: [1]}}"));
    s.post("create, no object", &maps, json!([1]));
    s.post("create, immutable", &maps, y("{metadata: {name: i}, immutable: true, data: {k: v}}"));
    s.put(
        "update immutable",
        &(at("configmaps") + "/i"),
        y("{metadata: {name: i}, immutable: true, data: {k: w}}"),
    );
    s.put("unset immutable", &(at("configmaps") + "/i"), y("{metadata: {name: i}, data: {k: v}}"));
    s.request("post to an object", Method::POST, &one, &[("content-type", "application/json")], "{}");
    s.request("put to a collection", Method::PUT, &maps, &[("content-type", "application/json")], "{}");
    s.request(
        "patch of a collection",
        Method::PATCH,
        &maps,
        &[("content-type", "application/merge-patch+json")],
        "{}",
    );
    s.post("create without namespace", "/api/v1/configmaps", y("{metadata: {name: a, namespace: default}}"));
    s.get("namespace of a cluster's resource", "/api/v1/namespaces/{ns}/nodes/a");
    s.get("unknown resource", &at("boxes"));
    s.get("unknown subresource", &(one.clone() + "/status"));
    // Generations.
    let sets = at("apps/v1/replicasets");
    s.post("replica set", &sets, y("{metadata: {name: r}, spec: {replicas: 1, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}"));
    let one = sets + "/r";
    s.merge("labels", &one, y("{metadata: {labels: {n: m}}}"));
    s.merge("replicas", &one, y("{spec: {replicas: 2}}"));
    s.merge("selector", &one, y("{spec: {selector: {matchLabels: {a: c}}}}"));
    s.merge("status with the object", &one, y("{status: {replicas: 5}}"));
    s.merge(
        "status",
        &(one.clone() + "/status"),
        y("{status: {replicas: 5}, spec: {replicas: 9}, metadata: {labels: {by: status}}}"),
    );
    s
}

pub fn names() -> Script {
    let mut s = Script::new("names");
    let maps = at("configmaps");
    for (step, body) in [
        ("no name", "{metadata: {}}"),
        ("no metadata", "{data: {a: b}}"),
        ("upper case", "{metadata: {name: Upper}}"),
        ("space", "{metadata: {name: 'a b'}}"),
        ("slash", "{metadata: {name: a/b}}"),
        ("dot", "{metadata: {name: '.'}}"),
        ("generated", "{metadata: {generateName: gen-}}"),
        ("badly generated", "{metadata: {generateName: Gen_}}"),
        ("bad label key", "{metadata: {name: l1, labels: {'a b': c}}}"),
        ("bad label prefix", "{metadata: {name: l1, labels: {'A_/b': c}}}"),
        ("bad label value", "{metadata: {name: l2, labels: {a: 'b c'}}}"),
        ("bad annotation key", "{metadata: {name: l3, annotations: {'a b': c}}}"),
        ("bad finalizer", "{metadata: {name: l4, finalizers: [nothing]}}"),
        ("good finalizer twice", "{metadata: {name: l5, finalizers: [a.b/c, a.b/c]}}"),
        ("bad owner", "{metadata: {name: l6, ownerReferences: [{kind: Pod}]}}"),
        (
            "two controllers",
            "{metadata: {name: l7, ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: a, uid: u, controller: true}, {apiVersion: v1, kind: ConfigMap, name: b, uid: v, controller: true}]}}",
        ),
        (
            "event as owner",
            "{metadata: {name: l8, ownerReferences: [{apiVersion: v1, kind: Event, name: a, uid: u}]}}",
        ),
        ("bad data key", "{metadata: {name: l9}, data: {'a b': c}}"),
        ("same key twice", "{metadata: {name: l10}, data: {a: c}, binaryData: {a: YQ==}}"),
    ] {
        s.post(step, &maps, y(body));
    }
    s.post("long name", &maps, y(&format!("{{metadata: {{name: {}}}}}", "n".repeat(254))));
    s.post(
        "long label",
        &maps,
        y(&format!("{{metadata: {{name: l11, labels: {{a: {}}}}}}}", "n".repeat(64))),
    );
    s.post("long namespace", "/api/v1/namespaces", y(&format!("{{metadata: {{name: {}}}}}", "n".repeat(64))));
    s.post("dotted namespace", "/api/v1/namespaces", y("{metadata: {name: a.b}}"));
    s.post("dotted service", &at("services"), y("{metadata: {name: a.b}, spec: {ports: [{port: 80}]}}"));
    s.post("service from a digit", &at("services"), y("{metadata: {name: 1a}, spec: {ports: [{port: 80}]}}"));
    s
}
