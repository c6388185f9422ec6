//! Typings of the built-in kinds, from their OpenAPI definitions.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use serde_json::Value;

use super::typing::{ListKind, ListType, MapType, PatchHints, ScalarKind, Shape, Type};
use crate::builtin::definitions::{DEFINITIONS, OBJECT_META};
use crate::gvk::GroupKind;

/// The typing of `ObjectMeta`, which custom resources share.
pub(crate) fn object_meta() -> Arc<Type> {
    of_definition(OBJECT_META).unwrap_or_default()
}

/// The typing of a built-in kind, in the newest of its versions.
pub(crate) fn root(kind: &GroupKind) -> Option<Arc<Type>> {
    let of_kind = DEFINITIONS.kinds.iter().rev();
    let mut of_kind = of_kind.filter(|((group, _, name), _)| *group == kind.group && *name == kind.kind);
    of_definition(of_kind.next()?.1)
}

/// The typing of a definition, built on first use.
pub(crate) fn of_definition(name: &str) -> Option<Arc<Type>> {
    static CACHE: LazyLock<Mutex<HashMap<String, Arc<Type>>>> = LazyLock::new(Mutex::default);
    if let Some(hit) = CACHE.lock().get(name) {
        return Some(Arc::clone(hit));
    }
    let (name, schema) = DEFINITIONS.schemas.get_key_value(name)?;
    let mut builder = Builder { stack: vec![name] };
    let built = Arc::new(builder.build(schema, false));
    CACHE.lock().insert(name.clone(), Arc::clone(&built));
    Some(built)
}

struct Builder {
    /// Definitions being expanded, so that a recursive one (`JSONSchemaProps`) ends.
    stack: Vec<&'static str>,
}

impl Builder {
    fn build(&mut self, schema: &'static Value, atomic: bool) -> Type {
        let text = |key: &str| schema.get(key).and_then(Value::as_str);
        let atomic = atomic || text("x-kubernetes-map-type") == Some("atomic");
        if let (target, Some(name)) = DEFINITIONS.resolve(schema) {
            if name.ends_with("RawExtension") {
                // Whatever is in it belongs together.
                let any = MapType { fields: BTreeMap::new(), element: Some(Box::default()), atomic: true };
                return Type { shape: Shape::Map(any), patch: hints(schema) };
            }
            if self.stack.contains(&name) {
                return Type::default();
            }
            self.stack.push(name);
            let built = self.build(target, atomic);
            self.stack.pop();
            return Type { patch: hints(schema), ..built };
        }
        let shape = match text("type") {
            // Quantities may be written as numbers.
            Some("string") if self.stack.last().is_some_and(|name| name.ends_with("Quantity")) => {
                Shape::Scalar(ScalarKind::Any)
            }
            // `IntOrString` has no single type.
            Some("string") if text("format") == Some("int-or-string") => Shape::Scalar(ScalarKind::Any),
            Some(ty @ ("string" | "integer" | "number" | "boolean")) => {
                Shape::Scalar(ScalarKind::of(ty, text("format")))
            }
            Some("array") => Shape::List(self.list(schema)),
            Some("object") => self.map(schema, atomic),
            _ => Shape::Untyped,
        };
        Type { shape, patch: hints(schema) }
    }

    fn map(&mut self, schema: &'static Value, atomic: bool) -> Shape {
        let mut fields = BTreeMap::new();
        for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            fields.insert(name.clone(), self.build(schema, false));
        }
        let element = match schema.get("additionalProperties") {
            Some(schema @ Value::Object(_)) => Some(self.build(schema, false)),
            Some(Value::Bool(true)) => Some(Type::default()),
            _ if fields.is_empty() => return Shape::Untyped,
            _ => None,
        };
        Shape::Map(MapType { fields, element: element.map(Box::new), atomic })
    }

    fn list(&mut self, schema: &'static Value) -> ListType {
        let items = &schema["items"];
        let element = self.build(items, false);
        let (item, _) = DEFINITIONS.resolve(items);
        let default = |key: &str| item["properties"][key].get("default").cloned();
        let kind = match schema["x-kubernetes-list-type"].as_str() {
            Some("set") => ListKind::Set,
            Some("map") => {
                let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
                let keys = keys.filter_map(Value::as_str);
                ListKind::Map(keys.map(|key| (key.to_owned(), default(key))).collect())
            }
            _ => ListKind::Atomic,
        };
        ListType { kind, element: Box::new(element) }
    }
}

/// What strategic merge patches are told of a field.
fn hints(schema: &Value) -> PatchHints {
    let text = |key: &str| schema.get(key).and_then(Value::as_str);
    let strategy = text("x-kubernetes-patch-strategy").unwrap_or_default();
    PatchHints {
        merge: strategy.split(',').any(|s| s == "merge"),
        merge_key: text("x-kubernetes-patch-merge-key").map(str::to_owned),
        retain_keys: strategy.split(',').any(|s| s == "retainKeys"),
    }
}
