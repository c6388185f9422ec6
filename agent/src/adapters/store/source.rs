//! Where an adapter's files are, as its resource says. Pure.

use std::path::PathBuf;

/// Revision of a Hugging Face repository whose source names none.
const MAIN: &str = "main";

/// A source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `hf://org/repo[@revision][/folder]`.
    HuggingFace {
        /// `org/repo`.
        repository: String,
        /// Branch, tag or commit.
        revision: String,
        /// Folder in the repository; empty: its root.
        folder: String,
    },
    /// `s3://bucket/prefix`.
    S3 {
        /// Bucket.
        bucket: String,
        /// Prefix, without a slash at its ends.
        prefix: String,
    },
    /// `https://host/folder` or `http://host/folder`, with the files under the names that PEFT gives them.
    Http {
        /// The folder, without a slash at its end.
        folder: String,
    },
    /// `oci://registry/repository[:tag|@digest]`: an artifact with one layer a file, titled.
    Oci {
        /// `host[:port]`.
        registry: String,
        /// Repository.
        repository: String,
        /// Tag or digest.
        reference: String,
    },
    /// `pvc://claim/path`: mounted into engines.
    Claim {
        /// Claim.
        claim: String,
        /// Path in it, without a slash at its ends.
        path: String,
    },
    /// `file:///path`: a folder that engines see.
    File {
        /// The folder.
        path: PathBuf,
    },
}

/// A source that cannot be read. Its text never holds the source: that may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("spec.source {problem}; {remedy}")]
pub struct BadSource {
    problem: &'static str,
    remedy: &'static str,
}

const FORMS: &str = "use hf://org/repo, s3://bucket/path, oci://registry/repo:tag, https://host/folder, pvc://claim/path or \
                     file:///folder";

impl Source {
    /// Reads a source.
    ///
    /// # Errors
    /// [`BadSource`] if it is none, or says more than where files are.
    pub fn parse(text: &str) -> Result<Self, BadSource> {
        let bad = |problem, remedy| Err(BadSource { problem, remedy });
        let Some((scheme, rest)) = text.split_once("://") else { return bad("has no scheme", FORMS) };
        if rest.contains(['?', '#']) || rest.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return bad(
                "has a query, a fragment or white space",
                "name a folder; credentials come from a Secret",
            );
        }
        let host = rest.split('/').next().unwrap_or_default();
        let names_a_user = scheme.starts_with("http") || scheme == "oci" || scheme == "s3";
        if names_a_user && host.contains('@') && rest.contains('/') {
            return bad("has a user or a password", "leave them out: credentials come from a Secret");
        }
        let path = rest.trim_matches('/');
        if path.split('/').any(|part| part == ".." || part == ".") {
            return bad("has `.` or `..` in its path", "name the folder itself");
        }
        match scheme {
            "hf" => {
                let mut parts = path.splitn(3, '/');
                let (Some(org), Some(repo)) = (parts.next(), parts.next().filter(|r| !r.is_empty())) else {
                    return bad("names no repository", "use hf://org/repo or hf://org/repo@revision/folder");
                };
                let (repo, revision) = repo.split_once('@').unwrap_or((repo, MAIN));
                if org.is_empty() || repo.is_empty() || revision.is_empty() {
                    return bad("names no repository", "use hf://org/repo or hf://org/repo@revision/folder");
                }
                Ok(Self::HuggingFace {
                    repository: format!("{org}/{repo}"),
                    revision: revision.to_owned(),
                    folder: parts.next().unwrap_or_default().trim_matches('/').to_owned(),
                })
            }
            "s3" => {
                let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
                if bucket.is_empty() {
                    return bad("names no bucket", "use s3://bucket/path");
                }
                Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned() })
            }
            "http" | "https" if !host.is_empty() => {
                Ok(Self::Http { folder: format!("{scheme}://{}", rest.trim_end_matches('/')) })
            }
            "oci" => {
                let Some((registry, image)) =
                    path.split_once('/').filter(|(r, i)| !r.is_empty() && !i.is_empty())
                else {
                    return bad("names no registry and repository", "use oci://registry/repo:tag");
                };
                let (repository, reference) = match image.split_once('@') {
                    Some(both) => both,
                    None => image.rsplit_once(':').unwrap_or((image, "latest")),
                };
                if repository.is_empty() || reference.is_empty() {
                    return bad("names no registry and repository", "use oci://registry/repo:tag");
                }
                Ok(Self::Oci {
                    registry: registry.to_owned(),
                    repository: repository.to_owned(),
                    reference: reference.to_owned(),
                })
            }
            "pvc" => {
                let (claim, path) = path.split_once('/').unwrap_or((path, ""));
                if claim.is_empty() {
                    return bad("names no claim", "use pvc://claim/path");
                }
                Ok(Self::Claim { claim: claim.to_owned(), path: path.trim_matches('/').to_owned() })
            }
            "file" if rest.starts_with('/') => Ok(Self::File { path: PathBuf::from(format!("/{path}")) }),
            _ => bad("is of no kind that is known", FORMS),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn hf(repository: &str, revision: &str, folder: &str) -> Source {
        Source::HuggingFace {
            repository: repository.into(),
            revision: revision.into(),
            folder: folder.into(),
        }
    }

    fn oci(registry: &str, repository: &str, reference: &str) -> Source {
        Source::Oci { registry: registry.into(), repository: repository.into(), reference: reference.into() }
    }

    #[rstest]
    #[case("hf://acme/law", hf("acme/law", "main", ""))]
    #[case("hf://acme/law@v2/a/b/", hf("acme/law", "v2", "a/b"))]
    #[case("s3://bucket", Source::S3 { bucket: "bucket".into(), prefix: String::new() })]
    #[case("s3://bucket/a/b/", Source::S3 { bucket: "bucket".into(), prefix: "a/b".into() })]
    #[case("https://host:8443/a/b/", Source::Http { folder: "https://host:8443/a/b".into() })]
    #[case("oci://host:5000/acme/law", oci("host:5000", "acme/law", "latest"))]
    #[case("oci://host/acme/law:v1", oci("host", "acme/law", "v1"))]
    #[case("oci://host/acme/law@sha256:ab", oci("host", "acme/law", "sha256:ab"))]
    #[case("pvc://claim/a/b", Source::Claim { claim: "claim".into(), path: "a/b".into() })]
    #[case("file:///models/law/", Source::File { path: "/models/law".into() })]
    fn sources_are_read(#[case] text: &str, #[case] source: Source) {
        assert_eq!(Source::parse(text), Ok(source));
    }

    #[rstest]
    #[case("law", "no scheme")]
    #[case("hf://acme", "no repository")]
    #[case("hf://acme/@v1", "no repository")]
    #[case("s3://", "no bucket")]
    #[case("oci://host", "no registry")]
    #[case("ftp://host/x", "no kind")]
    #[case("file://etc", "no kind")]
    #[case("pvc://claim/../other", "`..`")]
    #[case("https://host/x?sig=hunter2", "query")]
    #[case("https://me:hunter2@host/x", "password")]
    fn what_is_none_says_what_to_write(#[case] text: &str, #[case] problem: &str) {
        let error = Source::parse(text).unwrap_err().to_string();
        assert!(error.contains(problem) && !error.contains("hunter2"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[ -~é]{0,40}") { let _ = Source::parse(&text); }
    }
}
