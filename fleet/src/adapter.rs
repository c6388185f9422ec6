//! LoRA adapters.

use serde::{Deserialize, Serialize};

use crate::{EngineKind, PoolId};

/// Most adapters in a batch that engines are started with.
pub const MOST_SLOTS: u32 = 8;
/// The ranks that vLLM can be started for.
const VLLM_RANKS: [u32; 8] = [8, 16, 32, 64, 128, 256, 320, 512];

/// A LoRA adapter served on top of a pool's base model under a served name of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adapter {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Resource name.
    pub name: String,
    /// The model name in requests.
    pub served_name: String,
    /// The pool whose base model it adapts.
    pub base_pool: PoolId,
    /// The group of adapters, named in requests as a model is, that it may answer for. All of a group adapt one pool's model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Where the adapter's weights are.
    pub source: String,
    /// SHA-256 that its weights' file must have, in lower-case hexadecimals (`None`: any).
    #[serde(default)]
    pub sha256: Option<String>,
    /// LoRA rank.
    pub rank: u32,
    /// Size in memory (`None` until measured).
    pub size_bytes: Option<f64>,
    /// Expected rate before traffic is seen, requests per second.
    pub expected_rps: f64,
    /// Rate as seen of late, coarse so that noise moves no plan, requests per second (`None`: nobody has asked for it yet).
    #[serde(default)]
    pub observed_rps: Option<f64>,
    /// Keep resident everywhere the pool runs.
    pub pinned: bool,
}

impl Adapter {
    /// Rate to plan for, requests per second.
    pub fn planned_rps(&self) -> f64 {
        let rps = self.observed_rps.unwrap_or(self.expected_rps);
        if rps.is_finite() { rps.max(0.0) } else { 0.0 }
    }
}

/// Room for LoRA adapters that an engine is started with. None at all: no slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AdapterRoom {
    /// Adapters that it holds at once.
    pub slots: u32,
    /// Highest rank among them; each slot is of this size.
    pub max_rank: u32,
}

impl AdapterRoom {
    /// The room that engines of a kind are started with for a pool's adapters: as many slots as there are adapters, in powers of two
    /// so that not every further one means other engines, eight at most; of the largest rank, as the engine counts ranks.
    pub fn wanted<'a>(kind: EngineKind, adapters: impl IntoIterator<Item = &'a Adapter>) -> Self {
        let (mut count, mut rank) = (0_u32, 0);
        for adapter in adapters {
            (count, rank) = (count.saturating_add(1), rank.max(adapter.rank));
        }
        if count == 0 || !kind.serves_adapters() {
            return Self::default();
        }
        let max_rank = match kind {
            EngineKind::Vllm => {
                let largest = VLLM_RANKS[VLLM_RANKS.len() - 1];
                VLLM_RANKS.into_iter().find(|r| *r >= rank).unwrap_or(largest)
            }
            _ => rank,
        };
        Self { slots: count.min(MOST_SLOTS).next_power_of_two(), max_rank }
    }

    /// Whether an engine with this room can do all that one with the other could.
    pub fn covers(&self, other: &Self) -> bool {
        other.slots == 0 || (self.slots >= other.slots && self.max_rank >= other.max_rank)
    }

    /// Whether an adapter of a rank fits into a slot.
    pub fn fits(&self, rank: u32) -> bool {
        self.slots > 0 && rank <= self.max_rank
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapters(ranks: &[u32]) -> Vec<Adapter> {
        let adapter = |(i, rank): (usize, &u32)| Adapter {
            namespace: "default".to_owned(),
            name: format!("a{i}"),
            served_name: format!("a{i}"),
            base_pool: "default/chat".parse().unwrap(),
            group: None,
            source: "hf://org/a".to_owned(),
            sha256: None,
            rank: *rank,
            size_bytes: None,
            expected_rps: 0.5,
            observed_rps: None,
            pinned: false,
        };
        ranks.iter().enumerate().map(adapter).collect()
    }

    fn room(kind: EngineKind, ranks: &[u32]) -> (u32, u32) {
        let wanted = AdapterRoom::wanted(kind, &adapters(ranks));
        (wanted.slots, wanted.max_rank)
    }

    #[test]
    fn room_is_for_the_largest_rank_and_grows_in_steps() {
        assert_eq!(room(EngineKind::Vllm, &[]), (0, 0));
        assert_eq!(room(EngineKind::Vllm, &[8]), (1, 8));
        assert_eq!(room(EngineKind::Vllm, &[8, 20, 8]), (4, 32), "vLLM knows no rank between 16 and 32");
        assert_eq!(room(EngineKind::Sglang, &[8, 20, 8]), (4, 20));
        assert_eq!(room(EngineKind::Vllm, &[16; 5]), (8, 16));
        assert_eq!(room(EngineKind::Vllm, &[16; 200]), (8, 16));
        assert_eq!(room(EngineKind::Vllm, &[4096]), (1, 512), "what no engine can be started for");
        assert_eq!(room(EngineKind::Llamacpp, &[8]), (0, 0));
    }

    #[test]
    fn more_room_does_for_less_and_less_does_not_for_more() {
        let of = |slots, max_rank| AdapterRoom { slots, max_rank };
        let none = AdapterRoom::default();
        assert!(of(4, 16).covers(&of(2, 8)) && of(4, 16).covers(&none) && none.covers(&none));
        assert!(!none.covers(&of(1, 8)) && !of(4, 16).covers(&of(8, 16)) && !of(8, 16).covers(&of(1, 32)));
        assert!(of(1, 16).fits(16) && !of(1, 16).fits(17) && !none.fits(0));
    }

    #[test]
    fn what_was_seen_counts_before_what_was_expected() {
        let mut adapter = adapters(&[8]).remove(0);
        assert_eq!(adapter.planned_rps(), 0.5);
        adapter.observed_rps = Some(0.0);
        assert_eq!(adapter.planned_rps(), 0.0);
        adapter.observed_rps = Some(f64::NAN);
        assert_eq!(adapter.planned_rps(), 0.0);
    }
}
