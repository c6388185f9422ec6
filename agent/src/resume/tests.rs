//! The decisions, and that a stream put together from pieces is the stream that was cut.

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::sse::SseScanner;

const TOKENS: [&str; 12] =
    ["Once", " upon", " a", " time", ",\n", "\n", "été", " 🚢", " \"quoted\\\"", "  ", "end", "."];

/// A model that says these tokens, whatever it is asked, and goes on where a prompt ends within them.
struct Model {
    api: Api,
    tokens: Vec<&'static str>,
    /// The template strips blanks from the end of an open message.
    strips: bool,
}

impl Model {
    fn prompt_tokens(&self) -> u64 {
        50
    }

    /// Its stream for a request.
    fn answer(&self, id: &str, body: &[u8]) -> String {
        let request: Value = serde_json::from_slice(body).unwrap();
        let text = self.tokens.concat();
        let begun = match self.api {
            Api::Chat if request["continue_final_message"] == true => {
                assert_eq!(request["add_generation_prompt"], false);
                let last = request["messages"].as_array().unwrap().last().unwrap();
                assert_eq!(last["role"], "assistant");
                let begun = last["content"].as_str().unwrap();
                if self.strips { begun.trim_end() } else { begun }
            }
            Api::Chat => "",
            _ => request["prompt"].as_str().unwrap().strip_prefix("prompt ").unwrap(),
        };
        assert!(text.starts_with(begun), "{text:?} does not begin with {begun:?}");
        // What is left of a token that the prompt cut becomes one with the next.
        let (mut at, mut first) = (0, 0);
        while at < begun.len() {
            at += self.tokens[first].len();
            first += 1;
        }
        let rest = &self.tokens[first..];
        let limit = request["max_tokens"].as_u64().unwrap_or(1000) as usize;
        let mut out = String::new();
        let mut event = |choices: Value, usage: Option<Value>| {
            let mut chunk =
                json!({"id": id, "object": "chunk", "created": id.len(), "model": "m", "choices": choices});
            if let Some(usage) = usage {
                chunk["usage"] = usage;
            }
            out.push_str(&event_of(&chunk));
        };
        if self.api == Api::Chat {
            event(
                json!([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]),
                None,
            );
        }
        for (i, token) in rest.iter().take(limit).enumerate() {
            let token =
                if i == 0 { format!("{}{token}", &text[begun.len()..at]) } else { (*token).to_owned() };
            let delta = match self.api {
                Api::Chat => json!([{"index": 0, "delta": {"content": token}, "finish_reason": null}]),
                _ => json!([{"index": 0, "text": token, "finish_reason": null}]),
            };
            event(delta, None);
        }
        // The end token counts too: an answer that fills its limit exactly has no room to say that it is done.
        let reason = if limit <= rest.len() { "length" } else { "stop" };
        let last = match self.api {
            Api::Chat => json!([{"index": 0, "delta": {}, "finish_reason": reason}]),
            _ => json!([{"index": 0, "text": "", "finish_reason": reason}]),
        };
        event(last, None);
        let (prompt, completion) = (self.prompt_tokens() + first as u64, rest.len().min(limit));
        event(
            json!([]),
            Some(
                json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion as u64}),
            ),
        );
        out.push_str("data: [DONE]\n\n");
        out
    }
}

/// What a client makes of a stream.
#[derive(Debug, PartialEq)]
struct Read {
    text: String,
    roles: usize,
    ends: Vec<String>,
    done: usize,
    ids: Vec<String>,
    usage: Vec<(u64, u64, u64)>,
}

fn read(stream: &str) -> Read {
    let mut read = Read { text: String::new(), roles: 0, ends: vec![], done: 0, ids: vec![], usage: vec![] };
    for line in stream.lines().filter(|l| !l.is_empty()) {
        let data = line.strip_prefix("data: ").unwrap_or_else(|| panic!("{line:?} in {stream}"));
        if data == "[DONE]" {
            read.done += 1;
            continue;
        }
        assert_eq!(read.done, 0, "nothing comes after the end");
        let chunk: Value = serde_json::from_str(data).unwrap();
        read.ids.push(format!("{} {} {} {}", chunk["id"], chunk["created"], chunk["model"], chunk["object"]));
        let choice = &chunk["choices"][0];
        read.roles += usize::from(choice["delta"]["role"].is_string());
        read.text += choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or("");
        read.ends.extend(choice["finish_reason"].as_str().map(str::to_owned));
        if let Some(usage) = chunk["usage"].as_object() {
            let n = |key: &str| usage[key].as_u64().unwrap();
            read.usage.push((n("prompt_tokens"), n("completion_tokens"), n("total_tokens")));
        }
    }
    read.ids.dedup();
    read
}

/// Plays a request against engines that die after so many bytes (the last does not), in chunks of `chunk` bytes, as the
/// relay does.
fn play(model: &Model, body: &[u8], cuts: &[usize], chunk: usize) -> (String, Transcript, Option<Usage>) {
    let mut transcript = Transcript::new(model.api);
    let mut out = String::new();
    let mut asked = Bytes::copy_from_slice(body);
    for leg in 0..=cuts.len() {
        let stream = model.answer(&format!("leg{}", "x".repeat(leg)), &asked).into_bytes();
        let cut = cuts.get(leg).map_or(stream.len(), |c| c % (stream.len() + 1));
        let mut scanner = SseScanner::new(false, None);
        for part in stream[..cut].chunks(chunk) {
            let passed = transcript.pass(scanner.push(Bytes::copy_from_slice(part)));
            assert_eq!(passed.broke, None);
            out.push_str(std::str::from_utf8(&passed.out).unwrap());
        }
        if scanner.seen().done {
            return (out, transcript.clone(), transcript.total(scanner.seen().usage));
        }
        match transcript.decide(body, true) {
            Decision::Finish(end) => {
                out.push_str(std::str::from_utf8(&end).unwrap());
                return (out, transcript.clone(), transcript.total(scanner.seen().usage));
            }
            Decision::Ask(ask) => {
                transcript.go_on(&ask);
                asked = ask.body;
            }
            Decision::Leave(unfit) => panic!("{unfit:?}"),
        }
    }
    unreachable!("the last engine lives")
}

fn body(api: Api, more: Value) -> Vec<u8> {
    let mut body = match api {
        Api::Chat => json!({"model": "m", "messages": [{"role": "user", "content": "prompt"}]}),
        _ => json!({"model": "m", "prompt": "prompt ", "max_tokens": 500}),
    };
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string().into_bytes()
}

proptest! {
    #[test]
    fn wherever_it_is_cut_the_client_sees_one_answer(
        picks in prop::collection::vec(0..TOKENS.len(), 1..25),
        cuts in prop::collection::vec(0usize..6000, 0..3),
        chunk in 1usize..400,
        chat: bool,
        strips: bool,
        limit in prop::option::of(1u64..30),
    ) {
        let api = if chat { Api::Chat } else { Api::Completions };
        let tokens: Vec<&'static str> = picks.into_iter().map(|i| TOKENS[i]).collect();
        let model = Model { api, tokens, strips };
        let mut request = json!({"stream": true, "stream_options": {"include_usage": true}});
        if let Some(limit) = limit {
            request["max_tokens"] = limit.into();
        }
        let request = body(api, request);
        let whole = read(&model.answer("leg", &request));
        let (stream, transcript, total) = play(&model, &request, &cuts, chunk);
        let got = read(&stream);
        prop_assert_eq!(&got.text, &whole.text);
        prop_assert_eq!((got.roles, got.done), (whole.roles, 1));
        prop_assert_eq!(&got.ends, &whole.ends);
        prop_assert_eq!(got.ids.len(), 1, "one name: {:?}", got.ids);
        prop_assert_eq!(transcript.text(), &whole.text);
        prop_assert!(got.usage.len() <= 1);
        if let Some(usage) = got.usage.first() {
            prop_assert_eq!(usage.0 + usage.1, usage.2);
            prop_assert_eq!(usage, &whole.usage[0]);
            let total = total.unwrap();
            prop_assert_eq!((total.prompt_tokens, total.completion_tokens), (usage.0, usage.1));
        }
    }

    #[test]
    fn no_bytes_panic(parts in prop::collection::vec(prop_oneof![
        Just("data: ".to_owned()), Just("{\"choices\":[{\"delta\":{\"content\":\" é\"}}]}".to_owned()), Just("\n\n".to_owned()),
        Just("{\"error\":{\"code\":500}}".to_owned()), Just("[DONE]".to_owned()), ".{0,20}",
    ], 0..30), splice: bool) {
        let mut t = Transcript::new(Api::Chat);
        t.pass(Bytes::from_static(b"data: {\"id\":\"x\",\"choices\":[{\"delta\":{\"content\":\"a \"}}]}\n\n"));
        if splice && let Decision::Ask(ask) = t.decide(&body(Api::Chat, json!({})), true) {
            t.go_on(&ask);
        }
        for part in parts {
            t.pass(part.into());
            t.decide(&body(Api::Chat, json!({})), true);
        }
    }
}

fn after(api: Api, events: &[Value]) -> Transcript {
    let mut transcript = Transcript::new(api);
    for event in events {
        let passed = transcript.pass(event_of(event).into());
        assert_eq!(passed.out, event_of(event).as_bytes());
    }
    transcript
}

fn said(text: &str) -> Value {
    json!({"id": "a", "created": 7, "model": "m", "choices": [{"index": 0, "delta": {"content": text}}]})
}

#[test]
fn what_is_asked_is_what_is_missing() {
    let chat = after(Api::Chat, &[said("It was"), said(" a "), said("\n")]);
    let limits = json!({"max_tokens": 10, "max_completion_tokens": 9, "min_tokens": 1, "temperature": 0.5});
    let Decision::Ask(ask) = chat.decide(&body(Api::Chat, limits), true) else { panic!("it can") };
    let asked: Value = serde_json::from_slice(&ask.body).unwrap();
    assert_eq!(
        asked,
        json!({
            "model": "m", "max_tokens": 8, "max_completion_tokens": 7, "min_tokens": 0, "temperature": 0.5,
            "messages": [{"role": "user", "content": "prompt"}, {"role": "assistant", "content": "It was a"}],
            "continue_final_message": true, "add_generation_prompt": false,
        })
    );

    let said = json!({"choices": [{"index": 0, "text": "said "}]});
    let completion = after(Api::Completions, &[said]);
    let request = json!({"model": "m", "prompt": ["It was "]}).to_string();
    let Decision::Ask(ask) = completion.decide(request.as_bytes(), true) else { panic!("it can") };
    let asked: Value = serde_json::from_slice(&ask.body).unwrap();
    assert_eq!(asked, json!({"model": "m", "prompt": ["It was said "], "max_tokens": 15}));

    // An answer that the client itself had begun goes on within that.
    let mut request = json!({"continue_final_message": true, "add_generation_prompt": false});
    request["messages"] = json!([{"role": "assistant", "content": "So. "}]);
    let Decision::Ask(ask) = chat.decide(&body(Api::Chat, request), true) else { panic!("it can") };
    let asked: Value = serde_json::from_slice(&ask.body).unwrap();
    assert_eq!(asked["messages"], json!([{"role": "assistant", "content": "So. It was a"}]));

    // Members that say nothing do no harm.
    let empty = json!({"choices": [{"index": 0, "delta": {"role": null, "content": "x", "reasoning": null,
        "reasoning_content": null, "tool_calls": null}, "logprobs": null, "matched_stop": null}], "usage": null});
    let decision = after(Api::Chat, &[empty]).decide(&body(Api::Chat, json!({})), true);
    assert!(matches!(decision, Decision::Ask(_)), "{decision:?}");

    // Nothing but the role was sent: the same once more.
    let role = json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]});
    let request = body(Api::Chat, json!({}));
    let Decision::Ask(ask) = after(Api::Chat, &[role]).decide(&request, true) else { panic!("it can") };
    assert_eq!(ask.body, Value::to_string(&serde_json::from_slice(&request).unwrap()).as_bytes());
}

#[rstest]
#[case(json!({"n": 2}), "n")]
#[case(json!({"best_of": 3}), "best_of")]
#[case(json!({"tools": [{"type": "function"}]}), "tools")]
#[case(json!({"tool_choice": "auto"}), "tool_choice")]
#[case(json!({"logprobs": true}), "logprobs")]
#[case(json!({"logprobs": 0}), "logprobs")]
#[case(json!({"response_format": {"type": "json_object"}}), "response_format")]
#[case(json!({"guided_json": {}}), "guided_*")]
#[case(json!({"structured_outputs": {"choice": ["a"]}}), "structured_outputs")]
#[case(json!({"seed": 0}), "seed")]
#[case(json!({"include_reasoning": false}), "include_reasoning")]
#[case(json!({"add_generation_prompt": false}), "add_generation_prompt")]
#[case(json!({"prompt": [1, 2]}), "prompt")]
fn what_cannot_be_split_is_left(#[case] more: Value, #[case] member: &'static str) {
    let api = if more.get("prompt").is_some() { Api::Completions } else { Api::Chat };
    let event = if api == Api::Chat { said("x") } else { json!({"choices": [{"text": "x"}]}) };
    let decision = after(api, &[event]).decide(&body(api, more), false);
    assert_eq!(decision, Decision::Leave(Unfit::Member(member)));
}

#[test]
fn harmless_values_of_those_members_do_no_harm() {
    let more = json!({
        "n": 1, "best_of": 1, "tools": [], "tool_choice": "none", "logprobs": false, "top_logprobs": 0, "seed": null,
        "response_format": {"type": "text"}, "guided_json": null, "echo": false, "stop": ["###", "zz"],
    });
    let decision = after(Api::Chat, &[said("x #")]).decide(&body(Api::Chat, more.clone()), false);
    assert_eq!(decision, Decision::Leave(Unfit::StopString));
    let decision = after(Api::Chat, &[said("x # ")]).decide(&body(Api::Chat, more), false);
    assert!(matches!(decision, Decision::Ask(_)), "{decision:?}");
}

#[rstest]
#[case(json!({"choices": [{"index": 1, "delta": {"content": "x"}}]}))]
#[case(json!({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0}]}}]}))]
#[case(json!({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]}))]
#[case(json!({"choices": [{"index": 0, "delta": {"reasoning": "hm"}}]}))]
#[case(json!({"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": {}}]}))]
fn streams_of_more_than_text_pass_and_are_left(#[case] event: Value) {
    let transcript = after(Api::Chat, &[said("x"), event.clone(), said("y")]);
    let decision = transcript.decide(&body(Api::Chat, json!({})), false);
    assert_eq!(decision, Decision::Leave(Unfit::Stream));
    // In a continuation they would not fit what the client has.
    let mut transcript = after(Api::Chat, &[said("x")]);
    let Decision::Ask(ask) = transcript.decide(&body(Api::Chat, json!({})), false) else { panic!("it can") };
    transcript.go_on(&ask);
    let passed = transcript.pass(event_of(&event).into());
    assert!(passed.out.is_empty() && passed.broke.unwrap().event.is_none());
}

#[test]
fn an_engines_last_word_is_held_back_a_complaint_is_not() {
    let error = |code: Value| event_of(&json!({"error": {"message": "gone", "code": code}}));
    for code in [json!("engine_failed"), json!(500), json!("503")] {
        let mut transcript = Transcript::new(Api::Chat);
        let stream = format!("{}{}data: [DONE]\n\n", event_of(&said("x")), error(code.clone()));
        let passed = transcript.pass(stream.into());
        assert_eq!(passed.out, event_of(&said("x")));
        let broke = passed.broke.unwrap();
        assert_eq!((broke.message.as_str(), broke.event.unwrap()), ("gone", error(code).into()));
    }
    let mut given_up = said("");
    given_up["choices"][0]["finish_reason"] = json!("abort");
    let mut transcript = after(Api::Chat, &[said("x")]);
    let passed = transcript.pass(event_of(&given_up).into());
    assert!(passed.out.is_empty() && passed.broke.is_some() && !transcript.finished());
    let mut transcript = Transcript::new(Api::Chat);
    let stream = error(json!(400));
    assert_eq!(transcript.pass(stream.clone().into()), Passed { out: stream.into(), broke: None });
}

#[test]
fn long_answers_pass_and_are_not_kept() {
    let long = said(&"x".repeat(MAX_TEXT_BYTES / 2));
    let transcript = after(Api::Chat, &[long.clone(), long.clone(), long]);
    assert_eq!(transcript.text(), "");
    let decision = transcript.decide(&body(Api::Chat, json!({})), false);
    assert_eq!(decision, Decision::Leave(Unfit::TooLong));
}

#[test]
fn limits_reached_end_the_answer() {
    let transcript = after(Api::Chat, &[said("a"), said("b")]);
    let request = body(Api::Chat, json!({"max_tokens": 2}));
    let Decision::Finish(end) = transcript.decide(&request, true) else { panic!("nothing is missing") };
    let end = read(std::str::from_utf8(&end).unwrap());
    assert_eq!((end.ends, end.done, end.usage), (vec!["length".to_owned()], 1, vec![]));
    assert_eq!(end.ids, ["\"a\" 7 \"m\" null"]);
}

#[test]
fn running_usage_is_taken_at_its_word() {
    let mut counted = said("three tokens here");
    counted["usage"] =
        json!({"prompt_tokens": 40, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 16}});
    let mut transcript = after(Api::Chat, &[counted]);
    let request = body(Api::Chat, json!({"max_tokens": 10}));
    let Decision::Ask(ask) = transcript.decide(&request, true) else { panic!("it can") };
    transcript.go_on(&ask);
    let own = Usage { prompt_tokens: 44, completion_tokens: 7, prompt_tokens_details: None };
    let total = transcript.total(Some(own)).unwrap();
    assert_eq!((total.prompt_tokens, total.completion_tokens), (40, 10));
    assert_eq!(serde_json::from_slice::<Value>(&ask.body).unwrap()["max_tokens"], 7);
    assert_eq!(transcript.total(None).unwrap().cached_tokens(), 16);
}
