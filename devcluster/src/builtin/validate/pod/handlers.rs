//! Probes and hooks of a container.

use serde_json::Value;

use super::super::field::{At, Faults, is_empty, items, text};
use super::super::{addresses, names};

const KINDS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

/// Checks the hooks and probes of a container.
pub(super) fn all(container: &Value, spec: &Value, at: &At, faults: &mut Faults) {
    let grace = spec["terminationGracePeriodSeconds"].as_i64();
    for hook in ["postStart", "preStop"] {
        let one = &container["lifecycle"][hook];
        if one.is_object() {
            handler(one, grace, &at.child("lifecycle").child(hook), faults);
        }
    }
    if let Some(signal) = container["lifecycle"]["stopSignal"].as_str() {
        let at = at.child("lifecycle").child("stopSignal");
        match text(&spec["os"]["name"]) {
            "" => faults.forbidden(&at, "may not be set for containers with empty `spec.os.name`"),
            "windows" if !["SIGKILL", "SIGTERM"].contains(&signal) => {
                faults.not_supported(&at, signal, &["SIGKILL", "SIGTERM"]);
            }
            _ => {}
        }
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let one = &container[kind];
        if !one.is_object() {
            continue;
        }
        let at = at.child(kind);
        probe(one, grace, &at, faults);
        if kind == "readinessProbe" {
            if !one["terminationGracePeriodSeconds"].is_null() {
                let value = one["terminationGracePeriodSeconds"].clone();
                let why = "must not be set for readinessProbes";
                faults.invalid(&at.child("terminationGracePeriodSeconds"), value, why);
            }
        } else if one["successThreshold"].as_i64().is_some_and(|n| n != 1 && n != 0) {
            faults.invalid(&at.child("successThreshold"), one["successThreshold"].clone(), "must be 1");
        }
    }
}

fn probe(probe: &Value, grace: Option<i64>, at: &At, faults: &mut Faults) {
    handler(probe, grace, at, faults);
    for field in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        faults.not_negative(&at.child(field), &probe[field]);
    }
    let grace = &probe["terminationGracePeriodSeconds"];
    if grace.as_i64().is_some_and(|n| n <= 0) {
        let why = "must be greater than 0";
        faults.invalid(&at.child("terminationGracePeriodSeconds"), grace.clone(), why);
    }
}

fn handler(handler: &Value, grace: Option<i64>, at: &At, faults: &mut Faults) {
    let mut given = KINDS.iter().filter(|kind| handler[**kind].is_object());
    let Some(first) = given.next() else {
        return faults.required(at, "must specify a handler type");
    };
    let (one, own) = (&handler[*first], at.child(first));
    match *first {
        "exec" => {
            if is_empty(&one["command"]) {
                faults.required(&own.child("command"), "");
            }
        }
        "httpGet" => {
            addresses::port(&one["port"], &own.child("port"), faults);
            faults.one_of(&own.child("scheme"), &one["scheme"], &["HTTP", "HTTPS"]);
            for header in items(&one["httpHeaders"]) {
                let name = text(&header["name"]);
                faults.invalid_for(&own.child("httpHeaders"), name, names::header(name));
            }
        }
        "sleep" => {
            let seconds = one["seconds"].as_i64().unwrap_or(0);
            if let Some(most) = grace
                && !(0..=most).contains(&seconds)
            {
                let why =
                    format!("must be non-negative and less than terminationGracePeriodSeconds ({most})");
                faults.invalid(&own, seconds, &why);
            }
        }
        _ => addresses::port(&one["port"], &own.child("port"), faults),
    }
    for other in given {
        faults.forbidden(&at.child(other), "may not specify more than 1 handler type");
    }
}
