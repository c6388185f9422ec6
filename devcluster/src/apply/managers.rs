//! `metadata.managedFields`: who owns which fields.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::fieldset::Set;

/// Whether a manager's fields come from applies or from other writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// What tells one entry from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ManagerId {
    pub(crate) manager: String,
    pub(crate) operation: Operation,
    /// Empty for applies: a manager has one apply entry whatever version it applies in.
    pub(crate) api_version: String,
    pub(crate) subresource: String,
}

impl ManagerId {
    pub(crate) fn new(
        manager: &str,
        operation: Operation,
        api_version: &str,
        subresource: Option<&str>,
    ) -> Self {
        Self {
            manager: manager.to_owned(),
            operation,
            api_version: if operation == Operation::Apply { String::new() } else { api_version.to_owned() },
            subresource: subresource.unwrap_or_default().to_owned(),
        }
    }

    /// The manager as conflict messages name it.
    pub(crate) fn print(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }
}

/// One manager's fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) set: Set,
    pub(crate) api_version: String,
    /// RFC 3339, as stored.
    pub(crate) time: Option<String>,
}

/// Every manager of an object.
pub(crate) type Managers = BTreeMap<ManagerId, Entry>;

/// Reads an object's `managedFields`; malformed entries are dropped.
pub(crate) fn decode(object: &Value) -> Managers {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries.into_iter().flatten().filter_map(decode_entry).collect()
}

fn decode_entry(entry: &Value) -> Option<(ManagerId, Entry)> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str);
    let operation = match text("operation")? {
        "Apply" => Operation::Apply,
        "Update" => Operation::Update,
        _ => return None,
    };
    let api_version = text("apiVersion").unwrap_or_default();
    let id = ManagerId::new(text("manager").unwrap_or_default(), operation, api_version, text("subresource"));
    let set = Set::from_fields_v1(entry.get("fieldsV1")?);
    Some((id, Entry { set, api_version: api_version.to_owned(), time: text("time").map(str::to_owned) }))
}

/// Writes `managers` into the object's metadata, in the API server's order: applies first, then by time and name.
pub(crate) fn encode(object: &mut Value, managers: &Managers) {
    let Some(metadata) = object
        .as_object_mut()
        .map(|o| o.entry("metadata").or_insert_with(|| Value::Object(Map::new())))
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    if managers.is_empty() {
        metadata.remove("managedFields");
        return;
    }
    let mut sorted: Vec<(&ManagerId, &Entry)> = managers.iter().collect();
    sorted.sort_by(|(a, ae), (b, be)| {
        (a.operation, &ae.time, &a.manager, &ae.api_version, &a.subresource).cmp(&(
            b.operation,
            &be.time,
            &b.manager,
            &be.api_version,
            &b.subresource,
        ))
    });
    let entries = sorted.into_iter().map(|(id, entry)| {
        let mut out = json!({
            "manager": id.manager,
            "operation": id.operation.name(),
            "apiVersion": entry.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": entry.set.to_fields_v1(),
        });
        if let Some(time) = &entry.time {
            out["time"] = json!(time);
        }
        if !id.subresource.is_empty() {
            out["subresource"] = json!(id.subresource);
        }
        out
    });
    metadata.insert("managedFields".into(), Value::Array(entries.collect()));
}

/// A time as metadata carries it: RFC 3339, whole seconds.
pub(crate) fn print_time(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Fields of metadata that nobody owns.
pub(crate) fn unowned() -> &'static Set {
    static SET: std::sync::LazyLock<Set> = std::sync::LazyLock::new(|| {
        let mut set = Set::default();
        for name in ["apiVersion", "kind", "metadata"] {
            set.insert(&[format!("f:{name}")]);
        }
        for name in [
            "name",
            "namespace",
            "creationTimestamp",
            "selfLink",
            "uid",
            "clusterName",
            "generation",
            "managedFields",
            "resourceVersion",
        ] {
            set.insert(&["f:metadata".to_owned(), format!("f:{name}")]);
        }
        set
    });
    &SET
}
