use super::testing::exercise;
use super::*;

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
