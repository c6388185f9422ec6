//! What connections and streams cost in memory. One test, in a process of its own: others would be measured with it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::net::SocketAddr;

use plimsoll_agent::AgentHandle;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded() {
    an_event_without_end_passes_in_bounded_memory().await;
    thousands_of_idle_connections_cost_little_and_disturb_nobody().await;
}

async fn gateway(engine: SocketAddr) -> AgentHandle {
    let gateway = agent("gw", None, |_| {}).await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine, None)]));
    gateway
}

/// An engine that answers every request with these bytes, and closes.
async fn scripted(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0u8; 65536];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(&answer).await;
        }
    });
    address
}

/// Resident memory of this process, bytes.
fn resident() -> usize {
    let pages: usize =
        std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

async fn thousands_of_idle_connections_cost_little_and_disturb_nobody() {
    // Both ends are in this process: as many as its descriptors allow, at most 10,000.
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let open = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
    let open: usize = open.split_whitespace().nth(3).unwrap().parse().unwrap_or(1024);
    let count = (open.saturating_sub(300) / 2).min(10_000);
    println!("{count} idle connections, with {open} descriptors");
    let engine = Engine::start().await;
    let gateway = gateway(engine.addr).await;
    still_serves(&gateway).await;
    let before = resident();
    let mut idle = Vec::with_capacity(count);
    for _ in 0..count {
        idle.push(TcpStream::connect(gateway.addr()).await.unwrap());
    }
    // All of them are accepted once a later one is answered.
    for _ in 0..10 {
        still_serves(&gateway).await;
    }
    let each = resident().saturating_sub(before) / count.max(1);
    assert!(each < 32 << 10, "{each} bytes a connection");
    // An idle one still works.
    let mut one = idle.pop().unwrap();
    one.write_all(raw_request(&format!("content-length: {}\r\n", BODY.len()), BODY).as_bytes())
        .await
        .unwrap();
    let mut buffer = [0u8; 12];
    one.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"HTTP/1.1 200");
}

async fn an_event_without_end_passes_in_bounded_memory() {
    let mut body =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: ".to_vec();
    body.resize(24 << 20, b'x');
    body.extend_from_slice(b"\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n");
    let engine = scripted(body).await;
    let gateway = gateway(engine).await;
    let mut stream = TcpStream::connect(gateway.addr()).await.unwrap();
    let ask = r#"{"model":"chat-model","stream":true,"messages":[]}"#;
    let head = format!("connection: close\r\ncontent-length: {}\r\n", ask.len());
    stream.write_all(raw_request(&head, ask).as_bytes()).await.unwrap();
    let (mut most, mut length, before) = (0, 0, resident());
    let mut buffer = vec![0u8; 64 << 10];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        length += n;
        most = most.max(resident().saturating_sub(before));
    }
    assert!(length > 20 << 20, "it passed: {length}");
    assert!(most < 16 << 20, "{most} bytes more while it did");
}
