//! Status, scale, binding, eviction, log, tokens and reviews.

use super::{at, y};
use crate::script::Script;

pub fn workloads() -> Script {
    let mut s = Script::new("scale");
    let deployments = at("apps/v1/deployments");
    let one = format!("{deployments}/d");
    s.post("create", &deployments, y("{metadata: {name: d}, spec: {replicas: 2, selector: {matchLabels: {a: b, c: d}, matchExpressions: [{key: e, operator: Exists}]}, template: {metadata: {labels: {a: b, c: d, e: f}}, spec: {containers: [{name: c, image: i}]}}}}"));
    s.get("scale", &format!("{one}/scale"));
    s.put("scale put", &format!("{one}/scale"), y("{apiVersion: autoscaling/v1, kind: Scale, metadata: {name: d, namespace: '{ns}'}, spec: {replicas: 3}}"));
    s.merge("scale merge", &format!("{one}/scale"), y("{spec: {replicas: 4}}"));
    s.merge("scale, dry", &format!("{one}/scale?dryRun=All"), y("{spec: {replicas: 9}}"));
    s.json_patch(
        "scale json",
        &format!("{one}/scale"),
        serde_json::json!([{"op": "replace", "path": "/spec/replicas", "value": 5}]),
    );
    s.merge("scale, negative", &format!("{one}/scale"), y("{spec: {replicas: -1}}"));
    s.merge("scale, bad", &format!("{one}/scale"), y("{spec: {replicas: many}}"));
    s.put("scale, old version", &format!("{one}/scale"), y("{apiVersion: autoscaling/v1, kind: Scale, metadata: {name: d, namespace: '{ns}', resourceVersion: '1'}, spec: {replicas: 3}}"));
    s.put(
        "scale, other kind",
        &format!("{one}/scale"),
        y("{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {replicas: 3}}"),
    );
    s.get("scale of nothing", &format!("{deployments}/nothing/scale"));
    s.get("after scale", &one);
    s.get("status", &format!("{one}/status"));
    s.merge("status merge", &format!("{one}/status"), y("{status: {replicas: 4, observedGeneration: 2}}"));
    s.put(
        "status put",
        &format!("{one}/status"),
        y("{metadata: {name: d}, spec: {replicas: 9}, status: {replicas: 5}}"),
    );
    s.merge("status, negative", &format!("{one}/status"), y("{status: {replicas: -1}}"));
    s.request(
        "post of a status",
        http::Method::POST,
        &format!("{one}/status"),
        &[("content-type", "application/json")],
        "{}",
    );
    s.delete("delete of a status", &format!("{one}/status"), serde_json::Value::Null);
    s.kubectl("kubectl scale", "scale deploy d -n {ns} --replicas=1", "");
    s.kubectl("kubectl scale, other", "scale deploy d -n {ns} --replicas=1 --current-replicas=7", "");
    s.kubectl("kubectl status", "get deploy d -n {ns} --subresource=status", "");
    s.kubectl("kubectl scale read", "get deploy d -n {ns} --subresource=scale -o json", "");
    s.kubectl_args(
        "kubectl patch status",
        &[
            "patch",
            "deploy",
            "d",
            "-n",
            "{ns}",
            "--subresource=status",
            "--type=merge",
            "-p",
            r#"{"status":{"readyReplicas":1}}"#,
        ],
        "",
    );
    s.kubectl("autoscale", "autoscale deploy d -n {ns} --min=1 --max=3", "");
    s.kubectl("rollout history", "rollout history deploy d -n {ns}", "");
    s.kubectl("rollout restart", "rollout restart deploy d -n {ns}", "");
    s.kubectl("rollout pause", "rollout pause deploy d -n {ns}", "");
    s.get("in the end", &one);
    s
}

pub fn pods() -> Script {
    let mut s = Script::new("pods");
    let pods = at("pods");
    for (name, labels) in [("a", "{app: x}"), ("b", "{app: x}"), ("c", "{app: y}")] {
        s.post(name, &pods, y(&format!("{{metadata: {{name: {name}, labels: {labels}}}, spec: {{containers: [{{name: one, image: i}}, {{name: two, image: i}}]}}}}")));
    }
    s.post("bind", &format!("{pods}/a/binding"), y("{apiVersion: v1, kind: Binding, metadata: {name: a}, target: {apiVersion: v1, kind: Node, name: n}}"));
    s.get("bound", &format!("{pods}/a"));
    s.post("bind again", &format!("{pods}/a/binding"), y("{apiVersion: v1, kind: Binding, metadata: {name: a}, target: {apiVersion: v1, kind: Node, name: m}}"));
    s.post(
        "bind to nothing",
        &format!("{pods}/b/binding"),
        y("{apiVersion: v1, kind: Binding, metadata: {name: b}, target: {}}"),
    );
    s.post(
        "bind nothing",
        &format!("{pods}/nothing/binding"),
        y("{apiVersion: v1, kind: Binding, metadata: {name: nothing}, target: {kind: Node, name: n}}"),
    );
    s.get("log, unbound", &format!("{pods}/b/log"));
    s.get("log, which", &format!("{pods}/a/log"));
    s.get("log, no such", &format!("{pods}/a/log?container=three"));
    s.get("log of nothing", &format!("{pods}/nothing/log"));
    s.get("log, bad tail", &format!("{pods}/a/log?container=one&tailLines=-1"));
    s.merge("status", &format!("{pods}/a/status"), y("{status: {phase: Running, conditions: [{type: Ready, status: 'True'}], containerStatuses: [{name: one, ready: true, restartCount: 0, image: i, imageID: x}]}}"));
    s.strategic(
        "strategic status",
        &format!("{pods}/a/status"),
        y("{status: {conditions: [{type: Mine, status: 'True'}]}}"),
    );
    s.apply("applied status", &format!("{pods}/a/status?fieldManager=m"), y("{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {conditions: [{type: Yours, status: 'False'}]}}"));
    s.post(
        "budget",
        &at("policy/v1/poddisruptionbudgets"),
        y("{metadata: {name: pdb}, spec: {minAvailable: 2, selector: {matchLabels: {app: x}}}}"),
    );
    s.merge("budget spent", &(at("policy/v1/poddisruptionbudgets") + "/pdb/status"), y("{status: {observedGeneration: 1, disruptionsAllowed: 0, currentHealthy: 1, desiredHealthy: 2, expectedPods: 2}}"));
    s.post(
        "evict, refused",
        &format!("{pods}/a/eviction"),
        y("{apiVersion: policy/v1, kind: Eviction, metadata: {name: a}}"),
    );
    s.post(
        "evict, dry",
        &format!("{pods}/c/eviction"),
        y("{apiVersion: policy/v1, kind: Eviction, metadata: {name: c}, deleteOptions: {dryRun: [All]}}"),
    );
    s.post(
        "evict",
        &format!("{pods}/c/eviction"),
        y("{apiVersion: policy/v1, kind: Eviction, metadata: {name: c}}"),
    );
    s.get("evicted", &format!("{pods}/c"));
    s.post(
        "evict nothing",
        &format!("{pods}/nothing/eviction"),
        y("{apiVersion: policy/v1, kind: Eviction, metadata: {name: nothing}}"),
    );
    s.post(
        "evict, other name",
        &format!("{pods}/b/eviction"),
        y("{apiVersion: policy/v1, kind: Eviction, metadata: {name: a}}"),
    );
    s.kubectl("kubectl logs, unbound", "logs b -n {ns}", "");
    s.kubectl("kubectl logs, no such", "logs a -n {ns} -c three", "");
    s
}

pub fn reviews() -> Script {
    let mut s = Script::new("reviews");
    let review = |kind: &str, spec: &str| {
        y(&format!("{{apiVersion: authorization.k8s.io/v1, kind: {kind}, spec: {spec}}}"))
    };
    let path = "/apis/authorization.k8s.io/v1";
    s.post(
        "self",
        &format!("{path}/selfsubjectaccessreviews"),
        review(
            "SelfSubjectAccessReview",
            "{resourceAttributes: {verb: get, resource: pods, namespace: '{ns}'}}",
        ),
    );
    s.post(
        "self, url",
        &format!("{path}/selfsubjectaccessreviews"),
        review("SelfSubjectAccessReview", "{nonResourceAttributes: {verb: get, path: /x}}"),
    );
    s.post(
        "self, empty",
        &format!("{path}/selfsubjectaccessreviews"),
        review("SelfSubjectAccessReview", "{}"),
    );
    s.post(
        "subject",
        &format!("{path}/subjectaccessreviews"),
        review(
            "SubjectAccessReview",
            "{user: u, groups: [system:masters], resourceAttributes: {verb: get, resource: pods}}",
        ),
    );
    s.post(
        "subject, nobody",
        &format!("{path}/subjectaccessreviews"),
        review("SubjectAccessReview", "{resourceAttributes: {verb: get, resource: pods}}"),
    );
    s.post("local", &format!("{path}/namespaces/{{ns}}/localsubjectaccessreviews"), review("LocalSubjectAccessReview", "{user: u, groups: [system:masters], resourceAttributes: {verb: get, resource: pods, namespace: '{ns}'}}"));
    s.post(
        "rules, no namespace",
        &format!("{path}/selfsubjectrulesreviews"),
        review("SelfSubjectRulesReview", "{}"),
    );
    s.post("me", "/apis/authentication.k8s.io/v1/selfsubjectreviews", y("{}"));
    let token = at("serviceaccounts") + "/default/token";
    s.post(
        "token",
        &token,
        y("{apiVersion: authentication.k8s.io/v1, kind: TokenRequest, spec: {expirationSeconds: 3600}}"),
    );
    s.post("token, audience", &token, y("{spec: {audiences: [a, b]}}"));
    s.post("token, short", &token, y("{spec: {expirationSeconds: 5}}"));
    s.post("token of nobody", &(at("serviceaccounts") + "/nobody/token"), y("{}"));
    s.kubectl("can-i", "auth can-i create pods -n {ns}", "");
    s.kubectl("can-i all", "auth can-i * *", "");
    s.kubectl("whoami", "auth whoami", "");
    s
}
