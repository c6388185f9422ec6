//! Types of CEL rules, as far as a schema gives them: a rule that selects a field that is not declared, applies an operator
//! to what it is not for, or is no condition is refused with its definition, as cel-go's checker does. What is not
//! certain is left to evaluation.

use std::fmt;

use kube_cel::cel::IdedExpr;
use kube_cel::cel::common::ast::{CallExpr, ComprehensionExpr, Expr, LiteralValue, SelectExpr, operators};

use super::cel::escape;
use super::compile::{Additional, Kind, Node};

/// What an expression evaluates to.
#[derive(Debug, Clone)]
enum Type<'a> {
    /// Known at evaluation alone.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Box<Type<'a>>),
    Map(Box<Type<'a>>),
    Object(&'a Node),
    /// The metadata of a whole resource.
    Metadata,
}

impl fmt::Display for Type<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dyn => "dyn",
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Duration => "google.protobuf.Duration",
            Self::Timestamp => "google.protobuf.Timestamp",
            Self::List(item) => return write!(f, "list({item})"),
            Self::Map(value) => return write!(f, "map(string, {value})"),
            Self::Object(_) | Self::Metadata => "object",
        })
    }
}

impl<'a> Type<'a> {
    fn of(node: &'a Node) -> Self {
        if node.int_or_string {
            return Self::Dyn;
        }
        match (node.kind, node.format.as_deref()) {
            (Some(Kind::String), Some("byte")) => Self::Bytes,
            (Some(Kind::String), Some("duration")) => Self::Duration,
            (Some(Kind::String), Some("date" | "date-time")) => Self::Timestamp,
            (Some(Kind::String), _) => Self::String,
            (Some(Kind::Integer), _) => Self::Int,
            (Some(Kind::Number), _) => Self::Double,
            (Some(Kind::Boolean), _) => Self::Bool,
            (Some(Kind::Array), _) => Self::List(Box::new(node.items.as_deref().map_or(Self::Dyn, Self::of))),
            (Some(Kind::Object), _) => match &node.additional {
                Additional::Of(value) => Self::Map(Box::new(Self::of(value))),
                Additional::Anything => Self::Map(Box::new(Self::Dyn)),
                Additional::Unknown if node.preserve_unknown && node.properties.is_empty() => Self::Dyn,
                Additional::Unknown => Self::Object(node),
            },
            (None, _) => Self::Dyn,
        }
    }

    /// Whether this is one value of a kind of its own, which no other kind is.
    fn is_scalar(&self) -> bool {
        !matches!(
            self,
            Self::Dyn | Self::Null | Self::List(_) | Self::Map(_) | Self::Object(_) | Self::Metadata
        )
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// What is wrong, and the text that it is about: the first of its kind in the source is shown.
struct Fault {
    what: String,
    at: String,
}

/// Checks that an expression is a condition on values of `node`.
///
/// # Errors
/// What is wrong, in the words of a server.
pub(super) fn check(
    expression: &IdedExpr,
    node: &Node,
    optional_old: bool,
    source: &str,
) -> Result<(), String> {
    let mut scope = vec![("self".to_owned(), Type::of(node))];
    scope.push(("oldSelf".to_owned(), if optional_old { Type::Dyn } else { Type::of(node) }));
    match infer(expression, &mut scope) {
        Ok(Type::Bool | Type::Dyn) => Ok(()),
        Ok(_) => Err("cel expression must evaluate to a bool".to_owned()),
        Err(fault) => Err(format!("compilation failed: {}", shown(&fault, source))),
    }
}

/// A fault with the line it is on, and a mark below its place.
fn shown(fault: &Fault, source: &str) -> String {
    let follows = |end: usize| source[end..].chars().next().is_some_and(|c| c.is_alphanumeric() || c == '_');
    let place = |(at, text): (usize, &str)| (!follows(at + text.len())).then_some(at);
    let at = source.match_indices(&fault.at).find_map(place).unwrap_or(0);
    let start = source[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let line = source[start..].lines().next().unwrap_or_default();
    let (row, column) = (source[..at].matches('\n').count() + 1, source[start..at].chars().count());
    format!("ERROR: <input>:{row}:{}: {}\n | {line}\n | {}^", column + 1, fault.what, ".".repeat(column))
}

type Scope<'a> = Vec<(String, Type<'a>)>;

fn infer<'a>(expression: &IdedExpr, scope: &mut Scope<'a>) -> Result<Type<'a>, Fault> {
    Ok(match &expression.expr {
        Expr::Literal(literal) => match literal {
            LiteralValue::Boolean(_) => Type::Bool,
            LiteralValue::Bytes(_) => Type::Bytes,
            LiteralValue::Double(_) => Type::Double,
            LiteralValue::Int(_) => Type::Int,
            LiteralValue::Null => Type::Null,
            LiteralValue::String(_) => Type::String,
            LiteralValue::UInt(_) => Type::Uint,
        },
        Expr::Ident(name) => {
            scope.iter().rev().find(|(known, _)| known == name).map_or(Type::Dyn, |(_, known)| known.clone())
        }
        Expr::Select(select) => selected(select, scope)?,
        Expr::Call(call) => called(call, scope)?,
        Expr::Comprehension(comprehension) => repeated(comprehension, scope)?,
        Expr::List(list) => {
            let items: Vec<Type<'_>> =
                list.elements.iter().map(|item| infer(item, scope)).collect::<Result<_, _>>()?;
            let first = items.first().cloned().unwrap_or(Type::Dyn);
            let alike = items.iter().all(|item| item.is_like(&first));
            Type::List(Box::new(if alike { first } else { Type::Dyn }))
        }
        Expr::Map(_) => Type::Map(Box::new(Type::Dyn)),
        Expr::Struct(_) | Expr::Unspecified => Type::Dyn,
    })
}

fn selected<'a>(select: &SelectExpr, scope: &mut Scope<'a>) -> Result<Type<'a>, Fault> {
    let field = select.field.as_str();
    let at = format!(".{field}");
    let undefined = || Fault { what: format!("undefined field '{field}'"), at: at.clone() };
    let found = match infer(&select.operand, scope)? {
        Type::Object(node) => match node.properties.iter().find(|(name, _)| escape(name) == field) {
            Some((_, child)) => Type::of(child),
            None if node.resource && field == "metadata" => Type::Metadata,
            None if node.resource && matches!(field, "apiVersion" | "kind") => Type::String,
            None if node.preserve_unknown => Type::Dyn,
            None => return Err(undefined()),
        },
        Type::Metadata if matches!(field, "name" | "generateName") => Type::String,
        Type::Metadata => return Err(undefined()),
        Type::Map(value) => *value,
        Type::Dyn | Type::Null | Type::Duration | Type::Timestamp => Type::Dyn,
        other => {
            let what = format!("type '{other}' does not support field selection");
            return Err(Fault { what, at });
        }
    };
    Ok(if select.test { Type::Bool } else { found })
}

fn called<'a>(call: &CallExpr, scope: &mut Scope<'a>) -> Result<Type<'a>, Fault> {
    let mut given = Vec::new();
    for argument in call.target.as_deref().into_iter().chain(&call.args) {
        given.push(infer(argument, scope)?);
    }
    let name = call.func_name.as_str();
    let no_overload = |given: &[Type<'_>]| {
        let types = given.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let what = format!("found no matching overload for '{name}' applied to '({types})'");
        Fault { what, at: name.trim_matches('_').to_owned() }
    };
    let uncertain = given.iter().any(|t| !t.is_scalar());
    let alike = || given.windows(2).all(|pair| pair[0].is_like(&pair[1]));
    Ok(match name {
        operators::LOGICAL_AND | operators::LOGICAL_OR | operators::LOGICAL_NOT => {
            match given.iter().all(|t| matches!(t, Type::Bool | Type::Dyn)) {
                true => Type::Bool,
                false => return Err(no_overload(&given)),
            }
        }
        operators::EQUALS | operators::NOT_EQUALS => match uncertain || alike() {
            true => Type::Bool,
            false => return Err(no_overload(&given)),
        },
        operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS => {
            match uncertain || alike() || given.iter().all(Type::is_number) {
                true => Type::Bool,
                false => return Err(no_overload(&given)),
            }
        }
        operators::ADD
        | operators::SUBSTRACT
        | operators::MULTIPLY
        | operators::DIVIDE
        | operators::MODULO => {
            let times = given.iter().any(|t| matches!(t, Type::Duration | Type::Timestamp));
            let fits = given.iter().all(Type::is_number) && alike();
            let joins = name == operators::ADD && alike() && !matches!(given.first(), Some(Type::Bool));
            match given.first() {
                _ if times => Type::Dyn,
                Some(first) if fits || (joins && !uncertain) => first.clone(),
                _ if uncertain => Type::Dyn,
                _ => return Err(no_overload(&given)),
            }
        }
        operators::NEGATE => given.pop().unwrap_or(Type::Dyn),
        operators::CONDITIONAL => match given.as_slice() {
            [_, yes, no] if yes.is_like(no) => yes.clone(),
            _ => Type::Dyn,
        },
        operators::INDEX => match given.into_iter().next() {
            Some(Type::List(item)) => *item,
            Some(Type::Map(value)) => *value,
            _ => Type::Dyn,
        },
        operators::IN | operators::NOT_STRICTLY_FALSE => Type::Bool,
        "startsWith" | "endsWith" | "contains" | "matches" | "isSorted" | "isURL" | "isIP" | "isCIDR"
        | "isQuantity" | "hasValue" | "bool" => Type::Bool,
        "size" | "int" | "indexOf" | "lastIndexOf" => Type::Int,
        "double" => Type::Double,
        "string" | "lowerAscii" | "upperAscii" | "replace" | "substring" | "trim" | "join" | "charAt" => {
            Type::String
        }
        "split" => Type::List(Box::new(Type::String)),
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        _ => Type::Dyn,
    })
}

fn repeated<'a>(comprehension: &ComprehensionExpr, scope: &mut Scope<'a>) -> Result<Type<'a>, Fault> {
    let item = match (infer(&comprehension.iter_range, scope)?, &comprehension.iter_var2) {
        (Type::List(item), None) => *item,
        (Type::Map(_), None) => Type::String,
        _ => Type::Dyn,
    };
    let gathered = match infer(&comprehension.accu_init, scope)? {
        known @ (Type::Bool | Type::Int) => known,
        _ => Type::Dyn,
    };
    let depth = scope.len();
    scope.push((comprehension.accu_var.clone(), gathered));
    scope.push((comprehension.iter_var.clone(), item));
    scope.extend(comprehension.iter_var2.iter().map(|name| (name.clone(), Type::Dyn)));
    let stepped = infer(&comprehension.loop_step, scope);
    scope.truncate(depth + 1);
    let result = stepped.and_then(|_| infer(&comprehension.result, scope));
    scope.truncate(depth);
    result
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::schema::CompiledSchema;

    /// What is said of a rule of the field `f` with this schema.
    fn said(mut schema: Value, rule: &str) -> Option<String> {
        schema["x-kubernetes-validations"] = json!([{"rule": rule}]);
        let whole = json!({"type": "object", "properties": {"f": schema}});
        CompiledSchema::compile(&whole).err().map(|error| error.to_string())
    }

    #[test]
    fn rules_that_cannot_hold_are_refused() {
        let object =
            || json!({"type": "object", "properties": {"b": {"type": "string"}, "n": {"type": "integer"}}});
        let why = said(object(), "self.c == 1").unwrap();
        assert!(
            why.ends_with(
                "compilation failed: ERROR: <input>:1:5: undefined field 'c'\n | self.c == 1\n | ....^"
            ),
            "{why}"
        );
        let why = said(json!({"type": "string"}), "self + self").unwrap();
        assert!(why.ends_with("cel expression must evaluate to a bool"), "{why}");
        let why = said(object(), "true &&\nself.b == self.n").unwrap();
        assert!(
            why.contains("<input>:2:8: found no matching overload for '_==_' applied to '(string, int)'"),
            "{why}"
        );
        assert!(
            said(json!({"type": "string"}), "self.size")
                .unwrap()
                .contains("does not support field selection")
        );
        assert!(said(object(), "has(self.bb)").unwrap().contains("undefined field 'bb'"));
        assert!(
            said(json!({"type": "array", "items": object()}), "self.all(x, x.c)").unwrap().contains("'c'")
        );
    }

    #[test]
    fn rules_that_may_hold_are_taken() {
        let object = json!({
            "type": "object",
            "properties": {
                "b": {"type": "string"}, "n": {"type": "integer"}, "d": {"type": "number"}, "a-b": {"type": "boolean"},
                "t": {"type": "string", "format": "date-time"}, "p": {"x-kubernetes-int-or-string": true},
                "l": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}},
                "m": {"type": "object", "additionalProperties": {"type": "integer"}},
                "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            },
        });
        for rule in [
            "self.n < self.d",
            "self.b.startsWith('x') && size(self.b) > 2",
            "!has(self.b) || self.b == oldSelf.b",
            "self.l.all(item, item.x != '') && self.l.exists_one(item, item.x == 'y')",
            "self.l.filter(item, item.x == 'y').size() == 1",
            "self.l.map(item, item.x).join(',') == 'y'",
            "'k' in self.m && self.m['k'] + self.m.k == 3",
            "self.m.all(key, key.startsWith('a') && self.m[key] > 0)",
            "self.p == 5 || self.p == 'five'",
            "self.a__dash__b ? self.n > 1 : self.n < 1",
            "self.t + duration('1h') > timestamp('2026-01-01T00:00:00Z')",
            "self.any.whatever.it == 1",
            "quantity(self.b).isGreaterThan(quantity('1Gi'))",
            "self.n % 2 == 0 && -self.n < 0 && self.n in [1, 2]",
        ] {
            assert_eq!(said(object.clone(), rule), None, "{rule}");
        }
    }
}
