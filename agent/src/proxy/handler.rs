//! One request: what it is, and its body.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;
use tokio::time::Instant;
use tracing::Instrument;

use super::headers::{self as names};
use super::hop::Hop;
use super::relay::AnswerBody;
use super::upstream::{Upstream, at_once};
use crate::body::Api;
use crate::config::Clients;
use crate::openai::ApiError;
use crate::shared::{Pool, Shared};

/// The proxy of one agent.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    pub(crate) shared: Arc<Shared>,
    pub(crate) upstream: Upstream,
}

/// What the sender of a request may do, by the connection it came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Send what a gateway or agent has chosen an engine for.
    pub(crate) hop: bool,
    /// Use the API.
    pub(crate) api: bool,
}

pub(crate) type Answer = Response<AnswerBody>;

/// What anybody may ask: probes come without certificates.
const HEALTH: [&str; 3] = ["/health", "/healthz", "/readyz"];

/// Where users say how good an answer was.
const FEEDBACK: &str = "/v1/feedback";

/// A body may take so many times as long as may pass between two parts of it.
const BODY_TIMES: u32 = 10;

/// When to ask again a gateway that has only just started.
const ROUTES_SOON: std::time::Duration = std::time::Duration::from_secs(2);

#[cfg(test)]
impl Proxy {
    /// Of an agent that does not listen.
    pub(crate) fn new_for_tests(config: crate::config::AgentConfig) -> Self {
        let wait = Duration::from_secs(1);
        let upstream = Upstream::new(wait, wait, wait, None);
        Self { shared: Arc::new(Shared::new(config, "127.0.0.1:0".into(), 1)), upstream }
    }
}

impl Proxy {
    /// Answers one request. Never fails: errors become answers in OpenAI's shape.
    pub(crate) async fn handle(self, request: Request<Incoming>, rights: Rights) -> Answer {
        let (parts, body) = request.into_parts();
        let request_id = names::find(&parts.headers, names::REQUEST_ID)
            .filter(|v| v.len() <= 128)
            .cloned()
            .unwrap_or_else(|| self.new_request_id());
        let path = parts.uri.path();
        // What is worth telling names the request itself: a span that is kept costs a request a tenth of its time.
        let span = tracing::debug_span!(
            "request", id = %request_id.to_str().unwrap_or("?"), method = %parts.method, path,
            model = tracing::field::Empty, pool = tracing::field::Empty, replica = tracing::field::Empty,
            class = tracing::field::Empty,
        );
        let result = self.dispatch(parts, body, &request_id, rights).instrument(span.clone()).await;
        let mut answer = result.unwrap_or_else(|error| {
            span.in_scope(
                || tracing::debug!(status = error.status.as_u16(), message = %error.message, "refused"),
            );
            error_answer(&error)
        });
        answer.headers_mut().insert(names::REQUEST_ID, request_id);
        answer
    }

    /// An answer to whom this port does not serve on such a connection.
    fn wrong_door(&self, is_hop: bool) -> ApiError {
        let message = if is_hop {
            "x-plimsoll-hop is for agents among themselves, which show a certificate; send the request without it"
        } else if self.shared.config.clients == Clients::Peers {
            "this agent takes requests from gateways and other agents alone; send the request to a gateway"
        } else {
            "this port speaks TLS; use https"
        };
        ApiError::invalid(StatusCode::FORBIDDEN, "wrong_door", message)
    }

    fn new_request_id(&self) -> HeaderValue {
        let mut id = Vec::with_capacity(33);
        push_hex(&mut id, self.shared.incarnation);
        id.push(b'-');
        push_hex(&mut id, self.shared.next_id());
        HeaderValue::from_maybe_shared(Bytes::from(id)).unwrap_or_else(|_| HeaderValue::from_static("-"))
    }

    async fn dispatch(
        &self,
        parts: http::request::Parts,
        body: Incoming,
        request_id: &HeaderValue,
        rights: Rights,
    ) -> Result<Answer, ApiError> {
        let limits = &self.shared.config.limits;
        let header_bytes: usize = parts.headers.iter().map(|(n, v)| n.as_str().len() + v.len() + 4).sum();
        if header_bytes > limits.max_header_bytes {
            let message = format!(
                "the request's headers take {header_bytes} bytes; the limit is {}",
                limits.max_header_bytes
            );
            return Err(ApiError::invalid(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers_too_large",
                message,
            ));
        }
        if names::find(&parts.headers, header::TRANSFER_ENCODING).is_some()
            && names::find(&parts.headers, header::CONTENT_LENGTH).is_some()
        {
            // Whoever else read it on the way may have taken the other for its length (RFC 9112, section 6.3).
            return Err(ApiError::invalid(
                StatusCode::BAD_REQUEST,
                "ambiguous_length",
                "the request has both content-length and transfer-encoding; send one of them",
            ));
        }
        let path = parts.uri.path();
        let hop = names::find(&parts.headers, names::HOP);
        let is_hop = hop.is_some();
        if !(if is_hop { rights.hop } else { rights.api || HEALTH.contains(&path) }) {
            return Err(self.wrong_door(is_hop));
        }
        if path == FEEDBACK && !is_hop {
            if parts.method != Method::POST {
                return Err(wrong_method(&parts.method, path, "POST"));
            }
            return self.feedback(&self.read_body(body, &parts.headers).await?);
        }
        let Some(api) = Api::from_path(path) else {
            return self.other(&parts.method, path);
        };
        if parts.method != Method::POST {
            return Err(wrong_method(&parts.method, path, "POST"));
        }
        if let Some(hop) = hop {
            let key_fits = limits.hop_secret.as_deref().is_none_or(|secret| {
                parts.headers.get(names::HOP_KEY).is_some_and(|k| same_text(k.as_bytes(), secret.as_bytes()))
            });
            let hop = hop.to_str().ok().and_then(Hop::parse);
            return match hop {
                Some(hop) if key_fits => Box::pin(self.hop(parts, api, body, hop)).await,
                _ => Err(ApiError::invalid(
                    StatusCode::BAD_REQUEST,
                    "bad_hop",
                    "x-plimsoll-hop is for agents among themselves; send the request without it",
                )),
            };
        }
        let body = self.read_body(body, &parts.headers).await?;
        self.client(parts, api, body, request_id).await
    }

    /// Everything that is not an inference request.
    pub(crate) fn other(&self, method: &Method, path: &str) -> Result<Answer, ApiError> {
        let known = path == "/v1/models" || HEALTH.contains(&path);
        let model = path.strip_prefix("/v1/models/");
        if !known && model.is_none() {
            return Err(ApiError::invalid(
                StatusCode::NOT_FOUND,
                "unknown_url",
                format!(
                    "there is nothing at {path}; this server has POST /v1/chat/completions, /v1/completions, \
                     /v1/embeddings, /v1/responses, /v1/feedback and /tokenize, and GET /v1/models, /healthz and /readyz"
                ),
            ));
        }
        if method != Method::GET && method != Method::HEAD {
            return Err(wrong_method(method, path, "GET"));
        }
        let table = self.shared.table.load();
        let model_object = |name: &str, pool: &Pool| {
            let route = &pool.view.route;
            let mut object = json!({
                "id": name, "object": "model", "created": 0, "owned_by": "plimsoll",
                "max_model_len": route.max_context_tokens,
            });
            if pool.view.is_adapter(name) {
                object["parent"] = json!(route.served_name);
            } else if pool.view.is_group(name) {
                object["parent"] = json!(route.served_name);
                object["adapters"] = pool.view.group(name).map(|a| a.served_name.as_str()).collect();
            }
            object
        };
        match (path, model) {
            ("/v1/models", _) => {
                let mut models: Vec<(&String, &Arc<Pool>)> = table.by_name.iter().collect();
                models.sort_by_key(|(name, _)| *name);
                let data: Vec<_> = models.into_iter().map(|(name, pool)| model_object(name, pool)).collect();
                Ok(json_answer(StatusCode::OK, &json!({"object": "list", "data": data})))
            }
            (_, Some(name)) => match table.by_name.get(name) {
                Some(pool) => Ok(json_answer(StatusCode::OK, &model_object(name, pool))),
                None => Err(self.unknown_model(name)),
            },
            ("/readyz", _) if self.shared.stopping.load(Ordering::Relaxed) => {
                Ok(json_answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "stopping"})))
            }
            ("/readyz", _) if table.routes.version == 0 && table.by_name.is_empty() => {
                Ok(json_answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "no routes yet"})))
            }
            _ => Ok(json_answer(
                StatusCode::OK,
                &json!({"status": "ok", "route_version": table.routes.version, "plan": table.routes.plan}),
            )),
        }
    }

    pub(crate) fn unknown_model(&self, name: &str) -> ApiError {
        let table = self.shared.table.load();
        if table.routes.version == 0 && table.by_name.is_empty() {
            // Not to know yet is not to know that there is none.
            return ApiError::server(
                StatusCode::SERVICE_UNAVAILABLE,
                "no_routes_yet",
                "this gateway has no routes yet: it waits for the scheduler; send the request again",
            )
            .with_retry_after(ROUTES_SOON);
        }
        let mut known: Vec<&str> = table.by_name.keys().map(String::as_str).collect();
        known.sort_unstable();
        let listed = match known.len() {
            0 => "no model is served yet; apply a ModelPool".to_owned(),
            n if n > 20 => {
                format!("there are {n}, see GET /v1/models, among them {}", known[..20].join(", "))
            }
            _ => format!("served are: {}", known.join(", ")),
        };
        let name: String = name.chars().take(200).collect();
        ApiError::invalid(
            StatusCode::NOT_FOUND,
            "model_not_found",
            format!("the model {name:?} does not exist; {listed}"),
        )
        .with_param("model")
    }

    async fn read_body(&self, mut body: Incoming, headers: &HeaderMap) -> Result<Bytes, ApiError> {
        let limits = &self.shared.config.limits;
        let limit = limits.max_body_bytes;
        let too_long = || {
            ApiError::invalid(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the body is over the limit of {limit} bytes; send a shorter one"),
            )
        };
        let announced =
            names::find(headers, header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|n| n > limit as u64) {
            // A client that asks first has sent nothing yet.
            if !headers.contains_key(header::EXPECT) {
                drain(body).await;
            }
            return Err(too_long());
        }
        let mut first: Option<Bytes> = None;
        let mut all: Option<BytesMut> = None;
        let mut length = 0;
        let whole_by = Instant::now() + limits.client_read_timeout * BODY_TIMES;
        let mut part_by = whole_by;
        loop {
            let frame = match at_once(body.frame()).await {
                Some(frame) => Ok(frame),
                None => {
                    part_by = (Instant::now() + limits.client_read_timeout).min(whole_by);
                    tokio::time::timeout_at(part_by, body.frame()).await
                }
            };
            let frame = match frame {
                Err(_) => {
                    let message = if part_by == whole_by {
                        format!("the body was not whole after {:?}", limits.client_read_timeout * BODY_TIMES)
                    } else {
                        format!("no part of the body came for {:?}", limits.client_read_timeout)
                    };
                    return Err(ApiError::invalid(StatusCode::REQUEST_TIMEOUT, "body_timeout", message));
                }
                Ok(None) => break,
                Ok(Some(Err(e))) => {
                    return Err(ApiError::invalid(
                        StatusCode::BAD_REQUEST,
                        "body_incomplete",
                        format!("the body could not be read: {e}"),
                    ));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            length += data.len();
            if length > limit {
                drain(body).await;
                return Err(too_long());
            }
            match (&mut first, &mut all) {
                (None, _) => first = Some(data),
                (_, Some(buffer)) => buffer.extend_from_slice(&data),
                (Some(head), None) => {
                    let capacity = announced.map_or(2 * length, |n| n as usize).clamp(length, limit);
                    let mut buffer = BytesMut::with_capacity(capacity);
                    buffer.extend_from_slice(head);
                    buffer.extend_from_slice(&data);
                    all = Some(buffer);
                }
            }
        }
        Ok(all.map(BytesMut::freeze).or(first).unwrap_or_default())
    }
}

/// As `{:x}`, but with every request: the formatting machinery takes ten times as long.
fn push_hex(text: &mut Vec<u8>, number: u64) {
    let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(1);
    text.extend((0..digits).rev().map(|i| b"0123456789abcdef"[(number >> (4 * i)) as usize & 15]));
}

/// Equal in time that does not depend on where they differ.
fn same_text(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

/// Reads what is left of a body for a moment, so that the client can read the answer instead of a reset.
pub(super) async fn drain(mut body: Incoming) {
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        let mut left = 64usize << 20;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    })
    .await;
}

pub(crate) fn wrong_method(method: &Method, path: &str, allowed: &str) -> ApiError {
    ApiError::invalid(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{method} is not possible at {path}; use {allowed}"),
    )
}

pub(super) fn json_answer(status: StatusCode, value: &serde_json::Value) -> Answer {
    let mut answer = Response::new(AnswerBody::full(value.to_string()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

pub(super) fn error_answer(error: &ApiError) -> Answer {
    let mut answer = Response::new(AnswerBody::full(error.body()));
    *answer.status_mut() = error.status;
    error.headers(answer.headers_mut());
    if error.status == StatusCode::METHOD_NOT_ALLOWED {
        let allow = if error.message.ends_with("GET") { "GET, HEAD" } else { "POST" };
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_figures() {
        for number in [0, 1, 15, 16, 0xfeed, u64::MAX] {
            let mut text = Vec::new();
            push_hex(&mut text, number);
            assert_eq!(String::from_utf8(text).unwrap(), format!("{number:x}"));
        }
    }
}
