//! Request bodies: read whole, read in parts, rewritten, split over two engines.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{Dice, fuzz, parts};
use crate::body::{Api, BadBody, Parsed, Scan, members, parse, rewrite, with_members};
use crate::proxy::handover::{TOLD, can_split, vllm_prefill, without_hand_over};

const APIS: [Api; 5] = [Api::Chat, Api::Completions, Api::Embeddings, Api::Responses, Api::Tokenize];
const WORDS: [&str; 26] = [
    "\"model\":",
    "\"stream\":",
    "\"stream_options\":",
    "\"include_usage\":",
    "\"max_tokens\":",
    "\"max_completion_tokens\":",
    "\"max_output_tokens\":",
    "\"messages\":",
    "\"prompt\":",
    "\"tools\":",
    "\"input\":",
    "\"instructions\":",
    "true",
    "false",
    "null",
    "{}",
    "[]",
    "\"x\",",
    "\"mod\\u0065l\":",
    "\"kv_transfer_params\":",
    "\"bootstrap_room\":",
    "\"n\":",
    "\"echo\":",
    "\"best_of\":",
    ",\"model\":\"m\"",
    "{\"model\":\"m\"}",
];

fn scan(api: Api, parts: Vec<Bytes>) -> Result<Parsed, BadBody> {
    let mut scan = Scan::new(api);
    for part in parts {
        scan.push(part)?;
    }
    scan.finish()
}

/// What a body says by another reader, where that one can read it.
fn object(body: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    }
}

/// Names of members, each as often as it occurs.
fn occurrences(body: &[u8], name: &str) -> usize {
    members(body).filter(|(n, _, _)| n == name).count()
}

fn agrees(parsed: &Parsed, value: &Map<String, Value>) {
    assert_eq!(value["model"], parsed.model.as_str());
    assert_eq!(value.get("stream").and_then(Value::as_bool).unwrap_or(false), parsed.stream);
    let include = value.get("stream_options").is_some_and(|o| o["include_usage"] == true);
    assert_eq!(include, parsed.include_usage);
    let limits = ["max_tokens", "max_completion_tokens", "max_output_tokens"];
    let least = limits.iter().filter_map(|m| u32::try_from(value.get(*m)?.as_u64()?).ok()).min();
    assert_eq!(least, parsed.max_output);
}

fn check(body: &[u8], dice: &mut Dice) {
    let api = dice.of(&APIS);
    let whole = parse(api, body);
    let scanned = scan(api, vec![Bytes::copy_from_slice(body)]);
    let cut = scan(api, parts(body, dice));
    // Which fault is found first may depend on the cuts, that there is one may not.
    match (&scanned, &cut) {
        (Ok(a), Ok(b)) => assert_eq!(a, b, "cut otherwise"),
        (Err(_), Err(_)) => {}
        other => panic!("cut otherwise: {other:?}"),
    }
    if let Err(error) = &whole {
        assert!(!error.to_string().is_empty());
    }
    match (&whole, &scanned) {
        (Ok(whole), Ok(scanned)) => assert_eq!(whole, scanned, "read in parts"),
        // What is inside members is the engine's to judge; a member that is read has a longest length there.
        (Ok(_), Err(BadBody::Type { expected: "shorter", .. })) | (Err(_), _) => {}
        (Ok(whole), Err(error)) => panic!("read as {whole:?}, and in parts not at all: {error}"),
    }
    let value = object(body);
    if let Some(value) = &value {
        let sound = value.get("model").is_some_and(|m| m.as_str().is_some_and(|m| !m.is_empty()))
            && value.get("stream").is_none_or(|s| s.is_boolean() || s.is_null())
            && value.get("stream_options").is_none_or(|o| o.is_object() || o.is_null());
        match &whole {
            Ok(parsed) => agrees(parsed, value),
            Err(BadBody::Duplicate(member)) => assert!(occurrences(body, member) > 1),
            Err(error) => assert!(!sound, "refused for {error}"),
        }
    }
    if let Ok(parsed) = whole {
        let body = Bytes::copy_from_slice(body);
        assert_eq!(rewrite(&body, &parsed, &parsed.model, false), body, "nothing to change");
        rewritten(api, &body, &parsed, value.as_ref());
        handed_over(api, &body, value.as_ref());
    }
}

/// The two edits change what they are to change, and nothing else.
fn rewritten(api: Api, body: &Bytes, parsed: &Parsed, value: Option<&Map<String, Value>>) {
    let name = "other \"name\"\n";
    let out = rewrite(body, parsed, name, true);
    let again = parse(api, &out).unwrap();
    assert_eq!((again.model.as_str(), again.include_usage), (name, true));
    assert_eq!(
        (again.stream, again.max_output, &again.prefix, again.prompt_bytes),
        (parsed.stream, parsed.max_output, &parsed.prefix, parsed.prompt_bytes)
    );
    if let Some(value) = value {
        let mut expected = value.clone();
        expected["model"] = name.into();
        let options = expected.entry("stream_options").or_insert(Value::Null);
        if options.is_null() {
            *options = json!({});
        }
        options["include_usage"] = true.into();
        assert_eq!(object(&out).unwrap(), expected);
    }
}

/// What engines of a pair are told, and what clients must not tell them.
fn handed_over(api: Api, body: &Bytes, value: Option<&Map<String, Value>>) {
    let clean = without_hand_over(body.clone());
    assert!(parse(api, &clean).is_ok());
    assert!(TOLD.iter().all(|name| occurrences(&clean, name) == 0));
    let _ = can_split(api, body);
    let prefill = vllm_prefill(body);
    let read = parse(api, &prefill).unwrap();
    assert_eq!((read.stream, read.max_output.map(|m| m <= 1)), (false, Some(true)));
    assert_eq!(occurrences(&prefill, "kv_transfer_params"), 1);
    let Some(value) = value else { return };
    let left = |of: &[u8]| -> Map<String, Value> {
        let changed =
            [&TOLD[..], &["max_tokens", "max_completion_tokens", "min_tokens", "stream", "stream_options"]]
                .concat();
        object(of).unwrap().into_iter().filter(|(name, _)| !changed.contains(&name.as_str())).collect()
    };
    assert_eq!(left(&prefill), left(body));
    let changed =
        with_members(body, &[("seed", Some("[1,{}]".into())), ("é\"", Some("0".into())), ("model", None)]);
    let mut expected = value.clone();
    expected.remove("model");
    expected.insert("seed".into(), json!([1, {}]));
    expected.insert("é\"".into(), json!(0));
    assert_eq!(object(&changed).unwrap(), expected);
}

#[test]
fn request_bodies() {
    fuzz("bodies", &WORDS, check);
}
