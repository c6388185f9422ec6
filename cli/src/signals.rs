//! Ctrl-C and SIGTERM.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Cancels `stop` at the first SIGINT or SIGTERM; a second one ends the process at once.
pub fn cancel_on_signal(stop: CancellationToken) {
    tokio::spawn(async move {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            warn!("cannot wait for signals; only kill -9 will stop this process");
            return;
        };
        tokio::select! {
            _ = interrupt.recv() => info!("Ctrl-C: stopping"),
            _ = terminate.recv() => info!("SIGTERM: stopping"),
        }
        stop.cancel();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(130);
    });
}
