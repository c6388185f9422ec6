//! Header names, and which headers pass.

use std::borrow::Borrow;

use http::HeaderValue;
use http::header::{self, HeaderMap, HeaderName};
use plimsoll_fleet::PoolRoute;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const REPLICA: HeaderName = HeaderName::from_static("x-plimsoll-replica");
/// On an answer: who computed the prompt, where that was not [`REPLICA`].
pub(crate) const PREFILL_REPLICA: HeaderName = HeaderName::from_static("x-plimsoll-prefill-replica");
pub(crate) const PLAN: HeaderName = HeaderName::from_static("x-plimsoll-plan");
/// `replica=ID;prompt=…`: this request was routed by an agent; never forward it again.
pub(crate) const HOP: HeaderName = HeaderName::from_static("x-plimsoll-hop");
pub(crate) const HOP_KEY: HeaderName = HeaderName::from_static("x-plimsoll-hop-key");
/// On a hop's answer: why the agent did not admit the request.
pub(crate) const REFUSED: HeaderName = HeaderName::from_static("x-plimsoll-refused");
/// On a hop's answer: the engine failed after its answer had begun.
pub(crate) const BEGUN: HeaderName = HeaderName::from_static("x-plimsoll-begun");
/// On a hop's answer: the engine's load as its agent counts it.
pub(crate) const LOAD: HeaderName = HeaderName::from_static("x-plimsoll-load");
/// On a hop's answer: marks of what others have sent the engine.
pub(crate) const HELD: HeaderName = HeaderName::from_static("x-plimsoll-held");
pub(crate) const SLO_CLASS: HeaderName = HeaderName::from_static("x-plimsoll-slo-class");
pub(crate) const DEADLINE_MS: HeaderName = HeaderName::from_static("x-plimsoll-deadline-ms");
/// Names under which the ecosystem sends an objective or class.
pub(crate) static OBJECTIVES: [HeaderName; 3] = [
    HeaderName::from_static("x-llm-d-inference-objective"),
    HeaderName::from_static("x-gateway-inference-objective"),
    HeaderName::from_static("x-gateway-model-objective"),
];
/// Names under which it sends an objective for the time to first token, ms.
pub(crate) static TTFT_OBJECTIVES: [HeaderName; 3] = [
    HeaderName::from_static("x-llm-d-slo-ttft-ms"),
    HeaderName::from_static("x-gateway-slo-ttft-ms"),
    HeaderName::from_static("x-slo-ttft-ms"),
];
/// Names under which it sends an objective for the time per output token, ms.
pub(crate) static TPOT_OBJECTIVES: [HeaderName; 3] = [
    HeaderName::from_static("x-llm-d-slo-tpot-ms"),
    HeaderName::from_static("x-gateway-slo-tpot-ms"),
    HeaderName::from_static("x-slo-tpot-ms"),
];
/// Name of the compound task that a request is a call of.
pub(crate) const TASK: HeaderName = HeaderName::from_static("x-plimsoll-task");
/// The group of adapters of which one is to answer.
pub(crate) const ADAPTER_GROUP: HeaderName = HeaderName::from_static("x-plimsoll-adapter-group");
/// What a request for a group says of itself: a JSON list of numbers.
pub(crate) const CONTEXT: HeaderName = HeaderName::from_static("x-plimsoll-context");
/// On the answer to a request for a group: the adapter that gave it.
pub(crate) const ADAPTER: HeaderName = HeaderName::from_static("x-plimsoll-adapter");
/// Names of whoever the request is for.
pub(crate) static TENANTS: [HeaderName; 3] = [
    HeaderName::from_static("x-plimsoll-tenant"),
    HeaderName::from_static("x-llm-d-inference-fairness-id"),
    HeaderName::from_static("x-gateway-inference-fairness-id"),
];

/// So few headers are sooner looked through than a name is hashed.
const FEW: usize = 24;

/// A header, if it is there.
pub(crate) fn find(headers: &HeaderMap, name: impl Borrow<HeaderName>) -> Option<&HeaderValue> {
    if headers.len() > FEW {
        return headers.get(name.borrow());
    }
    headers.iter().find(|(n, _)| *n == name.borrow()).map(|(_, value)| value)
}

/// Text of a header, if it is there and is text.
pub(crate) fn text(headers: &HeaderMap, name: impl Borrow<HeaderName>) -> Option<&str> {
    find(headers, name).and_then(|v| v.to_str().ok()).map(str::trim)
}

/// The first of several names that is there.
pub(crate) fn first_text<'a>(headers: &'a HeaderMap, names: &[HeaderName]) -> Option<&'a str> {
    names.iter().find_map(|n| text(headers, n))
}

/// Priority of a request within its pool: that of the InferenceObjective which it names.
pub(crate) fn priority(headers: &HeaderMap, route: &PoolRoute) -> i32 {
    route.objective_priority(first_text(headers, &OBJECTIVES))
}

/// The tenant of a request, hashed; 0 where it names none.
pub(crate) fn tenant(headers: &HeaderMap) -> u64 {
    first_text(headers, &TENANTS).map_or(0, |t| xxhash_rust::xxh3::xxh3_64(t.as_bytes()))
}

/// A header with a positive number.
pub(crate) fn positive(headers: &HeaderMap, names: &[HeaderName]) -> Option<f64> {
    first_text(headers, names).and_then(|t| t.parse::<f64>().ok()).filter(|v| v.is_finite() && *v > 0.0)
}

fn hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION
            | header::PROXY_AUTHENTICATE
            | header::PROXY_AUTHORIZATION
            | header::TE
            | header::TRAILER
            | header::TRANSFER_ENCODING
            | header::UPGRADE
    ) || name == "keep-alive"
        || name == "proxy-connection"
}

/// Of a client's headers, keeps those that go on to an engine: not those of the connection, not credentials (they are Plimsoll's
/// to check, not the engine's to see), not an encoding that would hide the stream.
pub(crate) fn keep_for_engine(headers: &mut HeaderMap) {
    remove_all(headers, |name| {
        hop_by_hop(name)
            || matches!(
                *name,
                header::HOST
                    | header::CONTENT_LENGTH
                    | header::ACCEPT_ENCODING
                    | header::AUTHORIZATION
                    | header::COOKIE
                    | header::EXPECT
                    | header::ACCEPT
            )
            || *name == HOP
            || *name == HOP_KEY
    });
}

/// Of an engine's headers, keeps those that go back to the client.
pub(crate) fn keep_for_client(headers: &mut HeaderMap) {
    remove_all(headers, |name| {
        hop_by_hop(name)
            || *name == header::CONTENT_LENGTH
            || *name == LOAD
            || *name == HELD
            || *name == REFUSED
    });
}

/// Removes headers, and those that `connection` says belong to it.
fn remove_all(headers: &mut HeaderMap, is_gone: impl Fn(&HeaderName) -> bool) {
    let gone: Vec<HeaderName> = headers.keys().filter(|name| is_gone(name)).cloned().collect();
    if gone.contains(&header::CONNECTION) {
        for name in connection_names(headers) {
            headers.remove(name);
        }
    }
    for name in gone {
        headers.remove(name);
    }
}

/// Gives a request that is sent once more a name of its own: engines confuse two of one name.
pub(crate) fn rename_request(headers: &mut HeaderMap, suffix: &str) {
    let name = text(headers, REQUEST_ID).map(|id| format!("{id}-{suffix}"));
    if let Some(value) = name.and_then(|n| http::HeaderValue::from_str(&n).ok()) {
        headers.insert(REQUEST_ID, value);
    }
}

fn connection_names(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(',').map(|n| n.trim().to_ascii_lowercase()))
        .collect()
}
