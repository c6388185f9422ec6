//! Why an adapter's files are not at hand.

use std::io;
use std::path::PathBuf;

use http::StatusCode;

use super::check::BadFiles;
use super::disk::NoRoom;
use super::source::BadSource;
use super::web::WebError;

/// Why an adapter's files are not at hand, for people. No text of it holds a credential.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The source cannot be read.
    #[error(transparent)]
    Source(#[from] BadSource),
    /// The files are none that engines can load.
    #[error(transparent)]
    Files(#[from] BadFiles),
    /// The cache is full of what is in use.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The source does not have it.
    #[error("{what}; correct spec.source")]
    Missing {
        /// What is not there.
        what: String,
    },
    /// The weights are a Python pickle.
    #[error(
        "it has adapter_model.bin only, which is a program when it is read; save it as adapter_model.safetensors"
    )]
    Pickled,
    /// The source keeps it from this agent.
    #[error(
        "{what}: it does not exist, or the agents' credentials may not read it; correct spec.source, or the Secret of credentials"
    )]
    Denied {
        /// Who said so.
        what: String,
    },
    /// The source does not answer, or not as it should.
    #[error("{problem}; it is tried again")]
    Unreachable {
        /// What happened.
        problem: String,
    },
    /// A host that adapters may not come from.
    #[error("{0}")]
    Host(String),
    /// What came is not what the source said it would be.
    #[error("{file} came damaged: {problem}; it is tried again")]
    Damaged {
        /// Which file.
        file: &'static str,
        /// How.
        problem: String,
    },
    /// It took too long.
    #[error("it did not come within {seconds} s; what has come is kept, and the rest is asked for again")]
    TooLate {
        /// How long that was.
        seconds: u64,
    },
    /// Too many wait already.
    #[error("{waiting} downloads wait on this node already; it is tried again")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// The file system refused.
    #[error("cannot {action} {path}: {problem}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not, and what to do.
        problem: String,
    },
    /// Nothing that is copied.
    #[error("it is on a volume of the engine's, and is not downloaded")]
    NotFetched,
}

impl StoreError {
    /// Whether it would happen again until somebody changes something.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Source(_) | Self::Files(_) | Self::Missing { .. } | Self::Pickled | Self::Denied { .. } => {
                true
            }
            Self::Host(_) | Self::NotFetched => true,
            Self::NoRoom(_) | Self::Unreachable { .. } | Self::Damaged { .. } | Self::TooLate { .. } => false,
            Self::Busy { .. } | Self::Io { .. } => false,
        }
    }

    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| {
            let problem = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "the disk is full; make room on the node, or allow the adapter cache less".to_owned()
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    "it is not allowed; let the agent write to the adapter cache".to_owned()
                }
                _ => error.to_string(),
            };
            Self::Io { action, path, problem }
        }
    }

    /// What the status of an answer says: `who` was asked for `what`.
    pub(super) fn of_answer(status: StatusCode, who: &str, what: &str) -> Result<(), Self> {
        match status {
            StatusCode::OK => Ok(()),
            // Some say so of what does not exist, too.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Self::Denied { what: format!("{who} answered {status} for {what}") })
            }
            StatusCode::NOT_FOUND => Err(Self::Missing { what: format!("{who} has no {what}") }),
            status => Err(Self::Unreachable { problem: format!("{who} answered {status} for {what}") }),
        }
    }

    /// What a store says, without what it repeats of the request.
    pub(super) fn from_store(error: &object_store::Error) -> Self {
        use object_store::Error as E;
        match error {
            E::NotFound { path, .. } => Self::Missing { what: format!("the source has no {path}") },
            E::PermissionDenied { path, .. } | E::Unauthenticated { path, .. } => {
                Self::Denied { what: format!("the source refuses {path}") }
            }
            other => {
                let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(other);
                while let Some(error) = cause {
                    if let Some(web) = error.downcast_ref::<WebError>() {
                        return Self::from_web(web);
                    }
                    cause = error.source();
                }
                Self::Unreachable { problem: other.to_string().chars().take(300).collect() }
            }
        }
    }

    fn from_web(error: &WebError) -> Self {
        match error {
            WebError::Host { .. } => Self::Host(error.to_string()),
            other => Self::Unreachable { problem: other.to_string() },
        }
    }
}

impl From<WebError> for StoreError {
    fn from(error: WebError) -> Self {
        Self::from_web(&error)
    }
}
