//! What server-side apply by `kubectl` makes of objects that it applied from the client's side before: what those applies wrote,
//! and nobody has changed since, is its own; and the annotation in which they kept their configuration stays up to date.

use serde_json::Value;

use super::{ApplyError, Conflict, Request, apply, managers, text, typed, without_managed_fields};
use crate::apply::fieldset::Set;

/// The annotation of client-side apply.
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager that this is for; others opt out by their name.
const MANAGER: &str = "kubectl";

/// [`apply`], with regard to earlier client-side applies.
///
/// # Errors
/// As [`apply`]; without the conflicts over fields that client-side apply wrote.
pub fn apply_with_last(live: Option<&Value>, config: &Value, req: &Request) -> Result<Value, ApplyError> {
    let applied = match apply(live, config, req) {
        Err(ApplyError::Conflict(conflict)) if req.manager == MANAGER => {
            match live.and_then(|live| written_by_last(live, req)) {
                Some(own) => {
                    let owned = own.paths();
                    let left: Vec<_> =
                        conflict.conflicts.into_iter().filter(|c| !owned.contains(&c.field)).collect();
                    if !left.is_empty() {
                        return Err(Conflict { conflicts: left }.into());
                    }
                    apply(live, config, &Request { force: true, ..req.clone() })
                }
                None => Err(conflict.into()),
            }
        }
        other => other,
    };
    let mut object = applied?;
    if req.manager == MANAGER
        && let Some(kept) = object.pointer_mut("/metadata/annotations").and_then(|a| a.get_mut(ANNOTATION))
        && kept.as_str().is_some_and(|text| !text.is_empty())
    {
        *kept = encode(config).into();
    }
    Ok(object)
}

/// The fields of the last client-side configuration that the object still has as it says.
fn written_by_last(live: &Value, req: &Request) -> Option<Set> {
    let kept = live.pointer("/metadata/annotations")?.get(ANNOTATION)?.as_str()?;
    let last: Value = serde_json::from_str(kept).ok()?;
    if text(&last, "apiVersion") != text(live, "apiVersion") {
        return None;
    }
    let ty = &*req.typing.root;
    let changed = typed::compare(&last, &without_managed_fields(live), ty);
    let set = typed::to_set(&last, ty).difference(managers::unowned());
    Some(set.difference(&changed.modified).difference(&changed.added).difference(&changed.removed))
}

/// A configuration as Go's encoder writes it into the annotation: sorted, with what HTML could mistake escaped, and a line's end.
fn encode(config: &Value) -> String {
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(ANNOTATION);
    }
    config.sort_all_objects();
    let mut out = String::new();
    for c in config.to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apply::{Typing, track_update};

    fn map(data: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data})
    }

    fn request(manager: &str) -> Request {
        Request {
            manager: manager.into(),
            force: false,
            subresource: None,
            now: jiff::Timestamp::UNIX_EPOCH,
            typing: Typing::untyped(),
        }
    }

    /// Made by client-side apply, then one key changed by somebody else.
    fn live() -> Value {
        let mut object = map(json!({"a": "1", "b": "1"}));
        object["metadata"]["annotations"] = json!({ANNOTATION: map(json!({"a": "1", "b": "1"})).to_string()});
        let ours = request("kubectl-client-side-apply");
        let first = track_update(None, &object, &ours.manager, None, ours.now, &ours.typing);
        let mut second = first.clone();
        second["data"]["b"] = "2".into();
        track_update(Some(&first), &second, "other", None, ours.now, &ours.typing)
    }

    #[test]
    fn what_client_side_apply_wrote_is_no_conflict() {
        let config = map(json!({"a": "<3>"}));
        let object = apply_with_last(Some(&live()), &config, &request("kubectl")).unwrap();
        assert_eq!((&object["data"]["a"], &object["data"]["b"]), (&json!("<3>"), &json!("2")));
        let kept = object["metadata"]["annotations"][ANNOTATION].as_str().unwrap();
        let expected = "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"\\u003c3\\u003e\"},\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"m\"}}\n";
        assert_eq!(kept, expected);
    }

    #[test]
    fn what_others_changed_since_is_one() {
        let config = map(json!({"a": "3", "b": "3"}));
        let refused = |manager: &str| match apply_with_last(Some(&live()), &config, &request(manager)) {
            Err(ApplyError::Conflict(c)) => c.conflicts.into_iter().map(|c| c.field).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused("kubectl"), [".data.b"]);
        assert_eq!(refused("somebody"), [".data.a", ".data.b"]);
    }
}
