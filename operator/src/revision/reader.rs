//! Reads ControllerRevisions. Right after an upgrade from a chart that did not grant them the operator may not: it then works
//! without, and says so.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::api::Api;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Error};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use crate::names;
use crate::watch::watch_backoff;

/// Whether revisions can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// The first list is under way.
    Unknown,
    /// They are.
    Granted,
    /// The API refuses, or does not know the kind.
    Refused,
}

/// A live copy of every pool's revisions.
#[derive(Clone)]
pub struct Revisions {
    store: Store<ControllerRevision>,
    access: watch::Receiver<Access>,
}

/// Whether the API will go on refusing whatever is asked.
fn is_refused(error: &watcher::Error) -> bool {
    let status = match error {
        watcher::Error::InitialListFailed(Error::Api(status))
        | watcher::Error::WatchStartFailed(Error::Api(status)) => status,
        watcher::Error::WatchError(status) => status,
        _ => return false,
    };
    matches!(status.code, 403 | 404)
}

impl Revisions {
    /// Follows them until `stop`; `changed` hears of every change.
    pub fn start(client: &Client, changed: &Arc<Notify>, stop: &CancellationToken) -> Self {
        let (store, writer) = reflector::store();
        let (told, access) = watch::channel(Access::Unknown);
        let config = watcher::Config::default().labels(&format!("{}={}", names::MANAGED_BY, names::PLIMSOLL));
        let api: Api<ControllerRevision> = Api::all(client.clone());
        let (changed, stop) = (changed.clone(), stop.clone());
        let follow = async move {
            let events = watcher(api, config)
                .backoff(watch_backoff("ControllerRevision"))
                .modify(|r| r.metadata.managed_fields = None)
                .reflect(writer);
            let mut events = std::pin::pin!(events);
            loop {
                let event = tokio::select! {
                    () = stop.cancelled() => return,
                    event = events.next() => event,
                };
                let access = *told.borrow();
                match event {
                    Some(Ok(watcher::Event::Init | watcher::Event::InitApply(_))) => continue,
                    Some(Ok(_)) => {
                        if access == Access::Refused {
                            info!(
                                "ControllerRevisions can be read now: rollouts that regress are taken back"
                            );
                        }
                        told.send_replace(Access::Granted);
                    }
                    // What was listed once stays known, so that what was taken back is not tried again for a missing grant.
                    Some(Err(error)) if is_refused(&error) && access != Access::Granted => {
                        if access == Access::Unknown {
                            warn!(
                                %error,
                                "ControllerRevisions cannot be read, so a rollout that regresses stops but is not taken back; \
                                 upgrade the chart, which grants them to the operator"
                            );
                        }
                        told.send_replace(Access::Refused);
                        if access == Access::Refused {
                            continue;
                        }
                    }
                    Some(Err(error)) => {
                        warn!(%error, "the watch failed; it goes on from what is known");
                        continue;
                    }
                    None => return,
                }
                changed.notify_one();
            }
        };
        tokio::spawn(follow.instrument(info_span!("watch", kind = "ControllerRevision")));
        Self { store, access }
    }

    /// Waits until they were listed once, or it is known that they cannot be.
    pub async fn ready(&self) {
        // An error means that the task has ended: whoever waits is being stopped too.
        let _ = self.access.clone().wait_for(|access| *access != Access::Unknown).await;
    }

    /// All of them; `None` if they cannot be read.
    pub fn all(&self) -> Option<Vec<Arc<ControllerRevision>>> {
        (*self.access.borrow() == Access::Granted).then(|| self.store.state())
    }
}
