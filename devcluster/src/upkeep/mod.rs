//! What a cluster keeps up by itself: the objects that every namespace holds, the API's own Service, the age of events.

pub(crate) mod events;
pub(crate) mod standing;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::store::{Change, ChangeKind, GroupResource, Store};

/// Time between looks at the events' age; they live an hour.
const EVENTS_EVERY: Duration = Duration::from_secs(60);

type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Runs until `stop`.
pub(crate) async fn run(store: Arc<Store>, address: SocketAddr, clock: Clock, stop: CancellationToken) {
    let mut sweep = tokio::time::interval(EVENTS_EVERY);
    while !stop.is_cancelled() {
        // Opened before the look at everything, so that no change falls between the two.
        let (Some(mut namespaces), Some(mut accounts), Some(mut configs), Some(mut services)) = (
            changes(&store, "namespaces"),
            changes(&store, "serviceaccounts"),
            changes(&store, "configmaps"),
            changes(&store, "services"),
        ) else {
            return;
        };
        standing::restore_all(&store, address, clock());
        loop {
            let change = tokio::select! {
                () = stop.cancelled() => return,
                _ = sweep.tick() => {
                    let expired = events::sweep(&store, clock());
                    if expired > 0 {
                        tracing::debug!(expired, "events expired");
                    }
                    continue;
                }
                change = namespaces.recv() => change,
                change = accounts.recv() => change,
                change = configs.recv() => change,
                change = services.recv() => change,
            };
            match change {
                Some(change) if concerns(&change) => {
                    let namespace = match change.key.namespace.as_str() {
                        "" => &change.key.name,
                        namespace => namespace,
                    };
                    standing::restore(&store, namespace, address, clock());
                }
                Some(_) => {}
                // Cut off for lagging: start over.
                None => break,
            }
        }
    }
}

fn changes(store: &Store, resource: &str) -> Option<mpsc::Receiver<Arc<Change>>> {
    // A watch from the present state cannot have expired.
    store.watch(&GroupResource::new("", resource), None).ok().map(|watch| watch.changes)
}

/// Whether a change may have left a standing object missing or altered.
fn concerns(change: &Change) -> bool {
    match change.key.resource.resource.as_str() {
        "namespaces" => change.kind == ChangeKind::Added,
        "configmaps" => change.key.name == standing::ROOT_CA && change.kind != ChangeKind::Added,
        _ => change.kind == ChangeKind::Deleted,
    }
}
