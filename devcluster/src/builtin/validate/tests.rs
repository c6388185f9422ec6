//! Whole objects, as a person writes them, and what is said of them.

use rstest::rstest;
use serde_json::{Value, json};

use super::{Write, check};
use crate::builtin::defaults;

fn y(yaml: &str) -> Value {
    let mut options = serde_saphyr::Options::default();
    options.strict_booleans = true;
    serde_saphyr::from_str_with_options(yaml, options).unwrap_or_else(|e| panic!("{e}\n{yaml}"))
}

/// What is said of an object once it has its defaults.
fn said_of(kind: &str, new: &Value, old: Option<&Value>, subresource: Option<&str>) -> Vec<String> {
    let completed = |object: &Value| {
        let mut object = object.clone();
        if object["metadata"]["name"].is_null() {
            object["metadata"]["name"] = "x".into();
        }
        defaults::apply(kind, &mut object);
        object
    };
    let (new, old) = (completed(new), old.map(completed));
    let write = Write { kind, api_version: "v1", new: &new, old: old.as_ref(), subresource };
    check(&write).into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
}

fn said(kind: &str, new: &Value) -> Vec<String> {
    said_of(kind, new, None, None)
}

fn changed(kind: &str, new: &Value, old: &Value) -> Vec<String> {
    said_of(kind, new, Some(old), None)
}

#[rstest]
#[case("{containers: [{name: c, image: i}]}", &[])]
#[case("{}", &["spec.containers: Required value"])]
#[case("{containers: [{name: c, image: i}, {name: c, image: i}]}", &[r#"spec.containers[1].name: Duplicate value: "c""#])]
#[case("{restartPolicy: Maybe, containers: [{name: c, image: i}]}", &[r#"spec.restartPolicy: Unsupported value: "Maybe": supported values: "Always", "OnFailure", "Never""#])]
#[case("{containers: [{name: c, image: i, ports: [{containerPort: 0}, {containerPort: 70000, protocol: HTTP}]}]}", &[
    "spec.containers[0].ports[0].containerPort: Required value",
    "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
    r#"spec.containers[0].ports[1].protocol: Unsupported value: "HTTP": supported values: "SCTP", "TCP", "UDP""#,
])]
#[case("{containers: [{name: c, image: i, ports: [{containerPort: 1, hostPort: 9}, {containerPort: 2, hostPort: 9}]}]}", &[r#"spec.containers[0].ports[1].hostPort: Duplicate value: "TCP//9""#])]
#[case("{containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}]}", &[r#"spec.containers[0].volumeMounts[0].name: Not found: "v""#])]
#[case("{volumes: [{name: v, emptyDir: {}, hostPath: {path: /}}], containers: [{name: c, image: i}]}", &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"])]
#[case("{volumes: [{name: v, hostPath: {path: /a/../b, type: Odd}}], containers: [{name: c, image: i}]}", &[
    r#"spec.volumes[0].hostPath.path: Invalid value: "/a/../b": must not contain '..'"#,
    r#"spec.volumes[0].hostPath.type: Unsupported value: "Odd": supported values: "", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket""#,
])]
#[case("{containers: [{name: c, image: i, readinessProbe: {}}]}", &["spec.containers[0].readinessProbe: Required value: must specify a handler type"])]
#[case("{containers: [{name: c, image: i, livenessProbe: {tcpSocket: {port: 80}, successThreshold: 2}}]}", &["spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"])]
#[case("{initContainers: [{name: a, image: i, livenessProbe: {exec: {command: [x]}}}], containers: [{name: c, image: i}]}", &["spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always"])]
#[case("{containers: [{name: c, image: i, env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.restartPolicy}}}]}]}", &[r#"spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: "spec.restartPolicy": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs""#])]
#[case("{containers: [{name: c, image: i}], tolerations: [{operator: Exists, key: k, value: v}]}", &[r#"spec.tolerations[0].operator: Invalid value: "v": value must be empty when `operator` is 'Exists'"#])]
#[case("{containers: [{name: c, image: i}], topologySpreadConstraints: [{maxSkew: 0, topologyKey: z, whenUnsatisfiable: Odd}]}", &[
    "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
    r#"spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: "Odd": supported values: "DoNotSchedule", "ScheduleAnyway""#,
])]
#[case("{containers: [{name: c, image: i, securityContext: {runAsUser: -1}}]}", &["spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive"])]
#[case("{dnsPolicy: None, containers: [{name: c, image: i}]}", &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"])]
#[case("{nodeName: n, schedulingGates: [{name: a}], containers: [{name: c, image: i}]}", &["spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"])]
#[case("{containers: [{name: c, image: ' i'}]}", &[r#"spec.containers[0].image: Invalid value: " i": must not have leading or trailing whitespace"#])]
fn pods_are_checked(#[case] spec: &str, #[case] wanted: &[&str]) {
    assert_eq!(said("Pod", &json!({"spec": y(spec)})), wanted);
}

#[rstest]
#[case("{containers: [{name: c, image: j}]}", "")]
#[case("{containers: [{name: c, image: i}], activeDeadlineSeconds: 5}", "")]
#[case("{containers: [{name: c, image: i}], tolerations: [{key: k, operator: Exists}]}", "")]
#[case(
    "{containers: [{name: c, image: i, command: [x]}]}",
    "spec: Forbidden: pod updates may not change fields other than"
)]
#[case(
    "{containers: [{name: c, image: i}, {name: d, image: i}]}",
    "spec.containers: Forbidden: pod updates may not add or remove containers"
)]
#[case(
    "{containers: [{name: c, image: i}], nodeName: n}",
    "spec: Forbidden: pod updates may not change fields other than"
)]
#[case(
    "{containers: [{name: c, image: i}], schedulingGates: [{name: a.b/c}]}",
    "spec.schedulingGates[0].name: Forbidden: only deletion is allowed"
)]
fn pods_change_only_what_may_change(#[case] spec: &str, #[case] wanted: &str) {
    let old = json!({"spec": y("{containers: [{name: c, image: i}]}")});
    let found = changed("Pod", &json!({"spec": y(spec)}), &old);
    match wanted {
        "" => assert_eq!(found, [""; 0]),
        start => assert!(found.len() == 1 && found[0].starts_with(start), "{found:?}"),
    }
}

const TEMPLATE: &str = "template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}";
const MATCH: &str = "selector: {matchLabels: {a: b}}";

#[rstest]
#[case("Deployment", "", &["spec.selector: Required value", "spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`", "spec.template.spec.containers: Required value"])]
#[case("Deployment", "{selector: {matchLabels: {a: c}}, TEMPLATE}", &[r#"spec.template.metadata.labels: Invalid value: {"a":"b"}: `selector` does not match template `labels`"#])]
#[case("Deployment", "{MATCH, TEMPLATE, strategy: {type: Odd}}", &[r#"spec.strategy: Unsupported value: {"Type":"Odd","RollingUpdate":null}: supported values: "Recreate", "RollingUpdate""#])]
#[case("Deployment", "{MATCH, TEMPLATE, strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0}}}", &["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"])]
#[case("Deployment", "{MATCH, TEMPLATE, minReadySeconds: 700}", &["spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"])]
#[case("ReplicaSet", "{MATCH, TEMPLATE, replicas: -1}", &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"])]
#[case("StatefulSet", "{MATCH, TEMPLATE, serviceName: s, podManagementPolicy: Odd}", &[r#"spec.podManagementPolicy: Invalid value: "Odd": must be 'OrderedReady' or 'Parallel'"#])]
#[case("StatefulSet", "{selector: {}, TEMPLATE}", &["spec.selector: Invalid value: {}: empty selector is invalid for statefulset"])]
#[case("DaemonSet", "{MATCH, TEMPLATE, updateStrategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 1}}}", &["spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero"])]
#[case("ReplicationController", "{selector: {a: c}, TEMPLATE}", &[r#"spec.template.metadata.labels: Invalid value: {"a":"b"}: `selector` does not match template `labels`"#])]
fn workloads_are_checked(#[case] kind: &str, #[case] spec: &str, #[case] wanted: &[&str]) {
    let spec = if spec.is_empty() {
        "{}".to_owned()
    } else {
        spec.replace("TEMPLATE", TEMPLATE).replace("MATCH", MATCH)
    };
    assert_eq!(said(kind, &json!({"spec": y(&spec)})), wanted);
}

#[test]
fn the_claims_of_a_stateful_set_are_volumes_of_its_pods() {
    let unknown = |kind: &str, mount: &str| {
        let spec = format!(
            "{{{MATCH}, serviceName: a, volumeClaimTemplates: [{{metadata: {{name: data}}, spec: {{accessModes: [ReadWriteOnce], \
             resources: {{requests: {{storage: 1Gi}}}}}}}}], template: {{metadata: {{labels: {{a: b}}}}, spec: {{containers: \
             [{{name: c, image: i, volumeMounts: [{{name: {mount}, mountPath: /d}}]}}]}}}}}}"
        );
        said(kind, &json!({"spec": y(&spec)})).iter().any(|fault| fault.contains("volumeMounts[0].name"))
    };
    assert!(!unknown("StatefulSet", "data"));
    assert!(unknown("StatefulSet", "other") && unknown("Deployment", "data"));
}

#[test]
fn stateful_sets_change_only_what_may_change() {
    let set = json!({"spec": y(&format!("{{{MATCH}, serviceName: s, {TEMPLATE}}}"))});
    assert_eq!(changed("StatefulSet", &set, &set), [""; 0]);
    let mut other = set.clone();
    other["spec"]["replicas"] = 4.into();
    assert_eq!(changed("StatefulSet", &other, &set), [""; 0]);
    other["spec"]["serviceName"] = "t".into();
    let found = changed("StatefulSet", &other, &set);
    assert!(found[0].starts_with("spec: Forbidden: updates to statefulset spec"), "{found:?}");
}

#[test]
fn selectors_of_workloads_stay() {
    let old = json!({"spec": y(&format!("{{{MATCH}, {TEMPLATE}}}"))});
    let new = json!({"spec": y("{selector: {matchLabels: {a: c}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c, image: i}]}}}")});
    for kind in ["Deployment", "ReplicaSet", "DaemonSet"] {
        assert_eq!(
            changed(kind, &new, &old),
            [r#"spec.selector: Invalid value: {"matchLabels":{"a":"c"}}: field is immutable"#]
        );
    }
}

#[rstest]
#[case("{replicas: -1}", "status.replicas: Invalid value: -1: must be greater than or equal to 0")]
#[case(
    "{replicas: 1, readyReplicas: 2}",
    "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"
)]
fn the_numbers_in_a_status_go_together(#[case] status: &str, #[case] wanted: &str) {
    let new = json!({"metadata": {"name": "x"}, "status": y(status)});
    let old = json!({"metadata": {"name": "x"}, "status": {}});
    assert_eq!(said_of("Deployment", &new, Some(&old), Some("status"))[0], wanted);
}

#[test]
fn jobs_end_and_keep_their_template() {
    let job = |restart: &str| {
        let spec = format!(
            "{{manualSelector: true, {MATCH}, template: {{metadata: {{labels: {{a: b}}}}, spec: {{restartPolicy: {restart}, \
             containers: [{{name: c, image: i}}]}}}}}}"
        );
        json!({"spec": y(&spec)})
    };
    assert_eq!(
        said("Job", &job("Always")),
        [r#"spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never""#]
    );
    let old = job("Never");
    assert_eq!(said("Job", &old), [""; 0]);
    let mut new = old.clone();
    new["spec"]["parallelism"] = 2.into();
    new["spec"]["completions"] = 1.into();
    assert_eq!(changed("Job", &new, &old), [""; 0]);
    new["spec"]["template"]["spec"]["containers"][0]["image"] = "j".into();
    let found = changed("Job", &new, &old);
    assert!(found.len() == 1 && found[0].ends_with("field is immutable"), "{found:?}");
}

#[rstest]
#[case("CronJob", "{spec: {schedule: often, jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}}}", &[r#"spec.schedule: Invalid value: "often": expected exactly 5 fields, found 1: [often]"#])]
#[case("Service", "{spec: {}}", &["spec.ports: Required value"])]
#[case("Service", "{spec: {ports: [{name: a, port: 80}, {name: b, port: 80}]}}", &[r#"spec.ports[1]: Duplicate value: {"Name":"","Protocol":"TCP","AppProtocol":null,"Port":80,"TargetPort":0,"NodePort":0}"#])]
#[case("Service", "{spec: {clusterIP: nonsense, ports: [{port: 80}]}}", &[r#"spec.clusterIPs[0]: Invalid value: "nonsense": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#])]
#[case("Service", "{spec: {type: ExternalName}}", &["spec.externalName: Required value"])]
#[case("Service", "{spec: {ports: [{port: 80, nodePort: 30001}]}}", &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"])]
#[case("Service", "{spec: {clusterIP: None}}", &[])]
#[case("ConfigMap", "{data: {'a b': c}}", &[r#"data[a b]: Invalid value: "a b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"#])]
#[case("Secret", "{type: kubernetes.io/tls, data: {tls.crt: YQ==}}", &["data[tls.key]: Required value"])]
#[case("Secret", "{type: kubernetes.io/dockerconfigjson, data: {}}", &["data[.dockerconfigjson]: Required value"])]
#[case("PersistentVolumeClaim", "{spec: {}}", &["spec.accessModes: Required value: at least 1 access mode is required", "spec.resources[storage]: Required value"])]
#[case("PersistentVolume", "{spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce]}}", &["spec: Required value: must specify a volume type"])]
#[case("StorageClass", "{provisioner: p, reclaimPolicy: Odd}", &[r#"reclaimPolicy: Unsupported value: "Odd": supported values: "Delete", "Retain""#])]
#[case("Role", "{rules: [{verbs: [get], nonResourceURLs: [/x]}]}", &[r#"rules[0].nonResourceURLs: Invalid value: ["/x"]: namespaced rules cannot apply to non-resource URLs"#])]
#[case("ClusterRole", "{rules: [{verbs: [get], nonResourceURLs: [/x]}]}", &[])]
#[case("RoleBinding", "{roleRef: {kind: Odd, name: x}}", &[r#"roleRef.kind: Unsupported value: "Odd": supported values: "Role", "ClusterRole""#])]
#[case("Ingress", "{spec: {}}", &["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"])]
#[case("NetworkPolicy", "{spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}}", &[r#"spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "11.0.0.0/16": must be a strict subset of `cidr`"#])]
#[case("EndpointSlice", "{addressType: IPv4, endpoints: [{addresses: [127.0.0.1]}]}", &[r#"endpoints[0].addresses[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)"#])]
#[case("HorizontalPodAutoscaler", "{spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: d}, minReplicas: 5, maxReplicas: 2}}", &["spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`"])]
#[case("PodDisruptionBudget", "{spec: {minAvailable: 150%}}", &[r#"spec.minAvailable: Invalid value: "150%": must not be greater than 100%"#])]
#[case("PriorityClass", "{value: 2000000000}", &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"])]
#[case("LimitRange", "{spec: {limits: [{type: Pod, max: {cpu: '1'}, min: {cpu: '2'}}]}}", &[r#"spec.limits[0].min[cpu]: Invalid value: "2": min value 2 is greater than max value 1"#])]
#[case("ResourceQuota", "{spec: {hard: {pods: 500m}}}", &[r#"spec.hard[pods]: Invalid value: "500m": must be an integer"#])]
#[case("Lease", "{spec: {leaseDurationSeconds: 0}}", &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"])]
#[case("Node", "{spec: {taints: [{key: a, effect: Odd}]}}", &[r#"metadata.taints[0].effect: Unsupported value: "Odd": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute""#])]
#[case("Event", "{metadata: {namespace: a}, involvedObject: {namespace: b}}", &[r#"involvedObject.namespace: Invalid value: "b": does not match event.namespace"#])]
fn other_kinds_are_checked(#[case] kind: &str, #[case] object: &str, #[case] wanted: &[&str]) {
    let mut object = y(object);
    object["apiVersion"] = "v1".into();
    assert_eq!(said(kind, &object), wanted);
}

#[test]
fn claims_classes_and_bindings_keep_what_they_are() {
    let claim =
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let mut more = claim.clone();
    more["spec"]["volumeName"] = "v".into();
    assert_eq!(changed("PersistentVolumeClaim", &more, &claim), [""; 0]);
    more["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
    assert_eq!(changed("PersistentVolumeClaim", &more, &claim).len(), 1, "not bound yet");
    more["status"]["phase"] = "Bound".into();
    assert_eq!(changed("PersistentVolumeClaim", &more, &claim), [""; 0]);
    let class = |value: i64| json!({"value": value});
    assert_eq!(
        changed("PriorityClass", &class(2), &class(1)),
        ["value: Forbidden: may not be changed in an update."]
    );
    let binding = |name: &str| json!({"roleRef": {"kind": "Role", "name": name}});
    assert_eq!(
        changed("RoleBinding", &binding("b"), &binding("a")),
        [
            r#"roleRef: Invalid value: {"APIGroup":"rbac.authorization.k8s.io","Kind":"Role","Name":"b"}: cannot change roleRef"#
        ]
    );
}

#[test]
fn what_is_set_in_stone_stays() {
    let map = |value: &str| json!({"immutable": true, "data": {"k": value}});
    assert_eq!(
        changed("ConfigMap", &map("b"), &map("a")),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    assert_eq!(
        changed(
            "Secret",
            &json!({"data": {"k": "YQ=="}}),
            &json!({"immutable": true, "data": {"k": "YQ=="}})
        ),
        ["immutable: Forbidden: field is immutable when `immutable` is set"]
    );
}
