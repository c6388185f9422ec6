//! TLS between the parts, as commands are told of it.

use std::path::PathBuf;

use plimsoll_proto::tls::{ClientTls, Credentials as _, Mutual, Names, Public, TlsError};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

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
        Mutual::open(dir, &names(allowed)?, self.tls_permissive).map(Some).map_err(unusable)
    }

    /// The way to the scheduler.
    ///
    /// # Errors
    /// If its name is none.
    pub fn scheduler(&self, mutual: &Mutual) -> Result<ClientTls, Failure> {
        mutual.client(given(self.tls_scheduler_name.as_deref())).map_err(unusable)
    }
}

/// Names of peers.
///
/// # Errors
/// If one is none.
pub fn names(given: &[String]) -> Result<Names, Failure> {
    let given: Vec<String> = given.iter().filter(|name| !name.is_empty()).cloned().collect();
    Names::new(&given).map_err(unusable)
}

/// Shows among a part's metrics when its certificates end.
pub fn show(registry: &mut Registry, mutual: Option<&Mutual>, public: Option<&Public>) {
    registry.register_collector(Box::new(Ends { mutual: mutual.cloned(), public: public.cloned() }));
}

/// The end of each certificate in use, whichever that is when asked.
#[derive(Debug)]
struct Ends {
    mutual: Option<Mutual>,
    public: Option<Public>,
}

impl Collector for Ends {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let ends = [
            ("parts", self.mutual.as_ref().map(|m| m.credentials().current().ends_at())),
            ("clients", self.public.as_ref().map(|p| p.credentials().current().ends_at())),
        ];
        let mut metric = encoder.encode_descriptor(
            "plimsoll_tls_certificate_ends_timestamp_seconds",
            "When the certificate ends that is shown to other parts, or to clients",
            None,
            MetricType::Gauge,
        )?;
        for (whom, ends_at) in ends {
            if let Some(ends_at) = ends_at {
                ConstGauge::new(ends_at.as_second()).encode(metric.encode_family(&[("to", whom)])?)?;
            }
        }
        Ok(())
    }
}

/// A failure of `--tls-dir` and its like.
pub fn unusable(error: TlsError) -> Failure {
    Failure::caused("there is no TLS to be had", error)
}

#[cfg(test)]
#[path = "../../proto/tests/tls/certs.rs"]
mod certs;

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

    #[test]
    fn metrics_say_when_the_certificate_in_use_ends() {
        let authority = certs::Authority::new("ours");
        let folder = tempfile::tempdir().unwrap();
        let fill = |year| {
            let (cert, key) = authority.issue(certs::AGENT, (2020, year));
            certs::write(folder.path(), &authority.pem(), &cert, &key);
        };
        fill(2100);
        let args = TlsArgs { tls_dir: Some(folder.path().to_owned()), ..TlsArgs::default() };
        let mutual = args.mutual(&[]).unwrap().unwrap();
        let mut registry = Registry::default();
        show(&mut registry, Some(&mutual), None);
        let text = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        let line = "plimsoll_tls_certificate_ends_timestamp_seconds{to=\"parts\"}";
        assert!(text().contains(&format!("{line} 4102444800\n")), "{}", text());
        fill(2099);
        mutual.credentials().reload().unwrap();
        assert!(text().contains(&format!("{line} 4070908800\n")), "{}", text());
        assert!(!text().contains("to=\"clients\""), "{}", text());
    }
}
