//! The two faces of an event: `v1` and `events.k8s.io/v1` share one store, as they do in Kubernetes. Stored as `v1`.

use serde_json::{Map, Value};

/// Fields of `v1` and what `events.k8s.io/v1` calls them.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// `v1` → `events.k8s.io/v1`.
pub fn to_events_v1(event: &Value) -> Value {
    let mut out = rename(event, "events.k8s.io/v1", |field| {
        RENAMED.iter().find(|(core, _)| *core == field).map(|(_, new)| *new)
    });
    if let Some(fields) = out.as_object_mut() {
        // `v1` writes them whatever is in them.
        fields.retain(|field, value| !(field.starts_with("reporting") && value == ""));
    }
    out
}

/// `events.k8s.io/v1` → `v1`.
pub fn to_core_v1(event: &Value) -> Value {
    rename(event, "v1", |field| RENAMED.iter().find(|(_, new)| *new == field).map(|(core, _)| *core))
}

fn rename(event: &Value, api_version: &str, name: impl Fn(&str) -> Option<&'static str>) -> Value {
    let mut out = Map::new();
    for (field, value) in event.as_object().into_iter().flatten() {
        out.insert(name(field).unwrap_or(field).to_owned(), value.clone());
    }
    out.insert("apiVersion".into(), api_version.into());
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conversion_round_trips() {
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": {"name": "x"}, "note": "n",
            "reportingController": "c", "eventTime": "2026-01-01T00:00:00.000000Z"});
        let core = to_core_v1(&new);
        assert_eq!(core["involvedObject"]["name"], "x");
        assert_eq!(core["reportingComponent"], "c");
        assert_eq!(to_events_v1(&core), new);
    }
}
