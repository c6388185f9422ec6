//! TLS between gateways and agents, and towards clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../proto/tests/tls/certs.rs"]
mod certs;
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use certs::{AGENT, Authority};
use plimsoll_agent::{Agent, AgentConfig, AgentTls, Clients, StartError};
use plimsoll_proto::tls::{Mutual, Names, Public};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

const GATEWAY: &str = "plimsoll-gateway.plimsoll.svc";

/// Mutual TLS of a part with this name; agents must be [`AGENT`].
fn tls(authority: &Authority, name: &str, permissive: bool) -> AgentTls {
    let folder = authority.folder(name);
    let allowed = Names::new(&[GATEWAY.to_owned(), AGENT.to_owned()]).unwrap();
    let mutual = Mutual::open(folder.path(), &allowed, permissive).unwrap();
    let scheduler = mutual.client(Some("plimsoll-scheduler.plimsoll.svc")).unwrap();
    AgentTls { scheduler, agents: mutual.client(Some(AGENT)).unwrap(), mutual }
}

/// The node's agent as the chart runs it: for peers alone.
fn strict(config: &mut AgentConfig, authority: &Authority) {
    config.tls = Some(tls(authority, AGENT, false));
    config.clients = Clients::Peers;
}

#[tokio::test]
async fn a_gateway_reaches_engines_through_an_agent_that_takes_nobody_else() {
    let ours = Authority::new("ours");
    let engine = Engine::start().await;
    let n1 = agent("n1", Some("n1"), |c| strict(c, &ours)).await;
    let endpoints = vec![endpoint("chat-1", "n1", engine.addr, Some(n1.addr()))];
    n1.set_routes(table(1, endpoints.clone()));
    let gateway = agent("gw", None, |c| c.tls = Some(tls(&ours, GATEWAY, false))).await;
    gateway.set_routes(table(1, endpoints.clone()));
    for stream in [true, false] {
        let got = send(chat(gateway.addr(), stream)).await;
        assert_eq!((got.status, got.header("x-plimsoll-replica")), (200, "chat-1"), "{}", got.text);
    }
    assert_eq!(engine.requests(), 2);
    // It was the agent that sent them on: it knows how much its engine has to do.
    assert!(!engine.state.last_headers.lock().contains_key("x-plimsoll-hop"));

    let hop = |addr| {
        let mut request = chat(addr, false);
        request.headers_mut().insert("x-plimsoll-hop", "replica=chat-1;prompt=1;stream=0".parse().unwrap());
        request
    };
    for (request, word) in
        [(chat(n1.addr(), false), "send the request to a gateway"), (hop(n1.addr()), "certificate")]
    {
        let got = send(request).await;
        assert_eq!(
            (got.status, got.json()["error"]["code"].as_str()),
            (403, Some("wrong_door")),
            "{}",
            got.text
        );
        assert!(got.message().contains(word), "{}", got.text);
    }
    // Nor does a gateway take what only agents may say.
    let got = send(hop(gateway.addr())).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (403, Some("wrong_door")), "{}", got.text);
    assert_eq!(engine.requests(), 2, "nobody got past");
    // Probes have no certificates.
    for path in ["/healthz", "/readyz"] {
        let probe =
            http::Request::get(format!("http://{}{path}", n1.addr())).body(Default::default()).unwrap();
        assert_eq!(send(probe).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn without_trust_nothing_is_sent_not_even_around_the_agent() {
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let engine = Engine::start().await;
    let old = agent("n1", Some("n1"), |_| {}).await;
    let other = agent("n1", Some("n1"), |c| strict(c, &foreign)).await;
    let nameless = agent("n1", Some("n1"), |c| c.tls = Some(tls(&ours, "engine.plimsoll.svc", false))).await;
    for (n1, word) in
        [(old.addr(), "no TLS"), (other.addr(), "UnknownIssuer"), (nameless.addr(), "plimsoll-agent")]
    {
        let gateway = agent("gw", None, |c| c.tls = Some(tls(&ours, GATEWAY, false))).await;
        gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, Some(n1))]));
        let got = send(chat(gateway.addr(), true)).await;
        assert_eq!(got.status, 502, "{}", got.text);
        assert!(got.message().contains(word), "{}", got.text);
    }
    assert_eq!(engine.requests(), 0, "it was asked without TLS");
}

#[tokio::test]
async fn an_engine_whose_agent_is_gone_is_asked_directly_unless_that_is_refused() {
    let ours = Authority::new("ours");
    let engine = Engine::start().await;
    let gone: SocketAddr = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    for (directly, status) in [(true, 200), (false, 503)] {
        let gateway = agent("gw", None, |c| {
            c.tls = Some(tls(&ours, GATEWAY, false));
            c.limits.ask_engines_directly = directly;
        })
        .await;
        gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, Some(gone))]));
        let got = send(chat(gateway.addr(), true)).await;
        assert_eq!(got.status, status, "{}", got.text);
    }
    assert_eq!(engine.requests(), 1);
}

#[tokio::test]
async fn while_it_is_upgraded_parts_with_and_without_tls_serve_each_other() {
    let ours = Authority::new("ours");
    let engine = Engine::start().await;
    let old_agent = agent("n1", Some("n1"), |_| {}).await;
    let new_agent = agent("n1", Some("n1"), |c| c.tls = Some(tls(&ours, AGENT, true))).await;
    let strict_agent = agent("n1", Some("n1"), |c| strict(c, &ours)).await;
    let permissive = Some(tls(&ours, GATEWAY, true));
    for (what, gateway_tls, n1) in [
        ("an old gateway, a new agent", None, &new_agent),
        ("a new gateway, an old agent", permissive.clone(), &old_agent),
        ("both new", permissive.clone(), &new_agent),
        ("a gateway of before, a strict agent", permissive, &strict_agent),
        ("a strict gateway, an agent of before", Some(tls(&ours, GATEWAY, false)), &new_agent),
    ] {
        let endpoints = vec![endpoint("chat-1", "n1", engine.addr, Some(n1.addr()))];
        n1.set_routes(table(1, endpoints.clone()));
        let gateway = agent("gw", None, |c| {
            c.tls = gateway_tls;
            // Only what comes through the agent counts here.
            c.limits.ask_engines_directly = false;
        })
        .await;
        gateway.set_routes(table(1, endpoints));
        for stream in [true, false] {
            let got = send(chat(gateway.addr(), stream)).await;
            assert_eq!(got.status, 200, "{what}: {}", got.text);
        }
    }
    assert_eq!(engine.requests(), 10);
}

#[tokio::test]
async fn a_gateway_with_a_certificate_of_its_own_serves_https_and_nothing_else() {
    let (public, ours) = (Authority::new("public"), Authority::new("ours"));
    let engine = Engine::start().await;
    let n1 = agent("n1", Some("n1"), |c| strict(c, &ours)).await;
    let endpoints = vec![endpoint("chat-1", "n1", engine.addr, Some(n1.addr()))];
    n1.set_routes(table(1, endpoints.clone()));
    let certificate = public.folder("chat.example");
    let gateway = agent("gw", None, |c| {
        c.tls = Some(tls(&ours, GATEWAY, false));
        c.public = Some(Public::open(certificate.path()).unwrap());
    })
    .await;
    gateway.set_routes(table(1, endpoints));
    let answer = https(&public, "chat.example", gateway.addr(), "").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"choices\""), "{answer}");
    // A client is no peer, whatever it says.
    let answer =
        https(&public, "chat.example", gateway.addr(), "x-plimsoll-hop: replica=chat-1;prompt=1\r\n")
            .await
            .unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(https(&ours, "chat.example", gateway.addr(), "").await.is_err());
    let got = send(chat(gateway.addr(), true)).await;
    assert_eq!(got.status, 403, "{}", got.text);
    assert!(got.message().contains("use https"), "{}", got.text);
    let probe =
        http::Request::get(format!("http://{}/healthz", gateway.addr())).body(Default::default()).unwrap();
    assert_eq!(send(probe).await.status, 200);
    assert_eq!(engine.requests(), 1);
}

/// A chat over HTTPS, as a client that shows no certificate sends it: the answer as it comes.
async fn https(authority: &Authority, name: &str, addr: SocketAddr, header: &str) -> std::io::Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let tcp = TcpStream::connect(addr).await?;
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let body = r#"{"model": "chat-model", "messages": [{"role": "user", "content": "hello"}]}"#;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: chat.example\r\nconnection: close\r\ncontent-length: {}\r\n{header}\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn what_is_under_way_over_tls_is_finished_at_shutdown() {
    let ours = Authority::new("ours");
    let engine = Engine::start().await;
    *engine.state.pause.lock() = Duration::from_millis(100);
    let n1 = agent("n1", Some("n1"), |c| strict(c, &ours)).await;
    let endpoints = vec![endpoint("chat-1", "n1", engine.addr, Some(n1.addr()))];
    n1.set_routes(table(1, endpoints.clone()));
    let gateway = agent("gw", None, |c| c.tls = Some(tls(&ours, GATEWAY, false))).await;
    gateway.set_routes(table(1, endpoints));
    // Whoever has connected and says nothing does not hold it up.
    let _silent = TcpStream::connect(n1.addr()).await.unwrap();
    let asked = tokio::spawn(send(chat(gateway.addr(), true)));
    until("the engine answers", || engine.requests() == 1).await;
    n1.stop();
    let got = asked.await.unwrap();
    assert_eq!((got.status, got.content().as_str()), (200, "t0 t1 t2 "), "{}", got.text);
    tokio::time::timeout(Duration::from_secs(5), n1.join()).await.expect("it has stopped");
    assert_eq!(engine.requests(), 1, "asked once");
}

#[tokio::test]
async fn an_agent_for_peers_needs_a_certificate_to_know_them_by() {
    let config = AgentConfig { clients: Clients::Peers, ..AgentConfig::new("n1") };
    let started = Agent::start(config, CancellationToken::new()).await;
    assert!(matches!(started, Err(StartError::NoCertificate)));
}

#[tokio::test]
async fn a_picker_speaks_tls_where_its_gateway_does() {
    use plimsoll_proto::health::HealthCheckRequest;
    use plimsoll_proto::health::health_client::HealthClient;
    let ours = Authority::new("ours");
    let name = "llm.example.com";
    let folder = ours.folder(name);
    let gateway = agent("gw", None, |c| {
        c.public = Some(Public::open(folder.path()).unwrap());
        c.picker_listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let url = format!("http://{}", gateway.picker_addr().unwrap());
    let client = tls(&ours, GATEWAY, false).mutual.client(Some(name)).unwrap();
    let endpoint = plimsoll_proto::tls::endpoint(&url, Some(&client)).unwrap();
    let channel = plimsoll_proto::tls::connect(&endpoint, Some(&client)).await.unwrap();
    let ask = || HealthCheckRequest { service: "liveness".into() };
    HealthClient::new(channel).check(ask()).await.unwrap();
    let plain = HealthClient::connect(url).await;
    let refused = match plain {
        Ok(mut plain) => plain.check(ask()).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "without TLS nobody is answered");

    let mut config = AgentConfig::new("n1");
    config.tls = Some(tls(&ours, AGENT, false));
    config.clients = Clients::Peers;
    config.picker_listen = Some(([127, 0, 0, 1], 0).into());
    let refused = Agent::start(config, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(refused, StartError::PickerForPeers), "{refused}");
}
