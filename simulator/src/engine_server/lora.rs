//! LoRA adapters: which are registered, and which are on the accelerator.

use std::collections::BTreeMap;

/// Why an adapter operation was refused, as vLLM says it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum LoraError {
    #[error("LoRA is not enabled on this engine; start it with at least one adapter slot (--max-loras)")]
    Disabled,
    #[error("Both 'lora_name' and 'lora_path' must be provided.")]
    Incomplete,
    #[error(
        "The lora adapter '{0}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True."
    )]
    AlreadyLoaded(String),
    #[error("'{0}' is the name of the base model; give the adapter another one.")]
    BaseName(String),
    #[error("Loading lora {name} failed: No adapter found for {path}")]
    NoSuchPath { name: String, path: String },
    #[error("The lora adapter '{0}' cannot be found.")]
    NotFound(String),
}

/// One registered adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Adapter {
    /// Where it came from.
    pub(super) path: String,
    /// A number of its own, never used again.
    pub(super) id: u64,
    resident: bool,
    /// Larger is later.
    used: u64,
    /// Requests under way.
    pub(super) requests: usize,
}

/// Registered adapters. As in vLLM, more may be registered than there are slots on the accelerator: a request
/// for one that is not in a slot loads it first, in place of the one that was used least lately.
#[derive(Debug, Clone, Default)]
pub(super) struct Adapters {
    by_name: BTreeMap<String, Adapter>,
    slots: usize,
    clock: u64,
}

impl Adapters {
    pub(super) fn new(slots: usize) -> Self {
        Self { slots, ..Self::default() }
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Whether an adapter could be registered. Paths that begin with `missing:` cannot be found, for tests of
    /// that case.
    pub(super) fn check_load(
        &self,
        base: &str,
        name: &str,
        path: &str,
        in_place: bool,
    ) -> Result<(), LoraError> {
        if self.slots == 0 {
            return Err(LoraError::Disabled);
        }
        if name.is_empty() || path.is_empty() {
            return Err(LoraError::Incomplete);
        }
        if name == base {
            return Err(LoraError::BaseName(name.to_owned()));
        }
        if self.by_name.contains_key(name) && !in_place {
            return Err(LoraError::AlreadyLoaded(name.to_owned()));
        }
        if path.starts_with("missing:") {
            return Err(LoraError::NoSuchPath { name: name.to_owned(), path: path.to_owned() });
        }
        Ok(())
    }

    /// Registers an adapter, and puts it in a slot.
    pub(super) fn load(
        &mut self,
        base: &str,
        name: &str,
        path: &str,
        in_place: bool,
    ) -> Result<(), LoraError> {
        self.check_load(base, name, path, in_place)?;
        self.clock += 1;
        let requests = self.by_name.get(name).map_or(0, |a| a.requests);
        let adapter =
            Adapter { path: path.to_owned(), id: self.clock, resident: false, used: self.clock, requests };
        self.by_name.insert(name.to_owned(), adapter);
        self.make_resident(name);
        Ok(())
    }

    /// Removes an adapter. Requests under way finish.
    pub(super) fn unload(&mut self, name: &str) -> Result<(), LoraError> {
        if self.slots == 0 {
            return Err(LoraError::Disabled);
        }
        self.by_name.remove(name).map(|_| ()).ok_or_else(|| LoraError::NotFound(name.to_owned()))
    }

    /// Starts a request: the adapter's number, and whether it must be loaded first. `None`: not registered.
    pub(super) fn begin(&mut self, name: &str) -> Option<(u64, bool)> {
        let resident = self.by_name.get(name)?.resident;
        if !resident {
            self.make_resident(name);
        }
        self.clock += 1;
        let adapter = self.by_name.get_mut(name)?;
        adapter.used = self.clock;
        adapter.requests += 1;
        Some((adapter.id, !resident))
    }

    /// Ends a request.
    pub(super) fn end(&mut self, name: &str) {
        if let Some(adapter) = self.by_name.get_mut(name) {
            adapter.requests = adapter.requests.saturating_sub(1);
        }
    }

    fn make_resident(&mut self, name: &str) {
        let resident = self.by_name.values().filter(|a| a.resident).count();
        if resident >= self.slots {
            // Idle ones first, then by time of use.
            let oldest =
                self.by_name.values_mut().filter(|a| a.resident).min_by_key(|a| (a.requests > 0, a.used));
            if let Some(oldest) = oldest {
                oldest.resident = false;
            }
        }
        if let Some(adapter) = self.by_name.get_mut(name) {
            adapter.resident = true;
        }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// All, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Adapter)> {
        self.by_name.iter().map(|(name, adapter)| (name.as_str(), adapter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_go_to_the_latest_used() {
        let mut a = Adapters::new(2);
        for name in ["x", "y"] {
            a.load("base", name, "s3://x", false).unwrap();
        }
        assert_eq!(a.begin("x").map(|b| b.1), Some(false));
        a.end("x");
        a.load("base", "z", "s3://z", false).unwrap();
        assert_eq!(a.begin("x").map(|b| b.1), Some(false));
        assert_eq!(a.begin("y").map(|b| b.1), Some(true), "y was pushed out by z");
        assert_eq!(a.begin("none"), None);
    }

    #[test]
    fn refusals_are_vllms() {
        let mut a = Adapters::new(1);
        a.load("base", "x", "p", false).unwrap();
        assert_eq!(a.load("base", "x", "p", false), Err(LoraError::AlreadyLoaded("x".into())));
        assert_eq!(a.load("base", "x", "p", true), Ok(()));
        assert_eq!(a.load("base", "base", "p", false), Err(LoraError::BaseName("base".into())));
        assert_eq!(a.load("base", "", "p", false), Err(LoraError::Incomplete));
        assert!(matches!(a.load("base", "m", "missing:m", false), Err(LoraError::NoSuchPath { .. })));
        assert_eq!(a.unload("y"), Err(LoraError::NotFound("y".into())));
        assert_eq!(a.unload("x"), Ok(()));
        assert_eq!(Adapters::new(0).load("base", "x", "p", false), Err(LoraError::Disabled));
    }
}
