//! Mutual TLS between the parts: who they are is what their certificate says, and both sides show one.
//!
//! A folder holds `ca.crt`, `tls.crt` and `tls.key`, as Secrets of type `kubernetes.io/tls` by cert-manager do
//! ([`PeerCredentials`]). It is looked at now and then ([`Folder`]): connections made after a certificate was replaced use the
//! new one. [`Mutual`] makes the two ends of it: [`ClientTls`] with its [`Connector`], and [`ServerTls`].
//!
//! While parts that know TLS meet parts that don't (an upgrade from a release without), it may be *permissive*: a server
//! takes both on one port, told apart by the first byte; a client falls back where its peer speaks no TLS. That keeps
//! listeners out, not somebody who can change packets on their way: leave it on no longer than the upgrade takes.

mod client;
mod credentials;
mod error;
mod folder;
mod server;
mod stream;

use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use client::{Alpn, ClientTls, ConnectError, Connector, connect, endpoint, lazy};
pub use credentials::{Credentials, Names, PeerCredentials, PublicCredentials};
pub use error::TlsError;
pub use folder::{Contents, Folder};
pub use server::{Accepted, ServerTls, incoming, incoming_public};
pub use stream::{Peer, Stream};

/// Certificate authority of a folder.
pub const CA: &str = "ca.crt";
/// Certificate of a folder, with the intermediate ones after it.
pub const CERTIFICATE: &str = "tls.crt";
/// Key of a folder.
pub const KEY: &str = "tls.key";

/// How often folders are looked at. The kubelet takes about a minute to bring a changed Secret.
pub const LOOK_EVERY: Duration = Duration::from_secs(15);

/// A part's side of mutual TLS.
#[derive(Debug, Clone)]
pub struct Mutual {
    credentials: Folder<PeerCredentials>,
    permissive: bool,
}

impl Mutual {
    /// From a folder. A server takes only clients with one of the `allowed` names in their certificate.
    ///
    /// # Errors
    /// [`TlsError`] if the folder's files can't be used.
    pub fn open(dir: &Path, allowed: &Names, permissive: bool) -> Result<Self, TlsError> {
        let allowed = allowed.clone();
        let read = move |contents: &Contents, now| PeerCredentials::new(contents, &allowed, now);
        Ok(Self { credentials: Folder::open(dir, &[CA, CERTIFICATE, KEY], read)?, permissive })
    }

    /// Keeps it current until `stop`.
    pub fn keep_current(&self, every: Duration, stop: CancellationToken) -> tokio::task::JoinHandle<()> {
        tokio::spawn(self.credentials.clone().watch(every, stop))
    }

    /// The client's end. Servers must have `name` in their certificate; without one, the host that is called.
    ///
    /// # Errors
    /// [`TlsError::Name`] if that is no name.
    pub fn client(&self, name: Option<&str>) -> Result<ClientTls, TlsError> {
        let name = name.map(credentials::dns_name).transpose()?;
        Ok(ClientTls::new(self.credentials.clone(), name, self.permissive))
    }

    /// The server's end.
    pub fn server(&self) -> ServerTls {
        ServerTls::new(Some(self.credentials.clone()), None)
    }

    /// Whether peers without TLS are put up with.
    pub fn permissive(&self) -> bool {
        self.permissive
    }

    /// The folder behind it.
    pub fn credentials(&self) -> &Folder<PeerCredentials> {
        &self.credentials
    }
}

/// A certificate for clients that show none, as a public port has it: `tls.crt` and `tls.key`.
#[derive(Debug, Clone)]
pub struct Public(Folder<PublicCredentials>);

impl Public {
    /// From a folder.
    ///
    /// # Errors
    /// [`TlsError`] if the folder's files can't be used.
    pub fn open(dir: &Path) -> Result<Self, TlsError> {
        Ok(Self(Folder::open(dir, &[CERTIFICATE, KEY], PublicCredentials::new)?))
    }

    /// Keeps it current until `stop`.
    pub fn keep_current(&self, every: Duration, stop: CancellationToken) -> tokio::task::JoinHandle<()> {
        tokio::spawn(self.0.clone().watch(every, stop))
    }

    /// The folder behind it.
    pub fn credentials(&self) -> &Folder<PublicCredentials> {
        &self.0
    }
}
