//! The HTTP client.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use super::{ReplayEndpoint, ReplayError};

/// Largest model list read, bytes.
const MAX_MODELS_BYTES: usize = 4 << 20;
/// How long the model list may take.
const MODELS_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Where requests go.
#[derive(Clone)]
pub(crate) struct Target {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    generate: Uri,
    models: Uri,
    headers: HeaderMap,
}

impl Target {
    pub(crate) fn new(
        url: &str,
        endpoint: ReplayEndpoint,
        api_key: Option<&str>,
        more: &[(String, String)],
    ) -> Result<Self, ReplayError> {
        let invalid = |field, problem| ReplayError::Invalid { field, problem };
        let uri: Uri = url.parse().map_err(|e| {
            invalid("url", format!("{url:?}: {e}; give something like http://127.0.0.1:8080/v1"))
        })?;
        let secure = match (uri.scheme_str(), uri.authority()) {
            (Some("http"), Some(_)) => false,
            (Some("https"), Some(_)) => true,
            _ => {
                return Err(invalid(
                    "url",
                    format!("{url:?} is no http:// address; give something like http://127.0.0.1:8080/v1"),
                ));
            }
        };
        let base = url.trim_end_matches('/');
        let base = if uri.path() == "/" { format!("{base}/v1") } else { base.to_owned() };
        let path = match endpoint {
            ReplayEndpoint::Chat => "chat/completions",
            ReplayEndpoint::Completions => "completions",
        };
        let join = |path: &str| {
            format!("{base}/{path}").parse::<Uri>().map_err(|e| invalid("url", format!("{url:?}: {e}")))
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(key) = api_key {
            let value = HeaderValue::from_str(&format!("Bearer {key}"))
                .map_err(|_| invalid("api key", "has characters that a header cannot carry".to_owned()))?;
            headers.insert(header::AUTHORIZATION, value);
        }
        for (name, value) in more {
            let bad = |what| {
                invalid("headers", format!("{name:?}: the {what} has characters that a header cannot carry"))
            };
            let name = HeaderName::try_from(name.as_str()).map_err(|_| bad("name"))?;
            headers.append(name, HeaderValue::from_str(value).map_err(|_| bad("value"))?);
        }
        let client =
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1024).build(connector(secure)?);
        Ok(Self { client, generate: join(path)?, models: join("models")?, headers })
    }

    fn request(&self, method: Method, uri: &Uri, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }

    /// Sends a generation request.
    pub(crate) async fn generate(
        &self,
        body: Bytes,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        self.client.request(self.request(Method::POST, &self.generate, body)).await
    }

    /// The models that the endpoint lists.
    pub(crate) async fn models(&self, url: &str) -> Result<Listed, ReplayError> {
        let unreachable = |problem: String| ReplayError::Unreachable { url: url.to_owned(), problem };
        let request = self.request(Method::GET, &self.models, Bytes::new());
        let response = tokio::time::timeout(MODELS_TIMEOUT, self.client.request(request))
            .await
            .map_err(|_| unreachable(format!("no answer within {} s", MODELS_TIMEOUT.as_secs())))?
            .map_err(|e| unreachable(with_causes(&e)))?;
        if !response.status().is_success() {
            return Ok(Listed::Refused(response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), MAX_MODELS_BYTES).collect();
        let Ok(Ok(body)) = tokio::time::timeout(MODELS_TIMEOUT, body).await else {
            return Ok(Listed::Unreadable);
        };
        Ok(serde_json::from_slice::<Models>(&body.to_bytes())
            .map_or(Listed::Unreadable, |m| Listed::Models(m.data)))
    }

    /// Whether anything answers, and whether it lists the model. An endpoint without a model list is believed.
    pub(super) async fn check_model(&self, url: &str, model: &str) -> Result<(), ReplayError> {
        match self.models(url).await? {
            Listed::Refused(status) => {
                tracing::warn!(status, "the endpoint has no model list; going on without");
                Ok(())
            }
            Listed::Unreadable => Ok(()),
            Listed::Models(models) if models.iter().any(|m| m.id == model) => Ok(()),
            Listed::Models(models) => Err(unknown_model(url, model, &models)),
        }
    }
}

/// A model that an endpoint lists.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ListedModel {
    pub(crate) id: String,
    /// Longest request, tokens, where it is said (as vLLM does).
    pub(crate) max_model_len: Option<u32>,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<ListedModel>,
}

/// What an endpoint says of its models.
#[derive(Debug, Clone)]
pub(crate) enum Listed {
    Models(Vec<ListedModel>),
    /// It does not say: this status.
    Refused(u16),
    /// It says something else.
    Unreadable,
}

pub(crate) fn unknown_model(url: &str, model: &str, models: &[ListedModel]) -> ReplayError {
    let served: Vec<&str> = models.iter().map(|m| m.id.as_str()).take(20).collect();
    let served = if served.is_empty() { "none yet".to_owned() } else { served.join(", ") };
    ReplayError::UnknownModel { url: url.to_owned(), model: model.to_owned(), served }
}

/// A connector; certificates are those that the system trusts, read only where they are needed.
fn connector(secure: bool) -> Result<HttpsConnector<HttpConnector>, ReplayError> {
    let invalid = |problem: String| ReplayError::Invalid { field: "TLS", problem };
    let provider = rustls::crypto::ring::default_provider();
    let builder = if secure {
        HttpsConnectorBuilder::new().with_provider_and_native_roots(provider).map_err(|e| {
            invalid(format!("no certificates that the system trusts: {e}; install ca-certificates"))
        })?
    } else {
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| invalid(e.to_string()))?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        HttpsConnectorBuilder::new().with_tls_config(config)
    };
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    Ok(builder.https_or_http().enable_http1().wrap_connector(tcp))
}

/// An error and what caused it, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
