//! What controls requests and devices, and kinds that are served in more than one version.

use super::{at, y};
use crate::script::Script;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

/// Cluster-wide resource and the object's fields beside its name.
const OBJECTS: &[(&str, &str)] = &[
    (
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
        "{webhooks: [{name: a.b.c, sideEffects: None, admissionReviewVersions: [v1], clientConfig: {service: {name: s, namespace: n}}, \
         objectSelector: {matchLabels: {never: matched}}, \
         rules: [{apiGroups: [none.example.com], apiVersions: [v1], resources: [nothings], operations: [CREATE]}]}]}",
    ),
    (
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
        "{webhooks: [{name: a.b.c, sideEffects: None, admissionReviewVersions: [v1], clientConfig: {url: 'https://a.b/c'}, \
         rules: [{apiGroups: [none.example.com], apiVersions: [v1], resources: [nothings], operations: [CREATE]}]}]}",
    ),
    ("/apis/resource.k8s.io/v1/deviceclasses", "{spec: {selectors: [{cel: {expression: 'true'}}]}}"),
    (
        "/apis/resource.k8s.io/v1/resourceslices",
        "{spec: {driver: gpu.example.com, nodeName: n, pool: {name: p, generation: 1, resourceSliceCount: 1}, devices: [{name: d, attributes: {model: {string: m}}, capacity: {memory: {value: 80Gi}}}]}}",
    ),
    (
        "/apis/storage.k8s.io/v1/volumeattributesclasses",
        "{driverName: d.example.com, parameters: {iops: '1'}}",
    ),
    (
        "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations",
        "{spec: {type: Limited, limited: {limitResponse: {type: Queue, queuing: {}}}}}",
    ),
];

pub fn control() -> Script {
    let mut s = Script::new("control");
    for (path, fields) in OBJECTS {
        let kind = path.rsplit('/').next().unwrap();
        let mut object = y(fields);
        object["metadata"] = serde_json::json!({"name": "{ns}"});
        s.post(kind, path, object);
        let one = format!("{path}/{{ns}}");
        s.merge(&format!("{kind} labelled"), &one, y("{metadata: {labels: {a: b}}}"));
        s.get_as(&format!("{kind} as table"), TABLE, &one);
        s.delete(&format!("{kind} deleted"), &one, serde_json::Value::Null);
    }
    let claims = at("resource.k8s.io/v1/resourceclaims");
    s.post(
        "claim",
        &claims,
        y("{metadata: {name: c}, spec: {devices: {requests: [{name: r, exactly: {deviceClassName: d}}]}}}"),
    );
    s.post("claim of several", &claims, y("{metadata: {name: d}, spec: {devices: {requests: [{name: r, firstAvailable: [{name: a, deviceClassName: x}, {name: b, deviceClassName: y, count: 2}]}]}}}"));
    s.get_as("claims as table", TABLE, &claims);
    s.post(
        "claim template",
        &at("resource.k8s.io/v1/resourceclaimtemplates"),
        y("{metadata: {name: t}, spec: {spec: {devices: {requests: [{name: r, exactly: {deviceClassName: d, allocationMode: All}}]}}}}"),
    );
    s.kubectl("kubectl claims", "get resourceclaims -n {ns}", "");
    s
}

pub fn autoscalers() -> Script {
    let mut s = Script::new("autoscalers");
    let (old, new) =
        (at("autoscaling/v1/horizontalpodautoscalers"), at("autoscaling/v2/horizontalpodautoscalers"));
    let target = "scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: x}, maxReplicas: 3";
    s.post(
        "old",
        &old,
        y(&format!("{{metadata: {{name: a}}, spec: {{{target}, targetCPUUtilizationPercentage: 50}}}}")),
    );
    s.get("old as new", &format!("{new}/a"));
    s.post("old, silent", &old, y(&format!("{{metadata: {{name: b}}, spec: {{{target}}}}}")));
    s.post("new", &new, y(&format!(
        "{{metadata: {{name: c}}, spec: {{{target}, metrics: [{{type: Resource, resource: {{name: memory, target: {{type: AverageValue, averageValue: 1Gi}}}}}}, \
         {{type: Pods, pods: {{metric: {{name: m}}, target: {{type: AverageValue, averageValue: 5}}}}}}], \
         behavior: {{scaleDown: {{stabilizationWindowSeconds: 9, policies: [{{type: Pods, value: 4, periodSeconds: 15}}]}}}}}}}}"
    )));
    s.get("new as old", &format!("{old}/c"));
    s.merge("old changes new", &format!("{old}/c"), y("{spec: {maxReplicas: 5}}"));
    s.get("new again", &format!("{new}/c"));
    s.merge(
        "old status",
        &format!("{old}/a/status"),
        y("{status: {currentReplicas: 1, desiredReplicas: 2, currentCPUUtilizationPercentage: 7}}"),
    );
    s.get("status as new", &format!("{new}/a"));
    s.get("list of old", &old);
    s.get_as("table of old", TABLE, &old);
    s.merge("bad", &format!("{old}/a"), y("{spec: {maxReplicas: 0}}"));
    s.kubectl("kubectl, old", "get hpa.v1.autoscaling -n {ns}", "");
    s.kubectl("explain old", "explain hpa.spec --api-version=autoscaling/v1", "");
    s
}

pub fn requests() -> Script {
    let mut s = Script::new("requests");
    s.get("components table", "/api/v1/componentstatuses/none");
    s.post(
        "token of nobody",
        "/apis/authentication.k8s.io/v1/tokenreviews",
        y("{apiVersion: authentication.k8s.io/v1, kind: TokenReview, spec: {token: nonsense}}"),
    );
    s.post("no token", "/apis/authentication.k8s.io/v1/tokenreviews", y("{spec: {}}"));
    s.post("pod", &at("pods"), y("{metadata: {name: p}, spec: {containers: [{name: c, image: i}]}}"));
    s.post("bindings", &at("bindings"), y("{apiVersion: v1, kind: Binding, metadata: {name: p}, target: {apiVersion: v1, kind: Node, name: n}}"));
    s.get("bound", &(at("pods") + "/p"));
    s.get_as("list in yaml", "application/yaml", &at("serviceaccounts"));
    s.get_as("table in yaml", "application/yaml;as=Table;v=v1;g=meta.k8s.io", &(at("pods") + "/p"));
    s.get_as("error in yaml", "application/yaml", &(at("pods") + "/q"));
    s.get_as("discovery in yaml", "application/yaml", "/apis/batch/v1");
    s.get_as("watch in yaml", "application/yaml", &(at("pods") + "?watch=1&timeoutSeconds=1"));
    s.kubectl(
        "kubectl diff",
        "diff -n {ns} -f -",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {a: b}}",
    );
    s.kubectl("wait for what is not there", "wait -n {ns} --for=condition=Ready pod/none --timeout=1s", "");
    s.kubectl("wait until gone", "wait -n {ns} --for=delete pod/none --timeout=1s", "");
    s.kubectl(
        "wait for a field",
        "wait -n {ns} --for=jsonpath={.status.phase}=Pending pod/p --timeout=5s",
        "",
    );
    s.kubectl("debug nothing", "get pod p -n {ns} --subresource=ephemeralcontainers -o name", "");
    s.post("twice a variable", &at("pods"), y("{metadata: {name: e}, spec: {containers: [{name: c, image: i, env: [{name: A, value: x}, {name: A, value: z}]}]}}"));
    s
}
