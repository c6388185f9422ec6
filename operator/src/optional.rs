//! Reads kinds that a cluster may not serve, or not grant: never waited for, and asked for again from time to time.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, ListParams};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use crate::apply::explain;
use crate::watch::watch_backoff;

/// Time between two questions whether there is the kind now.
const RECHECK: Duration = Duration::from_secs(60);
/// Time between two looks whether anybody needs the kind.
const NEED: Duration = Duration::from_secs(2);
/// Longest time one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether an answer says that the kind is not served, or not granted.
fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 401 | 403 | 404))
}

/// Follows a kind while `needed`; the store is empty while it is absent. `remedy` says what to do if it is not granted.
pub(crate) fn reflect<K>(
    api: Api<K>,
    kind: &'static str,
    remedy: &'static str,
    needed: impl Fn() -> bool + Send + 'static,
    changed: &Arc<Notify>,
    stop: &CancellationToken,
) -> Store<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let (store, mut writer) = reflector::store();
    let (changed, stop) = (changed.clone(), stop.clone());
    let follow = async move {
        let mut said = None;
        loop {
            if !needed() {
                tokio::time::sleep(NEED).await;
                continue;
            }
            let one = ListParams::default().limit(1);
            let absent = match tokio::time::timeout(REQUEST_TIMEOUT, api.list(&one)).await {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(explain(&error)),
                Err(_) => Some("the Kubernetes API did not answer in time".to_owned()),
            };
            if let Some(why) = absent {
                if said.as_ref() != Some(&why) {
                    info!(%why, remedy, "this kind cannot be read; the cluster is taken not to have it");
                    said = Some(why);
                }
                tokio::time::sleep(RECHECK).await;
                continue;
            }
            said = None;
            let events = watcher(api.clone(), watcher::Config::default())
                .backoff(watch_backoff(kind))
                .modify(|object| object.managed_fields_mut().clear());
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        writer.apply_watcher_event(&event);
                        if !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_)) {
                            changed.notify_one();
                        }
                    }
                    Err(
                        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error),
                    ) if is_absent(&error) => {
                        writer.apply_watcher_event(&watcher::Event::Init);
                        writer.apply_watcher_event(&watcher::Event::InitDone);
                        changed.notify_one();
                        break;
                    }
                    Err(error) => warn!(%error, "the watch failed; it goes on from what is known"),
                }
            }
        }
    };
    tokio::spawn(
        async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow => {}
            }
        }
        .instrument(info_span!("watch", kind)),
    );
    store
}
