//! Clients and engines that mean no good, over raw sockets: clear answers, bounded memory, nobody else disturbed.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use plimsoll_agent::AgentHandle;
use rstest::rstest;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const READ_TIMEOUT: Duration = Duration::from_millis(400);

async fn gateway(engine: SocketAddr) -> AgentHandle {
    let gateway = agent("gw", None, |c| {
        c.limits.client_read_timeout = READ_TIMEOUT;
        c.limits.max_body_bytes = 1 << 20;
        c.limits.idle_timeout = Duration::from_secs(2);
        c.limits.first_byte_timeout = Duration::from_secs(5);
    })
    .await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine, None)]));
    gateway
}

/// Sends bytes and reads until the other side closes, or is silent for a while.
async fn raw(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // The other side may well close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut buffer = [0u8; 4096];
    while let Ok(Ok(n @ 1..)) = tokio::time::timeout(3 * READ_TIMEOUT, stream.read(&mut buffer)).await {
        answer.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
}

fn responses(answer: &str) -> usize {
    answer.matches("HTTP/1.1 ").count()
}

/// What would be another request if its bytes were taken for one.
const SMUGGLED: &str = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-smuggled: 1\r\ncontent-length: 34\r\n\r\n{\"model\":\"chat-model\",\"prompt\":\"\"}";

#[rstest]
#[case::both_lengths("content-length: 5\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n")]
#[case::both_the_other_way("transfer-encoding: chunked\r\ncontent-length: 5\r\n", "0\r\n\r\n")]
#[case::two_lengths("content-length: 0\r\ncontent-length: 7\r\n", "")]
#[case::a_list_of_lengths("content-length: 0, 7\r\n", "")]
#[case::a_signed_length("content-length: +7\r\n", "")]
#[case::a_negative_length("content-length: -1\r\n", "")]
#[case::a_length_in_hex("content-length: 0x7\r\n", "")]
#[case::an_endless_length("content-length: 99999999999999999999999\r\n", "")]
#[case::folded("transfer-encoding:\r\n chunked\r\ncontent-length: 3\r\n", "abc")]
#[case::a_space_before_the_colon("content-length : 0\r\n", "")]
#[case::unknown_coding("transfer-encoding: xchunked\r\n", "0\r\n\r\n")]
#[case::chunked_not_last("transfer-encoding: chunked, identity\r\n", "0\r\n\r\n")]
#[case::a_bare_carriage_return("x-a: b\rtransfer-encoding: chunked\r\n", "0\r\n\r\n")]
#[case::a_zero_byte("x-a: b\0c\r\ncontent-length: 0\r\n", "")]
#[case::a_huge_chunk("transfer-encoding: chunked\r\n", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n")]
#[case::a_chunk_that_is_none("transfer-encoding: chunked\r\n", "z\r\n\r\n")]
#[tokio::test]
async fn requests_whose_length_is_doubtful_reach_no_engine(#[case] headers: &str, #[case] body: &str) {
    let engine = Engine::start().await;
    let gateway = gateway(engine.addr).await;
    let answer = raw(gateway.addr(), format!("{}{SMUGGLED}", raw_request(headers, body)).as_bytes()).await;
    assert!((400..500).contains(&status(&answer)), "{answer}");
    assert!(responses(&answer) <= 1, "what followed was taken for a request: {answer}");
    assert_eq!(engine.requests(), 0, "nothing of it reached the engine: {answer}");
    still_serves(&gateway).await;
}

#[tokio::test]
async fn two_requests_in_a_row_are_two_and_the_engine_sees_lengths_of_ours() {
    let engine = Engine::start().await;
    let gateway = gateway(engine.addr).await;
    let chunked = format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len());
    let both = raw_request(
        "transfer-encoding: chunked\r\nconnection: keep-alive, x-secret\r\nx-secret: 1\r\n",
        &chunked,
    ) + &raw_request(&format!("content-length: {}\r\n", BODY.len()), BODY);
    let answer = raw(gateway.addr(), both.as_bytes()).await;
    assert_eq!((responses(&answer), answer.matches("200 OK").count()), (2, 2), "{answer}");
    assert_eq!(engine.requests(), 2);
    let headers = engine.state.last_headers.lock().clone();
    assert!(
        headers.contains_key("content-length") && !headers.contains_key("transfer-encoding"),
        "{headers:?}"
    );
    assert!(!headers.contains_key("x-secret"), "a header that belongs to the connection");
}

#[tokio::test]
async fn bad_bodies_are_answered_in_openais_shape() {
    let engine = Engine::start().await;
    let gateway = gateway(engine.addr).await;
    let post = |body: &[u8]| {
        let mut text =
            raw_request(&format!("connection: close\r\ncontent-length: {}\r\n", body.len()), "").into_bytes();
        text.extend_from_slice(body);
        text
    };
    for (body, code, part) in [
        (&b"{\"model\":\"\xff\xfe\"}"[..], "invalid_body", "offset 10"),
        (b"{\"model\":", "invalid_body", "not valid JSON"),
        (b"\"model\"", "invalid_body", "JSON object"),
        (b"{\"model\":\"nope\"}", "model_not_found", "chat-model"),
    ] {
        let answer = raw(gateway.addr(), &post(body)).await;
        assert!((400..500).contains(&status(&answer)), "{answer}");
        assert!(answer.contains("\"error\":{") && answer.contains(code) && answer.contains(part), "{answer}");
    }
    let deep = format!("{{\"model\":\"chat-model\",\"messages\":{}", "[".repeat(500_000));
    let answer = raw(gateway.addr(), &post(deep.as_bytes())).await;
    assert!(status(&answer) == 400 && answer.contains("not valid JSON"), "{answer}");
    // Over the limit: announced, and found out on the way.
    let answer = raw(gateway.addr(), raw_request("content-length: 99999999\r\n", "{").as_bytes()).await;
    assert!(status(&answer) == 413 && answer.contains("body_too_large"), "{answer}");
    let mut endless = raw_request("transfer-encoding: chunked\r\n", "").into_bytes();
    for _ in 0..40 {
        endless.extend_from_slice(b"10000\r\n");
        endless.extend_from_slice(&[b' '; 0x10000]);
        endless.extend_from_slice(b"\r\n");
    }
    let answer = raw(gateway.addr(), &endless).await;
    assert!(status(&answer) == 413 && answer.contains("body_too_large"), "{answer}");
    assert_eq!(engine.requests(), 0);
    still_serves(&gateway).await;
}

#[tokio::test]
async fn headers_have_a_limit() {
    let engine = Engine::start().await;
    let gateway = gateway(engine.addr).await;
    let big = format!("x-big: {}\r\n", "x".repeat(40 << 10));
    let answer = raw(gateway.addr(), raw_request(&big, "").as_bytes()).await;
    assert!(status(&answer) == 431 && answer.contains("headers_too_large"), "{answer}");
    // Beyond what is read at all there is a status and no body.
    let many: String = (0..200_000).map(|i| format!("x-{i}: y\r\n")).collect();
    let answer = raw(gateway.addr(), raw_request(&many, "").as_bytes()).await;
    assert!(
        answer.is_empty() || (400..500).contains(&status(&answer)),
        "{}",
        &answer[..answer.len().min(200)]
    );
    let endless = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(4 << 20));
    let answer = raw(gateway.addr(), endless.as_bytes()).await;
    assert!(
        answer.is_empty() || (400..500).contains(&status(&answer)),
        "{}",
        &answer[..answer.len().min(200)]
    );
    assert_eq!(engine.requests(), 0);
    still_serves(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_are_cut_off_and_hold_nobody_up() {
    let engine = Engine::start().await;
    let gateway = gateway(engine.addr).await;
    let address = gateway.addr();
    let slow = |head: &'static str, every: Duration| {
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(head.as_bytes()).await;
            let mut buffer = [0u8; 1024];
            let mut answer = Vec::new();
            for _ in 0..1_000 {
                match tokio::time::timeout(every, stream.read(&mut buffer)).await {
                    Ok(Ok(0) | Err(_)) => return answer,
                    Ok(Ok(n)) => answer.extend_from_slice(&buffer[..n]),
                    // Gone already, perhaps: the next read says so.
                    Err(_) => drop(stream.write_all(b"x").await),
                }
            }
            panic!("never cut off");
        })
    };
    let mut clients: Vec<_> =
        (0..100).map(|_| slow("POST /v1/chat/completions HTTP/1.1\r\nx-slow: ", READ_TIMEOUT / 8)).collect();
    let trickle = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n{";
    clients.extend((0..100).map(|_| slow(trickle, READ_TIMEOUT / 4)));
    for _ in 0..20 {
        still_serves(&gateway).await;
    }
    for (i, client) in clients.into_iter().enumerate() {
        let answer = String::from_utf8(client.await.unwrap()).unwrap();
        if i >= 100 {
            assert!(status(&answer) == 408 && answer.contains("not whole after"), "{answer}");
        }
    }
    assert_eq!(engine.requests(), 20);
}

#[tokio::test]
async fn a_body_that_stops_coming_is_answered() {
    let engine = Engine::start().await;
    let gateway = gateway(engine.addr).await;
    let answer = raw(gateway.addr(), raw_request("content-length: 100\r\n", "{").as_bytes()).await;
    assert!(status(&answer) == 408 && answer.contains("no part of the body came"), "{answer}");
    still_serves(&gateway).await;
}

/// An engine that answers every request with these bytes, and closes.
async fn scripted(answer: Vec<u8>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (answer, count) = (answer.clone(), count.clone());
            tokio::spawn(async move {
                let mut buffer = [0u8; 65536];
                let n = stream.read(&mut buffer).await.unwrap_or(0);
                if buffer[..n].starts_with(b"POST") {
                    count.fetch_add(1, Ordering::SeqCst);
                }
                let _ = stream.write_all(&answer).await;
            });
        }
    });
    (address, asked)
}

fn stream_of(body: &[u8]) -> Vec<u8> {
    let mut all = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".to_vec();
    all.extend_from_slice(body);
    all
}

#[rstest]
#[case::not_http(b"hello\r\n\r\n".to_vec())]
#[case::no_answer(Vec::new())]
#[case::half_a_head(b"HTTP/1.1 200 OK\r\ncontent-ty".to_vec())]
#[case::two_lengths(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}x".to_vec())]
#[case::an_empty_stream(stream_of(b""))]
#[case::no_events(stream_of(b"\xff\xfe\0garbage without an end"))]
#[case::half_an_event(stream_of(
    b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choi"
))]
#[case::no_end(stream_of(b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n"))]
#[case::not_json(stream_of(b"data: {not json}\n\ndata: [1,2\n\n"))]
#[case::a_chunk_too_long(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n".to_vec())]
#[case::a_bad_chunk(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n6\r\ndata: \r\nzz\r\n".to_vec())]
#[case::an_endless_head({ let mut v = b"HTTP/1.1 200 OK\r\n".to_vec(); for _ in 0..100_000 { v.extend_from_slice(b"x-a: b\r\n"); } v })]
#[tokio::test]
async fn what_an_engine_breaks_the_client_is_told(#[case] answer: Vec<u8>) {
    let (broken, asked) = scripted(answer).await;
    let gateway = gateway(broken).await;
    let ask = r#"{"model":"chat-model","stream":true,"messages":[]}"#;
    let head = format!("connection: close\r\ncontent-length: {}\r\n", ask.len());
    let got = raw(gateway.addr(), raw_request(&head, ask).as_bytes()).await;
    assert!(asked.load(Ordering::SeqCst) >= 1);
    assert!(status(&got) == 200 || status(&got) >= 500, "{got}");
    assert!(got.contains("\"error\":{") && got.contains("\"engine_failed\""), "{got}");
    // A sound engine beside it serves.
    let sound = Engine::start().await;
    gateway.set_routes(table(2, vec![endpoint("chat-2", "n1", sound.addr, None)]));
    still_serves(&gateway).await;
}
