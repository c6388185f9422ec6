//! HTTP/2 as clients and load balancers speak it, well and badly: streams, resets, windows, GOAWAY, limits, floods.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../proto/tests/tls/certs.rs"]
mod certs;
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use certs::Authority;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use plimsoll_agent::AgentHandle;
use plimsoll_proto::tls::Public;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use support::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

async fn gateway(engine: SocketAddr) -> AgentHandle {
    let gateway = agent("gw", None, |_| {}).await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine, None)]));
    gateway
}

/// A connection with windows of its own, wide enough that one stream does not take all of it.
async fn connect<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(io: T) -> SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(16 << 20).initial_window_size(64 << 10);
    let (send, connection) = builder.handshake(io).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    send
}

async fn h2c(to: SocketAddr) -> SendRequest<Bytes> {
    connect(TcpStream::connect(to).await.unwrap()).await
}

fn request(headers: &[(&str, &str)]) -> http::Request<()> {
    let mut request = http::Request::post("http://gateway/v1/chat/completions");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn body(stream: bool) -> Bytes {
    let text = serde_json::json!({"model": "chat-model", "stream": stream, "messages": [{"role": "user", "content": "hello"}]});
    text.to_string().into()
}

/// Asks, and gives the answer that is to come.
async fn ask(connection: &SendRequest<Bytes>, stream: bool) -> (ResponseFuture, h2::SendStream<Bytes>) {
    let mut ready = connection.clone().ready().await.unwrap();
    let (answer, mut sending) = ready.send_request(request(&[]), false).unwrap();
    sending.send_data(body(stream), true).unwrap();
    (answer, sending)
}

/// All of a body, its window given back as it is read.
async fn whole(mut body: RecvStream) -> Result<String, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok(String::from_utf8(all).unwrap())
}

async fn answered(connection: &SendRequest<Bytes>) {
    let (answer, _) = ask(connection, true).await;
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    let text = whole(answer.into_body()).await.unwrap();
    assert!(text.contains("t2 ") && text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_share_a_connection() {
    let engine = Engine::start().await;
    let gateway = gateway(engine.addr).await;
    let connection = h2c(gateway.addr()).await;
    let all: Vec<_> = (0..300)
        .map(|_| {
            let connection = connection.clone();
            tokio::spawn(async move { answered(&connection).await })
        })
        .collect();
    for one in all {
        one.await.unwrap();
    }
    assert_eq!(engine.requests(), 300, "each was asked once");
    // Bodies in many small parts, one byte each, are one body.
    let mut ready = connection.clone().ready().await.unwrap();
    let (answer, mut sending) = ready.send_request(request(&[]), false).unwrap();
    let text = body(false);
    for i in 0..text.len() {
        sending.send_data(text.slice(i..=i), i + 1 == text.len()).unwrap();
    }
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200, "{}", whole(answer.into_body()).await.unwrap());
    assert_eq!(engine.requests(), 301);
}

#[tokio::test]
async fn over_tls_the_client_chooses_the_version() {
    let authority = Authority::new("public");
    let folder = authority.folder("chat.example");
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |c| c.public = Some(Public::open(folder.path()).unwrap())).await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, None)]));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let open = |protocols: &[&[u8]]| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut config = config.with_root_certificates(roots.clone()).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        let address = gateway.addr();
        async move {
            let tcp = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("chat.example").unwrap();
            tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
        }
    };
    let stream = open(&[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let connection = connect(stream).await;
    for _ in 0..20 {
        answered(&connection).await;
    }
    let mut stream = open(&[b"http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let text = raw_request(&format!("connection: close\r\ncontent-length: {}\r\n", BODY.len()), BODY);
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Nobody agrees on what nobody speaks here.
    assert!(open(&[b"spdy/3"]).await.is_err());
}

#[tokio::test]
async fn a_reset_ends_the_engines_work_and_nobody_elses() {
    let engine = Engine::start().await;
    let gateway = gateway(engine.addr).await;
    let connection = h2c(gateway.addr()).await;
    engine.next(&[Act::Endless, Act::Endless]);
    let (answer, mut sending) = ask(&connection, true).await;
    let mut stream = answer.await.unwrap().into_body();
    stream.data().await.unwrap().unwrap();
    let (other, _sending) = ask(&connection, true).await;
    let mut other = other.await.unwrap().into_body();
    sending.send_reset(Reason::CANCEL);
    until("the engine is let go", || engine.state.cancelled.load(Ordering::SeqCst) == 1).await;
    for _ in 0..5 {
        let data = other.data().await.unwrap().unwrap();
        other.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(engine.state.open.load(Ordering::SeqCst), 1, "the other stream goes on");
    answered(&connection).await;
    // Before the answer has begun.
    *engine.state.pause.lock() = Duration::from_secs(60);
    let (answer, mut sending) = ask(&connection, false).await;
    until("the engine is asked", || engine.requests() == 4).await;
    sending.send_reset(Reason::CANCEL);
    drop(answer);
    until("the engine is let go", || engine.state.cancelled.load(Ordering::SeqCst) == 2).await;
    // And with the connection.
    drop((other, connection, stream, _sending));
    until("the engine is let go", || engine.state.open.load(Ordering::SeqCst) == 0).await;
}

/// A client that does not read holds its own stream up, and little memory: the engine is not read on for it either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_up_itself_alone() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = sent.clone();
    // An engine that writes as fast as it is read from.
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let counter = counter.clone();
            tokio::spawn(async move {
                let mut asked = [0u8; 4096];
                let n = stream.read(&mut asked).await.unwrap_or(0);
                if !asked[..n].starts_with(b"POST") {
                    let _ = stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                        .await;
                    return;
                }
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
                stream.write_all(head.as_bytes()).await.unwrap();
                let event = format!(
                    "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n",
                    "x".repeat(4000)
                );
                while stream.write_all(event.as_bytes()).await.is_ok() {
                    counter.fetch_add(event.len(), Ordering::SeqCst);
                }
            });
        }
    });
    let quick = Engine::start().await;
    let gateway = agent("gw", None, |_| {}).await;
    let mut pools = table(1, vec![endpoint("chat-1", "n1", quick.addr, None)]);
    let mut flood = pool(vec![endpoint("flood-1", "n1", address, None)]);
    (flood.pool, flood.served_name) = ("default/flood".parse().unwrap(), "flood".into());
    pools.pools.push(flood);
    gateway.set_routes(pools);
    let connection = h2c(gateway.addr()).await;
    let mut ready = connection.clone().ready().await.unwrap();
    let (answer, mut sending) = ready.send_request(request(&[]), false).unwrap();
    sending.send_data(Bytes::from_static(br#"{"model":"flood","stream":true,"messages":[]}"#), true).unwrap();
    let mut stream = answer.await.unwrap().into_body();
    stream.data().await.unwrap().unwrap();
    // Nothing is given back: once the window and the sockets are full, the engine has to wait.
    let mut before = usize::MAX;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = sent.load(Ordering::SeqCst);
        if now == before {
            break;
        }
        before = now;
    }
    assert_eq!(sent.load(Ordering::SeqCst), before, "the engine is read on");
    assert!(before < 32 << 20, "{before} bytes for a client that reads none");
    for _ in 0..20 {
        answered(&connection).await;
    }
    // It reads on, and so does the gateway.
    let mut read = 0;
    while read < 1 << 20 {
        let data = stream.data().await.unwrap().unwrap();
        stream.flow_control().release_capacity(data.len()).unwrap();
        read += data.len();
    }
    until("the engine goes on", || sent.load(Ordering::SeqCst) > before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_says_goaway_and_finishes_what_is_under_way() {
    let engine = Engine::start().await;
    *engine.state.pause.lock() = Duration::from_millis(150);
    let gateway = gateway(engine.addr).await;
    let address = gateway.addr();
    let connection = h2c(address).await;
    let idle = h2c(address).await;
    let (answer, _sending) = ask(&connection, true).await;
    let stream = answer.await.unwrap().into_body();
    gateway.stop();
    let text = tokio::spawn(whole(stream));
    // Nobody comes in any more, on the old connections or on a new one.
    let refused = async {
        loop {
            let taken = match idle.clone().ready().await {
                Ok(mut ready) => ready.send_request(request(&[]), true).is_ok_and(|_| true),
                Err(_) => false,
            };
            if !taken {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), refused)
        .await
        .expect("the idle connection was told to go away");
    let text = text.await.unwrap().unwrap();
    assert!(text.contains("t2 ") && text.ends_with("data: [DONE]\n\n"), "{text}");
    tokio::time::timeout(Duration::from_secs(5), gateway.join()).await.expect("it has stopped");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn headers_have_a_limit_and_the_connection_survives_it() {
    let engine = Engine::start().await;
    let gateway = gateway(engine.addr).await;
    let connection = h2c(gateway.addr()).await;
    // Over ours: an answer that says so. Over what is read at all: a status, or the stream's end.
    for (bytes, told) in [(40 << 10, true), (100 << 10, false)] {
        let big = "x".repeat(bytes);
        let mut ready = connection.clone().ready().await.unwrap();
        let (answer, mut sending) = ready.send_request(request(&[("x-big", &big)]), false).unwrap();
        let _ = sending.send_data(body(true), true);
        match answer.await {
            Ok(answer) => {
                assert_eq!(answer.status(), 431);
                let text = whole(answer.into_body()).await.unwrap_or_default();
                assert!(!told || text.contains("headers_too_large"), "{text}");
            }
            Err(error) => assert!(!told && error.is_reset(), "{error}"),
        }
        answered(&connection).await;
    }
    // Headers of the connection have no place in HTTP/2: whoever sends them gets no answer from an engine.
    let before = engine.requests();
    for (name, value) in [("connection", "keep-alive"), ("transfer-encoding", "chunked"), ("upgrade", "h2c")]
    {
        let mut ready = connection.clone().ready().await.unwrap();
        if let Ok((answer, mut sending)) = ready.send_request(request(&[(name, value)]), false) {
            let _ = sending.send_data(body(true), true);
            if let Ok(answer) = answer.await {
                assert!(answer.status().is_client_error(), "{name}: {}", answer.status());
            }
        }
    }
    assert_eq!(engine.requests(), before);
    // A length that the body does not keep to.
    for length in ["3", "99999"] {
        let mut ready = connection.clone().ready().await.unwrap();
        let (answer, mut sending) =
            ready.send_request(request(&[("content-length", length)]), false).unwrap();
        let _ = sending.send_data(body(true), true);
        if let Ok(answer) = answer.await {
            assert!(answer.status().is_client_error(), "{length}: {}", answer.status());
        }
    }
    assert_eq!(engine.requests(), before, "a request of doubtful length reached an engine");
    answered(&connection).await;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// `POST http://x/v1/chat/completions`, each header a literal without indexing.
fn head() -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (index, value) in [(0x04, "/v1/chat/completions"), (0x01, "x")] {
        block.extend([index, value.len() as u8]);
        block.extend_from_slice(value.as_bytes());
    }
    block
}

/// Sends frames for as long as they are taken, `most` times at most; whether the other side hung up.
async fn flood(to: SocketAddr, first: &[u8], most: usize, mut next: impl FnMut(usize) -> Vec<u8>) -> bool {
    let stream = TcpStream::connect(to).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let closed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = closed.clone();
    tokio::spawn(async move {
        let mut buffer = [0u8; 65536];
        while let Ok(1..) = reading.read(&mut buffer).await {}
        seen.store(true, Ordering::SeqCst);
    });
    let mut opening = PREFACE.to_vec();
    opening.extend(frame(SETTINGS, 0, 0, &[]));
    opening.extend_from_slice(first);
    if writing.write_all(&opening).await.is_err() {
        return true;
    }
    for i in 0..most {
        let written = tokio::time::timeout(Duration::from_secs(5), writing.write_all(&next(i))).await;
        if !matches!(written, Ok(Ok(()))) || closed.load(Ordering::SeqCst) {
            break;
        }
    }
    for _ in 0..300 {
        if closed.load(Ordering::SeqCst) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_end_their_connection_and_nothing_else() {
    let engine = Engine::start().await;
    *engine.state.pause.lock() = Duration::from_millis(1);
    let gateway = gateway(engine.addr).await;
    let address = gateway.addr();
    let id = |i: usize| 2 * i as u32 + 1;

    // Rapid reset (CVE-2023-44487): streams that are taken back as soon as they are opened.
    let text = body(true);
    let rapid = flood(address, &[], 20_000, |i| {
        let mut all = frame(HEADERS, END_HEADERS, id(i), &head());
        all.extend(frame(DATA, END_STREAM, id(i), &text));
        all.extend(frame(RESET, 0, id(i), &8u32.to_be_bytes()));
        all
    })
    .await;
    assert!(rapid, "20,000 streams that were taken back did not end the connection");
    assert!(engine.requests() < 2_000, "{} of them reached the engine", engine.requests());
    still_serves(&gateway).await;

    // Headers without an end (CVE-2024-27316).
    let endless = frame(HEADERS, 0, 1, &head());
    let literal = [&[0u8, 2, b'x', b'a', 127, 0x81, 0x7d][..], &vec![b'y'; 16_000]].concat();
    assert!(
        flood(address, &endless, 10_000, |_| frame(CONTINUATION, 0, 1, &literal)).await,
        "endless headers are taken"
    );
    still_serves(&gateway).await;
    let empty = flood(address, &endless, 200_000, |_| frame(CONTINUATION, 0, 1, &[])).await;
    assert!(empty, "endless empty headers are taken");
    still_serves(&gateway).await;

    // Frames that make no sense.
    for (what, frames) in [
        ("a frame longer than agreed", [&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1][..], &[0; 1000]].concat()),
        ("data on no stream", frame(DATA, 0, 0, b"x")),
        ("a stream of the server's", frame(HEADERS, END_HEADERS, 2, &head())),
        ("headers that are none", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 64])),
        ("a ping of the wrong size", frame(PING, 0, 0, b"x")),
        ("settings of the wrong size", frame(SETTINGS, 0, 0, &[0; 5])),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &head())),
        ("a window that overflows", frame(8, 0, 0, &0x7fff_ffffu32.to_be_bytes())),
    ] {
        assert!(flood(address, &frames, 0, |_| Vec::new()).await, "{what} is taken");
    }
    still_serves(&gateway).await;

    // Whoever floods without asking for anything may stay, and costs the others nothing.
    for kind in [PING, SETTINGS] {
        let payload: &[u8] = if kind == PING { &[0; 8] } else { &[] };
        let pings =
            tokio::spawn(async move { flood(address, &[], 20_000, |_| frame(kind, 0, 0, payload)).await });
        for _ in 0..20 {
            still_serves(&gateway).await;
        }
        pings.abort();
    }
    until("nothing is under way at the engine", || engine.state.open.load(Ordering::SeqCst) == 0).await;
}
