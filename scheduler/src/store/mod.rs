//! What the scheduler remembers: keys and values with compare-and-swap transactions.

pub mod etcd;
mod file;
mod memory;

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use file::FileStore;
pub use memory::MemoryStore;

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the file.
    #[error(
        "{path} is in use by another process; stop the other scheduler or choose another --data directory"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged or of another kind.
    #[error(
        "{path} cannot be read as a scheduler store ({problem}); move it away and start again: the plan is rebuilt from \
         the cluster, only plan history is lost"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Reading or writing failed.
    #[error("failed to {action} {path}: {problem}; check free space and permissions of the --data directory")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// What went wrong.
        problem: String,
    },
    /// A value is not what its key promises.
    #[error(
        "the stored value {key:?} cannot be read; it was written by another version: move the --data directory away, or choose \
         another --etcd-prefix, and start again"
    )]
    Value {
        /// The key.
        key: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// What was said about etcd makes no sense.
    #[error("{what} is not usable: {problem}")]
    EtcdConfig {
        /// The flag.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// etcd cannot be asked.
    #[error("failed to {action} etcd at {endpoints}: {problem}")]
    Etcd {
        /// Its members.
        endpoints: String,
        /// What was being done.
        action: &'static str,
        /// What went wrong.
        problem: String,
    },
    /// A value in etcd is damaged.
    #[error(
        "the key {key:?} in etcd cannot be used ({problem}); remove it, or choose another --etcd-prefix: the plan is rebuilt from the cluster"
    )]
    EtcdValue {
        /// etcd's key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// Another scheduler was elected.
    #[error("this scheduler does not lead any more (its term was {term}); nothing was written")]
    Deposed {
        /// The term that ended.
        term: i64,
    },
}

/// One write of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(String, Vec<u8>),
    /// Removes a key; no error if it is absent.
    Delete(String),
}

impl Write {
    /// Sets a key to a value's JSON.
    ///
    /// # Errors
    /// [`StoreError::Value`] if the value has no JSON form.
    pub fn json<T: Serialize>(key: impl Into<String>, value: &T) -> Result<Self, StoreError> {
        let key = key.into();
        match serde_json::to_vec(value) {
            Ok(bytes) => Ok(Self::Put(key, bytes)),
            Err(source) => Err(StoreError::Value { key, source }),
        }
    }
}

/// What a transaction requires: the key holds exactly this (`None`: nothing).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Require {
    /// Key.
    pub key: String,
    /// Value.
    pub value: Option<Vec<u8>>,
}

/// Keys and values. Each call is atomic and durable when it returns; calls block, so they belong off the async threads.
pub trait Store: Send + Sync + 'static {
    /// The value of a key.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Keys with a prefix and their values, in key order.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    fn list(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// Applies all writes, or none if a requirement does not hold; says which.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be written.
    fn transact(&self, require: &[Require], writes: &[Write]) -> Result<bool, StoreError>;

    /// Sets a key.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be written.
    fn put(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        self.transact(&[], &[Write::Put(key.to_owned(), value)]).map(drop)
    }

    /// Removes a key.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be written.
    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.transact(&[], &[Write::Delete(key.to_owned())]).map(drop)
    }
}

/// Reads a value kept as JSON.
///
/// # Errors
/// [`StoreError`] if the store cannot be read or the value is not what it should be.
pub fn get_json<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<T>, StoreError> {
    store
        .get(key)?
        .map(|bytes| serde_json::from_slice(&bytes))
        .transpose()
        .map_err(|source| StoreError::Value { key: key.to_owned(), source })
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
