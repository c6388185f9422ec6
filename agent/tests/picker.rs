//! The endpoint picker as Envoy speaks to it, message by message.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use bytes::Bytes;
use plimsoll_agent::AgentHandle;
use plimsoll_fleet::{Endpoint, RouteTable};
use plimsoll_proto::ext_proc::body_mutation::Mutation;
use plimsoll_proto::ext_proc::external_processor_client::ExternalProcessorClient;
use plimsoll_proto::ext_proc::processing_request::Request as Say;
use plimsoll_proto::ext_proc::processing_response::Response as Heard;
use plimsoll_proto::ext_proc::value::Kind;
use plimsoll_proto::ext_proc::{
    BodySendMode, HeaderMap, HeaderMutation, HeaderValue, HttpBody, HttpHeaders, HttpTrailers,
    ImmediateResponse, ListValue, Metadata, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
    Struct, Value,
};
use plimsoll_proto::health::HealthCheckRequest;
use plimsoll_proto::health::health_check_response::ServingStatus;
use plimsoll_proto::health::health_client::HealthClient;
use serde_json::json;
use support::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const DESTINATION: &str = "x-gateway-destination-endpoint";

async fn gateway(table: Option<RouteTable>) -> AgentHandle {
    let gateway = agent("gw", None, |c| c.picker_listen = Some(([127, 0, 0, 1], 0).into())).await;
    if let Some(table) = table {
        gateway.set_routes(table);
    }
    gateway
}

fn served(replica: &str, address: &str) -> Endpoint {
    let mut e = endpoint(replica, "n1", address.parse().unwrap(), None);
    e.engine_model = "chat-model".into();
    e
}

fn two() -> RouteTable {
    table(1, vec![served("a", "10.0.0.1:8000"), served("b", "10.0.0.2:8000")])
}

/// One request's stream.
struct Envoy {
    say: mpsc::Sender<ProcessingRequest>,
    hear: Streaming<ProcessingResponse>,
}

impl Envoy {
    async fn open(gateway: &AgentHandle) -> Self {
        let url = format!("http://{}", gateway.picker_addr().unwrap());
        let mut client = ExternalProcessorClient::connect(url).await.unwrap();
        let (say, said) = mpsc::channel(64);
        let hear = client.process(ReceiverStream::new(said)).await.unwrap().into_inner();
        Self { say, hear }
    }

    async fn say(&self, request: Say) {
        self.say.send(ProcessingRequest { request: Some(request), ..Default::default() }).await.unwrap();
    }

    /// The first message of a request.
    async fn begin(&self, mode: BodySendMode, path: &str, more: &[(&str, &str)], subset: Option<&[&str]>) {
        let method = if path == "/v1/models" { "GET" } else { "POST" };
        let all = [(":method", method), (":path", path)].into_iter().chain(more.iter().copied());
        let metadata_context = subset.map(|addresses| {
            let text = |a: &&str| Value { kind: Some(Kind::StringValue((*a).to_owned())) };
            metadata(
                "envoy.lb.subset_hint",
                "x-gateway-destination-endpoint-subset",
                Kind::ListValue(ListValue { values: addresses.iter().map(text).collect() }),
            )
        });
        let config = ProtocolConfiguration {
            request_body_mode: mode.into(),
            response_body_mode: BodySendMode::FullDuplexStreamed.into(),
            ..Default::default()
        };
        let request = ProcessingRequest {
            request: Some(Say::RequestHeaders(HttpHeaders {
                headers: Some(wire(all)),
                end_of_stream: method == "GET",
            })),
            metadata_context,
            protocol_config: Some(config),
            observability_mode: false,
        };
        self.say.send(request).await.unwrap();
    }

    async fn body(&self, text: &str, end_of_stream: bool) {
        self.say(Say::RequestBody(HttpBody { body: Bytes::copy_from_slice(text.as_bytes()), end_of_stream }))
            .await;
    }

    async fn next(&mut self) -> ProcessingResponse {
        let next = tokio::time::timeout(std::time::Duration::from_secs(10), self.hear.message()).await;
        next.unwrap().unwrap().unwrap()
    }

    async fn refused(&mut self) -> (i32, serde_json::Value, ImmediateResponse) {
        match self.next().await.response.unwrap() {
            Heard::ImmediateResponse(r) => {
                (r.status.unwrap().code, serde_json::from_slice(&r.body).unwrap(), r)
            }
            other => panic!("{other:?}"),
        }
    }

    /// A whole request, and where it is to go.
    async fn pick(gateway: &AgentHandle, subset: Option<&[&str]>) -> Vec<String> {
        let mut envoy = Self::open(gateway).await;
        envoy.begin(BodySendMode::FullDuplexStreamed, "/v1/chat/completions", &[], subset).await;
        envoy.body(&chat_text("hello"), true).await;
        let first = envoy.next().await;
        destinations(&first)
    }
}

fn wire<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> HeaderMap {
    let one = |(key, value): (&str, &str)| HeaderValue {
        key: key.to_owned(),
        value: String::new(),
        raw_value: Bytes::copy_from_slice(value.as_bytes()),
    };
    HeaderMap { headers: headers.into_iter().map(one).collect() }
}

fn metadata(namespace: &str, key: &str, kind: Kind) -> Metadata {
    let fields = [(key.to_owned(), Value { kind: Some(kind) })].into();
    Metadata { filter_metadata: [(namespace.to_owned(), Struct { fields })].into() }
}

fn chat_text(content: &str) -> String {
    json!({"messages": [{"role": "user", "content": content}], "model": "chat-model", "stream": true})
        .to_string()
}

fn set(mutation: Option<&HeaderMutation>, name: &str) -> Option<String> {
    let headers = mutation.into_iter().flat_map(|m| &m.set_headers).filter_map(|h| h.header.as_ref());
    let mut values =
        headers.filter(|h| h.key == name).map(|h| String::from_utf8(h.raw_value.to_vec()).unwrap());
    values.next()
}

/// Where a response says that the request goes: in the header and, equal, in the metadata.
fn destinations(response: &ProcessingResponse) -> Vec<String> {
    let common = match response.response.as_ref().unwrap() {
        Heard::RequestHeaders(h) => h.response.as_ref().unwrap(),
        Heard::RequestBody(b) => b.response.as_ref().unwrap(),
        other => panic!("{other:?}"),
    };
    let header = set(common.header_mutation.as_ref(), DESTINATION).unwrap();
    let Some(Kind::StructValue(inner)) = &response.dynamic_metadata.as_ref().unwrap().fields["envoy.lb"].kind
    else {
        panic!("{response:?}")
    };
    assert_eq!(inner.fields[DESTINATION].kind, Some(Kind::StringValue(header.clone())));
    header.split(',').map(str::to_owned).collect()
}

fn streamed(response: ProcessingResponse) -> (Bytes, bool) {
    let body = match response.response.unwrap() {
        Heard::RequestBody(b) | Heard::ResponseBody(b) => b.response.unwrap().body_mutation.unwrap(),
        other => panic!("{other:?}"),
    };
    match body.mutation.unwrap() {
        Mutation::StreamedResponse(s) => (s.body, s.end_of_stream),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_streamed_body_is_read_as_it_comes_and_goes_back_as_it_came() {
    let gateway = gateway(Some(two())).await;
    let text = chat_text(&"what is it? ".repeat(20_000));
    for trailers in [false, true] {
        let mut envoy = Envoy::open(&gateway).await;
        envoy.begin(BodySendMode::FullDuplexStreamed, "/v1/chat/completions", &[], None).await;
        let (a, rest) = text.split_at(70_000);
        let (b, c) = rest.split_at(11);
        envoy.body(a, false).await;
        envoy.body(b, false).await;
        envoy.body(c, !trailers).await;
        if trailers {
            envoy.say(Say::RequestTrailers(HttpTrailers::default())).await;
        }
        let first = envoy.next().await;
        assert!(matches!(first.response, Some(Heard::RequestHeaders(_))), "the headers go first: {first:?}");
        let order = destinations(&first);
        assert_eq!(order.len(), 2, "the choice, and the next: {order:?}");
        let mut back = Vec::new();
        while back.len() < text.len() {
            let (part, end) = streamed(envoy.next().await);
            assert!(part.len() <= 64 << 10);
            back.extend_from_slice(&part);
            assert_eq!(end, !trailers && back.len() == text.len());
        }
        assert_eq!(back, text.as_bytes());
        if trailers {
            assert!(matches!(envoy.next().await.response, Some(Heard::RequestTrailers(_))));
        }
    }
}

#[tokio::test]
async fn a_buffered_body_is_answered_with_the_destination() {
    let gateway = gateway(Some(two())).await;
    let mut envoy = Envoy::open(&gateway).await;
    envoy.begin(BodySendMode::Buffered, "/v1/chat/completions?x=1", &[], None).await;
    let first = envoy.next().await;
    assert!(matches!(first.response, Some(Heard::RequestHeaders(_))) && first.dynamic_metadata.is_none());
    envoy.body(&chat_text("hello"), true).await;
    let second = envoy.next().await;
    assert!(matches!(second.response, Some(Heard::RequestBody(_))));
    assert_eq!(destinations(&second).len(), 2);
}

#[tokio::test]
async fn only_what_the_gateway_allows_is_picked() {
    let gateway = gateway(Some(two())).await;
    for _ in 0..5 {
        assert_eq!(Envoy::pick(&gateway, Some(&["10.0.0.2:8000", "10.0.0.9:8000"])).await, ["10.0.0.2:8000"]);
    }
    for subset in [&[][..], &["10.0.0.9:8000"]] {
        let mut envoy = Envoy::open(&gateway).await;
        envoy.begin(BodySendMode::FullDuplexStreamed, "/v1/chat/completions", &[], Some(subset)).await;
        envoy.body(&chat_text("hello"), true).await;
        let (status, body, _) = envoy.refused().await;
        assert_eq!((status, body["error"]["code"].as_str()), (503, Some("not_ready")));
    }
}

#[tokio::test]
async fn refusals_have_openais_shape() {
    let gateway = gateway(Some(two())).await;
    let duplex = BodySendMode::FullDuplexStreamed;
    let refused = async |path: &str, text: &str, headers: &[(&str, &str)]| {
        let mut envoy = Envoy::open(&gateway).await;
        envoy.begin(duplex, path, headers, None).await;
        envoy.body(text, true).await;
        let (status, body, r) = envoy.refused().await;
        assert_eq!(set(r.headers.as_ref(), "content-type").as_deref(), Some("application/json"));
        (status, body["error"]["code"].as_str().unwrap().to_owned())
    };
    let path = "/v1/chat/completions";
    let other = chat_text("x").replace("chat-model", "other");
    assert_eq!(refused(path, &other, &[]).await, (404, "model_not_found".into()));
    assert_eq!(refused(path, "{\"model\": 3}", &[]).await, (400, "invalid_body".into()));
    assert_eq!(refused(path, "{\"model\":", &[]).await, (400, "invalid_body".into()));
    assert_eq!(refused("/v2/x", "{}", &[]).await, (404, "unknown_url".into()));
    let late = [("x-plimsoll-deadline-ms", "1")];
    assert_eq!(refused(path, &chat_text("x"), &late).await, (429, "deadline".into()));

    // A gateway that shows no bodies is told so.
    let mut envoy = Envoy::open(&gateway).await;
    envoy.begin(BodySendMode::None, path, &[], None).await;
    assert_eq!(envoy.refused().await.0, 500);

    let mut envoy = Envoy::open(&gateway).await;
    envoy.begin(duplex, "/v1/models", &[], None).await;
    let (status, body, _) = envoy.refused().await;
    assert_eq!((status, body["data"][0]["id"].as_str()), (200, Some("chat-model")));
}

#[tokio::test]
async fn a_request_that_may_be_shed_is_where_all_are_busy() {
    let mut routes = two();
    routes.pools[0].objectives = vec![("batch".into(), -1)];
    // No objective for the first token: a wait is one that is longer than the prompt.
    routes.pools[0].slo_classes.truncate(1);
    routes.pools[0].slo_classes[0].slo = Default::default();
    let gateway = gateway(Some(routes)).await;
    let mut open = Vec::new();
    let long = chat_text(&"many words ".repeat(5000));
    for _ in 0..4 {
        let mut envoy = Envoy::open(&gateway).await;
        envoy.begin(BodySendMode::FullDuplexStreamed, "/v1/chat/completions", &[], None).await;
        envoy.body(&long, true).await;
        envoy.next().await;
        open.push(envoy);
    }
    let batch = [("x-gateway-inference-objective", "batch")];
    let ask = async |headers: &[(&str, &str)]| {
        let mut envoy = Envoy::open(&gateway).await;
        envoy.begin(BodySendMode::FullDuplexStreamed, "/v1/chat/completions", headers, None).await;
        envoy.body(&chat_text("hi"), true).await;
        envoy.next().await.response.unwrap()
    };
    match ask(&batch).await {
        Heard::ImmediateResponse(r) => {
            assert_eq!(r.status.unwrap().code, 429);
            assert!(set(r.headers.as_ref(), "retry-after").is_some());
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(ask(&[]).await, Heard::RequestHeaders(_)));
    // Those that kept them busy have gone.
    drop(open);
    let mut answer = ask(&batch).await;
    for _ in 0..100 {
        if matches!(answer, Heard::RequestHeaders(_)) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        answer = ask(&batch).await;
    }
    panic!("{answer:?}");
}

#[tokio::test]
async fn who_served_is_believed_and_who_did_not_is_put_last() {
    let gateway = gateway(Some(two())).await;
    let mut envoy = Envoy::open(&gateway).await;
    envoy.begin(BodySendMode::FullDuplexStreamed, "/v1/chat/completions", &[], None).await;
    envoy.body(&chat_text("hello"), true).await;
    let order = destinations(&envoy.next().await);
    streamed(envoy.next().await);
    let said = |status: &str, by: Option<&str>| ProcessingRequest {
        request: Some(Say::ResponseHeaders(HttpHeaders {
            headers: Some(wire([(":status", status), ("content-type", "text/event-stream")])),
            end_of_stream: false,
        })),
        metadata_context: by.map(|by| {
            metadata("envoy.lb", "x-gateway-destination-endpoint-served", Kind::StringValue(by.to_owned()))
        }),
        ..Default::default()
    };
    envoy.say.send(said("200", Some(&order[1]))).await.unwrap();
    let head = envoy.next().await;
    let Some(Heard::ResponseHeaders(head)) = head.response else { panic!("{head:?}") };
    let replica = set(head.response.unwrap().header_mutation.as_ref(), "x-plimsoll-replica").unwrap();
    assert_eq!(replica, if order[1].starts_with("10.0.0.1") { "a" } else { "b" });
    let events = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":30,\"completion_tokens\":9}}\n\ndata: [DONE]\n\n";
    let (a, b) = events.split_at(25);
    for (part, end_of_stream) in [(a, false), (b, true)] {
        envoy
            .say(Say::ResponseBody(HttpBody { body: Bytes::copy_from_slice(part.as_bytes()), end_of_stream }))
            .await;
        assert_eq!(streamed(envoy.next().await), (Bytes::copy_from_slice(part.as_bytes()), end_of_stream));
    }
    drop(envoy);
    let traffic = gateway.take_traffic().remove(0);
    assert_eq!((traffic.arrived, traffic.finished, traffic.failed), (1, 1, 0));
    assert_eq!((traffic.input_tokens.sum, traffic.output_tokens.sum), (30.0, 9.0));
    // The first was tried and did not serve: it is the next request's last choice.
    for _ in 0..4 {
        assert_eq!(Envoy::pick(&gateway, None).await[0], order[1]);
    }
    until("streams that came to nothing are no failures", || {
        gateway.take_traffic().iter().all(|t| t.failed == 0)
    })
    .await;
}

#[tokio::test]
async fn health_is_asked_by_grpc() {
    let gateway = gateway(None).await;
    let url = format!("http://{}", gateway.picker_addr().unwrap());
    let mut client = HealthClient::connect(url).await.unwrap();
    let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let name = "envoy.service.ext_proc.v3.ExternalProcessor";
    let mut watched = client.watch(ask(name)).await.unwrap().into_inner();
    assert_eq!(client.check(ask("liveness")).await.unwrap().into_inner().status(), ServingStatus::Serving);
    assert_eq!(client.check(ask("")).await.unwrap().into_inner().status(), ServingStatus::NotServing);
    assert_eq!(client.check(ask("x")).await.unwrap_err().code(), tonic::Code::NotFound);
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    gateway.set_routes(two());
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    assert_eq!(client.check(ask(name)).await.unwrap().into_inner().status(), ServingStatus::Serving);
}
