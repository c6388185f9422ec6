//! How lists and maps of a kind merge.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::builtin;
use crate::gvk::GroupKind;

/// Which lists are sets, maps by key or atomic, and which maps are atomic, for one kind. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Typing {
    pub(crate) root: Arc<Type>,
    pub(crate) status_subresource: bool,
    /// Whether the kind is Kubernetes' own.
    pub(crate) built_in: bool,
}

/// The type of one field.
#[derive(Debug, Clone, Default)]
pub(crate) struct Type {
    pub(crate) shape: Shape,
    /// Hints for strategic merge patch; built-in kinds only.
    pub(crate) patch: PatchHints,
}

/// What server-side apply needs to know of a field.
#[derive(Debug, Clone, Default)]
pub(crate) enum Shape {
    /// Nothing is known: maps merge key by key, lists are atomic.
    #[default]
    Untyped,
    /// A string, number or boolean.
    Scalar(ScalarKind),
    /// An object.
    Map(MapType),
    /// An array.
    List(ListType),
}

/// What a scalar may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScalarKind {
    /// Of any kind: quantities, times, numbers or texts.
    Any,
    String,
    Numeric,
    Boolean,
}

impl ScalarKind {
    /// Of a schema's `type` and `format`.
    pub(crate) fn of(ty: &str, format: Option<&str>) -> Self {
        match ty {
            "string" if format == Some("date-time") => Self::Any,
            "string" => Self::String,
            "integer" | "number" => Self::Numeric,
            "boolean" => Self::Boolean,
            _ => Self::Any,
        }
    }
}

/// An object: declared fields, arbitrary keys, or both.
#[derive(Debug, Clone, Default)]
pub(crate) struct MapType {
    pub(crate) fields: BTreeMap<String, Type>,
    /// Type of the values of undeclared keys; `None` if no other key is allowed.
    pub(crate) element: Option<Box<Type>>,
    pub(crate) atomic: bool,
}

/// An array.
#[derive(Debug, Clone)]
pub(crate) struct ListType {
    pub(crate) kind: ListKind,
    pub(crate) element: Box<Type>,
}

/// How the items of an array are told apart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ListKind {
    /// Replaced as a whole.
    Atomic,
    /// Scalars, each its own key.
    Set,
    /// Objects told apart by these fields, each with the default that stands in for an absent one.
    Map(Vec<(String, Option<Value>)>),
}

/// `x-kubernetes-patch-strategy` and `x-kubernetes-patch-merge-key`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PatchHints {
    /// Lists: merge item by item instead of replacing.
    pub(crate) merge: bool,
    /// The field that tells items apart; absent for lists of scalars.
    pub(crate) merge_key: Option<String>,
    /// Maps: honour `$retainKeys`.
    pub(crate) retain_keys: bool,
}

pub(crate) static UNTYPED: Type =
    Type { shape: Shape::Untyped, patch: PatchHints { merge: false, merge_key: None, retain_keys: false } };

impl MapType {
    /// The type of the value at `key`, whether declared or not.
    pub(crate) fn child(&self, key: &str) -> &Type {
        self.fields.get(key).or(self.element.as_deref()).unwrap_or(&UNTYPED)
    }
}

impl Typing {
    /// Reads `x-kubernetes-list-type`, `-list-map-keys` and `-map-type` from a custom resource's structural schema.
    pub fn from_schema(openapi_v3_schema: &Value) -> Self {
        Self { root: Arc::new(resource(openapi_v3_schema, 0)), status_subresource: false, built_in: false }
    }

    /// The typing of a built-in kind, in the newest of its versions; `None` if it is unknown.
    pub fn builtin(kind: &GroupKind) -> Option<Self> {
        builtin::root(kind).map(|root| Self::built_in(root, kind.kind == "Event"))
    }

    /// The typing of a built-in kind by its definition; `None` if it is unknown.
    pub fn of_definition(name: &str) -> Option<Self> {
        builtin::of_definition(name).map(|root| Self::built_in(root, name.ends_with(".Event")))
    }

    fn built_in(root: Arc<Type>, event: bool) -> Self {
        // Built-in kinds with a status write it through the status subresource only.
        let status_subresource =
            matches!(&root.shape, Shape::Map(map) if map.fields.contains_key("status")) && !event;
        Self { root, status_subresource, built_in: true }
    }

    /// A typing that knows nothing but `metadata`: maps merge, lists are atomic.
    pub fn untyped() -> Self {
        Self::from_schema(
            &serde_json::json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        )
    }

    /// Declares whether the kind has a status subresource, so that applies to the main resource ignore `status`.
    #[must_use]
    pub fn with_status_subresource(self, enabled: bool) -> Self {
        Self { status_subresource: enabled, ..self }
    }
}

/// Depth at which a schema is no longer followed.
const MAX_DEPTH: usize = 64;

/// A schema node that holds a whole resource: its `metadata` is an `ObjectMeta` whatever the schema says.
fn resource(schema: &Value, depth: usize) -> Type {
    let mut map = match from_schema(schema, depth).shape {
        Shape::Map(map) => map,
        _ => MapType { element: Some(Box::default()), ..MapType::default() },
    };
    let scalar = || Type { shape: Shape::Scalar(ScalarKind::String), ..Type::default() };
    map.fields.insert("apiVersion".into(), scalar());
    map.fields.insert("kind".into(), scalar());
    map.fields.insert("metadata".into(), (*builtin::object_meta()).clone());
    Type { shape: Shape::Map(map), ..Type::default() }
}

fn from_schema(schema: &Value, depth: usize) -> Type {
    if depth > MAX_DEPTH {
        return Type::default();
    }
    let text = |key: &str| schema.get(key).and_then(Value::as_str);
    let flag = |key: &str| schema.get(key).and_then(Value::as_bool) == Some(true);
    let properties = schema.get("properties").and_then(Value::as_object);
    let shape = if flag("x-kubernetes-int-or-string") {
        Shape::Scalar(ScalarKind::Any)
    } else {
        match text("type") {
            Some(ty @ ("string" | "integer" | "number" | "boolean")) => {
                Shape::Scalar(ScalarKind::of(ty, text("format")))
            }
            Some("array") => Shape::List(list(schema, depth)),
            Some("object") | None if properties.is_some() || schema.get("additionalProperties").is_some() => {
                let child = |(name, schema): (&String, &Value)| {
                    let embedded = schema.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true));
                    let ty =
                        if embedded { resource(schema, depth + 1) } else { from_schema(schema, depth + 1) };
                    (name.clone(), ty)
                };
                let element = match schema.get("additionalProperties") {
                    Some(Value::Bool(true)) => Some(Type::default()),
                    Some(schema @ Value::Object(_)) => Some(from_schema(schema, depth + 1)),
                    _ if flag("x-kubernetes-preserve-unknown-fields") => Some(Type::default()),
                    _ => None,
                };
                Shape::Map(MapType {
                    fields: properties.into_iter().flatten().map(child).collect(),
                    element: element.map(Box::new),
                    atomic: text("x-kubernetes-map-type") == Some("atomic"),
                })
            }
            Some("object") if text("x-kubernetes-map-type") == Some("atomic") => {
                Shape::Map(MapType { element: Some(Box::default()), atomic: true, ..MapType::default() })
            }
            _ => Shape::Untyped,
        }
    };
    Type { shape, patch: PatchHints::default() }
}

fn list(schema: &Value, depth: usize) -> ListType {
    let items = schema.get("items");
    let kind = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => ListKind::Set,
        Some("map") => {
            let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
            let keys = keys.into_iter().flatten().filter_map(Value::as_str);
            let default =
                |key: &str| items.and_then(|i| i.get("properties")?.get(key)?.get("default")).cloned();
            ListKind::Map(keys.map(|key| (key.to_owned(), default(key))).collect())
        }
        _ => ListKind::Atomic,
    };
    ListType { kind, element: Box::new(items.map_or_else(Type::default, |i| from_schema(i, depth + 1))) }
}
