//! Defaults that the API server fills into built-in kinds.

use serde_json::{Map, Value, json};

/// Fills in defaults of `kind` (in its storage version).
pub fn apply(kind: &str, object: &mut Value) {
    match kind {
        "Pod" => pod(object),
        "Deployment" => deployment(object),
        "ReplicaSet" | "ReplicationController" => {
            set(&mut object["spec"], "replicas", 1);
            template(&mut object["spec"]["template"]);
        }
        "StatefulSet" => stateful_set(object),
        "DaemonSet" => {
            let spec = &mut object["spec"];
            set(spec, "revisionHistoryLimit", 10);
            set(spec, "updateStrategy", json!({"type": "RollingUpdate"}));
            if spec["updateStrategy"]["type"] == "RollingUpdate" {
                let strategy = &mut spec["updateStrategy"];
                set(strategy, "rollingUpdate", json!({}));
                set(&mut strategy["rollingUpdate"], "maxSurge", 0);
                set(&mut strategy["rollingUpdate"], "maxUnavailable", 1);
            }
            template(&mut spec["template"]);
        }
        "Job" => job_spec(&mut object["spec"]),
        "CronJob" => {
            let spec = &mut object["spec"];
            set(spec, "concurrencyPolicy", "Allow");
            set(spec, "failedJobsHistoryLimit", 1);
            set(spec, "successfulJobsHistoryLimit", 3);
            set(spec, "suspend", false);
        }
        "Service" => service(object),
        "Secret" => secret(object),
        "Namespace" => namespace(object),
        "PersistentVolumeClaim" => {
            set(&mut object["spec"], "volumeMode", "Filesystem");
            set(object, "status", json!({}));
            set(&mut object["status"], "phase", "Pending");
        }
        "PersistentVolume" => {
            set(&mut object["spec"], "volumeMode", "Filesystem");
            set(&mut object["spec"], "persistentVolumeReclaimPolicy", "Retain");
            set(object, "status", json!({}));
            set(&mut object["status"], "phase", "Pending");
        }
        "NetworkPolicy" => network_policy(object),
        "RoleBinding" | "ClusterRoleBinding" => {
            set(&mut object["roleRef"], "apiGroup", "rbac.authorization.k8s.io");
            for subject in items(&mut object["subjects"]) {
                if matches!(subject["kind"].as_str(), Some("User" | "Group")) {
                    set(subject, "apiGroup", "rbac.authorization.k8s.io");
                }
            }
        }
        "StorageClass" => {
            set(object, "reclaimPolicy", "Delete");
            set(object, "volumeBindingMode", "Immediate");
        }
        "PriorityClass" => set(object, "preemptionPolicy", "PreemptLowerPriority"),
        "EndpointSlice" => {
            for port in items(&mut object["ports"]) {
                set(port, "name", "");
                set(port, "protocol", "TCP");
            }
        }
        "Endpoints" => {
            for subset in items(&mut object["subsets"]) {
                for port in items(&mut subset["ports"]) {
                    set(port, "protocol", "TCP");
                }
            }
        }
        "Node" => node(object),
        "CustomResourceDefinition" => custom_resource_definition(object),
        _ => {}
    }
}

fn set(target: &mut Value, field: &str, default: impl Into<Value>) {
    if target.is_null() {
        *target = Value::Object(Map::new());
    }
    if let Some(map) = target.as_object_mut() {
        let slot = map.entry(field).or_insert(Value::Null);
        if slot.is_null() {
            *slot = default.into();
        }
    }
}

/// The items of a list; indexing a missing field would leave a `null` behind, so none is taken for absent lists.
fn items(list: &mut Value) -> impl Iterator<Item = &mut Value> {
    list.as_array_mut().into_iter().flatten()
}

fn list_of<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

fn pod(object: &mut Value) {
    pod_spec(&mut object["spec"]);
    let spec = &mut object["spec"];
    set(spec, "enableServiceLinks", true);
    set(spec, "preemptionPolicy", "PreemptLowerPriority");
    set(spec, "priority", 0);
    set(spec, "serviceAccountName", "default");
    if let Some(account) = spec.get("serviceAccountName").cloned() {
        set(spec, "serviceAccount", account);
    }
    for (key, effect) in
        [("node.kubernetes.io/not-ready", "NoExecute"), ("node.kubernetes.io/unreachable", "NoExecute")]
    {
        let tolerated = spec["tolerations"].as_array().is_some_and(|list| {
            list.iter().any(|t| {
                (t["key"] == key || t["key"].is_null()) && (t["effect"] == effect || t["effect"].is_null())
            })
        });
        if !tolerated {
            set(spec, "tolerations", json!([]));
            if let Some(list) = spec["tolerations"].as_array_mut() {
                list.push(
                    json!({"effect": effect, "key": key, "operator": "Exists", "tolerationSeconds": 300}),
                );
            }
        }
    }
    let class = qos_class(object);
    set(object, "status", json!({}));
    set(&mut object["status"], "phase", "Pending");
    set(&mut object["status"], "qosClass", class);
}

fn qos_class(pod: &Value) -> &'static str {
    let containers: Vec<&Value> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        .collect();
    let has = |c: &Value, set: &str| {
        ["cpu", "memory"].iter().filter(|r| !c["resources"][set][**r].is_null()).count()
    };
    if containers.iter().all(|c| has(c, "limits") == 0 && has(c, "requests") == 0) {
        return "BestEffort";
    }
    let guaranteed = containers.iter().all(|c| {
        has(c, "limits") == 2
            && ["cpu", "memory"].iter().all(|r| {
                let request = &c["resources"]["requests"][*r];
                request.is_null() || *request == c["resources"]["limits"][*r]
            })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

fn template(template: &mut Value) {
    if template.get("spec").is_some() {
        pod_spec(&mut template["spec"]);
    }
}

fn pod_spec(spec: &mut Value) {
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "restartPolicy", "Always");
    set(spec, "schedulerName", "default-scheduler");
    set(spec, "securityContext", json!({}));
    set(spec, "terminationGracePeriodSeconds", 30);
    for list in ["containers", "initContainers"] {
        for container in list_of(spec, list) {
            let image = container["image"].as_str().unwrap_or_default();
            let tag = image.rsplit('/').next().unwrap_or_default().split_once(':').map(|(_, tag)| tag);
            let latest = !image.contains('@') && tag.is_none_or(|t| t == "latest");
            set(container, "imagePullPolicy", if latest { "Always" } else { "IfNotPresent" });
            set(container, "terminationMessagePath", "/dev/termination-log");
            set(container, "terminationMessagePolicy", "File");
            set(container, "resources", json!({}));
            if let Some(limits) = container["resources"].get("limits").and_then(Value::as_object).cloned() {
                for (resource, amount) in limits {
                    set(&mut container["resources"], "requests", json!({}));
                    set(&mut container["resources"]["requests"], &resource, amount);
                }
            }
            for port in list_of(container, "ports") {
                set(port, "protocol", "TCP");
            }
            for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                if let Some(probe) = container.get_mut(probe).filter(|p| p.is_object()) {
                    set(probe, "failureThreshold", 3);
                    set(probe, "periodSeconds", 10);
                    set(probe, "successThreshold", 1);
                    set(probe, "timeoutSeconds", 1);
                    if let Some(get) = probe.get_mut("httpGet").filter(|g| g.is_object()) {
                        set(get, "path", "/");
                        set(get, "scheme", "HTTP");
                    }
                }
            }
            for env in list_of(container, "env") {
                if let Some(field) = env.pointer_mut("/valueFrom/fieldRef") {
                    set(field, "apiVersion", "v1");
                }
            }
        }
    }
    for volume in list_of(spec, "volumes") {
        for source in ["secret", "configMap", "downwardAPI", "projected"] {
            if let Some(source) = volume.get_mut(source).filter(|s| s.is_object()) {
                set(source, "defaultMode", 420);
            }
        }
        if let Some(path) = volume.get_mut("hostPath").filter(|s| s.is_object()) {
            set(path, "type", "");
        }
        if volume.as_object().is_some_and(|v| v.len() == 1) {
            set(volume, "emptyDir", json!({}));
        }
    }
}

fn deployment(object: &mut Value) {
    let spec = &mut object["spec"];
    set(spec, "progressDeadlineSeconds", 600);
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "strategy", json!({}));
    let strategy = &mut spec["strategy"];
    set(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        set(strategy, "rollingUpdate", json!({}));
        set(&mut strategy["rollingUpdate"], "maxSurge", "25%");
        set(&mut strategy["rollingUpdate"], "maxUnavailable", "25%");
    }
    template(&mut spec["template"]);
}

fn stateful_set(object: &mut Value) {
    let spec = &mut object["spec"];
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "podManagementPolicy", "OrderedReady");
    set(
        spec,
        "persistentVolumeClaimRetentionPolicy",
        json!({"whenDeleted": "Retain", "whenScaled": "Retain"}),
    );
    set(spec, "updateStrategy", json!({}));
    let strategy = &mut spec["updateStrategy"];
    set(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        set(strategy, "rollingUpdate", json!({}));
        set(&mut strategy["rollingUpdate"], "partition", 0);
    }
    template(&mut spec["template"]);
}

fn job_spec(spec: &mut Value) {
    set(spec, "backoffLimit", 6);
    set(spec, "completionMode", "NonIndexed");
    set(spec, "completions", 1);
    set(spec, "parallelism", 1);
    set(spec, "suspend", false);
    set(spec, "manualSelector", false);
    set(spec, "podReplacementPolicy", "TerminatingOrFailed");
    template(&mut spec["template"]);
}

fn service(object: &mut Value) {
    let spec = &mut object["spec"];
    set(spec, "type", "ClusterIP");
    set(spec, "sessionAffinity", "None");
    if spec["type"] != "ExternalName" {
        set(spec, "internalTrafficPolicy", "Cluster");
        set(spec, "ipFamilies", json!(["IPv4"]));
        set(spec, "ipFamilyPolicy", "SingleStack");
        if matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer")) {
            set(spec, "externalTrafficPolicy", "Cluster");
        }
        if let Some(ip) = spec.get("clusterIP").cloned() {
            set(spec, "clusterIPs", json!([ip]));
        }
    }
    for port in list_of(spec, "ports") {
        set(port, "protocol", "TCP");
        let target = port["port"].clone();
        set(port, "targetPort", target);
    }
    set(object, "status", json!({}));
    set(&mut object["status"], "loadBalancer", json!({}));
}

fn secret(object: &mut Value) {
    use base64::Engine as _;
    set(object, "type", "Opaque");
    if let Some(plain) = object.as_object_mut().and_then(|o| o.remove("stringData")) {
        for (key, value) in plain.as_object().into_iter().flatten() {
            let encoded =
                base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
            set(object, "data", json!({}));
            object["data"][key] = encoded.into();
        }
    }
}

fn namespace(object: &mut Value) {
    let name = object["metadata"]["name"].clone();
    set(&mut object["metadata"], "labels", json!({}));
    object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
    if object["metadata"]["deletionTimestamp"].is_null() {
        set(object, "spec", json!({}));
        set(&mut object["spec"], "finalizers", json!(["kubernetes"]));
    }
    set(object, "status", json!({}));
    set(&mut object["status"], "phase", "Active");
}

fn network_policy(object: &mut Value) {
    let spec = &mut object["spec"];
    let types: &[&str] = if spec.get("egress").is_some() { &["Ingress", "Egress"] } else { &["Ingress"] };
    set(spec, "policyTypes", json!(types));
    for (rules, _) in [("ingress", "from"), ("egress", "to")] {
        for rule in list_of(spec, rules) {
            for port in list_of(rule, "ports") {
                set(port, "protocol", "TCP");
            }
        }
    }
}

fn node(object: &mut Value) {
    let Some(status) = object.get_mut("status").filter(|s| s.is_object()) else { return };
    if let Some(capacity) = status.get("capacity").cloned() {
        set(status, "allocatable", capacity);
    }
}

fn custom_resource_definition(object: &mut Value) {
    let spec = &mut object["spec"];
    let kind = spec["names"]["kind"].as_str().unwrap_or_default().to_owned();
    if !kind.is_empty() {
        set(&mut spec["names"], "singular", kind.to_lowercase());
        set(&mut spec["names"], "listKind", format!("{kind}List"));
    }
    set(spec, "conversion", json!({"strategy": "None"}));
}
