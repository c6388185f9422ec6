//! From PEM to rustls: pure, but for the files' names in errors.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, InconsistentKeys,
    RootCertStore, ServerConfig, SignatureScheme,
};

use super::client::Alpn;
use super::error::TlsError;
use super::folder::Contents;
use super::{CA, CERTIFICATE, KEY};

/// The end of the time that certificates can name: when asked then, a verifier tells until when they are valid.
const END_OF_TIME: Duration = Duration::from_secs(253_402_300_799);

/// Names of which a peer's certificate must have one; empty: any certificate of the authority will do.
#[derive(Debug, Clone, Default)]
pub struct Names(Vec<ServerName<'static>>);

impl Names {
    /// From DNS names.
    ///
    /// # Errors
    /// [`TlsError::Name`] if one is none.
    pub fn new(names: &[String]) -> Result<Self, TlsError> {
        names.iter().map(|name| dns_name(name)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a certificate will do.
    pub(super) fn fit(&self, certificate: &CertificateDer<'_>) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let Ok(parsed) = ParsedCertificate::try_from(certificate) else { return false };
        self.0.iter().any(|name| verify_server_name(&parsed, name).is_ok())
    }
}

/// What every kind of credentials has.
pub trait Credentials: Send + Sync + 'static {
    /// When its certificate ends.
    fn ends_at(&self) -> Timestamp;
}

/// Both ends of mutual TLS, with one certificate.
#[derive(Debug)]
pub struct PeerCredentials {
    pub(super) server: Arc<ServerConfig>,
    client: ClientConfig,
    ends_at: Timestamp,
}

/// The server's end for clients that show no certificate.
#[derive(Debug)]
pub struct PublicCredentials {
    pub(super) server: Arc<ServerConfig>,
    ends_at: Timestamp,
}

impl Credentials for PeerCredentials {
    fn ends_at(&self) -> Timestamp {
        self.ends_at
    }
}

impl Credentials for PublicCredentials {
    fn ends_at(&self) -> Timestamp {
        self.ends_at
    }
}

impl PeerCredentials {
    /// From the three files. Clients need one of the `allowed` names.
    ///
    /// # Errors
    /// [`TlsError`] says which file can't be used, and why.
    pub fn new(contents: &Contents, allowed: &Names, now: Timestamp) -> Result<Self, TlsError> {
        let provider = Arc::new(default_provider());
        let ca = contents.path(CA);
        let roots = Arc::new(roots(ca.clone(), contents.of(CA))?);
        let chain = chain(contents)?;
        let unusable = |error: Error| unusable(contents.path(CERTIFICATE), &error);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| TlsError::Unusable { file: ca.clone(), problem: e.to_string() })?;
        // A peer would find out otherwise, and say less.
        let own = |at: UnixTime| clients.verify_client_cert(&chain[0], &chain[1..], at).map(drop);
        own(unix(now)).map_err(|error| judged(contents, &error))?;
        let ends_at = end(own, contents)?;
        let as_server = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| TlsError::Unusable { file: ca, problem: e.to_string() })?;
        for_servers(&as_server, &chain, now).map_err(|error| judged(contents, &error))?;

        // Between parts of one release there is no reason for older versions.
        let versions = &[&rustls::version::TLS13];
        let verifier = Arc::new(Named { inner: clients, allowed: allowed.clone() });
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key(contents)?)
            .map_err(|error| mismatch(contents, error))?;
        server.alpn_protocols = [Alpn::Peer, Alpn::Grpc, Alpn::Http].map(|a| a.id().to_vec()).to_vec();
        // Certificates are judged anew for every connection.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(unusable)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key(contents)?)
            .map_err(|error| mismatch(contents, error))?;
        client.resumption = Resumption::disabled();
        Ok(Self { server: Arc::new(server), client, ends_at })
    }

    /// For a client that is about to speak so.
    pub(super) fn client(&self, alpn: Alpn) -> Arc<ClientConfig> {
        let mut client = self.client.clone();
        client.alpn_protocols = vec![alpn.id().to_vec()];
        Arc::new(client)
    }
}

impl PublicCredentials {
    /// From certificate and key.
    ///
    /// # Errors
    /// [`TlsError`] says which file can't be used, and why.
    pub fn new(contents: &Contents, now: Timestamp) -> Result<Self, TlsError> {
        let provider = Arc::new(default_provider());
        let chain = chain(contents)?;
        // Who issued it is the clients' business; of itself it must only be valid now.
        let mut itself = RootCertStore::empty();
        itself.add(chain[0].clone()).map_err(|e| unusable(contents.path(CERTIFICATE), &e))?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(itself), provider.clone())
            .build()
            .map_err(|e| TlsError::Unusable { file: contents.path(CERTIFICATE), problem: e.to_string() })?;
        let nobody = dns_name("nobody.invalid")?;
        let own =
            |at: UnixTime| verifier.verify_server_cert(&chain[0], &chain[1..], &nobody, &[], at).map(drop);
        if let Err(error @ Error::InvalidCertificate(_)) = own(unix(now))
            && let told @ (TlsError::Expired { .. } | TlsError::NotYetValid { .. }) = judged(contents, &error)
        {
            return Err(told);
        }
        let ends_at = end(own, contents)?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable(contents.path(CERTIFICATE), &e))?
            .with_no_client_auth()
            .with_single_cert(chain, key(contents)?)
            .map_err(|error| mismatch(contents, error))?;
        server.alpn_protocols = [Alpn::Grpc, Alpn::Http].map(|a| a.id().to_vec()).to_vec();
        Ok(Self { server: Arc::new(server), ends_at })
    }
}

/// A name that certificates can have.
///
/// # Errors
/// [`TlsError::Name`] if it is none.
pub(super) fn dns_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name { name: name.to_owned() })
}

fn unix(at: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(at.as_second().try_into().unwrap_or(0)))
}

fn timestamp(at: UnixTime) -> Timestamp {
    Timestamp::from_second(at.as_secs().try_into().unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX)
}

fn certificates(file: PathBuf, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let what = "certificate";
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => {
            Err(TlsError::NotPem { file, what, problem: "there is none".to_owned() })
        }
        Ok(found) => Ok(found),
        Err(error) => Err(TlsError::NotPem { file, what, problem: error.to_string() }),
    }
}

fn chain(contents: &Contents) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates(contents.path(CERTIFICATE), contents.of(CERTIFICATE))
}

fn key(contents: &Contents) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(contents.of(KEY)).map_err(|error| TlsError::NotPem {
        file: contents.path(KEY),
        what: "private key",
        problem: error.to_string(),
    })
}

/// Several, while one authority takes another's place.
fn roots(file: PathBuf, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file.clone(), pem)? {
        roots.add(certificate).map_err(|error| unusable(file.clone(), &error))?;
    }
    Ok(roots)
}

fn unusable(file: PathBuf, error: &Error) -> TlsError {
    TlsError::Unusable { file, problem: error.to_string() }
}

fn mismatch(contents: &Contents, error: Error) -> TlsError {
    match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::KeyMismatch { key: contents.path(KEY), certificate: contents.path(CERTIFICATE) }
        }
        other => unusable(contents.path(KEY), &other),
    }
}

/// What a verifier said of our own certificate.
fn judged(contents: &Contents, error: &Error) -> TlsError {
    let file = contents.path(CERTIFICATE);
    match error {
        Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
            TlsError::Expired { file, ended_at: timestamp(*not_after) }
        }
        Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
            TlsError::NotYetValid { file, begins_at: timestamp(*not_before) }
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            TlsError::OtherAuthority { file, ca: contents.path(CA) }
        }
        other => unusable(file, other),
    }
}

/// Servers must be allowed to be servers as well; which name they are called by is the caller's.
fn for_servers(
    verifier: &WebPkiServerVerifier,
    chain: &[CertificateDer<'static>],
    now: Timestamp,
) -> Result<(), Error> {
    let nobody = ServerName::try_from("nobody.invalid").map_err(|e| Error::General(e.to_string()))?;
    match verifier.verify_server_cert(&chain[0], &chain[1..], &nobody, &[], unix(now)) {
        Ok(_)
        | Err(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => Ok(()),
        Err(error) => Err(error),
    }
}

/// When a certificate ends, by its verifier's word.
fn end(verify: impl Fn(UnixTime) -> Result<(), Error>, contents: &Contents) -> Result<Timestamp, TlsError> {
    match verify(UnixTime::since_unix_epoch(END_OF_TIME)) {
        // As certificates without an end are written.
        Ok(()) => Ok(Timestamp::MAX),
        Err(error) => match judged(contents, &error) {
            TlsError::Expired { ended_at, .. } => Ok(ended_at),
            // Valid for ever, but for a name or an issuer that does not matter here.
            TlsError::OtherAuthority { .. } | TlsError::Unusable { .. } => Ok(Timestamp::MAX),
            other => Err(other),
        },
    }
}

/// Clients of the authority, and of them those with a name of the list.
#[derive(Debug)]
struct Named {
    inner: Arc<dyn ClientCertVerifier>,
    allowed: Names,
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if self.allowed.fit(end_entity) {
            Ok(verified)
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
