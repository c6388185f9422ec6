//! What people and controllers do every day: look before they change, wait, roll out, clean up by label.

use http::Method;
use serde_json::Value;

use super::{at, y};
use crate::script::Script;

pub fn habits() -> Script {
    let mut s = Script::new("habits");
    let maps = at("configmaps");
    for (name, labels) in [("a", "{t: x}"), ("b", "{t: x}"), ("c", "{t: y}")] {
        s.post(name, &maps, y(&format!("{{metadata: {{name: {name}, labels: {labels}}}, data: {{k: v}}}}")));
    }
    s.request("delete some, dry", Method::DELETE, &format!("{maps}?labelSelector=t=x&dryRun=All"), &[], "");
    s.request("delete some", Method::DELETE, &format!("{maps}?labelSelector=t=x"), &[], "");
    s.get("after some", &format!("{maps}?labelSelector=t"));
    s.request("delete by field", Method::DELETE, &format!("{maps}?fieldSelector=metadata.name=c"), &[], "");
    s.post("create, dry", &format!("{maps}?dryRun=All"), y("{metadata: {name: d}}"));
    s.get("dry is not there", &format!("{maps}/d"));
    s.post("d", &maps, y("{metadata: {name: d, finalizers: [a.b/c]}, data: {k: v}}"));
    s.put("update, dry", &format!("{maps}/d?dryRun=All"), y("{metadata: {name: d}, data: {k: w}}"));
    s.delete("wrong version", &format!("{maps}/d"), y("{preconditions: {resourceVersion: '1'}}"));
    s.delete(
        "wrong uid",
        &format!("{maps}/d"),
        y("{preconditions: {uid: 11111111-1111-1111-1111-111111111111}}"),
    );
    s.delete("delete, dry", &format!("{maps}/d?dryRun=All"), Value::Null);
    s.delete("delete", &format!("{maps}/d"), Value::Null);
    s.merge("change what ends", &format!("{maps}/d"), y("{data: {k: z}}"));
    s.delete("delete again", &format!("{maps}/d"), Value::Null);
    s.json_patch(
        "free it",
        &format!("{maps}/d"),
        serde_json::json!([{"op": "test", "path": "/metadata/finalizers/0", "value": "a.b/c"}, {"op": "remove", "path": "/metadata/finalizers/0"}]),
    );
    s.get("gone", &format!("{maps}/d"));
    let deployment = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 1, selector: {matchLabels: {a: b}}, \
         template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: IMAGE}]}}}}";
    let of = |image: &str| deployment.replace("IMAGE", image);
    s.kubectl("diff of what is new", "diff -n {ns} -f -", &of("i:1"));
    s.kubectl("apply", "apply -n {ns} -f -", &of("i:1"));
    s.kubectl("no diff", "diff -n {ns} -f -", &of("i:1"));
    s.kubectl("diff", "diff -n {ns} -f -", &of("i:2"));
    s.kubectl("apply, dry", "apply -n {ns} --dry-run=server -f -", &of("i:2"));
    s.kubectl("apply by server", "apply -n {ns} --server-side -f -", &of("i:2"));
    s.kubectl("apply by server, forced", "apply -n {ns} --server-side --force-conflicts -f -", &of("i:2"));
    s.kubectl("managers", "get deploy web -n {ns} -o json --show-managed-fields", "");
    s.kubectl("set image", "set image deploy/web c=i:3 -n {ns}", "");
    s.kubectl("set env", "set env deploy/web A=b -n {ns}", "");
    s.kubectl("set resources", "set resources deploy/web --limits=cpu=1,memory=1Gi -n {ns}", "");
    s.kubectl("annotate", "annotate deploy/web kubernetes.io/change-cause=why -n {ns}", "");
    s.kubectl("history", "rollout history deploy/web -n {ns}", "");
    s.kubectl("status", "rollout status deploy/web -n {ns} --timeout=1s", "");
    s.kubectl("undo", "rollout undo deploy/web -n {ns}", "");
    s.kubectl("wait for available", "wait deploy/web -n {ns} --for=condition=Available --timeout=1s", "");
    s.kubectl("replace", "replace -n {ns} -f -", &of("i:4"));
    s.kubectl("label all", "label deploy --all team=x -n {ns}", "");
    s.kubectl("get by label", "get deploy -n {ns} -l team=x -o custom-columns=N:.metadata.name,I:.spec.template.spec.containers[0].image", "");
    s.kubectl("sorted", "get cm -n {ns} --sort-by=.metadata.name -o name", "");
    s.kubectl("can-i list", "auth can-i --list -n {ns}", "");
    s.kubectl(
        "prune",
        "apply -n {ns} --prune -l team=x --prune-allowlist=apps/v1/Deployment -f -",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: kept, labels: {team: x}}}",
    );
    s.kubectl("delete by label", "delete deploy,cm -n {ns} -l team=x --wait=false", "");
    let since = format!("{maps}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true");
    s.get("watch from an old version", &format!("{since}&resourceVersion=1"));
    s.get(
        "watch with first events",
        &format!("{since}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
    );
    s
}
