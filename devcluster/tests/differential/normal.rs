//! Frees answers of what differs from run to run: identities, versions, times, addresses.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value};

/// Text that differs from run to run, and what stands for it.
static TEXTS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", "<time.fraction>"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|\+00:00)", "<time>"),
        // As `kubectl describe` writes times.
        (r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}", "<time>"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4} UTC", "<time>"),
        // Files of `kubectl diff`, with their times.
        (r"/tmp/(LIVE|MERGED)-\d+", "/tmp/$1"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ [+-]\d{4}", "<time>"),
        // A token is signed by one server, and not by the other.
        (r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", "<token>"),
        // A cluster's own bundle.
        (r"(?s)-----BEGIN CERTIFICATE-----.*-----END CERTIFICATE-----\s*", "<bundle>"),
        (r"kube-api-access-[a-z0-9]{5}", "kube-api-access-<random>"),
        (r#"(resourceVersion[\\"]*: ?[\\"]*)\d+"#, "$1<version>"),
        // As `kubectl describe` and a precondition's refusal write it.
        (r"(Resource Version:\s+)\d+", "$1<version>"),
        (r"(ResourceVersion in record \()\d+", "$1<version>"),
        // A dump of Go's own structures, fields that the API does not have included.
        (r"(?s)(allow it to be set to 1 if it was previously negative\)).*$", "$1<dump>"),
        (r"(is immutable after creation[^\n]*)\n.*$", "$1<dump>"),
        // A name that was made from a bad prefix.
        (r"\bGen_[a-z0-9]{5}\b", "Gen_<random>"),
        // A name that was made, where no prefix is beside it.
        (r"\beve-[a-z0-9]{5}\b", "eve-<random>"),
        (r"current: \d+", "current: <version>"),
        (r"too old resource version: (\d+) \(\d+\)", "too old resource version: $1 (<version>)"),
        // Ages; a table's columns move with their width.
        (r"(^|\s)(\d+[smhd])+(\s|$)", "$1<age>$3"),
        (r"\b10\.96\.\d+\.\d+\b", "<service address>"),
    ]
    .into_iter()
    .map(|(pattern, stand_in)| (Regex::new(pattern).unwrap(), stand_in))
    .collect()
});
static UUID: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").unwrap());
static SPACES: LazyLock<Regex> = LazyLock::new(|| Regex::new(" {2,}").unwrap());

/// Objects that stand as JSON within a text, with their fields sorted: a server writes them in the order of its own types.
fn sorted_fields(text: &str) -> String {
    const START: &str = "\"{\\\"";
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(START) {
        let (before, quoted) = rest.split_at(at);
        out.push_str(before);
        let mut texts = serde_json::Deserializer::from_str(quoted).into_iter::<String>();
        match texts.next() {
            Some(Ok(inner)) => {
                let shown = match serde_json::from_str::<Value>(&inner) {
                    Ok(object) => object.to_string(),
                    Err(_) => inner,
                };
                out.push_str(&Value::from(shown).to_string());
                rest = &quoted[texts.byte_offset()..];
            }
            _ => {
                out.push_str(START);
                rest = &quoted[START.len()..];
            }
        }
    }
    out + rest
}

/// Sorts what a schema finds wrong, in the causes and in the message that lists them.
fn order_causes(map: &mut Map<String, Value>) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let listed = |causes: &[Value]| {
        let each =
            causes.iter().map(|cause| format!("{}: {}", text(&cause["field"]), text(&cause["message"])));
        each.collect::<Vec<_>>().join(", ")
    };
    let Some(causes) = map.get("details").and_then(|details| details["causes"].as_array()).cloned() else {
        return;
    };
    if !causes.iter().any(|cause| text(&cause["message"]).contains(" in body ")) {
        return;
    }
    let before = listed(&causes);
    let mut causes = causes;
    causes.sort_by_key(|cause| ["field", "message"].map(|part| text(&cause[part])));
    let message = text(&map["message"]).replace(&before, &listed(&causes));
    map.insert("message".into(), message.into());
    map["details"]["causes"] = causes.into();
}

/// Sorts the same where kubectl lists it, a line each.
fn order_lines(lines: &mut [Value]) {
    let listed = |line: &Value| line.as_str().is_some_and(|line| line.starts_with("* "));
    let by_schema =
        |line: &Value| listed(line) && line.as_str().is_some_and(|line| line.contains(" in body "));
    if lines.iter().any(by_schema) {
        for run in lines.chunk_by_mut(|a, b| listed(a) == listed(b)) {
            if run.first().is_some_and(listed) {
                run.sort_by_key(ToString::to_string);
            }
        }
    }
}

#[test]
fn fields_of_objects_in_texts_are_sorted() {
    let text = r#"x: "{\"b\":1,\"a\":{\"d\":1,\"c\":2}}": y "{\"" z"#;
    assert_eq!(sorted_fields(text), r#"x: "{\"a\":{\"c\":2,\"d\":1},\"b\":1}": y "{\"" z"#);
}

/// Frees one case's answers from one server, so that an object's versions are named in their order of appearance.
#[derive(Debug)]
pub struct Normaliser {
    server: String,
    versions: HashMap<String, Vec<String>>,
}

impl Normaliser {
    /// For answers of the server at this URL.
    pub fn new(server: &str) -> Self {
        Self { server: server.to_owned(), versions: HashMap::new() }
    }

    /// Frees an answer.
    pub fn normalise(&mut self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                self.object(map);
                if map.keys().any(|key| UUID.is_match(key)) {
                    *map = std::mem::take(map)
                        .into_iter()
                        .map(|(key, value)| (self.text(&key), value))
                        .collect();
                }
                for (key, value) in map.iter_mut() {
                    match key.as_str() {
                        "nodePort" | "healthCheckNodePort" if value.is_number() => *value = "<port>".into(),
                        "continue" if value.as_str().is_some_and(|t| !t.is_empty()) => {
                            *value = "<continue>".into()
                        }
                        _ => self.normalise(value),
                    }
                }
            }
            Value::Array(items) => {
                items.iter_mut().for_each(|item| self.normalise(item));
                order_lines(items);
            }
            Value::String(text) => *text = self.text(text),
            _ => {}
        }
    }

    /// What is told apart by the fields beside it: versions by their object, generated names by their prefix.
    fn object(&mut self, map: &mut Map<String, Value>) {
        if let Some(Value::String(version)) = map.get("resourceVersion").cloned() {
            let stand_in = match map.get("uid").and_then(Value::as_str) {
                _ if version.is_empty() => String::new(),
                // Each object's own versions are numbered, so that a write that changes nothing is told from one that does.
                Some(uid) => {
                    let seen = self.versions.entry(uid.to_owned()).or_default();
                    let at = seen.iter().position(|v| *v == version).unwrap_or_else(|| {
                        seen.push(version);
                        seen.len() - 1
                    });
                    format!("<version {}>", at + 1)
                }
                None => "<version>".to_owned(),
            };
            map.insert("resourceVersion".into(), stand_in.into());
        }
        if let Some(prefix) = map.get("generateName").and_then(Value::as_str).map(str::to_owned)
            && map.get("name").and_then(Value::as_str).is_some_and(|n| n.starts_with(&prefix))
        {
            map.insert("name".into(), format!("{prefix}<random>").into());
        }
        // A real server names conflicts in no order.
        if let Some(Value::Array(causes)) = map.get_mut("causes")
            && causes.iter().all(|cause| cause["reason"] == "FieldManagerConflict")
        {
            causes.sort_by_key(|cause| ["message", "field"].map(|f| cause[f].to_string()));
        }
        // A real server checks fields in no order.
        order_causes(map);
        // Their order hangs on which of two writes fell into another second.
        if let Some(Value::Array(entries)) = map.get_mut("managedFields") {
            entries.sort_by_key(|e| {
                ["operation", "manager", "subresource", "apiVersion", "fieldsV1"].map(|f| e[f].to_string())
            });
        }
    }

    fn text(&mut self, text: &str) -> String {
        let address = self.server.trim_start_matches("https://").trim_start_matches("http://");
        let mut out = text.replace(&self.server, "<server>").replace(address, "<server>");
        out = UUID.replace_all(&out, "<uid>").into_owned();
        for (pattern, stand_in) in TEXTS.iter() {
            out = pattern.replace_all(&out, *stand_in).into_owned();
        }
        out = sorted_fields(&out);
        SPACES.replace_all(out.trim_end(), "  ").into_owned()
    }
}
