//! Services.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::field::{At, Faults, IMMUTABLE, in_order, is_empty, items, text, texts};
use super::{addresses, meta, names};

/// The longest time for which a client stays with its endpoint: a day.
const MAX_AFFINITY_SECONDS: i64 = 86_400;
const NO_HEALTH_PORT: &str =
    "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";

/// Checks a Service.
pub(super) fn service(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    if let Some(old) = old {
        kept(spec, &old["spec"], faults);
    }
    let kind = spec["type"].as_str().filter(|t| !t.is_empty()).unwrap_or("ClusterIP");
    let headless = is_headless(spec);
    if is_empty(&spec["ports"]) && !headless && kind != "ExternalName" {
        faults.required(&at.child("ports"), "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let why = format!("may not be set to 'None' for {kind} services");
            faults.invalid(&at.child("clusterIPs").index(0), "None", &why);
        }
        "ExternalName" => external(spec, &at, faults),
        _ => {}
    }
    ports(spec, &at.child("ports"), faults);
    meta::labels(&spec["selector"], &at.child("selector"), faults);
    affinity(spec, &at, faults);
    if kind != "ExternalName" {
        cluster_ips(spec, &at, faults);
    }
    for (i, ip) in texts(&spec["externalIPs"]).enumerate() {
        let at = at.child("externalIPs").index(i);
        if addresses::ip(ip, &at, faults) {
            addresses::reachable(ip, &at, faults);
        }
    }
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    faults.one_of(&at.child("type"), &spec["type"], &kinds);
    taken_ports(spec, kind, &at.child("ports"), faults);
    balanced(spec, kind, &at, faults);
    traffic(spec, kind, &at, faults);
}

fn is_headless(spec: &Value) -> bool {
    spec["clusterIP"] == "None" || texts(&spec["clusterIPs"]).eq(["None"])
}

/// The addresses of a Service by the list, or by the one that stands for it.
fn addresses_of(spec: &Value) -> Vec<&str> {
    match texts(&spec["clusterIPs"]).collect::<Vec<_>>() {
        list if !list.is_empty() => list,
        _ => spec["clusterIP"].as_str().filter(|ip| !ip.is_empty()).into_iter().collect(),
    }
}

/// What an update keeps: addresses, their families, the class of the balancer.
fn kept(spec: &Value, before: &Value, faults: &mut Faults) {
    const KEPT: &str = "may not change once set";
    let at = At::root("spec");
    let external = |spec: &Value| spec["type"] == "ExternalName";
    let headless = is_headless(spec) && is_headless(before);
    if !external(spec) && !external(before) && !headless {
        let (new, old) = (addresses_of(spec), addresses_of(before));
        let shown: Value = new.iter().copied().collect();
        match (new.first(), old.first()) {
            (None, Some(_)) => {
                let why = "primary clusterIP can not be unset";
                faults.invalid(&at.child("clusterIPs").index(0), shown, why);
            }
            (Some(new_ip), Some(old_ip)) if new_ip != old_ip => {
                faults.invalid(&at.child("clusterIPs").index(0), shown, KEPT);
            }
            _ => {}
        }
        let families = |spec: &Value| texts(&spec["ipFamilies"]).next().map(str::to_owned);
        if is_headless(spec) == is_headless(before)
            && let (Some(new), Some(old)) = (families(spec), families(before))
            && new != old
        {
            faults.invalid(&at.child("ipFamilies").index(0), spec["ipFamilies"].clone(), KEPT);
        }
    }
    let balanced = |spec: &Value| spec["type"] == "LoadBalancer";
    if balanced(spec) && balanced(before) && spec["loadBalancerClass"] != before["loadBalancerClass"] {
        faults.invalid(&at.child("loadBalancerClass"), spec["loadBalancerClass"].clone(), KEPT);
    }
    let checked = |spec: &Value| balanced(spec) && spec["externalTrafficPolicy"] == "Local";
    if checked(spec)
        && checked(before)
        && !before["healthCheckNodePort"].is_null()
        && spec["healthCheckNodePort"] != before["healthCheckNodePort"]
    {
        faults.forbidden(&at.child("healthCheckNodePort"), IMMUTABLE);
    }
}

fn external(spec: &Value, at: &At, faults: &mut Faults) {
    const WHY: &str = "may not be set for ExternalName services";
    if !addresses_of(spec).is_empty() {
        faults.forbidden(&at.child("clusterIPs"), WHY);
    }
    for field in ["ipFamilies", "ipFamilyPolicy"] {
        if !spec[field].is_null() {
            faults.forbidden(&at.child(field), WHY);
        }
    }
    let name = text(&spec["externalName"]);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        faults.required(&at.child("externalName"), "");
    } else {
        faults.invalid_for(&at.child("externalName"), name, names::dns_subdomain(name));
    }
}

fn ports(spec: &Value, at: &At, faults: &mut Faults) {
    let several = items(&spec["ports"]).count() > 1;
    let mut seen = BTreeSet::new();
    for (i, port) in items(&spec["ports"]).enumerate() {
        let (at, name) = (at.index(i), text(&port["name"]));
        if name.is_empty() {
            if several {
                faults.required(&at.child("name"), "");
            }
        } else {
            faults.invalid_for(&at.child("name"), name, names::dns_label(name));
            if !seen.insert(name) {
                faults.duplicate(&at.child("name"), name);
            }
        }
        let number = port["port"].as_i64().unwrap_or(0);
        faults.in_range(&at.child("port"), &number.into(), 1, 65_535);
        faults.one_of(&at.child("protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
        // A port without a target is its own.
        let target = &port["targetPort"];
        let target = if target.is_null() || *target == 0 { &port["port"] } else { target };
        let own = number.into();
        addresses::port(if target.is_null() { &own } else { target }, &at.child("targetPort"), faults);
        if let Some(protocol) = port["appProtocol"].as_str() {
            faults.invalid_for(&at.child("appProtocol"), protocol, names::qualified_name(protocol));
        }
    }
}

fn affinity(spec: &Value, at: &At, faults: &mut Faults) {
    faults.one_of(&at.child("sessionAffinity"), &spec["sessionAffinity"], &["ClientIP", "None"]);
    let (config, at) = (&spec["sessionAffinityConfig"], at.child("sessionAffinityConfig"));
    match text(&spec["sessionAffinity"]) {
        "ClientIP" => {
            let seconds = &config["clientIP"]["timeoutSeconds"];
            if seconds.as_i64().is_some_and(|s| s <= 0 || s > MAX_AFFINITY_SECONDS) {
                let at = at.child("clientIP").child("timeoutSeconds");
                let why = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
                faults.invalid(&at, seconds.clone(), &why);
            }
        }
        "None" if !config.is_null() => {
            faults.forbidden(&at, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

fn cluster_ips(spec: &Value, at: &At, faults: &mut Faults) {
    let list_at = at.child("clusterIPs");
    let (one, list) = (text(&spec["clusterIP"]), &spec["clusterIPs"]);
    let all: Vec<&str> = addresses_of(spec);
    if !one.is_empty() && all.first() != Some(&one) {
        faults.invalid(&list_at, list.clone(), "first value must match `clusterIP`");
    }
    if one.is_empty() && !is_empty(list) {
        faults.invalid(&list_at, list.clone(), "must be empty when `clusterIP` is not specified");
    }
    let mut seen = BTreeSet::new();
    for (i, family) in texts(&spec["ipFamilies"]).enumerate() {
        let at = at.child("ipFamilies").index(i);
        if !["IPv4", "IPv6"].contains(&family) {
            faults.not_supported(&at, family, &["IPv4", "IPv6"]);
        }
        if !seen.insert(family) {
            faults.duplicate(&at, family);
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    faults.one_of(&at.child("ipFamilyPolicy"), &spec["ipFamilyPolicy"], &policies);
    let mut bad = false;
    for (i, ip) in all.iter().enumerate() {
        if i == 0 && *ip == "None" {
            if all.len() > 1 {
                bad = true;
                faults.invalid(&list_at, list.clone(), "'None' must be the first and only value");
            }
            continue;
        }
        bad |= !addresses::ip(ip, &list_at.index(i), faults);
    }
    if all.len() > 2 {
        faults.invalid(&list_at, list.clone(), "may only hold up to 2 values");
    }
    if bad {
        return;
    }
    let version = |ip: &str| addresses::address(ip).map(|a| if a.is_ipv4() { "IPv4" } else { "IPv6" });
    if all.len() == 2 && version(all[0]) == version(all[1]) {
        let why = "may specify no more than one IP for each IP family";
        faults.invalid(&list_at, list.clone(), why);
    }
    for (i, (ip, family)) in all.iter().zip(texts(&spec["ipFamilies"])).enumerate() {
        if version(ip).is_some_and(|v| v != family) {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            faults.invalid(&list_at.index(i), *ip, &why);
        }
    }
}

/// Ports of nodes are of Services that have them, and no port is there twice.
fn taken_ports(spec: &Value, kind: &str, at: &At, faults: &mut Faults) {
    let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
    let node = |port: &Value| port["nodePort"].as_i64().filter(|n| *n != 0);
    if kind == "ClusterIP" {
        for (i, _) in items(&spec["ports"]).enumerate().filter(|(_, port)| node(port).is_some()) {
            let why = "may not be used when `type` is 'ClusterIP'";
            faults.forbidden(&at.index(i).child("nodePort"), why);
        }
    }
    let mut seen = BTreeSet::new();
    for (i, port) in items(&spec["ports"]).enumerate() {
        if let Some(number) = node(port)
            && !seen.insert((protocol(port), number))
        {
            faults.duplicate(&at.index(i).child("nodePort"), number);
        }
    }
    let mut seen = BTreeSet::new();
    for (i, port) in items(&spec["ports"]).enumerate() {
        let number = port["port"].as_i64().unwrap_or(0);
        if !seen.insert((protocol(port), number)) {
            let key = json!({"Name": "", "Protocol": protocol(port), "AppProtocol": null, "Port": number,
                "TargetPort": 0, "NodePort": 0});
            let order = ["Name", "Protocol", "AppProtocol", "Port", "TargetPort", "NodePort"];
            faults.duplicate_as(&at.index(i), &in_order(&key, &order));
        }
    }
}

/// What only balanced Services have.
fn balanced(spec: &Value, kind: &str, at: &At, faults: &mut Faults) {
    const WHY: &str = "may only be used when `type` is 'LoadBalancer'";
    let balanced = kind == "LoadBalancer";
    if !is_empty(&spec["loadBalancerSourceRanges"]) {
        let at = at.child("LoadBalancerSourceRanges");
        if !balanced {
            faults.forbidden(&at, WHY);
        }
        for (i, range) in texts(&spec["loadBalancerSourceRanges"]).enumerate() {
            addresses::cidr(range.trim(), &at.index(i), faults);
        }
    }
    if !balanced && !spec["allocateLoadBalancerNodePorts"].is_null() {
        faults.forbidden(&at.child("allocateLoadBalancerNodePorts"), WHY);
    }
    if let Some(class) = spec["loadBalancerClass"].as_str() {
        let at = at.child("loadBalancerClass");
        match balanced {
            true => faults.invalid_for(&at, class, names::qualified_name(class)),
            false => faults.forbidden(&at, WHY),
        }
    }
}

fn traffic(spec: &Value, kind: &str, at: &At, faults: &mut Faults) {
    let reached = matches!(kind, "LoadBalancer" | "NodePort")
        || (kind == "ClusterIP" && !is_empty(&spec["externalIPs"]));
    let policy = text(&spec["externalTrafficPolicy"]);
    if reached {
        let all = ["Cluster", "Local"];
        faults.one_of(&at.child("externalTrafficPolicy"), &spec["externalTrafficPolicy"], &all);
    } else if !policy.is_empty() {
        let why = "may only be set for externally-accessible services";
        faults.invalid(&at.child("externalTrafficPolicy"), policy, why);
    }
    let health = spec["healthCheckNodePort"].as_i64().unwrap_or(0);
    let health_at = at.child("healthCheckNodePort");
    if kind == "LoadBalancer" && policy == "Local" {
        if health != 0 {
            faults.in_range(&health_at, &health.into(), 1, 65_535);
        }
    } else if health != 0 {
        faults.invalid(&health_at, health, NO_HEALTH_PORT);
    }
    let all = ["Cluster", "Local"];
    faults.one_of(&at.child("internalTrafficPolicy"), &spec["internalTrafficPolicy"], &all);
    if let Some(given) = spec["trafficDistribution"].as_str() {
        let all = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        if !all.contains(&given) {
            faults.not_supported(&at.child("trafficDistribution"), given, &all);
        }
    }
}
