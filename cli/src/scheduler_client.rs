//! Finding and calling the scheduler.

use std::path::PathBuf;

use plimsoll_proto::tls;
use plimsoll_proto::v1::plan_service_client::PlanServiceClient;
use tonic::transport::Channel;

use crate::endpoints::Endpoints;
use crate::failure::Failure;
use crate::tls::{TlsArgs, unusable};
use crate::watch::MAX_MESSAGE_BYTES;

/// Where the scheduler is.
#[derive(Debug, Clone, clap::Args)]
pub struct SchedulerArgs {
    /// The scheduler's gRPC address, e.g. `http://127.0.0.1:9090` [default: the one of `plimsoll up` in --dir]
    #[arg(long, env = "PLIMSOLL_SCHEDULER")]
    pub scheduler: Option<String>,
    /// Folder of a running `plimsoll up`
    #[arg(long, env = "PLIMSOLL_DIR", default_value = ".plimsoll")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub tls: TlsArgs,
}

impl SchedulerArgs {
    /// The address to call.
    ///
    /// # Errors
    /// If none was given and no `plimsoll up` left one.
    pub fn url(&self) -> Result<String, Failure> {
        if let Some(url) = &self.scheduler {
            return Ok(if url.contains("://") { url.clone() } else { format!("http://{url}") });
        }
        Endpoints::read(&self.dir).and_then(|e| e.scheduler).ok_or_else(|| {
            Failure::new(format!("no scheduler: nothing is running in {}", self.dir.display())).hint(
                "start `plimsoll up` here, or name one: --scheduler http://HOST:PORT \
                 (on a cluster: kubectl -n plimsoll port-forward svc/plimsoll-scheduler 9090)",
            )
        })
    }

    /// How to call the scheduler at `url`.
    ///
    /// # Errors
    /// If the certificates can't be used.
    pub fn caller(&self, url: String) -> Result<Caller, Failure> {
        let tls = match self.tls.mutual(&[])? {
            Some(mutual) => Some(self.tls.scheduler(&mutual)?),
            None => None,
        };
        tls::endpoint(&url, tls.as_ref()).map_err(unusable)?;
        Ok(Caller { url, tls })
    }

    /// Connects.
    ///
    /// # Errors
    /// If the scheduler does not answer.
    pub async fn connect(&self) -> Result<PlanServiceClient<Channel>, Failure> {
        let url = self.url()?;
        let caller = self.caller(url)?;
        let channel = caller.connect().await.map_err(|e| {
            Failure::caused(format!("the scheduler at {} does not answer", caller.url), e)
                .hint("is it running, and does it want TLS (--tls-dir)? `plimsoll up` starts one without")
        })?;
        Ok(PlanServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }
}

/// The way to a scheduler.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Its address.
    pub url: String,
    /// What to show it (`None`: it is called without TLS).
    pub tls: Option<tls::ClientTls>,
}

impl Caller {
    /// Without TLS.
    pub fn plain(url: String) -> Self {
        Self { url, tls: None }
    }

    /// A channel that is connected.
    ///
    /// # Errors
    /// If it can't be.
    pub async fn connect(&self) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
        let tls = self.tls.as_ref();
        Ok(tls::connect(&tls::endpoint(&self.url, tls)?, tls).await?)
    }
}

/// A failed call, in words.
pub fn refused(what: &str, status: &tonic::Status) -> Failure {
    Failure::new(format!("{what}: {}", status.message()))
}
