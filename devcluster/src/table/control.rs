//! Columns of what controls requests and devices: admission, certificates, API priority and fairness, dynamic resource
//! allocation, addresses of services.

use serde_json::{Value, json};

use super::Column;
use super::age::human_duration;
use super::builtin::{age_column, int_at, list, name_column, or_none, str_at, text};
use super::workloads::integer;
use crate::gvk::GroupKind;

/// The columns of these kinds.
pub(super) fn columns(kind: &GroupKind) -> Option<Vec<Column>> {
    let name = name_column();
    Some(match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "ComponentStatus") => vec![
            name,
            text("Status", |o, _| {
                json!(match str_at(healthy(o), "/status") {
                    "True" => "Healthy",
                    "" => "Unknown",
                    _ => "Unhealthy",
                })
            }),
            text("Message", |o, _| json!(str_at(healthy(o), "/message"))),
            text("Error", |o, _| json!(str_at(healthy(o), "/error"))),
        ],
        (
            "admissionregistration.k8s.io",
            "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration",
        ) => {
            vec![name, integer("Webhooks", |o, _| json!(list(o.pointer("/webhooks")).len())), age_column()]
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => vec![
            name,
            integer("Validations", |o, _| json!(list(o.pointer("/spec/validations")).len())),
            text("ParamKind", |o, _| match o.pointer("/spec/paramKind") {
                Some(kind) => json!(format!("{}/{}", str_at(kind, "/apiVersion"), str_at(kind, "/kind"))),
                None => json!("<unset>"),
            }),
            age_column(),
        ],
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => vec![
            name,
            text("PolicyName", |o, _| json!(str_at(o, "/spec/policyName"))),
            text("ParamRef", |o, _| {
                let (namespace, name) =
                    (str_at(o, "/spec/paramRef/namespace"), str_at(o, "/spec/paramRef/name"));
                json!(match (namespace, name) {
                    (_, "") => "<unset>".to_owned(),
                    ("", name) => format!("*/{name}"),
                    (namespace, name) => format!("{namespace}/{name}"),
                })
            }),
            age_column(),
        ],
        ("certificates.k8s.io", "CertificateSigningRequest") => vec![
            name,
            age_column(),
            text("SignerName", |o, _| or_none(str_at(o, "/spec/signerName"))),
            text("Requestor", |o, _| json!(str_at(o, "/spec/username"))),
            text("RequestedDuration", |o, _| match int_at(o, "/spec/expirationSeconds") {
                0 => json!("<none>"),
                seconds => json!(human_duration(jiff::SignedDuration::from_secs(seconds))),
            }),
            text("Condition", |o, _| json!(signed(o))),
        ],
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => vec![
            name,
            text("PriorityLevel", |o, _| json!(str_at(o, "/spec/priorityLevelConfiguration/name"))),
            text("MatchingPrecedence", |o, _| json!(int_at(o, "/spec/matchingPrecedence"))),
            text("DistinguisherMethod", |o, _| or_none(str_at(o, "/spec/distinguisherMethod/type"))),
            age_column(),
            text("MissingPL", |o, _| {
                let all = list(o.pointer("/status/conditions"));
                let dangling = all.iter().find(|c| c["type"] == "Dangling");
                json!(dangling.map_or("?", |c| str_at(c, "/status")))
            }),
        ],
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => vec![
            name,
            text("Type", |o, _| json!(str_at(o, "/spec/type"))),
            text("NominalConcurrencyShares", |o, _| number(o, "/spec/limited/nominalConcurrencyShares")),
            text("Queues", |o, _| number(o, "/spec/limited/limitResponse/queuing/queues")),
            text("HandSize", |o, _| number(o, "/spec/limited/limitResponse/queuing/handSize")),
            text("QueueLengthLimit", |o, _| {
                number(o, "/spec/limited/limitResponse/queuing/queueLengthLimit")
            }),
            age_column(),
        ],
        ("networking.k8s.io", "IPAddress") => vec![name, text("ParentRef", |o, _| json!(parent(o)))],
        ("networking.k8s.io", "ServiceCIDR") => vec![
            name,
            text("CIDRs", |o, _| {
                let all = list(o.pointer("/spec/cidrs"));
                json!(all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","))
            }),
            age_column(),
        ],
        ("resource.k8s.io", "ResourceClaim") => {
            vec![name, text("State", |o, _| json!(claim_state(o))), age_column()]
        }
        ("resource.k8s.io", "DeviceClass" | "ResourceClaimTemplate") => vec![name, age_column()],
        ("resource.k8s.io", "ResourceSlice") => vec![
            name,
            text("Node", |o, _| json!(str_at(o, "/spec/nodeName"))),
            text("Driver", |o, _| json!(str_at(o, "/spec/driver"))),
            text("Pool", |o, _| json!(str_at(o, "/spec/pool/name"))),
            age_column(),
        ],
        ("storage.k8s.io", "VolumeAttributesClass") => {
            vec![name, text("DriverName", |o, _| json!(str_at(o, "/driverName"))), age_column()]
        }
        _ => return None,
    })
}

fn healthy(component: &Value) -> &Value {
    list(component.pointer("/conditions")).iter().find(|c| c["type"] == "Healthy").unwrap_or(&Value::Null)
}

fn number(object: &Value, pointer: &str) -> Value {
    object.pointer(pointer).filter(|value| !value.is_null()).cloned().unwrap_or_else(|| json!("<none>"))
}

/// How far a CertificateSigningRequest has come.
fn signed(request: &Value) -> String {
    let all = list(request.pointer("/status/conditions"));
    let has = |kind: &str| all.iter().any(|c| c["type"] == kind);
    let mut out = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (_, true) => "Approved",
        _ => "Pending",
    }
    .to_owned();
    if has("Failed") {
        out.push_str(",Failed");
    }
    if !str_at(request, "/status/certificate").is_empty() {
        out.push_str(",Issued");
    }
    out
}

/// What an address belongs to.
fn parent(address: &Value) -> String {
    let Some(parent) = address.pointer("/spec/parentRef") else { return "<none>".to_owned() };
    let (group, resource) = (str_at(parent, "/group"), str_at(parent, "/resource"));
    let mut out = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
    out.make_ascii_lowercase();
    for part in ["/namespace", "/name"].map(|field| str_at(parent, field)).iter().filter(|p| !p.is_empty()) {
        out.push('/');
        out.push_str(part);
    }
    out
}

fn claim_state(claim: &Value) -> String {
    let ending = claim.pointer("/metadata/deletionTimestamp").is_some();
    let allocated = claim.pointer("/status/allocation").is_some();
    let mut states = Vec::new();
    if ending {
        states.push("deleted");
    }
    match allocated {
        true => states.push("allocated"),
        false if !ending => states.push("pending"),
        false => {}
    }
    if allocated && !list(claim.pointer("/status/reservedFor")).is_empty() {
        states.push("reserved");
    }
    states.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_told_in_words() {
        assert_eq!(claim_state(&json!({})), "pending");
        let reserved = json!({"metadata": {"deletionTimestamp": "x"}, "status": {"allocation": {}, "reservedFor": [{}]}});
        assert_eq!(claim_state(&reserved), "deleted,allocated,reserved");
        let issued = json!({"status": {"conditions": [{"type": "Approved"}], "certificate": "x"}});
        assert_eq!(signed(&issued), "Approved,Issued");
        let service = json!({"spec": {"parentRef": {"resource": "services", "namespace": "n", "name": "s"}}});
        assert_eq!(parent(&service), "services/n/s");
    }
}
