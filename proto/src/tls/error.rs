//! Why TLS can't be had from what was given.

use std::path::PathBuf;

use jiff::Timestamp;

/// What is wrong with a file or a name, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error(
        "failed to read {file}: {source}; the folder needs ca.crt, tls.crt and tls.key (a public port's: no ca.crt)"
    )]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is no PEM, or holds nothing of what it should.
    #[error("{file} holds no {what} in PEM form: {problem}; write it anew, with BEGIN and END lines")]
    NotPem {
        /// The file.
        file: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What was found.
        problem: String,
    },
    /// The key is another certificate's.
    #[error(
        "{key} is not the key of the first certificate in {certificate}; put both from one and the same issue there"
    )]
    KeyMismatch {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
    /// The certificate's time is over.
    #[error("the certificate in {file} ended on {ended_at}; have it renewed")]
    Expired {
        /// The certificate.
        file: PathBuf,
        /// Its end.
        ended_at: Timestamp,
    },
    /// The certificate's time has not come.
    #[error("the certificate in {file} is not valid before {begins_at}; wait, or set this machine's clock")]
    NotYetValid {
        /// The certificate.
        file: PathBuf,
        /// Its begin.
        begins_at: Timestamp,
    },
    /// The certificate is another authority's.
    #[error(
        "the certificate in {file} does not come from the authority in {ca}; peers with that authority would refuse it"
    )]
    OtherAuthority {
        /// The certificate.
        file: PathBuf,
        /// The authority.
        ca: PathBuf,
    },
    /// Anything else that keeps a certificate or key from being used.
    #[error(
        "{file} cannot be used: {problem}; peers need a certificate for server and client authentication"
    )]
    Unusable {
        /// The file.
        file: PathBuf,
        /// Why.
        problem: String,
    },
    /// A peer's name is none.
    #[error("{name:?} is no name of a peer; use a DNS name that its certificate has")]
    Name {
        /// What was given.
        name: String,
    },
    /// A server's address is none.
    #[error("{url:?} is no address ({problem}); use http://host:port, or https with certificates")]
    Url {
        /// What was given.
        url: String,
        /// Why not.
        problem: String,
    },
}
