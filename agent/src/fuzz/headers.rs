//! Headers of clients, of agents among themselves, and of engines' answers.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use plimsoll_fleet::ReplicaId;

use super::{Dice, fuzz};
use crate::admit::RefusalReason;
use crate::proxy::headers::{
    self as names, keep_for_client, keep_for_engine, positive, rename_request, text,
};
use crate::proxy::hop::Hop;
use crate::replica::Replica;

const WORDS: [&str; 34] = [
    "x-plimsoll-hop: ",
    "x-plimsoll-load: ",
    "x-plimsoll-deadline-ms: ",
    "x-plimsoll-task: ",
    "x-plimsoll-tenant: ",
    "x-plimsoll-refused: ",
    "x-slo-ttft-ms: ",
    "x-slo-tpot-ms: ",
    "x-request-id: ",
    "connection: ",
    "transfer-encoding: chunked\n",
    "retry-after: ",
    "replica=chat-1",
    ";prompt=",
    ";cached=",
    ";output=",
    ";stream=1",
    ";first=",
    ";tpot=",
    ";finish=",
    ";stage=",
    ";most=",
    ";priority=",
    "1,2,3,4",
    "-1",
    "1e12",
    "inf",
    "NaN",
    "keep-alive, x-secret",
    "X-Plimsoll-Hop",
    "cookie: a\n",
    "authorization: Bearer x\n",
    "queue_full",
    "host: x\n",
];

/// Headers as lines `name: value`; what HTTP does not allow never gets this far.
fn read(input: &[u8]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in input.split(|b| *b == b'\n') {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value) {
            let _ = map.try_append(name, value);
        }
    }
    map
}

fn check(input: &[u8], _: &mut Dice) {
    let headers = read(input);
    for list in [
        &names::TTFT_OBJECTIVES[..],
        &names::TPOT_OBJECTIVES,
        &[names::DEADLINE_MS],
        &[http::header::RETRY_AFTER],
    ] {
        if let Some(number) = positive(&headers, list) {
            assert!(number.is_finite() && number > 0.0);
        }
    }
    assert_eq!(names::tenant(&headers) == 0, names::first_text(&headers, &names::TENANTS).is_none());
    let _ = text(&headers, names::REFUSED).and_then(RefusalReason::from_text);

    let mut there = headers.clone();
    keep_for_engine(&mut there);
    for gone in [
        header::HOST,
        header::COOKIE,
        header::AUTHORIZATION,
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        names::HOP,
        names::HOP_KEY,
    ] {
        assert!(!there.contains_key(&gone), "{gone} went on");
    }
    let mut back = headers.clone();
    keep_for_client(&mut back);
    assert!(!back.contains_key(names::LOAD) && !back.contains_key(header::TRANSFER_ENCODING));
    for list in headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok()) {
        for name in list.split(',').filter_map(|n| HeaderName::try_from(n.trim()).ok()) {
            assert!(
                !there.contains_key(&name) && !back.contains_key(&name),
                "{name} belongs to the connection"
            );
        }
    }
    let mut renamed = headers.clone();
    rename_request(&mut renamed, "r1");
    if let Some(id) = text(&headers, names::REQUEST_ID) {
        assert_eq!(text(&renamed, names::REQUEST_ID), Some(format!("{id}-r1").as_str()));
    }

    if let Some(hop) = text(&headers, names::HOP).and_then(Hop::parse) {
        for figure in [
            Some(hop.prompt_tokens),
            Some(hop.cached_tokens),
            hop.first_token_in_ms,
            hop.tpot_ms,
            hop.most_output,
        ] {
            assert!(figure.is_none_or(f64::is_finite), "{hop:?}");
        }
        assert!(hop.prompt_tokens >= 0.0 && hop.cached_tokens >= 0.0 && hop.expected_output >= 1.0);
        // What is said on is understood alike, and then for good.
        let once = Hop::parse(&hop.to_text()).unwrap();
        assert_eq!(Hop::parse(&once.to_text()).unwrap(), once);
        assert!(HeaderValue::from_str(&hop.to_text()).is_ok());
    }
    if let (Some(load), Ok(id)) = (text(&headers, names::LOAD), ReplicaId::new("r")) {
        let replica = Arc::new(Replica::new(id, None));
        replica.take_hint(load, 1.0);
        let load = replica.load(2.0);
        assert!(
            [load.running, load.waiting, load.context_tokens, load.prefill_tokens]
                .iter()
                .all(|v| *v >= 0.0 && v.is_finite())
        );
    }
}

#[test]
fn headers_of_all_sides() {
    fuzz("headers", &WORDS, check);
}
