//! What is wrong with a CustomResourceDefinition, in a real server's words and order.
//!
//! A real server moves what all versions say alike to the definition as a whole before it checks: complaints about
//! that name `spec.validation`, not `spec.versions[0].schema`.

use serde_json::{Value, json};

use crate::builtin::validate::dns_1035_label;
use crate::server::status::Cause;

/// Parts of a version, and what they are called where all versions say the same.
const SHARED: [(&str, &str); 3] = [
    ("schema", "validation"),
    ("subresources", "subresources"),
    ("additionalPrinterColumns", "additionalPrinterColumns"),
];

/// Checks all of a definition but its schemas and columns.
pub(super) fn check(crd: &Value) -> Vec<Cause> {
    let spec = &crd["spec"];
    let mut causes = Vec::new();
    let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    if crd["metadata"]["name"].as_str() != Some(&format!("{plural}.{group}")) {
        causes.push(Cause::invalid(
            "metadata.name",
            &crd["metadata"]["name"],
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    if group.is_empty() {
        causes.push(Cause::required("spec.group", ""));
    } else if !group.contains('.') {
        causes.push(Cause::invalid("spec.group", &spec["group"], "should be a domain with at least one dot"));
    }
    match spec["scope"].as_str() {
        None | Some("") => causes.push(Cause::required("spec.scope", "")),
        Some("Namespaced" | "Cluster") => {}
        Some(_) => {
            causes.push(Cause::not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]));
        }
    }
    check_versions(spec, &mut causes);
    check_names(&spec["names"], &mut causes);
    if spec["conversion"]["strategy"] == "Webhook" {
        causes.push(Cause::forbidden(
            "spec.conversion.strategy",
            "this API converts between versions only by renaming (None)",
        ));
    }
    causes
}

fn versions(spec: &Value) -> &[Value] {
    spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn check_versions(spec: &Value, causes: &mut Vec<Cause>) {
    let versions = versions(spec);
    for (i, version) in versions.iter().enumerate() {
        if version["schema"]["openAPIV3Schema"].is_null() {
            causes.push(Cause::required(format!("spec.versions[{i}].schema.openAPIV3Schema"), ""));
        }
    }
    for (i, version) in versions.iter().enumerate() {
        label(&version["name"], &format!("spec.versions[{i}].name"), causes);
        scale_paths(&version["subresources"]["scale"], &format!("spec.versions[{i}].subresources"), causes);
    }
    let mut names: Vec<&Value> = versions.iter().map(|version| &version["name"]).collect();
    names.sort_by_key(|name| name.as_str());
    let before = names.len();
    names.dedup();
    if names.len() != before {
        causes.push(about_versions(spec, "must contain unique version names"));
    }
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        causes.push(about_versions(spec, "must have exactly one version marked as storage version"));
    }
    if let Some(first) = versions.first() {
        label(&first["name"], "spec.version", causes);
    }
    if !versions.iter().any(|version| version["storage"] == true) {
        causes.push(Cause::invalid(
            "status.storedVersions",
            &Value::Null,
            "must have at least one stored version",
        ));
    }
}

/// A complaint about all versions, which it shows as a server holds them.
fn about_versions(spec: &Value, why: &str) -> Cause {
    let shown: Vec<String> = versions(spec)
        .iter()
        .map(|version| {
            let flag = |field: &str| version[field] == true;
            let part = |field: &str| match shared(spec, field) {
                true => Value::Null,
                false => version[field].clone(),
            };
            format!(
                "{{\"Name\":{},\"Served\":{},\"Storage\":{},\"Deprecated\":{},\"DeprecationWarning\":{},\
                 \"Schema\":{},\"Subresources\":{},\"AdditionalPrinterColumns\":{},\"SelectableFields\":{}}}",
                version["name"],
                flag("served"),
                flag("storage"),
                flag("deprecated"),
                version["deprecationWarning"],
                part("schema"),
                part("subresources"),
                part("additionalPrinterColumns"),
                part("selectableFields"),
            )
        })
        .collect();
    Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: [{}]: {why}", shown.join(",")),
        field: "spec.versions".into(),
    }
}

fn check_names(names: &Value, causes: &mut Vec<Cause>) {
    for field in ["plural", "singular", "kind", "listKind"] {
        if names[field].as_str().unwrap_or_default().is_empty() {
            causes.push(Cause::required(format!("spec.names.{field}"), ""));
        }
    }
    for field in ["plural", "singular"] {
        if names[field] != "" {
            label(&names[field], &format!("spec.names.{field}"), causes);
        }
    }
    for field in ["kind", "listKind"] {
        let name = names[field].as_str().unwrap_or_default();
        let faults = dns_1035_label(&name.to_lowercase());
        if !name.is_empty() && !faults.is_empty() {
            let why = format!("may have mixed case, but should otherwise match: {}", faults.join(","));
            causes.push(Cause::invalid(format!("spec.names.{field}"), &names[field], &why));
        }
    }
    for field in ["shortNames", "categories"] {
        if field == "categories" && names["kind"] != "" && names["kind"] == names["listKind"] {
            let why = "kind and listKind may not be the same";
            causes.push(Cause::invalid("spec.names.listKind", &names["listKind"], why));
        }
        for (i, name) in names[field].as_array().into_iter().flatten().enumerate() {
            label(name, &format!("spec.names.{field}[{i}]"), causes);
        }
    }
}

/// Text that must read as a label does that starts with a letter.
fn label(text: &Value, field: &str, causes: &mut Vec<Cause>) {
    let Some(name) = text.as_str() else { return };
    let faults = dns_1035_label(name);
    if !faults.is_empty() {
        causes.push(Cause::invalid(field, text, &faults.join(",")));
    }
}

fn scale_paths(scale: &Value, at: &str, causes: &mut Vec<Cause>) {
    if scale.is_null() {
        return;
    }
    for (field, roots, under) in [
        ("specReplicasPath", &[".spec."][..], ".spec"),
        ("statusReplicasPath", &[".status."], ".status"),
        ("labelSelectorPath", &[".spec.", ".status."], "either .spec or .status"),
    ] {
        let (path, field_at) = (scale[field].as_str().unwrap_or_default(), format!("{at}.scale.{field}"));
        if path.is_empty() {
            if field != "labelSelectorPath" {
                causes.push(Cause::required(field_at, ""));
            }
        } else if !path.starts_with('.') {
            causes.push(Cause::invalid(field_at, &json!(path), "must be a simple json path starting with ."));
        } else if !roots.iter().any(|root| path.starts_with(root)) {
            causes.push(Cause::invalid(
                field_at,
                &json!(path),
                &format!("should be a json path under {under}"),
            ));
        }
    }
}

/// Whether all versions say the same of a part.
fn shared(spec: &Value, part: &str) -> bool {
    let mut all = versions(spec).iter().map(|version| &version[part]);
    let first = all.next();
    part != "selectableFields" && all.all(|other| Some(other) == first)
}

/// All that is wrong, said of the definition as a whole where all versions say the same, and in a server's order.
pub(super) fn settle(crd: &Value, causes: Vec<Cause>) -> Vec<Cause> {
    let spec = &crd["spec"];
    let mut out: Vec<Cause> = causes.into_iter().filter_map(|cause| moved(spec, cause)).collect();
    out.sort_by_key(|cause| rank(&cause.field));
    out
}

/// A complaint about a version's part, moved to the whole if it is shared; none if the first version's says it already.
fn moved(spec: &Value, mut cause: Cause) -> Option<Cause> {
    let Some((index, rest)) =
        cause.field.strip_prefix("spec.versions[").and_then(|field| field.split_once("]."))
    else {
        return Some(cause);
    };
    let missing = cause.reason == "FieldValueRequired" && rest == "schema.openAPIV3Schema";
    for (part, whole) in SHARED {
        if let Some(path) = rest.strip_prefix(part)
            && (path.is_empty() || path.starts_with(['.', '[']))
            && !missing
            && shared(spec, part)
        {
            let first = index == "0";
            cause.field = format!("spec.{whole}{path}");
            return first.then_some(cause);
        }
    }
    Some(cause)
}

/// Where a complaint stands among the others.
fn rank(field: &str) -> usize {
    const ORDER: [&str; 12] = [
        "metadata",
        "spec.group",
        "spec.scope",
        "spec.versions[",
        "spec.versions",
        "spec.version",
        "spec.names",
        "spec.validation",
        "spec.subresources",
        "spec.additionalPrinterColumns",
        "spec.conversion",
        "status",
    ];
    ORDER.iter().position(|prefix| field.starts_with(prefix)).unwrap_or(ORDER.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crd() -> Value {
        json!({
            "metadata": {"name": "boats.example.com"},
            "spec": {
                "group": "example.com", "scope": "Namespaced",
                "names": {"plural": "boats", "singular": "boat", "kind": "Boat", "listKind": "BoatList"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}],
            },
        })
    }

    fn fields(crd: &Value, more: Vec<Cause>) -> Vec<String> {
        let mut causes = check(crd);
        causes.extend(more);
        settle(crd, causes).into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn a_good_definition_is_let_in() {
        assert_eq!(fields(&crd(), Vec::new()), Vec::<String>::new());
    }

    #[test]
    fn complaints_come_in_a_servers_order() {
        let mut bad = crd();
        bad["spec"]["versions"][0]["storage"] = false.into();
        bad["spec"]["names"]["kind"] = "".into();
        bad["spec"]["scope"] = "Everywhere".into();
        let schema = Cause::required("spec.versions[0].schema.openAPIV3Schema.type", "");
        assert_eq!(
            fields(&bad, vec![schema]),
            [
                "spec.scope",
                "spec.versions",
                "spec.names.kind",
                "spec.validation.openAPIV3Schema.type",
                "status.storedVersions"
            ]
        );
    }

    #[test]
    fn versions_that_differ_keep_their_complaints() {
        let mut two = crd();
        two["spec"]["versions"].as_array_mut().unwrap().push(json!({
            "name": "v2", "served": true, "schema": {"openAPIV3Schema": {"type": "string"}},
        }));
        let of = |at: usize| Cause::required(format!("spec.versions[{at}].schema.openAPIV3Schema.type"), "");
        assert_eq!(
            fields(&two, vec![of(0), of(1)]),
            ["spec.versions[0].schema.openAPIV3Schema.type", "spec.versions[1].schema.openAPIV3Schema.type"]
        );
        two["spec"]["versions"][1]["schema"] = two["spec"]["versions"][0]["schema"].clone();
        assert_eq!(fields(&two, vec![of(0), of(1)]), ["spec.validation.openAPIV3Schema.type"]);
    }

    #[test]
    fn paths_of_scale_are_looked_at() {
        let mut scaled = crd();
        scaled["spec"]["versions"][0]["subresources"] =
            json!({"scale": {"specReplicasPath": "crew", "statusReplicasPath": ".spec.aboard"}});
        assert_eq!(
            fields(&scaled, Vec::new()),
            ["spec.subresources.scale.specReplicasPath", "spec.subresources.scale.statusReplicasPath"]
        );
    }
}
