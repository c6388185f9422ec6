//! From `openAPIV3Schema` to a tree that is quick to walk.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value};

use super::cel::Rule;
use super::error::{ErrorKind, FieldError, SchemaError};
use super::{shape, validate};

/// One schema node.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) kind: Option<Kind>,
    pub(super) nullable: bool,
    pub(super) int_or_string: bool,
    pub(super) preserve_unknown: bool,
    /// The node holds a whole resource: the root and `x-kubernetes-embedded-resource`.
    pub(super) resource: bool,
    pub(super) format: Option<String>,
    pub(super) properties: BTreeMap<String, Node>,
    pub(super) additional: Additional,
    pub(super) items: Option<Box<Node>>,
    pub(super) required: Vec<String>,
    pub(super) allowed: Option<Vec<Value>>,
    pub(super) minimum: Option<Bound>,
    pub(super) maximum: Option<Bound>,
    pub(super) multiple_of: Option<f64>,
    pub(super) length: Range,
    pub(super) item_count: Range,
    pub(super) property_count: Range,
    pub(super) pattern: Option<(String, Regex)>,
    pub(super) unique_items: bool,
    pub(super) all_of: Vec<Node>,
    pub(super) any_of: Vec<Node>,
    pub(super) one_of: Vec<Node>,
    pub(super) not: Option<Box<Node>>,
    pub(super) list: List,
    pub(super) default: Option<Value>,
    pub(super) rules: Vec<Rule>,
    /// Whether this node or one below it has rules.
    pub(super) has_rules: bool,
}

/// A JSON type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

/// What a server says of a pattern that cannot be read; for what it has its own words for, those.
fn complaint(pattern: &str, error: &regex::Error) -> String {
    match error.to_string() {
        text if text.ends_with("unclosed group") => {
            format!("error parsing regexp: missing closing ): `{pattern}`")
        }
        text => text,
    }
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

/// What undeclared keys of an object may hold.
#[derive(Debug, Default)]
pub(super) enum Additional {
    #[default]
    Unknown,
    Anything,
    Of(Box<Node>),
}

/// A numeric limit.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) limit: serde_json::Number,
    pub(super) exclusive: bool,
}

/// Limits of a count.
#[derive(Debug, Default)]
pub(super) struct Range {
    pub(super) min: Option<u64>,
    pub(super) max: Option<u64>,
}

/// `x-kubernetes-list-type`.
#[derive(Debug, Default, PartialEq)]
pub(super) enum List {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

impl Node {
    /// The schema of the value at `key`, unless anything goes or nothing is known.
    pub(super) fn child(&self, key: &str) -> Option<&Node> {
        self.properties.get(key).or(match &self.additional {
            Additional::Of(node) => Some(node),
            _ => None,
        })
    }
}

/// Depth beyond which a schema is refused.
const MAX_DEPTH: usize = 64;

pub(super) fn compile(schema: &Value) -> Result<Node, SchemaError> {
    let mut compiler = Compiler { errors: Vec::new() };
    let mut root = compiler.node(schema, "", Place::Root, 0);
    root.resource = true;
    if compiler.errors.is_empty() { Ok(root) } else { Err(SchemaError(compiler.errors)) }
}

/// Where a node stands: structural schemas demand a type everywhere but within `anyOf` and the like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    Field,
    Item,
    /// Within `allOf`, `anyOf`, `oneOf` or `not`: value validation only.
    Value,
}

struct Compiler {
    errors: Vec<FieldError>,
}

impl Compiler {
    fn required(&mut self, path: String, message: &str) {
        self.errors.push(FieldError::new(path, ErrorKind::Required, None, message));
    }

    fn invalid(&mut self, path: String, value: Value, message: impl Into<String>) {
        self.errors.push(FieldError::new(path, ErrorKind::Invalid, Some(value), message));
    }

    fn forbidden(&mut self, path: String, message: &str) {
        self.errors.push(FieldError::new(path, ErrorKind::Forbidden, None, message));
    }

    fn node(&mut self, schema: &Value, path: &str, place: Place, depth: usize) -> Node {
        let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        if depth > MAX_DEPTH {
            self.invalid(path.to_owned(), Value::Null, format!("nested deeper than {MAX_DEPTH} levels"));
            return Node::default();
        }
        let Some(schema) = schema.as_object() else {
            self.invalid(path.to_owned(), schema.clone(), "must be a schema object");
            return Node::default();
        };
        let flag = |key: &str| schema.get(key).and_then(Value::as_bool) == Some(true);
        let count = |key: &str| schema.get(key).and_then(Value::as_u64);
        let range = |min: &str, max: &str| Range { min: count(min), max: count(max) };
        let mut node = Node {
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            resource: flag("x-kubernetes-embedded-resource"),
            format: schema.get("format").and_then(Value::as_str).map(str::to_owned),
            required: strings(schema.get("required")),
            allowed: schema.get("enum").and_then(Value::as_array).cloned(),
            minimum: bound(schema, "minimum", "exclusiveMinimum"),
            maximum: bound(schema, "maximum", "exclusiveMaximum"),
            multiple_of: schema.get("multipleOf").and_then(Value::as_f64),
            length: range("minLength", "maxLength"),
            item_count: range("minItems", "maxItems"),
            property_count: range("minProperties", "maxProperties"),
            unique_items: flag("uniqueItems"),
            ..Node::default()
        };
        self.kind(&mut node, schema, &join("type"), place);
        if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
            match Regex::new(pattern) {
                Ok(regex) => node.pattern = Some((pattern.to_owned(), regex)),
                Err(error) => self.invalid(
                    join("pattern"),
                    Value::from(pattern),
                    format!("must be a valid regular expression, but isn't: {}", complaint(pattern, &error)),
                ),
            }
        }
        for (name, child) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let place = if place == Place::Value { Place::Value } else { Place::Field };
            let child = self.node(child, &join(&format!("properties[{name}]")), place, depth + 1);
            node.properties.insert(name.clone(), child);
        }
        node.additional = match schema.get("additionalProperties") {
            None | Some(Value::Bool(false) | Value::Null) => Additional::Unknown,
            Some(Value::Bool(true)) => Additional::Anything,
            Some(child) => {
                let place = if place == Place::Value { Place::Value } else { Place::Field };
                Additional::Of(Box::new(self.node(child, &join("additionalProperties"), place, depth + 1)))
            }
        };
        if place != Place::Value
            && !node.properties.is_empty()
            && !matches!(node.additional, Additional::Unknown)
        {
            self.forbidden(
                join("additionalProperties"),
                "additionalProperties and properties are mutual exclusive",
            );
        }
        if let Some(items) = schema.get("items") {
            let place = if place == Place::Value { Place::Value } else { Place::Item };
            node.items = Some(Box::new(self.node(items, &join("items"), place, depth + 1)));
        } else if node.kind == Some(Kind::Array) && place != Place::Value {
            self.required(join("items"), "must be specified");
        }
        node.all_of = self.branches(schema, "allOf", path, depth);
        node.any_of = self.branches(schema, "anyOf", path, depth);
        node.one_of = self.branches(schema, "oneOf", path, depth);
        node.not =
            schema.get("not").map(|not| Box::new(self.node(not, &join("not"), Place::Value, depth + 1)));
        self.list(&mut node, schema, &join);
        self.rules(&mut node, schema, &join, place);
        let below = node.properties.values().chain(node.items.as_deref()).chain(match &node.additional {
            Additional::Of(child) => Some(&**child),
            _ => None,
        });
        node.has_rules = !node.rules.is_empty() || below.into_iter().any(|child| child.has_rules);
        if let Some(default) = schema.get("default") {
            self.default(&mut node, default, &join("default"));
        }
        node
    }

    fn branches(&mut self, schema: &Map<String, Value>, key: &str, path: &str, depth: usize) -> Vec<Node> {
        let branches = schema.get(key).and_then(Value::as_array);
        let join = |at: usize| {
            let dot = if path.is_empty() { "" } else { "." };
            format!("{path}{dot}{key}[{at}]")
        };
        branches
            .into_iter()
            .flatten()
            .enumerate()
            .map(|(at, branch)| self.node(branch, &join(at), Place::Value, depth + 1))
            .collect()
    }

    fn kind(&mut self, node: &mut Node, schema: &Map<String, Value>, path: &str, place: Place) {
        let name = schema.get("type").and_then(Value::as_str).unwrap_or_default();
        node.kind = match name {
            "object" => Some(Kind::Object),
            "array" => Some(Kind::Array),
            "string" => Some(Kind::String),
            "integer" => Some(Kind::Integer),
            "number" => Some(Kind::Number),
            "boolean" => Some(Kind::Boolean),
            "" => None,
            other => {
                let message = "supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"";
                self.errors.push(FieldError::new(path, ErrorKind::NotSupported, Some(other.into()), message));
                None
            }
        };
        if node.kind.is_none() && name.is_empty() && !node.int_or_string && !node.preserve_unknown {
            match place {
                Place::Root => self.required(path.to_owned(), "must not be empty at the root"),
                Place::Field => {
                    self.required(path.to_owned(), "must not be empty for specified object fields")
                }
                Place::Item => self.required(path.to_owned(), "must not be empty for specified array items"),
                Place::Value => {}
            }
        }
        if place == Place::Root && node.kind.is_some_and(|k| k != Kind::Object) {
            self.invalid(path.to_owned(), Value::from(name), "must be object at the root");
        }
        if node.resource && node.kind.is_some_and(|k| k != Kind::Object) {
            self.invalid(
                path.to_owned(),
                Value::from(name),
                "must be object if x-kubernetes-embedded-resource is true",
            );
        }
    }

    fn list(&mut self, node: &mut Node, schema: &Map<String, Value>, join: &impl Fn(&str) -> String) {
        let Some(list_type) = schema.get("x-kubernetes-list-type").and_then(Value::as_str) else { return };
        match list_type {
            "atomic" => {}
            "set" => node.list = List::Set,
            "map" => {
                let keys = strings(schema.get("x-kubernetes-list-map-keys"));
                if keys.is_empty() {
                    let message = "must not be empty if x-kubernetes-list-type is map";
                    self.required(join("x-kubernetes-list-map-keys"), message);
                }
                for key in &keys {
                    let item = node.items.as_deref();
                    let property = item.and_then(|i| i.properties.get(key));
                    match property {
                        None => self.invalid(
                            join("x-kubernetes-list-map-keys"),
                            Value::from(keys.clone()),
                            "entries have to be properties of the items",
                        ),
                        Some(p) if p.default.is_none() && !item.is_some_and(|i| i.required.contains(key)) => {
                            let message = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                            self.required(join(&format!("items.properties[{key}].default")), message);
                        }
                        Some(_) => {}
                    }
                }
                node.list = List::Map(keys);
            }
            other => self.errors.push(FieldError::new(
                join("x-kubernetes-list-type"),
                ErrorKind::NotSupported,
                Some(other.into()),
                "supported values: \"atomic\", \"map\", \"set\"",
            )),
        }
        if node.kind != Some(Kind::Array) {
            let found = node.kind.map_or("", Kind::name);
            self.invalid(
                join("type"),
                Value::from(found),
                "must be array if x-kubernetes-list-type is specified",
            );
        }
    }

    fn rules(
        &mut self,
        node: &mut Node,
        schema: &Map<String, Value>,
        join: &impl Fn(&str) -> String,
        place: Place,
    ) {
        let Some(rules) = schema.get("x-kubernetes-validations").and_then(Value::as_array) else { return };
        if place == Place::Value {
            self.forbidden(join("x-kubernetes-validations"), "must be empty to be structural");
            return;
        }
        for (at, rule) in rules.iter().enumerate() {
            match Rule::compile(rule, node) {
                Ok(rule) => node.rules.push(rule),
                Err((field, message)) => {
                    let path = join(&format!("x-kubernetes-validations[{at}].{field}"));
                    match rule.get(field).filter(|value| !value.is_null()) {
                        None => self.required(path, &message),
                        // Of what is an expression, a server shows the whole rule, as its inner type is written.
                        Some(_) if matches!(field, "rule" | "messageExpression") => {
                            let message = format!("{}: {message}", inner_rule(rule));
                            self.errors.push(FieldError::new(path, ErrorKind::Invalid, None, message));
                        }
                        Some(value) => self.invalid(path, value.clone(), message),
                    }
                }
            }
        }
    }

    /// Checks that the default would itself be accepted.
    fn default(&mut self, node: &mut Node, default: &Value, path: &str) {
        let mut complete = default.clone();
        shape::default(node, &mut complete);
        for unknown in shape::unknown(node, &complete) {
            self.invalid(format!("{path}.{unknown}"), default.clone(), "must not have unknown fields");
        }
        for error in validate::validate(node, &complete, None) {
            let dot = if error.path.is_empty() || error.path.starts_with('[') { "" } else { "." };
            self.errors.push(FieldError { path: format!("{path}{dot}{}", error.path), ..error });
        }
        node.default = Some(default.clone());
    }
}

fn inner_rule(rule: &Value) -> String {
    let text = |field: &str| Value::from(rule[field].as_str().unwrap_or_default());
    format!(
        "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{},\"FieldPath\":{},\"OptionalOldSelf\":{}}}",
        text("rule"),
        text("message"),
        text("messageExpression"),
        rule["reason"],
        text("fieldPath"),
        rule["optionalOldSelf"],
    )
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let items = value.and_then(Value::as_array).into_iter().flatten();
    items.filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn bound(schema: &Map<String, Value>, limit: &str, exclusive: &str) -> Option<Bound> {
    let number = |key: &str| schema.get(key).and_then(Value::as_number).cloned();
    // Kubernetes spells exclusiveness as a flag; JSON Schema 2020-12 generators give a number instead.
    if let Some(limit) = number(exclusive) {
        return Some(Bound { limit, exclusive: true });
    }
    let exclusive = schema.get(exclusive).and_then(Value::as_bool) == Some(true);
    Some(Bound { limit: number(limit)?, exclusive })
}
