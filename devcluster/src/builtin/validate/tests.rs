//! Whole objects, as a person writes them, and what is said of them.

use rstest::rstest;
use serde_json::Value;

use super::{Write, check};
use crate::builtin::defaults;

fn y(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"))
}

/// What is said of an object once it has its defaults.
fn said(kind: &str, new: &Value, old: Option<&Value>) -> Vec<String> {
    let completed = |object: &Value| {
        let mut object = object.clone();
        if object["metadata"]["name"].is_null() {
            object["metadata"]["name"] = "x".into();
        }
        defaults::apply(kind, &mut object);
        object
    };
    let (new, old) = (completed(new), old.map(completed));
    let write = Write { kind, api_version: "v1", new: &new, old: old.as_ref(), subresource: None };
    check(&write).into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
}
