//! `plimsoll release`: takes Plimsoll's finalizer off ModelPools.

use crate::commands::operator::client;
use crate::failure::{Failure, Outcome};

/// Let ModelPools be deleted although no operator is there to drain them: takes Plimsoll's finalizer off
///
/// For clusters that Plimsoll was removed from, or whose operator cannot run: a pool, and the namespace that it is in, can
/// then be deleted at once. An operator that runs puts the finalizer back on pools that are not being deleted.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kubeconfig to use [default: the in-cluster account, or $KUBECONFIG]
    #[arg(long)]
    kubeconfig: Option<std::path::PathBuf>,
    /// Namespace of the pools [default: all]
    #[arg(long, short)]
    namespace: Option<String>,
}

/// Runs it.
///
/// # Errors
/// If the API is not reached or refuses.
pub async fn run(args: &Args) -> Outcome {
    let client = client(args.kubeconfig.as_deref()).await?;
    let released = plimsoll_operator::release::release(&client, args.namespace.as_deref())
        .await
        .map_err(|e| Failure::caused("failed to take the finalizer off", e))?;
    for pool in &released {
        println!("modelpool {pool} released");
    }
    if released.is_empty() {
        println!("no ModelPool was held");
    }
    Ok(())
}
