//! `x-kubernetes-validations`: CEL rules.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use base64::Engine;
use kube_cel::KubeCelExt;
use kube_cel::cel::objects::{Key, Map, OptionalValue};
use kube_cel::cel::{Context, Program, Value as Cel};
use serde_json::Value;

use super::compile::{Additional, Kind, Node};
use super::error::{ErrorKind, FieldError};
use super::types;
use super::validate::{join, old_item};

/// One compiled rule.
pub(super) struct Rule {
    source: String,
    program: Program,
    message: Option<String>,
    message_program: Option<Program>,
    kind: ErrorKind,
    /// Names of the fields below the rule's node to blame.
    blame: Vec<String>,
    uses_old: bool,
    optional_old: bool,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rule").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Rule {
    /// Compiles one entry; an error names the entry's wrong field.
    pub(super) fn compile(rule: &Value, node: &Node) -> Result<Self, (&'static str, String)> {
        let text = |key: &str| rule.get(key).and_then(Value::as_str).map(str::trim).filter(|s| !s.is_empty());
        let source = text("rule").ok_or(("rule", "rule is not specified".to_owned()))?;
        let failed =
            |e: kube_cel::cel::ParseErrors| format!("compilation failed: {e}").replace("\n| ", "\n | ");
        let program = Program::compile(source).map_err(|e| ("rule", failed(e)))?;
        let message_program = text("messageExpression")
            .map(Program::compile)
            .transpose()
            .map_err(|e| ("messageExpression", format!("messageExpression compilation failed: {e}")))?;
        let kind = match text("reason") {
            None | Some("FieldValueInvalid") => ErrorKind::Invalid,
            Some("FieldValueRequired") => ErrorKind::Required,
            Some("FieldValueForbidden") => ErrorKind::Forbidden,
            Some("FieldValueDuplicate") => ErrorKind::Duplicate,
            Some(_) => {
                let supported = "supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \
                                 \"FieldValueInvalid\", \"FieldValueRequired\"";
                return Err(("reason", supported.to_owned()));
            }
        };
        let blame = match text("fieldPath") {
            None => Vec::new(),
            Some(path) => parse_path(path).ok_or(("fieldPath", "must be a valid path".to_owned()))?,
        };
        let uses_old = program.references().has_variable("oldSelf");
        let optional_old = rule.get("optionalOldSelf").and_then(Value::as_bool) == Some(true);
        if optional_old && !uses_old {
            return Err(("optionalOldSelf", "may not be set if oldSelf is not used in rule".to_owned()));
        }
        types::check(program.expression(), node, optional_old, source).map_err(|why| ("rule", why))?;
        let message = text("message").map(str::to_owned);
        Ok(Self {
            source: source.to_owned(),
            program,
            message,
            message_program,
            kind,
            blame,
            uses_old,
            optional_old,
        })
    }
}

/// Splits `.a.b['c.d']` into names.
fn parse_path(path: &str) -> Option<Vec<String>> {
    let mut out = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(tail) = rest.strip_prefix("['") {
            let (name, tail) = tail.split_once("']")?;
            out.push(name.replace("\\'", "'"));
            rest = tail;
        } else {
            let tail = rest.strip_prefix('.')?;
            let end = tail.find(['.', '[']).unwrap_or(tail.len());
            let (name, tail) = tail.split_at(end);
            if name.is_empty() {
                return None;
            }
            out.push(name.to_owned());
            rest = tail;
        }
    }
    Some(out)
}

/// Every rule that `value` breaks.
pub(super) fn validate(root: &Node, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut out = Vec::new();
    if root.has_rules {
        BASE.with(|base| check(root, value, old, "", base, &mut out));
    }
    out
}

thread_local! {
    /// Registering Kubernetes' functions takes longer than running most rules.
    static BASE: Context<'static> = Context::default().with_all();
}

fn check(
    node: &Node,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    base: &Context<'_>,
    out: &mut Vec<FieldError>,
) {
    if !node.has_rules {
        return;
    }
    let absent = value.is_null() && node.nullable;
    if !node.rules.is_empty() && !absent {
        check_rules(node, value, old, path, base, out);
    }
    match value {
        Value::Object(map) => {
            for (key, child) in map {
                let old = old.and_then(|o| o.get(key));
                if let Some(below) = node.properties.get(key) {
                    check(below, child, old, &join(path, key), base, out);
                } else if let Additional::Of(below) = &node.additional {
                    check(below, child, old, &format!("{path}[{key}]"), base, out);
                }
            }
        }
        Value::Array(items) => {
            if let Some(below) = &node.items {
                for (at, item) in items.iter().enumerate() {
                    let old = old_item(&node.list, item, old);
                    check(below, item, old, &format!("{path}[{at}]"), base, out);
                }
            }
        }
        _ => {}
    }
}

fn check_rules(
    node: &Node,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    base: &Context<'_>,
    out: &mut Vec<FieldError>,
) {
    let unchanged = old == Some(value);
    let mut context = base.new_inner_scope();
    context.add_variable_from_value("self", to_cel(Some(node), value));
    let old = old.map(|old| to_cel(Some(node), old));
    for rule in &node.rules {
        // Ratcheting, as for other validations; transition rules always run.
        if unchanged && !rule.uses_old {
            continue;
        }
        let mut context = context.new_inner_scope();
        if rule.optional_old {
            let optional = old.clone().map_or_else(OptionalValue::none, OptionalValue::of);
            context.add_variable_from_value("oldSelf", Cel::Opaque(Arc::new(optional)));
        } else if let Some(old) = &old {
            context.add_variable_from_value("oldSelf", old.clone());
        } else if rule.uses_old {
            continue;
        }
        let mut at = path.to_owned();
        for name in &rule.blame {
            at = join(&at, name);
        }
        let error = match rule.program.execute(&context) {
            Ok(Cel::Bool(true)) => continue,
            Ok(Cel::Bool(false)) => {
                let shown = match node.kind {
                    Some(Kind::Object | Kind::Array) => None,
                    _ => Some(value.clone()),
                };
                let message =
                    if rule.kind == ErrorKind::Duplicate { String::new() } else { message(rule, &context) };
                FieldError::new(at, rule.kind, shown, message)
            }
            Ok(_) => FieldError::new(
                at,
                ErrorKind::Invalid,
                type_name(node),
                format!("rule {:?} did not evaluate to a boolean", rule.source),
            ),
            Err(error) => FieldError::new(
                at,
                ErrorKind::Invalid,
                type_name(node),
                evaluation_error(&error.to_string(), rule.message.as_deref().unwrap_or(&rule.source)),
            ),
        };
        out.push(error);
    }
}

/// Why a rule could not be evaluated, in cel-go's words where they are known.
fn evaluation_error(error: &str, rule: &str) -> String {
    let called = |function: &str| error.contains(&format!("function '{function}'"));
    let why = if called("duration") {
        "type conversion error from 'string' to 'google.protobuf.Duration'".to_owned()
    } else if called("timestamp") {
        "type conversion error from 'string' to 'google.protobuf.Timestamp'".to_owned()
    } else if let Some(key) = error.strip_prefix("No such key: ") {
        format!("no such key: {key}")
    } else {
        error.to_owned()
    };
    format!("{why} evaluating rule: {rule}")
}

fn type_name(node: &Node) -> Option<Value> {
    node.kind.map(|kind| Value::from(kind.name()))
}

fn message(rule: &Rule, context: &Context<'_>) -> String {
    if let Some(program) = &rule.message_program
        && let Ok(Cel::String(text)) = program.execute(context)
        && !text.trim().is_empty()
        && !text.contains('\n')
    {
        return text.trim().to_owned();
    }
    rule.message.clone().unwrap_or_else(|| format!("failed rule: {}", rule.source))
}

/// A JSON value as CEL sees it: numbers by declared type, formats parsed, field names escaped.
fn to_cel(node: Option<&Node>, value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(b) => Cel::Bool(*b),
        Value::Number(n) => {
            let declared = node.and_then(|n| n.kind);
            match (declared, n.as_i64(), n.as_u64()) {
                (Some(Kind::Number), _, _) => Cel::Float(n.as_f64().unwrap_or(f64::NAN)),
                (Some(Kind::Integer), None, None) => Cel::Int(n.as_f64().unwrap_or(0.0) as i64),
                (_, Some(i), _) => Cel::Int(i),
                (_, _, Some(u)) => Cel::UInt(u),
                _ => Cel::Float(n.as_f64().unwrap_or(f64::NAN)),
            }
        }
        Value::String(text) => {
            let format = node.filter(|n| !n.int_or_string).and_then(|n| n.format.as_deref());
            from_text(format, text)
        }
        Value::Array(items) => {
            let below = node.and_then(|n| n.items.as_deref());
            Cel::List(Arc::new(items.iter().map(|item| to_cel(below, item)).collect()))
        }
        Value::Object(map) => {
            let entry = |(key, child): (&String, &Value)| {
                let below = node.and_then(|n| n.child(key));
                let is_field = node.is_some_and(|n| n.properties.contains_key(key));
                let name = if is_field { escape(key) } else { key.clone() };
                (Key::String(Arc::new(name)), to_cel(below, child))
            };
            let map: HashMap<Key, Cel> = map.iter().map(entry).collect();
            Cel::Map(Map { map: Arc::new(map) })
        }
    }
}

fn from_text(format: Option<&str>, text: &str) -> Cel {
    static DURATION: LazyLock<Option<Program>> = LazyLock::new(|| Program::compile("duration(text)").ok());
    static TIMESTAMP: LazyLock<Option<Program>> = LazyLock::new(|| Program::compile("timestamp(text)").ok());
    let plain = || Cel::String(Arc::new(text.to_owned()));
    let parse = |program: &Option<Program>, text: String| {
        BASE.with(|base| {
            let mut context = base.new_inner_scope();
            context.add_variable_from_value("text", Cel::String(Arc::new(text)));
            program.as_ref()?.execute(&context).ok()
        })
    };
    let parsed = match format {
        Some("duration") => parse(&DURATION, text.to_owned()),
        Some("date-time") => parse(&TIMESTAMP, text.to_owned()),
        Some("date") => parse(&TIMESTAMP, format!("{text}T00:00:00Z")),
        Some("byte") => {
            base64::engine::general_purpose::STANDARD.decode(text).ok().map(|b| Cel::Bytes(Arc::new(b)))
        }
        _ => None,
    };
    parsed.unwrap_or_else(plain)
}

/// A declared field's name within CEL: reserved words and characters that no identifier has are spelled out.
pub(super) fn escape(name: &str) -> String {
    const RESERVED: [&str; 21] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ];
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    name.replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__")
}
