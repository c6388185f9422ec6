//! What a CustomResourceDefinition declares: checked, and compiled to the resources that it serves.

use serde_json::{Value, json};

use super::{CUSTOM_VERBS, Custom, Resource, ScalePaths, Subresource, api_version, checks};
use crate::apply::Typing;
use crate::gvk::GroupKind;
use crate::schema::CompiledSchema;
use crate::server::status::Cause;
use crate::store::GroupResource;
use crate::table;

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The resources of a definition: one for each served version.
pub(super) fn compile(crd: &Value) -> Result<Vec<Resource>, Vec<Cause>> {
    let spec = &crd["spec"];
    let mut causes = checks::check(crd);
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let (group, names) = (text(&spec["group"]), &spec["names"]);
    let versions: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    let storage_version =
        versions.iter().find(|v| v["storage"] == true).map(|v| text(&v["name"])).unwrap_or_default();
    let mut out = Vec::new();
    for (i, version) in versions.iter().enumerate() {
        let at = format!("spec.versions[{i}]");
        let openapi = &version["schema"]["openAPIV3Schema"];
        if openapi.is_null() {
            continue;
        }
        let schema = match CompiledSchema::compile(openapi) {
            Ok(schema) => schema,
            Err(error) => {
                causes.extend(error.0.iter().map(|e| {
                    let mut cause = Cause::from(e);
                    if !cause.field.starts_with("spec.v") {
                        let base = format!("{at}.schema.openAPIV3Schema");
                        cause.field = match cause.field.as_str() {
                            "" | "<nil>" => base,
                            path => format!("{base}.{}", path.trim_start_matches("openAPIV3Schema.")),
                        };
                    }
                    cause
                }));
                continue;
            }
        };
        let kind = GroupKind::new(&group, text(&names["kind"]));
        // Without columns of its own a custom resource shows name and age.
        let no_columns = json!([{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]);
        let printer =
            version.get("additionalPrinterColumns").filter(|c| c.as_array().is_some_and(|c| !c.is_empty()));
        let columns = match table::columns_for(&kind, Some(printer.unwrap_or(&no_columns))) {
            Ok(columns) => columns,
            Err(e) => {
                causes.push(Cause {
                    reason: "FieldValueInvalid".into(),
                    message: format!("Invalid value: {}", e.message),
                    field: format!("{at}.additionalPrinterColumns[{}].{}", e.index, e.field),
                });
                continue;
            }
        };
        if version["served"] != true {
            continue;
        }
        let own = |name: &str, kind: &str, group: &str, version: &str| Subresource {
            name: name.into(),
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            verbs: vec!["get".into(), "patch".into(), "update".into()],
        };
        let mut subresources = Vec::new();
        let status = !version["subresources"]["status"].is_null();
        if status {
            subresources.push(own("status", &kind.kind, "", ""));
        }
        let scale = &version["subresources"]["scale"];
        let scale = (!scale.is_null()).then(|| ScalePaths {
            spec: text(&scale["specReplicasPath"]),
            status: text(&scale["statusReplicasPath"]),
            selector: scale["labelSelectorPath"].as_str().map(str::to_owned),
        });
        if scale.is_some() {
            subresources.push(own("scale", "Scale", "autoscaling", "v1"));
        }
        let deprecation = (version["deprecated"] == true).then(|| {
            version["deprecationWarning"].as_str().map_or_else(
                || {
                    let named = |version: &str| format!("{group}/{version} {}", kind.kind);
                    let instead = preferred(spec).filter(|other| *other != version["name"]);
                    let instead = instead.map_or_else(String::new, |other| format!("; use {}", named(other)));
                    format!("{} is deprecated{instead}", named(&text(&version["name"])))
                },
                str::to_owned,
            )
        });
        out.push(Resource {
            group: group.clone(),
            version: text(&version["name"]),
            plural: text(&names["plural"]),
            singular: text(&names["singular"]),
            list_kind: text(&names["listKind"]),
            namespaced: spec["scope"] == "Namespaced",
            short_names: strings(&names["shortNames"]),
            categories: strings(&names["categories"]),
            verbs: CUSTOM_VERBS.iter().map(|v| (*v).to_owned()).collect(),
            subresources,
            storage: GroupResource::new(&group, text(&names["plural"])),
            storage_api_version: api_version(&group, &storage_version),
            definition: None,
            columns,
            typing: Typing::from_schema(openapi).with_status_subresource(status),
            custom: Some(Custom {
                schema,
                openapi: openapi.clone(),
                scale,
                selectable: version["selectableFields"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|f| f["jsonPath"].as_str())
                    .map(|p| p.trim_start_matches('.').to_owned())
                    .collect(),
                deprecation,
            }),
            kind: kind.kind,
        });
    }
    if causes.is_empty() { Ok(out) } else { Err(checks::settle(crd, causes)) }
}

/// The newest version that is served and not deprecated.
fn preferred(spec: &Value) -> Option<&str> {
    let versions = spec["versions"].as_array()?.iter();
    let good = versions.filter(|v| v["served"] == true && v["deprecated"] != true);
    good.filter_map(|v| v["name"].as_str()).min_by_key(|version| super::version_rank(version))
}
