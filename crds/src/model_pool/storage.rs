//! Whether an engine can load weights from where they are, by way of the cache it is given.

use super::spec::{Cache, Engine, EngineKind};
use crate::invalid::Check;
use crate::quantity;

/// Checks a pool's cache, and that its engine reads sources (`hf://…`) of these kinds.
pub(super) fn check<'a>(
    check: &mut Check,
    engine: &Engine,
    sources: impl Iterator<Item = (String, &'a str)>,
) {
    let shared = engine.cache.as_ref().is_some_and(|c| c.claim.is_some() || c.host_path.is_some());
    if engine.kind == EngineKind::Llamacpp {
        for (at, source) in sources {
            if source.starts_with("s3://") {
                let remedy = "use hf://, oci:// or pvc:// with llamacpp, or another engine";
                check.invalid(at, source, "cannot be read by llama.cpp", remedy);
            } else if source.starts_with("hf://") && shared {
                // Its downloads take no lock: two replicas would write one file.
                check.invalid(
                    "spec.engine.cache",
                    "",
                    "is shared by replicas, which llama.cpp's downloads do not stand",
                    "use storageClassName or size, or a source of pvc:// or oci://",
                );
            }
        }
    }
    if let Some(cache) = &engine.cache {
        volume(check, cache);
    }
}

fn volume(check: &mut Check, cache: &Cache) {
    const AT: &str = "spec.engine.cache";
    let Cache { claim, host_path, storage_class_name, size } = cache;
    let given = [claim, host_path, storage_class_name].into_iter().flatten().count();
    if given > 1 {
        let remedy = "give at most one of claim, hostPath and storageClassName";
        check.invalid(AT, "", "names more than one place", remedy);
    }
    for (field, name) in [("claim", claim), ("storageClassName", storage_class_name)] {
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        if let Some(name) = name
            && (name.is_empty() || name.len() > 253 || !name.chars().all(fine))
        {
            let remedy = "use lower-case letters, digits, '-' and '.'";
            check.invalid(format!("{AT}.{field}"), name, "is not a name", remedy);
        }
    }
    if let Some(path) = host_path
        && (!path.starts_with('/')
            || path.len() < 2
            || path.contains(':')
            || path.split('/').any(|p| p == ".."))
    {
        let remedy = "use an absolute path such as /var/lib/plimsoll/weights";
        check.invalid(format!("{AT}.hostPath"), path, "is not a directory's path", remedy);
    }
    match size {
        None if storage_class_name.is_some() => {
            let remedy = "give that of each replica's volume, e.g. 200Gi";
            check.invalid(format!("{AT}.size"), "", "is missing for storageClassName", remedy);
        }
        Some(size) if quantity::parse(size).is_none_or(|bytes| bytes <= 0.0) => {
            check.invalid(format!("{AT}.size"), size, "is not a size", "use one such as 200Gi");
        }
        Some(size) if claim.is_some() || host_path.is_some() => {
            let remedy = "remove it: the volume has its size already";
            check.invalid(format!("{AT}.size"), size, "does nothing here", remedy);
        }
        _ => {}
    }
}
