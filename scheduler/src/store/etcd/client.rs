//! Calls to etcd: one endpoint after the other until one answers, within a time, with a user's token if there is one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use plimsoll_proto::etcd::auth_client::AuthClient;
use plimsoll_proto::etcd::kv_client::KvClient;
use plimsoll_proto::etcd::lease_client::LeaseClient;
use plimsoll_proto::etcd::{
    AuthenticateRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, RangeRequest,
    RangeResponse, TxnRequest, TxnResponse,
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::EtcdConfig;
use crate::store::StoreError;

/// Most bytes of an answer.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// Wall time to connect to one endpoint.
const CONNECT: Duration = Duration::from_secs(2);

struct Member {
    name: String,
    channel: Channel,
}

/// A client of one etcd cluster. Cloning shares it.
#[derive(Clone)]
pub struct Client {
    members: Arc<[Member]>,
    /// The member that answered last.
    current: Arc<AtomicUsize>,
    user: Option<(String, String)>,
    token: Arc<Mutex<Option<String>>>,
    timeout: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("members", &self.names()).finish_non_exhaustive()
    }
}

fn invalid(what: &'static str, problem: impl std::fmt::Display) -> StoreError {
    StoreError::EtcdConfig { what, problem: problem.to_string() }
}

fn read(what: &'static str, path: &std::path::Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|e| invalid(what, format!("{}: {e}", path.display())))
}

impl Client {
    /// A client that connects when it is first used. Reads certificates.
    ///
    /// # Errors
    /// [`StoreError::EtcdConfig`] if an endpoint is no URL or a certificate cannot be read.
    pub fn new(config: &EtcdConfig) -> Result<Self, StoreError> {
        if config.endpoints.is_empty() {
            return Err(invalid("--etcd", "it names no endpoint; use http://HOST:2379"));
        }
        let mut tls = None;
        if config.endpoints.iter().any(|e| e.starts_with("https://")) {
            let mut with = ClientTlsConfig::new();
            if let Some(path) = &config.ca {
                with = with.ca_certificate(Certificate::from_pem(read("--etcd-ca", path)?));
            }
            match (&config.cert, &config.key) {
                (Some(cert), Some(key)) => {
                    let (cert, key) = (read("--etcd-cert", cert)?, read("--etcd-key", key)?);
                    with = with.identity(Identity::from_pem(cert, key));
                }
                (None, None) => {}
                _ => {
                    return Err(invalid(
                        "--etcd-cert",
                        "it comes with --etcd-key, and either alone is no use",
                    ));
                }
            }
            tls = Some(with);
        }
        let mut members = Vec::new();
        for url in &config.endpoints {
            let mut endpoint = Endpoint::from_shared(url.clone())
                .ok()
                .filter(|e| {
                    e.uri().host().is_some() && matches!(e.uri().scheme_str(), Some("http" | "https"))
                })
                .ok_or_else(|| {
                    invalid("--etcd", format!("{url:?} is no URL; use http://HOST:2379 or https://HOST:2379"))
                })?
                .connect_timeout(CONNECT)
                .tcp_nodelay(true)
                // A member that has vanished without a word is noticed.
                .http2_keep_alive_interval(Duration::from_secs(5))
                .keep_alive_timeout(Duration::from_secs(3))
                .keep_alive_while_idle(true);
            if let Some(tls) = tls.clone().filter(|_| url.starts_with("https://")) {
                endpoint = endpoint
                    .tls_config(tls)
                    .map_err(|e| invalid("--etcd-ca, --etcd-cert or --etcd-key", chain(&e)))?;
            }
            members.push(Member { name: url.clone(), channel: endpoint.connect_lazy() });
        }
        Ok(Self {
            members: members.into(),
            current: Arc::default(),
            user: config.user.clone(),
            token: Arc::default(),
            timeout: config.timeout,
        })
    }

    fn names(&self) -> String {
        self.members.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(",")
    }

    fn failed(&self, action: &'static str, status: &Status) -> StoreError {
        let problem = match std::error::Error::source(status) {
            Some(source) => format!("{}: {}", status.message(), chain(source)),
            None => status.message().to_owned(),
        };
        let problem = if problem.is_empty() { status.code().to_string() } else { problem };
        StoreError::Etcd { endpoints: self.names(), action, problem }
    }

    /// Asks members until one answers. With `again` also after a call whose fate is unknown, so only for what may happen
    /// twice.
    async fn call<T, F>(
        &self,
        action: &'static str,
        again: bool,
        send: impl Fn(Channel, Option<String>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let first = self.current.load(Ordering::Relaxed);
        let mut last = Status::unavailable("no member answered");
        let mut renewed = false;
        let mut tried = 0;
        while tried < self.members.len() {
            let at = (first + tried) % self.members.len();
            let channel = self.members[at].channel.clone();
            let one = async {
                let token = self.token(&channel).await?;
                send(channel.clone(), token).await
            };
            let answer = tokio::time::timeout(self.timeout, one).await.unwrap_or_else(|_| {
                Err(Status::deadline_exceeded(format!("no answer within {:?}", self.timeout)))
            });
            match answer {
                Ok(value) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(value);
                }
                // Tokens end; a new one is as good.
                Err(status) if status.code() == Code::Unauthenticated && self.user.is_some() && !renewed => {
                    renewed = true;
                    *self.token.lock() = None;
                    last = status;
                }
                Err(status)
                    if matches!(
                        status.code(),
                        Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled
                    ) =>
                {
                    last = status;
                    tried += 1;
                    self.current.store((at + 1) % self.members.len(), Ordering::Relaxed);
                    if !again {
                        break;
                    }
                }
                Err(status) => return Err(self.failed(action, &status)),
            }
        }
        Err(self.failed(action, &last))
    }

    async fn token(&self, channel: &Channel) -> Result<Option<String>, Status> {
        let Some((name, password)) = &self.user else { return Ok(None) };
        if let Some(token) = self.token.lock().clone() {
            return Ok(Some(token));
        }
        let request = AuthenticateRequest { name: name.clone(), password: password.clone() };
        let token = AuthClient::new(channel.clone()).authenticate(request).await?.into_inner().token;
        *self.token.lock() = Some(token.clone());
        Ok(Some(token))
    }

    /// Reads keys.
    ///
    /// # Errors
    /// [`StoreError::Etcd`] if no member answers.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.call("read from", true, |channel, token| {
            let request = authorized(request.clone(), token);
            async move {
                let mut kv = KvClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
                Ok(kv.range(request?).await?.into_inner())
            }
        })
        .await
    }

    /// Runs a transaction. `again`: whether it may be sent again when its fate is unknown.
    ///
    /// # Errors
    /// [`StoreError::Etcd`] if no member answers; it may have been carried out all the same.
    pub async fn txn(&self, request: TxnRequest, again: bool) -> Result<TxnResponse, StoreError> {
        self.call("write to", again, |channel, token| {
            let request = authorized(request.clone(), token);
            async move {
                let mut kv = KvClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
                Ok(kv.txn(request?).await?.into_inner())
            }
        })
        .await
    }

    /// A new lease of so many seconds; gives its name.
    ///
    /// # Errors
    /// [`StoreError::Etcd`] if no member answers.
    pub async fn grant(&self, seconds: u64) -> Result<i64, StoreError> {
        let ttl = i64::try_from(seconds).unwrap_or(i64::MAX);
        self.call("take a lease from", true, |channel, token| {
            let request = authorized(LeaseGrantRequest { ttl, id: 0 }, token);
            async move { Ok(LeaseClient::new(channel).lease_grant(request?).await?.into_inner().id) }
        })
        .await
    }

    /// Renews a lease once; gives the seconds it then has, 0 if it is gone.
    ///
    /// # Errors
    /// [`StoreError::Etcd`] if no member answers.
    pub async fn renew(&self, lease: i64) -> Result<u64, StoreError> {
        self.call("renew a lease at", true, |channel, token| {
            let request = authorized(tokio_stream::once(LeaseKeepAliveRequest { id: lease }), token);
            async move {
                let mut answers = LeaseClient::new(channel).lease_keep_alive(request?).await?.into_inner();
                let answer = answers.message().await?;
                let answer = answer.ok_or_else(|| Status::unavailable("the stream of leases ended"))?;
                Ok(u64::try_from(answer.ttl).unwrap_or(0))
            }
        })
        .await
    }

    /// Ends a lease, and what goes with it.
    ///
    /// # Errors
    /// [`StoreError::Etcd`] if no member answers; the lease then ends by itself.
    pub async fn revoke(&self, lease: i64) -> Result<(), StoreError> {
        self.call("end a lease at", true, |channel, token| {
            let request = authorized(LeaseRevokeRequest { id: lease }, token);
            async move {
                match LeaseClient::new(channel).lease_revoke(request?).await {
                    Err(status) if status.code() != Code::NotFound => Err(status),
                    _ => Ok(()),
                }
            }
        })
        .await
    }
}

fn authorized<T>(message: T, token: Option<String>) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let token = token.parse().map_err(|_| Status::internal("etcd's token is not text"))?;
        request.metadata_mut().insert("token", token);
    }
    Ok(request)
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
