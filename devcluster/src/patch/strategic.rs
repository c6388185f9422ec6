//! Strategic merge patch, after `k8s.io/apimachinery/pkg/util/strategicpatch`.

use serde_json::{Map, Value};

use super::PatchError;
use crate::apply::builtin;
use crate::apply::typing::{ListKind, Shape, Type, UNTYPED};
use crate::gvk::GroupKind;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Strategic merge patch for built-in kinds: lists merge by the merge keys of the kind's type.
///
/// # Errors
/// [`PatchError::Unsupported`] for kinds that are not built in; [`PatchError::Malformed`] for a wrong directive or a
/// list item without its merge key.
pub fn strategic(current: &Value, patch: &Value, kind: &GroupKind) -> Result<Value, PatchError> {
    let root = builtin::root(kind).ok_or(PatchError::Unsupported)?;
    let (Value::Object(current), Value::Object(patch)) = (current, patch) else {
        return Err(PatchError::Malformed("a strategic merge patch must be an object".into()));
    };
    Ok(Value::Object(merge_map(current, patch, &root)?))
}

fn malformed(message: impl Into<String>) -> PatchError {
    PatchError::Malformed(message.into())
}

fn unknown(directive: &str, at: &Map<String, Value>) -> PatchError {
    let shown = super::go_text(&Value::Object(at.clone()));
    PatchError::Unexpected(format!("unknown patch type: {directive} in map: {shown}"))
}

fn child_type<'a>(ty: &'a Type, key: &str) -> &'a Type {
    match &ty.shape {
        Shape::Map(map) => map.child(key),
        _ => &UNTYPED,
    }
}

fn merge_map(
    original: &Map<String, Value>,
    patch: &Map<String, Value>,
    ty: &Type,
) -> Result<Map<String, Value>, PatchError> {
    match patch.get(DIRECTIVE) {
        None => {}
        Some(Value::String(directive)) => match directive.as_str() {
            "merge" => {}
            "delete" => return Ok(Map::new()),
            "replace" => {
                let mut out = patch.clone();
                out.remove(DIRECTIVE);
                return Ok(out);
            }
            other => return Err(unknown(other, patch)),
        },
        Some(other) => return Err(malformed(format!("{DIRECTIVE} must be a string, got {other}"))),
    }
    let mut out = original.clone();
    if let Some(retain) = patch.get(RETAIN_KEYS) {
        let keys =
            strings(retain).ok_or_else(|| malformed(format!("{RETAIN_KEYS} must be a list of strings")))?;
        if let Some(stray) =
            patch.iter().find(|(k, v)| !k.starts_with('$') && !v.is_null() && !keys.contains(&k.as_str()))
        {
            return Err(malformed(format!(
                "{RETAIN_KEYS} must hold every key of the patch, {:?} is missing",
                stray.0
            )));
        }
        out.retain(|key, _| keys.contains(&key.as_str()));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_PRIMITIVES) {
            let gone = value.as_array().ok_or_else(|| malformed(format!("{key} must be a list")))?;
            if let Some(Value::Array(items)) = out.get_mut(field) {
                items.retain(|item| !gone.contains(item));
            }
        }
    }
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        let child = child_type(ty, key);
        match value {
            Value::Null => {
                out.remove(key);
            }
            Value::Object(changes) => {
                let empty = Map::new();
                let base = out.get(key).and_then(Value::as_object).unwrap_or(&empty);
                let deleted = changes.get(DIRECTIVE).and_then(Value::as_str) == Some("delete");
                let merged = merge_map(base, changes, child)?;
                if deleted {
                    out.remove(key);
                } else {
                    out.insert(key.clone(), Value::Object(merged));
                }
            }
            Value::Array(changes) => {
                let merged = match out.get(key).and_then(Value::as_array) {
                    base if child.patch.merge => {
                        let base = base.map(Vec::as_slice).unwrap_or_default();
                        let order = patch.get(&format!("{SET_ORDER}{key}"));
                        merge_list(base, changes, order, child)?
                    }
                    _ => changes.clone(),
                };
                out.insert(key.clone(), Value::Array(merged));
            }
            scalar => {
                out.insert(key.clone(), scalar.clone());
            }
        }
    }
    // An order for a list that the patch does not otherwise touch still reorders it.
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix(SET_ORDER)
            && !patch.contains_key(field)
            && let Some(Value::Array(base)) = out.get(field)
        {
            let merged = merge_list(&base.clone(), &[], Some(order), child_type(ty, field))?;
            out.insert(field.to_owned(), Value::Array(merged));
        }
    }
    Ok(out)
}

fn strings(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}

/// What tells the items of one list apart.
struct Identity<'a> {
    /// The merge key; `None` for scalars.
    key: Option<&'a str>,
    /// Every key of the list map, with defaults: containers may expose one port over two protocols.
    all: &'a [(String, Option<Value>)],
}

impl Identity<'_> {
    fn same(&self, a: &Value, b: &Value) -> bool {
        let Some(key) = self.key else { return a == b };
        let primary = a.get(key);
        primary.is_some()
            && primary == b.get(key)
            && self.all.iter().filter(|(name, _)| name != key).all(|(name, default)| {
                match (a.get(name).or(default.as_ref()), b.get(name).or(default.as_ref())) {
                    // Items that do not mention a secondary key match on the merge key alone.
                    (Some(_), Some(_)) if a.get(name).is_none() || b.get(name).is_none() => {
                        a.get(name).or(default.as_ref()) == b.get(name).or(default.as_ref())
                    }
                    (Some(x), Some(y)) => x == y,
                    _ => true,
                }
            })
    }

    fn find(&self, list: &[Value], item: &Value) -> Option<usize> {
        list.iter().position(|other| self.same(other, item))
    }
}

fn merge_list(
    original: &[Value],
    patch: &[Value],
    order: Option<&Value>,
    ty: &Type,
) -> Result<Vec<Value>, PatchError> {
    let (all, item_type): (&[_], &Type) = match &ty.shape {
        Shape::List(list) => match &list.kind {
            ListKind::Map(keys) => (keys, &list.element),
            _ => (&[], &list.element),
        },
        _ => (&[], &UNTYPED),
    };
    let identity = Identity { key: ty.patch.merge_key.as_deref(), all };
    let mut merged = original.to_vec();
    let mut plain = Vec::new();
    let mut replace = false;
    for item in patch {
        let (Some(key), Value::Object(map)) = (identity.key, item) else {
            plain.push(item.clone());
            continue;
        };
        match map.get(DIRECTIVE).and_then(Value::as_str) {
            Some("replace") if !map.contains_key(key) => replace = true,
            Some("delete") => {
                if !map.contains_key(key) {
                    return Err(malformed(format!(
                        "delete patch type with no merge key defined: {key:?} is missing"
                    )));
                }
                merged.retain(|other| !identity.same(other, item));
            }
            Some("replace" | "merge") | None => plain.push(item.clone()),
            Some(other) => return Err(unknown(other, map)),
        }
    }
    if replace {
        return Ok(plain);
    }
    for item in &plain {
        let at = identity.find(&merged, item);
        match (identity.key, item, at) {
            (Some(key), Value::Object(map), _) if !map.contains_key(key) => {
                let shown = super::go_text(item);
                return Err(PatchError::Unexpected(format!(
                    "map: {shown} does not contain declared merge key: {key}"
                )));
            }
            (Some(key), other, _) if !other.is_object() => {
                return Err(malformed(format!("expected an object with merge key {key}, got {other}")));
            }
            (Some(_), Value::Object(map), found) => {
                let empty = Map::new();
                let base = found.and_then(|at| merged.get(at)).and_then(Value::as_object).unwrap_or(&empty);
                let value = Value::Object(merge_map(base, map, item_type)?);
                match found {
                    Some(at) => merged[at] = value,
                    None => merged.push(value),
                }
            }
            (None, _, None) => merged.push(item.clone()),
            _ => {}
        }
    }
    let order = match order {
        Some(Value::Array(order)) => order.as_slice(),
        Some(_) => return Err(malformed("$setElementOrder must be a list")),
        None => plain.as_slice(),
    };
    Ok(arrange(merged, order, original, &identity))
}

/// Puts the items that `order` names in its order, and lets the others keep their place relative to `original`.
fn arrange(merged: Vec<Value>, order: &[Value], original: &[Value], identity: &Identity<'_>) -> Vec<Value> {
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| identity.find(order, item).is_some());
    named.sort_by_key(|item| identity.find(order, item));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let take_named = match (named.peek(), others.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(n), Some(o)) => match (identity.find(original, n), identity.find(original, o)) {
                (Some(n), Some(o)) => n < o,
                // What the patch brings comes first.
                _ => true,
            },
        };
        out.extend(if take_named { named.next() } else { others.next() });
    }
}
