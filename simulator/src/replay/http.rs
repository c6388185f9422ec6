//! The HTTP client.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use super::{ReplayConfig, ReplayEndpoint, ReplayError};

/// Largest model list read, bytes.
const MAX_MODELS_BYTES: usize = 4 << 20;
/// How long the model list may take.
const MODELS_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Where requests go.
#[derive(Clone)]
pub(super) struct Target {
    client: Client<HttpConnector, Full<Bytes>>,
    generate: Uri,
    models: Uri,
    headers: HeaderMap,
}

impl Target {
    pub(super) fn new(config: &ReplayConfig) -> Result<Self, ReplayError> {
        let invalid = |field, problem| ReplayError::Invalid { field, problem };
        let uri: Uri = config.url.parse().map_err(|e| {
            invalid("url", format!("{:?}: {e}; give something like http://127.0.0.1:8080/v1", config.url))
        })?;
        match (uri.scheme_str(), uri.authority()) {
            (Some("http"), Some(_)) => {}
            (Some("https"), _) => {
                return Err(invalid(
                    "url",
                    format!(
                        "{}: replay speaks plain HTTP; give the address behind the TLS proxy",
                        config.url
                    ),
                ));
            }
            _ => {
                return Err(invalid(
                    "url",
                    format!(
                        "{:?} is no http:// address; give something like http://127.0.0.1:8080/v1",
                        config.url
                    ),
                ));
            }
        }
        let base = config.url.trim_end_matches('/');
        let base = if uri.path() == "/" { format!("{base}/v1") } else { base.to_owned() };
        let path = match config.endpoint {
            ReplayEndpoint::Chat => "chat/completions",
            ReplayEndpoint::Completions => "completions",
        };
        let join = |path: &str| {
            format!("{base}/{path}")
                .parse::<Uri>()
                .map_err(|e| invalid("url", format!("{:?}: {e}", config.url)))
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(key) = &config.api_key {
            let value = HeaderValue::from_str(&format!("Bearer {key}"))
                .map_err(|_| invalid("api key", "has characters that a header cannot carry".to_owned()))?;
            headers.insert(header::AUTHORIZATION, value);
        }
        for (name, value) in &config.headers {
            let bad = |what| {
                invalid("headers", format!("{name:?}: the {what} has characters that a header cannot carry"))
            };
            let name = HeaderName::try_from(name.as_str()).map_err(|_| bad("name"))?;
            headers.append(name, HeaderValue::from_str(value).map_err(|_| bad("value"))?);
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1024).build(connector);
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
    pub(super) async fn generate(
        &self,
        body: Bytes,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        self.client.request(self.request(Method::POST, &self.generate, body)).await
    }

    /// Whether anything answers, and whether it lists the model. An endpoint without a model list is believed.
    pub(super) async fn check_model(&self, url: &str, model: &str) -> Result<(), ReplayError> {
        #[derive(Deserialize)]
        struct Model {
            id: String,
        }
        #[derive(Deserialize)]
        struct Models {
            data: Vec<Model>,
        }
        let unreachable = |problem: String| ReplayError::Unreachable { url: url.to_owned(), problem };
        let request = self.request(Method::GET, &self.models, Bytes::new());
        let response = tokio::time::timeout(MODELS_TIMEOUT, self.client.request(request))
            .await
            .map_err(|_| unreachable(format!("no answer within {} s", MODELS_TIMEOUT.as_secs())))?
            .map_err(|e| unreachable(with_causes(&e)))?;
        if !response.status().is_success() {
            tracing::warn!(status = %response.status(), "the endpoint has no model list; going on without");
            return Ok(());
        }
        let body = Limited::new(response.into_body(), MAX_MODELS_BYTES).collect();
        let Ok(Ok(body)) = tokio::time::timeout(MODELS_TIMEOUT, body).await else { return Ok(()) };
        let Ok(models) = serde_json::from_slice::<Models>(&body.to_bytes()) else { return Ok(()) };
        if models.data.iter().any(|m| m.id == model) {
            return Ok(());
        }
        let mut served: Vec<&str> = models.data.iter().map(|m| m.id.as_str()).collect();
        served.truncate(20);
        let served = if served.is_empty() { "none yet".to_owned() } else { served.join(", ") };
        Err(ReplayError::UnknownModel { url: url.to_owned(), model: model.to_owned(), served })
    }
}

/// An error and what caused it, in one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
