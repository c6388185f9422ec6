//! Where in an object something is wrong, and what: paths and the list of faults that checks add to.

use std::fmt;

use serde_json::{Map, Value};

use crate::server::status::Cause;

pub(super) use crate::builtin::in_order;

/// What a field says that must stay as it is.
pub(super) const IMMUTABLE: &str = "field is immutable";
/// What a server says of a number below zero.
pub(super) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
/// What a server says of a number that must be one or more.
pub(super) const POSITIVE: &str = "must be greater than zero";

/// The path of a field: `spec.containers[0].name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct At(String);

impl At {
    /// A field of the object itself.
    pub fn root(field: &str) -> Self {
        Self(field.to_owned())
    }

    /// A field of the object here; of more than one name the later ones are deeper.
    pub fn child(&self, field: &str) -> Self {
        Self(format!("{}.{field}", self.0))
    }

    /// An item of the list here.
    pub fn index(&self, at: usize) -> Self {
        Self(format!("{}[{at}]", self.0))
    }

    /// A value of the map here.
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&At> for String {
    fn from(at: &At) -> Self {
        at.0.clone()
    }
}

/// All that is wrong with an object, in the order in which it was found.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Cause>);

impl Faults {
    /// What was found.
    pub fn into_causes(self) -> Vec<Cause> {
        self.0
    }

    /// How much was found so far.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// A missing field.
    pub fn required(&mut self, at: &At, detail: &str) {
        self.0.push(Cause::required(at, detail));
    }

    /// A wrong value.
    pub fn invalid(&mut self, at: &At, value: impl Into<Value>, detail: &str) {
        self.0.push(Cause::invalid(at, &value.into(), detail));
    }

    /// A wrong value that a server does not show.
    pub fn wrong(&mut self, at: &At, detail: &str) {
        self.push("FieldValueInvalid", at, format!("Invalid value: {detail}"));
    }

    /// A wrong value, a fault for each reason.
    pub fn invalid_for(&mut self, at: &At, value: &str, reasons: impl IntoIterator<Item = String>) {
        for reason in reasons {
            self.invalid(at, value, &reason);
        }
    }

    /// A wrong value that a server shows otherwise than as its JSON with sorted keys.
    pub fn invalid_as(&mut self, at: &At, shown: &str, detail: &str) {
        let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        self.push("FieldValueInvalid", at, format!("Invalid value: {shown}{detail}"));
    }

    /// A value outside an enumeration.
    pub fn not_supported(&mut self, at: &At, value: impl Into<Value>, supported: &[&str]) {
        self.0.push(Cause::not_supported(at, &value.into(), supported));
    }

    /// A value outside an enumeration that a server shows otherwise than as its JSON with sorted keys.
    pub fn not_supported_as(&mut self, at: &At, shown: &str, supported: &[&str]) {
        let list = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
        let message = format!("Unsupported value: {shown}: supported values: {list}");
        self.push("FieldValueNotSupported", at, message);
    }

    /// A field that may not be set or changed.
    pub fn forbidden(&mut self, at: &At, detail: &str) {
        self.0.push(Cause::forbidden(at, detail));
    }

    /// A value that is there before.
    pub fn duplicate(&mut self, at: &At, value: impl Into<Value>) {
        self.push("FieldValueDuplicate", at, format!("Duplicate value: {}", value.into()));
    }

    /// A duplicate that a server shows otherwise than as its JSON with sorted keys.
    pub fn duplicate_as(&mut self, at: &At, shown: &str) {
        self.push("FieldValueDuplicate", at, format!("Duplicate value: {shown}"));
    }

    /// A reference to what is not there.
    pub fn not_found(&mut self, at: &At, value: impl Into<Value>, detail: &str) {
        let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        self.push("FieldValueNotFound", at, format!("Not found: {}{detail}", value.into()));
    }

    /// A value of more bytes than a field takes.
    pub fn too_long(&mut self, at: &At, most_bytes: usize) {
        self.0.push(Cause::too_long(at, most_bytes));
    }

    /// A list of more items than a field takes.
    pub fn too_many(&mut self, at: &At, found: usize, most: usize) {
        let items = if most == 1 { "item" } else { "items" };
        self.push("FieldValueTooMany", at, format!("Too many: {found}: must have at most {most} {items}"));
    }

    fn push(&mut self, reason: &str, at: &At, message: String) {
        self.0.push(Cause { reason: reason.into(), message, field: at.into() });
    }

    /// A number that may not be below zero, if it is there.
    pub fn not_negative(&mut self, at: &At, value: &Value) {
        if value.as_i64().is_some_and(|n| n < 0) {
            self.invalid(at, value.clone(), NOT_NEGATIVE);
        }
    }

    /// A number that must be one or more, if it is there.
    pub fn positive(&mut self, at: &At, value: &Value) {
        if value.as_i64().is_some_and(|n| n <= 0) {
            self.invalid(at, value.clone(), POSITIVE);
        }
    }

    /// A number within bounds, if it is there.
    pub fn in_range(&mut self, at: &At, value: &Value, least: i64, most: i64) {
        if value.as_i64().is_some_and(|n| n < least || n > most) {
            self.invalid(at, value.clone(), &format!("must be between {least} and {most}, inclusive"));
        }
    }

    /// One of an enumeration; a field that is absent or empty has its default by now.
    pub fn one_of(&mut self, at: &At, value: &Value, supported: &[&str]) {
        if value.as_str().is_some_and(|v| !v.is_empty() && !supported.contains(&v)) {
            self.not_supported(at, value.clone(), supported);
        }
    }

    /// A text that must be there.
    pub fn some_text(&mut self, at: &At, value: &Value) {
        if text(value).is_empty() {
            self.required(at, "");
        }
    }

    /// Fields of the object at `at` that must stay as they are.
    pub fn unchanged(&mut self, at: &At, new: &Value, old: &Value, fields: &[&str]) {
        for field in fields {
            if !same(&new[*field], &old[*field]) {
                self.invalid(&at.child(field), new[*field].clone(), IMMUTABLE);
            }
        }
    }
}

/// A text; empty where there is none.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The items of a list; none where there is none.
pub(super) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The texts of a list.
pub(super) fn texts(value: &Value) -> impl Iterator<Item = &str> {
    items(value).filter_map(Value::as_str)
}

/// The entries of a map; none where there is none.
pub(super) fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Whether a list or map is absent or holds nothing.
pub(super) fn is_empty(value: &Value) -> bool {
    value.as_array().is_none_or(Vec::is_empty) && value.as_object().is_none_or(Map::is_empty)
}

/// Whether two values are the same to a server, to which an empty list or map is as good as none.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => x.keys().chain(y.keys()).all(|key| same(&a[key], &b[key])),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        (Value::Null, Value::Array(list)) | (Value::Array(list), Value::Null) => list.is_empty(),
        _ => a == b,
    }
}

/// A value as a server's inner type writes it: the given fields in order, each with its name in Go (`Go=json` where that is
/// not the capitalised one), `null` where it is absent. Fields within fields are capitalised.
pub(super) fn inner(value: &Value, fields: &[&str]) -> String {
    let parts = fields.iter().map(|field| {
        let (go, json) = match field.split_once('=') {
            Some((go, json)) => (go.to_owned(), json),
            None => (capitalised(field), *field),
        };
        format!("{}:{}", Value::from(go), capitalised_within(&value[json]))
    });
    format!("{{{}}}", parts.collect::<Vec<_>>().join(","))
}

fn capitalised(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn capitalised_within(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (capitalised(key), capitalised_within(value))).collect()
        }
        Value::Array(list) => list.iter().map(capitalised_within).collect(),
        scalar => scalar.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_read_as_a_server_writes_them() {
        let selector =
            json!({"matchExpressions": [{"key": "a", "operator": "In"}], "matchLabels": {"b": "c"}});
        assert_eq!(
            in_order(&selector, &["matchLabels", "matchExpressions"]),
            r#"{"matchLabels":{"b":"c"},"matchExpressions":[{"key":"a","operator":"In"}]}"#
        );
        let strategy = json!({"type": "Wrong"});
        assert_eq!(inner(&strategy, &["type", "rollingUpdate"]), r#"{"Type":"Wrong","RollingUpdate":null}"#);
        assert_eq!(inner(&json!({"apiGroup": "g"}), &["APIGroup=apiGroup"]), r#"{"APIGroup":"g"}"#);
    }

    #[test]
    fn faults_name_the_field_and_the_value() {
        let mut faults = Faults::default();
        let at = At::root("spec").child("ports").index(1);
        faults.duplicate(&at.child("name"), "a");
        faults.not_found(&at.key("x"), "v", "");
        faults.too_many(&at, 5, 1);
        faults.not_negative(&at, &json!(-1));
        faults.in_range(&at, &json!(0), 1, 5);
        let said: Vec<String> =
            faults.into_causes().into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        assert_eq!(
            said,
            [
                r#"spec.ports[1].name: Duplicate value: "a""#,
                r#"spec.ports[1][x]: Not found: "v""#,
                "spec.ports[1]: Too many: 5: must have at most 1 item",
                "spec.ports[1]: Invalid value: -1: must be greater than or equal to 0",
                "spec.ports[1]: Invalid value: 0: must be between 1 and 5, inclusive",
            ]
        );
    }

    #[test]
    fn what_is_empty_is_as_good_as_absent() {
        assert!(same(&json!({"a": [], "b": 1}), &json!({"b": 1})));
        assert!(!same(&json!({"a": [1]}), &json!({})));
    }
}
