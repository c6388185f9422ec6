//! Columns of the kinds that applications are installed as, after `k8s.io/kubernetes/pkg/printers/internalversion`.

use serde_json::{Value, json};

use super::builtin::{
    Compute, age_column, column, containers, int_at, is_true, labels, list, name_column, or_none, str_at,
    text, wide,
};
use super::{Column, since};
use crate::gvk::GroupKind;

/// The columns of these kinds.
pub(super) fn columns(kind: &GroupKind) -> Option<Vec<Column>> {
    let mut out = vec![name_column()];
    let (middle, last) = match (kind.group.as_str(), kind.kind.as_str()) {
        ("apps", "DaemonSet") => (
            vec![
                integer("Desired", |o, _| json!(int_at(o, "/status/desiredNumberScheduled"))),
                integer("Current", |o, _| json!(int_at(o, "/status/currentNumberScheduled"))),
                integer("Ready", |o, _| json!(int_at(o, "/status/numberReady"))),
                integer("Up-to-date", |o, _| json!(int_at(o, "/status/updatedNumberScheduled"))),
                integer("Available", |o, _| json!(int_at(o, "/status/numberAvailable"))),
                text("Node Selector", |o, _| labels(o.pointer("/spec/template/spec/nodeSelector"))),
            ],
            workload_columns(),
        ),
        ("apps", "StatefulSet") => (
            vec![text("Ready", |o, _| {
                json!(format!("{}/{}", int_at(o, "/status/readyReplicas"), int_at(o, "/spec/replicas")))
            })],
            workload_columns().into_iter().take(2).collect(),
        ),
        ("batch", "Job") => (
            vec![
                text("Status", |o, _| json!(job_status(o))),
                text("Completions", |o, _| json!(job_completions(o))),
                text("Duration", |o, now| match o.pointer("/status/startTime") {
                    None => json!(""),
                    start => {
                        let end = str_at(o, "/status/completionTime").parse().unwrap_or(now);
                        json!(since(start, end))
                    }
                }),
            ],
            workload_columns(),
        ),
        ("batch", "CronJob") => (
            vec![
                text("Schedule", |o, _| json!(str_at(o, "/spec/schedule"))),
                text("Timezone", |o, _| or_none(str_at(o, "/spec/timeZone"))),
                column("Suspend", "boolean", 0, |o, _| match o.pointer("/spec/suspend") {
                    Some(Value::Bool(true)) => json!("True"),
                    Some(Value::Bool(false)) => json!("False"),
                    _ => json!("<unset>"),
                }),
                integer("Active", |o, _| json!(list(o.pointer("/status/active")).len())),
                text("Last Schedule", |o, now| match o.pointer("/status/lastScheduleTime") {
                    None => json!("<none>"),
                    at => json!(since(at, now)),
                }),
            ],
            vec![
                wide("Containers", |o, _| job_containers(o, "name")),
                wide("Images", |o, _| job_containers(o, "image")),
                wide("Selector", |o, _| labels(o.pointer("/spec/jobTemplate/spec/selector/matchLabels"))),
            ],
        ),
        ("policy", "PodDisruptionBudget") => (
            vec![
                text("Min Available", |o, _| scalar(o.pointer("/spec/minAvailable"), "N/A")),
                text("Max Unavailable", |o, _| scalar(o.pointer("/spec/maxUnavailable"), "N/A")),
                integer("Allowed Disruptions", |o, _| json!(int_at(o, "/status/disruptionsAllowed"))),
            ],
            Vec::new(),
        ),
        ("autoscaling", "HorizontalPodAutoscaler") => (
            vec![
                text("Reference", |o, _| {
                    let target = |field| str_at(o, &format!("/spec/scaleTargetRef/{field}"));
                    json!(format!("{}/{}", target("kind"), target("name")))
                }),
                text("Targets", |o, _| json!(hpa_targets(o))),
                text("MinPods", |o, _| scalar(o.pointer("/spec/minReplicas"), "<unset>")),
                text("MaxPods", |o, _| json!(int_at(o, "/spec/maxReplicas"))),
                text("Replicas", |o, _| json!(int_at(o, "/status/currentReplicas"))),
            ],
            Vec::new(),
        ),
        ("networking.k8s.io", "Ingress") => (
            vec![
                text("Class", |o, _| or_none(str_at(o, "/spec/ingressClassName"))),
                text("Hosts", |o, _| json!(ingress_hosts(o))),
                text("Address", |o, _| json!(ingress_addresses(o))),
                text("Ports", |o, _| {
                    json!(if list(o.pointer("/spec/tls")).is_empty() { "80" } else { "80, 443" })
                }),
            ],
            Vec::new(),
        ),
        ("networking.k8s.io", "NetworkPolicy") => (
            vec![text("Pod-Selector", |o, _| labels(o.pointer("/spec/podSelector/matchLabels")))],
            Vec::new(),
        ),
        ("", "PersistentVolumeClaim") => (
            vec![
                text("Status", |o, _| {
                    let deleting = o.pointer("/metadata/deletionTimestamp").is_some();
                    json!(if deleting { "Terminating" } else { str_at(o, "/status/phase") })
                }),
                text("Volume", |o, _| json!(str_at(o, "/spec/volumeName"))),
                text("Capacity", |o, _| {
                    json!(if bound(o) { str_at(o, "/status/capacity/storage") } else { "" })
                }),
                text("Access Modes", |o, _| {
                    json!(if bound(o) { modes_of(o.pointer("/status/accessModes")) } else { String::new() })
                }),
                text("StorageClass", |o, _| json!(str_at(o, "/spec/storageClassName"))),
                text("VolumeAttributesClass", |o, _| {
                    scalar(o.pointer("/spec/volumeAttributesClassName"), "<unset>")
                }),
            ],
            vec![wide("VolumeMode", |o, _| scalar(o.pointer("/spec/volumeMode"), "<unset>"))],
        ),
        ("storage.k8s.io", "StorageClass") => (
            vec![
                text("Provisioner", |o, _| json!(str_at(o, "/provisioner"))),
                text("ReclaimPolicy", |o, _| json!(str_at(o, "/reclaimPolicy"))),
                text("VolumeBindingMode", |o, _| json!(str_at(o, "/volumeBindingMode"))),
                text("AllowVolumeExpansion", |o, _| {
                    json!(o.get("allowVolumeExpansion") == Some(&Value::Bool(true)))
                }),
            ],
            Vec::new(),
        ),
        _ => return None,
    };
    out.extend(middle);
    out.push(age_column());
    out.extend(last);
    Some(out)
}

pub(super) fn integer(name: &str, compute: Compute) -> Column {
    column(name, "integer", 0, compute)
}

/// Columns of `-o wide`.
fn workload_columns() -> Vec<Column> {
    vec![
        wide("Containers", |o, _| containers(o, "name")),
        wide("Images", |o, _| containers(o, "image")),
        wide("Selector", |o, _| labels(o.pointer("/spec/selector/matchLabels"))),
    ]
}

/// Text or a number as text.
pub(super) fn scalar(value: Option<&Value>, absent: &str) -> Value {
    match value {
        Some(Value::String(text)) => json!(text),
        Some(Value::Number(number)) => json!(number.to_string()),
        _ => json!(absent),
    }
}

fn job_status(job: &Value) -> &'static str {
    let deleting = job.pointer("/metadata/deletionTimestamp").is_some();
    match () {
        () if is_true(job, "Complete") => "Complete",
        () if is_true(job, "Failed") => "Failed",
        () if deleting => "Terminating",
        () if is_true(job, "Suspended") => "Suspended",
        () if is_true(job, "FailureTarget") => "FailureTarget",
        () if is_true(job, "SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn job_completions(job: &Value) -> String {
    let succeeded = int_at(job, "/status/succeeded");
    match (job.pointer("/spec/completions").and_then(Value::as_i64), int_at(job, "/spec/parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

/// Hosts of an Ingress: at most three, then how many more.
fn ingress_hosts(ingress: &Value) -> String {
    let hosts: Vec<&str> = list(ingress.pointer("/spec/rules"))
        .iter()
        .map(|rule| str_at(rule, "/host"))
        .filter(|host| !host.is_empty())
        .collect();
    match hosts.len() {
        0 => "*".into(),
        1..=3 => hosts.join(","),
        more => format!("{} + {} more...", hosts[..3].join(","), more - 3),
    }
}

fn ingress_addresses(ingress: &Value) -> String {
    let mut addresses: Vec<&str> = list(ingress.pointer("/status/loadBalancer/ingress"))
        .iter()
        .map(|at| if at.get("ip").is_some() { str_at(at, "/ip") } else { str_at(at, "/hostname") })
        .filter(|address| !address.is_empty())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.join(",")
}

/// One field of the containers that a CronJob's jobs run.
fn job_containers(cron: &Value, field: &str) -> Value {
    match cron.pointer("/spec/jobTemplate") {
        Some(job) => containers(job, field),
        None => json!(""),
    }
}

/// Whether a claim names its volume: until then its size and modes are not shown.
fn bound(claim: &Value) -> bool {
    !str_at(claim, "/spec/volumeName").is_empty()
}

/// Modes of access, abbreviated.
pub(super) fn modes_of(modes: Option<&Value>) -> String {
    let has = |mode: &str| list(modes).iter().any(|m| m == mode);
    [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ]
    .into_iter()
    .filter(|(mode, _)| has(mode))
    .map(|(_, short)| short)
    .collect::<Vec<_>>()
    .join(",")
}

/// Each metric as current/target; at most two, then how many more.
fn hpa_targets(hpa: &Value) -> String {
    let metrics = list(hpa.pointer("/spec/metrics"));
    let reported = list(hpa.pointer("/status/currentMetrics"));
    if metrics.is_empty() {
        return "<none>".into();
    }
    let shown: Vec<String> = metrics
        .iter()
        .enumerate()
        .map(|(i, metric)| {
            let (name, part) = match str_at(metric, "/type") {
                "Resource" => ("resource", "resource"),
                "ContainerResource" => ("containerResource", "containerResource"),
                "Pods" => ("pods", "pods"),
                "Object" => ("object", "object"),
                _ => ("external", "external"),
            };
            let target = &metric[part]["target"];
            let current = reported.get(i).map_or(&Value::Null, |m| &m[part]["current"]);
            let known = |field: &str| match &current[field] {
                Value::Null => "<unknown>".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let (value, unit) = match target {
                t if !t["averageValue"].is_null() => {
                    let unit = if matches!(name, "object" | "external") { " (avg)" } else { "" };
                    let text = format!("{}/{}", known("averageValue"), str_at(t, "/averageValue"));
                    (text, unit)
                }
                t if !t["averageUtilization"].is_null() => {
                    let now = known("averageUtilization");
                    let now = if now == "<unknown>" { now } else { format!("{now}%") };
                    (format!("{now}/{}%", t["averageUtilization"]), "")
                }
                t => (format!("{}/{}", known("value"), str_at(t, "/value")), ""),
            };
            let prefix = match name {
                "resource" | "containerResource" => format!("{}: ", str_at(&metric[part], "/name")),
                _ => String::new(),
            };
            format!("{prefix}{value}{unit}")
        })
        .collect();
    match shown.len() {
        0..=2 => shown.join(", "),
        more => format!("{} + {} more...", shown[..2].join(", "), more - 2),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::{IncludeObject, render};
    use super::*;

    fn row(group: &str, kind: &str, object: Value) -> Vec<String> {
        let columns = columns(&GroupKind::new(group, kind)).unwrap();
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let table = render(&columns, &[object], IncludeObject::None, now);
        let cells = table["rows"][0]["cells"].as_array().unwrap();
        cells.iter().map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned)).collect()
    }

    #[test]
    fn rows_read_as_kubectl_prints_them() {
        let meta = json!({"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"});
        let template = json!({"spec": {"containers": [{"name": "c", "image": "i"}]}});
        let daemon_set = json!({"metadata": meta, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template},
            "status": {"desiredNumberScheduled": 3, "numberReady": 2}});
        assert_eq!(
            row("apps", "DaemonSet", daemon_set),
            ["x", "3", "0", "2", "0", "0", "<none>", "10m", "c", "i", "a=b"]
        );
        let job = json!({"metadata": meta, "spec": {"completions": 1, "template": template},
            "status": {"startTime": "2026-01-01T00:09:00Z"}});
        assert_eq!(row("batch", "Job", job)[..5], ["x", "Running", "0/1", "60s", "10m"]);
        let budget = json!({"metadata": meta, "spec": {"minAvailable": 1}});
        assert_eq!(row("policy", "PodDisruptionBudget", budget), ["x", "1", "N/A", "0", "10m"]);
        let ingress = json!({"metadata": meta, "spec": {"ingressClassName": "n", "tls": [{}],
            "rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}]}});
        assert_eq!(
            row("networking.k8s.io", "Ingress", ingress),
            ["x", "n", "a,b,c + 1 more...", "", "80, 443", "10m"]
        );
        let hpa = json!({"metadata": meta, "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"},
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 60}}}]}});
        assert_eq!(
            row("autoscaling", "HorizontalPodAutoscaler", hpa),
            ["x", "Deployment/d", "cpu: <unknown>/60%", "<unset>", "3", "0", "10m"]
        );
        let claim =
            json!({"metadata": meta, "spec": {"volumeMode": "Filesystem"}, "status": {"phase": "Pending"}});
        assert_eq!(
            row("", "PersistentVolumeClaim", claim),
            ["x", "Pending", "", "", "", "", "<unset>", "10m", "Filesystem"]
        );
    }

    #[test]
    fn objects_without_anything_make_rows() {
        for (group, kind) in [
            ("apps", "DaemonSet"),
            ("apps", "StatefulSet"),
            ("batch", "Job"),
            ("batch", "CronJob"),
            ("autoscaling", "HorizontalPodAutoscaler"),
            ("networking.k8s.io", "Ingress"),
            ("networking.k8s.io", "NetworkPolicy"),
            ("storage.k8s.io", "StorageClass"),
        ] {
            row(group, kind, json!({}));
            row(group, kind, json!({"spec": {"metrics": [{}], "rules": [{}]}, "status": 3}));
        }
    }
}
