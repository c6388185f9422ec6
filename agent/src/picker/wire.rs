//! Envoy's messages, and what they say.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use plimsoll_proto::ext_proc::body_mutation::Mutation;
use plimsoll_proto::ext_proc::processing_response::Response as Answer;
use plimsoll_proto::ext_proc::value::Kind;
use plimsoll_proto::ext_proc::{
    BodyMutation, BodyResponse, CommonResponse, HeaderAppendAction, HeaderMap as WireHeaders, HeaderMutation,
    HeaderValue as WireHeader, HeaderValueOption, HeadersResponse, HttpStatus, ImmediateResponse, ListValue,
    Metadata, ProcessingResponse, StreamedBodyResponse, Struct, Value,
};

/// The header, and the key in metadata, that name where a request is to go.
pub(super) const DESTINATION: &str = "x-gateway-destination-endpoint";
/// The key by which Envoy says who served it.
const SERVED: &str = "x-gateway-destination-endpoint-served";
/// The key by which Envoy says whom it may go to.
const SUBSET: &str = "x-gateway-destination-endpoint-subset";
/// Namespace of both but the last.
const NAMESPACE: &str = "envoy.lb";
const SUBSET_NAMESPACE: &str = "envoy.lb.subset_hint";
/// Header that tells the sidecar of llm-d beside a decode engine whom to have the prompt computed by.
pub(super) const PREFILLER: &str = "x-prefiller-host-port";
/// Parts of bodies that are sent back are no longer than this: some gateways take no more than 64 KiB at once.
const LONGEST_PART: usize = 62_000;

/// A request's or an answer's headers: those that begin with a colon apart.
#[derive(Debug, Default)]
pub(super) struct Head {
    pub(super) method: String,
    /// Without its query.
    pub(super) path: String,
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
}

/// Reads headers; what HTTP does not allow is passed over.
pub(super) fn head(wire: Option<WireHeaders>) -> Head {
    let mut head = Head::default();
    for WireHeader { key, value, raw_value } in wire.into_iter().flat_map(|w| w.headers) {
        // Envoy fills one of the two.
        let value = if raw_value.is_empty() { Bytes::from(value) } else { raw_value };
        let text = || String::from_utf8_lossy(&value).into_owned();
        match key.as_str() {
            ":method" => head.method = text(),
            ":path" => head.path = text().split('?').next().unwrap_or_default().to_owned(),
            ":status" => head.status = text().parse().unwrap_or(0),
            _ => {
                let name = HeaderName::try_from(key.as_str());
                if let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(value)) {
                    head.headers.append(name, value);
                }
            }
        }
    }
    head
}

fn field<'a>(metadata: Option<&'a Metadata>, namespace: &str, key: &str) -> Option<&'a Kind> {
    metadata?.filter_metadata.get(namespace)?.fields.get(key)?.kind.as_ref()
}

fn text(kind: &Kind) -> Option<&str> {
    match kind {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// The endpoints that a request may go to; `None`: any. A hint that cannot be read allows none.
pub(super) fn subset(metadata: Option<&Metadata>) -> Option<Vec<String>> {
    Some(match field(metadata, SUBSET_NAMESPACE, SUBSET)? {
        Kind::ListValue(ListValue { values }) => {
            values.iter().filter_map(|v| text(v.kind.as_ref()?)).map(str::to_owned).collect()
        }
        Kind::StringValue(list) => {
            list.split(',').map(|a| a.trim().to_owned()).filter(|a| !a.is_empty()).collect()
        }
        _ => Vec::new(),
    })
}

/// Who served a request, as Envoy says with the answer's headers.
pub(super) fn served(metadata: Option<&Metadata>) -> Option<String> {
    field(metadata, NAMESPACE, SERVED).and_then(text).map(str::to_owned)
}

fn set(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(WireHeader {
            key: name.to_owned(),
            value: String::new(),
            raw_value: Bytes::copy_from_slice(value.as_bytes()),
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
    }
}

/// Headers to be set.
pub(super) fn mutation<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> HeaderMutation {
    let set_headers = headers.into_iter().map(|(name, value)| set(name, value)).collect();
    HeaderMutation { set_headers, remove_headers: Vec::new() }
}

/// The dynamic metadata that names where a request is to go.
pub(super) fn destination(addresses: &str) -> Struct {
    let text = Value { kind: Some(Kind::StringValue(addresses.to_owned())) };
    let inner = Struct { fields: [(DESTINATION.to_owned(), text)].into() };
    Struct { fields: [(NAMESPACE.to_owned(), Value { kind: Some(Kind::StructValue(inner)) })].into() }
}

/// An answer.
pub(super) fn answer(answer: Answer, dynamic_metadata: Option<Struct>) -> ProcessingResponse {
    ProcessingResponse { response: Some(answer), dynamic_metadata }
}

/// Headers with changes. A changed destination may be part of how routes are found.
pub(super) fn headers(header_mutation: Option<HeaderMutation>, clear_route_cache: bool) -> HeadersResponse {
    let response = CommonResponse { header_mutation, body_mutation: None, clear_route_cache };
    HeadersResponse { response: Some(response) }
}

/// A body that stays as it is.
pub(super) fn body(header_mutation: Option<HeaderMutation>, clear_route_cache: bool) -> BodyResponse {
    let response = CommonResponse { header_mutation, body_mutation: None, clear_route_cache };
    BodyResponse { response: Some(response) }
}

/// Parts of a body on their way back, in full duplex; `end`: nothing follows, no trailers either.
pub(super) fn parts(parts: Vec<Bytes>, end: bool) -> Vec<BodyResponse> {
    let mut out: Vec<Bytes> = Vec::with_capacity(parts.len());
    for mut part in parts {
        while part.len() > LONGEST_PART {
            out.push(part.split_to(LONGEST_PART));
        }
        if !part.is_empty() {
            out.push(part);
        }
    }
    if end && out.is_empty() {
        out.push(Bytes::new());
    }
    let last = out.len();
    out.into_iter()
        .enumerate()
        .map(|(i, body)| {
            let streamed = StreamedBodyResponse { body, end_of_stream: end && i + 1 == last };
            let body_mutation = Some(BodyMutation { mutation: Some(Mutation::StreamedResponse(streamed)) });
            let response = CommonResponse { header_mutation: None, body_mutation, clear_route_cache: false };
            BodyResponse { response: Some(response) }
        })
        .collect()
}

/// An answer to the client at once.
pub(super) fn immediate(status: u16, headers: &HeaderMap, body: Bytes, details: &str) -> ProcessingResponse {
    let headers = headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let immediate = ImmediateResponse {
        status: Some(HttpStatus { code: i32::from(status) }),
        headers: Some(mutation(headers)),
        body,
        details: details.to_owned(),
    };
    answer(Answer::ImmediateResponse(immediate), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(namespace: &str, key: &str, kind: Kind) -> Metadata {
        let fields = [(key.to_owned(), Value { kind: Some(kind) })].into();
        Metadata { filter_metadata: [(namespace.to_owned(), Struct { fields })].into() }
    }

    #[test]
    fn a_hint_allows_what_it_lists_and_a_broken_one_nothing() {
        let of = |kind| subset(Some(&metadata("envoy.lb.subset_hint", SUBSET, kind)));
        let one = Value { kind: Some(Kind::StringValue("10.0.0.1:8000".into())) };
        assert_eq!(of(Kind::ListValue(ListValue { values: vec![one] })).unwrap(), ["10.0.0.1:8000"]);
        assert_eq!(of(Kind::StringValue("a:1, b:2".into())).unwrap(), ["a:1", "b:2"]);
        assert_eq!(of(Kind::ListValue(ListValue::default())), Some(vec![]));
        assert_eq!(of(Kind::BoolValue(true)), Some(vec![]));
        assert_eq!((subset(None), subset(Some(&Metadata::default()))), (None, None));
        let by = metadata("envoy.lb", SERVED, Kind::StringValue("a:1".into()));
        assert_eq!((served(Some(&by)).as_deref(), served(None)), (Some("a:1"), None));
    }

    #[test]
    fn headers_are_read_from_either_field() {
        let h = |key: &str, value: &str, raw: &str| WireHeader {
            key: key.into(),
            value: value.into(),
            raw_value: Bytes::copy_from_slice(raw.as_bytes()),
        };
        let wire = WireHeaders {
            headers: vec![
                h(":path", "", "/v1/models?x=1"),
                h(":method", "GET", ""),
                h(":status", "", "503"),
                h("x-a", "", "1"),
                h("x-a", "2", ""),
                h("not a name", "", "3"),
            ],
        };
        let head = head(Some(wire));
        assert_eq!((head.path.as_str(), head.method.as_str(), head.status), ("/v1/models", "GET", 503));
        assert_eq!(head.headers.get_all("x-a").iter().count(), 2);
        assert_eq!(head.headers.len(), 2);
    }

    #[test]
    fn bodies_go_back_in_parts_of_which_the_last_says_so() {
        let sizes = |given: &[usize], end| -> Vec<(usize, bool)> {
            let of = |r: BodyResponse| match r.response.unwrap().body_mutation.unwrap().mutation.unwrap() {
                Mutation::StreamedResponse(s) => (s.body.len(), s.end_of_stream),
                other => panic!("{other:?}"),
            };
            parts(given.iter().map(|n| Bytes::from(vec![b'x'; *n])).collect(), end)
                .into_iter()
                .map(of)
                .collect()
        };
        assert_eq!(
            sizes(&[5, 0, 130_000], true),
            [(5, false), (62_000, false), (62_000, false), (6000, true)]
        );
        assert_eq!(sizes(&[], true), [(0, true)]);
        assert_eq!(sizes(&[7], false), [(7, false)]);
    }
}
