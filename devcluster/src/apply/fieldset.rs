//! Sets of field paths: the content of `fieldsV1`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// One step of a path, in the spelling of `fieldsV1`: `f:name`, `k:{"key":…}`, `v:value`, `i:index`.
pub(crate) type Element = String;

/// A set of paths, as a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Set {
    /// Paths of length one.
    pub(crate) members: BTreeSet<Element>,
    /// Longer paths by their first step; no child is empty.
    pub(crate) children: BTreeMap<Element, Set>,
}

impl Set {
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.is_empty()
    }

    /// Adds one path; the empty path is ignored.
    pub(crate) fn insert(&mut self, path: &[Element]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// Drops every path that starts with a step.
    pub(crate) fn drop_below(&mut self, step: &str) {
        self.members.remove(step);
        self.children.remove(step);
    }

    /// Adds every path of `other`.
    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.members.extend(other.members.iter().cloned());
        for (element, child) in &other.children {
            let merged = match out.children.get(element) {
                Some(mine) => mine.union(child),
                None => child.clone(),
            };
            out.children.insert(element.clone(), merged);
        }
        out
    }

    /// The paths in both.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let children = self.children.iter().filter_map(|(element, child)| {
            let both = child.intersection(other.children.get(element)?);
            (!both.is_empty()).then(|| (element.clone(), both))
        });
        Self {
            members: self.members.intersection(&other.members).cloned().collect(),
            children: children.collect(),
        }
    }

    /// The paths that `other` does not have. A path in `other` does not stand for those below it.
    pub(crate) fn difference(&self, other: &Self) -> Self {
        let children = self.children.iter().filter_map(|(element, child)| {
            let rest = match other.children.get(element) {
                Some(theirs) => child.difference(theirs),
                None => child.clone(),
            };
            (!rest.is_empty()).then(|| (element.clone(), rest))
        });
        Self {
            members: self.members.difference(&other.members).cloned().collect(),
            children: children.collect(),
        }
    }

    /// Every path, printed as the API server does: `.spec.containers[name="a"].image`.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, prefix: &str, out: &mut Vec<String>) {
        out.extend(self.members.iter().map(|element| format!("{prefix}{}", print(element))));
        for (element, child) in &self.children {
            child.collect(&format!("{prefix}{}", print(element)), out);
        }
    }

    /// The set as a `fieldsV1` object.
    pub(crate) fn to_fields_v1(&self) -> Value {
        let mut out = Map::new();
        for element in &self.members {
            out.insert(element.clone(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            let mut value = child.to_fields_v1();
            if self.members.contains(element)
                && let Value::Object(map) = &mut value
            {
                map.insert(".".into(), Value::Object(Map::new()));
            }
            out.insert(element.clone(), value);
        }
        Value::Object(out)
    }

    /// Reads a `fieldsV1` object; steps that are malformed are dropped.
    pub(crate) fn from_fields_v1(fields: &Value) -> Self {
        let mut out = Self::default();
        for (key, value) in fields.as_object().into_iter().flatten() {
            let Some(element) = normalise(key) else { continue };
            let child = Self::from_fields_v1(value);
            let own = value.as_object().is_none_or(|map| map.is_empty() || map.contains_key("."));
            if own {
                out.members.insert(element.clone());
            }
            if !child.is_empty() {
                out.children.insert(element, child);
            }
        }
        out
    }
}

/// The step to a declared or arbitrary map key.
pub(crate) fn field(name: &str) -> Element {
    format!("f:{name}")
}

/// The step to an item of a list that is a map by `keys`.
pub(crate) fn keys(keys: Map<String, Value>) -> Element {
    // Keys are sorted so that one item has one spelling whatever order its schema lists them in.
    let sorted: BTreeMap<String, Value> = keys.into_iter().collect();
    format!("k:{}", serde_json::json!(sorted))
}

/// The step to an item of a set.
pub(crate) fn value(value: &Value) -> Element {
    format!("v:{value}")
}

fn normalise(key: &str) -> Option<Element> {
    let (kind, rest) = key.split_once(':')?;
    match kind {
        "f" | "i" => Some(key.to_owned()),
        "k" => match serde_json::from_str(rest).ok()? {
            Value::Object(map) => Some(keys(map)),
            _ => None,
        },
        "v" => Some(value(&serde_json::from_str(rest).ok()?)),
        _ => None,
    }
}

/// One step as it appears in a printed path.
pub(crate) fn print(element: &str) -> String {
    match element.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", json)) => {
            let map: BTreeMap<String, Value> = serde_json::from_str(json).unwrap_or_default();
            let terms: Vec<String> = map.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", terms.join(","))
        }
        Some(("v", value)) => format!("[={value}]"),
        Some((_, rest)) => format!("[{rest}]"),
        None => element.to_owned(),
    }
}
