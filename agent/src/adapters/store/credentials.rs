//! What agents show to those who keep adapters: files of a Secret that is mounted, else the environment. Read at each download, so
//! that what is rotated counts at once; never shown in a log or an error.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use object_store::aws::AmazonS3Builder;
use serde_json::Value;

/// Files that hold S3's, and the names that its library knows them by.
const S3: [&str; 5] =
    ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL"];

/// Where credentials are.
#[derive(Clone, Default)]
pub struct Credentials {
    /// A folder with a file each: `HF_TOKEN`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`,
    /// `AWS_ENDPOINT_URL`, `.dockerconfigjson`, and `http-HOST` with a bearer token for a host.
    pub dir: Option<PathBuf>,
    /// Token for Hugging Face where the folder has none.
    pub hf_token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Credentials {
    fn file(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.dir.as_ref()?.join(name)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn bearer(token: &str) -> Option<HeaderValue> {
        HeaderValue::from_str(&format!("Bearer {token}")).ok()
    }

    /// Hugging Face's.
    pub(super) fn hugging_face(&self) -> Option<HeaderValue> {
        Self::bearer(&self.file("HF_TOKEN").or_else(|| self.hf_token.clone())?)
    }

    /// A web server's, by its name without the port.
    pub(super) fn http(&self, host: &str) -> Option<HeaderValue> {
        let named = !host.is_empty() && !host.contains(['/', '\\']) && !host.starts_with('.');
        Self::bearer(&self.file(&format!("http-{host}")).filter(|_| named)?)
    }

    /// A builder with S3's: the folder's, else those that the environment has.
    pub(super) fn s3(&self) -> AmazonS3Builder {
        let mut builder = AmazonS3Builder::from_env();
        for name in S3 {
            if let (Some(value), Ok(key)) = (self.file(name), name.to_ascii_lowercase().parse()) {
                builder = builder.with_config(key, value);
            }
        }
        builder
    }

    /// A registry's user and password, as Docker keeps them.
    pub(super) fn registry(&self, registry: &str) -> Option<HeaderValue> {
        let text = self.file(".dockerconfigjson").or_else(|| self.file("config.json"))?;
        let config: Value = serde_json::from_str(&text).ok()?;
        let entry = of_registry(&config, registry)?;
        let pair = match entry["auth"].as_str() {
            Some(auth) => auth.to_owned(),
            None => {
                STANDARD.encode(format!("{}:{}", entry["username"].as_str()?, entry["password"].as_str()?))
            }
        };
        HeaderValue::from_str(&format!("Basic {pair}")).ok()
    }
}

fn of_registry<'a>(config: &'a Value, registry: &str) -> Option<&'a Value> {
    let auths = config["auths"].as_object()?;
    let bare = |name: &str| {
        let name = name.trim_start_matches("https://").trim_start_matches("http://");
        name.split('/').next().unwrap_or_default().to_owned()
    };
    auths
        .get(registry)
        .or_else(|| auths.iter().find(|(name, _)| bare(name) == registry).map(|(_, entry)| entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_first_and_nothing_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let mut all = Credentials { dir: Some(dir.path().to_owned()), hf_token: Some("from-env".into()) };
        assert_eq!(all.hugging_face().unwrap(), "Bearer from-env");
        std::fs::write(dir.path().join("HF_TOKEN"), "hf_secret\n").unwrap();
        assert_eq!(all.hugging_face().unwrap(), "Bearer hf_secret");
        assert!(!format!("{all:?}").contains("from-env"));
        std::fs::write(dir.path().join("http-files.acme"), "t").unwrap();
        assert_eq!(all.http("files.acme").unwrap(), "Bearer t");
        assert!(all.http("../http-files.acme").is_none() && all.http("other").is_none());
        let docker = r#"{"auths": {"https://r.acme/v1/": {"username": "me", "password": "pw"}, "b": {"auth": "eDp5"}}}"#;
        std::fs::write(dir.path().join(".dockerconfigjson"), docker).unwrap();
        assert_eq!(all.registry("r.acme").unwrap(), "Basic bWU6cHc=");
        assert_eq!(all.registry("b").unwrap(), "Basic eDp5");
        assert!(all.registry("c").is_none());
        all.dir = None;
        assert!(all.registry("b").is_none());
    }
}
