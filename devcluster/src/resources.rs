//! Which resources are served: Kubernetes' own, and those that CustomResourceDefinitions declare.

mod checks;
mod declared;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::watch;

use declared::compile;

use crate::apply::Typing;
use crate::builtin::definitions::DEFINITIONS;
use crate::gvk::GroupKind;
use crate::schema::CompiledSchema;
use crate::server::status::Cause;
use crate::store::GroupResource;
use crate::table::{self, Column};

const BUILT_IN: &str = include_str!("data/resources.txt");
/// Finalizer that holds a CustomResourceDefinition until its objects are gone.
pub const CRD_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Verbs of custom resources, in the order in which a real server tells them.
const CUSTOM_VERBS: &[&str] =
    &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// A subresource, such as `status`.
#[derive(Debug, Clone)]
pub struct Subresource {
    /// Its name.
    pub name: String,
    /// Group of the kind it speaks; the parent's where empty and `version` is empty too.
    pub group: String,
    /// Version of the kind it speaks; the parent's where empty.
    pub version: String,
    /// The kind it speaks.
    pub kind: String,
    /// Verbs.
    pub verbs: Vec<String>,
}

/// Where the scale subresource of a custom resource finds its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    /// JSON path of the wanted replicas, such as `.spec.replicas`.
    pub spec: String,
    /// JSON path of the observed replicas.
    pub status: String,
    /// JSON path of the label selector in string form.
    pub selector: Option<String>,
}

/// The part of a resource that its CustomResourceDefinition declares.
#[derive(Debug)]
pub struct Custom {
    /// Compiled schema.
    pub schema: CompiledSchema,
    /// The schema as declared.
    pub openapi: Value,
    /// Scale subresource.
    pub scale: Option<ScalePaths>,
    /// JSON paths usable in field selectors, without the leading dot.
    pub selectable: Vec<String>,
    /// Warning for clients of a deprecated version.
    pub deprecation: Option<String>,
}

/// One version of one served resource.
#[derive(Debug)]
pub struct Resource {
    /// API group; empty for core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Plural name: the path segment.
    pub plural: String,
    /// Singular name.
    pub singular: String,
    /// Kind.
    pub kind: String,
    /// Kind of lists.
    pub list_kind: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Short names.
    pub short_names: Vec<String>,
    /// Categories, such as `all`.
    pub categories: Vec<String>,
    /// Verbs.
    pub verbs: Vec<String>,
    /// Subresources.
    pub subresources: Vec<Subresource>,
    /// Where objects are stored.
    pub storage: GroupResource,
    /// `apiVersion` of stored objects.
    pub storage_api_version: String,
    /// OpenAPI definition of a built-in kind.
    pub definition: Option<String>,
    /// Custom resource parts.
    pub custom: Option<Custom>,
    /// Columns for `kubectl get`.
    pub columns: Vec<Column>,
    /// List and map kinds, for field ownership.
    pub typing: Typing,
}

impl Resource {
    /// `apiVersion` of this version's objects.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// Group and plural name, as errors name it.
    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(&self.group, &self.plural)
    }

    /// Group and kind.
    pub fn group_kind(&self) -> GroupKind {
        GroupKind::new(&self.group, &self.kind)
    }

    /// A subresource by name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether `status` is written apart.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Whether `verb` is allowed on the resource itself.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// Whether field selectors may use `path`.
    pub fn selectable(&self, path: &str) -> bool {
        if path == "metadata.name" || (path == "metadata.namespace" && self.namespaced) {
            return true;
        }
        if let Some(custom) = &self.custom {
            return custom.selectable.iter().any(|p| p == path);
        }
        let fields: &[&str] = match (self.storage.group.as_str(), self.storage.resource.as_str()) {
            ("", "pods") => &[
                "spec.nodeName",
                "spec.restartPolicy",
                "spec.schedulerName",
                "spec.serviceAccountName",
                "spec.hostNetwork",
                "status.phase",
                "status.podIP",
                "status.podIPs",
                "status.nominatedNodeName",
            ],
            ("", "events") => &[
                "involvedObject.kind",
                "involvedObject.namespace",
                "involvedObject.name",
                "involvedObject.uid",
                "involvedObject.apiVersion",
                "involvedObject.resourceVersion",
                "involvedObject.fieldPath",
                "regarding.kind",
                "regarding.namespace",
                "regarding.name",
                "regarding.uid",
                "regarding.apiVersion",
                "regarding.resourceVersion",
                "regarding.fieldPath",
                "reason",
                "reportingComponent",
                "reportingController",
                "source",
                "type",
            ],
            ("", "nodes") => &["spec.unschedulable"],
            ("", "namespaces") => &["status.phase"],
            ("", "secrets") => &["type"],
            ("", "services") => &["spec.clusterIP", "spec.type"],
            ("", "replicationcontrollers") | ("apps", "replicasets") => &["status.replicas"],
            ("batch", "jobs") => &["status.successful"],
            _ => &[],
        };
        fields.contains(&path)
    }
}

/// `group/version`, or the version alone for the core group.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// All served resources at one moment, in discovery order.
#[derive(Debug, Default)]
pub struct Served {
    /// The resources.
    pub resources: Vec<Arc<Resource>>,
    /// Counts changes of the set, so that documents made from it can be cached.
    pub generation: u64,
}

impl Served {
    /// A resource by path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.resources.iter().find(|r| r.group == group && r.version == version && r.plural == plural)
    }

    /// Any version of a stored resource that stores in its own version.
    pub fn of_storage(&self, storage: &GroupResource) -> Option<&Arc<Resource>> {
        self.resources.iter().find(|r| r.storage == *storage && r.api_version() == r.storage_api_version)
    }

    /// Groups in discovery order with their versions, preferred first.
    pub fn groups(&self) -> Vec<(&str, Vec<&str>)> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for resource in &self.resources {
            match groups.iter_mut().find(|(g, _)| *g == resource.group) {
                Some((_, versions)) => {
                    if !versions.contains(&resource.version.as_str()) {
                        versions.push(&resource.version);
                    }
                }
                None => groups.push((&resource.group, vec![&resource.version])),
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|v| version_rank(v));
        }
        groups
    }
}

/// A definition's `spec` and what it declares.
type Declared = (Value, Vec<Arc<Resource>>);

/// The registry of served resources.
#[derive(Debug)]
pub struct Registry {
    built_in: Vec<Arc<Resource>>,
    custom: RwLock<BTreeMap<String, Declared>>,
    served: RwLock<Arc<Served>>,
    generation: watch::Sender<u64>,
}

impl Registry {
    /// The built-in resources.
    ///
    /// # Errors
    /// A description of the table's first wrong line.
    pub fn new() -> Result<Self, String> {
        let built_in = BUILT_IN
            .lines()
            .filter(|l| !l.starts_with('#'))
            .map(|l| parse_line(l).map(Arc::new).ok_or_else(|| format!("bad built-in resource: {l}")))
            .collect::<Result<Vec<_>, _>>()?;
        let served = Served { resources: built_in.clone(), generation: 0 };
        Ok(Self {
            built_in,
            custom: RwLock::default(),
            served: RwLock::new(Arc::new(served)),
            generation: watch::Sender::new(0),
        })
    }

    /// What is served now.
    pub fn served(&self) -> Arc<Served> {
        self.served.read().clone()
    }

    /// Tells of every change of what is served, by its `generation`.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Serves what `crd` declares, in place of what it declared before.
    ///
    /// # Errors
    /// The fields of the definition that are wrong.
    pub fn define(&self, crd: &Value) -> Result<(), Vec<Cause>> {
        let name = crd["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if self.custom.read().get(&name).is_some_and(|(spec, _)| *spec == crd["spec"]) {
            // A change of metadata or status changes nothing that is served, and ends no watch.
            return Ok(());
        }
        let resources = compile(crd)?.into_iter().map(Arc::new).collect();
        self.custom.write().insert(name, (crd["spec"].clone(), resources));
        self.publish();
        Ok(())
    }

    /// Checks a definition without serving it.
    ///
    /// # Errors
    /// The fields of the definition that are wrong.
    pub fn check(&self, crd: &Value) -> Result<(), Vec<Cause>> {
        compile(crd).map(|_| ())
    }

    /// Stops serving what the definition of this name declares.
    pub fn undefine(&self, crd_name: &str) {
        self.custom.write().remove(crd_name);
        self.publish();
    }

    fn publish(&self) {
        // Held first, so that of two changes at once the later one is served.
        let mut served = self.served.write();
        let mut custom: Vec<Arc<Resource>> =
            self.custom.read().values().flat_map(|(_, all)| all).cloned().collect();
        custom.sort_by_key(|r| (r.group.clone(), version_rank(&r.version), r.plural.clone()));
        let generation = served.generation + 1;
        let resources = self.built_in.iter().cloned().chain(custom).collect();
        *served = Arc::new(Served { resources, generation });
        self.generation.send_replace(generation);
    }
}

fn split(text: &str) -> Vec<String> {
    if text == "-" { Vec::new() } else { text.split(',').map(str::to_owned).collect() }
}

fn verbs(text: &str) -> Vec<String> {
    if text == "*" { ALL_VERBS.iter().map(|v| (*v).to_owned()).collect() } else { split(text) }
}

fn parse_line(line: &str) -> Option<Resource> {
    let mut words = line.split(' ');
    let mut next = || words.next();
    let group = next().map(|g| if g == "core" { "" } else { g })?.to_owned();
    let (version, plural, singular, kind) =
        (next()?.to_owned(), next()?.to_owned(), next()?.to_owned(), next()?.to_owned());
    let namespaced = next()? == "N";
    let (short_names, categories, verbs_of) = (split(next()?), split(next()?), verbs(next()?));
    let subresources = words.filter(|w| *w != "-").map(parse_subresource).collect::<Option<Vec<_>>>()?;
    // Kinds that are served in several groups or versions are stored in one.
    let (stored_group, stored_version) = match (group.as_str(), plural.as_str()) {
        (_, "events") => ("", "v1".to_owned()),
        ("autoscaling", _) => (group.as_str(), "autoscaling/v2".to_owned()),
        _ => (group.as_str(), api_version(&group, &version)),
    };
    let storage = GroupResource::new(stored_group, &plural);
    let group_kind = GroupKind::new(&group, &kind);
    let definition = DEFINITIONS.of_kind(&group, &version, &kind).map(str::to_owned);
    let typing = (definition.as_deref().and_then(Typing::of_definition))
        .unwrap_or_else(Typing::untyped)
        .with_status_subresource(subresources.iter().any(|s| s.name == "status"));
    Some(Resource {
        storage_api_version: stored_version,
        definition,
        columns: table::columns_for(&group_kind, None).unwrap_or_default(),
        list_kind: format!("{kind}List"),
        verbs: verbs_of,
        custom: None,
        group,
        version,
        plural,
        singular,
        kind,
        namespaced,
        short_names,
        categories,
        subresources,
        storage,
        typing,
    })
}

fn parse_subresource(text: &str) -> Option<Subresource> {
    let mut parts = text.split('=');
    let (name, kind, verbs_of) = (parts.next()?, parts.next()?, parts.next()?);
    let path: Vec<&str> = kind.split('/').collect();
    let (group, version, kind) = match path.as_slice() {
        [g, v, k] => (*g, *v, *k),
        _ => ("", "", kind),
    };
    Some(Subresource {
        name: name.into(),
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        verbs: split(verbs_of),
    })
}

/// Sort key of a version name: GA before beta before alpha, newer first, then by name.
fn version_rank(version: &str) -> (u8, std::cmp::Reverse<u64>, std::cmp::Reverse<u64>, String) {
    use std::cmp::Reverse;
    let other = || (3, Reverse(0), Reverse(0), version.to_owned());
    let Some(rest) = version.strip_prefix('v') else { return other() };
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let Ok(major) = rest[..digits].parse() else { return other() };
    let (class, minor) = match &rest[digits..] {
        "" => (0, Some(0)),
        tail => match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
            (Some(n), _) => (1, n.parse().ok()),
            (_, Some(n)) => (2, n.parse().ok()),
            _ => return other(),
        },
    };
    match minor {
        Some(minor) => (class, Reverse(major), Reverse(minor), String::new()),
        None => other(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_resources_have_definitions() {
        let served = Registry::new().unwrap().served();
        for r in &served.resources {
            assert!(r.definition.is_some(), "{}", r.plural);
        }
        assert_eq!(served.find("", "v1", "pods").unwrap().short_names, ["po"]);
        assert_eq!(served.find("events.k8s.io", "v1", "events").unwrap().storage.group, "");
        let scale = served.find("apps", "v1", "deployments").unwrap().subresource("scale").unwrap().clone();
        assert_eq!((scale.group.as_str(), scale.kind.as_str()), ("autoscaling", "Scale"));
    }

    #[test]
    fn versions_sort_as_kubernetes_sorts_them() {
        let mut versions = ["foo1", "v1beta1", "v2alpha1", "v10", "v2", "v1", "v11beta2", "v3beta1"];
        versions.sort_by_key(|v| version_rank(v));
        assert_eq!(versions, ["v10", "v2", "v1", "v11beta2", "v3beta1", "v1beta1", "v2alpha1", "foo1"]);
    }
}
