//! What a namespace that is about to end says of itself, as the namespace controller does: a pure function of what is left.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

/// A condition that nothing is wrong with: its type, reason and message.
const GOOD: [(&str, &str, &str); 5] = [
    ("NamespaceDeletionDiscoveryFailure", "ResourcesDiscovered", "All resources successfully discovered"),
    (
        "NamespaceDeletionGroupVersionParsingFailure",
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed",
    ),
    (
        "NamespaceDeletionContentFailure",
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
    ),
    ("NamespaceContentRemaining", "ContentRemoved", "All content successfully removed"),
    ("NamespaceFinalizersRemaining", "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
];

/// The conditions of a namespace with these objects left: for each its resource (`plural.group`) and its finalizers.
/// A condition that says the same as before keeps its time.
pub(super) fn conditions(before: &Value, left: &[(String, Vec<String>)], now: Timestamp) -> Vec<Value> {
    let mut resources: BTreeMap<&str, usize> = BTreeMap::new();
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for (resource, of_object) in left {
        *resources.entry(resource).or_default() += 1;
        for finalizer in of_object {
            *finalizers.entry(finalizer).or_default() += 1;
        }
    }
    let list = |counts: &BTreeMap<&str, usize>, verb: &str| {
        let each = counts.iter().map(|(name, count)| format!("{name} {verb} {count} resource instances"));
        each.collect::<Vec<_>>().join(", ")
    };
    let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut out: Vec<Value> = before.as_array().cloned().unwrap_or_default();
    for (kind, reason, message) in GOOD {
        let bad = match kind {
            "NamespaceContentRemaining" if !resources.is_empty() => Some((
                "SomeResourcesRemain",
                format!("Some resources are remaining: {}", list(&resources, "has")),
            )),
            "NamespaceFinalizersRemaining" if !finalizers.is_empty() => Some((
                "SomeFinalizersRemain",
                format!(
                    "Some content in the namespace has finalizers remaining: {}",
                    list(&finalizers, "in")
                ),
            )),
            _ => None,
        };
        let (status, reason, message) = match &bad {
            Some((reason, message)) => ("True", *reason, message.as_str()),
            None => ("False", reason, message),
        };
        let new = json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at});
        match out.iter_mut().find(|condition| condition["type"] == kind) {
            Some(old) if ["status", "reason", "message"].iter().all(|field| old[field] == new[field]) => {}
            Some(old) => *old = new,
            None => out.push(new),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_counted() {
        let first: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let later: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let left = [
            ("pods.".to_owned(), vec!["a.b/c".to_owned()]),
            ("pods.".to_owned(), Vec::new()),
            ("jobs.batch".to_owned(), vec!["a.b/c".to_owned()]),
        ];
        let told = conditions(&Value::Null, &left, first);
        assert_eq!(
            told[3]["message"],
            "Some resources are remaining: jobs.batch has 1 resource instances, pods. has 2 resource instances"
        );
        assert!(told[4]["message"].as_str().unwrap().ends_with("remaining: a.b/c in 2 resource instances"));
        let told = conditions(&told.into(), &[], later);
        assert_eq!(told.len(), 5);
        assert_eq!((&told[3]["status"], &told[3]["reason"]), (&json!("False"), &json!("ContentRemoved")));
        assert_eq!(told[0]["lastTransitionTime"], "2026-01-01T00:00:00Z");
        assert_eq!(told[3]["lastTransitionTime"], "2026-01-01T00:01:00Z");
    }
}
