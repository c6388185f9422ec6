//! Value validation, with the API server's wording (`k8s.io/kube-openapi/pkg/validation`).

use std::collections::HashSet;

use serde_json::Value;

use super::compile::{Bound, Kind, List, Node};
use super::error::{ErrorKind, FieldError};
use super::formats;

/// Every violation of `node` by `value`, except those of CEL rules.
pub(super) fn validate(node: &Node, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut out = Vec::new();
    check(node, value, old, "", &mut out);
    out
}

/// The name of a value's JSON type.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() && n.as_f64().is_none_or(|f| f.fract() != 0.0) => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn has_type(kind: Kind, value: &Value) -> bool {
    match (kind, value) {
        (Kind::Integer, Value::Number(_)) => type_name(value) == "integer",
        (Kind::Number, Value::Number(_)) => true,
        (kind, value) => kind.name() == type_name(value),
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The item of `old` that `item` continues, told by list-map keys; items of other lists have no past.
pub(super) fn old_item<'v>(list: &List, item: &Value, old: Option<&'v Value>) -> Option<&'v Value> {
    let List::Map(keys) = list else { return None };
    let same = |other: &&Value| keys.iter().all(|key| other.get(key) == item.get(key));
    let mut found = old?.as_array()?.iter().filter(same);
    found.next().filter(|_| found.next().is_none())
}

fn check(node: &Node, value: &Value, old: Option<&Value>, path: &str, out: &mut Vec<FieldError>) {
    // Ratcheting: what an update does not touch is not checked again.
    if old == Some(value) {
        return;
    }
    let invalid = |value: &Value, text: String| {
        FieldError::new(path, ErrorKind::Invalid, Some(value.clone()), format!("{path} in body {text}"))
    };
    if value.is_null() && node.nullable {
        return;
    }
    let wanted = match node.kind {
        _ if node.int_or_string => {
            (!value.is_string() && type_name(value) != "integer").then(|| "integer,string".to_owned())
        }
        Some(kind) => (!has_type(kind, value)).then(|| kind.name().to_owned()),
        None => None,
    };
    if let Some(wanted) = wanted {
        let found = type_name(value);
        let message = format!("{path} in body must be of type {wanted}: \"{found}\"");
        out.push(FieldError::new(path, ErrorKind::TypeInvalid, Some(found.into()), message));
        check_branches(node, value, path, out);
        return;
    }
    if let Some(allowed) = &node.allowed
        && !allowed.contains(value)
    {
        let names: Vec<String> = allowed
            .iter()
            .map(|v| match v {
                Value::String(s) => format!("{s:?}"),
                other => format!("{:?}", other.to_string()),
            })
            .collect();
        let message = format!("supported values: {}", names.join(", "));
        out.push(FieldError::new(path, ErrorKind::NotSupported, Some(value.clone()), message));
    }
    match value {
        Value::String(text) => check_string(node, text, value, path, out),
        Value::Number(_) => check_number(node, value, path, out),
        Value::Array(items) => {
            check_count(&node.item_count, items.len(), "items", path, value, out);
            if node.unique_items && has_duplicates(items) {
                out.push(invalid(value, "shouldn't contain duplicates".into()));
            }
            check_list_type(&node.list, items, path, out);
            if let Some(below) = &node.items {
                for (at, item) in items.iter().enumerate() {
                    let old = old_item(&node.list, item, old);
                    check(below, item, old, &format!("{path}[{at}]"), out);
                }
            }
        }
        Value::Object(map) => {
            check_count(&node.property_count, map.len(), "properties", path, value, out);
            if node.resource && !path.is_empty() {
                for name in ["apiVersion", "kind"].into_iter().filter(|name| !map.contains_key(*name)) {
                    out.push(FieldError::new(join(path, name), ErrorKind::Required, None, ""));
                }
            }
            for (key, child) in map {
                if node.resource && key == "metadata" {
                    continue;
                }
                // Undeclared fields were pruned, or are to be preserved.
                if let Some(below) = node.child(key) {
                    check(below, child, old.and_then(|o| o.get(key)), &join(path, key), out);
                }
            }
            for name in node.required.iter().filter(|name| !map.contains_key(*name)) {
                out.push(FieldError::new(join(path, name), ErrorKind::Required, None, ""));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
    check_branches(node, value, path, out);
}

fn check_string(node: &Node, text: &str, value: &Value, path: &str, out: &mut Vec<FieldError>) {
    let length = text.chars().count() as u64;
    if let Some(max) = node.length.max.filter(|max| length > *max) {
        let message = format!("may not be more than {max} bytes");
        out.push(FieldError::new(path, ErrorKind::TooLong, Some(value.clone()), message));
    }
    let mut invalid = |text: String| {
        out.push(FieldError::new(
            path,
            ErrorKind::Invalid,
            Some(value.clone()),
            format!("{path} in body {text}"),
        ));
    };
    if let Some(min) = node.length.min.filter(|min| length < *min) {
        invalid(format!("should be at least {min} chars long"));
    }
    if let Some((source, regex)) = &node.pattern
        && !regex.is_match(text)
    {
        invalid(format!("should match '{source}'"));
    }
    if let Some(format) = &node.format
        && !formats::check(format, text)
    {
        let message = format!("{path} in body must be of type {format}: {text:?}");
        out.push(FieldError::new(path, ErrorKind::TypeInvalid, Some(value.clone()), message));
    }
}

fn check_number(node: &Node, value: &Value, path: &str, out: &mut Vec<FieldError>) {
    let Some(number) = value.as_f64() else { return };
    let mut invalid = |text: String| {
        out.push(FieldError::new(
            path,
            ErrorKind::Invalid,
            Some(value.clone()),
            format!("{path} in body {text}"),
        ));
    };
    let breaks = |bound: &Bound, order: std::cmp::Ordering| {
        let limit = bound.limit.as_f64().unwrap_or(f64::NAN);
        number.partial_cmp(&limit).is_some_and(|o| o == order || (bound.exclusive && o.is_eq()))
    };
    if let Some(bound) = node.maximum.as_ref().filter(|b| breaks(b, std::cmp::Ordering::Greater)) {
        let words = if bound.exclusive { "less than" } else { "less than or equal to" };
        invalid(format!("should be {words} {}", bound.limit));
    }
    if let Some(bound) = node.minimum.as_ref().filter(|b| breaks(b, std::cmp::Ordering::Less)) {
        let words = if bound.exclusive { "greater than" } else { "greater than or equal to" };
        invalid(format!("should be {words} {}", bound.limit));
    }
    if let Some(factor) = node.multiple_of.filter(|f| *f > 0.0) {
        let ratio = number / factor;
        if (ratio - ratio.round()).abs() > 1e-9 * ratio.abs().max(1.0) {
            invalid(format!("should be a multiple of {factor}"));
        }
    }
    let fits = match node.format.as_deref() {
        Some("int32") => value.as_i64().is_none_or(|n| i32::try_from(n).is_ok()),
        Some("uint32") => value.as_i64().is_none_or(|n| u32::try_from(n).is_ok()),
        Some("uint64") => value.as_i64().is_none_or(|n| n >= 0),
        Some("int64") => node.kind != Some(Kind::Integer) || value.as_i64().is_some() || value.is_f64(),
        _ => true,
    };
    if !fits {
        let format = node.format.as_deref().unwrap_or_default();
        invalid(format!("must be of type {format}: \"{value}\""));
    }
}

fn check_count(
    range: &super::compile::Range,
    count: usize,
    noun: &str,
    path: &str,
    value: &Value,
    out: &mut Vec<FieldError>,
) {
    if let Some(max) = range.max.filter(|max| count as u64 > *max) {
        let message = format!("must have at most {max} items");
        out.push(FieldError::new(path, ErrorKind::TooMany, Some(count.into()), message));
    }
    if let Some(min) = range.min.filter(|min| (count as u64) < *min) {
        let message = format!("{path} in body should have at least {min} {noun}");
        out.push(FieldError::new(path, ErrorKind::Invalid, Some(value.clone()), message));
    }
}

fn has_duplicates(items: &[Value]) -> bool {
    let mut seen = HashSet::new();
    items.iter().any(|item| !seen.insert(item.to_string()))
}

fn check_list_type(list: &List, items: &[Value], path: &str, out: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (at, item) in items.iter().enumerate() {
        let key = match list {
            List::Atomic => return,
            List::Set => item.clone(),
            List::Map(keys) => keys
                .iter()
                .filter_map(|key| item.get(key).map(|value| (key.clone(), value.clone())))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        };
        if !seen.insert(key.to_string()) {
            out.push(FieldError::new(format!("{path}[{at}]"), ErrorKind::Duplicate, Some(key), ""));
        }
    }
}

fn check_branches(node: &Node, value: &Value, path: &str, out: &mut Vec<FieldError>) {
    let run = |branch: &Node| {
        let mut errors = Vec::new();
        check(branch, value, None, path, &mut errors);
        errors
    };
    // These errors carry no field name, so the API server reports them against the root.
    let failed = |text: String| {
        FieldError::new("", ErrorKind::Invalid, Some("".into()), format!("{path:?} must {text}"))
    };
    let closest =
        |results: Vec<Vec<FieldError>>| results.into_iter().min_by_key(Vec::len).unwrap_or_default();
    for branch in &node.all_of {
        let errors = run(branch);
        if !errors.is_empty() {
            out.push(failed("validate all the schemas (allOf)".into()));
            out.extend(errors);
        }
    }
    if !node.any_of.is_empty() {
        let results: Vec<_> = node.any_of.iter().map(run).collect();
        if results.iter().all(|errors| !errors.is_empty()) {
            out.push(failed("validate at least one schema (anyOf)".into()));
            out.extend(closest(results));
        }
    }
    if !node.one_of.is_empty() {
        let results: Vec<_> = node.one_of.iter().map(run).collect();
        match results.iter().filter(|errors| errors.is_empty()).count() {
            1 => {}
            0 => {
                out.push(failed("validate one and only one schema (oneOf). Found none valid".into()));
                out.extend(closest(results));
            }
            n => out.push(failed(format!(
                "validate one and only one schema (oneOf). Found {n} valid alternatives"
            ))),
        }
    }
    if let Some(not) = &node.not
        && run(not).is_empty()
    {
        out.push(failed("not validate the schema (not)".into()));
    }
}
