//! Operations on typed values: field sets, comparison, merging and removal, after `structured-merge-diff/typed`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::patch::go_text;

use super::fieldset::{self, Element, Set};
use super::typing::{ListKind, ListType, MapType, ScalarKind, Shape, Type, UNTYPED};

/// A map type that fits any object.
fn untyped_map() -> &'static MapType {
    static ANY: std::sync::LazyLock<MapType> =
        std::sync::LazyLock::new(|| MapType { element: Some(Box::default()), ..MapType::default() });
    &ANY
}

/// How a value of some type is treated.
enum Kind<'a> {
    Leaf,
    Map(&'a MapType),
    List(&'a ListType),
}

/// What the type, and where it says nothing the value, make of a value. `null` takes whatever form the type has.
fn kind_of<'a>(ty: &'a Type, value: &Value) -> Kind<'a> {
    match (&ty.shape, value) {
        (Shape::Map(map), Value::Object(_) | Value::Null) if !map.atomic => Kind::Map(map),
        (Shape::List(list), Value::Array(_) | Value::Null) if list.kind != ListKind::Atomic => {
            Kind::List(list)
        }
        (Shape::Untyped, Value::Object(_)) => Kind::Map(untyped_map()),
        _ => Kind::Leaf,
    }
}

/// The path step of a list item; an error where its list is atomic.
fn item_element(list: &ListType, item: &Value) -> Result<Element, String> {
    match &list.kind {
        ListKind::Set => Ok(fieldset::value(item)),
        ListKind::Map(keys) => {
            let mut found = Map::new();
            for (key, default) in keys {
                // An item without a key and a default for it is told apart by that.
                let value = item.get(key).filter(|v| !v.is_null()).or(default.as_ref());
                found.insert(key.clone(), value.cloned().unwrap_or_default());
            }
            Ok(fieldset::keys(found))
        }
        ListKind::Atomic => Err("list is atomic".to_owned()),
    }
}

/// The items of a list by path step, in order; `None` if a key is missing.
fn steps<'v>(list: &ListType, value: &'v Value) -> Option<Vec<(Element, &'v Value)>> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().map(|item| Some((item_element(list, item).ok()?, item))).collect()
}

/// Items by path step, those that are not told apart together.
fn grouped(items: Vec<(Element, &Value)>) -> BTreeMap<Element, Vec<&Value>> {
    let mut out: BTreeMap<Element, Vec<&Value>> = BTreeMap::new();
    for (element, item) in items {
        out.entry(element).or_default().push(item);
    }
    out
}

/// The items of a list by path step, in order; `None` if a key is missing or doubled.
fn index<'v>(list: &ListType, value: &'v Value) -> Option<Vec<(Element, &'v Value)>> {
    let mut seen = BTreeSet::new();
    let items = steps(list, value)?;
    items.iter().all(|(element, _)| seen.insert(element.clone())).then_some(items)
}

/// A value as Go prints it behind the interface of `structured-merge-diff`, by `%v` or (`full`) `%#v`.
fn go_value(value: &Value, full: bool) -> String {
    if full {
        format!("&value.valueUnstructured{{Value:{value}}}")
    } else {
        format!("&{{{}}}", go_text(value))
    }
}

/// What is wrong with a value of another kind than its type.
fn mismatch(ty: &Type, value: &Value) -> Option<String> {
    if value.is_null() {
        return None;
    }
    match &ty.shape {
        Shape::Scalar(ScalarKind::String) if !value.is_string() => {
            Some(format!("expected string, got {}", go_value(value, true)))
        }
        Shape::Scalar(ScalarKind::Numeric) if !value.is_number() => {
            let found = match value {
                Value::Bool(_) => "bool",
                Value::Array(_) => "[]interface {}",
                Value::Object(_) => "map[string]interface {}",
                _ => "string",
            };
            Some(format!("expected numeric (int or float), got {found}"))
        }
        Shape::Scalar(ScalarKind::Boolean) if !value.is_boolean() => {
            Some(format!("expected boolean, got {}", go_value(value, false)))
        }
        Shape::Map(_) if !value.is_object() => Some(format!("expected map, got {}", go_value(value, false))),
        Shape::List(_) if !value.is_array() => Some(format!("expected list, got {}", go_value(value, false))),
        _ => None,
    }
}

/// Checks that a configuration fits its type well enough to be applied: values of the declared kinds, list keys present and
/// unique, fields declared.
pub(crate) fn check(value: &Value, ty: &Type, path: &str, errors: &mut Vec<String>) {
    if let Some(error) = mismatch(ty, value) {
        errors.push(format!("{path}: {error}"));
        return;
    }
    match kind_of(ty, value) {
        Kind::Leaf => {}
        Kind::Map(map) => {
            for (key, child) in value.as_object().into_iter().flatten() {
                let path = format!("{path}.{key}");
                if !map.fields.contains_key(key) && map.element.is_none() {
                    errors.push(format!("{path}: field not declared in schema"));
                } else {
                    check(child, map.child(key), &path, errors);
                }
            }
        }
        Kind::List(list) => {
            let mut seen = BTreeSet::new();
            for (at, item) in value.as_array().into_iter().flatten().enumerate() {
                match item_element(list, item) {
                    Err(error) => errors.push(format!("{path}: element {at}: {error}")),
                    Ok(element) => {
                        let printed = fieldset::print(&element);
                        if !seen.insert(element) {
                            errors.push(format!("{path}: duplicate entries for key {printed}"));
                        }
                        check(item, &list.element, &format!("{path}{printed}"), errors);
                    }
                }
            }
        }
    }
}

/// The paths that a value sets.
pub(crate) fn to_set(value: &Value, ty: &Type) -> Set {
    let mut out = Set::default();
    collect(value, ty, &mut Vec::new(), &mut out);
    out
}

fn collect(value: &Value, ty: &Type, path: &mut Vec<Element>, out: &mut Set) {
    match kind_of(ty, value) {
        Kind::Leaf => out.insert(path),
        Kind::Map(map) => {
            for (key, child) in value.as_object().into_iter().flatten() {
                path.push(fieldset::field(key));
                collect(child, map.child(key), path, out);
                // An empty or arbitrary field is owned itself; a declared, filled one through what is in it.
                let empty = child.is_null() || child.as_object().is_some_and(Map::is_empty);
                if empty || !map.fields.contains_key(key) {
                    out.insert(path);
                }
                path.pop();
            }
        }
        Kind::List(list) => {
            for item in value.as_array().into_iter().flatten() {
                let Ok(element) = item_element(list, item) else { continue };
                path.push(element);
                collect(item, &list.element, path, out);
                out.insert(path);
                path.pop();
            }
        }
    }
}

/// What differs between two values.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) added: Set,
    pub(crate) modified: Set,
    pub(crate) removed: Set,
}

impl Comparison {
    pub(crate) fn is_same(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }
}

/// Compares two values of one type. The order of associative lists does not count.
pub(crate) fn compare(old: &Value, new: &Value, ty: &Type) -> Comparison {
    let mut out = Comparison::default();
    compare_at(Some(old), Some(new), ty, &mut Vec::new(), &mut out);
    out
}

fn compare_at<'v>(
    old: Option<&'v Value>,
    new: Option<&'v Value>,
    ty: &Type,
    path: &mut Vec<Element>,
    out: &mut Comparison,
) {
    let Some(probe) = new.filter(|v| !v.is_null()).or(old.filter(|v| !v.is_null())).or(new).or(old) else {
        return;
    };
    let fits = |value: Option<&Value>| {
        value.is_none_or(|v| {
            v.is_null() || (v.is_object() == probe.is_object() && v.is_array() == probe.is_array())
        })
    };
    let is_empty = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    };
    let kind = if fits(old) && fits(new) && !(is_empty(old) && is_empty(new)) {
        kind_of(ty, probe)
    } else {
        Kind::Leaf
    };
    match kind {
        Kind::Map(map) => {
            let empty = Map::new();
            let old_map = old.and_then(Value::as_object).unwrap_or(&empty);
            let new_map = new.and_then(Value::as_object).unwrap_or(&empty);
            let names: BTreeSet<&String> = old_map.keys().chain(new_map.keys()).collect();
            for name in names {
                path.push(fieldset::field(name));
                compare_at(old_map.get(name), new_map.get(name), map.child(name), path, out);
                path.pop();
            }
        }
        Kind::List(list) => {
            let old_items = steps(list, old.unwrap_or(&Value::Null)).map(grouped);
            let new_items = steps(list, new.unwrap_or(&Value::Null)).map(grouped);
            match (old_items, new_items) {
                (Some(old_items), Some(new_items)) => {
                    let names: BTreeSet<&Element> = old_items.keys().chain(new_items.keys()).collect();
                    for name in names {
                        path.push(name.clone());
                        match (old_items.get(name).map(Vec::as_slice), new_items.get(name).map(Vec::as_slice))
                        {
                            (None | Some([_]), None | Some([_])) => {
                                let only = |items: &BTreeMap<Element, Vec<&'v Value>>| {
                                    items.get(name).and_then(|items| items.first().copied())
                                };
                                let (old, new) = (only(&old_items), only(&new_items));
                                compare_at(old, new, &list.element, path, out);
                            }
                            // Items that are not told apart are one thing, whatever is in them.
                            (old, new) => {
                                let all = |items: Option<&[&Value]>| {
                                    items.map(|items| items.iter().map(|item| (*item).clone()).collect())
                                };
                                let (old, new): (Option<Value>, Option<Value>) = (all(old), all(new));
                                leaf(old.as_ref(), new.as_ref(), path, out);
                            }
                        }
                        path.pop();
                    }
                }
                _ => return leaf(old, new, path, out),
            }
        }
        Kind::Leaf => return leaf(old, new, path, out),
    }
    if old.is_none() {
        out.added.insert(path);
    } else if new.is_none() {
        out.removed.insert(path);
    }
}

fn leaf(old: Option<&Value>, new: Option<&Value>, path: &[Element], out: &mut Comparison) {
    match (old, new) {
        (None, Some(_)) => out.added.insert(path),
        (Some(_), None) => out.removed.insert(path),
        (Some(old), Some(new)) if !same(old, new) => out.modified.insert(path),
        _ => {}
    }
}

/// Equality that does not tell `1` from `1.0`.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same(v, w)))
        }
        _ => a == b,
    }
}

/// Lays `config` over `live`.
pub(crate) fn merge(live: Option<&Value>, config: &Value, ty: &Type) -> Value {
    let Some(live) = live.filter(|v| !v.is_null()) else { return config.clone() };
    match kind_of(ty, config) {
        Kind::Map(map) if live.is_object() => {
            let mut out = live.as_object().cloned().unwrap_or_default();
            for (key, value) in config.as_object().into_iter().flatten() {
                let merged = merge(live.get(key), value, map.child(key));
                out.insert(key.clone(), merged);
            }
            Value::Object(out)
        }
        Kind::List(list) if live.is_array() => match (index(list, live), index(list, config)) {
            (Some(live), Some(config)) => Value::Array(merge_lists(&live, &config, &list.element)),
            _ => config.clone(),
        },
        _ => config.clone(),
    }
}

/// Interleaves two associative lists: the configuration's order holds for its items, live items that it does not
/// name stay where they were between the shared ones.
fn merge_lists(live: &[(Element, &Value)], config: &[(Element, &Value)], item: &Type) -> Vec<Value> {
    let in_live: BTreeMap<&Element, &Value> = live.iter().map(|(e, v)| (e, *v)).collect();
    let in_config: BTreeSet<&Element> = config.iter().map(|(e, _)| e).collect();
    let mut shared = config.iter().map(|(e, _)| e).filter(|e| in_live.contains_key(e));
    let mut next_shared = shared.next();
    let mut taken = BTreeSet::new();
    let mut out = Vec::with_capacity(live.len() + config.len());
    let (mut l, mut r) = (0, 0);
    while l < live.len() || r < config.len() {
        if let (Some((le, lv)), Some((re, rv))) = (live.get(l), config.get(r)) {
            if le == re {
                out.push(merge(Some(lv), rv, item));
                taken.insert(re);
                l += 1;
                r += 1;
                next_shared = shared.next();
                continue;
            }
            if in_config.contains(le) && next_shared.is_some_and(|next| next != le) {
                l += 1;
                continue;
            }
        }
        if let Some((le, lv)) = live.get(l) {
            if !in_config.contains(le) {
                out.push((*lv).clone());
                l += 1;
                continue;
            }
            if taken.contains(le) {
                l += 1;
                continue;
            }
        }
        if let Some((re, rv)) = config.get(r) {
            out.push(merge(in_live.get(re).copied(), rv, item));
            taken.insert(re);
            r += 1;
            if next_shared == Some(re) {
                next_shared = shared.next();
            }
        } else {
            l += 1;
        }
    }
    out
}

/// `value` without the paths of `remove`; `None` if nothing is left of a map or list from which something was removed.
pub(crate) fn remove(value: &Value, remove_set: &Set, ty: &Type) -> Option<Value> {
    match kind_of(ty, value) {
        Kind::Leaf => Some(value.clone()),
        Kind::Map(map) => {
            let object = value.as_object()?;
            if object.is_empty() {
                return Some(value.clone());
            }
            let mut out = Map::new();
            for (key, child) in object {
                let element = fieldset::field(key);
                if let Some(kept) = remove_child(child, &element, remove_set, map.child(key)) {
                    out.insert(key.clone(), kept);
                }
            }
            (!out.is_empty()).then_some(Value::Object(out))
        }
        Kind::List(list) => {
            let items = value.as_array()?;
            if items.is_empty() {
                return Some(value.clone());
            }
            let kept: Vec<Value> = items
                .iter()
                .filter_map(|item| match item_element(list, item) {
                    Ok(element) => remove_child(item, &element, remove_set, &list.element),
                    Err(_) => Some(item.clone()),
                })
                .collect();
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
    }
}

fn remove_child(child: &Value, element: &Element, set: &Set, ty: &Type) -> Option<Value> {
    if set.members.contains(element) {
        return None;
    }
    match set.children.get(element) {
        Some(below) => remove(child, below, ty),
        None => Some(child.clone()),
    }
}

/// `set` with every declared field on the way to a member made a member itself.
pub(crate) fn with_named_fields(set: &Set, ty: &Type) -> Set {
    let mut out = Set { members: set.members.clone(), children: BTreeMap::new() };
    for (element, child) in &set.children {
        let (declared, below) = match (&ty.shape, element.strip_prefix("f:")) {
            (Shape::Map(map), Some(name)) => (map.fields.contains_key(name), map.child(name)),
            (Shape::List(list), None) => (false, list.element.as_ref()),
            _ => (false, &UNTYPED),
        };
        if declared {
            out.members.insert(element.clone());
        }
        out.children.insert(element.clone(), with_named_fields(child, below));
    }
    out
}
