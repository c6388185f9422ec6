//! `DIR/endpoints.json`: where a running local system answers.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Addresses of a running local system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Endpoints {
    /// Kubernetes API, `http://host:port`.
    pub kubernetes: String,
    /// Path of the kubeconfig.
    pub kubeconfig: PathBuf,
    /// OpenAI API, `http://host:port/v1`.
    pub openai: Option<String>,
    /// Fleet view and metrics, `http://host:port`.
    pub view: Option<String>,
    /// Scheduler's gRPC, `http://host:port`.
    pub scheduler: Option<String>,
    /// Process that wrote this.
    pub pid: u32,
}

const FILE: &str = "endpoints.json";

impl Endpoints {
    /// Reads them; `None` if nothing is (readably) there.
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join(FILE)).ok()?).ok()
    }

    /// Writes them so that a reader sees all or nothing.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), Failure> {
        let path = dir.join(FILE);
        let fail = |e: std::io::Error| Failure::caused(format!("failed to write {}", path.display()), e);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| Failure::caused(format!("failed to write {}", path.display()), e))?;
        let draft = dir.join(format!("{FILE}.new"));
        std::fs::write(&draft, text).map_err(fail)?;
        std::fs::rename(&draft, &path).map_err(fail)
    }

    /// Removes the file, if it is still this process's.
    pub fn remove(&self, dir: &Path) {
        if Self::read(dir).is_some_and(|e| e.pid == self.pid) {
            let _ = std::fs::remove_file(dir.join(FILE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_writer_removes() {
        let dir = tempfile::tempdir().unwrap();
        let mine = Endpoints { pid: 1, kubernetes: "http://x".into(), ..Endpoints::default() };
        mine.write(dir.path()).unwrap();
        assert_eq!(Endpoints::read(dir.path()), Some(mine.clone()));
        Endpoints { pid: 2, ..mine.clone() }.remove(dir.path());
        assert!(Endpoints::read(dir.path()).is_some());
        mine.remove(dir.path());
        assert!(Endpoints::read(dir.path()).is_none());
    }
}
