//! Finding and calling the scheduler.

use std::path::PathBuf;

use plimsoll_proto::v1::plan_service_client::PlanServiceClient;
use tonic::transport::Channel;

use crate::endpoints::Endpoints;
use crate::failure::Failure;
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

    /// Connects.
    ///
    /// # Errors
    /// If the scheduler does not answer.
    pub async fn connect(&self) -> Result<PlanServiceClient<Channel>, Failure> {
        let url = self.url()?;
        let client = PlanServiceClient::connect(url.clone()).await.map_err(|e| {
            Failure::caused(format!("the scheduler at {url} does not answer"), e)
                .hint("is it running? `plimsoll up` starts one")
        })?;
        Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES))
    }
}

/// A failed call, in words.
pub fn refused(what: &str, status: &tonic::Status) -> Failure {
    Failure::new(format!("{what}: {}", status.message()))
}
