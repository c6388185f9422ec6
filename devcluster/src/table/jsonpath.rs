//! The part of kubectl's JSONPath that printer columns use: fields, quoted and escaped keys, indices, wildcards, filters.

use serde_json::Value;

/// A parsed path.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    /// Negative counts from the end.
    Index(i64),
    All,
    Filter(Filter),
}

/// `?(@.left op right)`, or a bare `?(@.left)` that asks for presence.
#[derive(Debug, Clone, PartialEq)]
struct Filter {
    left: JsonPath,
    test: Option<(Op, Value)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl JsonPath {
    /// Parses `.spec.a`, `spec.a`, `{.spec.a}`, `.a['b.c']`, `.a.b\.c`, `.a[0]`, `.a[*]`, `.a[?(@.b=="c")].d`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let text = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        let text = text.strip_prefix('$').unwrap_or(text);
        let mut steps = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(tail) = rest.strip_prefix('[') {
                let close = closing(tail).ok_or_else(|| "unterminated array".to_owned())?;
                steps.push(bracket(tail[..close].trim())?);
                rest = &tail[close + 1..];
                continue;
            }
            if rest.starts_with("..") {
                return Err("recursive descent is not supported".into());
            }
            let tail = match rest.strip_prefix('.') {
                Some(tail) => tail,
                None if steps.is_empty() => rest,
                None => return Err(format!("unexpected text {rest:?}")),
            };
            let (name, after) = field(tail);
            match name.as_str() {
                "" if after.is_empty() || after.starts_with('[') => {}
                "" => return Err(format!("empty field name before {after:?}")),
                "*" => steps.push(Step::All),
                _ => steps.push(Step::Field(name)),
            }
            rest = after;
        }
        Ok(Self { steps })
    }

    /// The first match.
    pub(super) fn first<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        first(&self.steps, value)
    }
}

/// A field name up to the next unescaped `.` or `[`.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[at..]),
            _ => name.push(c),
        }
    }
    (name, "")
}

/// Where the bracket that opened before `text` closes, quotes and nesting respected.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0, None, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(inside: &str) -> Result<Step, String> {
    if inside == "*" {
        return Ok(Step::All);
    }
    if let Some(expression) = inside.strip_prefix('?') {
        let expression = expression.trim();
        let inner = expression.strip_prefix('(').and_then(|e| e.strip_suffix(')'));
        return filter(inner.ok_or_else(|| format!("filter {expression:?} needs parentheses"))?)
            .map(Step::Filter);
    }
    if let Some(name) = unquote(inside) {
        return Ok(Step::Field(name));
    }
    inside.parse().map(Step::Index).map_err(|_| format!("invalid array index {inside}"))
}

fn unquote(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c == '\\' { out.extend(chars.next()) } else { out.push(c) }
    }
    Some(out)
}

fn filter(text: &str) -> Result<Filter, String> {
    let operators =
        [("==", Op::Eq), ("!=", Op::Ne), ("<=", Op::Le), (">=", Op::Ge), ("<", Op::Lt), (">", Op::Gt)];
    let found =
        operators.iter().filter_map(|(token, op)| Some((text.find(token)?, *token, *op))).min_by_key(|f| f.0);
    let (left, test) = match found {
        None => (text, None),
        Some((at, token, op)) => {
            let right = text[at + token.len()..].trim();
            let right = match unquote(right) {
                Some(text) => Value::from(text),
                None => serde_json::from_str(right)
                    .map_err(|_| format!("unrecognized filter operand {right:?}"))?,
            };
            (&text[..at], Some((op, right)))
        }
    };
    let left = left.trim();
    let left = left.strip_prefix('@').ok_or_else(|| format!("filter {text:?} must start with @"))?;
    Ok(Filter { left: JsonPath::parse(left)?, test })
}

impl Filter {
    fn accepts(&self, item: &Value) -> bool {
        let Some(left) = self.left.first(item) else { return false };
        let Some((op, right)) = &self.test else { return true };
        let order = match (left, right) {
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
            (a, b) => (a == b).then_some(std::cmp::Ordering::Equal),
        };
        match op {
            Op::Eq => order.is_some_and(|o| o.is_eq()),
            Op::Ne => !order.is_some_and(|o| o.is_eq()),
            Op::Lt => order.is_some_and(|o| o.is_lt()),
            Op::Le => order.is_some_and(|o| o.is_le()),
            Op::Gt => order.is_some_and(|o| o.is_gt()),
            Op::Ge => order.is_some_and(|o| o.is_ge()),
        }
    }
}

fn first<'v>(steps: &[Step], value: &'v Value) -> Option<&'v Value> {
    let Some((step, rest)) = steps.split_first() else { return Some(value) };
    match step {
        Step::Field(name) => first(rest, value.get(name)?),
        Step::Index(index) => {
            let items = value.as_array()?;
            let at = if *index < 0 {
                items.len().checked_sub(index.unsigned_abs() as usize)?
            } else {
                *index as usize
            };
            first(rest, items.get(at)?)
        }
        Step::All => match value {
            Value::Array(items) => items.iter().find_map(|item| first(rest, item)),
            Value::Object(map) => map.values().find_map(|item| first(rest, item)),
            _ => None,
        },
        Step::Filter(filter) => {
            value.as_array()?.iter().filter(|item| filter.accepts(item)).find_map(|item| first(rest, item))
        }
    }
}
