//! A store in one file (redb): every transaction is on disk when it returns, whatever kills the process.

use std::path::{Path, PathBuf};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition, TableError,
};

use super::{Require, Store, StoreError, Write};

const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("plimsoll");
const FILE: &str = "scheduler.redb";

/// Keeps everything in `scheduler.redb`.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    database: Database,
}

impl FileStore {
    /// Opens or creates the store in a directory, which is created if need be.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Corrupt`] or [`StoreError::Io`], each naming the file and the remedy.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(|e| StoreError::Io {
            path: directory.to_owned(),
            action: "create",
            problem: e.to_string(),
        })?;
        let path = directory.join(FILE);
        let database = Database::create(&path).map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.clone() },
            DatabaseError::Storage(StorageError::Io(io))
                if io.kind() != std::io::ErrorKind::InvalidData
                    && io.kind() != std::io::ErrorKind::UnexpectedEof =>
            {
                StoreError::Io { path: path.clone(), action: "open", problem: io.to_string() }
            }
            other => StoreError::Corrupt { path: path.clone(), problem: other.to_string() },
        })?;
        let store = Self { path, database };
        // Created here so that readers always find it.
        store.transact(&[], &[])?;
        Ok(store)
    }

    fn problem(&self, action: &'static str, error: impl Into<redb::Error>) -> StoreError {
        match error.into() {
            redb::Error::Corrupted(problem) => StoreError::Corrupt { path: self.path.clone(), problem },
            other => StoreError::Io { path: self.path.clone(), action, problem: other.to_string() },
        }
    }
}

impl Store for FileStore {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let read = self.database.begin_read().map_err(|e| self.problem("read", e))?;
        let table = read.open_table(TABLE).map_err(|e| self.problem("read", e))?;
        let value = table.get(key).map_err(|e| self.problem("read", e))?;
        Ok(value.map(|v| v.value().to_vec()))
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let read = self.database.begin_read().map_err(|e| self.problem("read", e))?;
        let table = read.open_table(TABLE).map_err(|e| self.problem("read", e))?;
        let mut out = Vec::new();
        for entry in table.range(prefix..).map_err(|e| self.problem("read", e))? {
            let (key, value) = entry.map_err(|e| self.problem("read", e))?;
            if !key.value().starts_with(prefix) {
                break;
            }
            out.push((key.value().to_owned(), value.value().to_vec()));
        }
        Ok(out)
    }

    fn transact(&self, require: &[Require], writes: &[Write]) -> Result<bool, StoreError> {
        let transaction = self.database.begin_write().map_err(|e| self.problem("write", e))?;
        {
            let mut table =
                transaction.open_table(TABLE).map_err(|e: TableError| self.problem("write", e))?;
            for r in require {
                let held = table.get(r.key.as_str()).map_err(|e| self.problem("read", e))?;
                if held.as_ref().map(|v| v.value()) != r.value.as_deref() {
                    return Ok(false);
                }
            }
            for write in writes {
                match write {
                    Write::Put(key, value) => table.insert(key.as_str(), value.as_slice()).map(drop),
                    Write::Delete(key) => table.remove(key.as_str()).map(drop),
                }
                .map_err(|e| self.problem("write", e))?;
            }
        }
        transaction.commit().map_err(|e| self.problem("write", e))?;
        Ok(true)
    }
}
