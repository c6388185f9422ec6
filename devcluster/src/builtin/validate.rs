//! Checks of built-in kinds beyond their schemas: the ones a person meets.

mod workloads;

use serde_json::Value;

use crate::server::status::Cause;

/// Checks an object of a built-in `kind`; `old` is its present state on update.
pub fn check(kind: &str, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    match kind {
        "Pod" => {
            pod_spec(&new["spec"], "spec", &mut causes);
            if let Some(old) = old {
                immutable_pod(new, old, &mut causes);
            }
        }
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" => {
            workloads::workload(kind, new, old, &mut causes);
        }
        "Job" => workloads::job(new, old, &mut causes),
        "CronJob" => workloads::cron_job(new, &mut causes),
        "Service" => service(new, old, &mut causes),
        "Secret" | "ConfigMap" => {
            if let Some(old) = old.filter(|o| o["immutable"] == true)
                && let Some(changed) = ["immutable", "data", "binaryData"]
                    .iter()
                    .find(|field| old.get(**field) != new.get(**field))
            {
                causes.push(Cause::forbidden(*changed, "field is immutable when `immutable` is set"));
            }
            if kind == "Secret"
                && let Some(old) = old
                && old["type"] != new["type"]
            {
                causes.push(Cause::invalid("type", &new["type"], "field is immutable"));
            }
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            if let Some(old) = old
                && old["roleRef"] != new["roleRef"]
            {
                causes.push(Cause::invalid("roleRef", &new["roleRef"], "cannot change roleRef"));
            }
        }
        "CustomResourceDefinition" => {
            // What identifies the kind to clients and to stored objects stays as it was established.
            for (field, pointer) in [
                ("spec.group", "/spec/group"),
                ("spec.names.plural", "/spec/names/plural"),
                ("spec.scope", "/spec/scope"),
                ("spec.names.kind", "/spec/names/kind"),
            ] {
                let now = new.pointer(pointer).unwrap_or(&Value::Null);
                if old.is_some_and(|old| old.pointer(pointer) != Some(now)) {
                    causes.push(Cause::invalid(field, now, "field is immutable"));
                }
            }
        }
        "Lease" => {
            let duration = &new["spec"]["leaseDurationSeconds"];
            if duration.as_i64().is_some_and(|d| d <= 0) {
                causes.push(Cause::invalid("spec.leaseDurationSeconds", duration, "must be greater than 0"));
            }
        }
        "PodDisruptionBudget"
            if !new["spec"]["minAvailable"].is_null() && !new["spec"]["maxUnavailable"].is_null() =>
        {
            causes.push(Cause::invalid(
                "spec",
                &new["spec"],
                "minAvailable and maxUnavailable cannot be both set",
            ));
        }
        "PersistentVolumeClaim" => {
            if let Some(old) = old
                && claim_spec(new, old) != claim_spec(old, old)
            {
                causes.push(Cause::forbidden(
                    "spec",
                    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
                ));
            }
        }
        "PriorityClass" => {
            if let Some(old) = old {
                if old["value"] != new["value"] {
                    causes.push(Cause::forbidden("value", "may not be changed in an update."));
                }
                immutable(new, old, "", &["preemptionPolicy"], &mut causes);
            }
        }
        "StorageClass" => {
            if let Some(old) = old {
                for field in ["parameters", "provisioner"] {
                    if old.get(field) != new.get(field) {
                        let why = format!("updates to {field} are forbidden.");
                        causes.push(Cause::forbidden(field, &why));
                    }
                }
                immutable(new, old, "", &["reclaimPolicy", "volumeBindingMode"], &mut causes);
            }
        }
        _ => {}
    }
    causes
}

/// Fields at `at` that must stay as they are.
fn immutable(new: &Value, old: &Value, at: &str, fields: &[&str], causes: &mut Vec<Cause>) {
    for field in fields {
        if new[*field] != old[*field] {
            causes.push(Cause::invalid(format!("{at}{field}"), &new[*field], "field is immutable"));
        }
    }
}

/// What of a claim must stay as it is in `old`: binding sets the volume once, and a claim may ask for more.
fn claim_spec(claim: &Value, old: &Value) -> Value {
    let mut spec = claim["spec"].clone();
    if let Some(fields) = spec.as_object_mut() {
        fields.remove("volumeAttributesClassName");
        if old["spec"]["volumeName"].as_str().is_none_or(str::is_empty) {
            fields.remove("volumeName");
        }
        if let Some(resources) = fields.get_mut("resources").and_then(Value::as_object_mut) {
            resources.remove("requests");
        }
    }
    spec
}

fn pod_spec(spec: &Value, path: &str, causes: &mut Vec<Cause>) {
    if spec["containers"].as_array().is_some_and(Vec::is_empty) {
        causes.push(Cause::required(format!("{path}.containers"), ""));
    }
    let mut names: Vec<&str> = Vec::new();
    let volumes: Vec<&str> =
        spec["volumes"].as_array().into_iter().flatten().filter_map(|v| v["name"].as_str()).collect();
    for list in ["initContainers", "containers"] {
        for (i, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let at = format!("{path}.{list}[{i}]");
            let name = container["name"].as_str().unwrap_or_default();
            if name.is_empty() {
                causes.push(Cause::required(format!("{at}.name"), ""));
            } else if let Some(why) = dns_label(name) {
                causes.push(Cause::invalid(format!("{at}.name"), &container["name"], &why));
            }
            if names.contains(&name) && !name.is_empty() {
                causes.push(Cause {
                    reason: "FieldValueDuplicate".into(),
                    message: format!("Duplicate value: {name:?}"),
                    field: format!("{at}.name"),
                });
            }
            names.push(name);
            if container["image"].as_str().unwrap_or_default().is_empty() && path == "spec" {
                causes.push(Cause::required(format!("{at}.image"), ""));
            }
            for (p, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
                if !port["containerPort"].as_i64().is_some_and(|n| (1..=65535).contains(&n)) {
                    causes.push(Cause::invalid(
                        format!("{at}.ports[{p}].containerPort"),
                        &port["containerPort"],
                        "must be between 1 and 65535, inclusive",
                    ));
                }
            }
            for (m, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
                if !mount["name"].as_str().is_some_and(|n| volumes.contains(&n)) {
                    causes.push(Cause {
                        reason: "FieldValueNotFound".into(),
                        message: format!("Not found: {}", mount["name"]),
                        field: format!("{at}.volumeMounts[{m}].name"),
                    });
                }
            }
        }
    }
    let policy = &spec["restartPolicy"];
    if !policy.is_null() && !["Always", "OnFailure", "Never"].iter().any(|p| policy == p) {
        causes.push(Cause::not_supported(
            format!("{path}.restartPolicy"),
            policy,
            &["Always", "OnFailure", "Never"],
        ));
    }
}

fn immutable_pod(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let strip = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        if let Some(map) = spec.as_object_mut() {
            for field in
                ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "schedulingGates"]
            {
                map.remove(field);
            }
            // Only the scheduler's first assignment may set it; that goes through the binding subresource.
            for list in ["containers", "initContainers"] {
                for container in map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                    if let Some(c) = container.as_object_mut() {
                        c.remove("image");
                    }
                }
            }
        }
        spec
    };
    if strip(new) != strip(old) {
        causes.push(Cause::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
}

fn service(new: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let spec = &new["spec"];
    let headless = spec["clusterIP"] == "None";
    if spec["type"] != "ExternalName" && !headless && spec["ports"].as_array().is_none_or(Vec::is_empty) {
        causes.push(Cause::required("spec.ports", ""));
    }
    for (i, port) in spec["ports"].as_array().into_iter().flatten().enumerate() {
        if !port["port"].as_i64().is_some_and(|n| (1..=65535).contains(&n)) {
            causes.push(Cause::invalid(
                format!("spec.ports[{i}].port"),
                &port["port"],
                "must be between 1 and 65535, inclusive",
            ));
        }
        if spec["ports"].as_array().is_some_and(|p| p.len() > 1) && port["name"].is_null() {
            causes.push(Cause::required(format!("spec.ports[{i}].name"), ""));
        }
    }
    if let Some(old) = old
        && old["spec"]["type"] == spec["type"]
        && old["spec"]["clusterIP"].is_string()
        && old["spec"]["clusterIP"] != spec["clusterIP"]
    {
        causes.push(Cause::invalid("spec.clusterIP", &spec["clusterIP"], "field is immutable"));
    }
}

/// Why `name` is no RFC 1123 label.
pub fn dns_label(name: &str) -> Option<String> {
    if name.len() > 63 {
        return Some("must be no more than 63 characters".into());
    }
    let ok = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    (!ok).then(|| {
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an \
         alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            .into()
    })
}

/// Why `name` is no RFC 1123 subdomain.
pub fn dns_subdomain(name: &str) -> Option<String> {
    if name.len() > 253 {
        return Some("must be no more than 253 characters".into());
    }
    let ok = !name.is_empty()
        && name.split('.').all(|part| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !part.starts_with('-')
                && !part.ends_with('-')
        });
    (!ok).then(|| {
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end \
         with an alphanumeric character (e.g. 'example.com', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            .into()
    })
}

/// Checks the metadata that a client may set.
pub fn metadata(kind: &str, meta: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let name = meta["name"].as_str().unwrap_or_default();
    let why = match kind {
        // RBAC names may be any path segment: `system:node`.
        "Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding" => {
            (name.contains('/') || name.contains('%') || name == "." || name == "..")
                .then(|| "may not contain '/' or '%'".to_owned())
        }
        "Namespace" | "Service" => dns_label(name),
        _ => dns_subdomain(name),
    };
    if let Some(why) = why {
        causes.push(Cause::invalid("metadata.name", &meta["name"], &why));
    }
    for (key, value) in meta["labels"].as_object().into_iter().flatten() {
        if !qualified_name(key) {
            causes.push(Cause::invalid(
                "metadata.labels",
                &key.as_str().into(),
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
                 character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            ));
        }
        if !value.as_str().is_some_and(|v| v.is_empty() || name_part(v)) {
            causes.push(Cause::invalid(
                "metadata.labels",
                value,
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and \
                 end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ));
        }
    }
    for (i, owner) in meta["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                causes.push(Cause::invalid(
                    format!("metadata.ownerReferences[{i}].{field}"),
                    &"".into(),
                    &format!("{field} must not be empty"),
                ));
            }
        }
    }
    for finalizer in meta["finalizers"].as_array().into_iter().flatten() {
        let text = finalizer.as_str().unwrap_or_default();
        if !qualified_name(text) {
            causes.push(Cause::invalid("metadata.finalizers", finalizer, "name part must be non-empty"));
        }
    }
    causes
}

fn qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => dns_subdomain(prefix).is_none() && name_part(name),
        None => name_part(text),
    }
}

fn name_part(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}
