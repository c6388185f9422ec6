//! Errors, ours and engines', and the other short answers that engines are asked for.

use serde_json::Value;

use super::{Dice, fuzz};
use crate::body::Api;
use crate::openai::ApiError;
use crate::proxy::handover::kept_params;
use crate::resume::Transcript;
use crate::sse::{SseScanner, rename_model};
use crate::trial::{Outcome, judge};

const WORDS: [&str; 20] = [
    "{\"error\":",
    "\"message\":",
    "\"type\":",
    "\"code\":",
    "\"param\":",
    "\"InternalServerError\"",
    "\"server_error\"",
    "500",
    "\"500\"",
    "400",
    "\"BadRequestError\"",
    "{\"object\":\"error\",",
    "\"choices\":[{\"text\":\"a\"}]",
    "\"usage\":{\"completion_tokens\":1}",
    "\"kv_transfer_params\":{\"remote_host\":\"h\"}",
    "\"kv_transfer_params\":null",
    "\"model\":\"engine\"",
    "\"model\" : \"engine\"",
    "\"model\",",
    "null",
];

fn check(text: &[u8], dice: &mut Dice) {
    // Whatever is said of an error arrives as it was said, as one event.
    let said = String::from_utf8_lossy(text);
    let error = ApiError::server(http::StatusCode::BAD_GATEWAY, "engine_failed", said.clone())
        .with_param(said.clone());
    let event = error.event();
    let data = event.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
    assert!(!data.contains('\n') && !data.contains('\r'));
    let read: Value = serde_json::from_str(data).unwrap();
    assert_eq!(
        (read["error"]["message"].as_str(), read["error"]["param"].as_str()),
        (Some(&*said), Some(&*said))
    );
    let mut scanner = SseScanner::new(false, None);
    scanner.push(event.clone().into());
    assert!(scanner.seen().error);
    assert!(Transcript::new(Api::Chat).pass(event.into()).broke.is_some());

    let value = serde_json::from_slice::<Value>(text).ok();
    match judge(dice.of(&[200, 204, 400, 404, 500, 503]), text) {
        Outcome::NoSuchRequest(status) => assert!((400..500).contains(&status)),
        Outcome::None(why) => assert!(!why.is_empty()),
        Outcome::Token => assert!(value.is_some(), "a token came of what is no answer"),
    }
    let kept = kept_params(text);
    assert!(kept.as_ref().is_none_or(Value::is_object));
    if let Some(value) = &value {
        assert!(kept.is_none() || kept.as_ref() == value.get("kv_transfer_params"));
    }
    if let Some(renamed) = rename_model(text, b"\"engine\"", b"\"pool\"") {
        assert_eq!(renamed.len() + 2, text.len());
        if value.is_some() {
            serde_json::from_slice::<Value>(&renamed).unwrap();
        }
    }
}

#[test]
fn errors_and_short_answers() {
    fuzz("errors", &WORDS, check);
}

#[test]
fn an_answer_says_the_clients_name_wherever_its_model_stands() {
    for text in [
        r#"{"model":"engine"}"#,
        r#"{"object":"model","model" : "engine"}"#,
        r#"{"owned_by":"model", "x":["model"],"model":"engine"}"#,
    ] {
        let renamed = rename_model(text.as_bytes(), b"\"engine\"", b"\"pool\"").unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&renamed).unwrap()["model"], "pool", "{text}");
    }
    assert_eq!(rename_model(br#"{"object":"model"}"#, b"\"engine\"", b"\"pool\""), None);
}
