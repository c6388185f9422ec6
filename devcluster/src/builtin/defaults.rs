//! Defaults that the API server fills into built-in kinds.

mod control;

use serde_json::{Value, json};

use super::autoscalers;

/// What holds a claim while pods use it, a class of volumes' attributes while volumes are of it, and a volume while it is bound.
pub(crate) const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
pub(crate) const ATTRIBUTES_FINALIZER: &str = "kubernetes.io/vac-protection";
pub(crate) const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
/// The number of a daemon set's template, as it was counted before generations were.
pub(crate) const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// Fills in defaults of `kind` (in its storage version). Fields that hold further fields are only made where a default of the
/// server's own goes into them: an object without `spec.template` comes out without one.
pub fn apply(kind: &str, object: &mut Value) {
    with(object, "status", |status| times(kind, status));
    match kind {
        "Pod" => pod(object),
        "Deployment" => with(object, "spec", deployment),
        "ReplicaSet" => with(object, "spec", |spec| {
            set(spec, "replicas", 1);
            with(spec, "template", template);
        }),
        "ReplicationController" => replication_controller(object),
        "PodTemplate" => with(object, "template", template),
        "StatefulSet" => with(object, "spec", stateful_set),
        "DaemonSet" => with(object, "spec", daemon_set),
        "Job" => with(object, "spec", job),
        "CronJob" => with(object, "spec", cron_job),
        "HorizontalPodAutoscaler" if object["apiVersion"] == "autoscaling/v1" => {
            with(object, "spec", |spec| set(spec, "minReplicas", 1));
            // What it means is said in full.
            *object = autoscalers::to_v1(&autoscalers::to_v2(object));
        }
        "HorizontalPodAutoscaler" => {
            with(object, "spec", autoscaler);
            with(object, "status", |status| set(status, "currentMetrics", Value::Null));
        }
        "Service" => service(object),
        "Secret" => secret(object),
        "Namespace" => namespace(object),
        "PersistentVolumeClaim" => {
            with(object, "spec", |spec| set(spec, "volumeMode", "Filesystem"));
            make(object, "status", |status| set(status, "phase", "Pending"));
        }
        "PersistentVolume" => {
            with(object, "spec", |spec| {
                set(spec, "volumeMode", "Filesystem");
                set(spec, "persistentVolumeReclaimPolicy", "Retain");
                with(spec, "hostPath", |path| set(path, "type", ""));
            });
            make(object, "status", |status| set(status, "phase", "Pending"));
        }
        "NetworkPolicy" => make(object, "spec", network_policy),
        "Lease" | "ResourceQuota" => set(object, "spec", json!({})),
        "LimitRange" => with(object, "spec", |spec| {
            list_of(spec, "limits").for_each(limit);
            set(spec, "limits", Value::Null);
        }),
        "Role" | "ClusterRole" => set(object, "rules", Value::Null),
        "CSINode" => with(object, "spec", |spec| set(spec, "drivers", Value::Null)),
        "CSIDriver" => make(object, "spec", csi_driver),
        "APIService" => with(object, "spec", |spec| {
            with(spec, "service", |service| set(service, "port", 443));
        }),
        "Event" => event(object),
        "RoleBinding" | "ClusterRoleBinding" => {
            with(object, "roleRef", |role| set(role, "apiGroup", "rbac.authorization.k8s.io"));
            for subject in list_of(object, "subjects") {
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
            list_of(object, "endpoints").for_each(|endpoint| set(endpoint, "conditions", json!({})));
            for port in list_of(object, "ports") {
                set(port, "name", "");
                set(port, "protocol", "TCP");
            }
        }
        "Endpoints" => {
            for subset in list_of(object, "subsets") {
                list_of(subset, "ports").for_each(|port| set(port, "protocol", "TCP"));
            }
        }
        "Node" => with(object, "status", |status| {
            if let Some(capacity) = status.get("capacity").cloned() {
                set(status, "allocatable", capacity);
            }
        }),
        "MutatingWebhookConfiguration" => control::webhooks(object, true),
        "ValidatingWebhookConfiguration" => control::webhooks(object, false),
        "ValidatingAdmissionPolicy" | "ValidatingAdmissionPolicyBinding" => control::policy(object),
        "FlowSchema" => control::flow_schema(object),
        "PriorityLevelConfiguration" => control::priority_level(object),
        "ResourceClaim" => with(object, "spec", control::claim),
        "ResourceClaimTemplate" => control::claim_template(object),
        "CustomResourceDefinition" => with(object, "spec", custom_resource_definition),
        _ => {}
    }
}

/// Times that conditions and states always have, if only as `null`.
fn times(kind: &str, status: &mut Value) {
    let times: &[&str] = match kind {
        "Pod" | "Job" | "PersistentVolumeClaim" => &["lastProbeTime", "lastTransitionTime"],
        "Deployment" => &["lastUpdateTime", "lastTransitionTime"],
        "Node" => &["lastHeartbeatTime", "lastTransitionTime"],
        "ReplicaSet" | "StatefulSet" | "DaemonSet" | "ReplicationController" | "HorizontalPodAutoscaler" => {
            &["lastTransitionTime"]
        }
        _ => return,
    };
    for condition in list_of(status, "conditions").filter(|c| c.is_object()) {
        times.iter().for_each(|time| set(condition, time, Value::Null));
    }
    if kind != "Pod" {
        return;
    }
    for list in ["containerStatuses", "initContainerStatuses"] {
        for container in list_of(status, list).filter(|c| c.is_object()) {
            for state in ["state", "lastState"] {
                set(container, state, json!({}));
                with(container, state, |state| {
                    with(state, "running", |running| set(running, "startedAt", Value::Null));
                    with(state, "terminated", |ended| {
                        set(ended, "startedAt", Value::Null);
                        set(ended, "finishedAt", Value::Null);
                    });
                });
            }
        }
    }
}

/// What the server makes up when an object of `kind` is created, once its UID is known.
pub fn on_create(kind: &str, object: &mut Value) {
    match kind {
        "Pod" => {
            with(object, "spec", admit_pod_spec);
            let class = qos_class(object);
            let gated = object["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty());
            let now = object["metadata"]["creationTimestamp"].clone();
            make(object, "status", |status| {
                set(status, "phase", "Pending");
                set(status, "qosClass", class);
                if gated {
                    let why = "Scheduling is blocked due to non-empty scheduling gates";
                    let condition = json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                        "message": why, "lastProbeTime": null, "lastTransitionTime": now});
                    set(status, "conditions", json!([condition]));
                }
            });
        }
        "Job" => {
            own_selector(object);
            let labels = object["spec"]["template"]["metadata"]["labels"].clone();
            if labels.is_object()
                && object["metadata"]["labels"].as_object().is_none_or(serde_json::Map::is_empty)
            {
                object["metadata"]["labels"] = labels;
            }
        }
        "VolumeAttributesClass" => protect(object, ATTRIBUTES_FINALIZER),
        "PersistentVolumeClaim" => {
            protect(object, CLAIM_FINALIZER);
            with(object, "spec", claim_source);
        }
        // Nothing is to run on a node before it says that it is ready.
        "Node" if !node_is_ready(object) => {
            make(object, "spec", |spec| {
                let mut taints = spec["taints"].as_array().cloned().unwrap_or_default();
                if !taints.iter().any(|taint| taint["key"] == NOT_READY) {
                    taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
                }
                spec["taints"] = taints.into();
            });
        }
        "PersistentVolume" => {
            protect(object, VOLUME_FINALIZER);
            let now = object["metadata"]["creationTimestamp"].clone();
            make(object, "status", |status| set(status, "lastPhaseTransitionTime", now));
        }
        "Namespace" => {
            object["spec"] = json!({"finalizers": ["kubernetes"]});
            object["status"] = json!({"phase": "Active"});
        }
        _ => {}
    }
}

/// What a node is kept free by until it is ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";

fn node_is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

/// What a claim is filled from has two names, of which one is as good as the other.
fn claim_source(spec: &mut Value) {
    let elsewhere =
        spec["dataSourceRef"]["namespace"].as_str().is_some_and(|namespace| !namespace.is_empty());
    for (from, to) in [("dataSource", "dataSourceRef"), ("dataSourceRef", "dataSource")] {
        if spec[from].is_object() && !elsewhere {
            let source = spec[from].clone();
            set(spec, to, source);
        }
    }
    for field in ["dataSource", "dataSourceRef"] {
        with(spec, field, |source| set(source, "apiGroup", Value::Null));
    }
    // Looking for them has made them.
    if let Some(spec) = spec.as_object_mut() {
        spec.retain(|field, value| !(field.starts_with("dataSource") && value.is_null()));
    }
}

/// Holds an object until what uses it is gone.
fn protect(object: &mut Value, finalizer: &str) {
    with(object, "metadata", |meta| {
        set(meta, "finalizers", json!([]));
        if let Some(all) = meta["finalizers"].as_array_mut()
            && !all.iter().any(|f| f == finalizer)
        {
            all.push(finalizer.into());
        }
    });
}

/// What an update of `kind` need not repeat of the object as it was.
pub fn on_update(kind: &str, object: &mut Value, before: &Value) {
    match kind {
        "Pod" => with(object, "spec", admit_pod_spec),
        "DaemonSet" => count_template(object, Some(before)),
        "Node" if node_is_ready(object) && !node_is_ready(before) => with(object, "spec", |spec| {
            let mut taints = spec["taints"].as_array().cloned().unwrap_or_default();
            taints.retain(|taint| taint["key"] != NOT_READY);
            match taints.is_empty() {
                true => drop(spec.as_object_mut().map(|spec| spec.remove("taints"))),
                false => spec["taints"] = taints.into(),
            }
        }),
        "Namespace" => object["spec"] = before["spec"].clone(),
        "Service" if object["spec"]["type"] != "ExternalName" => {
            let old = &before["spec"];
            with(object, "spec", |spec| {
                for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                    if let Some(kept) = old.get(field).filter(|_| old["type"] != "ExternalName") {
                        set(spec, field, kept.clone());
                    }
                }
                if spec["type"] == "ClusterIP" {
                    return;
                }
                for port in list_of(spec, "ports") {
                    let same =
                        |old: &&Value| old["port"] == port["port"] && old["protocol"] == port["protocol"];
                    let kept = old["ports"].as_array().into_iter().flatten().find(same);
                    if let Some(number) = kept.and_then(|p| p.get("nodePort")).cloned() {
                        set(port, "nodePort", number);
                    }
                }
            });
        }
        _ => {}
    }
}

/// Counts a daemon set's templates, as its old versions did.
pub fn count_template(object: &mut Value, before: Option<&Value>) {
    let counted = before.and_then(|b| b["metadata"]["annotations"][TEMPLATE_GENERATION].as_str());
    let number: i64 = counted.and_then(|n| n.parse().ok()).unwrap_or(0);
    let changed = before.is_none_or(|b| b["spec"]["template"] != object["spec"]["template"]);
    let number = number + i64::from(changed);
    with(object, "metadata", |meta| {
        make(meta, "annotations", |all| all[TEMPLATE_GENERATION] = number.to_string().into());
    });
}

/// A Job's selector and the labels that it selects, unless the Job brings its own.
fn own_selector(object: &mut Value) {
    let (uid, name) = (object["metadata"]["uid"].clone(), object["metadata"]["name"].clone());
    let labels = &object["spec"]["template"]["metadata"]["labels"];
    let other = |label: &str, value: &Value| !labels[label].is_null() && labels[label] != *value;
    let taken = ["", "batch.kubernetes.io/"].iter().any(|prefix| {
        other(&format!("{prefix}job-name"), &name) || other(&format!("{prefix}controller-uid"), &uid)
    });
    if object["spec"]["manualSelector"] == true || taken {
        return;
    }
    with(object, "spec", |spec| {
        make(spec, "selector", |selector| {
            make(selector, "matchLabels", |labels| {
                set(labels, "batch.kubernetes.io/controller-uid", uid.clone());
            });
        });
        with(spec, "template", |template| {
            make(template, "metadata", |meta| {
                make(meta, "labels", |labels| {
                    for (prefix, value) in [("controller-uid", &uid), ("job-name", &name)] {
                        set(labels, prefix, value.clone());
                        set(labels, &format!("batch.kubernetes.io/{prefix}"), value.clone());
                    }
                });
            });
        });
    });
}

/// Sets a field that is absent or null.
fn set(target: &mut Value, field: &str, default: impl Into<Value>) {
    if let Some(map) = target.as_object_mut() {
        let slot = map.entry(field).or_insert(Value::Null);
        if slot.is_null() {
            *slot = default.into();
        }
    }
}

/// Fills in the object at `field`, if there is one.
fn with(object: &mut Value, field: &str, fill: impl FnOnce(&mut Value)) {
    if let Some(inner) = object.get_mut(field).filter(|i| i.is_object()) {
        fill(inner);
    }
}

/// Fills in the object at `field`, which is made where it is absent.
fn make(object: &mut Value, field: &str, fill: impl FnOnce(&mut Value)) {
    set(object, field, json!({}));
    with(object, field, fill);
}

/// The items of the list at `field`; none if it is absent.
fn list_of<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

fn pod(object: &mut Value) {
    with(object, "spec", |spec| {
        pod_spec(spec);
        set(spec, "enableServiceLinks", true);
        let host_network = spec["hostNetwork"] == true;
        for list in ["containers", "initContainers"] {
            for container in list_of(spec, list) {
                requests(container);
                for port in list_of(container, "ports").filter(|_| host_network) {
                    if let Some(number) = port.get("containerPort").cloned() {
                        set(port, "hostPort", number);
                    }
                }
            }
        }
    });
}

/// A container asks for what it may use at most, unless it says otherwise. Templates do not say so.
fn requests(container: &mut Value) {
    with(container, "resources", |resources| {
        let limits = resources.get("limits").and_then(Value::as_object).cloned().unwrap_or_default();
        for (resource, amount) in limits {
            make(resources, "requests", |requests| set(requests, &resource, amount));
        }
    });
}

/// What admission adds to a pod, beyond the defaults that its template would have too.
fn admit_pod_spec(spec: &mut Value) {
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
    set(template, "metadata", json!({}));
    with(template, "spec", pod_spec);
}

/// Lists that are written as `null` if they hold nothing, by kind.
fn nullable(kind: &str) -> Option<&'static str> {
    match kind {
        "Role" | "ClusterRole" => Some("/rules"),
        "LimitRange" => Some("/spec/limits"),
        "CSINode" => Some("/spec/drivers"),
        _ => None,
    }
}

/// Lists that hold nothing are stored as none at all. Who wrote them is on record all the same.
pub fn forget_empty_lists(kind: &str, object: &mut Value) {
    if let Some(list) = nullable(kind).and_then(|pointer| object.pointer_mut(pointer))
        && list.as_array().is_some_and(Vec::is_empty)
    {
        *list = Value::Null;
    }
}

/// Selects, and is labelled, as its pods are.
fn replication_controller(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    if labels.is_object() {
        let own = object["metadata"]["labels"].as_object();
        if object["metadata"].is_object() && own.is_none_or(serde_json::Map::is_empty) {
            object["metadata"]["labels"] = labels.clone();
        }
        with(object, "spec", |spec| set(spec, "selector", labels));
    }
    with(object, "spec", |spec| {
        set(spec, "replicas", 1);
        with(spec, "template", template);
    });
}

fn autoscaler(spec: &mut Value) {
    set(spec, "minReplicas", 1);
    if spec["metrics"].as_array().is_none_or(Vec::is_empty) {
        spec["metrics"] = json!([{"type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
    }
    with(spec, "behavior", |behavior| {
        let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
        let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
        make(behavior, "scaleUp", |rules| {
            set(rules, "selectPolicy", "Max");
            set(rules, "stabilizationWindowSeconds", 0);
            set(rules, "policies", json!([pods, percent]));
        });
        make(behavior, "scaleDown", |rules| {
            set(rules, "selectPolicy", "Max");
            set(rules, "policies", json!([percent]));
        });
    });
}

/// What containers get by default follows from what they may have at most and at least.
fn limit(limit: &mut Value) {
    if limit["type"] != "Container" {
        return;
    }
    for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
        for (resource, amount) in limit[from].as_object().cloned().into_iter().flatten() {
            make(limit, to, |amounts| set(amounts, &resource, amount));
        }
    }
}

fn csi_driver(spec: &mut Value) {
    set(spec, "attachRequired", true);
    set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    set(spec, "volumeLifecycleModes", json!(["Persistent"]));
    for field in ["podInfoOnMount", "requiresRepublish", "seLinuxMount", "storageCapacity"] {
        set(spec, field, false);
    }
}

/// Fields that an event always has, by the names that its version gives them.
fn event(object: &mut Value) {
    let core = object["apiVersion"] == "v1";
    let named = |core_name: &'static str, new: &'static str| if core { core_name } else { new };
    for (field, value) in [
        ("eventTime", Value::Null),
        (named("firstTimestamp", "deprecatedFirstTimestamp"), Value::Null),
        (named("lastTimestamp", "deprecatedLastTimestamp"), Value::Null),
        (named("source", "deprecatedSource"), json!({})),
    ] {
        set(object, field, value);
    }
    if core {
        for field in ["reportingComponent", "reportingInstance"] {
            set(object, field, "");
        }
    }
}

fn pod_spec(spec: &mut Value) {
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "restartPolicy", "Always");
    set(spec, "schedulerName", "default-scheduler");
    set(spec, "securityContext", json!({}));
    set(spec, "terminationGracePeriodSeconds", 30);
    // A negative period counts as the shortest one.
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0) {
        spec["terminationGracePeriodSeconds"] = 1.into();
    }
    // The old name of a field that is served under both.
    if let Some(account) = spec.get("serviceAccountName").filter(|a| a.is_string()).cloned() {
        set(spec, "serviceAccount", account);
    }
    for list in ["containers", "initContainers"] {
        for container in list_of(spec, list) {
            let image = container["image"].as_str().unwrap_or_default().to_owned();
            set(container, "imagePullPolicy", pull_policy(&image));
            set(container, "terminationMessagePath", "/dev/termination-log");
            set(container, "terminationMessagePolicy", "File");
            set(container, "resources", json!({}));
            for port in list_of(container, "ports") {
                set(port, "protocol", "TCP");
            }
            for hook in ["postStart", "preStop"] {
                with(container, "lifecycle", |all| {
                    with(all, hook, |hook| with(hook, "httpGet", http_get));
                });
            }
            for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                with(container, probe, |probe| {
                    set(probe, "failureThreshold", 3);
                    set(probe, "periodSeconds", 10);
                    set(probe, "successThreshold", 1);
                    set(probe, "timeoutSeconds", 1);
                    with(probe, "httpGet", http_get);
                    with(probe, "grpc", |grpc| set(grpc, "service", ""));
                });
            }
            for env in list_of(container, "env") {
                if let Some(field) = env.pointer_mut("/valueFrom/fieldRef") {
                    set(field, "apiVersion", "v1");
                }
                if let Some(field) = env.pointer_mut("/valueFrom/resourceFieldRef") {
                    set(field, "divisor", "0");
                }
                if let Some(fields) = env.as_object_mut().filter(|e| e.get("value") == Some(&"".into())) {
                    fields.remove("value");
                }
            }
        }
    }
    for volume in list_of(spec, "volumes") {
        for source in ["secret", "configMap", "downwardAPI", "projected"] {
            with(volume, source, |source| set(source, "defaultMode", 420));
        }
        with(volume, "hostPath", |path| set(path, "type", ""));
        with(volume, "downwardAPI", field_refs);
        with(volume, "projected", |projected| {
            for source in list_of(projected, "sources") {
                with(source, "serviceAccountToken", |token| set(token, "expirationSeconds", 3600));
                with(source, "downwardAPI", field_refs);
            }
        });
        with(volume, "ephemeral", |ephemeral| {
            with(ephemeral, "volumeClaimTemplate", |claim| {
                set(claim, "metadata", json!({}));
                with(claim, "spec", |spec| set(spec, "volumeMode", "Filesystem"));
            });
        });
        with(volume, "image", |image| {
            let reference = image["reference"].as_str().unwrap_or_default().to_owned();
            set(image, "pullPolicy", pull_policy(&reference));
        });
        if volume.as_object().is_some_and(|v| v.len() == 1) {
            set(volume, "emptyDir", json!({}));
        }
    }
}

/// What can be anything tomorrow is pulled again.
fn pull_policy(image: &str) -> &'static str {
    let tag = image.rsplit('/').next().unwrap_or_default().split_once(':').map(|(_, tag)| tag);
    let latest = !image.contains('@') && tag.is_none_or(|t| t == "latest");
    if latest { "Always" } else { "IfNotPresent" }
}

fn http_get(get: &mut Value) {
    set(get, "path", "/");
    set(get, "scheme", "HTTP");
}

/// The references to fields of a downward API volume.
fn field_refs(volume: &mut Value) {
    for item in list_of(volume, "items") {
        with(item, "fieldRef", |field| set(field, "apiVersion", "v1"));
    }
}

fn deployment(spec: &mut Value) {
    set(spec, "progressDeadlineSeconds", 600);
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    make(spec, "strategy", |strategy| {
        rolling_update(strategy, &[("maxSurge", "25%".into()), ("maxUnavailable", "25%".into())]);
    });
    with(spec, "template", template);
}

fn stateful_set(spec: &mut Value) {
    set(spec, "serviceName", "");
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "podManagementPolicy", "OrderedReady");
    make(spec, "persistentVolumeClaimRetentionPolicy", |policy| {
        set(policy, "whenDeleted", "Retain");
        set(policy, "whenScaled", "Retain");
    });
    make(spec, "updateStrategy", |strategy| rolling_update(strategy, &[("partition", 0.into())]));
    with(spec, "template", template);
    for claim in list_of(spec, "volumeClaimTemplates") {
        // Typed by the server, since the embedded object has a kind of its own.
        set(claim, "apiVersion", "v1");
        set(claim, "kind", "PersistentVolumeClaim");
        apply("PersistentVolumeClaim", claim);
    }
}

fn daemon_set(spec: &mut Value) {
    set(spec, "revisionHistoryLimit", 10);
    make(spec, "updateStrategy", |strategy| {
        rolling_update(strategy, &[("maxSurge", 0.into()), ("maxUnavailable", 1.into())]);
    });
    with(spec, "template", template);
}

/// The strategy of a workload: rolling update unless it says otherwise, with these parameters.
fn rolling_update(strategy: &mut Value, parameters: &[(&str, Value)]) {
    set(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        make(strategy, "rollingUpdate", |update| {
            for (field, default) in parameters {
                set(update, field, default.clone());
            }
        });
    }
}

fn job(spec: &mut Value) {
    // A job with parallelism alone is a work queue, which is complete when a pod says so.
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        set(spec, "completions", 1);
    }
    set(spec, "parallelism", 1);
    let per_index = !spec["backoffLimitPerIndex"].is_null();
    set(spec, "backoffLimit", if per_index { i32::MAX } else { 6 });
    let replacement = if spec["podFailurePolicy"].is_null() { "TerminatingOrFailed" } else { "Failed" };
    set(spec, "podReplacementPolicy", replacement);
    set(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    set(spec, "manualSelector", false);
    with(spec, "template", template);
}

fn cron_job(spec: &mut Value) {
    set(spec, "concurrencyPolicy", "Allow");
    set(spec, "failedJobsHistoryLimit", 1);
    set(spec, "successfulJobsHistoryLimit", 3);
    set(spec, "suspend", false);
    with(spec, "jobTemplate", |job| {
        set(job, "metadata", json!({}));
        with(job, "spec", |spec| with(spec, "template", template));
    });
}

fn service(object: &mut Value) {
    with(object, "spec", |spec| {
        set(spec, "type", "ClusterIP");
        set(spec, "sessionAffinity", "None");
        if spec["sessionAffinity"] == "ClientIP" {
            make(spec, "sessionAffinityConfig", |config| {
                make(config, "clientIP", |client| set(client, "timeoutSeconds", 10_800));
            });
        }
        if spec["type"] == "LoadBalancer" {
            set(spec, "allocateLoadBalancerNodePorts", true);
        }
        if spec["type"] != "ExternalName" {
            set(spec, "internalTrafficPolicy", "Cluster");
            if matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer")) {
                set(spec, "externalTrafficPolicy", "Cluster");
            }
        }
        for port in list_of(spec, "ports") {
            set(port, "protocol", "TCP");
            if let Some(target) = port.get("port").cloned() {
                set(port, "targetPort", target);
            }
        }
    });
    make(object, "status", |status| set(status, "loadBalancer", json!({})));
}

fn secret(object: &mut Value) {
    use base64::Engine as _;
    set(object, "type", "Opaque");
    if let Some(plain) = object.as_object_mut().and_then(|o| o.remove("stringData")) {
        for (key, value) in plain.as_object().into_iter().flatten() {
            let encoded =
                base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
            make(object, "data", |data| data[key] = encoded.into());
        }
    }
}

fn namespace(object: &mut Value) {
    with(object, "metadata", |meta| {
        let name = meta["name"].clone();
        if !name.is_null() {
            make(meta, "labels", |labels| labels["kubernetes.io/metadata.name"] = name);
        }
    });
}

fn network_policy(spec: &mut Value) {
    set(spec, "podSelector", json!({}));
    let types: &[&str] = if spec["egress"].is_null() { &["Ingress"] } else { &["Ingress", "Egress"] };
    set(spec, "policyTypes", json!(types));
    for rules in ["ingress", "egress"] {
        for rule in list_of(spec, rules) {
            list_of(rule, "ports").for_each(|port| set(port, "protocol", "TCP"));
        }
    }
}

fn custom_resource_definition(spec: &mut Value) {
    with(spec, "names", |names| {
        let kind = names["kind"].as_str().unwrap_or_default().to_owned();
        if !kind.is_empty() {
            set(names, "singular", kind.to_lowercase());
            set(names, "listKind", format!("{kind}List"));
        }
    });
    set(spec, "conversion", json!({"strategy": "None"}));
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: &[&str] = &[
        "Pod",
        "Deployment",
        "ReplicaSet",
        "ReplicationController",
        "StatefulSet",
        "DaemonSet",
        "Job",
        "CronJob",
        "Service",
        "Secret",
        "Namespace",
        "PersistentVolumeClaim",
        "PersistentVolume",
        "NetworkPolicy",
        "RoleBinding",
        "ClusterRoleBinding",
        "StorageClass",
        "PriorityClass",
        "EndpointSlice",
        "Endpoints",
        "Node",
        "CustomResourceDefinition",
        "ConfigMap",
    ];

    fn nulls(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(items) => items.iter().any(nulls),
            Value::Object(map) => map.values().any(nulls),
            _ => false,
        }
    }

    #[test]
    fn what_is_absent_does_not_become_null() {
        let shapes = [
            json!({}),
            json!({"metadata": {"name": "x"}}),
            json!({"metadata": {"name": "x"}, "spec": {}, "status": {}}),
            json!({"metadata": {"name": "x"}, "spec": {"template": {}, "jobTemplate": {}, "names": {}, "ports": [{}]},
                "subjects": [{}], "subsets": [{}], "ports": [{}], "roleRef": {}}),
            json!({"metadata": {"name": "x"}, "spec": {"template": {"spec": {}}, "containers": [{"name": "c"}],
                "volumes": [{"name": "v"}], "ingress": [{}], "egress": [{}], "volumeClaimTemplates": [{}]}}),
        ];
        for kind in KINDS {
            for shape in &shapes {
                let mut object = shape.clone();
                apply(kind, &mut object);
                assert!(!nulls(&object) || nulls(shape), "{kind} of {shape} became {object}");
                let once = object.clone();
                apply(kind, &mut object);
                assert_eq!(object, once, "{kind} of {shape}: defaults of defaults");
            }
        }
        let mut without_template = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}});
        apply("Deployment", &mut without_template);
        assert_eq!(without_template["spec"].get("template"), None);
        let mut no_spec = json!({"metadata": {"name": "x"}});
        apply("DaemonSet", &mut no_spec);
        assert_eq!(no_spec, json!({"metadata": {"name": "x"}}));
    }

    #[test]
    fn a_strategy_given_in_part_is_completed() {
        let mut object = json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": 3}}}});
        apply("DaemonSet", &mut object);
        assert_eq!(
            object["spec"]["updateStrategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 3}})
        );
        let mut object = json!({"spec": {"strategy": {"type": "Recreate"}}});
        apply("Deployment", &mut object);
        assert_eq!(object["spec"]["strategy"], json!({"type": "Recreate"}));
    }

    #[test]
    fn a_new_job_selects_its_own_pods() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {}}}});
        on_create("Job", &mut job);
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
        );
        assert_eq!(
            job["spec"]["template"]["metadata"]["labels"],
            json!({"controller-uid": "u", "batch.kubernetes.io/controller-uid": "u",
                "job-name": "j", "batch.kubernetes.io/job-name": "j"})
        );
        let mut own = json!({"spec": {"manualSelector": true, "selector": {"matchLabels": {"a": "b"}}}});
        let before = own.clone();
        on_create("Job", &mut own);
        assert_eq!(own, before);
    }

    #[test]
    fn a_job_with_parallelism_alone_is_a_work_queue() {
        let mut object = json!({"spec": {"parallelism": 4}});
        apply("Job", &mut object);
        assert_eq!(object["spec"].get("completions"), None);
        let mut object = json!({"spec": {}});
        apply("Job", &mut object);
        assert_eq!((&object["spec"]["completions"], &object["spec"]["parallelism"]), (&json!(1), &json!(1)));
    }
}
