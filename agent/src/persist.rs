//! The last route table on disk, so that an agent that restarts while the scheduler is away still routes.

use std::io::Write;
use std::path::{Path, PathBuf};

use plimsoll_fleet::RouteTable;
use serde::{Deserialize, Serialize};

/// File name within the state directory.
const FILE: &str = "routes.json";

/// A table that could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    /// The file system refused.
    #[error("cannot {action} {path}: {source}; check that the state directory exists and is writable")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a route table.
    #[error("{path} is not a route table ({source}); remove it, the scheduler will send a new one")]
    Format {
        /// File.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Kept {
    epoch: String,
    table: RouteTable,
}

/// Reads the kept table and its epoch; `None` if there is none.
///
/// # Errors
/// [`PersistError`] if the file exists but cannot be read.
pub fn load(dir: &Path) -> Result<Option<(RouteTable, String)>, PersistError> {
    let path = dir.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(PersistError::Io { action: "read", path, source }),
    };
    let kept: Kept =
        serde_json::from_slice(&bytes).map_err(|source| PersistError::Format { path, source })?;
    Ok(Some((kept.table, kept.epoch)))
}

/// Keeps a table: written beside the old one, synced, then renamed over it, so that a crash leaves one or the other.
///
/// # Errors
/// [`PersistError`] if the file cannot be written.
pub fn save(dir: &Path, table: &RouteTable, epoch: &str) -> Result<(), PersistError> {
    let path = dir.join(FILE);
    let fail = |action, path: &Path| {
        let path = path.to_owned();
        move |source| PersistError::Io { action, path, source }
    };
    std::fs::create_dir_all(dir).map_err(fail("create", dir))?;
    let text = serde_json::to_vec(&Kept { epoch: epoch.to_owned(), table: table.clone() })
        .map_err(|source| PersistError::Format { path: path.clone(), source })?;
    let temporary = dir.join(format!("{FILE}.new"));
    let mut file = std::fs::File::create(&temporary).map_err(fail("create", &temporary))?;
    file.write_all(&text).map_err(fail("write", &temporary))?;
    file.sync_all().map_err(fail("sync", &temporary))?;
    std::fs::rename(&temporary, &path).map_err(fail("rename onto", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_and_finds_again_and_says_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().is_none());
        let table = RouteTable { version: 7, plan: 3, ..RouteTable::default() };
        save(dir.path(), &table, "e1").unwrap();
        save(dir.path(), &table, "e2").unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some((table, "e2".to_owned())));
        std::fs::write(dir.path().join(FILE), "{\"epoch\": 3").unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains("is not a route table"));
    }
}
