//! Label and field selectors.

#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::builtin::validate;

/// Why a selector does not parse (HTTP 400).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// A parsed label selector; the empty one matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels {
    requirements: Vec<Requirement>,
}

/// One term of a label selector.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    op: Op,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Above(i64),
    Below(i64),
}

/// A parsed field selector: `path=value` and `path!=value` terms joined by commas.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fields {
    terms: Vec<(String, bool, String)>,
}

impl Labels {
    /// Parses the query-string form: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    ///
    /// # Errors
    /// [`SelectorError`] naming the offending text.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut p = Parser { rest: text.trim() };
        let mut requirements = Vec::new();
        while !p.rest.is_empty() {
            requirements.push(p.requirement()?);
            p.skip();
            if p.rest.is_empty() {
                break;
            }
            if !p.eat(",") {
                let why = format!("found '{}', expected: ',' or 'end of string'", p.token());
                return Err(SelectorError(why));
            }
            p.skip();
            if p.rest.is_empty() {
                return Err(SelectorError("found '', expected: identifier after ','".into()));
            }
        }
        Ok(Self { requirements })
    }

    /// Reads a `LabelSelector` object (`matchLabels`, `matchExpressions`).
    ///
    /// # Errors
    /// [`SelectorError`] for an unknown operator or missing values.
    pub fn from_label_selector(selector: &Value) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement { key: key.clone(), op: Op::In(vec![value]) });
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = expression.get("key").and_then(Value::as_str).unwrap_or_default().to_owned();
            let values: Vec<String> = expression
                .get("values")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect();
            let operator = expression.get("operator").and_then(Value::as_str).unwrap_or_default();
            let op = match operator {
                "In" | "NotIn" if values.is_empty() => {
                    return Err(SelectorError(format!(
                        "values of key {key:?}: must be non-empty for {operator}"
                    )));
                }
                "In" => Op::In(values),
                "NotIn" => Op::NotIn(values),
                "Exists" => Op::Exists,
                "DoesNotExist" => Op::Absent,
                other => {
                    return Err(SelectorError(format!("{other:?} is not a valid label selector operator")));
                }
            };
            requirements.push(Requirement { key, op });
        }
        Ok(Self { requirements })
    }

    /// Whether `object`'s `metadata.labels` satisfy every term.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
        self.matches_with(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
    }

    /// Whether the labels that `get` yields satisfy every term.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| {
            let have = get(&r.key);
            match &r.op {
                Op::In(values) => have.is_some_and(|h| values.iter().any(|v| v == h)),
                Op::NotIn(values) => !have.is_some_and(|h| values.iter().any(|v| v == h)),
                Op::Exists => have.is_some(),
                Op::Absent => have.is_none(),
                Op::Above(least) => have.and_then(|h| h.parse().ok()).is_some_and(|n: i64| n > *least),
                Op::Below(most) => have.and_then(|h| h.parse().ok()).is_some_and(|n: i64| n < *most),
            }
        })
    }

    /// Whether the selector has no term and so matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// What comes next, for a message.
    fn token(&mut self) -> &'a str {
        let mut ahead = Parser { rest: self.rest };
        match ahead.word() {
            "" => ahead.rest.char_indices().nth(1).map_or(ahead.rest, |(end, _)| &ahead.rest[..end]),
            word => word,
        }
    }

    fn word(&mut self) -> &'a str {
        self.skip();
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/')))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        let start = self.rest;
        let key = self.word();
        let name = key.rsplit('/').next().unwrap_or_default();
        if !valid_name(name) || key.matches('/').count() > 1 {
            return Err(unparsed(&format!(
                "{:?}: invalid label key",
                if key.is_empty() { start } else { key }
            )));
        }
        Ok(key.to_owned())
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        self.skip();
        if self.eat("!") {
            return Ok(Requirement { key: self.key()?, op: Op::Absent });
        }
        let key = self.key()?;
        self.skip();
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(Requirement { key, op: Op::Exists });
        }
        if self.eat("!=") {
            let value = self.value(&key, 0)?;
            return Ok(Requirement { key, op: Op::NotIn(vec![value]) });
        }
        if self.eat("==") || self.eat("=") {
            let value = self.value(&key, 0)?;
            return Ok(Requirement { key, op: Op::In(vec![value]) });
        }
        if self.eat(">") {
            let least = self.number(&key)?;
            return Ok(Requirement { key, op: Op::Above(least) });
        }
        if self.eat("<") {
            let most = self.number(&key)?;
            return Ok(Requirement { key, op: Op::Below(most) });
        }
        let operator = self.word();
        let values = match operator {
            "in" | "notin" => self.values(&key)?,
            _ => {
                let found = if operator.is_empty() { self.token() } else { operator };
                return Err(unparsed(&format!("found '{found}', expected: in, notin, =, ==, !=, gt, lt")));
            }
        };
        Ok(Requirement { key, op: if operator == "in" { Op::In(values) } else { Op::NotIn(values) } })
    }

    /// The value of a key; `at` is its place among the key's values.
    fn value(&mut self, key: &str, at: usize) -> Result<String, SelectorError> {
        let value = self.word();
        match validate::label_value(value) {
            None => Ok(value.to_owned()),
            Some(why) => Err(unparsed(&format!("values[{at}][{key}]: Invalid value: {value:?}: {why}"))),
        }
    }

    fn number(&mut self, key: &str) -> Result<i64, SelectorError> {
        let value = self.word();
        value.parse().map_err(|_| {
            unparsed(&format!(
                "values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            ))
        })
    }

    fn values(&mut self, key: &str) -> Result<Vec<String>, SelectorError> {
        self.skip();
        if !self.eat("(") {
            return Err(unparsed(&format!("found '{}' expected: '('", self.token())));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value(key, values.len())?);
            self.skip();
            if self.eat(")") {
                return Ok(values);
            }
            if !self.eat(",") {
                return Err(unparsed(&format!("found '{}', expected: ',' or ')'", self.token())));
            }
        }
    }
}

fn unparsed(why: &str) -> SelectorError {
    SelectorError(format!("unable to parse requirement: {why}"))
}

/// A qualified name's last part, or a label value: at most 63 of `[A-Za-z0-9-_.]`, alphanumeric at both ends.
fn valid_name(name: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= 63
        && end(name.chars().next())
        && end(name.chars().last())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

impl Fields {
    /// Parses `metadata.name=x,status.phase!=Running`. Backslash escapes `,`, `=` and itself in values.
    ///
    /// # Errors
    /// [`SelectorError`] for a term without an operator.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let Some(at) = term.find('=') else {
                return Err(SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'")));
            };
            let (left, right) = term.split_at(at);
            let right = right.strip_prefix("==").or_else(|| right.strip_prefix('=')).unwrap_or(right);
            let (path, equal) = match left.strip_suffix('!') {
                Some(path) => (path, false),
                None => (left, true),
            };
            if path.is_empty() {
                return Err(SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'")));
            }
            terms.push((path.to_owned(), equal, unescape(right)));
        }
        Ok(Self { terms })
    }

    /// Whether `object` satisfies every term. A missing field equals the empty string.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|(path, equal, want)| (field(object, path) == *want) == *equal)
    }

    /// The paths used, for checking against those that a kind supports.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.terms.iter().map(|(path, _, _)| path.as_str())
    }

    /// The value that `path` must equal, if a term says so.
    pub fn exact(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|(p, equal, _)| p == path && *equal).map(|(_, _, v)| v.as_str())
    }

    /// Whether the selector has no term and so matches everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }
}

/// A field as selectors compare it: those that say yes or no are `false` where nothing is said.
fn field(object: &Value, path: &str) -> String {
    let absent = || match path {
        "spec.hostNetwork" | "spec.unschedulable" => "false".to_owned(),
        _ => String::new(),
    };
    let mut at = object;
    for part in path.split('.') {
        match at.get(part) {
            Some(next) => at = next,
            None => return absent(),
        }
    }
    match at {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut out, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                out.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}
