//! The generated manifests: the CustomResourceDefinitions and ready-made AcceleratorClasses.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{AcceleratorClass, AcceleratorClassSpec, Budget, FleetPlan, LoraAdapter, ModelPool, Tenant};

/// All CustomResourceDefinitions, in the order in which they should be applied.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        ModelPool::crd(),
        AcceleratorClass::crd(),
        LoraAdapter::crd(),
        Budget::crd(),
        Tenant::crd(),
        FleetPlan::crd(),
    ]
}

/// An object could not be written as YAML.
#[derive(Debug, thiserror::Error)]
#[error("failed to write {name} as YAML: {source}")]
pub struct YamlError {
    /// What was being written.
    pub name: String,
    /// Cause.
    #[source]
    pub source: serde_saphyr::ser::Error,
}

fn to_yaml<T: serde::Serialize>(name: &str, value: &T) -> Result<String, YamlError> {
    // Through JSON, so that field order is that of the JSON object and absent fields stay absent.
    let error = |source| YamlError { name: name.to_owned(), source };
    let json = serde_json::to_value(value)
        .map_err(|e| error(<serde_saphyr::ser::Error as serde::ser::Error>::custom(e)))?;
    serde_saphyr::to_string(&json).map_err(error)
}

/// Each CustomResourceDefinition as `(file name, YAML)`, e.g. `modelpools.yaml`.
///
/// # Errors
/// [`YamlError`] if a schema cannot be written as YAML.
pub fn yaml_files() -> Result<Vec<(String, String)>, YamlError> {
    all()
        .iter()
        .map(|crd| {
            let plural = &crd.spec.names.plural;
            Ok((format!("{plural}.yaml"), to_yaml(plural, crd)?))
        })
        .collect()
}

/// All CustomResourceDefinitions as one YAML stream.
///
/// # Errors
/// [`YamlError`] if a schema cannot be written as YAML.
pub fn all_yaml() -> Result<String, YamlError> {
    Ok(yaml_files()?.into_iter().map(|(_, yaml)| format!("---\n{yaml}")).collect())
}

/// A ready AcceleratorClass for every accelerator preset. Each names its preset and nothing else, so that better facts in
/// a later release reach it.
pub fn accelerator_manifests() -> Vec<AcceleratorClass> {
    plimsoll_fleet::presets::accelerators()
        .into_iter()
        .map(|class| {
            AcceleratorClass::new(
                &class.name,
                AcceleratorClassSpec { preset: Some(class.name.clone()), ..AcceleratorClassSpec::default() },
            )
        })
        .collect()
}

/// [`accelerator_manifests`] as one YAML stream.
///
/// # Errors
/// [`YamlError`] if a manifest cannot be written as YAML.
pub fn accelerators_yaml() -> Result<String, YamlError> {
    let mut text = String::new();
    for class in accelerator_manifests() {
        let name = class.metadata.name.clone().unwrap_or_default();
        text.push_str("---\n");
        text.push_str(&to_yaml(&name, &class)?);
    }
    Ok(text)
}
