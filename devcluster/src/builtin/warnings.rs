//! What a server warns of in objects that it takes all the same, as `k8s.io/kubernetes/pkg/api` has it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Warnings of an object of a built-in kind, as it is to be stored; `old` is what it replaces.
pub fn of(kind: &str, new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    match kind {
        "Pod" if old.is_none() => pod_spec(&new["spec"], "spec", &mut out),
        "PodTemplate" => pod_spec(&new["template"]["spec"], "template.spec", &mut out),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" | "ReplicationController"
            if old.is_none_or(|old| old["spec"]["template"] != new["spec"]["template"]) =>
        {
            pod_spec(&new["spec"]["template"]["spec"], "spec.template.spec", &mut out);
        }
        "CronJob" => {
            let template = &new["spec"]["jobTemplate"]["spec"]["template"]["spec"];
            pod_spec(template, "spec.jobTemplate.spec.template.spec", &mut out);
        }
        "Secret" if new["type"] == "kubernetes.io/tls" => out.extend(certificate(&new["data"])),
        _ => {}
    }
    out
}

fn items(list: &Value) -> impl Iterator<Item = (usize, &Value)> {
    list.as_array().into_iter().flatten().enumerate()
}

fn pod_spec(spec: &Value, path: &str, out: &mut Vec<String>) {
    for (i, secret) in items(&spec["imagePullSecrets"]) {
        if secret["name"].as_str().unwrap_or_default().is_empty() {
            out.push(format!("{path}.imagePullSecrets[{i}].name: invalid empty name \"\""));
        }
    }
    for list in ["initContainers", "containers"] {
        for (i, container) in items(&spec[list]) {
            let path = format!("{path}.{list}[{i}]");
            repeated_variables(&container["env"], &path, out);
        }
    }
}

/// Variables that an earlier one of the same name makes useless.
fn repeated_variables(variables: &Value, path: &str, out: &mut Vec<String>) {
    let name = |variable: &Value| variable["name"].as_str().unwrap_or_default().to_owned();
    for (i, variable) in items(variables) {
        if !items(variables).take(i).any(|(_, earlier)| name(earlier) == name(variable)) {
            continue;
        }
        // One that is made from the one before is no mistake.
        let (value, before) =
            (variable["value"].as_str().unwrap_or_default(), format!("$({})", name(variable)));
        if !variable["valueFrom"].is_null() || value == before || !value.contains(&before) {
            out.push(format!(
                "{path}.env[{i}]: hides previous definition of {:?}, which may be dropped when using apply",
                name(variable)
            ));
        }
    }
}

/// What is wrong with a certificate and its key, as far as it shows without cryptography.
fn certificate(data: &Value) -> Option<String> {
    let has = |field: &str, marks: &[&str]| {
        let bytes = STANDARD.decode(data[field].as_str().unwrap_or_default()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        marks.iter().any(|mark| text.contains(mark))
    };
    match () {
        () if !has("tls.crt", &["-----BEGIN "]) => {
            Some("tls: failed to find any PEM data in certificate input".to_owned())
        }
        () if !has("tls.key", &["-----BEGIN "]) => {
            Some("tls: failed to find any PEM data in key input".to_owned())
        }
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_of_no_use_is_told() {
        let pod = json!({"spec": {"imagePullSecrets": [{}], "containers": []}});
        assert_eq!(of("Pod", &pod, None), ["spec.imagePullSecrets[0].name: invalid empty name \"\""]);
        let twice = |value: &str| json!({"spec": {"containers": [{"env": [{"name": "A", "value": "1"}, {"name": "A", "value": value}]}]}});
        assert_eq!(of("Pod", &twice("2"), None).len(), 1);
        assert!(of("Pod", &twice("$(A)2"), None).is_empty());
        let secret = |crt: &str| json!({"type": "kubernetes.io/tls", "data": {"tls.crt": STANDARD.encode(crt), "tls.key": ""}});
        assert!(of("Secret", &secret("x"), None)[0].ends_with("certificate input"));
        assert!(of("Secret", &secret("-----BEGIN CERTIFICATE-----"), None)[0].ends_with("key input"));
    }
}
