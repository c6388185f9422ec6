//! Following the fleet: the scheduler's plans and observations as one value that is always the newest.

use std::time::Duration;

use plimsoll_fleet::Plan;
use plimsoll_proto::document;
use plimsoll_proto::v1::plan_service_client::PlanServiceClient;
use plimsoll_proto::v1::{Observations, WatchFleetRequest, fleet_update};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::scheduler_client::Caller;

/// Largest message taken from the scheduler: a plan of thousands of pools.
pub const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// What is known of the fleet now.
#[derive(Debug, Clone, Default)]
pub struct FleetView {
    /// Newest plan.
    pub plan: Option<Plan>,
    /// Newest observations.
    pub observations: Option<Observations>,
    /// Whether the scheduler is being heard.
    pub connected: bool,
}

/// Follows the scheduler until cancelled, reconnecting forever.
pub fn follow(scheduler: Caller, stop: CancellationToken) -> watch::Receiver<FleetView> {
    let (tx, rx) = watch::channel(FleetView::default());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                result = session(&scheduler, &tx) => {
                    if let Err(error) = result {
                        debug!(%error, "the fleet watch ended");
                    }
                }
            }
            tx.send_modify(|view| view.connected = false);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
    });
    rx
}

async fn session(
    scheduler: &Caller,
    tx: &watch::Sender<FleetView>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut client =
        PlanServiceClient::new(scheduler.connect().await?).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut updates = client.watch_fleet(WatchFleetRequest { plans_only: false }).await?.into_inner();
    while let Some(update) = updates.message().await? {
        match update.update {
            Some(fleet_update::Update::Plan(plan)) => {
                match document::decode::<Plan>("plan", Some(&plan)) {
                    Ok(plan) => tx.send_modify(|view| {
                        view.plan = Some(plan);
                        view.connected = true;
                    }),
                    Err(error) => warn!(%error, "a plan could not be read"),
                };
            }
            Some(fleet_update::Update::Observations(observations)) => tx.send_modify(|view| {
                view.observations = Some(observations);
                view.connected = true;
            }),
            None => {}
        }
    }
    Ok(())
}
