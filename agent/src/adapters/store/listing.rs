//! Which files an adapter has at its source, and where each is.

use std::sync::Arc;

use futures::TryStreamExt;
use http::{HeaderMap, HeaderValue, Uri};
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use serde::Deserialize;

use super::check::{CONFIG, WEIGHTS};
use super::credentials::Credentials;
use super::error::StoreError;
use super::oci;
use super::source::Source;
use super::web::{Session, Web};

/// Embeddings that an adapter adds; few have them.
const EMBEDDINGS: &str = "new_embeddings.safetensors";
/// Weights that are programs when they are read.
const PICKLED: &str = "adapter_model.bin";

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// Its name in the adapter's folder.
    pub(super) name: &'static str,
    pub(super) location: Path,
    /// As the source says.
    pub(super) bytes: Option<u64>,
    /// In lower-case hexadecimals, as the source says.
    pub(super) sha256: Option<String>,
}

/// An adapter's files.
#[derive(Debug, Clone)]
pub(super) struct Listing {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) files: Vec<Listed>,
}

/// Of what a source has, by name, what an adapter needs.
///
/// # Errors
/// [`StoreError::Missing`] with what is not there.
pub(super) fn needed<T>(
    mut find: impl FnMut(&str) -> Option<T>,
) -> Result<Vec<(&'static str, T)>, StoreError> {
    let mut all = Vec::new();
    for name in [CONFIG, WEIGHTS] {
        match find(name) {
            Some(found) => all.push((name, found)),
            None if name == WEIGHTS && find(PICKLED).is_some() => return Err(StoreError::Pickled),
            None => return Err(StoreError::Missing { what: format!("it has no {name}") }),
        }
    }
    all.extend(find(EMBEDDINGS).map(|found| (EMBEDDINGS, found)));
    Ok(all)
}

pub(super) fn retries() -> RetryConfig {
    RetryConfig {
        max_retries: 3,
        retry_timeout: std::time::Duration::from_secs(60),
        ..RetryConfig::default()
    }
}

/// A folder on a web server, through `session`.
pub(super) fn folder(url: &str, session: Session) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let options = ClientOptions::new().with_allow_http(true);
    let store = HttpBuilder::new()
        .with_url(url)
        .with_client_options(options)
        .with_retry(retries())
        .with_http_connector(session)
        .build()
        .map_err(|e| StoreError::from_store(&e))?;
    Ok(Arc::new(store))
}

/// Asks a source for an adapter's files.
pub(super) async fn list(
    web: &Web,
    credentials: &Credentials,
    hf_endpoint: &str,
    source: &Source,
) -> Result<Listing, StoreError> {
    match source {
        Source::HuggingFace { repository, revision, folder } => {
            hugging_face(web, credentials, hf_endpoint, repository, revision, folder).await
        }
        Source::S3 { bucket, prefix } => s3(web, credentials, bucket, prefix).await,
        Source::Http { folder: url } => {
            let uri: Uri = url
                .parse()
                .map_err(|_| StoreError::Missing { what: "its address is not valid".to_owned() })?;
            let shown = credentials
                .http(uri.host().unwrap_or_default())
                .filter(|_| uri.scheme_str() == Some("https"));
            let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
            // A web server lists nothing: its files have the names that PEFT gives them.
            let file = |name| Listed { name, location: Path::from(name), bytes: None, sha256: None };
            let store = folder(url, web.session(&authority, shown))?;
            Ok(Listing { store, files: vec![file(CONFIG), file(WEIGHTS)] })
        }
        Source::Oci { registry, repository, reference } => {
            oci::list(web, credentials, registry, repository, reference).await
        }
        Source::Claim { .. } | Source::File { .. } => Err(StoreError::NotFetched),
    }
}

#[derive(Debug, Deserialize)]
struct Repository {
    /// The commit that the revision stands for.
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Large>,
}

#[derive(Debug, Deserialize)]
struct Large {
    sha256: Option<String>,
    size: Option<u64>,
}

async fn hugging_face(
    web: &Web,
    credentials: &Credentials,
    endpoint: &str,
    repository: &str,
    revision: &str,
    sub: &str,
) -> Result<Listing, StoreError> {
    let endpoint = endpoint.trim_end_matches('/');
    let authority =
        endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).split('/').next().unwrap_or_default();
    let session = web.session(authority, credentials.hugging_face());
    let url =
        format!("{endpoint}/api/models/{repository}/revision/{}?blobs=true", revision.replace('/', "%2F"));
    let json = (http::header::ACCEPT, HeaderValue::from_static("application/json"));
    let (status, _, text) = session.get(&url, HeaderMap::from_iter([json])).await?;
    StoreError::of_answer(status, "Hugging Face", &format!("{repository} at revision {revision}"))?;
    let found: Repository = serde_json::from_slice(&text).map_err(|_| StoreError::Unreachable {
        problem: "Hugging Face's answer is no list of files".to_owned(),
    })?;
    let prefix = if sub.is_empty() { String::new() } else { format!("{sub}/") };
    let commit = found.sha.filter(|sha| !sha.is_empty() && sha.bytes().all(|b| b.is_ascii_alphanumeric()));
    let at = commit.unwrap_or_else(|| revision.to_owned());
    let files = needed(|name| found.siblings.iter().find(|s| s.rfilename == format!("{prefix}{name}")))?
        .into_iter()
        .map(|(name, sibling)| {
            let lfs = sibling.lfs.as_ref();
            Listed {
                name,
                location: Path::from(format!("{prefix}{name}")),
                bytes: lfs.and_then(|l| l.size).or(sibling.size),
                sha256: lfs.and_then(|l| l.sha256.clone()),
            }
        })
        .collect();
    let store = folder(&format!("{endpoint}/{repository}/resolve/{}", at.replace('/', "%2F")), session)?;
    Ok(Listing { store, files })
}

async fn s3(web: &Web, credentials: &Credentials, bucket: &str, prefix: &str) -> Result<Listing, StoreError> {
    let builder = credentials.s3();
    // Plain HTTP only where the operator wrote it into the endpoint.
    let store = builder
        .with_bucket_name(bucket)
        .with_allow_http(true)
        .with_retry(retries())
        .with_http_connector(web.signed())
        .build()
        .map_err(|e| StoreError::from_store(&e))?;
    let prefix = Path::from(prefix);
    let objects: Vec<_> =
        store.list(Some(&prefix)).try_collect().await.map_err(|e| StoreError::from_store(&e))?;
    let files = needed(|name| {
        let location = if prefix.as_ref().is_empty() { Path::from(name) } else { prefix.clone().join(name) };
        objects.iter().find(|o| o.location == location).cloned()
    })?
    .into_iter()
    .map(|(name, object)| Listed { name, location: object.location, bytes: Some(object.size), sha256: None })
    .collect();
    Ok(Listing { store: Arc::new(store), files })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_needs_settings_and_weights_that_are_no_program() {
        let of = |names: &'static [&'static str]| {
            needed(|name| names.contains(&name).then_some(()))
                .map(|all| all.into_iter().map(|(n, ())| n).collect::<Vec<_>>())
        };
        assert_eq!(of(&[WEIGHTS, "README.md", CONFIG]).unwrap(), [CONFIG, WEIGHTS]);
        assert_eq!(of(&[WEIGHTS, EMBEDDINGS, CONFIG]).unwrap(), [CONFIG, WEIGHTS, EMBEDDINGS]);
        assert!(of(&[CONFIG]).unwrap_err().to_string().contains(WEIGHTS));
        assert!(of(&[WEIGHTS]).unwrap_err().to_string().contains(CONFIG));
        assert!(of(&[CONFIG, PICKLED]).unwrap_err().to_string().contains("safetensors"));
    }
}
