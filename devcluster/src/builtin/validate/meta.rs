//! Metadata of objects of any kind: names, labels, annotations, owners, finalizers.

use serde_json::Value;

use super::field::{At, Faults, entries, in_order, items, text, texts};
use super::names;

/// Most bytes of all annotations together.
const MAX_ANNOTATIONS: usize = 256 << 10;
/// Finalizers that need no prefix.
const STANDARD_FINALIZERS: &[&str] = &["kubernetes", "orphan", "foregroundDeletion"];
/// The fields of an owner in the order in which a server writes them.
const OWNER: &[&str] = &["apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"];

/// A rule for names.
type Rule = fn(&str) -> Vec<String>;

/// What names of a built-in kind look like.
fn name_rule(kind: &str) -> Rule {
    match kind {
        // These may be any path segment: `system:node`.
        "Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding" => names::path_segment,
        "Service" => names::dns_1035_label,
        "Namespace" | "StatefulSet" => names::dns_label,
        _ => names::dns_subdomain,
    }
}

/// Checks the metadata of a new object of a built-in kind.
pub(super) fn created(kind: &str, meta: &Value, faults: &mut Faults) {
    named(meta, name_rule(kind), faults);
    common(meta, faults);
    fully_qualified(kind, meta, faults);
}

/// Checks the metadata of an object of a kind that a definition made.
pub(super) fn custom(meta: &Value, updated: bool, faults: &mut Faults) {
    let rule: Rule = if updated { names::path_segment } else { names::dns_subdomain };
    named(meta, rule, faults);
    common(meta, faults);
    if updated {
        changeable(meta, faults);
        changeable(meta, faults);
    }
}

/// Checks the metadata of a changed object of a built-in kind. What is wrong is said more than once: by the server's own
/// plumbing, and by the kind's rules.
pub(super) fn updated(kind: &str, meta: &Value, faults: &mut Faults) {
    named(meta, names::path_segment, faults);
    common(meta, faults);
    changeable(meta, faults);
    changeable(meta, faults);
    fully_qualified(kind, meta, faults);
}

fn named(meta: &Value, rule: Rule, faults: &mut Faults) {
    let at = At::root("metadata");
    let prefix = text(&meta["generateName"]);
    if !prefix.is_empty() {
        // Letters follow: a prefix may end where a name may not.
        let whole = match prefix.strip_suffix('-') {
            Some(start) if !start.is_empty() => {
                let kept: String = start.chars().take(start.chars().count() - 1).collect();
                format!("{kept}a")
            }
            _ => prefix.to_owned(),
        };
        faults.invalid_for(&at.child("generateName"), prefix, rule(&whole));
    }
    match text(&meta["name"]) {
        "" => faults.required(&at.child("name"), "name or generateName is required"),
        name => faults.invalid_for(&at.child("name"), name, rule(name)),
    }
}

fn common(meta: &Value, faults: &mut Faults) {
    changeable(meta, faults);
    let at = At::root("metadata").child("finalizers");
    for finalizer in texts(&meta["finalizers"]) {
        faults.invalid_for(&at, finalizer, names::qualified_name(finalizer));
    }
    let has = |name: &str| texts(&meta["finalizers"]).any(|f| f == name);
    if has("orphan") && has("foregroundDeletion") {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        faults.invalid(&at, meta["finalizers"].clone(), why);
    }
}

/// What an update may change.
fn changeable(meta: &Value, faults: &mut Faults) {
    let at = At::root("metadata");
    labels(&meta["labels"], &at.child("labels"), faults);
    annotations(&meta["annotations"], &at.child("annotations"), faults);
    owners(&meta["ownerReferences"], &at.child("ownerReferences"), faults);
}

/// Finalizers of most built-in kinds are the server's own or have a prefix.
fn fully_qualified(kind: &str, meta: &Value, faults: &mut Faults) {
    if matches!(kind, "CustomResourceDefinition" | "APIService" | "Lease") {
        return;
    }
    let at = At::root("metadata").child("finalizers");
    for (i, finalizer) in texts(&meta["finalizers"]).enumerate() {
        if !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(&finalizer) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            faults.invalid(&at.index(i), finalizer, why);
        }
    }
}

/// Checks labels, or the labels that a selector matches.
pub(super) fn labels(labels: &Value, at: &At, faults: &mut Faults) {
    for (key, value) in entries(labels) {
        faults.invalid_for(at, key, names::qualified_name(key));
        faults.invalid_for(at, text(value), names::label_value(text(value)));
    }
}

/// Checks annotations.
pub(super) fn annotations(annotations: &Value, at: &At, faults: &mut Faults) {
    let mut bytes = 0;
    for (key, value) in entries(annotations) {
        faults.invalid_for(at, key, names::qualified_name(&key.to_lowercase()));
        bytes += key.len() + text(value).len();
    }
    if bytes > MAX_ANNOTATIONS {
        faults.too_long(at, MAX_ANNOTATIONS);
    }
}

fn owners(owners: &Value, at: &At, faults: &mut Faults) {
    let mut controller: Option<String> = None;
    for owner in items(owners) {
        let version = text(&owner["apiVersion"]);
        if version.rsplit('/').next().unwrap_or_default().is_empty() {
            faults.invalid(&at.child("apiVersion"), version, "version must not be empty");
        }
        for field in ["kind", "name", "uid"] {
            if text(&owner[field]).is_empty() {
                faults.invalid(&at.child(field), "", "must not be empty");
            }
        }
        if version == "v1" && owner["kind"] == "Event" {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            faults.invalid_as(at, &in_order(owner, OWNER), why);
        }
        if owner["controller"] == true {
            let this = format!("{}/{}", text(&owner["kind"]), text(&owner["name"]));
            match &controller {
                Some(first) => {
                    let why = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    );
                    faults.invalid_as(at, &in_order(owners, OWNER), &why);
                }
                None => controller = Some(this),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn said(check: impl FnOnce(&mut Faults)) -> Vec<String> {
        let mut faults = Faults::default();
        check(&mut faults);
        faults.into_causes().into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[rstest]
    #[case("ConfigMap", "a.b", true)]
    #[case("Namespace", "a.b", false)]
    #[case("Service", "1a", false)]
    #[case("Service", "a1", true)]
    #[case("StatefulSet", "a.b", false)]
    #[case("ClusterRole", "system:node", true)]
    #[case("ClusterRole", "a/b", false)]
    fn names_are_of_their_kind(#[case] kind: &str, #[case] name: &str, #[case] good: bool) {
        let found = said(|faults| created(kind, &json!({"name": name}), faults));
        assert!(found.is_empty() == good, "{found:?}");
    }

    #[test]
    fn a_generated_name_is_told_from_its_prefix() {
        let good = json!({"generateName": "gen-", "name": "gen-abcde"});
        assert_eq!(said(|faults| created("Pod", &good, faults)), [""; 0]);
        let bad = said(|faults| created("Pod", &json!({"generateName": "Gen", "name": "Genabcde"}), faults));
        assert!(
            bad[0].starts_with("metadata.generateName: Invalid value: \"Gen\"") && bad.len() == 2,
            "{bad:?}"
        );
    }

    #[test]
    fn owners_are_whole_and_at_most_one_controls() {
        let owner = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": "u", "controller": true});
        let meta = json!({"name": "x", "ownerReferences": [owner("a"), owner("b")]});
        let found = said(|faults| created("Pod", &meta, faults));
        assert_eq!(
            found,
            [
                r#"metadata.ownerReferences: Invalid value: [{"apiVersion":"v1","kind":"Pod","name":"a","uid":"u","controller":true},{"apiVersion":"v1","kind":"Pod","name":"b","uid":"u","controller":true}]: Only one reference can have Controller set to true. Found "true" in references for Pod/a and Pod/b"#
            ]
        );
        let found = said(|faults| created("Pod", &json!({"name": "x", "ownerReferences": [{}]}), faults));
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn finalizers_have_a_prefix() {
        let found = said(|f| created("Pod", &json!({"name": "x", "finalizers": ["orphan", "mine"]}), f));
        assert_eq!(
            found,
            [
                r#"metadata.finalizers[1]: Invalid value: "mine": name is neither a standard finalizer name nor is it fully qualified"#
            ]
        );
        assert_eq!(said(|f| custom(&json!({"name": "x", "finalizers": ["mine"]}), false, f)), [""; 0]);
    }

    #[test]
    fn an_update_says_it_as_often_as_a_server_does() {
        let meta = json!({"name": "x", "labels": {"a": "b c"}});
        assert_eq!(said(|faults| updated("Pod", &meta, faults)).len(), 3);
    }
}
