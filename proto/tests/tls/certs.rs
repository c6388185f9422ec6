//! Authorities and folders of certificates for tests, here and in other crates.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

pub const SCHEDULER: &str = "plimsoll-scheduler.plimsoll.svc";
pub const AGENT: &str = "plimsoll-agent.plimsoll.svc";

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate and key, valid between the first days of two years.
    pub fn issue(&self, name: &str, years: (i32, i32)) -> (String, String) {
        self.issue_for(
            name,
            years,
            &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        )
    }

    pub fn issue_for(
        &self,
        name: &str,
        (from, to): (i32, i32),
        uses: &[ExtendedKeyUsagePurpose],
    ) -> (String, String) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        params.extended_key_usages = uses.to_vec();
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// Fills a folder for a part with this name.
    pub fn fill(&self, dir: &Path, name: &str) {
        let (cert, key) = self.issue(name, (2020, 2100));
        write(dir, &self.pem(), &cert, &key);
    }

    /// A folder for a part with this name.
    pub fn folder(&self, name: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.fill(dir.path(), name);
        dir
    }
}

pub fn write(dir: &Path, ca: &str, cert: &str, key: &str) {
    for (file, text) in [("ca.crt", ca), ("tls.crt", cert), ("tls.key", key)] {
        std::fs::write(dir.join(file), text).unwrap();
    }
}
