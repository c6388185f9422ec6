//! One object of every built-in kind: what it is given by default, as little and as much as people write; and its table.

use serde_json::Value;

use super::{at, y};
use crate::script::Script;

const TABLE: &str = "application/json;as=Table;g=meta.k8s.io;v=v1";
const POD: &str = "containers: [{name: c, image: i}]";

/// Resource and the object's fields beside its name, `{ns}` for cluster-wide names.
const MINIMAL: &[(&str, &str)] = &[
    ("configmaps", "{}"),
    ("secrets", "{stringData: {a: b}}"),
    ("serviceaccounts", "{}"),
    ("services", "{spec: {selector: {a: b}, ports: [{port: 80}]}}"),
    ("endpoints", "{subsets: [{addresses: [{ip: 10.1.1.1}], ports: [{port: 80}]}]}"),
    (
        "events",
        "{involvedObject: {kind: Pod, namespace: '{ns}', name: x}, reason: R, message: m, type: Normal}",
    ),
    ("limitranges", "{spec: {limits: [{type: Container, default: {cpu: '1.0'}, max: {cpu: 2}}]}}"),
    (
        "persistentvolumeclaims",
        "{spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1024Mi}}}}",
    ),
    ("pods", "{spec: {containers: [{name: c, image: i}]}}"),
    ("podtemplates", "{template: {spec: {containers: [{name: c, image: i}]}}}"),
    (
        "replicationcontrollers",
        "{spec: {selector: {a: b}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
    ),
    ("resourcequotas", "{spec: {hard: {cpu: '10.50', pods: 5}}}"),
    ("apps/v1/controllerrevisions", "{revision: 1, data: {a: b}}"),
    (
        "apps/v1/daemonsets",
        "{spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
    ),
    (
        "apps/v1/deployments",
        "{spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
    ),
    (
        "apps/v1/replicasets",
        "{spec: {selector: {matchLabels: {a: c}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c, image: i}]}}}}",
    ),
    (
        "apps/v1/statefulsets",
        "{spec: {serviceName: s, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}, volumeClaimTemplates: [{metadata: {name: v}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}]}}",
    ),
    (
        "autoscaling/v2/horizontalpodautoscalers",
        "{spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: x}, maxReplicas: 3}}",
    ),
    (
        "batch/v1/cronjobs",
        "{spec: {schedule: '* * * * *', jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}}}",
    ),
    (
        "batch/v1/jobs",
        "{spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}",
    ),
    (
        "networking.k8s.io/v1/ingresses",
        "{spec: {rules: [{host: a.b, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: s, port: {number: 80}}}}]}}]}}",
    ),
    (
        "networking.k8s.io/v1/networkpolicies",
        "{spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {a: b}}}], ports: [{port: 80}]}]}}",
    ),
    ("policy/v1/poddisruptionbudgets", "{spec: {minAvailable: 1, selector: {matchLabels: {a: b}}}}"),
    ("rbac.authorization.k8s.io/v1/roles", "{rules: [{apiGroups: [''], resources: [pods], verbs: [get]}]}"),
    (
        "rbac.authorization.k8s.io/v1/rolebindings",
        "{roleRef: {kind: Role, name: x}, subjects: [{kind: ServiceAccount, name: a, namespace: b}, {kind: User, name: u}]}",
    ),
    (
        "coordination.k8s.io/v1/leases",
        "{spec: {holderIdentity: me, leaseDurationSeconds: 15, renewTime: '2026-01-01T00:00:00.000000Z'}}",
    ),
    (
        "discovery.k8s.io/v1/endpointslices",
        "{addressType: IPv4, endpoints: [{addresses: [10.1.1.1]}], ports: [{port: 80}]}",
    ),
    (
        "events.k8s.io/v1/events",
        "{regarding: {kind: Pod, namespace: '{ns}', name: x}, reason: R, note: n, type: Normal, eventTime: '2026-01-01T00:00:00.000000Z', reportingController: c.d/e, reportingInstance: i, action: A}",
    ),
    ("storage.k8s.io/v1/csistoragecapacities", "{storageClassName: c, capacity: 1024Mi}"),
];

const CLUSTER: &[(&str, &str)] = &[
    ("/api/v1/namespaces", "{}"),
    ("/api/v1/nodes", "{status: {capacity: {cpu: '8.0', memory: 1024Mi}}}"),
    (
        "/api/v1/persistentvolumes",
        "{spec: {capacity: {storage: 1024Mi}, accessModes: [ReadWriteOnce], hostPath: {path: /x}}}",
    ),
    ("/apis/networking.k8s.io/v1/ingressclasses", "{spec: {controller: a.b/c}}"),
    (
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "{rules: [{apiGroups: [''], resources: [pods], verbs: [get]}]}",
    ),
    (
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        "{roleRef: {kind: ClusterRole, name: x}, subjects: [{kind: Group, name: g}]}",
    ),
    ("/apis/storage.k8s.io/v1/csidrivers", "{spec: {}}"),
    ("/apis/storage.k8s.io/v1/csinodes", "{spec: {drivers: []}}"),
    ("/apis/storage.k8s.io/v1/storageclasses", "{provisioner: p}"),
    (
        "/apis/storage.k8s.io/v1/volumeattachments",
        "{spec: {attacher: a, nodeName: n, source: {persistentVolumeName: p}}}",
    ),
    ("/apis/scheduling.k8s.io/v1/priorityclasses", "{value: 5}"),
    ("/apis/node.k8s.io/v1/runtimeclasses", "{handler: h}"),
    (
        "/apis/apiregistration.k8s.io/v1/apiservices",
        "{metadata: {name: v1.case.example.com}, spec: {group: case.example.com, version: v1, groupPriorityMinimum: 5, versionPriority: 5, service: {name: s, namespace: n}}}",
    ),
];

fn named(name: &str, fields: &str) -> Value {
    let mut object = y(fields);
    if object["metadata"].is_null() {
        object["metadata"] = serde_json::json!({"name": name});
    }
    object
}

pub fn minimal() -> Script {
    let mut s = Script::new("minimal");
    for (resource, fields) in MINIMAL {
        let path = at(resource);
        s.post(resource, &path, named("x", fields));
        s.merge(&format!("{resource} is labelled"), &format!("{path}/x"), y("{metadata: {labels: {a: b}}}"));
        s.apply(
            &format!("{resource} is applied"),
            &format!("{path}/x?fieldManager=me"),
            applied(resource, "{apiVersion: VERSION, kind: KIND, metadata: {name: x, annotations: {a: b}}}"),
        );
    }
    for (path, fields) in CLUSTER {
        let object = named("{ns}", fields);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        // The namespace of this name is the case's own.
        let suffix = if path.ends_with("namespaces") { "-2" } else { "" };
        let mut object = object;
        object["metadata"]["name"] = format!("{name}{suffix}").into();
        s.post(path, path, object);
        s.merge(
            &format!("{path} is labelled"),
            &format!("{path}/{name}{suffix}"),
            y("{metadata: {labels: {a: b}}}"),
        );
        s.delete(&format!("{path} is deleted"), &format!("{path}/{name}{suffix}"), Value::Null);
    }
    s
}

/// A manifest with the version and kind of a resource.
fn applied(resource: &str, manifest: &str) -> Value {
    let (version, plural) = resource.rsplit_once('/').unwrap_or(("v1", resource));
    let kind = match plural {
        "configmaps" => "ConfigMap",
        "secrets" => "Secret",
        "serviceaccounts" => "ServiceAccount",
        "services" => "Service",
        "endpoints" => "Endpoints",
        "events" => "Event",
        "limitranges" => "LimitRange",
        "persistentvolumeclaims" => "PersistentVolumeClaim",
        "pods" => "Pod",
        "podtemplates" => "PodTemplate",
        "replicationcontrollers" => "ReplicationController",
        "resourcequotas" => "ResourceQuota",
        "controllerrevisions" => "ControllerRevision",
        "daemonsets" => "DaemonSet",
        "deployments" => "Deployment",
        "replicasets" => "ReplicaSet",
        "statefulsets" => "StatefulSet",
        "horizontalpodautoscalers" => "HorizontalPodAutoscaler",
        "cronjobs" => "CronJob",
        "jobs" => "Job",
        "ingresses" => "Ingress",
        "networkpolicies" => "NetworkPolicy",
        "poddisruptionbudgets" => "PodDisruptionBudget",
        "roles" => "Role",
        "rolebindings" => "RoleBinding",
        "leases" => "Lease",
        "endpointslices" => "EndpointSlice",
        "csistoragecapacities" => "CSIStorageCapacity",
        other => panic!("no kind is known for {other}"),
    };
    y(&manifest.replace("VERSION", version).replace("KIND", kind))
}

pub fn rich() -> Script {
    let mut s = Script::new("rich");
    let pods = at("pods");
    s.post(
        "class",
        "/apis/scheduling.k8s.io/v1/priorityclasses",
        y("{metadata: {name: '{ns}'}, value: 7, preemptionPolicy: Never, description: d}"),
    );
    for (name, spec) in [
        (
            "probes",
            "{containers: [{name: c, image: 'i:1', readinessProbe: {httpGet: {port: 80, path: /x}}, livenessProbe: {tcpSocket: {port: http}}, startupProbe: {exec: {command: [x]}, failureThreshold: 60}, lifecycle: {preStop: {httpGet: {port: 1}}}}]}",
        ),
        ("grpc probe", "{containers: [{name: c, image: 'i:1', readinessProbe: {grpc: {port: 80}}}]}"),
        (
            "resources",
            "{containers: [{name: c, image: 'r.io/i@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', resources: {limits: {cpu: '1.0', memory: 1024Mi, nvidia.com/gpu: 1}}}, {name: d, image: 'i:latest', resources: {requests: {cpu: 0.1, memory: '1.5Gi', ephemeral-storage: 1e3}}}]}",
        ),
        (
            "guaranteed",
            "{containers: [{name: c, image: i, resources: {limits: {cpu: 1000m, memory: 1Gi}, requests: {cpu: 1, memory: 1024Mi}}}]}",
        ),
        (
            "quantities",
            "{containers: [{name: c, image: i, resources: {limits: {cpu: 2500m, memory: '1073741824', ephemeral-storage: 1000Ki}, requests: {cpu: '0.0005', memory: 128974848000m}}}]}",
        ),
        (
            "volumes",
            "{containers: [{name: c, image: i, volumeMounts: [{name: a, mountPath: /a}, {name: b, mountPath: /b, readOnly: true, subPath: x}]}], volumes: [{name: a, emptyDir: {sizeLimit: 1024Mi}}, {name: b, configMap: {name: m, items: [{key: k, path: p}]}}, {name: c, secret: {secretName: s}}, {name: d, hostPath: {path: /x}}, {name: e, persistentVolumeClaim: {claimName: c}}, {name: f, projected: {sources: [{serviceAccountToken: {path: t}}, {configMap: {name: m}}]}}, {name: g, downwardAPI: {items: [{path: p, fieldRef: {fieldPath: metadata.name}}]}}, {name: h, emptyDir: {medium: Memory}}, {name: i, csi: {driver: d}}, {name: j, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}}}, {name: k, image: {reference: 'r:1'}}]}",
        ),
        (
            "environment",
            "{containers: [{name: c, image: i, env: [{name: A, value: ''}, {name: B, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: C, valueFrom: {secretKeyRef: {name: s, key: k}}}, {name: D, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}, {name: E}], envFrom: [{configMapRef: {name: m}}]}]}",
        ),
        (
            "host",
            "{hostNetwork: true, hostPID: true, dnsPolicy: ClusterFirstWithHostNet, containers: [{name: c, image: i, ports: [{containerPort: 80}, {containerPort: 81, hostPort: 81, name: x, protocol: UDP}]}]}",
        ),
        (
            "security",
            "{securityContext: {runAsNonRoot: true, runAsUser: 5, fsGroup: 6, seccompProfile: {type: RuntimeDefault}}, automountServiceAccountToken: false, containers: [{name: c, image: i, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, readOnlyRootFilesystem: true}}]}",
        ),
        (
            "scheduling",
            "{priorityClassName: '{ns}', nodeSelector: {a: b}, schedulerName: mine, tolerations: [{key: k, operator: Exists, effect: NoSchedule}, {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 5}], affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: In, values: [b]}]}]}}, podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 5, podAffinityTerm: {topologyKey: t, labelSelector: {matchLabels: {a: b}}}}]}}, topologySpreadConstraints: [{maxSkew: 1, topologyKey: t, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {a: b}}}], containers: [{name: c, image: i}]}",
        ),
        ("all tolerated", "{tolerations: [{operator: Exists}], containers: [{name: c, image: i}]}"),
        (
            "init",
            "{initContainers: [{name: a, image: i}, {name: b, image: i, restartPolicy: Always, readinessProbe: {exec: {command: [x]}}}], restartPolicy: OnFailure, terminationGracePeriodSeconds: 5, activeDeadlineSeconds: 100, hostname: h, subdomain: s, imagePullSecrets: [{name: p}], containers: [{name: c, image: i, command: [x], args: [y], workingDir: /w, stdin: true, tty: true}]}",
        ),
        (
            "gated",
            "{schedulingGates: [{name: a.b/c}], readinessGates: [{conditionType: a.b/d}], containers: [{name: c, image: i}]}",
        ),
        ("bound", "{nodeName: n, containers: [{name: c, image: i}]}"),
    ] {
        let pod = y(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {}, labels: {{a: b}}}}, spec: {spec}}}",
            name.replace(' ', "-")
        ));
        let mut template = pod["spec"].clone();
        s.post(&format!("pod with {name}"), &pods, pod);
        if !["init", "bound", "scheduling"].contains(&name) {
            template["restartPolicy"] = "Always".into();
            let mut deployment = y(
                "{apiVersion: apps/v1, kind: Deployment, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}}}}",
            );
            deployment["metadata"] = serde_json::json!({"name": name.replace(' ', "-")});
            deployment["spec"]["template"]["spec"] = template;
            s.post(&format!("deployment with {name}"), &at("apps/v1/deployments"), deployment);
        }
    }
    for (name, resource, fields) in [
        ("headless", "services", "{spec: {clusterIP: None, selector: {a: b}, ports: [{port: 80, targetPort: http}]}}".to_owned()),
        ("node port", "services", "{spec: {type: NodePort, selector: {a: b}, ports: [{name: a, port: 80}, {name: b, port: 81, protocol: UDP, targetPort: 8080}]}}".to_owned()),
        ("balanced", "services", "{spec: {type: LoadBalancer, selector: {a: b}, ports: [{port: 80, appProtocol: http}], sessionAffinity: ClientIP}}".to_owned()),
        ("external", "services", "{spec: {type: ExternalName, externalName: a.b}}".to_owned()),
        ("no selector", "services", "{spec: {ports: [{port: 80}]}}".to_owned()),
        ("recreate", "apps/v1/deployments", format!("{{spec: {{replicas: 0, minReadySeconds: 5, revisionHistoryLimit: 2, paused: true, strategy: {{type: Recreate}}, selector: {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}, spec: {{{POD}}}}}}}}}")),
        ("percent", "apps/v1/deployments", format!("{{spec: {{strategy: {{rollingUpdate: {{maxSurge: 50%}}}}, selector: {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}, spec: {{{POD}}}}}}}}}")),
        ("parallel", "apps/v1/statefulsets", format!("{{spec: {{serviceName: s, podManagementPolicy: Parallel, updateStrategy: {{type: OnDelete}}, persistentVolumeClaimRetentionPolicy: {{whenDeleted: Delete}}, selector: {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}, spec: {{{POD}}}}}}}}}")),
        ("on delete", "apps/v1/daemonsets", format!("{{spec: {{updateStrategy: {{type: OnDelete}}, selector: {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}, spec: {{{POD}}}}}}}}}")),
        ("surge", "apps/v1/daemonsets", format!("{{spec: {{updateStrategy: {{rollingUpdate: {{maxSurge: 1}}}}, selector: {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}, spec: {{{POD}}}}}}}}}")),
        ("indexed", "batch/v1/jobs", format!("{{spec: {{completionMode: Indexed, completions: 3, parallelism: 2, suspend: true, ttlSecondsAfterFinished: 5, template: {{spec: {{restartPolicy: OnFailure, {POD}}}}}}}}}")),
        ("replaced", "batch/v1/cronjobs", format!("{{spec: {{schedule: '0 0 * * *', concurrencyPolicy: Replace, timeZone: Etc/UTC, jobTemplate: {{spec: {{template: {{spec: {{restartPolicy: Never, {POD}}}}}}}}}}}}}")),
        ("metrics", "autoscaling/v2/horizontalpodautoscalers", "{spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: x}, minReplicas: 2, maxReplicas: 3, metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}, {type: External, external: {metric: {name: m}, target: {type: AverageValue, averageValue: '5.0'}}}], behavior: {scaleDown: {stabilizationWindowSeconds: 5}}}}".to_owned()),
        ("egress", "networking.k8s.io/v1/networkpolicies", "{spec: {podSelector: {matchLabels: {a: b}}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}], policyTypes: [Egress]}}".to_owned()),
        ("unavailable", "policy/v1/poddisruptionbudgets", "{spec: {maxUnavailable: 50%, selector: {}, unhealthyPodEvictionPolicy: AlwaysAllow}}".to_owned()),
        ("typed", "secrets", "{type: kubernetes.io/tls, data: {tls.crt: YQ==, tls.key: YQ==}, immutable: true}".to_owned()),
        ("login", "secrets", "{type: kubernetes.io/basic-auth, stringData: {username: u, password: p}, data: {username: eA==}}".to_owned()),
        ("claim of a class", "persistentvolumeclaims", "{spec: {storageClassName: c, volumeMode: Block, accessModes: [ReadWriteMany], resources: {requests: {storage: 0.5Gi}}, dataSource: {kind: PersistentVolumeClaim, name: o}}}".to_owned()),
        ("slice", "discovery.k8s.io/v1/endpointslices", "{addressType: IPv4, endpoints: [{addresses: [10.1.1.1], conditions: {ready: true}, nodeName: n, zone: z, targetRef: {kind: Pod, name: p}}], ports: [{name: http, port: 80, protocol: TCP, appProtocol: http}]}".to_owned()),
        ("bound role", "rbac.authorization.k8s.io/v1/rolebindings", "{roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: x}, subjects: [{kind: Group, name: g, apiGroup: rbac.authorization.k8s.io}]}".to_owned()),
    ] {
        s.post(name, &at(resource), named(&name.replace(' ', "-"), &fields));
    }
    s
}

pub fn tables() -> Script {
    let mut s = Script::new("tables");
    for (resource, fields) in MINIMAL {
        let path = at(resource);
        s.post(resource, &path, named("x", fields)).compared = false;
        s.get_as(&format!("{resource} as table"), TABLE, &path);
        s.get(&format!("{resource} as list"), &path);
        let (version, plural) = resource.rsplit_once('/').unwrap_or(("v1", resource));
        let group = version.split_once('/').map_or(String::new(), |(group, _)| format!(".{group}"));
        s.kubectl(&format!("get {resource}"), &format!("get {plural}{group} -n {{ns}} -o wide"), "");
        s.kubectl(&format!("describe {resource}"), &format!("describe {plural}{group} x -n {{ns}}"), "");
    }
    let status = |s: &mut Script, name: &str, resource: &str, status: &str| {
        let path = format!("{}/x", at(resource));
        s.merge(&format!("{name}, written"), &format!("{path}/status"), y(&format!("{{status: {status}}}")));
        s.get_as(name, TABLE, &path);
    };
    status(
        &mut s,
        "running pod",
        "pods",
        "{phase: Running, podIP: 10.1.1.1, podIPs: [{ip: 10.1.1.1}], hostIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}], containerStatuses: [{name: c, ready: true, restartCount: 2, image: i, imageID: x, state: {running: {startedAt: '2026-01-01T00:00:00Z'}}, lastState: {terminated: {exitCode: 1, finishedAt: '2026-01-01T00:00:00Z'}}}]}",
    );
    status(
        &mut s,
        "waiting pod",
        "pods",
        "{phase: Pending, containerStatuses: [{name: c, ready: false, restartCount: 0, image: i, imageID: x, state: {waiting: {reason: ImagePullBackOff}}}]}",
    );
    status(&mut s, "failed pod", "pods", "{phase: Failed, reason: Evicted}");
    status(
        &mut s,
        "terminated pod",
        "pods",
        "{phase: Failed, reason: null, containerStatuses: [{name: c, ready: false, restartCount: 0, image: i, imageID: x, state: {waiting: null, terminated: {exitCode: 137, signal: 9}}}]}",
    );
    status(
        &mut s,
        "rolled out deployment",
        "apps/v1/deployments",
        "{replicas: 1, readyReplicas: 1, updatedReplicas: 1, availableReplicas: 1, observedGeneration: 1, conditions: [{type: Available, status: 'True'}]}",
    );
    status(
        &mut s,
        "done job",
        "batch/v1/jobs",
        "{succeeded: 1, startTime: '2026-01-01T00:00:00Z', completionTime: '2026-01-01T00:00:05Z', conditions: [{type: SuccessCriteriaMet, status: 'True'}, {type: Complete, status: 'True'}]}",
    );
    status(
        &mut s,
        "allowed pdb",
        "policy/v1/poddisruptionbudgets",
        "{disruptionsAllowed: 1, currentHealthy: 2, desiredHealthy: 1, expectedPods: 2}",
    );
    status(
        &mut s,
        "bound claim",
        "persistentvolumeclaims",
        "{phase: Bound, capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce]}",
    );
    status(
        &mut s,
        "busy hpa",
        "autoscaling/v2/horizontalpodautoscalers",
        "{currentReplicas: 2, desiredReplicas: 3}",
    );
    for (path, fields) in CLUSTER {
        if path.ends_with("namespaces") {
            continue;
        }
        let object = named("{ns}", fields);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        s.post(path, path, object).compared = false;
        let table = s.get_as(&format!("{path} as table"), TABLE, &format!("{path}/{name}"));
        if path.ends_with("apiservices") {
            // What it stands for is looked for at once, and while it is not found no namespace can end.
            table.compared = false;
            s.delete(&format!("{path}, away"), &format!("{path}/{name}"), Value::Null).compared = false;
        }
    }
    s.merge("node, written", "/api/v1/nodes/{ns}/status", y("{status: {conditions: [{type: Ready, status: 'True'}], addresses: [{type: InternalIP, address: 10.0.0.1}], nodeInfo: {kubeletVersion: v1.35.0, osImage: o, kernelVersion: k, containerRuntimeVersion: c, architecture: amd64, bootID: b, kubeProxyVersion: '', machineID: m, operatingSystem: linux, systemUUID: u}}}"));
    s.merge(
        "node, cordoned",
        "/api/v1/nodes/{ns}",
        y("{metadata: {labels: {node-role.kubernetes.io/worker: ''}}, spec: {unschedulable: true}}"),
    );
    s.get_as("ready node", TABLE, "/api/v1/nodes/{ns}");
    s.kubectl("describe node", "describe node {ns}", "");
    for (path, _) in CLUSTER {
        if !path.ends_with("namespaces") && !path.ends_with("apiservices") {
            s.delete(&format!("{path}, away"), &format!("{path}/{{ns}}"), Value::Null).compared = false;
        }
    }
    s
}
