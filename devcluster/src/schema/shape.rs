//! Pruning and defaulting.

use serde_json::{Map, Value};

use super::compile::{Additional, Node};
use crate::apply::builtin;
use crate::apply::typing::Shape;

/// Whether a key belongs to every resource whatever its schema says.
fn is_resource_key(key: &str) -> bool {
    matches!(key, "apiVersion" | "kind" | "metadata")
}

/// Whether `metadata` has a field of this name, in resources and in those embedded in them.
fn is_metadata(field: &str) -> bool {
    matches!(&builtin::object_meta().shape, Shape::Map(map) if map.fields.contains_key(field))
}

/// Drops unknown fields.
pub(super) fn prune(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| is_known(node, key));
            for (key, child) in map.iter_mut() {
                if node.resource && is_resource_key(key) {
                    if let Value::Object(fields) = child {
                        fields.retain(|field, _| is_metadata(field));
                    }
                    continue;
                }
                if let Some(below) = node.child(key) {
                    prune(below, child);
                }
            }
        }
        Value::Array(items) => {
            if let Some(below) = &node.items {
                items.iter_mut().for_each(|item| prune(below, item));
            }
        }
        _ => {}
    }
}

fn is_known(node: &Node, key: &str) -> bool {
    node.preserve_unknown
        || (node.resource && is_resource_key(key))
        || node.properties.contains_key(key)
        || !matches!(node.additional, Additional::Unknown)
}

/// The paths of unknown fields.
pub(super) fn unknown(node: &Node, value: &Value) -> Vec<String> {
    let mut out = Vec::new();
    collect_unknown(node, value, "", &mut out);
    out
}

fn collect_unknown(node: &Node, value: &Value, path: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, child) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                if !is_known(node, key) {
                    out.push(path);
                } else if node.resource && is_resource_key(key) {
                    let fields = child.as_object().into_iter().flatten().map(|(field, _)| field);
                    let unknown = fields.filter(|field| !is_metadata(field));
                    out.extend(unknown.map(|field| format!("{path}.{field}")));
                } else if let Some(below) = node.child(key) {
                    collect_unknown(below, child, &path, out);
                }
            }
        }
        Value::Array(items) => {
            if let Some(below) = &node.items {
                for (at, item) in items.iter().enumerate() {
                    collect_unknown(below, item, &format!("{path}[{at}]"), out);
                }
            }
        }
        _ => {}
    }
}

/// Fills in defaults and drops `null`s of fields that are not nullable.
pub(super) fn default(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => default_map(node, map),
        Value::Array(items) => {
            if let Some(below) = &node.items {
                items.iter_mut().for_each(|item| default(below, item));
            }
        }
        _ => {}
    }
}

fn default_map(node: &Node, map: &mut Map<String, Value>) {
    for (name, below) in &node.properties {
        if node.resource && is_resource_key(name) {
            continue;
        }
        let missing = match map.get(name) {
            None => true,
            Some(Value::Null) => !below.nullable,
            Some(_) => false,
        };
        if !missing {
            continue;
        }
        match &below.default {
            Some(value) => {
                map.insert(name.clone(), value.clone());
            }
            None => {
                map.remove(name);
            }
        }
    }
    if let Additional::Of(below) = &node.additional {
        let undeclared = map.iter_mut().filter(|(key, _)| !node.properties.contains_key(key.as_str()));
        for (_, value) in undeclared.filter(|(_, value)| value.is_null() && !below.nullable) {
            if let Some(filled) = &below.default {
                *value = filled.clone();
            }
        }
        map.retain(|key, value| {
            !value.is_null() || below.nullable || node.properties.contains_key(key.as_str())
        });
    }
    for (key, child) in map.iter_mut() {
        if node.resource && is_resource_key(key) {
            continue;
        }
        if let Some(below) = node.child(key) {
            default(below, child);
        }
    }
}
