//! Merge, strategic merge and JSON patches.

use http::Method;
use serde_json::json;

use super::{at, y};
use crate::script::Script;

pub fn patches() -> Script {
    let mut s = Script::new("patches");
    let deployments = at("apps/v1/deployments");
    s.post(
        "create",
        &deployments,
        y("
apiVersion: apps/v1
kind: Deployment
metadata: {name: d, labels: {a: b}, annotations: {n: m}}
spec:
  replicas: 2
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec:
      containers:
      - name: one
        image: one:1
        ports: [{containerPort: 80}, {containerPort: 81, name: x}]
        env: [{name: A, value: a}, {name: B, value: b}]
      - {name: two, image: two:1}
      tolerations: [{key: k, operator: Exists}]
      volumes: [{name: v, emptyDir: {}}]
"),
    );
    let one = deployments.clone() + "/d";
    s.merge("merge", &one, y("{metadata: {labels: {a: null, c: d}}, spec: {replicas: 3}}"));
    s.merge("merge, nothing", &one, y("{metadata: {labels: {c: d}}}"));
    s.merge("merge, list", &one, y("{spec: {template: {spec: {containers: [{name: one, image: one:2}]}}}}"));
    s.merge("merge, bad type", &one, y("{spec: {replicas: many}}"));
    s.merge("merge, unknown field", &one, y("{spec: {replica: 3}}"));
    s.merge(
        "merge, unknown field, strict",
        &(one.clone() + "?fieldValidation=Strict"),
        y("{spec: {replica: 3}}"),
    );
    s.merge("merge, invalid", &one, y("{spec: {replicas: -1}}"));
    s.merge("merge, name", &one, y("{metadata: {name: other}}"));
    s.merge("merge, namespace", &one, y("{metadata: {namespace: other}}"));
    s.merge("merge, kind", &one, y("{kind: Pod}"));
    s.merge("merge, old version", &one, y("{metadata: {resourceVersion: '1'}, spec: {replicas: 8}}"));
    s.merge("merge, uid", &one, y("{metadata: {uid: 00000000-0000-4000-8000-000000000000}}"));
    s.merge("merge, nothing there", &(deployments.clone() + "/nothing"), y("{spec: {replicas: 1}}"));
    s.merge("merge, dry", &(one.clone() + "?dryRun=All&fieldManager=me"), y("{spec: {replicas: 4}}"));
    s.request("merge, broken", Method::PATCH, &one, &[("content-type", "application/merge-patch+json")], "{");
    s.request("merge, empty", Method::PATCH, &one, &[("content-type", "application/merge-patch+json")], "");
    s.request(
        "merge, list as patch",
        Method::PATCH,
        &one,
        &[("content-type", "application/merge-patch+json")],
        "[]",
    );
    s.strategic(
        "strategic, add a container",
        &one,
        y("{spec: {template: {spec: {containers: [{name: two, image: two:2}]}}}}"),
    );
    s.strategic(
        "strategic, change env",
        &one,
        y("{spec: {template: {spec: {containers: [{name: one, env: [{name: C, value: c}]}]}}}}"),
    );
    s.strategic(
        "strategic, delete env",
        &one,
        y("{spec: {template: {spec: {containers: [{name: one, env: [{name: C, $patch: delete}]}]}}}}"),
    );
    s.strategic("strategic, order", &one, y("{spec: {template: {spec: {$setElementOrder/containers: [{name: two}, {name: one}], containers: [{name: one, image: one:3}]}}}}"));
    s.strategic(
        "strategic, replace",
        &one,
        y("{spec: {template: {spec: {tolerations: [{key: z, operator: Exists}]}}}}"),
    );
    s.strategic("strategic, replace a map", &one, y("{metadata: {labels: {$patch: replace, only: this}}}"));
    s.strategic(
        "strategic, retain keys",
        &one,
        y("{spec: {strategy: {$retainKeys: [type], type: Recreate, rollingUpdate: null}}}"),
    );
    s.strategic("strategic, finalizers", &one, y("{metadata: {finalizers: [a.b/c, d.e/f]}}"));
    s.strategic(
        "strategic, delete a finalizer",
        &one,
        y("{metadata: {$deleteFromPrimitiveList/finalizers: [a.b/c]}}"),
    );
    s.strategic(
        "strategic, no merge key",
        &one,
        y("{spec: {template: {spec: {containers: [{image: three:1}]}}}}"),
    );
    s.strategic(
        "strategic, unknown directive",
        &one,
        y("{spec: {template: {spec: {containers: [{name: one, $patch: wrong}]}}}}"),
    );
    s.strategic("strategic, bad type", &one, y("{spec: {template: {spec: {containers: wrong}}}}"));
    s.strategic("strategic, unknown field", &one, y("{spec: {replica: 3}}"));
    s.strategic(
        "strategic, volumes",
        &one,
        y("{spec: {template: {spec: {volumes: [{name: v, emptyDir: null, configMap: {name: c}}]}}}}"),
    );
    s.merge("free it", &one, y("{metadata: {finalizers: null}}"));
    s.json_patch("json", &one, json!([{"op": "replace", "path": "/spec/replicas", "value": 5}, {"op": "add", "path": "/metadata/labels/j", "value": "k"}]));
    s.json_patch("json, test", &one, json!([{"op": "test", "path": "/spec/replicas", "value": 4}, {"op": "replace", "path": "/spec/replicas", "value": 6}]));
    s.json_patch("json, test holds", &one, json!([{"op": "test", "path": "/spec/replicas", "value": 5}, {"op": "replace", "path": "/spec/replicas", "value": 6}]));
    s.json_patch("json, no path", &one, json!([{"op": "replace", "path": "/spec/nothing/here", "value": 5}]));
    s.json_patch("json, remove nothing", &one, json!([{"op": "remove", "path": "/metadata/labels/nothing"}]));
    s.json_patch("json, bad operation", &one, json!([{"op": "wrong", "path": "/spec/replicas"}]));
    s.json_patch("json, append", &one, json!([{"op": "add", "path": "/spec/template/spec/containers/-", "value": {"name": "three", "image": "three:1"}}]));
    s.json_patch("json, move and copy", &one, json!([{"op": "copy", "from": "/metadata/labels/j", "path": "/metadata/labels/copy"}, {"op": "move", "from": "/metadata/labels/j", "path": "/metadata/labels/moved"}]));
    s.json_patch("json, no list", &one, json!({"op": "add"}));
    s.json_patch("json, invalid", &one, json!([{"op": "replace", "path": "/spec/replicas", "value": -5}]));
    s.get("in the end", &one);
    s.request("media type", Method::PATCH, &one, &[("content-type", "application/json")], "{}");
    s
}
