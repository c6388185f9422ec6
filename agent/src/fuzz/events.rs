//! Answers of engines: streams of events, whole answers, and answers that are continued.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Dice, fuzz, parts};
use crate::body::{Api, parse};
use crate::resume::{Decision, Transcript};
use crate::sse::{Seen, SseScanner, Usage, usage_of, with_cached_tokens};

const WORDS: [&str; 24] = [
    "data: ",
    "data:",
    "\n\n",
    "\r\n\r\n",
    "data: [DONE]\n\n",
    ": ping\n\n",
    "event: x\n",
    "\"usage\":",
    "\"usage\": ",
    "\"usage\":null",
    "\"choices\":[]",
    "\"model\":\"engine\"",
    "\"model\": \"engine\"",
    "\"finish_reason\":\"stop\"",
    "\"finish_reason\":null",
    "{\"error\":",
    "\"delta\":{\"content\":\"a\"}",
    "\"text\":\"a\"",
    "\"tool_calls\":[{}]",
    "null",
    "\"prompt_tokens\":3",
    "\"cached_tokens\":1",
    "\"index\":1",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"b\"}}]}\n\n",
];
/// Events beyond this pass unread: what the scanner says of them may depend on the cuts.
const READ: usize = 512 << 10;
/// What a client's request for such a stream may be.
const REQUESTS: [&str; 4] = [
    r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}"#,
    r#"{"model":"m","messages":[],"max_tokens":3,"stream":true,"stop":["ab"]}"#,
    r#"{"model":"m","prompt":"x","stream":true,"min_tokens":2,"max_completion_tokens":9}"#,
    r#"{"model":"m","messages":[{"role":"assistant","content":"x"}],"continue_final_message":true,"n":1}"#,
];

fn scanned(scanner: &mut SseScanner, parts: &[Bytes]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend_from_slice(&scanner.push(part.clone()));
        assert!(scanner.tail().len() <= READ, "{} bytes are held back", scanner.tail().len());
    }
    out.extend_from_slice(&scanner.finish());
    out
}

fn check(stream: &[u8], dice: &mut Dice) {
    let cut = parts(stream, dice);
    let mut bare = SseScanner::new(false, None);
    assert_eq!(scanned(&mut bare, &cut), stream, "what is neither dropped nor renamed passes as it came");
    let whole = [Bytes::copy_from_slice(stream)];
    let elsewhere = dice.of(&[None, Some(None), Some(Some(3))]);
    let both = || {
        let mut scanner = SseScanner::new(true, Some(("engine", "pool")));
        if let Some(cached_tokens) = elsewhere {
            scanner.prompt_came_from_elsewhere(cached_tokens);
        }
        scanner
    };
    let (mut at_once, mut in_parts) = (both(), both());
    let (a, b) = (scanned(&mut at_once, &whole), scanned(&mut in_parts, &cut));
    if stream.len() < READ {
        // Written out only where they differ: that takes longer than all else.
        assert!(a == b, "cut otherwise: {} / {}", a.escape_ascii(), b.escape_ascii());
        assert_eq!(at_once.seen(), in_parts.seen(), "cut otherwise");
    }
    continued(stream, dice);
    answer(stream);
}

/// A transcript takes whole events, as a scanner gives them, wherever they are cut; and what it then asks for can be asked.
fn continued(stream: &[u8], dice: &mut Dice) {
    let request = dice.of(&REQUESTS);
    let api = if request.contains("prompt") { Api::Completions } else { Api::Chat };
    let read = |parts: &[Bytes]| {
        let (mut scanner, mut transcript) = (SseScanner::new(false, None), Transcript::new(api));
        let (mut out, mut broke) = (Vec::new(), None);
        for part in parts {
            let passed = transcript.pass(scanner.push(part.clone()));
            out.extend_from_slice(&passed.out);
            broke = passed.broke;
            if broke.is_some() {
                break;
            }
        }
        (transcript, out, broke)
    };
    let (a, b) = (read(&[Bytes::copy_from_slice(stream)]), read(&parts(stream, dice)));
    if stream.len() < READ {
        assert_eq!((&a.1, &a.2), (&b.1, &b.2), "cut otherwise");
        assert_eq!((a.0.text(), a.0.tokens(), a.0.finished()), (b.0.text(), b.0.tokens(), b.0.finished()));
    }
    let mut transcript = a.0;
    match transcript.decide(request.as_bytes(), dice.one_in(2)) {
        Decision::Finish(end) => {
            let end = std::str::from_utf8(&end).unwrap();
            assert!(end.ends_with("data: [DONE]\n\n"), "{end}");
            for data in end.lines().filter_map(|l| l.strip_prefix("data: ")).filter(|d| *d != "[DONE]") {
                serde_json::from_str::<Value>(data).unwrap();
            }
        }
        Decision::Leave(unfit) => assert!(!unfit.as_str().is_empty()),
        Decision::Ask(ask) => {
            let asked = parse(api, &ask.body).unwrap();
            assert_eq!(asked.model, "m");
            transcript.go_on(&ask);
            // The same stream once more, as if it were the rest: events stay events.
            let mut scanner = SseScanner::new(false, None);
            let passed = transcript.pass(scanner.push(Bytes::copy_from_slice(stream)));
            assert!(passed.out.is_empty() || passed.out.ends_with(b"\n"));
        }
    }
}

/// A whole answer's token counts are those that another reader finds.
fn answer(body: &[u8]) {
    let usage = usage_of(body);
    let Ok(value) = serde_json::from_slice::<Value>(body) else { return };
    if let Some(changed) = with_cached_tokens(body, Some(3)) {
        let changed: Value = serde_json::from_slice(&changed).unwrap();
        let cached = &changed["usage"]["prompt_tokens_details"]["cached_tokens"];
        assert_eq!(cached.as_u64(), usage.map(|u| u.prompt_tokens.min(3)), "{changed}");
    }
    if let Some(usage) = usage {
        let said = &value["usage"];
        let of = |a: &str, b: &str| said[a].as_u64().or(said[b].as_u64()).unwrap_or(0);
        assert_eq!(usage.prompt_tokens, of("prompt_tokens", "input_tokens"));
        assert_eq!(usage.completion_tokens, of("completion_tokens", "output_tokens"));
    }
}

#[test]
fn answers_of_engines() {
    fuzz("events", &WORDS, check);
}

/// A stream as engines write it, with every choice that the format leaves them, and what it says.
fn written(dice: &mut Dice) -> (String, Seen) {
    let mut seen = Seen::default();
    let mut out = String::new();
    let blank = dice.of(&["\n\n", "\r\n\r\n"]);
    let running = dice.one_in(3);
    let text = |value: &Value, dice: &mut Dice| {
        // Python writes a blank after each colon, others do not.
        if dice.one_in(2) { spaced(value) } else { value.to_string() }
    };
    let tokens = dice.below(6) as u64;
    for n in 0..tokens {
        let content = dice.of(&[
            "a",
            "\"usage\": {",
            "\"model\":\"engine\"",
            "é\n\n",
            "data: [DONE]",
            "\\",
            "{\"error\":",
        ]);
        let mut chunk = json!({"id": "c", "model": "engine", "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": null}]});
        if running {
            chunk["usage"] = json!({"prompt_tokens": 7, "completion_tokens": n + 1});
            seen.usage = Some(Usage { prompt_tokens: 7, completion_tokens: n + 1, ..Usage::default() });
        } else if dice.one_in(2) {
            chunk["usage"] = Value::Null;
        }
        seen.token_events += 1;
        out += &format!("data:{}{}{blank}", dice.of(&[" ", ""]), text(&chunk, dice));
        if dice.one_in(5) {
            out += &format!(": ping{blank}");
        }
    }
    if dice.one_in(2) {
        let end = json!({"id": "c", "model": "engine", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
        out += &format!("data: {}{blank}", text(&end, dice));
        seen.finished = true;
    }
    if dice.one_in(2) {
        let cached = dice.of(&[None, Some(4)]);
        let usage = json!({"prompt_tokens": 9, "total_tokens": 9 + tokens, "completion_tokens": tokens,
            "prompt_tokens_details": cached.map(|c| json!({"cached_tokens": c}))});
        seen.usage = serde_json::from_value(usage.clone()).ok();
        let last = json!({"id": "c", "model": "engine", "choices": [], "usage": usage});
        out += &format!("data: {}{blank}", text(&last, dice));
    }
    if dice.one_in(2) {
        out += &format!("data: [DONE]{blank}");
        seen.done = true;
    }
    (out, seen)
}

fn spaced(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let all: Vec<String> =
                members.iter().map(|(k, v)| format!("{}: {}", json!(k), spaced(v))).collect();
            format!("{{{}}}", all.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(spaced).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

#[test]
fn what_a_sound_stream_says_is_what_is_read() {
    let count = super::setting("PLIMSOLL_FUZZ_COUNT").unwrap_or(super::FEW);
    for number in 0..count {
        let dice = &mut Dice::new(number);
        let (text, mut says) = written(dice);
        let mut scanner = SseScanner::new(true, Some(("engine", "pool")));
        let out = String::from_utf8(scanned(&mut scanner, &parts(text.as_bytes(), dice))).unwrap();
        let mut seen = *scanner.seen();
        // The end of a text may count as one event more, not as several.
        assert!(
            seen.token_events >= says.token_events && seen.token_events <= says.token_events + 1,
            "{number}: {text}"
        );
        (seen.token_events, says.token_events) = (0, 0);
        assert_eq!(seen, says, "{number}: {text}");
        let model = |line: &str| serde_json::from_str::<Value>(line.strip_prefix("data:")?.trim()).ok();
        for chunk in out.lines().filter_map(model) {
            assert_eq!(chunk["model"], "pool", "{number}: {out}");
            assert!(chunk["choices"] != json!([]), "{number}: the client did not ask for usage: {out}");
        }
    }
}
