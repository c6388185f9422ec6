//! Columns of the built-in kinds, after `k8s.io/kubernetes/pkg/printers/internalversion`.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, Source, since};
use crate::gvk::GroupKind;

pub(super) type Compute = fn(&Value, Timestamp) -> Value;

pub(super) fn column(name: &str, kind: &str, priority: i64, compute: Compute) -> Column {
    Column {
        name: name.to_owned(),
        kind: kind.to_owned(),
        format: String::new(),
        description: String::new(),
        priority,
        source: Source::Computed(compute),
    }
}

pub(super) fn text(name: &str, compute: Compute) -> Column {
    column(name, "string", 0, compute)
}

pub(super) fn wide(name: &str, compute: Compute) -> Column {
    column(name, "string", 1, compute)
}

/// The column that every table starts with.
pub(super) fn name_column() -> Column {
    Column {
        format: "name".into(),
        description: "Name must be unique within a namespace.".into(),
        ..text("Name", |o, _| json!(str_at(o, "/metadata/name")))
    }
}

pub(super) fn age_column() -> Column {
    text("Age", |o, now| json!(since(o.pointer("/metadata/creationTimestamp"), now)))
}

/// The columns of a built-in kind; name and age for any other.
pub(super) fn columns(kind: &GroupKind) -> Vec<Column> {
    if let Some(columns) = super::workloads::columns(kind).or_else(|| super::more::columns(kind)) {
        return columns;
    }
    let middle = match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => {
            return vec![
                name_column(),
                text("Ready", |o, _| json!(pod(o).ready)),
                text("Status", |o, _| json!(pod(o).status)),
                text("Restarts", |o, now| json!(restarts(o, now))),
                age_column(),
                wide("IP", |o, _| or_none(str_at(o, "/status/podIP"))),
                wide("Node", |o, _| or_none(str_at(o, "/spec/nodeName"))),
                wide("Nominated Node", |o, _| or_none(str_at(o, "/status/nominatedNodeName"))),
                wide("Readiness Gates", |o, _| readiness_gates(o)),
            ];
        }
        ("", "Node") => {
            return vec![
                name_column(),
                text("Status", |o, _| json!(node_status(o))),
                text("Roles", |o, _| node_roles(o)),
                age_column(),
                text("Version", |o, _| json!(str_at(o, "/status/nodeInfo/kubeletVersion"))),
                wide("Internal-IP", |o, _| node_address(o, "InternalIP")),
                wide("External-IP", |o, _| node_address(o, "ExternalIP")),
                wide("OS-Image", |o, _| or_unknown(str_at(o, "/status/nodeInfo/osImage"))),
                wide("Kernel-Version", |o, _| or_unknown(str_at(o, "/status/nodeInfo/kernelVersion"))),
                wide("Container-Runtime", |o, _| {
                    or_unknown(str_at(o, "/status/nodeInfo/containerRuntimeVersion"))
                }),
            ];
        }
        ("" | "events.k8s.io", "Event") => {
            return vec![
                text("Last Seen", |o, now| json!(event_last_seen(o, now))),
                text("Type", |o, _| json!(str_at(o, "/type"))),
                text("Reason", |o, _| json!(str_at(o, "/reason"))),
                text("Object", |o, _| json!(event_object(o))),
                wide("Subobject", |o, _| {
                    json!(str_at2(o, "/involvedObject/fieldPath", "/regarding/fieldPath"))
                }),
                wide("Source", |o, _| json!(event_source(o))),
                text("Message", |o, _| json!(str_at2(o, "/message", "/note").trim())),
                wide("First Seen", |o, now| json!(event_first_seen(o, now))),
                wide("Count", |o, _| event_count(o)),
                Column { format: "name".into(), ..wide("Name", |o, _| json!(str_at(o, "/metadata/name"))) },
            ];
        }
        ("", "Service") => {
            return vec![
                name_column(),
                text("Type", |o, _| json!(service_type(o))),
                text("Cluster-IP", |o, _| or_none(str_at(o, "/spec/clusterIP"))),
                text("External-IP", |o, _| service_external(o)),
                text("Port(s)", |o, _| service_ports(o)),
                age_column(),
                wide("Selector", |o, _| labels(o.pointer("/spec/selector"))),
            ];
        }
        ("apps", "Deployment") => {
            return vec![
                name_column(),
                text("Ready", |o, _| {
                    json!(format!("{}/{}", int_at(o, "/status/readyReplicas"), int_at(o, "/spec/replicas")))
                }),
                text("Up-to-date", |o, _| json!(int_at(o, "/status/updatedReplicas"))),
                text("Available", |o, _| json!(int_at(o, "/status/availableReplicas"))),
                age_column(),
                wide("Containers", |o, _| containers(o, "name")),
                wide("Images", |o, _| containers(o, "image")),
                wide("Selector", |o, _| labels(o.pointer("/spec/selector/matchLabels"))),
            ];
        }
        ("apps", "ReplicaSet") => {
            return vec![
                name_column(),
                column("Desired", "integer", 0, |o, _| json!(int_at(o, "/spec/replicas"))),
                column("Current", "integer", 0, |o, _| json!(int_at(o, "/status/replicas"))),
                column("Ready", "integer", 0, |o, _| json!(int_at(o, "/status/readyReplicas"))),
                age_column(),
                wide("Containers", |o, _| containers(o, "name")),
                wide("Images", |o, _| containers(o, "image")),
                wide("Selector", |o, _| labels(o.pointer("/spec/selector/matchLabels"))),
            ];
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            return vec![name_column(), created_at()];
        }
        ("rbac.authorization.k8s.io", "ClusterRole" | "Role") => return vec![name_column(), created_at()],
        ("", "Namespace") => vec![text("Status", |o, _| json!(str_at(o, "/status/phase")))],
        ("", "ConfigMap") => {
            vec![column("Data", "string", 0, |o, _| json!(count(o.get("data")) + count(o.get("binaryData"))))]
        }
        ("", "Secret") => vec![
            text("Type", |o, _| json!(str_at(o, "/type"))),
            column("Data", "string", 0, |o, _| json!(count(o.get("data")))),
        ],
        ("", "Endpoints") => vec![text("Endpoints", |o, _| endpoints(o))],
        ("discovery.k8s.io", "EndpointSlice") => vec![
            text("AddressType", |o, _| json!(str_at(o, "/addressType"))),
            text("Ports", |o, _| slice_ports(o)),
            text("Endpoints", |o, _| slice_endpoints(o)),
        ],
        ("coordination.k8s.io", "Lease") => {
            vec![text("Holder", |o, _| json!(str_at(o, "/spec/holderIdentity")))]
        }
        _ => Vec::new(),
    };
    let mut out = vec![name_column()];
    out.extend(middle);
    out.push(age_column());
    out
}

/// Why a pod's row is marked as one that will not change again, so that clients may leave it out.
pub(super) fn completed(object: &Value) -> Option<(&str, &'static str)> {
    let is_pod = str_at(object, "/kind") == "Pod" && str_at(object, "/apiVersion") == "v1";
    match str_at(object, "/status/phase") {
        phase @ "Succeeded" if is_pod => Some((phase, "The pod has completed successfully.")),
        phase @ "Failed" if is_pod => Some((phase, "The pod failed.")),
        _ => None,
    }
}

pub(super) fn created_at() -> Column {
    column("Created At", "date", 0, |o, _| json!(str_at(o, "/metadata/creationTimestamp")))
}

pub(super) fn str_at<'v>(object: &'v Value, pointer: &str) -> &'v str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn str_at2<'v>(object: &'v Value, first: &str, second: &str) -> &'v str {
    match str_at(object, first) {
        "" => str_at(object, second),
        found => found,
    }
}

pub(super) fn int_at(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

pub(super) fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn count(map: Option<&Value>) -> usize {
    map.and_then(Value::as_object).map_or(0, serde_json::Map::len)
}

pub(super) fn or_none(text: &str) -> Value {
    json!(if text.is_empty() { "<none>" } else { text })
}

fn or_unknown(text: &str) -> Value {
    json!(if text.is_empty() { "<unknown>" } else { text })
}

pub(super) fn labels(map: Option<&Value>) -> Value {
    let map = map.and_then(Value::as_object);
    let terms: Vec<String> =
        map.into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    or_none(&terms.join(","))
}

pub(super) fn containers(object: &Value, field: &str) -> Value {
    let names: Vec<&str> = list(object.pointer("/spec/template/spec/containers"))
        .iter()
        .filter_map(|c| c.get(field).and_then(Value::as_str))
        .collect();
    json!(names.join(","))
}

/// A pod's computed cells.
struct Pod {
    ready: String,
    status: String,
}

fn condition<'v>(object: &'v Value, kind: &str) -> Option<&'v Value> {
    list(object.pointer("/status/conditions")).iter().find(|c| str_at(c, "/type") == kind)
}

pub(super) fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|c| str_at(c, "/status") == "True")
}

fn ended(state: &Value) -> Option<String> {
    let terminated = state.get("terminated")?;
    Some(match (str_at(terminated, "/reason"), int_at(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", int_at(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    })
}

fn pod(object: &Value) -> Pod {
    let total = list(object.pointer("/spec/containers")).len();
    let mut status = str_at2(object, "/status/reason", "/status/phase").to_owned();
    if let Some(scheduled) = condition(object, "PodScheduled")
        && str_at(scheduled, "/reason") == "SchedulingGated"
    {
        status = "SchedulingGated".into();
    }
    let init = list(object.pointer("/status/initContainerStatuses"));
    let mut initializing = false;
    for (at, container) in init.iter().enumerate() {
        let state = container.get("state").unwrap_or(&Value::Null);
        if state.get("terminated").is_some_and(|t| int_at(t, "/exitCode") == 0) {
            continue;
        }
        let waiting = str_at(state, "/waiting/reason");
        status = match ended(state) {
            Some(reason) => format!("Init:{reason}"),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{at}/{}", list(object.pointer("/spec/initContainers")).len()),
        };
        initializing = true;
        break;
    }
    let statuses = list(object.pointer("/status/containerStatuses"));
    let ready = statuses
        .iter()
        .filter(|c| c.get("ready") == Some(&Value::Bool(true)) && c.pointer("/state/running").is_some())
        .count();
    if !initializing || is_true(object, "Initialized") {
        let mut running = false;
        for container in statuses.iter().rev() {
            let state = container.get("state").unwrap_or(&Value::Null);
            let waiting = str_at(state, "/waiting/reason");
            if !waiting.is_empty() {
                status = waiting.to_owned();
            } else if let Some(reason) = ended(state) {
                status = reason;
            } else if container.get("ready") == Some(&Value::Bool(true)) && state.get("running").is_some() {
                running = true;
            }
        }
        if status == "Completed" && running {
            status = if is_true(object, "Ready") { "Running" } else { "NotReady" }.into();
        }
    }
    let phase = str_at(object, "/status/phase");
    if object.pointer("/metadata/deletionTimestamp").is_some() {
        if str_at(object, "/status/reason") == "NodeLost" {
            status = "Unknown".into();
        } else if !matches!(phase, "Failed" | "Succeeded") {
            status = "Terminating".into();
        }
    }
    Pod { ready: format!("{ready}/{total}"), status }
}

fn restarts(object: &Value, now: Timestamp) -> String {
    let statuses = list(object.pointer("/status/containerStatuses"));
    let total: i64 = statuses.iter().map(|c| int_at(c, "/restartCount")).sum();
    let last = statuses
        .iter()
        .filter_map(|c| c.pointer("/lastState/terminated/finishedAt"))
        .max_by_key(|v| v.as_str());
    match last {
        Some(last) if total > 0 => format!("{total} ({} ago)", since(Some(last), now)),
        _ => total.to_string(),
    }
}

fn readiness_gates(object: &Value) -> Value {
    let gates = list(object.pointer("/spec/readinessGates"));
    if gates.is_empty() {
        return json!("<none>");
    }
    let met = gates.iter().filter(|gate| is_true(object, str_at(gate, "/conditionType"))).count();
    json!(format!("{met}/{}", gates.len()))
}

fn node_status(object: &Value) -> String {
    let mut status = match condition(object, "Ready").map(|c| str_at(c, "/status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if object.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn node_roles(object: &Value) -> Value {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    let mut roles: Vec<String> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role.to_owned()),
            _ if key == "kubernetes.io/role" => value.as_str().filter(|v| !v.is_empty()).map(str::to_owned),
            _ => None,
        })
        .collect();
    roles.sort();
    or_none(&roles.join(","))
}

fn node_address(object: &Value, kind: &str) -> Value {
    let found = list(object.pointer("/status/addresses")).iter().find(|a| str_at(a, "/type") == kind);
    or_none(found.map_or("", |a| str_at(a, "/address")))
}

fn event_last_seen(object: &Value, now: Timestamp) -> String {
    let pointers = ["/series/lastObservedTime", "/lastTimestamp", "/deprecatedLastTimestamp"];
    let found = pointers.iter().find_map(|p| object.pointer(p).filter(|v| !v.is_null()));
    match found {
        Some(time) => since(Some(time), now),
        None => event_first_seen(object, now),
    }
}

fn event_first_seen(object: &Value, now: Timestamp) -> String {
    let pointers = ["/firstTimestamp", "/deprecatedFirstTimestamp", "/eventTime"];
    since(pointers.iter().find_map(|p| object.pointer(p).filter(|v| !v.is_null())), now)
}

fn event_object(object: &Value) -> String {
    let reference = object.get("involvedObject").or_else(|| object.get("regarding")).unwrap_or(&Value::Null);
    match str_at(reference, "/name") {
        "" => str_at(reference, "/kind").to_lowercase(),
        name => format!("{}/{name}", str_at(reference, "/kind").to_lowercase()),
    }
}

fn event_source(object: &Value) -> String {
    let component = match str_at2(object, "/source/component", "/deprecatedSource/component") {
        "" => str_at2(object, "/reportingComponent", "/reportingController"),
        found => found,
    };
    match str_at2(object, "/source/host", "/deprecatedSource/host") {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}

fn event_count(object: &Value) -> Value {
    let found =
        ["/series/count", "/count", "/deprecatedCount"].iter().map(|p| int_at(object, p)).find(|n| *n > 0);
    json!(found.unwrap_or(1))
}

fn service_type(object: &Value) -> &str {
    match str_at(object, "/spec/type") {
        "" => "ClusterIP",
        found => found,
    }
}

fn service_external(object: &Value) -> Value {
    let external: Vec<&str> =
        list(object.pointer("/spec/externalIPs")).iter().filter_map(Value::as_str).collect();
    if service_type(object) == "ExternalName" {
        return json!(str_at(object, "/spec/externalName"));
    }
    let ingress: Vec<&str> = list(object.pointer("/status/loadBalancer/ingress"))
        .iter()
        .map(|i| str_at2(i, "/ip", "/hostname"))
        .chain(external.iter().copied())
        .collect();
    match (service_type(object), ingress.is_empty()) {
        ("LoadBalancer", true) => json!("<pending>"),
        ("LoadBalancer", false) => json!(ingress.join(",")),
        _ => or_none(&external.join(",")),
    }
}

fn service_ports(object: &Value) -> Value {
    let ports: Vec<String> = list(object.pointer("/spec/ports"))
        .iter()
        .map(|port| {
            let protocol = match str_at(port, "/protocol") {
                "" => "TCP",
                found => found,
            };
            match int_at(port, "/nodePort") {
                0 => format!("{}/{protocol}", int_at(port, "/port")),
                node => format!("{}:{node}/{protocol}", int_at(port, "/port")),
            }
        })
        .collect();
    or_none(&ports.join(","))
}

/// The first three of many, as kubectl shows long lists.
fn abridge(items: &[String]) -> Value {
    let shown = items.iter().take(3).cloned().collect::<Vec<_>>().join(",");
    match items.len() {
        0 => json!("<none>"),
        n if n > 3 => json!(format!("{shown} + {} more...", n - 3)),
        _ => json!(shown),
    }
}

fn endpoints(object: &Value) -> Value {
    let mut out = Vec::new();
    for subset in list(object.get("subsets")) {
        for address in list(subset.get("addresses")) {
            let ip = str_at(address, "/ip");
            let ports = list(subset.get("ports"));
            if ports.is_empty() {
                out.push(ip.to_owned());
            }
            out.extend(ports.iter().map(|port| format!("{ip}:{}", int_at(port, "/port"))));
        }
    }
    abridge(&out)
}

fn slice_ports(object: &Value) -> Value {
    let ports = list(object.get("ports"));
    if ports.is_empty() {
        return json!("<unset>");
    }
    let ports: Vec<String> = ports
        .iter()
        .map(|p| p.get("port").and_then(Value::as_i64).map_or_else(|| "*".to_owned(), |n| n.to_string()))
        .collect();
    abridge(&ports)
}

fn slice_endpoints(object: &Value) -> Value {
    let endpoints = list(object.get("endpoints"));
    if endpoints.is_empty() {
        return json!("<unset>");
    }
    let addresses: Vec<String> = endpoints
        .iter()
        .flat_map(|e| list(e.get("addresses")))
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    abridge(&addresses)
}
