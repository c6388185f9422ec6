//! Deletion: finalizers, preconditions, propagation, grace, collections, namespaces.

use serde_json::{Value, json};

use super::{at, y};
use crate::script::Script;

pub fn objects() -> Script {
    let mut s = Script::new("deletion");
    let maps = at("configmaps");
    let one = |name: &str| format!("{maps}/{name}");
    for name in ["a", "b", "c", "d", "e"] {
        s.post(name, &maps, y(&format!("{{metadata: {{name: {name}, labels: {{n: {name}}}}}}}")));
    }
    s.post("held", &maps, y("{metadata: {name: held, finalizers: [a.b/c, d.e/f]}}"));
    s.delete(
        "wrong uid",
        &one("a"),
        json!({"preconditions": {"uid": "00000000-0000-4000-8000-000000000000"}}),
    );
    s.delete("wrong version", &one("a"), json!({"preconditions": {"resourceVersion": "1"}}));
    s.delete("right uid", &one("a"), json!({"preconditions": {"uid": "@{a:/metadata/uid}", "resourceVersion": "@{a:/metadata/resourceVersion}"}}));
    s.delete("again", &one("a"), Value::Null);
    s.delete("dry", &format!("{}?dryRun=All", one("b")), Value::Null);
    s.delete(
        "dry by body",
        &one("b"),
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["All"]}),
    );
    s.get("after dry", &one("b"));
    s.delete("bad propagation", &one("b"), json!({"propagationPolicy": "Sideways"}));
    s.delete("bad grace", &one("b"), json!({"gracePeriodSeconds": "many"}));
    s.delete("negative grace", &one("b"), json!({"gracePeriodSeconds": -5}));
    s.delete("unknown option", &one("b"), json!({"kind": "DeleteOptions", "apiVersion": "v1", "unknown": 1}));
    s.delete(
        "both policies",
        &one("b"),
        json!({"orphanDependents": true, "propagationPolicy": "Background"}),
    );
    s.delete("bad dry", &one("b"), json!({"dryRun": ["Some"]}));
    s.delete("other kind of options", &one("b"), json!({"kind": "Pod", "apiVersion": "v1"}));
    s.delete("background", &format!("{}?propagationPolicy=Background", one("b")), Value::Null);
    s.delete("delete held", &one("held"), Value::Null);
    s.delete("held, again", &one("held"), Value::Null);
    s.merge("new finalizer", &one("held"), y("{metadata: {finalizers: [a.b/c, d.e/f, g.h/i]}}"));
    s.merge("still changes", &one("held"), y("{data: {a: b}}"));
    s.json_patch("one less", &one("held"), json!([{"op": "remove", "path": "/metadata/finalizers/0"}]));
    s.merge("none", &one("held"), y("{metadata: {finalizers: []}}"));
    s.get("gone", &one("held"));
    s.delete("collection by label", &format!("{maps}?labelSelector=n in (c,d)"), Value::Null);
    s.get("left", &format!("{maps}?labelSelector=n"));
    s.delete("collection, dry", &format!("{maps}?labelSelector=n&dryRun=All"), Value::Null);
    s.delete("collection, bad selector", &format!("{maps}?labelSelector=a b"), Value::Null);
    s.delete("collection of nothing", &at("secrets"), Value::Null);
    s.delete("collection of namespaces", "/api/v1/namespaces", Value::Null);
    for (kind, body) in [
        ("secrets", "{metadata: {name: x}}"),
        ("serviceaccounts", "{metadata: {name: x}}"),
        ("services", "{metadata: {name: x}, spec: {ports: [{port: 80}]}}"),
        (
            "persistentvolumeclaims",
            "{metadata: {name: x}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}",
        ),
        ("resourcequotas", "{metadata: {name: x}}"),
        ("limitranges", "{metadata: {name: x}, spec: {limits: []}}"),
        ("podtemplates", "{metadata: {name: x}, template: {spec: {containers: [{name: c, image: i}]}}}"),
        (
            "apps/v1/deployments",
            "{metadata: {name: x}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
        ),
        (
            "batch/v1/jobs",
            "{metadata: {name: x}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}",
        ),
        ("coordination.k8s.io/v1/leases", "{metadata: {name: x}}"),
        ("policy/v1/poddisruptionbudgets", "{metadata: {name: x}, spec: {minAvailable: 1}}"),
        ("rbac.authorization.k8s.io/v1/roles", "{metadata: {name: x}}"),
    ] {
        s.post(&format!("make of {kind}"), &at(kind), y(body));
        s.delete(&format!("delete of {kind}"), &(at(kind) + "/x"), Value::Null);
    }
    // Namespaces.
    let space = "/api/v1/namespaces/{ns}-more";
    s.post("a namespace", "/api/v1/namespaces", y("{metadata: {name: '{ns}-more'}}"));
    s.post("in it", &format!("{space}/configmaps"), y("{metadata: {name: stays, finalizers: [a.b/c]}}"));
    s.delete("namespace goes", space, Value::Null);
    s.until("it is held", space, 200, "NamespaceFinalizersRemaining");
    s.get("held namespace", space);
    s.post("new content", &format!("{space}/configmaps"), y("{metadata: {name: late}}"));
    s.merge("free content", &format!("{space}/configmaps/stays"), y("{metadata: {finalizers: null}}"));
    s.until("it is gone", space, 404, "");
    s.delete("default namespace", "/api/v1/namespaces/default", Value::Null);
    s.delete("system namespace", "/api/v1/namespaces/kube-system", Value::Null);
    s
}

pub fn owners() -> Script {
    let mut s = Script::new("owners");
    let maps = at("configmaps");
    let owned = |name: &str, owner: &str, more: &str| {
        y(&format!(
            "{{metadata: {{name: {name}, ownerReferences: [{{apiVersion: v1, kind: ConfigMap, name: {owner}, uid: '@{{{owner}:/metadata/uid}}'{more}}}]}}}}"
        ))
    };
    for name in ["back", "front", "orphan"] {
        s.post(name, &maps, y(&format!("{{metadata: {{name: {name}}}}}")));
        let more = if name == "front" { ", blockOwnerDeletion: true" } else { "" };
        s.post(&format!("{name} child"), &maps, owned(&format!("{name}-child"), name, more));
    }
    s.delete("delete back", &format!("{maps}/back?propagationPolicy=Background"), Value::Null);
    s.until("back child gone", &format!("{maps}/back-child"), 404, "");
    s.delete("delete front", &format!("{maps}/front?propagationPolicy=Foreground"), Value::Null);
    s.until("front child gone", &format!("{maps}/front-child"), 404, "");
    s.until("front gone", &format!("{maps}/front"), 404, "");
    s.delete("delete orphan", &format!("{maps}/orphan?propagationPolicy=Orphan"), Value::Null);
    s.until("orphan gone", &format!("{maps}/orphan"), 404, "");
    s.get("orphan child", &format!("{maps}/orphan-child"));
    s.post("owner by uid of nothing", &maps, y("{metadata: {name: lost, ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: nobody, uid: 00000000-0000-4000-8000-000000000000}]}}"));
    s.until("lost is gone", &format!("{maps}/lost"), 404, "");
    s
}

pub fn pods() -> Script {
    let mut s = Script::new("poddeletion");
    let pods = at("pods");
    for (name, node) in [("free", ""), ("bound", "nodeName: nowhere, "), ("kept", "nodeName: nowhere, ")] {
        s.post(
            name,
            &pods,
            y(&format!(
                "{{metadata: {{name: {name}}}, spec: {{{node}containers: [{{name: c, image: i}}]}}}}"
            )),
        );
    }
    s.delete("delete free", &format!("{pods}/free"), Value::Null);
    s.get("free is gone", &format!("{pods}/free"));
    s.delete("delete bound", &format!("{pods}/bound"), Value::Null);
    s.get("bound is marked", &format!("{pods}/bound"));
    s.delete("sooner", &format!("{pods}/bound?gracePeriodSeconds=5"), Value::Null);
    s.delete("later", &format!("{pods}/bound?gracePeriodSeconds=50"), Value::Null);
    s.merge("still changes", &format!("{pods}/bound"), y("{metadata: {labels: {a: b}}}"));
    s.delete("now", &format!("{pods}/bound"), json!({"gracePeriodSeconds": 0}));
    s.get("bound is gone", &format!("{pods}/bound"));
    s.delete("collection", &pods, Value::Null);
    s.get("kept is marked", &format!("{pods}/kept"));
    s.kubectl("force", "delete pod kept -n {ns} --grace-period=0 --force", "");
    s.get("kept is gone", &format!("{pods}/kept"));
    s
}
