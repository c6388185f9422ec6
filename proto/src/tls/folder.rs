//! A folder of PEM files whose contents may change while it is in use.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::credentials::Credentials;
use super::error::TlsError;

/// So long before a certificate ends it is spoken of.
const SPEAK_BEFORE: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How often.
const SPEAK_EVERY: Duration = Duration::from_secs(6 * 3600);

/// What the files of a folder hold.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents {
    dir: PathBuf,
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Contents {
    /// Reads the files with these names.
    ///
    /// # Errors
    /// [`TlsError::Read`] names the one that can't be.
    pub fn read(dir: &Path, names: &[&'static str]) -> Result<Self, TlsError> {
        let mut files = BTreeMap::new();
        for name in names {
            let file = dir.join(name);
            let bytes = std::fs::read(&file).map_err(|source| TlsError::Read { file, source })?;
            files.insert(*name, bytes);
        }
        Ok(Self { dir: dir.to_owned(), files })
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What a file holds; nothing, if it was not read.
    pub fn of(&self, name: &str) -> &[u8] {
        self.files.get(name).map_or(&[], Vec::as_slice)
    }
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what they hold: keys are among them.
        f.debug_struct("Contents").field("dir", &self.dir).finish_non_exhaustive()
    }
}

type Parse<T> = dyn Fn(&Contents, Timestamp) -> Result<T, TlsError> + Send + Sync;

struct Inner<T> {
    dir: PathBuf,
    names: &'static [&'static str],
    parse: Box<Parse<T>>,
    current: ArcSwap<T>,
    /// What was read last, whether or not it could be used: a broken change is spoken of once.
    seen: Mutex<Option<Contents>>,
}

/// Credentials from a folder, replaced when its files change.
pub struct Folder<T>(Arc<Inner<T>>);

impl<T> Clone for Folder<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Folder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Folder").field(&self.0.dir).finish()
    }
}

impl<T: Credentials> Folder<T> {
    /// Reads the files with these names, and makes of them what `parse` does.
    ///
    /// # Errors
    /// [`TlsError`] if they can't be used as they are.
    pub fn open(
        dir: &Path,
        names: &'static [&'static str],
        parse: impl Fn(&Contents, Timestamp) -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let contents = Contents::read(dir, names)?;
        let first = parse(&contents, Timestamp::now())?;
        Ok(Self(Arc::new(Inner {
            dir: dir.to_owned(),
            names,
            parse: Box::new(parse),
            current: ArcSwap::from_pointee(first),
            seen: Mutex::new(Some(contents)),
        })))
    }

    /// What connections made now should use.
    pub fn current(&self) -> Arc<T> {
        self.0.current.load_full()
    }

    /// Reads the files again; whether they had changed. A change that can't be used changes nothing, and is an error once.
    ///
    /// # Errors
    /// [`TlsError`] if what has changed can't be used.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let inner = &*self.0;
        let contents = match Contents::read(&inner.dir, inner.names) {
            Ok(contents) => contents,
            // Gone once, it is spoken of once.
            Err(error) => return if inner.seen.lock().take().is_some() { Err(error) } else { Ok(false) },
        };
        {
            let mut seen = inner.seen.lock();
            if seen.as_ref() == Some(&contents) {
                return Ok(false);
            }
            *seen = Some(contents.clone());
        }
        let next = (inner.parse)(&contents, Timestamp::now())?;
        inner.current.store(Arc::new(next));
        Ok(true)
    }

    /// Keeps what it holds current until `stop`, and warns while a certificate comes to its end.
    pub async fn watch(self, every: Duration, stop: CancellationToken) {
        let mut spoken: Option<tokio::time::Instant> = None;
        loop {
            let ends_at = self.current().ends_at();
            let near = Timestamp::now() + SPEAK_BEFORE > ends_at;
            if near && spoken.is_none_or(|at| at.elapsed() >= SPEAK_EVERY) {
                spoken = Some(tokio::time::Instant::now());
                tracing::warn!(dir = %self.0.dir.display(), %ends_at, "the certificate ends soon: have it renewed");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            // A few small files, often on a memory disk: no reason for another thread, but a disk may hang all the same.
            let folder = self.clone();
            match tokio::task::spawn_blocking(move || folder.reload()).await {
                Ok(Ok(true)) => {
                    spoken = None;
                    let ends_at = self.current().ends_at();
                    tracing::info!(dir = %self.0.dir.display(), %ends_at, "new connections use the new certificate");
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the changed certificate is not used, the one before is")
                }
                Err(error) => tracing::warn!(%error, "the certificate was not looked at"),
            }
        }
    }
}
