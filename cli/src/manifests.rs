//! Reading manifests from files, for planning without a cluster.

use std::path::{Path, PathBuf};

use plimsoll_crds as crds;
use plimsoll_fleet::{ClusterSnapshot, NodeInfo, NodeName, presets};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::failure::Failure;
use crate::nodespec::NodeGroups;

/// What files gave: the objects that are valid, and what was wrong with the others.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Valid objects.
    pub snapshot: ClusterSnapshot,
    /// `FILE: Kind/name: what is wrong`, one line each.
    pub problems: Vec<String>,
}

/// Reads every `.yaml`, `.yml` and `.json` under `paths` (folders are not descended into).
///
/// # Errors
/// If a path cannot be read, or holds nothing that is YAML. An invalid object is a problem, not an error.
pub fn objects(paths: &[PathBuf]) -> Result<Loaded, Failure> {
    let mut loaded = Loaded::default();
    for (file, document) in documents(paths)? {
        take(&mut loaded, &file, document);
    }
    Ok(loaded)
}

/// The same with what a cluster has besides: the presets' accelerator classes.
///
/// # Errors
/// As for [`objects`].
pub fn load(paths: &[PathBuf]) -> Result<Loaded, Failure> {
    let mut loaded = objects(paths)?;
    // Every class a file does not define is there under its preset's name, as in a cluster made by `plimsoll up`.
    for preset in presets::accelerators() {
        if !loaded.snapshot.accelerators.iter().any(|a| a.name == preset.name) {
            loaded.snapshot.accelerators.push(preset);
        }
    }
    Ok(loaded)
}

/// Every document of the files, with its file.
fn documents(paths: &[PathBuf]) -> Result<Vec<(PathBuf, Value)>, Failure> {
    let mut found = Vec::new();
    for path in paths {
        for file in files(path)? {
            let text = std::fs::read_to_string(&file)
                .map_err(|e| Failure::caused(format!("failed to read {}", file.display()), e))?;
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
                .map_err(|e| Failure::caused(format!("{} is not YAML", file.display()), e))?;
            found.extend(documents.into_iter().map(|d| (file.clone(), d)));
        }
    }
    Ok(found)
}

/// The manifest of an AcceleratorClass, as it was written; lists are looked into.
///
/// # Errors
/// If a path cannot be read.
pub fn accelerator_class(paths: &[PathBuf], name: &str) -> Result<Option<Value>, Failure> {
    let is = |d: &Value| d["kind"] == "AcceleratorClass" && d["metadata"]["name"] == name;
    for (_, document) in documents(paths)? {
        let items = document["items"].as_array().cloned().unwrap_or_default();
        if let Some(found) = items.into_iter().chain([document]).find(|d| is(d)) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let fail = |e: std::io::Error| Failure::caused(format!("failed to read {}", path.display()), e);
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(fail)? {
        let file = entry.map_err(fail)?.path();
        if file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            found.push(file);
        }
    }
    found.sort();
    Ok(found)
}

fn take(loaded: &mut Loaded, file: &Path, document: Value) {
    if document.is_null() {
        return;
    }
    if let Some(items) = document.get("items").and_then(Value::as_array) {
        for item in items.clone() {
            take(loaded, file, item);
        }
        return;
    }
    let kind = document["kind"].as_str().unwrap_or_default().to_owned();
    let name = document["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let result = match kind.as_str() {
        "ModelPool" => read::<crds::ModelPool>(document).and_then(|mut o| {
            // A file has no UID; the name is unique within the files.
            o.metadata.uid.get_or_insert_with(|| name.clone());
            loaded.snapshot.pools.push(o.to_fleet().map_err(|e| crds::invalid::describe(&e))?);
            Ok(())
        }),
        "AcceleratorClass" => read::<crds::AcceleratorClass>(document).and_then(|o| {
            loaded.snapshot.accelerators.push(o.to_fleet().map_err(|e| crds::invalid::describe(&e))?);
            Ok(())
        }),
        "Budget" => read::<crds::Budget>(document).and_then(|o| {
            loaded.snapshot.budgets.push(o.to_fleet().map_err(|e| crds::invalid::describe(&e))?);
            Ok(())
        }),
        "Tenant" => read::<crds::Tenant>(document).and_then(|o| {
            loaded.snapshot.tenants.push(o.to_fleet(Vec::new()).map_err(|e| crds::invalid::describe(&e))?);
            Ok(())
        }),
        "LoraAdapter" => read::<crds::LoraAdapter>(document).and_then(|o| {
            loaded.snapshot.adapters.push(o.to_fleet().map_err(|e| crds::invalid::describe(&e))?);
            Ok(())
        }),
        "" => Err("a document has no kind; is it a Kubernetes manifest?".to_owned()),
        // Namespaces, Secrets and the like may stand beside pools; they do not matter to a plan.
        _ => Ok(()),
    };
    if let Err(problem) = result {
        loaded.problems.push(format!("{}: {kind}/{name}: {problem}", file.display()));
    }
}

fn read<T: DeserializeOwned>(document: Value) -> Result<T, String> {
    serde_json::from_value(document).map_err(|e| e.to_string())
}

/// Adds simulated nodes, all ready and empty.
///
/// # Errors
/// If a node's name is not valid (never, for [`NodeGroups`] that parsed).
pub fn add_nodes(snapshot: &mut ClusterSnapshot, groups: &NodeGroups) -> Result<(), Failure> {
    for node in groups.nodes() {
        let name = NodeName::new(node.name).map_err(|e| Failure::caused("a node's name is invalid", e))?;
        snapshot.nodes.push(NodeInfo {
            name,
            accelerator: node.class,
            allocatable_gpus: node.gpus,
            foreign_gpus: 0,
            zone: node.zone,
            labels: node.labels,
            taints: Vec::new(),
            spot: false,
            schedulable: true,
            ready: true,
            fault: String::new(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_load_whole() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let loaded = load(&[examples]).unwrap();
        assert_eq!(loaded.problems, Vec::<String>::new());
        let names: Vec<String> = loaded.snapshot.pools.iter().map(|p| p.id.to_string()).collect();
        assert_eq!(names, ["default/chat", "default/code", "default/tiny"]);
        assert_eq!(loaded.snapshot.budgets.len(), 1);
    }

    #[test]
    fn a_broken_object_disturbs_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        std::fs::write(
            &file,
            "apiVersion: plimsoll.dev/v1alpha1\nkind: ModelPool\nmetadata: {name: bad}\nspec: {model: {name: m, preset: no-such}, slo: {ttft: {p95: 1s}}}\n\
             ---\napiVersion: plimsoll.dev/v1alpha1\nkind: ModelPool\nmetadata: {name: good}\nspec: {model: {name: small, preset: llama-3.1-8b}, slo: {ttft: {p95: 1s}}}\n",
        )
        .unwrap();
        let loaded = load(&[file]).unwrap();
        assert_eq!(loaded.snapshot.pools.len(), 1);
        assert!(loaded.problems[0].contains("spec.model.preset"), "{:?}", loaded.problems);
    }
}
