//! Envoy's messages in any order and shape, and damaged on the wire.

use bytes::Bytes;
use plimsoll_proto::ext_proc::body_mutation::Mutation;
use plimsoll_proto::ext_proc::processing_request::Request as Said;
use plimsoll_proto::ext_proc::processing_response::Response as Answer;
use plimsoll_proto::ext_proc::value::Kind;
use plimsoll_proto::ext_proc::{
    BodySendMode, HeaderMap, HeaderValue, HttpBody, HttpHeaders, HttpTrailers, Metadata, ProcessingRequest,
    ProcessingResponse, ProtocolConfiguration, Struct, Value,
};
use prost::Message;

use super::conversation::Conversation;
use crate::config::AgentConfig;
use crate::fuzz::{Dice, first_parts, fuzz, parts};
use crate::proxy::handler::Proxy;

const WORDS: [&str; 10] = [
    "\"model\":\"chat-model\"",
    "\"model\":\"x\"",
    "\"stream\":true",
    "\"messages\":[]",
    "{",
    "}",
    "data: ",
    "\n\n",
    "null",
    "\"usage\":{}",
];
const TABLE: &str = include_str!("../../corpus/routes/one-pool.json");
const LONGEST_PART: usize = 62_000;
/// Messages that one body is sent in at most.
const MOST_PARTS: usize = 40;

fn header(key: &str, value: &[u8], dice: &mut Dice) -> HeaderValue {
    let (key, raw) = (key.to_owned(), dice.one_in(2));
    match (raw, std::str::from_utf8(value)) {
        (false, Ok(text)) => HeaderValue { key, value: text.to_owned(), raw_value: Bytes::new() },
        _ => HeaderValue { key, value: String::new(), raw_value: Bytes::copy_from_slice(value) },
    }
}

fn head(input: &[u8], dice: &mut Dice) -> HttpHeaders {
    let path = dice.of(&[
        "/v1/chat/completions",
        "/v1/completions?x=1",
        "/v1/models",
        "/v1/models/chat-model",
        "",
        "/tokenize",
        "/nowhere",
    ]);
    let mut headers = vec![
        header(":method", dice.of(&[&b"POST"[..], b"POST", b"POST", b"GET", b"", b"\xff"]), dice),
        header(":path", path.as_bytes(), dice),
        header(":status", dice.of(&[&b"200"[..], b"503", b"-1", b"x"]), dice),
        header("content-type", dice.of(&[&b"text/event-stream"[..], b"application/json"]), dice),
    ];
    let names =
        ["x-plimsoll-deadline-ms", "x-slo-ttft-ms", "x-plimsoll-tenant", "x-a", "not a name", "", "X-UPPER"];
    for _ in 0..dice.below(4) {
        let from = dice.below(input.len() + 1);
        let value = if dice.one_in(2) { &b"25"[..] } else { &input[from..(from + 20).min(input.len())] };
        headers.push(header(dice.of(&names), value, dice));
    }
    HttpHeaders { headers: Some(HeaderMap { headers }), end_of_stream: dice.one_in(8) }
}

fn metadata(dice: &mut Dice) -> Option<Metadata> {
    let text = |text: &str| Kind::StringValue(text.to_owned());
    let kind = match dice.below(5) {
        0 => text("10.0.0.1:8000,10.0.0.2:8000"),
        1 => text(""),
        2 => Kind::BoolValue(true),
        3 => text("10.9.9.9:1"),
        _ => return None,
    };
    let (namespace, key) = dice.of(&[
        ("envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset"),
        ("envoy.lb", "x-gateway-destination-endpoint-served"),
        ("other", "key"),
    ]);
    let fields = [(key.to_owned(), Value { kind: Some(kind) })].into();
    Some(Metadata { filter_metadata: [(namespace.to_owned(), Struct { fields })].into() })
}

/// A request's messages as Envoy sends them, or in another order.
fn messages(input: &[u8], dice: &mut Dice) -> Vec<ProcessingRequest> {
    let body = |dice: &mut Dice| {
        let mut all: Vec<HttpBody> = first_parts(input, MOST_PARTS, dice)
            .into_iter()
            .map(|body| HttpBody { body, end_of_stream: false })
            .collect();
        match all.last_mut() {
            Some(last) => last.end_of_stream = !dice.one_in(5),
            None => all.push(HttpBody { body: Bytes::new(), end_of_stream: true }),
        }
        all
    };
    let mut said = vec![Said::RequestHeaders(head(input, dice))];
    said.extend(body(dice).into_iter().map(Said::RequestBody));
    if dice.one_in(4) {
        said.push(Said::RequestTrailers(HttpTrailers::default()));
    }
    said.push(Said::ResponseHeaders(head(input, dice)));
    said.extend(body(dice).into_iter().map(Said::ResponseBody));
    if dice.one_in(4) {
        said.push(Said::ResponseTrailers(HttpTrailers::default()));
    }
    for _ in 0..dice.of(&[0, 0, 0, 1, 3]) {
        let (a, b) = (dice.below(said.len()), dice.below(said.len()));
        said.swap(a, b);
    }
    let mode = |dice: &mut Dice| {
        dice.of(&[
            BodySendMode::FullDuplexStreamed,
            BodySendMode::Buffered,
            BodySendMode::None,
            BodySendMode::Streamed,
        ])
    };
    let config = ProtocolConfiguration {
        request_body_mode: mode(dice).into(),
        response_body_mode: mode(dice).into(),
        ..Default::default()
    };
    let mut config = Some(config).filter(|_| !dice.one_in(4));
    said.into_iter()
        .map(|request| ProcessingRequest {
            request: Some(request),
            metadata_context: metadata(dice),
            protocol_config: config.take(),
            observability_mode: false,
        })
        .collect()
}

/// The parts of a body in answers, put together; each is short enough for every gateway, and the last says so.
fn returned(answers: &[ProcessingResponse], pick: fn(&Answer) -> Option<&Mutation>) -> (Vec<u8>, usize) {
    let (mut out, mut ends) = (Vec::new(), 0);
    for mutation in answers.iter().filter_map(|a| pick(a.response.as_ref()?)) {
        let Mutation::StreamedResponse(part) = mutation else { panic!("{mutation:?}") };
        assert!(part.body.len() <= LONGEST_PART && ends == 0);
        out.extend_from_slice(&part.body);
        ends += usize::from(part.end_of_stream);
    }
    (out, ends)
}

fn request_part(answer: &Answer) -> Option<&Mutation> {
    match answer {
        Answer::RequestBody(body) => body.response.as_ref()?.body_mutation.as_ref()?.mutation.as_ref(),
        _ => None,
    }
}

fn proxy() -> Proxy {
    let proxy = Proxy::new_for_tests(AgentConfig::new("fuzz"));
    proxy.shared.install(serde_json::from_str(TABLE).unwrap(), "epoch".into());
    proxy
}

#[test]
fn messages_of_envoy() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let proxy = proxy();
    fuzz("bodies", &WORDS, |input, dice| {
        runtime.block_on(async {
            let mut conversation = Conversation::new(proxy.clone());
            let mut answers = Vec::new();
            let all = messages(input, dice);
            let sound = dice.one_in(2);
            for message in all {
                let message = if sound {
                    message
                } else {
                    let mut bytes = message.encode_to_vec();
                    for _ in 0..dice.below(3).min(bytes.len()) {
                        let at = dice.below(bytes.len());
                        bytes[at] = dice.next() as u8;
                    }
                    let Ok(damaged) = ProcessingRequest::decode(&*bytes) else { continue };
                    damaged
                };
                answers.extend(conversation.hear(message).await);
                if conversation.over {
                    break;
                }
            }
            conversation.end();
            for answer in &answers {
                if let Some(Answer::ImmediateResponse(refusal)) = &answer.response {
                    let code = refusal.status.as_ref().unwrap().code;
                    assert!((200..600).contains(&code));
                    serde_json::from_slice::<serde_json::Value>(&refusal.body).unwrap();
                }
            }
            let (_, ends) = returned(&answers, request_part);
            assert!(ends <= 1);
        });
    });
}

#[test]
fn bodies_go_back_as_they_came_in_full_duplex() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let proxy = proxy();
    fuzz("bodies", &WORDS, |input, dice| {
        runtime.block_on(async {
            let mut conversation = Conversation::new(proxy.clone());
            let wire = |pairs: &[(&str, &str)]| HttpHeaders {
                headers: Some(HeaderMap {
                    headers: pairs
                        .iter()
                        .map(|(k, v)| HeaderValue {
                            key: (*k).into(),
                            value: (*v).into(),
                            raw_value: Bytes::new(),
                        })
                        .collect(),
                }),
                end_of_stream: false,
            };
            let say = |request| ProcessingRequest { request: Some(request), ..Default::default() };
            let first = wire(&[(":method", "POST"), (":path", "/v1/chat/completions")]);
            let mut answers = conversation.hear(say(Said::RequestHeaders(first))).await;
            let mut all = parts(input, dice);
            let last = all.pop().unwrap_or_default();
            for body in all {
                answers.extend(
                    conversation.hear(say(Said::RequestBody(HttpBody { body, end_of_stream: false }))).await,
                );
                if conversation.over {
                    break;
                }
            }
            if !conversation.over {
                answers.extend(
                    conversation
                        .hear(say(Said::RequestBody(HttpBody { body: last, end_of_stream: true })))
                        .await,
                );
            }
            if !conversation.over {
                assert_eq!(returned(&answers, request_part), (input.to_vec(), 1));
            }
            conversation.end();
        });
    });
}
