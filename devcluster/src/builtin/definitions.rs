//! OpenAPI definitions of the built-in types, generated from `k8s-openapi`'s schemas and completed with what those leave out
//! of Kubernetes' own documents: vendor extensions (list types, merge keys), defaults, enumerations, some descriptions.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use k8s_openapi::api::{
    admissionregistration::v1 as admissionregistration,
    apps::v1 as apps,
    authentication::v1 as authentication,
    authorization::v1 as authorization,
    autoscaling::{v1 as autoscaling, v2 as autoscaling_v2},
    batch::v1 as batch,
    certificates::v1 as certificates,
    coordination::v1 as coordination,
    core::v1 as core,
    discovery::v1 as discovery,
    events::v1 as events,
    flowcontrol::v1 as flowcontrol,
    networking::v1 as networking,
    node::v1 as node,
    policy::v1 as policy,
    rbac::v1 as rbac,
    resource::v1 as resource,
    scheduling::v1 as scheduling,
    storage::v1 as storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// Prefix of references between the definitions kept here; rewritten for OpenAPI v3.
pub const REF_PREFIX: &str = "#/definitions/";
/// Name of the object metadata definition.
pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Name of the list metadata definition.
pub const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

const WATCH_EVENT: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent";
const EXTENSIONS: &str = include_str!("../data/openapi-extensions.txt");
const TEXTS: &str = include_str!("../data/openapi-texts.txt");
const ENUMERATIONS: &str = include_str!("../data/openapi-enums.txt");

/// All definitions, and which one describes which kind.
#[derive(Debug)]
pub struct Definitions {
    /// Definition name → schema.
    pub schemas: BTreeMap<String, Value>,
    /// `(group, version, kind)` → definition name.
    pub kinds: BTreeMap<(String, String, String), String>,
}

impl Definitions {
    /// The schema of a definition.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.schemas.get(name)
    }

    /// The definition of a kind.
    pub fn of_kind(&self, group: &str, version: &str, kind: &str) -> Option<&str> {
        self.kinds.get(&(group.into(), version.into(), kind.into())).map(String::as_str)
    }

    /// Follows a `$ref`.
    pub fn resolve<'a>(&'a self, schema: &'a Value) -> (&'a Value, Option<&'a str>) {
        match schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(REF_PREFIX)) {
            Some(name) => (self.get(name).unwrap_or(&Value::Null), Some(name)),
            None => (schema, None),
        }
    }
}

/// The definitions, built once.
pub static DEFINITIONS: LazyLock<Definitions> = LazyLock::new(build);

fn add<T>(generator: &mut SchemaGenerator, kinds: &mut Vec<((String, String, String), String)>, list: bool)
where
    T: JsonSchema + k8s_openapi::Resource,
{
    generator.subschema_for::<T>();
    let name = T::schema_name().into_owned();
    let key = |kind: String| (T::GROUP.to_owned(), T::VERSION.to_owned(), kind);
    kinds.push((key(T::KIND.to_owned()), name.clone()));
    if list {
        kinds.push((key(format!("{}List", T::KIND)), format!("{name}List")));
    }
}

macro_rules! add_all {
    ($generator:ident, $kinds:ident, $list:expr, $($t:ty),* $(,)?) => {
        $( add::<$t>(&mut $generator, &mut $kinds, $list); )*
    };
}

fn build() -> Definitions {
    let mut generator = SchemaGenerator::default();
    let mut kinds = Vec::new();
    add_all!(
        generator,
        kinds,
        true,
        core::ComponentStatus,
        core::ConfigMap,
        core::Endpoints,
        core::Event,
        core::LimitRange,
        core::Namespace,
        core::Node,
        core::PersistentVolumeClaim,
        core::PersistentVolume,
        core::Pod,
        core::PodTemplate,
        core::ReplicationController,
        core::ResourceQuota,
        core::Secret,
        core::ServiceAccount,
        core::Service,
        apiregistration::APIService,
        apps::ControllerRevision,
        apps::DaemonSet,
        apps::Deployment,
        apps::ReplicaSet,
        apps::StatefulSet,
        events::Event,
        autoscaling::HorizontalPodAutoscaler,
        autoscaling_v2::HorizontalPodAutoscaler,
        batch::CronJob,
        batch::Job,
        certificates::CertificateSigningRequest,
        networking::IPAddress,
        networking::IngressClass,
        networking::Ingress,
        networking::NetworkPolicy,
        networking::ServiceCIDR,
        policy::PodDisruptionBudget,
        rbac::ClusterRoleBinding,
        rbac::ClusterRole,
        rbac::RoleBinding,
        rbac::Role,
        storage::CSIDriver,
        storage::CSINode,
        storage::CSIStorageCapacity,
        storage::StorageClass,
        storage::VolumeAttachment,
        storage::VolumeAttributesClass,
        admissionregistration::MutatingWebhookConfiguration,
        admissionregistration::ValidatingAdmissionPolicy,
        admissionregistration::ValidatingAdmissionPolicyBinding,
        admissionregistration::ValidatingWebhookConfiguration,
        apiextensions::CustomResourceDefinition,
        scheduling::PriorityClass,
        coordination::Lease,
        node::RuntimeClass,
        discovery::EndpointSlice,
        resource::DeviceClass,
        resource::ResourceClaim,
        resource::ResourceClaimTemplate,
        resource::ResourceSlice,
        flowcontrol::FlowSchema,
        flowcontrol::PriorityLevelConfiguration,
    );
    add_all!(
        generator,
        kinds,
        false,
        core::Binding,
        policy::Eviction,
        autoscaling::Scale,
        authentication::SelfSubjectReview,
        authentication::TokenRequest,
        authentication::TokenReview,
        authorization::LocalSubjectAccessReview,
        authorization::SelfSubjectAccessReview,
        authorization::SelfSubjectRulesReview,
        authorization::SubjectAccessReview,
        meta::Status,
    );
    generator.subschema_for::<meta::DeleteOptions>();
    generator.subschema_for::<meta::ListMeta>();
    generator.subschema_for::<meta::Patch>();
    generator.subschema_for::<meta::APIResourceList>();
    generator.subschema_for::<RawExtension>();
    let mut schemas: BTreeMap<String, Value> = generator
        .take_definitions(true)
        .into_iter()
        .map(|(name, schema)| (name, normalise(schema)))
        .collect();
    // A generic type there, for which one schema does here.
    let event = json!({"type": "object", "required": ["type", "object"], "properties": {
        "type": {"type": "string"}, "object": {"$ref": format!("{REF_PREFIX}{}", RawExtension::schema_name())}}});
    schemas.insert(WATCH_EVENT.into(), event);
    for ((group, version, kind), name) in &kinds {
        if let Some(item) = name.strip_suffix("List").filter(|_| !schemas.contains_key(name)) {
            let list = list_schema(kind, &json!({"$ref": format!("{REF_PREFIX}{item}")}));
            schemas.insert(name.clone(), list);
        }
        if let Some(schema) = schemas.get_mut(name) {
            schema["x-kubernetes-group-version-kind"] =
                json!([{"group": group, "kind": kind, "version": version}]);
        }
    }
    extend(&mut schemas);
    Definitions { schemas, kinds: kinds.into_iter().collect() }
}

/// The schema of a list of `item`.
pub fn list_schema(kind: &str, item: &Value) -> Value {
    let of = kind.strip_suffix("List").unwrap_or(kind);
    json!({
        "description": format!("{kind} is a list of {of} objects."),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": API_VERSION_DESCRIPTION},
            "items": {"type": "array", "items": item, "description": format!("List of {of} objects.")},
            "kind": {"type": "string", "description": KIND_DESCRIPTION},
            "metadata": {"$ref": format!("{REF_PREFIX}{LIST_META}"), "description": "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"},
        },
    })
}

/// Description of every `apiVersion` field.
pub const API_VERSION_DESCRIPTION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
/// Description of every `kind` field.
pub const KIND_DESCRIPTION: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// Turns schemars' dialect into Kubernetes' own.
fn normalise(schema: Value) -> Value {
    match schema {
        Value::Bool(_) => json!({}),
        Value::Array(items) => items.into_iter().map(normalise).collect(),
        Value::Object(map) => {
            let mut out = Map::new();
            for (key, value) in map {
                let value = match key.as_str() {
                    "$ref" => match value.as_str().and_then(|r| r.strip_prefix("#/$defs/")) {
                        Some(name) => format!("{REF_PREFIX}{name}").into(),
                        None => value,
                    },
                    "properties" => match value {
                        Value::Object(p) => p.into_iter().map(|(k, v)| (k, normalise(v))).collect(),
                        other => other,
                    },
                    "required" => match value {
                        // k8s-openapi requires metadata; the API does not.
                        Value::Array(r) => r.into_iter().filter(|f| f != "metadata").collect(),
                        other => other,
                    },
                    "description" | "enum" | "default" => value,
                    _ => normalise_nested(value),
                };
                if !(key == "required" && value.as_array().is_some_and(Vec::is_empty)) {
                    out.insert(key, value);
                }
            }
            Value::Object(out)
        }
        other => other,
    }
}

/// Values of keywords: schemas are objects; scalars stay.
fn normalise_nested(value: Value) -> Value {
    match value {
        Value::Object(_) | Value::Array(_) => normalise(value),
        scalar => scalar,
    }
}

/// What the data files say beyond k8s-openapi's schemas: see their first lines for their forms.
fn extend(schemas: &mut BTreeMap<String, Value>) {
    for line in lines(TEXTS) {
        let mut words = line.splitn(3, ' ');
        let (Some(definition), Some(field), Some(text)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if let Some(target) = part(schemas, definition, field) {
            target.insert("description".into(), text.replace("\\n", "\n").into());
        }
    }
    for line in lines(EXTENSIONS) {
        let mut words = line.split(' ');
        let (Some(definition), Some(fields)) = (words.next(), words.next()) else { continue };
        let pairs: Vec<(&str, &str)> = words.filter_map(|word| word.split_once('=')).collect();
        for field in fields.split(',') {
            let Some(target) = part(schemas, definition, field) else { continue };
            pairs.iter().for_each(|(key, value)| extend_with(target, key, value));
        }
    }
    enumerate(schemas);
}

fn lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty())
}

/// A definition (`.`) or one of its fields; `[]` after a field stands for its items, `{}` for its values.
fn part<'a>(
    schemas: &'a mut BTreeMap<String, Value>,
    definition: &str,
    field: &str,
) -> Option<&'a mut Map<String, Value>> {
    let schema = schemas.get_mut(definition)?;
    let end = field.find(['[', '{']).unwrap_or(field.len());
    let (field, mut inside) = field.split_at(end);
    let mut target = match field {
        "." => schema,
        field => schema.get_mut("properties")?.get_mut(field)?,
    };
    while let Some((step, rest)) = inside.split_at_checked(2) {
        target = target.get_mut(if step == "[]" { "items" } else { "additionalProperties" })?;
        inside = rest;
    }
    target.as_object_mut()
}

fn extend_with(target: &mut Map<String, Value>, key: &str, value: &str) {
    let (name, value) = match key {
        "list" => ("x-kubernetes-list-type", Value::from(value)),
        "keys" => ("x-kubernetes-list-map-keys", value.split(',').collect()),
        "merge" => ("x-kubernetes-patch-merge-key", value.into()),
        "strategy" => ("x-kubernetes-patch-strategy", value.into()),
        "map" => ("x-kubernetes-map-type", value.into()),
        "drop" => {
            value.split(',').for_each(|keyword| drop(target.remove(keyword)));
            return;
        }
        keyword => match serde_json::from_str(value) {
            Ok(value) => (keyword, value),
            Err(_) => return,
        },
    };
    target.insert(name.into(), value);
}

/// Fields that hold one of a few texts name them, and say what each means.
fn enumerate(schemas: &mut BTreeMap<String, Value>) {
    let mut places: Vec<(&str, &str)> = Vec::new();
    let mut values: Vec<(&str, &str)> = Vec::new();
    // An empty place ends the last enumeration.
    for line in lines(ENUMERATIONS).chain(["> "]) {
        if let Some(place) = line.strip_prefix("> ") {
            if !values.is_empty() {
                places.drain(..).for_each(|place| enumerated(schemas, place, &values));
                values.clear();
            }
            places.extend(place.split_once(' '));
        } else if let Some((value, meaning)) = line.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
            values.push((value, meaning));
        }
    }
}

fn enumerated(
    schemas: &mut BTreeMap<String, Value>,
    (definition, field): (&str, &str),
    values: &[(&str, &str)],
) {
    let Some(target) = part(schemas, definition, field) else { return };
    target.insert("enum".into(), values.iter().map(|(value, _)| Value::from(*value)).collect());
    if let Some(Value::String(text)) = target.get_mut("description") {
        text.push_str("\n\nPossible enum values:");
        for (value, meaning) in values {
            text.push_str(&format!("\n - `\"{value}\"`{meaning}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_definitions_and_references_resolve() {
        let defs = &*DEFINITIONS;
        for name in defs.kinds.values() {
            assert!(defs.get(name).is_some(), "{name}");
        }
        fn walk(defs: &Definitions, value: &Value) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(r)) = map.get("$ref") {
                        let name = r.strip_prefix(REF_PREFIX).unwrap();
                        assert!(defs.get(name).is_some(), "{name}");
                    }
                    map.values().for_each(|v| walk(defs, v));
                }
                Value::Array(items) => items.iter().for_each(|v| walk(defs, v)),
                _ => {}
            }
        }
        defs.schemas.values().for_each(|s| walk(defs, s));
        let containers = &defs.get("io.k8s.api.core.v1.PodSpec").unwrap()["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    }
}
