//! Finds where two answers differ.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::play::Answer;
use crate::script::Script;

/// One place where the servers differ.
#[derive(Debug, Clone)]
pub struct Difference {
    /// Case.
    pub case: String,
    /// Step.
    pub step: String,
    /// Where in the answer, as a JSON pointer.
    pub path: String,
    /// What the real server says; empty for nothing.
    pub real: String,
    /// What this one says; empty for nothing.
    pub ours: String,
}

/// All differences of a case.
pub fn compare(script: &Script, real: &[Answer], ours: &[Answer]) -> Vec<Difference> {
    let mut out = Vec::new();
    for (step, (real, ours)) in script.steps.iter().zip(real.iter().zip(ours)).filter(|(s, _)| s.compared) {
        let mut found = Vec::new();
        let (real, ours) = (real.normal.pointer(step.part), ours.normal.pointer(step.part));
        walk(step.part.to_owned(), real, ours, &mut found);
        out.extend(found.into_iter().map(|(path, real, ours)| Difference {
            case: script.name.to_owned(),
            step: step.name.clone(),
            path,
            real,
            ours,
        }));
    }
    out
}

fn walk(path: String, real: Option<&Value>, ours: Option<&Value>, out: &mut Vec<(String, String, String)>) {
    match (real, ours) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                let part = key.replace('~', "~0").replace('/', "~1");
                walk(format!("{path}/{part}"), a.get(key), b.get(key), out);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            for at in 0..a.len().max(b.len()) {
                walk(format!("{path}/{at}"), a.get(at), b.get(at), out);
            }
        }
        (real, ours) if real == ours => {}
        (real, ours) => {
            let text = |v: Option<&Value>| v.map(ToString::to_string).unwrap_or_default();
            out.push((path, text(real), text(ours)));
        }
    }
}
