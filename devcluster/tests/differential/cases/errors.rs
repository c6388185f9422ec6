//! Built-in objects that are refused, and the words that they are refused with.

use super::{at, y};
use crate::script::Script;

pub fn workloads() -> Script {
    let mut s = Script::new("badworkloads");
    let pods = at("pods");
    for (name, spec) in [
        ("no containers", "{}"),
        ("empty containers", "{containers: []}"),
        ("no name", "{containers: [{image: i}]}"),
        ("no image", "{containers: [{name: c}]}"),
        ("bad name", "{containers: [{name: C_, image: i}]}"),
        ("same name", "{containers: [{name: c, image: i}, {name: c, image: i}]}"),
        ("bad policy", "{restartPolicy: Maybe, containers: [{name: c, image: i}]}"),
        ("bad pull policy", "{containers: [{name: c, image: i, imagePullPolicy: Maybe}]}"),
        ("bad port", "{containers: [{name: c, image: i, ports: [{containerPort: 0}]}]}"),
        (
            "high port",
            "{containers: [{name: c, image: i, ports: [{containerPort: 70000, protocol: HTTP, name: TOO_LONG_A_NAME_FOR_IT}]}]}",
        ),
        (
            "bad env",
            "{containers: [{name: c, image: i, env: [{name: '', value: x}, {name: 'a=b', value: x}]}]}",
        ),
        (
            "env of two",
            "{containers: [{name: c, image: i, env: [{name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]}]}",
        ),
        (
            "bad field",
            "{containers: [{name: c, image: i, env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.nothing}}}]}]}",
        ),
        ("bad quantity", "{containers: [{name: c, image: i, resources: {limits: {cpu: lots}}}]}"),
        ("negative quantity", "{containers: [{name: c, image: i, resources: {limits: {cpu: '-1'}}}]}"),
        (
            "request over limit",
            "{containers: [{name: c, image: i, resources: {requests: {cpu: 2}, limits: {cpu: 1}}}]}",
        ),
        ("gpu share", "{containers: [{name: c, image: i, resources: {limits: {nvidia.com/gpu: 500m}}}]}"),
        ("gpu request", "{containers: [{name: c, image: i, resources: {requests: {nvidia.com/gpu: 1}}}]}"),
        ("unknown resource", "{containers: [{name: c, image: i, resources: {limits: {nothing: 1}}}]}"),
        ("no volume", "{containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}]}"),
        (
            "mount without path",
            "{containers: [{name: c, image: i, volumeMounts: [{name: v}]}], volumes: [{name: v, emptyDir: {}}]}",
        ),
        (
            "two of a path",
            "{containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /v}]}], volumes: [{name: v, emptyDir: {}}]}",
        ),
        (
            "volume of two",
            "{containers: [{name: c, image: i}], volumes: [{name: v, emptyDir: {}, hostPath: {path: /}}]}",
        ),
        (
            "volume twice",
            "{containers: [{name: c, image: i}], volumes: [{name: v, emptyDir: {}}, {name: v, emptyDir: {}}]}",
        ),
        ("volume of nothing", "{containers: [{name: c, image: i}], volumes: [{name: v}]}"),
        ("bad volume name", "{containers: [{name: c, image: i}], volumes: [{name: V, emptyDir: {}}]}"),
        ("probe of nothing", "{containers: [{name: c, image: i, readinessProbe: {}}]}"),
        (
            "probe of two",
            "{containers: [{name: c, image: i, readinessProbe: {httpGet: {port: 80}, tcpSocket: {port: 80}}}]}",
        ),
        (
            "bad probe",
            "{containers: [{name: c, image: i, livenessProbe: {httpGet: {port: 80}, successThreshold: 2, periodSeconds: -1}}]}",
        ),
        (
            "bad toleration",
            "{containers: [{name: c, image: i}], tolerations: [{operator: Exists, value: x, key: k}, {operator: Wrong, key: k}, {effect: Wrong, key: k, operator: Exists}]}",
        ),
        ("bad selector", "{containers: [{name: c, image: i}], nodeSelector: {'a b': c}}"),
        (
            "bad affinity",
            "{containers: [{name: c, image: i}], affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: In}]}]}}}}",
        ),
        (
            "bad spread",
            "{containers: [{name: c, image: i}], topologySpreadConstraints: [{maxSkew: 0, topologyKey: '', whenUnsatisfiable: Wrong}]}",
        ),
        ("bad grace", "{containers: [{name: c, image: i}], terminationGracePeriodSeconds: -1}"),
        ("bad deadline", "{containers: [{name: c, image: i}], activeDeadlineSeconds: 0}"),
        ("bad dns", "{containers: [{name: c, image: i}], dnsPolicy: Wrong}"),
        ("bad account", "{containers: [{name: c, image: i}], serviceAccountName: A_}"),
        ("no account", "{containers: [{name: c, image: i}], serviceAccountName: nobody}"),
        ("no priority class", "{containers: [{name: c, image: i}], priorityClassName: nothing}"),
        ("priority without class", "{containers: [{name: c, image: i}], priority: 5}"),
        (
            "bad host ports",
            "{hostNetwork: true, containers: [{name: c, image: i, ports: [{containerPort: 80, hostPort: 81}]}]}",
        ),
        ("run as root", "{containers: [{name: c, image: i, securityContext: {runAsUser: -1}}]}"),
        (
            "privileged escalation",
            "{containers: [{name: c, image: i, securityContext: {privileged: true, allowPrivilegeEscalation: false}}]}",
        ),
        ("gates", "{containers: [{name: c, image: i}], schedulingGates: [{name: 'a b'}]}"),
        (
            "gates and node",
            "{nodeName: n, containers: [{name: c, image: i}], schedulingGates: [{name: a.b/c}]}",
        ),
        ("bad hostname", "{hostname: A.b, containers: [{name: c, image: i}]}"),
        ("bad secret", "{imagePullSecrets: [{}], containers: [{name: c, image: i}]}"),
        ("no such field", "{container: [], containers: [{name: c, image: i, imaage: x}]}"),
        ("string for a number", "{containers: [{name: c, image: i, ports: [{containerPort: '80'}]}]}"),
        ("number for a string", "{containers: [{name: c, image: 5}]}"),
        ("string for a list", "{containers: wrong}"),
        ("bool for a string", "{containers: [{name: c, image: i, env: [{name: A, value: true}]}]}"),
    ] {
        s.post(
            &format!("pod, {name}"),
            &format!("{pods}?dryRun=All"),
            y(&format!("{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, spec: {spec}}}")),
        );
    }
    s.post("pod, strict", &format!("{pods}?fieldValidation=Strict"), y("{apiVersion: v1, kind: Pod, metadata: {name: p, extra: 1}, spec: {container: [], containers: [{name: c, image: i, imaage: x}]}}"));
    s.post("pod, good", &pods, y("{metadata: {name: p}, spec: {containers: [{name: c, image: i}]}}"));
    let one = format!("{pods}/p");
    for (name, patch) in [
        ("image", "{spec: {containers: [{name: c, image: j}]}}"),
        ("command", "{spec: {containers: [{name: c, image: j, command: [x]}]}}"),
        ("node", "{spec: {nodeName: n}}"),
        ("more containers", "{spec: {containers: [{name: c, image: j}, {name: d, image: j}]}}"),
        ("tolerations", "{spec: {tolerations: []}}"),
        ("deadline", "{spec: {activeDeadlineSeconds: 5}}"),
        ("account", "{spec: {serviceAccountName: other}}"),
        ("resources", "{spec: {containers: [{name: c, image: j, resources: {limits: {cpu: 1}}}]}}"),
    ] {
        s.strategic(&format!("pod changes {name}"), &one, y(patch));
    }
    let template = "template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}";
    let deployments = at("apps/v1/deployments");
    for (name, spec) in [
        ("empty", "{}".to_owned()),
        ("no selector", format!("{{{template}}}")),
        ("other selector", format!("{{selector: {{matchLabels: {{a: c}}}}, {template}}}")),
        ("empty selector", format!("{{selector: {{}}, {template}}}")),
        ("bad selector", format!("{{selector: {{matchExpressions: [{{key: a, operator: In}}]}}, {template}}}")),
        ("negative", format!("{{replicas: -1, selector: {{matchLabels: {{a: b}}}}, {template}}}")),
        ("bad strategy", format!("{{strategy: {{type: Wrong}}, selector: {{matchLabels: {{a: b}}}}, {template}}}")),
        ("recreate with rolling", format!("{{strategy: {{type: Recreate, rollingUpdate: {{maxSurge: 1}}}}, selector: {{matchLabels: {{a: b}}}}, {template}}}")),
        ("both zero", format!("{{strategy: {{rollingUpdate: {{maxSurge: 0, maxUnavailable: 0}}}}, selector: {{matchLabels: {{a: b}}}}, {template}}}")),
        ("bad percent", format!("{{strategy: {{rollingUpdate: {{maxSurge: 5x}}}}, selector: {{matchLabels: {{a: b}}}}, {template}}}")),
        ("never", "{selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}".to_owned()),
        ("bad pod", "{selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c}]}}}".to_owned()),
        ("string for replicas", format!("{{replicas: '3', selector: {{matchLabels: {{a: b}}}}, {template}}}")),
    ] {
        s.post(&format!("deployment, {name}"), &format!("{deployments}?dryRun=All"), y(&format!("{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: d}}, spec: {spec}}}")));
    }
    for (name, kind, spec) in [
        ("set, no service", "statefulsets", format!("{{selector: {{matchLabels: {{a: b}}}}, {template}}}")),
        (
            "set, bad policy",
            "statefulsets",
            format!(
                "{{podManagementPolicy: Wrong, serviceName: s, selector: {{matchLabels: {{a: b}}}}, {template}}}"
            ),
        ),
        (
            "set, other selector",
            "statefulsets",
            format!("{{serviceName: s, selector: {{matchLabels: {{a: c}}}}, {template}}}"),
        ),
        ("daemon set, empty", "daemonsets", "{}".to_owned()),
        (
            "daemon set, bad strategy",
            "daemonsets",
            format!("{{updateStrategy: {{type: Wrong}}, selector: {{matchLabels: {{a: b}}}}, {template}}}"),
        ),
        (
            "replica set, other selector",
            "replicasets",
            format!("{{selector: {{matchLabels: {{a: c}}}}, {template}}}"),
        ),
    ] {
        s.post(
            name,
            &(at(&format!("apps/v1/{kind}")) + "?dryRun=All"),
            y(&format!("{{metadata: {{name: d}}, spec: {spec}}}")),
        );
    }
    for (name, kind, spec) in [
        ("job, always", "jobs", "{template: {spec: {containers: [{name: c, image: i}]}}}"),
        (
            "job, negative",
            "jobs",
            "{parallelism: -1, completions: -1, backoffLimit: -1, template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}",
        ),
        (
            "job, selector",
            "jobs",
            "{selector: {matchLabels: {a: b}}, template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}",
        ),
        (
            "cron job, bad schedule",
            "cronjobs",
            "{schedule: often, jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}}",
        ),
        ("cron job, empty", "cronjobs", "{}"),
    ] {
        s.post(
            name,
            &(at(&format!("batch/v1/{kind}")) + "?dryRun=All"),
            y(&format!("{{metadata: {{name: d}}, spec: {spec}}}")),
        );
    }
    s
}

pub fn others() -> Script {
    let mut s = Script::new("badothers");
    for (name, kind, body) in [
        ("service, no ports", "services", "spec: {}"),
        ("service, bad port", "services", "spec: {ports: [{port: 0}]}"),
        ("service, two ports", "services", "spec: {ports: [{port: 80}, {port: 81}]}"),
        ("service, same port", "services", "spec: {ports: [{name: a, port: 80}, {name: b, port: 80}]}"),
        ("service, bad type", "services", "spec: {type: Wrong, ports: [{port: 80}]}"),
        ("service, bad address", "services", "spec: {clusterIP: nonsense, ports: [{port: 80}]}"),
        ("service, bad selector", "services", "spec: {selector: {'a b': c}, ports: [{port: 80}]}"),
        ("service, bad protocol", "services", "spec: {ports: [{port: 80, protocol: HTTP}]}"),
        ("service, bad target", "services", "spec: {ports: [{port: 80, targetPort: A_}]}"),
        ("service, external", "services", "spec: {type: ExternalName}"),
        ("service, node port", "services", "spec: {type: NodePort, ports: [{port: 80, nodePort: 80}]}"),
        ("service, affinity", "services", "spec: {sessionAffinity: Wrong, ports: [{port: 80}]}"),
        ("secret, bad base64", "secrets", "data: {a: '*'}"),
        ("secret, bad key", "secrets", "data: {'a b': YQ==}"),
        ("secret, tls", "secrets", "{type: kubernetes.io/tls, data: {tls.crt: YQ==}}"),
        ("secret, docker", "secrets", "{type: kubernetes.io/dockerconfigjson, data: {}}"),
        ("secret, token", "secrets", "{type: kubernetes.io/service-account-token}"),
        ("claim, empty", "persistentvolumeclaims", "spec: {}"),
        (
            "claim, bad mode",
            "persistentvolumeclaims",
            "spec: {accessModes: [Wrong], resources: {requests: {storage: 1Gi}}}",
        ),
        (
            "claim, bad size",
            "persistentvolumeclaims",
            "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: -1}}}",
        ),
        ("quota, bad", "resourcequotas", "spec: {hard: {cpu: lots}}"),
        ("limits, bad", "limitranges", "spec: {limits: [{type: Container, max: {cpu: 1}, min: {cpu: 2}}]}"),
        ("account, bad secret", "serviceaccounts", "secrets: wrong"),
        ("event, other namespace", "events", "involvedObject: {namespace: default, name: x}"),
        ("event, bad type", "events", "{involvedObject: {namespace: '{ns}', name: x}, type: Wrong}"),
        ("endpoints, bad", "endpoints", "subsets: [{addresses: [{ip: nonsense}], ports: [{port: 0}]}]"),
        ("controller, empty", "replicationcontrollers", "spec: {}"),
        ("hpa, empty", "autoscaling/v2/horizontalpodautoscalers", "spec: {}"),
        (
            "hpa, bad",
            "autoscaling/v2/horizontalpodautoscalers",
            "spec: {scaleTargetRef: {kind: Deployment, name: d}, minReplicas: 5, maxReplicas: 2}",
        ),
        (
            "hpa, bad metric",
            "autoscaling/v2/horizontalpodautoscalers",
            "spec: {scaleTargetRef: {kind: Deployment, name: d}, maxReplicas: 2, metrics: [{type: Wrong}]}",
        ),
        ("pdb, both", "policy/v1/poddisruptionbudgets", "spec: {minAvailable: 1, maxUnavailable: 1}"),
        ("pdb, bad", "policy/v1/poddisruptionbudgets", "spec: {minAvailable: -1}"),
        ("pdb, percent", "policy/v1/poddisruptionbudgets", "spec: {minAvailable: 150%}"),
        (
            "lease, bad",
            "coordination.k8s.io/v1/leases",
            "spec: {leaseDurationSeconds: 0, leaseTransitions: -1}",
        ),
        ("lease, time", "coordination.k8s.io/v1/leases", "spec: {renewTime: now}"),
        ("role, bad", "rbac.authorization.k8s.io/v1/roles", "rules: [{verbs: [], resources: [pods]}]"),
        ("role, url", "rbac.authorization.k8s.io/v1/roles", "rules: [{verbs: [get], nonResourceURLs: [/x]}]"),
        ("binding, empty", "rbac.authorization.k8s.io/v1/rolebindings", "{}"),
        (
            "binding, bad",
            "rbac.authorization.k8s.io/v1/rolebindings",
            "{roleRef: {kind: Wrong, name: x, apiGroup: rbac.authorization.k8s.io}, subjects: [{kind: Wrong, name: x}, {kind: ServiceAccount, name: x}]}",
        ),
        (
            "policy, bad",
            "networking.k8s.io/v1/networkpolicies",
            "spec: {podSelector: {}, ingress: [{from: [{}], ports: [{port: 0}]}], policyTypes: [Wrong]}",
        ),
        ("policy, empty", "networking.k8s.io/v1/networkpolicies", "{}"),
        (
            "ingress, bad",
            "networking.k8s.io/v1/ingresses",
            "spec: {rules: [{http: {paths: [{path: x, backend: {}}]}}]}",
        ),
        ("ingress, empty", "networking.k8s.io/v1/ingresses", "spec: {}"),
        (
            "slice, bad",
            "discovery.k8s.io/v1/endpointslices",
            "{addressType: Wrong, endpoints: [{addresses: []}]}",
        ),
        (
            "slice, addresses",
            "discovery.k8s.io/v1/endpointslices",
            "{addressType: IPv4, endpoints: [{addresses: [nonsense]}], ports: [{port: 0}]}",
        ),
    ] {
        let mut object =
            y(if body.starts_with('{') { body.to_owned() } else { format!("{{{body}}}") }.as_str());
        object["metadata"] = serde_json::json!({"name": "x"});
        s.post(name, &(at(kind) + "?dryRun=All"), object);
    }
    for (name, path, body) in [
        ("priority class, bad", "scheduling.k8s.io/v1/priorityclasses", "{value: 2000000000}"),
        (
            "priority class, system",
            "scheduling.k8s.io/v1/priorityclasses",
            "{metadata: {name: system-x}, value: 1}",
        ),
        (
            "priority class, policy",
            "scheduling.k8s.io/v1/priorityclasses",
            "{value: 1, preemptionPolicy: Wrong}",
        ),
        ("storage class, empty", "storage.k8s.io/v1/storageclasses", "{}"),
        (
            "storage class, bad",
            "storage.k8s.io/v1/storageclasses",
            "{provisioner: p, reclaimPolicy: Wrong, volumeBindingMode: Wrong}",
        ),
        ("runtime class, empty", "node.k8s.io/v1/runtimeclasses", "{}"),
        ("cluster role binding, empty", "rbac.authorization.k8s.io/v1/clusterrolebindings", "{}"),
    ] {
        let mut object = y(body);
        if object["metadata"].is_null() {
            object["metadata"] = serde_json::json!({"name": "case-badothers"});
        }
        s.post(name, &format!("/apis/{path}?dryRun=All"), object);
    }
    for (name, path, body) in [
        ("node, bad taint", "nodes", "{spec: {taints: [{key: '', effect: Wrong}]}}"),
        ("node, bad capacity", "nodes", "{status: {capacity: {cpu: lots}}}"),
        ("volume, empty", "persistentvolumes", "{spec: {}}"),
        (
            "volume, bad",
            "persistentvolumes",
            "{spec: {capacity: {storage: 1Gi}, accessModes: [Wrong], hostPath: {path: ''}}}",
        ),
    ] {
        let mut object = y(body);
        object["metadata"] = serde_json::json!({"name": "case-badothers"});
        s.post(name, &format!("/api/v1/{path}?dryRun=All"), object);
    }
    s
}
