//! Mutual TLS over real connections: who is served, who is not, and certificates that change meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod certs;
mod folders;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use certs::{AGENT, Authority, SCHEDULER};
use plimsoll_proto::tls::{self, ClientTls, Mutual, Names};
use plimsoll_proto::v1::ExplainRequest;
use plimsoll_proto::v1::plan_service_client::PlanServiceClient;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::codegen::{Service, http};
use tonic::transport::server::TcpIncoming;

/// A gRPC server that answers every call alike.
#[derive(Clone)]
struct Answers;

impl Service<http::Request<tonic::body::Body>> for Answers {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<tonic::body::Body>) -> Self::Future {
        ready(Ok(tonic::Status::failed_precondition("reached").into_http()))
    }
}

async fn serve(mutual: Option<&Mutual>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder();
    match mutual {
        Some(mutual) => {
            let incoming = tls::incoming(listener, mutual.server(), mutual.permissive());
            tokio::spawn(async move { server.serve_with_incoming(Answers, incoming).await });
        }
        None => {
            tokio::spawn(
                async move { server.serve_with_incoming(Answers, TcpIncoming::from(listener)).await },
            );
        }
    }
    addr
}

/// Calls a server by a connection of its own: `Ok` if it has answered.
async fn call(addr: SocketAddr, tls: Option<&ClientTls>) -> Result<(), String> {
    let endpoint = tls::endpoint(&format!("http://{addr}"), tls).unwrap();
    let channel = tls::connect(&endpoint, tls).await.map_err(|e| causes(&e))?;
    let said = PlanServiceClient::new(channel).explain(ExplainRequest::default()).await.unwrap_err();
    if said.message() == "reached" { Ok(()) } else { Err(causes(&said)) }
}

fn causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn open(dir: &tempfile::TempDir) -> Mutual {
    Mutual::open(dir.path(), &Names::default(), false).unwrap()
}

fn to_scheduler(mutual: &Mutual) -> ClientTls {
    mutual.client(Some(SCHEDULER)).unwrap()
}

#[tokio::test]
async fn a_peer_is_served_and_whoever_is_none_is_not() {
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let server =
        Mutual::open(ours.folder(SCHEDULER).path(), &Names::new(&[AGENT.to_owned()]).unwrap(), false)
            .unwrap();
    let addr = serve(Some(&server)).await;

    let agent = open(&ours.folder(AGENT));
    assert_eq!(call(addr, Some(&to_scheduler(&agent))).await, Ok(()));

    // The server is not who is asked for.
    let other = agent.client(Some("other.plimsoll.svc")).unwrap();
    let refused = call(addr, Some(&other)).await.unwrap_err();
    assert!(refused.contains("TLS handshake failed") && refused.contains("other.plimsoll.svc"), "{refused}");
    let by_address = call(addr, Some(&agent.client(None).unwrap())).await.unwrap_err();
    assert!(by_address.contains("127.0.0.1"), "{by_address}");

    // A certificate of the authority, but of nobody who has business here.
    let engine = open(&ours.folder("engine.plimsoll.svc"));
    assert!(call(addr, Some(&to_scheduler(&engine))).await.is_err());

    // One of another authority: each side refuses by itself.
    let stranger = foreign.folder(AGENT);
    assert!(call(addr, Some(&to_scheduler(&open(&stranger)))).await.unwrap_err().contains("UnknownIssuer"));
    let both = format!("{}{}", ours.pem(), foreign.pem());
    std::fs::write(stranger.path().join("ca.crt"), both).unwrap();
    assert!(call(addr, Some(&to_scheduler(&open(&stranger)))).await.is_err(), "a foreign client was served");

    assert!(call(addr, None).await.is_err(), "a client without TLS was served");
    assert!(without_certificate(addr, &ours).await.is_err(), "a client without certificate was served");
}

/// TLS as any client speaks it, but without a certificate; `Ok` if the server lets it speak.
async fn without_certificate(addr: SocketAddr, authority: &Authority) -> std::io::Result<()> {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(addr).await?;
    let name = ServerName::try_from(SCHEDULER).unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    // HTTP/2 servers begin with their settings.
    let mut first = [0_u8; 9];
    stream.read_exact(&mut first).await.map(drop)
}

#[tokio::test]
async fn a_silent_client_keeps_nobody_waiting() {
    let ours = Authority::new("ours");
    let addr = serve(Some(&open(&ours.folder(SCHEDULER)))).await;
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(TcpStream::connect(addr).await.unwrap());
    }
    let agent = open(&ours.folder(AGENT));
    let called = tokio::time::timeout(Duration::from_secs(5), call(addr, Some(&to_scheduler(&agent)))).await;
    assert_eq!(called.unwrap(), Ok(()));
}

#[tokio::test]
async fn renewed_certificates_and_a_new_authority_are_taken_up_without_a_restart() {
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let dir = before.folder(SCHEDULER);
    let server = open(&dir);
    let stop = CancellationToken::new();
    let watching = server.keep_current(Duration::from_millis(20), stop.clone());
    let addr = serve(Some(&server)).await;
    let (old, new) = (open(&before.folder(AGENT)), open(&after.folder(AGENT)));
    assert_eq!(call(addr, Some(&to_scheduler(&old))).await, Ok(()));
    assert!(call(addr, Some(&to_scheduler(&new))).await.is_err());
    // A connection that is there goes on.
    let endpoint = tls::endpoint(&format!("https://{addr}"), Some(&to_scheduler(&old))).unwrap();
    let standing = tls::connect(&endpoint, Some(&to_scheduler(&old))).await.unwrap();
    let mut standing = PlanServiceClient::new(standing);
    assert_eq!(standing.explain(ExplainRequest::default()).await.unwrap_err().message(), "reached");

    // Broken in between, as while somebody copies files one by one: the one before stays.
    std::fs::write(dir.path().join("tls.key"), "half a key").unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(call(addr, Some(&to_scheduler(&old))).await, Ok(()));

    after.fill(dir.path(), SCHEDULER);
    let mut taken_up = Err(String::new());
    for _ in 0..200 {
        taken_up = call(addr, Some(&to_scheduler(&new))).await;
        if taken_up.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(taken_up, Ok(()), "the new certificate was not taken up");
    assert!(call(addr, Some(&to_scheduler(&old))).await.is_err(), "the old authority is still trusted");
    assert_eq!(standing.explain(ExplainRequest::default()).await.unwrap_err().message(), "reached");
    stop.cancel();
    watching.await.unwrap();
}

#[tokio::test]
async fn a_permissive_part_speaks_with_parts_that_know_no_tls_and_a_strict_one_does_not() {
    let ours = Authority::new("ours");
    let permissive = |name: &str| Mutual::open(ours.folder(name).path(), &Names::default(), true).unwrap();
    let server = permissive(SCHEDULER);
    let addr = serve(Some(&server)).await;
    assert_eq!(call(addr, None).await, Ok(()), "before it was upgraded");
    assert_eq!(call(addr, Some(&to_scheduler(&open(&ours.folder(AGENT))))).await, Ok(()), "upgraded");
    // Whoever speaks TLS must still prove who it is.
    let stranger = open(&Authority::new("foreign").folder(AGENT));
    assert!(call(addr, Some(&to_scheduler(&stranger))).await.is_err());
    assert!(without_certificate(addr, &ours).await.is_err());

    let old = serve(None).await;
    assert_eq!(call(old, Some(&to_scheduler(&permissive(AGENT)))).await, Ok(()));
    assert!(call(old, Some(&to_scheduler(&open(&ours.folder(AGENT))))).await.is_err());
    // It falls back where there is no TLS, not where there is another's.
    let other = Authority::new("other");
    let addr = serve(Some(&open(&other.folder(SCHEDULER)))).await;
    let refused = call(addr, Some(&to_scheduler(&permissive(AGENT)))).await.unwrap_err();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
}

#[test]
fn addresses_with_tls_need_certificates() {
    let refused = tls::endpoint("https://scheduler:9090", None).unwrap_err().to_string();
    assert!(refused.contains("https://scheduler:9090") && refused.contains("certificates"), "{refused}");
    let tls = to_scheduler(&open(&Authority::new("ours").folder(AGENT)));
    for url in ["https://scheduler:9090", "http://scheduler:9090"] {
        let endpoint = tls::endpoint(url, Some(&tls)).unwrap();
        assert_eq!(endpoint.uri().to_string(), "http://scheduler:9090/");
    }
}
