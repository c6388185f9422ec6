//! Selectors of labels and of nodes.

use serde_json::Value;

use super::field::{At, Faults, in_order, is_empty, items, text, texts};
use super::{meta, names};
use crate::selector::Labels;

/// The fields of a label selector in the order in which a server writes them.
pub(super) const ORDER: &[&str] = &["matchLabels", "matchExpressions", "key", "operator", "values"];

/// Checks a label selector, if there is one.
pub(super) fn labels(selector: &Value, at: &At, faults: &mut Faults) {
    meta::labels(&selector["matchLabels"], &at.child("matchLabels"), faults);
    for (i, term) in items(&selector["matchExpressions"]).enumerate() {
        let at = at.child("matchExpressions").index(i);
        match text(&term["operator"]) {
            "In" | "NotIn" if is_empty(&term["values"]) => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                faults.required(&at.child("values"), why);
            }
            "Exists" | "DoesNotExist" if !is_empty(&term["values"]) => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                faults.forbidden(&at.child("values"), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => faults.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
        let key = text(&term["key"]);
        faults.invalid_for(&at.child("key"), key, names::qualified_name(key));
        for (v, value) in texts(&term["values"]).enumerate() {
            faults.invalid_for(&at.child("values").index(v), value, names::label_value(value));
        }
    }
}

/// Whether a selector selects everything, for which it must be there.
pub(super) fn selects_all(selector: &Value) -> bool {
    is_empty(&selector["matchLabels"]) && is_empty(&selector["matchExpressions"])
}

/// Whether a selector can be read at all; an absent one can, and selects nothing.
pub(super) fn readable(selector: &Value) -> bool {
    let mut faults = Faults::default();
    labels(selector, &At::root("selector"), &mut faults);
    faults.count() == 0
}

/// Whether a selector selects objects with these labels.
pub(super) fn selects(selector: &Value, template: &Value) -> bool {
    selector.is_object() && Labels::from_label_selector(selector).is_ok_and(|labels| labels.matches(template))
}

/// A selector as a server shows it.
pub(super) fn shown(selector: &Value) -> String {
    in_order(selector, ORDER)
}

/// Checks a node selector.
pub(super) fn nodes(selector: &Value, at: &At, faults: &mut Faults) {
    let at = at.child("nodeSelectorTerms");
    if is_empty(&selector["nodeSelectorTerms"]) {
        faults.required(&at, "must have at least one node selector term");
    }
    for (i, term) in items(&selector["nodeSelectorTerms"]).enumerate() {
        node_term(term, &at.index(i), true, faults);
    }
}

/// Checks a term of a node selector; of preferred ones values are not looked at.
pub(super) fn node_term(term: &Value, at: &At, values_too: bool, faults: &mut Faults) {
    for (i, wanted) in items(&term["matchExpressions"]).enumerate() {
        let at = at.child("matchExpressions").index(i);
        let values = items(&wanted["values"]).count();
        match text(&wanted["operator"]) {
            "In" | "NotIn" if values == 0 => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                faults.required(&at.child("values"), why);
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                faults.forbidden(&at.child("values"), why);
            }
            "Gt" | "Lt" if values != 1 => {
                let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                faults.required(&at.child("values"), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => faults.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
        let key = text(&wanted["key"]);
        faults.invalid_for(&at.child("key"), key, names::qualified_name(key));
        for (v, value) in texts(&wanted["values"]).enumerate().filter(|_| values_too) {
            faults.invalid_for(&at.child("values").index(v), value, names::label_value(value));
        }
    }
    for (i, wanted) in items(&term["matchFields"]).enumerate() {
        let at = at.child("matchFields").index(i);
        match text(&wanted["operator"]) {
            "In" | "NotIn" => {
                if items(&wanted["values"]).count() != 1 {
                    let why =
                        "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                    faults.required(&at.child("values"), why);
                }
            }
            other => faults.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
        match text(&wanted["key"]) {
            "metadata.name" => {
                for (v, value) in texts(&wanted["values"]).enumerate() {
                    faults.invalid_for(&at.child("values").index(v), value, names::dns_subdomain(value));
                }
            }
            other => faults.invalid(&at.child("key"), other, "not a valid field selector key"),
        }
    }
}
