//! Typings of the built-in kinds: structure from k8s-openapi's schemas, merge rules from Kubernetes's own OpenAPI document.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::autoscaling::{v1 as autoscaling_v1, v2 as autoscaling_v2};
use k8s_openapi::api::{
    admissionregistration::v1 as admissionregistration_v1, apps::v1 as apps_v1,
    authentication::v1 as authentication_v1, authorization::v1 as authorization_v1, batch::v1 as batch_v1,
    coordination::v1 as coordination_v1, core::v1 as core_v1, discovery::v1 as discovery_v1,
    events::v1 as events_v1, networking::v1 as networking_v1, node::v1 as node_v1, policy::v1 as policy_v1,
    rbac::v1 as rbac_v1, resource::v1 as resource_v1, scheduling::v1 as scheduling_v1,
    storage::v1 as storage_v1,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions_v1;
use k8s_openapi::apimachinery::pkg::apis::meta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration_v1;
use k8s_openapi::schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use parking_lot::Mutex;
use serde_json::Value;

use super::typing::{ListKind, ListType, MapType, PatchHints, ScalarKind, Shape, Type};
use crate::gvk::GroupKind;

/// Vendor extensions by definition and field; see the file's first lines for its form.
static EXTENSIONS: LazyLock<HashMap<(&'static str, &'static str), Extension>> =
    LazyLock::new(|| parse(include_str!("../data/openapi-extensions.txt")));

/// The vendor extensions of one field.
#[derive(Debug, Default, Clone)]
struct Extension {
    list: Option<&'static str>,
    keys: Vec<&'static str>,
    merge_key: Option<&'static str>,
    strategy: Vec<&'static str>,
    atomic_map: bool,
}

fn parse(text: &'static str) -> HashMap<(&'static str, &'static str), Extension> {
    let mut out = HashMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let (Some(definition), Some(field)) = (words.next(), words.next()) else { continue };
        let mut extension = Extension::default();
        for word in words {
            match word.split_once('=') {
                Some(("list", value)) => extension.list = Some(value),
                Some(("keys", value)) => extension.keys = value.split(',').collect(),
                Some(("merge", value)) => extension.merge_key = Some(value),
                Some(("strategy", value)) => extension.strategy = value.split(',').collect(),
                Some(("map", value)) => extension.atomic_map = value == "atomic",
                _ => {}
            }
        }
        out.insert((definition, field), extension);
    }
    out
}

/// The typing of `ObjectMeta`, which custom resources share.
pub(crate) fn object_meta() -> Arc<Type> {
    static META: LazyLock<Arc<Type>> = LazyLock::new(|| Arc::new(type_of::<meta::v1::ObjectMeta>()));
    Arc::clone(&META)
}

/// The typing of a built-in kind, built on first use.
pub(crate) fn root(kind: &GroupKind) -> Option<Arc<Type>> {
    static CACHE: LazyLock<Mutex<HashMap<GroupKind, Option<Arc<Type>>>>> = LazyLock::new(Mutex::default);
    if let Some(hit) = CACHE.lock().get(kind) {
        return hit.clone();
    }
    let built = build(kind).map(Arc::new);
    CACHE.lock().insert(kind.clone(), built.clone());
    built
}

macro_rules! kinds {
    ($kind:expr; $($group:literal: $module:ident { $($name:ident),* $(,)? })*) => {
        match ($kind.group.as_str(), $kind.kind.as_str()) {
            $($(($group, stringify!($name)) => Some(type_of::<$module::$name>()),)*)*
            _ => None,
        }
    };
}

fn build(kind: &GroupKind) -> Option<Type> {
    kinds! { kind;
        "": core_v1 {
            Binding, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume,
            PersistentVolumeClaim, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, Service,
            ServiceAccount,
        }
        "admissionregistration.k8s.io": admissionregistration_v1 {
            MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
            ValidatingWebhookConfiguration,
        }
        "apps": apps_v1 { ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet }
        "authentication.k8s.io": authentication_v1 { SelfSubjectReview, TokenRequest, TokenReview }
        "authorization.k8s.io": authorization_v1 {
            LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
        }
        "autoscaling": autoscaling_v1 { Scale }
        "autoscaling": autoscaling_v2 { HorizontalPodAutoscaler }
        "batch": batch_v1 { CronJob, Job }
        "coordination.k8s.io": coordination_v1 { Lease }
        "discovery.k8s.io": discovery_v1 { EndpointSlice }
        "events.k8s.io": events_v1 { Event }
        "networking.k8s.io": networking_v1 { Ingress, IngressClass, NetworkPolicy }
        "node.k8s.io": node_v1 { RuntimeClass }
        "policy": policy_v1 { Eviction, PodDisruptionBudget }
        "rbac.authorization.k8s.io": rbac_v1 { ClusterRole, ClusterRoleBinding, Role, RoleBinding }
        "resource.k8s.io": resource_v1 { DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice }
        "scheduling.k8s.io": scheduling_v1 { PriorityClass }
        "storage.k8s.io": storage_v1 { CSIDriver, CSINode, StorageClass, VolumeAttachment }
        "apiextensions.k8s.io": apiextensions_v1 { CustomResourceDefinition }
        "apiregistration.k8s.io": apiregistration_v1 { APIService }
    }
}

fn type_of<T: JsonSchema>() -> Type {
    let mut generator = SchemaGenerator::new(SchemaSettings::openapi3());
    let root = generator.subschema_for::<T>().to_value();
    let definitions: BTreeMap<String, Value> = generator.take_definitions(true).into_iter().collect();
    Builder { definitions: &definitions, stack: Vec::new() }.build(&root, &Extension::default(), false)
}

struct Builder<'a> {
    definitions: &'a BTreeMap<String, Value>,
    /// Definitions being expanded, so that a recursive one (`JSONSchemaProps`) ends.
    stack: Vec<&'a str>,
}

impl<'a> Builder<'a> {
    fn build(&mut self, schema: &'a Value, extension: &Extension, atomic: bool) -> Type {
        if let Some(reference) = reference(schema) {
            let name = reference.rsplit('/').next().unwrap_or_default();
            let Some((name, target)) = self.definitions.get_key_value(name) else { return Type::default() };
            if name.ends_with("RawExtension") {
                // Whatever is in it belongs together.
                let any = MapType { fields: BTreeMap::new(), element: Some(Box::default()), atomic: true };
                return Type { shape: Shape::Map(any), patch: PatchHints::default() };
            }
            if self.stack.contains(&name.as_str()) {
                return Type::default();
            }
            self.stack.push(name);
            let own = EXTENSIONS.get(&(name.as_str(), "."));
            let atomic = atomic || extension.atomic_map || own.is_some_and(|e| e.atomic_map);
            let ty = self.build(target, extension, atomic);
            self.stack.pop();
            return ty;
        }
        let atomic = atomic || extension.atomic_map;
        let shape = match schema.get("type").and_then(Value::as_str) {
            // Quantities may be written as numbers.
            Some("string") if self.stack.last().is_some_and(|name| name.ends_with("Quantity")) => {
                Shape::Scalar(ScalarKind::Any)
            }
            Some(ty @ ("string" | "integer" | "number" | "boolean")) => {
                Shape::Scalar(ScalarKind::of(ty, schema.get("format").and_then(Value::as_str)))
            }
            Some("array") => Shape::List(self.list(schema, extension)),
            Some("object") => self.map(schema, atomic),
            // `IntOrString` has no single type.
            _ if schema.get("x-kubernetes-int-or-string").is_some() || schema.get("anyOf").is_some() => {
                Shape::Scalar(ScalarKind::Any)
            }
            _ => Shape::Untyped,
        };
        let patch = PatchHints {
            merge: extension.strategy.contains(&"merge"),
            merge_key: extension.merge_key.map(str::to_owned),
            retain_keys: extension.strategy.contains(&"retainKeys"),
        };
        Type { shape, patch }
    }

    fn map(&mut self, schema: &'a Value, atomic: bool) -> Shape {
        let definition = self.stack.last().copied().unwrap_or_default();
        let mut fields = BTreeMap::new();
        for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let extension = EXTENSIONS.get(&(definition, name.as_str())).cloned().unwrap_or_default();
            fields.insert(name.clone(), self.build(schema, &extension, false));
        }
        let element = match schema.get("additionalProperties") {
            Some(schema @ Value::Object(_)) => Some(self.build(schema, &Extension::default(), false)),
            Some(Value::Bool(true)) => Some(Type::default()),
            _ if fields.is_empty() => return Shape::Untyped,
            _ => None,
        };
        Shape::Map(MapType { fields, element: element.map(Box::new), atomic })
    }

    fn list(&mut self, schema: &'a Value, extension: &Extension) -> ListType {
        let items = schema.get("items");
        let element = match items {
            Some(items) => self.build(items, &Extension::default(), false),
            None => Type::default(),
        };
        // The only defaulted key of a built-in list is the protocol of container and service ports.
        let default = |key: &str| (key == "protocol").then(|| Value::from("TCP"));
        let kind = match extension.list {
            Some("set") => ListKind::Set,
            Some("map") => {
                ListKind::Map(extension.keys.iter().map(|key| ((*key).to_owned(), default(key))).collect())
            }
            _ => ListKind::Atomic,
        };
        ListType { kind, element: Box::new(element) }
    }
}

/// The `$ref` of a schema, also where it is wrapped in a one-element `allOf` to carry a description.
fn reference(schema: &Value) -> Option<&str> {
    let direct = schema.get("$ref");
    let wrapped = || match schema.get("allOf")?.as_array()?.as_slice() {
        [only] => only.get("$ref"),
        _ => None,
    };
    direct.or_else(wrapped)?.as_str()
}
