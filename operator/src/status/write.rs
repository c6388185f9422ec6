//! Writes statuses: server-side apply under a field manager of its own, and only what changed.
//!
//! Writes happen beside the operator's look, so that pods never wait for them: while there are pods to be made, statuses
//! only trickle. Of several for one object the newest is written.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Client, Resource};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::queue::{End, Queue, Target};
use crate::apply::explain;

/// Writes under way at one time.
const CONCURRENCY: usize = 16;
/// Writes under way at one time while something more urgent is to be done.
const TRICKLE: usize = 2;
/// Longest time one write may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// One write, as a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// Kind.
    pub resource: ApiResource,
    /// Namespace (`None` for cluster-wide kinds).
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Whether it goes to the status subresource, else to the object itself.
    pub subresource: bool,
    /// What is applied.
    pub body: Value,
}

impl Write {
    /// A write of a resource's status.
    pub fn status<K: Resource<DynamicType = ()>>(
        namespace: Option<&str>,
        name: &str,
        uid: Option<&str>,
        status: &impl Serialize,
    ) -> Self {
        let resource = ApiResource::erase::<K>(&());
        let mut metadata = json!({"name": name});
        if let Some(uid) = uid {
            // Keeps the write from reaching another object of the same name.
            metadata["uid"] = json!(uid);
        }
        let body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": metadata,
            "status": status,
        });
        Self {
            resource,
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            subresource: true,
            body,
        }
    }

    /// A write of a whole cluster-wide object.
    pub fn object<K: Resource<DynamicType = ()>>(name: &str, spec: &impl Serialize) -> Self {
        let resource = ApiResource::erase::<K>(&());
        let body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name},
            "spec": spec,
        });
        Self { resource, namespace: None, name: name.to_owned(), subresource: false, body }
    }

    /// UID of the object that it is for, if it is bound to one.
    pub fn uid(&self) -> Option<&str> {
        self.body["metadata"]["uid"].as_str()
    }

    /// What it is written to.
    pub fn target(&self) -> Target {
        Target {
            kind: self.resource.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

/// A write that ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// The write.
    pub write: Write,
    /// Whether it was made; else the object is gone, or is another one of that name.
    pub made: bool,
    /// When.
    pub at: Timestamp,
}

/// Has statuses written, until its token is cancelled.
#[derive(Debug, Clone)]
pub struct Writer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    ended: Vec<Ended>,
}

impl Writer {
    /// Starts the writer. `urgent` counts what is to be done before statuses matter.
    pub fn start(
        client: Client,
        field_manager: String,
        urgent: watch::Receiver<usize>,
        stop: CancellationToken,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        tokio::spawn(run(client, field_manager, shared.clone(), urgent, stop));
        Self { shared }
    }

    /// Has these written, each in the place of an earlier one for the same object.
    pub fn put(&self, writes: Vec<Write>) {
        if writes.is_empty() {
            return;
        }
        let mut state = self.shared.state.lock();
        writes.into_iter().for_each(|write| state.queue.put(write));
        drop(state);
        self.shared.wake.notify_one();
    }

    /// Whether a write to this is yet to be made.
    pub fn is_pending(&self, target: &Target) -> bool {
        self.shared.state.lock().queue.is_pending(target)
    }

    /// The writes that ended since the last call.
    pub fn ended(&self) -> Vec<Ended> {
        std::mem::take(&mut self.shared.state.lock().ended)
    }
}

async fn run(
    client: Client,
    field_manager: String,
    shared: Arc<Shared>,
    mut urgent: watch::Receiver<usize>,
    stop: CancellationToken,
) {
    let field_manager: Arc<str> = field_manager.into();
    let mut under_way: JoinSet<(Write, End)> = JoinSet::new();
    loop {
        let now = Timestamp::now();
        let next = {
            let most = if *urgent.borrow_and_update() > 0 { TRICKLE } else { CONCURRENCY };
            let queue = &mut shared.state.lock().queue;
            while let Some(write) = queue.take(now, most) {
                let (client, field_manager) = (client.clone(), field_manager.clone());
                under_way.spawn(async move {
                    let end = make(&client, &field_manager, &write).await;
                    (write, end)
                });
            }
            queue.next_try(now)
        };
        let wait = next
            .map_or(Duration::MAX, |at| Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO));
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.wake.notified() => {}
            // Without a sender nothing is urgent any more, nor will be.
            Ok(()) = urgent.changed() => {}
            Some(ended) = under_way.join_next() => match ended {
                Ok((write, end)) => {
                    let at = Timestamp::now();
                    let mut state = shared.state.lock();
                    if end != End::Failed {
                        state.ended.push(Ended { write: write.clone(), made: end == End::Made, at });
                    }
                    state.queue.ended(write, end, at);
                }
                Err(error) => {
                    warn!(%error, "writing a status failed; this is a defect");
                    return;
                }
            },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn make(client: &Client, field_manager: &str, write: &Write) -> End {
    match tokio::time::timeout(REQUEST_TIMEOUT, one(client, field_manager, write)).await {
        Ok(Ok(())) => {
            debug!(kind = %write.resource.kind, name = %write.name, "status written");
            End::Made
        }
        // Gone, or re-created under the same name: the next look sees that.
        Ok(Err(kube::Error::Api(s))) if s.code == 404 || s.code == 409 => End::Gone,
        Ok(Err(error)) => {
            warn!(kind = %write.resource.kind, name = %write.name, error = %explain(&error), "failed to write a status");
            End::Failed
        }
        Err(_) => {
            warn!(kind = %write.resource.kind, name = %write.name, "writing a status timed out");
            End::Failed
        }
    }
}

async fn one(client: &Client, field_manager: &str, write: &Write) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> = match &write.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &write.resource),
        None => Api::all_with(client.clone(), &write.resource),
    };
    let params = PatchParams::apply(field_manager).force();
    let patch = Patch::Apply(&write.body);
    if write.subresource {
        api.patch_status(&write.name, &params, &patch).await.map(drop)
    } else {
        api.patch(&write.name, &params, &patch).await.map(drop)
    }
}
