//! Defaults of what controls requests and devices: admission, API priority and fairness, dynamic resource allocation.

use serde_json::{Value, json};

use super::{list_of, make, set, with};

/// How long a webhook may take, in seconds.
const WEBHOOK_SECONDS: i64 = 10;

/// Fills in a MutatingWebhookConfiguration or ValidatingWebhookConfiguration.
pub(super) fn webhooks(object: &mut Value, mutating: bool) {
    for webhook in list_of(object, "webhooks") {
        set(webhook, "failurePolicy", "Fail");
        set(webhook, "timeoutSeconds", WEBHOOK_SECONDS);
        matching(webhook);
        list_of(webhook, "rules").for_each(|rule| set(rule, "scope", "*"));
        with(webhook, "clientConfig", |client| with(client, "service", |service| set(service, "port", 443)));
        if mutating {
            set(webhook, "reinvocationPolicy", "Never");
        }
    }
}

/// Fills in a ValidatingAdmissionPolicy or what binds one.
pub(super) fn policy(object: &mut Value) {
    with(object, "spec", |spec| {
        if spec.get("validations").is_some() || spec.get("matchConstraints").is_some() {
            set(spec, "failurePolicy", "Fail");
        }
        for field in ["matchConstraints", "matchResources"] {
            with(spec, field, |resources| {
                matching(resources);
                for rules in ["resourceRules", "excludeResourceRules"] {
                    list_of(resources, rules).for_each(|rule| set(rule, "scope", "*"));
                }
            });
        }
    });
}

fn matching(target: &mut Value) {
    set(target, "matchPolicy", "Equivalent");
    set(target, "namespaceSelector", json!({}));
    set(target, "objectSelector", json!({}));
}

/// Fills in a FlowSchema.
pub(super) fn flow_schema(object: &mut Value) {
    with(object, "spec", |spec| {
        if spec["matchingPrecedence"].as_i64().unwrap_or(0) == 0 {
            spec["matchingPrecedence"] = 1000.into();
        }
    });
}

/// Fills in a PriorityLevelConfiguration.
pub(super) fn priority_level(object: &mut Value) {
    with(object, "spec", |spec| {
        with(spec, "limited", |limited| {
            set(limited, "nominalConcurrencyShares", 30);
            set(limited, "lendablePercent", 0);
            with(limited, "limitResponse", |response| {
                with(response, "queuing", |queuing| {
                    for (field, default) in [("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)] {
                        if queuing[field].as_i64().unwrap_or(0) == 0 {
                            queuing[field] = default.into();
                        }
                    }
                });
            });
        });
        with(spec, "exempt", |exempt| {
            set(exempt, "nominalConcurrencyShares", 0);
            set(exempt, "lendablePercent", 0);
        });
    });
}

/// Fills in a ResourceClaim's spec.
pub(super) fn claim(spec: &mut Value) {
    with(spec, "devices", |devices| {
        for request in list_of(devices, "requests") {
            with(request, "exactly", device_request);
            list_of(request, "firstAvailable").for_each(device_request);
        }
    });
}

fn device_request(request: &mut Value) {
    set(request, "allocationMode", "ExactCount");
    if request["allocationMode"] == "ExactCount" && request["count"].as_i64().unwrap_or(0) == 0 {
        request["count"] = 1.into();
    }
    list_of(request, "tolerations").for_each(|toleration| set(toleration, "operator", "Equal"));
}

/// Fills in a ResourceClaimTemplate.
pub(super) fn claim_template(object: &mut Value) {
    make(object, "spec", |template| {
        set(template, "metadata", json!({}));
        with(template, "spec", claim);
    });
}

#[cfg(test)]
mod tests {
    use super::super::apply;
    use super::*;

    #[test]
    fn a_webhook_says_what_it_means() {
        let mut object = json!({"webhooks": [{"name": "a.b.c", "rules": [{}], "clientConfig": {"service": {"name": "s"}}}]});
        apply("MutatingWebhookConfiguration", &mut object);
        assert_eq!(
            object["webhooks"][0],
            json!({"name": "a.b.c", "failurePolicy": "Fail", "matchPolicy": "Equivalent", "timeoutSeconds": 10,
                "namespaceSelector": {}, "objectSelector": {}, "reinvocationPolicy": "Never", "rules": [{"scope": "*"}],
                "clientConfig": {"service": {"name": "s", "port": 443}}})
        );
    }

    #[test]
    fn one_device_is_asked_for_where_no_number_is() {
        let mut object = json!({"spec": {"devices": {"requests": [
            {"name": "a", "exactly": {"deviceClassName": "c"}},
            {"name": "b", "exactly": {"deviceClassName": "c", "allocationMode": "All"}},
        ]}}});
        apply("ResourceClaim", &mut object);
        let requests = &object["spec"]["devices"]["requests"];
        assert_eq!(
            requests[0]["exactly"],
            json!({"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1})
        );
        assert!(requests[1]["exactly"].get("count").is_none());
    }
}
