//! Requests that name a group of adapters: which of them answers, and what users say of the answer (`POST /v1/feedback`).

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::handler::{Answer, Proxy, json_answer};
use super::headers::{self as names, text};
use crate::adapters::context;
use crate::adapters::groups::{Chosen, Member, PENDING_MS, Unjudged};
use crate::body::{self, Api, Parsed};
use crate::metrics::{AdapterChoiceLabels, AdapterRewardLabels};
use crate::openai::ApiError;
use crate::route::Availability;
use crate::shared::{Pool, Shared};

/// What a load may cost where a pool has no objective for the first token: as long as this it takes all that an answer can be worth, ms.
const TTFT_MS: f64 = 2_000.0;

/// The longest name of an answer, bytes.
const LONGEST_ID: usize = 512;

/// A request for a group, as it goes on.
#[derive(Debug)]
pub(super) struct ForGroup {
    /// Names the adapter that was chosen.
    pub(super) body: Bytes,
    pub(super) group: Arc<str>,
    pub(super) chosen: Chosen,
}

impl Proxy {
    /// Chooses an adapter if the request names a group, as its model or in a header; `parsed` names the adapter then.
    pub(super) fn choose_adapter(
        &self,
        headers: &HeaderMap,
        api: Api,
        body: &Bytes,
        parsed: &mut Parsed,
    ) -> Result<Option<ForGroup>, ApiError> {
        let shared = &self.shared;
        let table = shared.table.load();
        let Some(group) = self.group_named(headers, parsed)? else { return Ok(None) };
        let Some(pool) = table.by_name.get(&group).cloned() else { return Err(self.unknown_model(&group)) };
        let given = match text(headers, names::CONTEXT).map(context::read) {
            None => None,
            Some(Ok(given)) => Some(given),
            Some(Err(problem)) => {
                let message = format!(
                    "x-plimsoll-context: {problem}; send a JSON list of at most {} numbers between -1 and 1, such as [1, 0.5], or leave it out",
                    context::GIVEN
                );
                let error = ApiError::invalid(StatusCode::BAD_REQUEST, "invalid_context", message);
                return Err(error.with_param("x-plimsoll-context"));
            }
        };
        let tokens = parsed.prompt_bytes as f64 / pool.memory.stats.lock().bytes_per_token();
        let system = body::system_prompt(api, body);
        let figures = context::features(tokens, system, given.as_deref());
        let now = shared.clock.now_ms();
        let members = members(&pool, &group, now);
        let objective = pool.view.route.slo_classes.first().and_then(|class| class.slo.ttft);
        let price_per_ms = 1.0 / objective.map_or(TTFT_MS, |o| o.ms).max(1.0);
        let chosen = shared.groups.lock().choose(&group, &members, &figures, price_per_ms, now);
        let chosen = chosen.map_err(|e| {
            ApiError::server(StatusCode::INTERNAL_SERVER_ERROR, "no_choice", format!("group {group:?}: {e}"))
        })?;
        let labels = AdapterChoiceLabels {
            agent: shared.config.name.clone(),
            pool: pool.view.route.pool.to_string(),
            group: group.clone(),
            why: chosen.why.as_str(),
        };
        shared.config.metrics.adapter_choices.get_or_create(&labels).inc();
        let body = body::with_model(body, parsed, &chosen.adapter);
        Ok(Some(ForGroup { body, group: group.into(), chosen }))
    }

    /// The group that a request names.
    pub(crate) fn group_named(
        &self,
        headers: &HeaderMap,
        parsed: &Parsed,
    ) -> Result<Option<String>, ApiError> {
        let table = self.shared.table.load();
        let is_group = |name: &str| table.by_name.get(name).is_some_and(|pool| pool.view.is_group(name));
        let Some(group) = text(headers, names::ADAPTER_GROUP).filter(|group| !group.is_empty()) else {
            return Ok(is_group(&parsed.model).then(|| parsed.model.clone()));
        };
        let Some(pool) = table.by_name.get(group).filter(|_| is_group(group)) else {
            let mut known: Vec<&str> =
                table.by_name.keys().map(String::as_str).filter(|name| is_group(name)).collect();
            known.sort_unstable();
            known.truncate(20);
            let shown: String = group.chars().take(200).collect();
            let message = match known.len() {
                0 => format!(
                    "there is no adapter group {shown:?}, nor any other; set spec.adapterGroup of LoraAdapters"
                ),
                _ => format!("there is no adapter group {shown:?}; there are: {}", known.join(", ")),
            };
            let error = ApiError::invalid(StatusCode::NOT_FOUND, "group_not_found", message);
            return Err(error.with_param("x-plimsoll-adapter-group"));
        };
        let base = &pool.view.route.served_name;
        if parsed.model != group && parsed.model != *base {
            let model: String = parsed.model.chars().take(200).collect();
            let message = format!(
                "the group {group:?} adapts {base:?}, but the model is {model:?}; name {base:?} or the group as the model, or leave the header out"
            );
            return Err(
                ApiError::invalid(StatusCode::BAD_REQUEST, "group_mismatch", message).with_param("model")
            );
        }
        Ok(Some(group.to_owned()))
    }

    /// `POST /v1/feedback`.
    pub(super) fn feedback(&self, body: &Bytes) -> Result<Answer, ApiError> {
        let shared = &self.shared;
        let count = |outcome| self.count_reason(&shared.config.metrics.feedback, outcome);
        let judgement = read(body).inspect_err(|e| count(e.code))?;
        let judged = shared.groups.lock().judge(&judgement.id, judgement.reward, shared.clock.now_ms());
        let judged = judged.map_err(|e| {
            let (status, code, remedy) = match e {
                Unjudged::Unknown => (
                    StatusCode::NOT_FOUND,
                    "unknown_answer",
                    format!(
                        "give the id of an answer, or its x-request-id, that a group's adapter gave through this gateway within {} minutes",
                        PENDING_MS / 60_000.0
                    ),
                ),
                Unjudged::Again => (StatusCode::CONFLICT, "judged_before", "nothing is to be done".to_owned()),
                Unjudged::Rejected(_) => (StatusCode::BAD_REQUEST, "invalid_body", "give a number".to_owned()),
            };
            count(code);
            ApiError::invalid(status, code, format!("{e}; {remedy}")).with_param("id")
        })?;
        count("taken");
        let table = shared.table.load();
        if let Some(pool) = table.by_name.get(&*judged.group) {
            observe_reward(shared, pool, &judged.group, "feedback", judgement.reward);
        }
        let said = json!({
            "object": "feedback", "id": judgement.id, "model": &*judged.adapter, "adapter_group": &*judged.group,
            "reward": judgement.reward,
        });
        Ok(json_answer(StatusCode::OK, &said))
    }
}

/// Counts a reward.
pub(super) fn observe_reward(shared: &Shared, pool: &Pool, group: &str, source: &'static str, reward: f64) {
    let labels = AdapterRewardLabels {
        agent: shared.config.name.clone(),
        pool: pool.view.route.pool.to_string(),
        group: group.to_owned(),
        source,
    };
    shared.config.metrics.adapter_reward.get_or_create(&labels).observe(reward);
}

fn members<'a>(pool: &'a Pool, group: &str, now_ms: f64) -> Vec<Member<'a>> {
    let usable = |&i: &usize| {
        !pool.view.route.endpoints[i].draining
            && pool.replicas[i].load(now_ms).availability == Availability::Ready
    };
    pool.view
        .group(group)
        .map(|a| Member {
            name: &a.served_name,
            load_ms: a.load_ms,
            placed: !a.placed.is_empty(),
            ready: pool.view.holders_of(&a.served_name).iter().any(usable),
        })
        .collect()
}

#[derive(Debug, PartialEq)]
struct Judgement {
    id: String,
    reward: f64,
}

/// Reads `{"id": …, "reward": 0..=1}` or, in place of the reward, `"score": -1..=1`.
fn read(body: &[u8]) -> Result<Judgement, ApiError> {
    #[derive(Deserialize)]
    struct Said {
        id: Option<String>,
        reward: Option<f64>,
        score: Option<f64>,
    }
    let wrong = |param: Option<&str>, message: String| {
        let error = ApiError::invalid(StatusCode::BAD_REQUEST, "invalid_body", message);
        match param {
            Some(param) => error.with_param(param),
            None => error,
        }
    };
    let said: Said = serde_json::from_slice(body).map_err(|e| {
        wrong(
            None,
            format!(
                "the body must be a JSON object such as {{\"id\": \"chatcmpl-…\", \"reward\": 0.8}}: {e}"
            ),
        )
    })?;
    let id = said.id.filter(|id| !id.is_empty() && id.len() <= LONGEST_ID).ok_or_else(|| {
        wrong(
            Some("id"),
            format!("`id` must be the id of an answer, or its x-request-id, of 1 to {LONGEST_ID} bytes"),
        )
    })?;
    let reward = match (said.reward, said.score) {
        (Some(reward), None) if (0.0..=1.0).contains(&reward) => reward,
        (None, Some(score)) if (-1.0..=1.0).contains(&score) => (score + 1.0) / 2.0,
        (Some(reward), None) => {
            return Err(wrong(Some("reward"), format!("`reward` is {reward}; it must be between 0 and 1")));
        }
        (None, Some(score)) => {
            return Err(wrong(Some("score"), format!("`score` is {score}; it must be between -1 and 1")));
        }
        (Some(_), Some(_)) => {
            return Err(wrong(
                Some("score"),
                "`reward` and `score` say the same; send one of them".to_owned(),
            ));
        }
        (None, None) => {
            return Err(wrong(
                Some("reward"),
                "`reward` is missing; send a number from 0 (bad) to 1 (good), or a `score` from -1 to 1"
                    .to_owned(),
            ));
        }
    };
    Ok(Judgement { id, reward })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rstest::rstest;

    use super::*;

    #[test]
    fn rewards_and_scores_are_read() {
        let of = |text: &str| read(text.as_bytes()).unwrap();
        assert_eq!(of(r#"{"id":"a","reward":0.25}"#), Judgement { id: "a".into(), reward: 0.25 });
        assert_eq!(of(r#"{"score":-1,"id":"a","comment":"no"}"#).reward, 0.0);
        assert_eq!(of(r#"{"score":0,"id":"a"}"#).reward, 0.5);
    }

    #[rstest]
    #[case("", None, "JSON object")]
    #[case("[]", None, "invalid length 0")]
    #[case("\u{0}", None, "JSON object")]
    #[case(r#"{"id":"a","id":"b","reward":1}"#, None, "duplicate field `id`")]
    #[case(r#"{"id":7,"reward":1}"#, None, "expected a string")]
    #[case(r#"{"reward":1}"#, Some("id"), "must be the id")]
    #[case(r#"{"id":"","reward":1}"#, Some("id"), "must be the id")]
    #[case(r#"{"id":"a"}"#, Some("reward"), "missing")]
    #[case(r#"{"id":"a","reward":"good"}"#, None, "expected f64")]
    #[case(r#"{"id":"a","reward":1.5}"#, Some("reward"), "between 0 and 1")]
    #[case(r#"{"id":"a","reward":1e999}"#, None, "out of range")]
    #[case(r#"{"id":"a","score":2}"#, Some("score"), "between -1 and 1")]
    #[case(r#"{"id":"a","score":1,"reward":1}"#, Some("score"), "one of them")]
    fn what_is_wrong_is_told(#[case] body: &str, #[case] param: Option<&str>, #[case] word: &str) {
        let error = read(body.as_bytes()).unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (StatusCode::BAD_REQUEST, param));
        assert!(error.message.contains(word), "{}", error.message);
    }
}
