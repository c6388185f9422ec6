//! `plimsoll top`: the one-screen summary of a running fleet.

use std::io::IsTerminal as _;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, Outcome};
use crate::scheduler_client::SchedulerArgs;
use crate::terminal::Terminal;
use crate::{screen, watch};

/// Show nodes, pools, latencies against objectives, cost and the last decision, refreshed each second
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    scheduler: SchedulerArgs,
    /// Print once and exit
    #[arg(long)]
    once: bool,
}

/// Runs it until Ctrl-C.
///
/// # Errors
/// If there is no scheduler to watch.
pub async fn run(args: &Args) -> Outcome {
    let caller = args.scheduler.caller(args.scheduler.url()?)?;
    // Fails at once, with a reason, if nobody answers; afterwards the watch reconnects by itself.
    drop(args.scheduler.connect().await?);
    let stop = CancellationToken::new();
    let mut views = watch::follow(caller, stop.clone());
    if args.once || !std::io::stdout().is_terminal() {
        let wait = views.wait_for(|v| v.plan.is_some() && v.observations.is_some());
        let _ = tokio::time::timeout(Duration::from_secs(5), wait).await;
        for line in screen::render(&views.borrow(), &[], "Plimsoll", usize::MAX) {
            println!("{line}");
        }
        return Ok(());
    }
    let terminal = Terminal::enter();
    loop {
        terminal.draw(&screen::render(&views.borrow_and_update(), &[], "Plimsoll", terminal.width()));
        tokio::select! {
            result = tokio::signal::ctrl_c() => {
                result.map_err(|e| Failure::caused("failed to wait for Ctrl-C", e))?;
                stop.cancel();
                return Ok(());
            }
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}
