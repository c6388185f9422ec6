use serde_json::json;

use super::*;

fn pods() -> GroupResource {
    GroupResource::new("", "pods")
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(pods(), "default", name)
}

fn pod(name: &str, n: u32) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": format!("u-{name}")}, "n": n})
}

#[test]
fn versions_guard_writes() {
    let store = Store::open(None, 10, 10).unwrap();
    let a = store.commit(&key("a"), Expected::Absent, Some(pod("a", 1))).unwrap();
    assert!(matches!(
        store.commit(&key("a"), Expected::Absent, Some(pod("a", 1))),
        Err(CommitError::Exists(_))
    ));
    let b = store.commit(&key("a"), Expected::Revision(a.revision), Some(pod("a", 2))).unwrap();
    assert!(b.revision > a.revision);
    assert_eq!(b.meta("resourceVersion"), Some(b.revision.to_string().as_str()));
    assert!(matches!(
        store.commit(&key("a"), Expected::Revision(a.revision), None),
        Err(CommitError::Conflict(_))
    ));
    store.commit(&key("a"), Expected::Revision(b.revision), None).unwrap();
    assert!(store.get(&key("a")).is_none());
}

#[test]
fn old_lists_are_rebuilt_until_history_ends() {
    let store = Store::open(None, 3, 10).unwrap();
    let first = store.commit(&key("a"), Expected::Absent, Some(pod("a", 1))).unwrap().revision;
    let second = store.commit(&key("a"), Expected::Revision(first), Some(pod("a", 2))).unwrap().revision;
    store.commit(&key("b"), Expected::Absent, Some(pod("b", 1))).unwrap();
    store.commit(&key("a"), Expected::Revision(second), None).unwrap();
    let then = store.list_at(&pods(), None, first).unwrap();
    assert_eq!(then.len(), 1);
    assert_eq!(then[0].value["n"], 1);
    store.commit(&key("c"), Expected::Absent, Some(pod("c", 1))).unwrap();
    assert!(store.list_at(&pods(), None, first).is_err());
    assert!(store.watch(&pods(), Some(first)).is_err());
    assert_eq!(store.watch(&pods(), Some(second)).unwrap().backlog.len(), 3);
}

#[test]
fn a_lagging_watcher_is_cut_off() {
    let store = Store::open(None, 100, 2).unwrap();
    let mut watch = store.watch(&pods(), None).unwrap();
    for n in 0..5 {
        store.commit(&key(&format!("p{n}")), Expected::Absent, Some(pod("p", n))).unwrap();
    }
    assert!(watch.changes.try_recv().is_ok());
    assert!(watch.changes.try_recv().is_ok());
    assert!(matches!(watch.changes.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
}

#[test]
fn state_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Some(dir.path()), 10, 10).unwrap();
    let a = store.commit(&key("a"), Expected::Absent, Some(pod("a", 1))).unwrap();
    let b = store.commit(&key("b"), Expected::Absent, Some(pod("b", 1))).unwrap();
    store.commit(&key("b"), Expected::Revision(b.revision), None).unwrap();
    let revision = store.revision();
    store.close().unwrap();
    drop(store);
    let store = Store::open(Some(dir.path()), 10, 10).unwrap();
    assert_eq!(store.revision(), revision);
    assert_eq!(store.get(&key("a")).unwrap().value, a.value);
    assert!(store.get(&key("b")).is_none());
    assert_eq!(store.key_of_uid("u-a"), Some(key("a")));
    assert!(store.watch(&pods(), Some(a.revision)).is_err(), "history does not survive");
}
