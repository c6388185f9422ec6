//! HTTP to where adapters are: one client for object stores, Hugging Face and registries.
//!
//! It follows redirects, shows a credential to the host that it is for alone, goes only to hosts that it may, and keeps what a server
//! says against a request to itself: that may hold what was sent.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// For the head of an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Redirects that are followed.
const MOST_REDIRECTS: usize = 5;
/// Longest document (a list, a manifest, a token), bytes.
const LONGEST_DOCUMENT: usize = 8 << 20;

/// Why nothing came of a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum WebError {
    #[error("{host} cannot be reached: {problem}")]
    Unreachable { host: String, problem: String },
    #[error("{host} did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Silent { host: String },
    #[error(
        "{host} is no host that adapters may come from; have the operator add it to the agents' --adapter-host"
    )]
    Host { host: String },
    #[error("{host} redirects without end, or to where nobody may follow")]
    Redirects { host: String },
    #[error("{host} answered with more than {LONGEST_DOCUMENT} bytes, or broke off")]
    TooLong { host: String },
}

/// Hosts that adapters may come from: these names, and with `*.` before it any name under one. Empty: any, but those that only answer
/// on this machine's own link, where clouds keep credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts(pub Vec<String>);

impl Hosts {
    /// Whether a host (without its port) is one of them.
    pub fn allow(&self, host: &str) -> bool {
        let host =
            host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        if self.0.is_empty() {
            let own_link = match host.parse::<IpAddr>() {
                Ok(IpAddr::V4(ip)) => ip.is_link_local(),
                Ok(IpAddr::V6(ip)) => {
                    ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some_and(|v4| v4.is_link_local())
                }
                Err(_) => host == "metadata.google.internal" || host == "metadata",
            };
            return !own_link;
        }
        self.0.iter().any(|allowed| match allowed.strip_prefix("*.") {
            Some(parent) => host.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.')),
            None => host == *allowed,
        })
    }
}

/// The client.
#[derive(Debug, Clone)]
pub(super) struct Web {
    client: Client<HttpsConnector<HttpConnector>, HttpRequestBody>,
    hosts: Hosts,
}

impl Web {
    pub(super) fn new(hosts: Hosts) -> Result<Self, String> {
        let ring = || std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let builder = match HttpsConnectorBuilder::new().with_provider_and_native_roots(ring()) {
            Ok(builder) => builder,
            // An image without a shell has no certificates either.
            Err(_) => HttpsConnectorBuilder::new()
                .with_provider_and_webpki_roots(ring())
                .map_err(|e| format!("TLS cannot be set up: {e}"))?,
        };
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT_WITHIN));
        http.set_nodelay(true);
        let https = builder.https_or_http().enable_http1().wrap_connector(http);
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(https), hosts })
    }

    /// Requests that show `authorization` to `host` alone.
    pub(super) fn session(&self, host: &str, authorization: Option<HeaderValue>) -> Session {
        let shown = authorization.map(|mut value| {
            value.set_sensitive(true);
            (host.to_owned(), value)
        });
        Session { web: self.clone(), shown, free: false }
    }

    /// Requests of a library that signs them, and asks for credentials where clouds keep them.
    pub(super) fn signed(&self) -> Session {
        Session { web: self.clone(), shown: None, free: true }
    }
}

/// Requests with the credential of one host.
#[derive(Debug, Clone)]
pub(super) struct Session {
    web: Web,
    shown: Option<(String, HeaderValue)>,
    /// Whoever made the requests chose the hosts; nobody is redirected.
    free: bool,
}

/// Where a redirect leads, if somebody who asked for `from` may follow it.
fn redirected(from: &Uri, location: &HeaderValue) -> Option<Uri> {
    let to = location.to_str().ok()?;
    let uri: Uri = if to.starts_with('/') && !to.starts_with("//") {
        format!("{}://{}{to}", from.scheme_str()?, from.authority()?).parse().ok()?
    } else {
        to.parse().ok()?
    };
    let secure = uri.scheme_str() == Some("https") || from.scheme_str() == Some("http");
    (secure && uri.host().is_some()).then_some(uri)
}

impl Session {
    async fn exchange(
        &self,
        request: HttpRequest,
    ) -> Result<http::Response<hyper::body::Incoming>, WebError> {
        let (parts, body) = request.into_parts();
        let (method, headers, mut uri) = (parts.method, parts.headers, parts.uri);
        let mut body = Some(body);
        for _ in 0..=MOST_REDIRECTS {
            let host = uri.host().unwrap_or_default().to_owned();
            if !self.free && !self.web.hosts.allow(&host) {
                return Err(WebError::Host { host });
            }
            let mut request = Request::new(body.take().unwrap_or_else(HttpRequestBody::empty));
            *request.method_mut() = method.clone();
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = headers.clone();
            if let Some((_, value)) =
                self.shown.as_ref().filter(|(to, _)| Some(to.as_str()) == authority(&uri))
            {
                request.headers_mut().insert(header::AUTHORIZATION, value.clone());
            }
            let answer = tokio::time::timeout(ANSWER_WITHIN, self.web.client.request(request)).await;
            let answer = answer
                .map_err(|_| WebError::Silent { host: host.clone() })?
                .map_err(|e| WebError::Unreachable { host: host.clone(), problem: causes(&e) })?;
            let follows = !self.free && (method == Method::GET || method == Method::HEAD);
            let location = answer
                .headers()
                .get(header::LOCATION)
                .filter(|_| follows && answer.status().is_redirection());
            let Some(location) = location else { return Ok(answer) };
            uri = redirected(&uri, location).ok_or(WebError::Redirects { host })?;
        }
        Err(WebError::Redirects { host: uri.host().unwrap_or_default().to_owned() })
    }

    /// A document: its status, headers and bytes.
    pub(super) async fn get(
        &self,
        uri: &str,
        headers: HeaderMap,
    ) -> Result<(StatusCode, HeaderMap, Bytes), WebError> {
        let whose = |uri: &Uri| uri.host().unwrap_or_default().to_owned();
        let uri: Uri = uri.parse().map_err(|_| WebError::Unreachable {
            host: "the host".to_owned(),
            problem: "it has no valid address".to_owned(),
        })?;
        let mut request = Request::new(HttpRequestBody::empty());
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers;
        let (head, body) = self.exchange(request).await?.into_parts();
        let whole = tokio::time::timeout(ANSWER_WITHIN, Limited::new(body, LONGEST_DOCUMENT).collect()).await;
        match whole {
            Err(_) => Err(WebError::Silent { host: whose(&uri) }),
            Ok(Err(_)) => Err(WebError::TooLong { host: whose(&uri) }),
            Ok(Ok(body)) => Ok((head.status, head.headers, body.to_bytes())),
        }
    }
}

fn authority(uri: &Uri) -> Option<&str> {
    uri.authority().map(http::uri::Authority::as_str)
}

/// An error and what is behind it, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[async_trait::async_trait]
impl HttpService for Session {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = self.exchange(request).await.map_err(|e| {
            let kind = match &e {
                WebError::Unreachable { .. } => HttpErrorKind::Connect,
                WebError::Silent { .. } => HttpErrorKind::Timeout,
                WebError::Host { .. } | WebError::Redirects { .. } | WebError::TooLong { .. } => {
                    HttpErrorKind::Unknown
                }
            };
            HttpError::new(kind, e)
        })?;
        let (mut head, body) = answer.into_parts();
        if !head.status.is_success() {
            // Said against a signed request, it repeats what was signed.
            head.headers.remove(header::CONTENT_LENGTH);
            let none = Empty::new().map_err(|never: std::convert::Infallible| match never {});
            return Ok(HttpResponse::from_parts(head, HttpResponseBody::new(none)));
        }
        let body = body.map_err(|e| HttpError::new(HttpErrorKind::Interrupted, e));
        Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)))
    }
}

impl object_store::client::HttpConnector for Session {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&[], "huggingface.co", true)]
    #[case(&[], "127.0.0.1", true)]
    #[case(&[], "169.254.169.254", false)]
    #[case(&[], "[fe80::1]", false)]
    #[case(&[], "[::ffff:169.254.169.254]", false)]
    #[case(&[], "Metadata.google.internal.", false)]
    #[case(&["hf.co"], "hf.co", true)]
    #[case(&["hf.co"], "cdn.hf.co", false)]
    #[case(&["*.hf.co"], "cdn.hf.co", true)]
    #[case(&["*.hf.co"], "hf.co", false)]
    #[case(&["*.hf.co"], "evilhf.co", false)]
    #[case(&["169.254.169.254"], "169.254.169.254", true)]
    fn hosts_are_those_that_were_named(#[case] hosts: &[&str], #[case] host: &str, #[case] allowed: bool) {
        let hosts = Hosts(hosts.iter().map(|h| (*h).to_owned()).collect());
        assert_eq!(hosts.allow(host), allowed);
    }

    #[rstest]
    #[case("https://a/x", "/y?z=1", Some("https://a/y?z=1"))]
    #[case("https://a/x", "https://b/y", Some("https://b/y"))]
    #[case("http://a/x", "https://b/y", Some("https://b/y"))]
    #[case("https://a/x", "http://b/y", None)]
    #[case("https://a/x", "//b/y", None)]
    #[case("https://a/x", "y", None)]
    fn redirects_never_leave_tls(#[case] from: &str, #[case] location: &str, #[case] to: Option<&str>) {
        let location = HeaderValue::from_str(location).unwrap();
        assert_eq!(redirected(&from.parse().unwrap(), &location).map(|u| u.to_string()).as_deref(), to);
    }
}
