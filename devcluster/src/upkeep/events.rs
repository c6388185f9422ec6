//! Events live for an hour after their last write, as with the API server's default `--event-ttl`.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::store::{Expected, GroupResource, ObjectKey, Store};

const TTL: SignedDuration = SignedDuration::from_hours(1);

/// When an event expires. Only times that the server wrote count: the reporter's own clock may be wrong.
fn expires_at(event: &Value) -> Option<Timestamp> {
    let meta = &event["metadata"];
    let writes = meta["managedFields"].as_array().into_iter().flatten().map(|entry| &entry["time"]);
    let last = std::iter::once(&meta["creationTimestamp"])
        .chain(writes)
        .filter_map(|time| time.as_str()?.parse::<Timestamp>().ok())
        .max()?;
    last.checked_add(TTL).ok()
}

/// Deletes the events that have expired, and counts them.
pub(crate) fn sweep(store: &Store, now: Timestamp) -> usize {
    let resource = GroupResource::new("", "events");
    let (events, _) = store.list(&resource, None);
    events
        .iter()
        .filter(|event| expires_at(&event.value).is_some_and(|at| at <= now))
        .filter(|event| {
            let of = |field| event.meta(field).unwrap_or_default();
            let key = ObjectKey::new(resource.clone(), of("namespace"), of("name"));
            // One that is written again meanwhile lives on.
            store.commit(&key, Expected::Revision(event.revision), None).is_ok()
        })
        .count()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, created: &str, written: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Event", "lastTimestamp": "2099-01-01T00:00:00Z", "metadata": {
            "name": name, "namespace": "default", "creationTimestamp": created, "uid": name,
            "managedFields": [{"manager": "m", "time": written}],
        }})
    }

    #[test]
    fn events_go_an_hour_after_their_last_write() {
        let store = Store::open(None, 16, 16).unwrap();
        for (name, created, written) in [
            ("old", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
            ("repeated", "2026-01-01T00:00:00Z", "2026-01-01T00:30:00Z"),
        ] {
            let key = ObjectKey::new(GroupResource::new("", "events"), "default", name);
            store.commit(&key, Expected::Absent, Some(event(name, created, written))).unwrap();
        }
        let at = |time: &str| time.parse::<Timestamp>().unwrap();
        assert_eq!(sweep(&store, at("2026-01-01T00:59:59Z")), 0);
        assert_eq!(sweep(&store, at("2026-01-01T01:00:00Z")), 1);
        let (left, _) = store.list(&GroupResource::new("", "events"), None);
        assert_eq!(left[0].meta("name"), Some("repeated"));
        assert_eq!(sweep(&store, at("2026-01-01T01:30:00Z")), 1);
    }

    #[test]
    fn an_event_without_times_stays() {
        assert_eq!(expires_at(&json!({"metadata": {"name": "x"}})), None);
    }
}
