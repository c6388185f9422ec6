//! Ingress, IngressClass, NetworkPolicy, EndpointSlice, Endpoints.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::field::{At, Faults, IMMUTABLE, is_empty, items, same, text, texts};
use super::{addresses, jobs, meta, names, selectors};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
/// The longest name of a controller.
const MAX_CONTROLLER: usize = 250;
/// The most endpoints of a slice, addresses of an endpoint and ports.
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;

/// Checks an Ingress.
pub(super) fn ingress(new: &Value, updated: bool, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    let (rules, default) = (&spec["rules"], &spec["defaultBackend"]);
    if is_empty(rules) && default.is_null() {
        faults.invalid(&at, rules.clone(), "either `defaultBackend` or `rules` must be specified");
    }
    if default.is_object() {
        backend(default, &at.child("defaultBackend"), faults);
    }
    for (i, rule) in items(rules).enumerate() {
        let at = at.child("rules").index(i);
        let host = text(&rule["host"]);
        if !host.is_empty() {
            if addresses::address(host).is_some() {
                faults.invalid(&at.child("host"), host, "must be a DNS name, not an IP address");
            }
            faults.invalid_for(&at.child("host"), host, host_name(host));
        }
        let http = &rule["http"];
        if !http.is_object() {
            continue;
        }
        let at = at.child("http").child("paths");
        if is_empty(&http["paths"]) {
            faults.required(&at, "");
        }
        items(&http["paths"]).enumerate().for_each(|(p, one)| path(one, &at.index(p), faults));
    }
    for (i, tls) in items(&spec["tls"]).enumerate() {
        let at = at.child("tls").index(i);
        for (h, host) in texts(&tls["hosts"]).enumerate() {
            faults.invalid_for(&at.child("hosts").index(h), host, host_name(host));
        }
        let secret = text(&tls["secretName"]);
        if !secret.is_empty() {
            faults.invalid_for(&at.child("secretName"), secret, names::dns_subdomain(secret));
        }
    }
    if let Some(class) = spec["ingressClassName"].as_str() {
        faults.invalid_for(&at.child("ingressClassName"), class, names::dns_subdomain(class));
        const ANNOTATION: &str = "kubernetes.io/ingress.class";
        let annotated = new["metadata"]["annotations"][ANNOTATION].as_str();
        if let Some(other) = annotated.filter(|other| !updated && *other != class) {
            let why = "must match `ingressClassName` when both are specified";
            faults.invalid(&At::root("annotations").child(ANNOTATION), other, why);
        }
    }
}

fn host_name(host: &str) -> Vec<String> {
    if host.contains('*') { names::wildcard_subdomain(host) } else { names::dns_subdomain(host) }
}

fn path(one: &Value, at: &At, faults: &mut Faults) {
    let (path, path_at) = (text(&one["path"]), at.child("path"));
    let Some(kind) = one["pathType"].as_str() else {
        return faults.required(&at.child("pathType"), "pathType must be specified");
    };
    match kind {
        "Exact" | "Prefix" => {
            if !path.starts_with('/') {
                faults.invalid(&path_at, path, "must be an absolute path");
            }
            for wrong in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|w| path.contains(**w)) {
                faults.invalid(&path_at, path, &format!("must not contain '{wrong}'"));
            }
            for wrong in ["/..", "/."].iter().filter(|w| path.ends_with(**w)) {
                faults.invalid(&path_at, path, &format!("cannot end with '{wrong}'"));
            }
        }
        "ImplementationSpecific" => {
            if !path.is_empty() && !path.starts_with('/') {
                faults.invalid(&path_at, path, "must be an absolute path");
            }
        }
        other => {
            let kinds = ["Exact", "ImplementationSpecific", "Prefix"];
            faults.not_supported(&at.child("pathType"), other, &kinds);
        }
    }
    backend(&one["backend"], &at.child("backend"), faults);
}

fn backend(backend: &Value, at: &At, faults: &mut Faults) {
    let (service, resource) = (&backend["service"], &backend["resource"]);
    match (service.is_object(), resource.is_object()) {
        (true, true) => faults.invalid(at, "", "cannot set both resource and service backends"),
        (false, false) => faults.invalid(at, "", "resource or service backend is required"),
        (false, true) => reference(resource, &at.child("resource"), faults),
        (true, false) => {
            let (own, name) = (at.child("service"), text(&service["name"]));
            if name.is_empty() {
                faults.required(&own.child("name"), "");
            } else {
                faults.invalid_for(&own.child("name"), name, names::dns_1035_label(name));
            }
            let (name, number) = (text(&service["port"]["name"]), &service["port"]["number"]);
            match (!name.is_empty(), number.as_i64().is_some_and(|n| n != 0)) {
                (true, true) => faults.invalid(at, "", "cannot set both port name & port number"),
                (true, false) => {
                    let at = own.child("port").child("name");
                    faults.invalid_for(&at, name, names::port_name(name));
                }
                (false, true) => faults.in_range(&own.child("port").child("number"), number, 1, 65_535),
                (false, false) => faults.required(at, "port name or number is required"),
            }
        }
    }
}

fn reference(reference: &Value, at: &At, faults: &mut Faults) {
    if let Some(group) = reference["apiGroup"].as_str() {
        faults.invalid_for(&at.child("apiGroup"), group, names::dns_subdomain(group));
    }
    for field in ["kind", "name"] {
        let value = text(&reference[field]);
        if value.is_empty() {
            faults.required(&at.child(field), "");
        } else {
            faults.invalid_for(&at.child(field), value, names::path_segment(value));
        }
    }
}

/// Checks an IngressClass.
pub(super) fn ingress_class(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    if let Some(old) = old {
        faults.unchanged(&at, spec, &old["spec"], &["controller"]);
    }
    let controller = text(&spec["controller"]);
    if controller.len() > MAX_CONTROLLER {
        faults.too_long(&at.child("controller"), MAX_CONTROLLER);
    }
    jobs::prefixed_path(controller, &at.child("controller"), faults);
    let parameters = &spec["parameters"];
    if !parameters.is_object() {
        return;
    }
    let at = at.child("parameters");
    reference(parameters, &at, faults);
    match text(&parameters["scope"]) {
        "" | "Cluster" => {}
        "Namespace" => match parameters["namespace"].as_str() {
            None => faults.required(&at.child("namespace"), "`parameters.scope` is set to 'Namespace'"),
            Some(name) => faults.invalid_for(&at.child("namespace"), name, names::dns_label(name)),
        },
        other => faults.not_supported(&at.child("scope"), other, &["Cluster", "Namespace"]),
    }
}

/// Checks a NetworkPolicy.
pub(super) fn policy(new: &Value, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    selectors::labels(&spec["podSelector"], &at.child("podSelector"), faults);
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in items(&spec[rules]).enumerate() {
            let at = at.child(rules).index(i);
            for (p, port) in items(&rule["ports"]).enumerate() {
                policy_port(port, &at.child("ports").index(p), faults);
            }
            for (p, one) in items(&rule[peers]).enumerate() {
                peer(one, &at.child(peers).index(p), faults);
            }
        }
    }
    let types: Vec<&str> = texts(&spec["policyTypes"]).collect();
    if types.len() > 2 {
        let why = "may not specify more than two policyTypes";
        return faults.invalid(&at.child("policyTypes"), spec["policyTypes"].clone(), why);
    }
    for (i, kind) in types.iter().enumerate() {
        if !["Ingress", "Egress"].contains(kind) {
            faults.not_supported(&at.child("policyTypes").index(i), *kind, &["Ingress", "Egress"]);
        }
    }
}

fn policy_port(port: &Value, at: &At, faults: &mut Faults) {
    faults.one_of(&at.child("protocol"), &port["protocol"], &["TCP", "UDP", "SCTP"]);
    let (end, end_at) = (&port["endPort"], at.child("endPort"));
    match &port["port"] {
        Value::Null => {
            if !end.is_null() {
                faults.invalid(&end_at, end.clone(), "may not be specified when `port` is not specified");
            }
        }
        Value::String(name) => {
            if !end.is_null() {
                faults.invalid(&end_at, end.clone(), "may not be specified when `port` is non-numeric");
            }
            faults.invalid_for(&at.child("port"), name, names::port_name(name));
        }
        number => {
            faults.in_range(&at.child("port"), number, 1, 65_535);
            if end.as_i64() < number.as_i64() && !end.is_null() {
                faults.invalid(&end_at, number.clone(), "must be greater than or equal to `port`");
            }
            faults.in_range(&end_at, end, 1, 65_535);
        }
    }
}

fn peer(peer: &Value, at: &At, faults: &mut Faults) {
    let mut kinds = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if peer[field].is_object() {
            kinds += 1;
            selectors::labels(&peer[field], &at.child(field), faults);
        }
    }
    let block = &peer["ipBlock"];
    if block.is_object() {
        kinds += 1;
        ip_block(block, &at.child("ipBlock"), faults);
    }
    if kinds == 0 {
        faults.required(at, "must specify a peer");
    } else if kinds > 1 && block.is_object() {
        faults.forbidden(at, "may not specify both ipBlock and another peer");
    }
}

fn ip_block(block: &Value, at: &At, faults: &mut Faults) {
    let cidr = text(&block["cidr"]);
    if cidr.is_empty() {
        return faults.required(&at.child("cidr"), "");
    }
    addresses::cidr(cidr, &at.child("cidr"), faults);
    let Some((network, bits)) = addresses::range(cidr) else { return };
    for (i, except) in texts(&block["except"]).enumerate() {
        let at = at.child("except").index(i);
        addresses::cidr(except, &at, faults);
        if let Some((other, more)) = addresses::range(except)
            && (more <= bits || !within(network, bits, other))
        {
            faults.invalid(&at, except, "must be a strict subset of `cidr`");
        }
    }
}

fn within(network: IpAddr, bits: u8, other: IpAddr) -> bool {
    let shared = |a: u128, b: u128, width: u8| bits == 0 || (a ^ b) >> (width - bits) == 0;
    match (network, other) {
        (IpAddr::V4(a), IpAddr::V4(b)) => shared(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => shared(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

/// Checks Endpoints.
pub(super) fn endpoints(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    if old.is_some_and(|old| same(&old["subsets"], &new["subsets"])) {
        return;
    }
    for (i, subset) in items(&new["subsets"]).enumerate() {
        let at = At::root("subsets").index(i);
        if is_empty(&subset["addresses"]) && is_empty(&subset["notReadyAddresses"]) {
            faults.required(&at, "must specify `addresses` or `notReadyAddresses`");
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (a, address) in items(&subset[list]).enumerate() {
                let (at, ip) = (at.child(list).index(a), text(&address["ip"]));
                let good = addresses::ip(ip, &at.child("ip"), faults);
                let host = text(&address["hostname"]);
                if !host.is_empty() {
                    faults.invalid_for(&at.child("hostname"), host, names::dns_label(host));
                }
                if let Some(node) = address["nodeName"].as_str() {
                    faults.invalid_for(&at.child("nodeName"), node, names::dns_subdomain(node));
                }
                if good {
                    addresses::reachable(ip, &at.child("ip"), faults);
                } else {
                    faults.invalid(&at.child("ip"), ip, "must be a valid IP address");
                }
            }
        }
        let several = items(&subset["ports"]).count() > 1;
        for (p, port) in items(&subset["ports"]).enumerate() {
            let (at, name) = (at.child("ports").index(p), text(&port["name"]));
            if several && name.is_empty() {
                faults.required(&at.child("name"), "");
            } else if !name.is_empty() {
                faults.invalid_for(&at.child("name"), name, names::dns_label(name));
            }
            let number = port["port"].as_i64().unwrap_or(0);
            faults.in_range(&at.child("port"), &number.into(), 1, 65_535);
            faults.one_of(&at.child("protocol"), &port["protocol"], PROTOCOLS);
            if let Some(protocol) = port["appProtocol"].as_str() {
                faults.invalid_for(&at.child("appProtocol"), protocol, names::qualified_name(protocol));
            }
        }
    }
}

/// Checks an EndpointSlice.
pub(super) fn slice(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    let kind = text(&new["addressType"]);
    match kind {
        "" => faults.required(&At::root("addressType"), ""),
        "IPv4" | "IPv6" | "FQDN" => {}
        other => faults.not_supported(&At::root("addressType"), other, &["FQDN", "IPv4", "IPv6"]),
    }
    slice_ports(&new["ports"], &At::root("ports"), faults);
    if old.is_none_or(|old| !same(&old["endpoints"], &new["endpoints"])) {
        slice_endpoints(&new["endpoints"], kind, &At::root("endpoints"), faults);
    }
    if let Some(old) = old
        && old["addressType"] != new["addressType"]
    {
        faults.invalid(&At::root("addressType"), kind, IMMUTABLE);
    }
}

fn slice_ports(ports: &Value, at: &At, faults: &mut Faults) {
    let count = items(ports).count();
    if count > MAX_PORTS {
        return faults.too_many(at, count, MAX_PORTS);
    }
    let mut seen = BTreeSet::new();
    for (i, port) in items(ports).enumerate() {
        let (at, name) = (at.index(i), text(&port["name"]));
        if !name.is_empty() {
            faults.invalid_for(&at.child("name"), name, names::dns_label(name));
        }
        if !seen.insert(name) {
            faults.duplicate(&at.child("name"), name);
        }
        faults.one_of(&at.child("protocol"), &port["protocol"], PROTOCOLS);
        if let Some(protocol) = port["appProtocol"].as_str() {
            faults.invalid_for(&at.child("appProtocol"), protocol, names::qualified_name(protocol));
        }
    }
}

fn slice_endpoints(endpoints: &Value, kind: &str, at: &At, faults: &mut Faults) {
    let count = items(endpoints).count();
    if count > MAX_ENDPOINTS {
        return faults.too_many(at, count, MAX_ENDPOINTS);
    }
    for (i, endpoint) in items(endpoints).enumerate() {
        let own = at.index(i);
        let list_at = own.child("addresses");
        let all: Vec<&str> = texts(&endpoint["addresses"]).collect();
        if all.is_empty() {
            faults.required(&list_at, "must contain at least 1 address");
        } else if all.len() > MAX_ADDRESSES {
            faults.too_many(&list_at, all.len(), MAX_ADDRESSES);
        }
        for (a, address) in all.iter().enumerate() {
            let at = list_at.index(a);
            match kind {
                "IPv4" | "IPv6" => of_family(kind, address, &list_at, &at, faults),
                "FQDN" => {
                    let name = address.strip_suffix('.').unwrap_or(address);
                    let wrong = names::dns_subdomain(name);
                    if address.is_empty() {
                        faults.required(&at, "");
                    } else if !wrong.is_empty() {
                        faults.invalid(&at, *address, &wrong.join(","));
                    } else if !name.contains('.') {
                        let why = "should be a domain with at least two segments separated by dots";
                        faults.invalid(&at, *address, why);
                    }
                }
                _ => {}
            }
        }
        if let Some(node) = endpoint["nodeName"].as_str() {
            faults.invalid_for(&own.child("nodeName"), node, names::dns_subdomain(node));
        }
        let topology = &endpoint["deprecatedTopology"];
        meta::labels(topology, &own.child("deprecatedTopology"), faults);
        if let Some(host) = endpoint["hostname"].as_str() {
            faults.invalid_for(&own.child("hostname"), host, names::dns_label(host));
        }
        let mut zones = BTreeSet::new();
        for (z, zone) in items(&endpoint["hints"]["forZones"]).enumerate() {
            let (at, name) =
                (own.child("hints").child("forZones").index(z).child("name"), text(&zone["name"]));
            if !zones.insert(name) {
                faults.duplicate(&at, name);
            }
            faults.invalid_for(&at, name, names::label_value(name));
        }
    }
}

/// An endpoint's address is one, of the family that its slice is of.
fn of_family(kind: &str, address: &str, list_at: &At, at: &At, faults: &mut Faults) {
    if !addresses::ip(address, at, faults) {
        return;
    }
    let v4 = addresses::address(address).is_some_and(|ip| ip.is_ipv4());
    if v4 != (kind == "IPv4") {
        faults.invalid(list_at, address, &format!("must be an {kind} address"));
    }
    addresses::reachable(address, at, faults);
}
