//! TLS between the parts, as commands are told of it.

use std::path::PathBuf;

use plimsoll_proto::tls::{ClientTls, Mutual, TlsError};

use crate::failure::Failure;

/// What every part and every command that calls the scheduler is told.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TlsArgs {
    /// Folder with ca.crt, tls.crt and tls.key: the parts speak TLS with each other, and both sides show a certificate of
    /// the authority. Files that change are taken up [default: no TLS]
    #[arg(long, env = "PLIMSOLL_TLS_DIR")]
    pub tls_dir: Option<PathBuf>,
    /// DNS name that the schedulers' certificate must have [default: the host that is called]
    #[arg(long, env = "PLIMSOLL_TLS_SCHEDULER_NAME")]
    pub tls_scheduler_name: Option<String>,
    /// While a release is changed to TLS: put up with parts that don't speak it yet
    #[arg(long, env = "PLIMSOLL_TLS_PERMISSIVE")]
    pub tls_permissive: bool,
}

/// A value that is empty, as templates easily make, is none.
pub fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

impl TlsArgs {
    /// Mutual TLS, if there is a folder for it. With `allowed`, clients need one of these names.
    ///
    /// # Errors
    /// If the folder can't be used.
    pub fn mutual(&self, allowed: &[String]) -> Result<Option<Mutual>, Failure> {
        let Some(dir) = self.tls_dir.as_deref().filter(|dir| !dir.as_os_str().is_empty()) else {
            return Ok(None);
        };
        let allowed: Vec<String> = allowed.iter().filter(|name| !name.is_empty()).cloned().collect();
        Mutual::open(dir, &allowed, self.tls_permissive).map(Some).map_err(unusable)
    }

    /// The way to the scheduler.
    ///
    /// # Errors
    /// If its name is none.
    pub fn scheduler(&self, mutual: &Mutual) -> Result<ClientTls, Failure> {
        mutual.client(given(self.tls_scheduler_name.as_deref())).map_err(unusable)
    }
}

/// A failure of `--tls-dir` and its like.
pub fn unusable(error: TlsError) -> Failure {
    Failure::caused("there is no TLS to be had", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_given_is_no_tls_and_a_folder_without_files_is_a_failure_that_names_one() {
        assert!(TlsArgs::default().mutual(&[]).unwrap().is_none());
        let empty = TlsArgs { tls_dir: Some(PathBuf::new()), ..TlsArgs::default() };
        assert!(empty.mutual(&[]).unwrap().is_none());
        let folder = tempfile::tempdir().unwrap();
        let args = TlsArgs { tls_dir: Some(folder.path().to_owned()), ..TlsArgs::default() };
        let failure = args.mutual(&[]).unwrap_err().to_string();
        assert!(failure.contains("ca.crt") && failure.contains("tls.key"), "{failure}");
    }
}
