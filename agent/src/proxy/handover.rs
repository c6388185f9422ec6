//! A request on two engines: one computes the prompt, the other takes its KV cache and answers.
//!
//! vLLM's engines are asked one after the other: the prefill replica for one token with `kv_transfer_params`, whose own
//! `kv_transfer_params` in the answer tell the decode replica where the cache lies. SGLang's are asked at once and meet in a
//! room, numbered here, of the prefill replica's bootstrap server. Each is admitted by the agent beside it, and
//! nothing has reached the client before the decode replica's first byte: until then the next choice may serve it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use parking_lot::Mutex;
use plimsoll_fleet::{Endpoint, HandOverProtocol, ReplicaId};
use rand::Rng;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::account::{Place, Sizes};
use super::forward::{Content, Errand, Missed, Reply, Routed};
use super::handler::Proxy;
use super::hop::Hop;
use crate::body::{Api, members, with_members};
use crate::metrics::PhaseLabels;
use crate::route::{Partner, Ranked};
use crate::shared::Pool;
use crate::sse::usage_of;

/// How long to wait for the prefill side's own word when the decode side has failed: which of them broke the other?
const WHOSE_FAULT: Duration = Duration::from_millis(250);

/// Members by which engines are told of hand-overs.
pub(crate) const TOLD: [&str; 4] =
    ["kv_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room"];

/// What the prefill half of a pair does for one answer. It lives as long as the answer does.
#[derive(Debug)]
pub(crate) struct Prefilled {
    pub(crate) replica: ReplicaId,
    cached_tokens: OnceLock<u64>,
    /// Of SGLang's protocol: whoever reads its answer. The engine gives up where it is not read.
    reading: Mutex<Option<AbortOnDrop>>,
}

impl Prefilled {
    fn new(replica: &ReplicaId) -> Arc<Self> {
        Arc::new(Self { replica: replica.clone(), cached_tokens: OnceLock::new(), reading: Mutex::new(None) })
    }

    /// Prompt tokens that it found in its prefix cache, if it has said.
    pub(crate) fn cached_tokens(&self) -> Option<u64> {
        self.cached_tokens.get().copied()
    }

    fn read(&self, answer: &Reply) {
        if let Content::Whole(bytes) = &answer.content
            && let Some(details) = usage_of(bytes).and_then(|u| u.prompt_tokens_details)
            && let Some(cached) = details.cached_tokens
        {
            // It answers once.
            let _ = self.cached_tokens.set(cached);
        }
    }
}

#[derive(Debug)]
struct AbortOnDrop(JoinHandle<Result<Reply, Missed>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A prompt's cache that waits at a prefill replica for whoever takes it.
#[derive(Debug)]
struct Kept {
    at: Endpoint,
    params: Value,
    prefilled: Arc<Prefilled>,
}

/// What earlier tries of one request have left.
#[derive(Debug, Default)]
pub(super) struct Tries {
    /// Prefill endpoints of the current choice that refused or failed.
    pub(super) spoiled: Vec<usize>,
    kept: Option<Kept>,
}

impl Tries {
    /// Whether a choice counts on a prefill replica that has failed this request.
    pub(super) fn is_spoiled(&self, ranked: &Ranked) -> bool {
        ranked.prefill.is_some_and(|partner| self.spoiled.contains(&partner.endpoint))
    }
}

/// Which side's answer, or failure.
enum Side<T> {
    Prefill(T),
    Decode(T),
}

/// A body that tells an engine nothing of hand-overs.
pub(crate) fn without_hand_over(body: Bytes) -> Bytes {
    if members(&body).any(|(name, _, _)| TOLD.contains(&&*name)) {
        with_members(&body, &TOLD.map(|name| (name, None)))
    } else {
        body
    }
}

/// Whether a request's prompt can be computed by one engine for another: one prompt, one answer, nothing asked about the prompt.
pub(crate) fn can_split(api: Api, body: &[u8]) -> bool {
    api.is_generation()
        && members(body).all(|(name, _, value)| {
            let text = &body[value];
            match &*name {
                "n" | "best_of" => matches!(text, b"1" | b"null"),
                "echo" | "use_beam_search" => matches!(text, b"false" | b"null"),
                "prompt_logprobs" => text == b"null",
                // A list of prompts, unless it is one prompt's tokens.
                "prompt" if text.starts_with(b"[") => {
                    let first = text[1..].iter().find(|b| !b.is_ascii_whitespace());
                    first.is_some_and(u8::is_ascii_digit)
                }
                _ => true,
            }
        })
}

/// The prompt's request in vLLM's protocol: one token, and where the cache lies.
pub(crate) fn vllm_prefill(body: &[u8]) -> Bytes {
    let ask = json!({
        "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null, "remote_block_ids": null,
        "remote_host": null, "remote_port": null,
    });
    let mut changes = vec![
        ("max_tokens", Some("1".to_owned())),
        ("max_completion_tokens", None),
        ("min_tokens", None),
        ("stream", Some("false".to_owned())),
        ("stream_options", None),
    ];
    changes.extend(told(&[("kv_transfer_params", ask)]));
    with_members(body, &changes)
}

/// Members of a hand-over, and no others of that kind.
fn told(set: &[(&'static str, Value)]) -> Vec<(&'static str, Option<String>)> {
    TOLD.iter()
        .map(|name| {
            let value = set.iter().find(|(n, _)| n == name);
            (*name, value.map(|(_, v)| v.to_string()))
        })
        .collect()
}

/// Where a vLLM engine says that the cache lies.
pub(crate) fn kept_params(answer: &[u8]) -> Option<Value> {
    #[derive(Deserialize)]
    struct Answer {
        kv_transfer_params: Option<Value>,
    }
    serde_json::from_slice::<Answer>(answer).ok()?.kv_transfer_params.filter(Value::is_object)
}

/// The host of `host:port`.
fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

impl Proxy {
    /// Has one replica compute the prompt and another answer.
    pub(super) async fn hand_over(
        &self,
        routed: &Routed,
        sizes: Sizes,
        pool: &Arc<Pool>,
        ranked: &Ranked,
        partner: Partner,
        tries: &mut Tries,
    ) -> Result<Reply, Missed> {
        let count = |outcome| self.count_reason(&self.shared.config.metrics.hand_overs, outcome);
        let decode = &pool.view.route.endpoints[ranked.endpoint];
        let protocol = decode.hand_over.as_ref().map(|h| h.protocol);
        let whole = self.whole(routed, sizes, pool, ranked);
        let Some(protocol) = protocol.filter(|_| can_split(routed.api, &whole.body)) else {
            count("not_split");
            let errand = Errand { hop: Hop { cached_tokens: 0.0, ..whole.hop }, ..whole };
            return self.run(routed, pool, ranked.endpoint, errand).await;
        };
        let done = match protocol {
            HandOverProtocol::Vllm => {
                self.one_after_the_other(routed, sizes, pool, ranked, partner, whole, tries).await
            }
            HandOverProtocol::Sglang => self.both_at_once(routed, sizes, pool, ranked, partner, whole).await,
        };
        let (side, result) = match done {
            Side::Prefill(result) => ("prefill", result),
            Side::Decode(result) => ("decode", result),
        };
        count(match (side, &result) {
            (_, Ok(reply)) if reply.head.status.is_client_error() => "invalid",
            ("decode", Ok(reply)) if reply.head.status.is_success() => "ok",
            ("decode", Err(Missed::Refused(_))) => "decode_refused",
            ("decode", _) => "decode_failed",
            (_, Err(Missed::Refused(_))) => "prefill_refused",
            _ => "prefill_failed",
        });
        if side == "prefill" && result.is_err() {
            tries.spoiled.push(partner.endpoint);
            let replica = &pool.view.route.endpoints[partner.endpoint].replica;
            tracing::info!(request_id = routed.request_id(), %replica, decode = %decode.replica, "no prefill there, somebody else is asked");
        }
        result
    }

    fn phase(&self, pool: &Pool, phase: &'static str, ms: f64) {
        let labels = PhaseLabels {
            agent: self.shared.config.name.clone(),
            pool: pool.view.route.pool.to_string(),
            phase,
        };
        self.shared.config.metrics.phase_seconds.get_or_create(&labels).observe(ms.max(0.0) / 1000.0);
    }

    fn prefill_errand(&self, pool: &Pool, partner: Partner, whole: &Errand, body: Bytes) -> Errand {
        Errand {
            hop: Hop {
                replica: pool.view.route.endpoints[partner.endpoint].replica.clone(),
                cached_tokens: partner.cached_tokens,
                expected_output: 1.0,
                streaming: false,
                tpot_ms: None,
                finish_in_ms: None,
                stage_in_ms: None,
                most_output: Some(1.0),
                ..whole.hop.clone().later(partner.transfer_ms)
            },
            body,
            prefilled: false,
        }
    }

    /// vLLM's protocol.
    async fn one_after_the_other(
        &self,
        routed: &Routed,
        sizes: Sizes,
        pool: &Arc<Pool>,
        ranked: &Ranked,
        partner: Partner,
        whole: Errand,
        tries: &mut Tries,
    ) -> Side<Result<Reply, Missed>> {
        let clock = self.shared.clock;
        let asked = clock.now_ms();
        let endpoints = &pool.view.route.endpoints;
        let (prefill, decode) = (&endpoints[partner.endpoint], &endpoints[ranked.endpoint]);
        let kept = match tries.kept.take() {
            // A decode replica refused what was computed: another takes it.
            Some(kept) if decode.transfer_ms(&kept.at, 0.0).is_some() => kept,
            _ => {
                let began = clock.now_ms();
                let errand = self.prefill_errand(pool, partner, &whole, vllm_prefill(&whole.body));
                let answer = match self.run(routed, pool, partner.endpoint, errand).await {
                    Ok(answer) => answer,
                    Err(missed) => return Side::Prefill(Err(not_begun(missed))),
                };
                let prefilled = Prefilled::new(&prefill.replica);
                prefilled.read(&answer);
                let params = match judge(&answer, &prefill.replica) {
                    Ok(Judged::Done(body)) => kept_params(&body),
                    Ok(Judged::AtFault) => return Side::Prefill(Ok(answer)),
                    Err(missed) => return Side::Prefill(Err(missed)),
                };
                let Some(params) = params else {
                    pool.replicas[partner.endpoint].failed(clock.now_ms());
                    return Side::Prefill(Err(Missed::Failed(format!(
                        "replica {} answered a prefill without kv_transfer_params; start it with --kv-transfer-config",
                        prefill.replica
                    ))));
                };
                self.phase(pool, "prefill", clock.now_ms() - began);
                Kept { at: prefill.clone(), params, prefilled }
            }
        };
        let body = with_members(&whole.body, &told(&[("kv_transfer_params", kept.params.clone())]));
        let began = clock.now_ms();
        let hop = Hop { cached_tokens: sizes.prompt_tokens, ..whole.hop }.later(began - asked);
        let done = self.run(routed, pool, ranked.endpoint, Errand { hop, body, prefilled: true }).await;
        Side::Decode(match done {
            Ok(reply) => {
                if reply.head.status.is_success() {
                    self.phase(pool, "hand_over", clock.now_ms() - began);
                }
                Ok(Reply { place: Place::Pair(Box::new(reply.place), kept.prefilled), ..reply })
            }
            Err(missed) => {
                if matches!(missed, Missed::Refused(_)) {
                    tries.kept = Some(kept);
                }
                Err(missed)
            }
        })
    }

    /// SGLang's protocol.
    async fn both_at_once(
        &self,
        routed: &Routed,
        sizes: Sizes,
        pool: &Arc<Pool>,
        ranked: &Ranked,
        partner: Partner,
        whole: Errand,
    ) -> Side<Result<Reply, Missed>> {
        let clock = self.shared.clock;
        let prefill = &pool.view.route.endpoints[partner.endpoint];
        let port = prefill.hand_over.as_ref().map_or(0, |h| h.bootstrap_port);
        // Rooms are 63 bits wide.
        let room = rand::rng().random::<u64>() >> 1;
        let meet = told(&[
            ("bootstrap_host", json!(host(&prefill.engine_address))),
            ("bootstrap_port", json!(port)),
            ("bootstrap_room", json!(room)),
        ]);
        let decode_body = with_members(&whole.body, &meet);
        let mut changes = meet;
        changes.extend([("stream", Some("false".to_owned())), ("stream_options", None)]);
        let errand = self.prefill_errand(pool, partner, &whole, with_members(&whole.body, &changes));

        let began = clock.now_ms();
        let prefilled = Prefilled::new(&prefill.replica);
        let mut reading = {
            let (proxy, routed, pool, notes) =
                (self.clone(), routed.clone(), pool.clone(), prefilled.clone());
            AbortOnDrop(tokio::spawn(async move {
                let answer = proxy.run(&routed, &pool, partner.endpoint, errand).await?;
                notes.read(&answer);
                proxy.phase(&pool, "prefill", clock.now_ms() - began);
                Ok(answer)
            }))
        };
        let hop = Hop { cached_tokens: sizes.prompt_tokens, ..whole.hop };
        let errand = Errand { hop, body: decode_body, prefilled: true };
        let decode = self.run(routed, pool, ranked.endpoint, errand);
        tokio::pin!(decode);
        let mut over = false;
        let done = loop {
            tokio::select! {
                biased;
                answer = &mut reading.0, if !over => match prefill_ended(answer, &prefill.replica) {
                    None => over = true,
                    Some(ended) => return Side::Prefill(ended),
                },
                done = &mut decode => break done,
            }
        };
        match done {
            Ok(reply) if reply.head.status.is_success() => {
                self.phase(pool, "hand_over", clock.now_ms() - began);
                if !over {
                    *prefilled.reading.lock() = Some(reading);
                }
                Side::Decode(Ok(Reply { place: Place::Pair(Box::new(reply.place), prefilled), ..reply }))
            }
            // What the decode engine makes of a prefill that broke is no fault of its own.
            failed @ (Ok(_) | Err(Missed::Failed(_))) if !over => {
                let client_error = matches!(&failed, Ok(reply) if reply.head.status.is_client_error());
                match tokio::time::timeout(WHOSE_FAULT, &mut reading.0).await {
                    Ok(answer) if !client_error => match prefill_ended(answer, &prefill.replica) {
                        Some(ended) => {
                            pool.replicas[ranked.endpoint].succeeded();
                            Side::Prefill(ended)
                        }
                        None => Side::Decode(failed),
                    },
                    _ => Side::Decode(failed),
                }
            }
            other => Side::Decode(other),
        }
    }
}

/// What the end of a prefill means for the pair; `None`: it has done its part.
fn prefill_ended(
    answer: Result<Result<Reply, Missed>, tokio::task::JoinError>,
    replica: &ReplicaId,
) -> Option<Result<Reply, Missed>> {
    match answer {
        Ok(Ok(answer)) => match judge(&answer, replica) {
            Ok(Judged::Done(_)) => None,
            Ok(Judged::AtFault) => Some(Ok(answer)),
            Err(missed) => Some(Err(missed)),
        },
        Ok(Err(missed)) => Some(Err(not_begun(missed))),
        Err(error) => Some(Err(Missed::Failed(error.to_string()))),
    }
}

/// Nothing of a prefill's answer is the client's: one that broke off is one that failed.
fn not_begun(missed: Missed) -> Missed {
    match missed {
        Missed::Begun(what) => Missed::Failed(what),
        other => other,
    }
}

enum Judged {
    Done(Bytes),
    /// The engine finds fault with the request: so will others.
    AtFault,
}

fn judge(answer: &Reply, replica: &ReplicaId) -> Result<Judged, Missed> {
    match (&answer.content, answer.head.status) {
        (Content::Whole(body), status) if status.is_success() => Ok(Judged::Done(body.clone())),
        (_, StatusCode::NOT_FOUND) => {
            Err(Missed::Failed(format!("replica {replica} answered a prefill with 404")))
        }
        (Content::Whole(_), status) if status.is_client_error() => Ok(Judged::AtFault),
        (_, status) => Err(Missed::Failed(format!("replica {replica} answered a prefill with {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefill_is_asked_for_one_token_and_nothing_that_needs_more() {
        let body = br#"{"messages":[],"stream":true,"stream_options":{"include_usage":true},"max_completion_tokens":9,
            "min_tokens":5,"kv_transfer_params":{"remote_host":"10.0.0.1"},"bootstrap_room":3,"seed":4}"#;
        let v: Value = serde_json::from_slice(&vllm_prefill(body)).unwrap();
        assert_eq!(
            v,
            json!({"messages": [], "stream": false, "max_tokens": 1, "seed": 4, "kv_transfer_params": {
                "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
                "remote_block_ids": null, "remote_host": null, "remote_port": null}})
        );
        let v: Value = serde_json::from_slice(&without_hand_over(Bytes::from_static(body))).unwrap();
        assert!(v["kv_transfer_params"].is_null() && v["bootstrap_room"].is_null() && v["seed"] == 4);
    }

    #[test]
    fn what_two_engines_cannot_share_is_one_engines() {
        let can = |body: &str| can_split(Api::Completions, body.as_bytes());
        for yes in [
            r#"{"prompt":"x"}"#,
            r#"{"prompt":[ 1,2],"n":1,"echo":false}"#,
            r#"{"prompt":"x","best_of":null,"prompt_logprobs":null}"#,
        ] {
            assert!(can(yes), "{yes}");
        }
        for no in [
            r#"{"prompt":"x","n":2}"#,
            r#"{"prompt":["x","y"]}"#,
            r#"{"prompt":[[1],[2]]}"#,
            r#"{"prompt":"x","echo":true}"#,
            r#"{"prompt":"x","prompt_logprobs":1}"#,
        ] {
            assert!(!can(no), "{no}");
        }
        assert!(!can_split(Api::Embeddings, b"{}"));
    }

    #[test]
    fn only_an_object_says_where_a_cache_lies() {
        let of = |text: &str| kept_params(text.as_bytes());
        assert_eq!(
            of(r#"{"kv_transfer_params":{"remote_host":"h"},"x":1}"#),
            Some(json!({"remote_host": "h"}))
        );
        for none in [r#"{"kv_transfer_params":null}"#, "{}", "no json", r#"{"kv_transfer_params":3}"#] {
            assert_eq!(of(none), None);
        }
        assert_eq!((host("10.0.0.1:8000"), host("[::1]:80"), host("name")), ("10.0.0.1", "[::1]", "name"));
    }
}
