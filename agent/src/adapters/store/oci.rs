//! Adapters in registries: artifacts with a layer for each file, whose title is the file's name (as ORAS makes them).
//!
//! The protocol is the OCI distribution specification's: a manifest by tag or digest, blobs by digest, a token for both.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use object_store::path::Path;
use serde::Deserialize;

use super::credentials::Credentials;
use super::error::StoreError;
use super::listing::{Listed, Listing, folder, needed};
use super::web::Web;

const TITLE: &str = "org.opencontainers.image.title";
const MANIFESTS: &str =
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Debug, Deserialize)]
struct Layer {
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Token {
    #[serde(alias = "access_token")]
    token: String,
}

/// Plain HTTP is for registries on this machine, as Docker has it.
fn scheme(registry: &str) -> &'static str {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let own = host == "localhost"
        || host == "[::1]"
        || host.parse().is_ok_and(|ip: std::net::Ipv4Addr| ip.is_loopback());
    if own { "http" } else { "https" }
}

/// Of `Bearer realm="…",service="…",scope="…"`.
fn parameter<'a>(challenge: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = challenge.split_once(&format!("{name}=\""))?;
    rest.split('"').next()
}

/// A query's value: what is not plain is escaped.
fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/,".contains(&b);
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

pub(super) async fn list(
    web: &Web,
    credentials: &Credentials,
    registry: &str,
    repository: &str,
    reference: &str,
) -> Result<Listing, StoreError> {
    // What Docker's own registry is called and where it is.
    let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
    let base = format!("{}://{host}/v2/{repository}", scheme(host));
    let url = format!("{base}/manifests/{reference}");
    let accept = || HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(MANIFESTS))]);
    let user = credentials.registry(registry);
    let mut session = web.session(host, user.clone());
    let (mut status, headers, mut text) = session.get(&url, accept()).await?;
    let challenge = headers.get(header::WWW_AUTHENTICATE).and_then(|v| v.to_str().ok());
    if status == StatusCode::UNAUTHORIZED
        && let Some(challenge) =
            challenge.filter(|c| c.get(..7).is_some_and(|begin| begin.eq_ignore_ascii_case("bearer ")))
    {
        let token = token(web, challenge, repository, user, registry).await?;
        session = web.session(host, Some(token));
        (status, _, text) = session.get(&url, accept()).await?;
    }
    StoreError::of_answer(status, registry, &format!("{repository} under {reference}"))?;
    if let Some(wanted) = reference.strip_prefix("sha256:") {
        let found = super::download::hex(ring::digest::digest(&ring::digest::SHA256, &text).as_ref());
        if found != wanted {
            let problem = format!("{registry} sent another manifest than the one of digest {reference}");
            return Err(StoreError::Unreachable { problem });
        }
    }
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|_| StoreError::Unreachable { problem: format!("{registry} sent no image manifest") })?;
    if !manifest.layers.is_empty() && manifest.layers.iter().all(|l| !l.annotations.contains_key(TITLE)) {
        let what = "its layers have no titles: it is no artifact with a layer for each file (make one with `oras push`)";
        return Err(StoreError::Missing { what: what.to_owned() });
    }
    let files =
        needed(|name| manifest.layers.iter().find(|l| l.annotations.get(TITLE).is_some_and(|t| t == name)))?
            .into_iter()
            .map(|(name, layer)| {
                let sha256 = layer
                    .digest
                    .strip_prefix("sha256:")
                    .filter(|d| d.len() == 64 && d.bytes().all(|b| b.is_ascii_hexdigit()));
                let sha256 = sha256.map(str::to_ascii_lowercase).ok_or_else(|| StoreError::Unreachable {
                    problem: format!("{registry} names {name} by another digest than SHA-256"),
                })?;
                Ok(Listed {
                    name,
                    location: Path::from(layer.digest.as_str()),
                    bytes: Some(layer.size),
                    sha256: Some(sha256),
                })
            })
            .collect::<Result<_, StoreError>>()?;
    Ok(Listing { store: folder(&format!("{base}/blobs"), session)?, files })
}

/// A token from whom a registry names.
async fn token(
    web: &Web,
    challenge: &str,
    repository: &str,
    user: Option<HeaderValue>,
    registry: &str,
) -> Result<HeaderValue, StoreError> {
    let unreadable = || StoreError::Unreachable {
        problem: format!("{registry} asks for a token and does not say how to get one"),
    };
    let realm = parameter(challenge, "realm").ok_or_else(unreadable)?;
    let uri: http::Uri = realm.parse().map_err(|_| unreadable())?;
    let authority = uri.authority().ok_or_else(unreadable)?;
    // A password goes over TLS, or nowhere but to this machine.
    let private = uri.scheme_str() == Some("https") || scheme(authority.as_str()) == "http";
    let scope =
        parameter(challenge, "scope").map_or_else(|| format!("repository:{repository}:pull"), str::to_owned);
    let mut url = format!("{realm}{}scope={}", if realm.contains('?') { '&' } else { '?' }, escaped(&scope));
    if let Some(service) = parameter(challenge, "service") {
        url = format!("{url}&service={}", escaped(service));
    }
    let session = web.session(authority.as_str(), user.filter(|_| private));
    let (status, _, text) = session.get(&url, HeaderMap::new()).await?;
    if !status.is_success() {
        return Err(StoreError::Denied {
            what: format!("{registry} gives no token for {repository} ({status})"),
        });
    }
    let token: Token = serde_json::from_slice(&text).map_err(|_| unreadable())?;
    HeaderValue::from_str(&format!("Bearer {}", token.token)).map_err(|_| unreadable())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let challenge =
            r#"Bearer realm="https://auth.acme/token",service="r.acme",scope="repository:a/b:pull""#;
        assert_eq!(parameter(challenge, "realm"), Some("https://auth.acme/token"));
        assert_eq!(parameter(challenge, "scope"), Some("repository:a/b:pull"));
        assert_eq!(parameter(challenge, "error"), None);
        assert_eq!(escaped("a b&c=d"), "a%20b%26c%3Dd");
    }

    #[test]
    fn only_this_machine_speaks_plain_http() {
        for (registry, wanted) in [
            ("localhost:5000", "http"),
            ("127.0.0.1:1", "http"),
            ("r.acme", "https"),
            ("10.0.0.1:5000", "https"),
        ] {
            assert_eq!(scheme(registry), wanted, "{registry}");
        }
    }
}
