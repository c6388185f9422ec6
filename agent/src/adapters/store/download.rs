//! One file from a source to disk: what has come before is gone on with.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use ring::digest::{Context, SHA256};
use tokio::io::AsyncWriteExt;

use super::error::StoreError;
use super::listing::{Listed, Listing};

/// Between two parts of a file.
const PART_WITHIN: Duration = Duration::from_secs(60);

/// Lower-case hexadecimals.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of a file, in lower-case hexadecimals.
pub(super) fn sha256(path: &Path) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(context.finish().as_ref())),
            n => context.update(&buffer[..n]),
        }
    }
}

/// Asks how long the files are of which the source has not said so.
pub(super) async fn measure(listing: &mut Listing) -> Result<u64, StoreError> {
    let mut all = 0u64;
    for file in &mut listing.files {
        let bytes = match file.bytes {
            Some(bytes) => bytes,
            None => listing.store.head(&file.location).await.map_err(|e| StoreError::from_store(&e))?.size,
        };
        file.bytes = Some(bytes);
        all = all.saturating_add(bytes);
    }
    Ok(all)
}

/// What is there of a file.
async fn length(path: &Path) -> u64 {
    tokio::fs::metadata(path).await.map_or(0, |m| m.len())
}

/// Downloads a file into a folder, whole and with the digest that its source names. What has come of it before is kept where its source
/// can go on from there and it is still the same file.
///
/// # Errors
/// [`StoreError`]; what has come by then stays.
pub(super) async fn fetch(store: &dyn ObjectStore, file: &Listed, dir: &Path) -> Result<(), StoreError> {
    let path = dir.join(file.name);
    let tag_path = dir.join(format!("{}.etag", file.name));
    let wanted = file.bytes.unwrap_or(0);
    let mut have = length(&path).await;
    let tag = tokio::fs::read_to_string(&tag_path).await.ok();
    if have > wanted || (tag.is_none() && file.sha256.is_none()) {
        have = 0;
    }
    while have < wanted {
        let options = GetOptions {
            range: (have > 0).then_some(GetRange::Offset(have)),
            // Where the digest is known it tells whether the parts fit; those who pass files on may know another tag.
            if_match: tag.clone().filter(|_| have > 0 && file.sha256.is_none()),
            ..GetOptions::default()
        };
        let result = match store.get_opts(&file.location, options).await {
            Ok(result) => result,
            Err(Error::Precondition { .. } | Error::NotSupported { .. } | Error::NotModified { .. })
                if have > 0 =>
            {
                have = 0;
                continue;
            }
            Err(error) => return Err(StoreError::from_store(&error)),
        };
        if result.meta.size != wanted {
            let problem = format!("it is {} bytes long, and was said to be {wanted}", result.meta.size);
            return Err(StoreError::Damaged { file: file.name, problem });
        }
        if have == 0 {
            match &result.meta.e_tag {
                Some(tag) => {
                    tokio::fs::write(&tag_path, tag).await.map_err(StoreError::io("write", &tag_path))?
                }
                None => drop(tokio::fs::remove_file(&tag_path).await),
            }
        }
        let mut out = tokio::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(have == 0)
            .append(have > 0)
            .open(&path)
            .await
            .map_err(StoreError::io("open", &path))?;
        let mut parts = result.into_stream();
        let ended = loop {
            match tokio::time::timeout(PART_WITHIN, parts.next()).await {
                Err(_) => {
                    let problem = format!("nothing came of {} for {} s", file.name, PART_WITHIN.as_secs());
                    break Err(StoreError::Unreachable { problem });
                }
                Ok(None) => break Ok(()),
                Ok(Some(Err(error))) => break Err(StoreError::from_store(&error)),
                Ok(Some(Ok(part))) => {
                    have += part.len() as u64;
                    if have > wanted {
                        break Err(StoreError::Damaged {
                            file: file.name,
                            problem: "more came than was said".to_owned(),
                        });
                    }
                    if let Err(error) = out.write_all(&part).await {
                        break Err(StoreError::io("write", &path)(error));
                    }
                }
            }
        };
        out.flush().await.map_err(StoreError::io("write", &path))?;
        ended?;
        if have < wanted {
            let problem = format!("{} broke off after {have} of {wanted} bytes", file.name);
            return Err(StoreError::Unreachable { problem });
        }
        out.sync_all().await.map_err(StoreError::io("write", &path))?;
    }
    verify(file, &path).await
}

async fn verify(file: &Listed, path: &Path) -> Result<(), StoreError> {
    let Some(wanted) = file.sha256.clone() else { return Ok(()) };
    let of = path.to_owned();
    let found = tokio::task::spawn_blocking(move || sha256(&of))
        .await
        .unwrap_or_else(|e| Err(io::Error::other(e)))
        .map_err(StoreError::io("read", path))?;
    if found == wanted {
        return Ok(());
    }
    // Nothing of it is worth going on with.
    drop(tokio::fs::remove_file(path).await);
    let problem = format!("its SHA-256 is {found}, and its source says {wanted}");
    Err(StoreError::Damaged { file: file.name, problem })
}
