//! Events: what `kubectl describe` tells of a pool's history.
//!
//! kube's own recorder folds events of one reason into a series and drops the later messages; a scaling's message is what
//! matters, so every distinct message is an Event of its own here, and a repetition raises its count.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::warn;

use crate::names;

/// Events waiting to be written; more are dropped with a warning. A burst is a few per pool.
const QUEUE: usize = 1024;
/// Longest message the API accepts.
const MAX_NOTE_BYTES: usize = 1000;

/// An Event to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// The object it is about.
    pub regarding: ObjectReference,
    /// Whether something is wrong.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Distinguishes events with one message, e.g. the plan's number.
    pub key: String,
    /// When.
    pub at: Timestamp,
}

/// A reference to a resource.
pub fn reference<K: Resource<DynamicType = ()>>(resource: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: resource.namespace(),
        name: Some(resource.name_any()),
        uid: resource.uid(),
        resource_version: None,
        field_path: None,
    }
}

impl Note {
    /// The Event's name: one per object, reason, message and key, so that writing it twice makes no second one.
    fn name(&self) -> String {
        let r = &self.regarding;
        let text = format!("{:?}|{:?}|{}|{}|{}", r.kind, r.uid, self.reason, self.message, self.key);
        format!("{}.{}", r.name.as_deref().unwrap_or_default(), names::digest(&text))
    }

    fn event(&self, controller: &str, instance: &str) -> Event {
        let mut message = self.message.clone();
        if message.len() > MAX_NOTE_BYTES {
            let mut cut = MAX_NOTE_BYTES;
            while !message.is_char_boundary(cut) {
                cut -= 1;
            }
            message.truncate(cut);
            message.push('…');
        }
        Event {
            metadata: ObjectMeta {
                name: Some(self.name()),
                namespace: Some(self.namespace()),
                ..ObjectMeta::default()
            },
            involved_object: self.regarding.clone(),
            type_: Some(if self.warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(self.reason.to_owned()),
            message: Some(message),
            count: Some(1),
            first_timestamp: Some(Time(self.at)),
            last_timestamp: Some(Time(self.at)),
            event_time: Some(MicroTime(self.at)),
            action: Some(self.reason.to_owned()),
            source: Some(EventSource { component: Some(controller.to_owned()), host: None }),
            reporting_component: Some(controller.to_owned()),
            reporting_instance: Some(instance.to_owned()),
            ..Event::default()
        }
    }

    fn namespace(&self) -> String {
        self.regarding.namespace.clone().unwrap_or_else(|| "default".to_owned())
    }
}

/// Takes notes and has them written.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Note>,
}

impl Events {
    /// Starts the writer, which ends when every [`Events`] is dropped.
    pub fn start(client: Client, controller: String, instance: String) -> Self {
        let (queue, mut notes) = mpsc::channel::<Note>(QUEUE);
        tokio::spawn(async move {
            while let Some(note) = notes.recv().await {
                let written = tokio::time::timeout(
                    Duration::from_secs(10),
                    write(&client, &controller, &instance, &note),
                );
                match written.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        warn!(%error, reason = note.reason, "failed to write an Event; it is lost")
                    }
                    Err(_) => warn!(reason = note.reason, "writing an Event timed out; it is lost"),
                }
            }
        });
        Self { queue }
    }

    /// Queues one.
    pub fn note(&self, note: Note) {
        if let Err(error) = self.queue.try_send(note) {
            warn!(%error, "dropped an Event");
        }
    }
}

async fn write(client: &Client, controller: &str, instance: &str, note: &Note) -> Result<(), kube::Error> {
    let api: Api<Event> = Api::namespaced(client.clone(), &note.namespace());
    match api.create(&PostParams::default(), &note.event(controller, instance)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let existing = api.get(&note.name()).await?;
            let patch = json!({"count": existing.count.unwrap_or(1).saturating_add(1), "lastTimestamp": Time(note.at)});
            api.patch(&note.name(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        }
        // The namespace is going: nobody is left to read it.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 403 => Ok(()),
        Err(error) => Err(error),
    }
}
