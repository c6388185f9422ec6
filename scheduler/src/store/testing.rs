//! What every store must do, and a real etcd to try it on.

use std::time::Duration;

use tokio::runtime::{Handle, Runtime};

use super::etcd::EtcdConfig;
use super::{Require, Store, Write};

#[path = "../../tests/etcd/mod.rs"]
mod process;

/// The trait's promises, on an empty store.
pub fn exercise(store: &dyn Store) {
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
    store.put("empty", Vec::new()).unwrap();
    assert_eq!(store.get("empty").unwrap(), Some(Vec::new()));
    let twice = [
        Write::Put("d".into(), b"1".to_vec()),
        Write::Delete("d".into()),
        Write::Put("d".into(), b"2".to_vec()),
    ];
    assert!(store.transact(&[], &twice).unwrap());
    assert_eq!(store.get("d").unwrap(), Some(b"2".to_vec()), "writes of one key count in their order");
    let keys: Vec<String> = store.list("").unwrap().into_iter().map(|(k, _)| k).collect();
    assert_eq!(keys, ["a/2", "c", "d", "empty"]);
}

/// One etcd of its own, and a runtime to call it from.
pub struct Etcd {
    process: process::Etcd,
    runtime: Runtime,
}

impl Etcd {
    /// Starts one, if there is a binary.
    pub fn start() -> Option<Self> {
        Some(Self { process: process::Etcd::start()?, runtime: Runtime::new().unwrap() })
    }

    /// Starts it once more, with the data it had.
    pub fn again(&mut self) {
        self.process.again();
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Short leases, so that tests need not wait for long ones.
    pub fn config(&self) -> EtcdConfig {
        EtcdConfig {
            lease: Duration::from_secs(3),
            timeout: Duration::from_secs(2),
            ..EtcdConfig::new(vec![self.process.url()])
        }
    }

    pub fn runtime(&self) -> &Handle {
        self.runtime.handle()
    }
}
