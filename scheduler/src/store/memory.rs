//! A store that lasts as long as the process.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::{Require, Store, StoreError, Write};

/// Keeps everything in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    entries: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Store for MemoryStore {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.entries.lock().get(key).cloned())
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let entries = self.entries.lock();
        Ok(entries
            .range(prefix.to_owned()..)
            .take_while(|(k, _)| k.starts_with(prefix))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect())
    }

    fn transact(&self, require: &[Require], writes: &[Write]) -> Result<bool, StoreError> {
        let mut entries = self.entries.lock();
        if require.iter().any(|r| entries.get(&r.key) != r.value.as_ref()) {
            return Ok(false);
        }
        for write in writes {
            match write {
                Write::Put(key, value) => entries.insert(key.clone(), value.clone()),
                Write::Delete(key) => entries.remove(key),
            };
        }
        Ok(true)
    }
}
