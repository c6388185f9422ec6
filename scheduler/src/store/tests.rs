use super::*;

fn exercise(store: &dyn Store) {
    assert_eq!(store.get("a").unwrap(), None);
    store.put("a/1", b"one".to_vec()).unwrap();
    store.put("a/2", b"two".to_vec()).unwrap();
    store.put("b", b"other".to_vec()).unwrap();
    assert_eq!(store.list("a/").unwrap().len(), 2);
    let stale = Require { key: "a/1".into(), value: Some(b"zero".to_vec()) };
    assert!(!store.transact(&[stale], &[Write::Put("a/2".into(), b"lost".to_vec())]).unwrap());
    assert_eq!(store.get("a/2").unwrap(), Some(b"two".to_vec()));
    let absent = Require { key: "c".into(), value: None };
    let writes = [Write::Put("c".into(), b"three".to_vec()), Write::Delete("b".into())];
    assert!(store.transact(std::slice::from_ref(&absent), &writes).unwrap());
    assert!(!store.transact(&[absent], &writes).unwrap(), "the second of two equal claims loses");
    store.delete("a/1").unwrap();
    assert_eq!(store.get("b").unwrap(), None);
}

#[test]
fn memory_stores_and_swaps() {
    exercise(&MemoryStore::default());
}

#[test]
fn a_file_stores_and_swaps_and_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::open(&dir.path().join("new/dir")).unwrap();
    exercise(&store);
    let error = FileStore::open(&dir.path().join("new/dir")).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(store);
    let store = FileStore::open(&dir.path().join("new/dir")).unwrap();
    assert_eq!(store.get("c").unwrap(), Some(b"three".to_vec()));
}

#[test]
fn a_damaged_file_is_named_with_a_remedy() {
    for damage in [&b"not a database, but long enough to have a header, surely"[..], &b"x"[..]] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("scheduler.redb"), damage.repeat(200)).unwrap();
        let error = FileStore::open(dir.path()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("scheduler.redb") && text.contains("move it away"), "{text}");
    }
}

#[test]
fn a_value_of_another_shape_is_named() {
    let store = MemoryStore::default();
    store.put("plan/current", b"[1, 2".to_vec()).unwrap();
    let error = get_json::<Vec<u8>>(&store, "plan/current").unwrap_err();
    assert!(error.to_string().contains("plan/current"));
}
