//! Shapes: variant × accelerator class × parallelism × role of a replica.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Dtype;

/// One deployable form of a model's weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// Name within the pool, e.g. `fp8`.
    pub name: String,
    /// Weight format.
    pub weights: Dtype,
    /// KV-cache format.
    pub kv: Dtype,
    /// Quality relative to the best variant, 0–1.
    pub quality: f64,
    /// Where these weights are, if not at the pool's own source.
    pub source: Option<String>,
}

/// Which phases a replica serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Prefill and decode.
    #[default]
    Mixed,
    /// Prefill only.
    Prefill,
    /// Decode only.
    Decode,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mixed => "mixed",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        })
    }
}

/// The form of one replica. Displayed as people say it: `fp8 TP2 H100`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Name of the [`Variant`].
    pub variant: String,
    /// Name of the accelerator class.
    pub accelerator: String,
    /// Tensor-parallel degree.
    pub tensor_parallel: u32,
    /// Pipeline-parallel degree.
    pub pipeline_parallel: u32,
    /// Attention data-parallel degree: ranks of `tensor_parallel` accelerators that hold a copy of the attention
    /// weights each, serve requests of their own, and share the experts of a mixture of experts. 1 for dense models.
    #[serde(default = "one")]
    pub data_parallel: u32,
    /// Expert-parallel degree: into how many parts whole experts are divided over the accelerators of a stage; each
    /// part is split like a tensor over the rest. 1: every expert is split over all of them.
    #[serde(default = "one")]
    pub expert_parallel: u32,
    /// Role.
    pub role: Role,
}

fn one() -> u32 {
    1
}

impl Shape {
    /// Accelerators a replica of this shape occupies.
    pub fn gpus(&self) -> u32 {
        self.tensor_parallel.saturating_mul(self.groups())
    }

    /// Accelerators of one pipeline stage: those that share its experts.
    pub fn stage_gpus(&self) -> u32 {
        self.tensor_parallel.saturating_mul(self.data_parallel)
    }

    /// Tensor-parallel groups: the parts that cannot be spread over nodes.
    fn groups(&self) -> u32 {
        self.pipeline_parallel.saturating_mul(self.data_parallel)
    }

    /// Over how many nodes a replica of this shape may be spread, fewest first: equally many whole tensor-parallel
    /// groups on each, since such a group stays on one node.
    pub fn splits(&self) -> impl Iterator<Item = u32> + '_ {
        let groups = self.groups();
        (1..=groups).filter(move |nodes| groups.is_multiple_of(*nodes))
    }

    /// The same where each stage stays whole, as plans have it: attention ranks exchange tokens with all experts in every layer.
    pub fn stage_splits(&self) -> impl Iterator<Item = u32> + '_ {
        (1..=self.pipeline_parallel).filter(move |nodes| self.pipeline_parallel.is_multiple_of(*nodes))
    }

    /// Accelerators that a replica takes on each of so many nodes.
    pub fn gpus_on_each(&self, nodes: u32) -> u32 {
        self.gpus().div_ceil(nodes.max(1))
    }

    /// Over how many nodes of `node_gpus` accelerators a replica has to be spread (at most one tensor-parallel group
    /// on each, however small they are).
    pub fn nodes_of(&self, node_gpus: u32) -> u32 {
        self.splits()
            .find(|nodes| self.gpus_on_each(*nodes) <= node_gpus)
            .unwrap_or_else(|| self.groups().max(1))
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} TP{}", self.variant, self.tensor_parallel)?;
        for (name, degree) in
            [("DP", self.data_parallel), ("EP", self.expert_parallel), ("PP", self.pipeline_parallel)]
        {
            if degree > 1 {
                write!(f, " {name}{degree}")?;
            }
        }
        write!(f, " {}", self.accelerator.to_uppercase())?;
        if self.role != Role::Mixed {
            write!(f, " {}", self.role)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(tensor_parallel: u32, pipeline_parallel: u32) -> Shape {
        let (variant, accelerator) = ("bf16".to_owned(), "h100".to_owned());
        Shape {
            variant,
            accelerator,
            tensor_parallel,
            pipeline_parallel,
            data_parallel: 1,
            expert_parallel: 1,
            role: Role::Mixed,
        }
    }

    #[test]
    fn attention_ranks_multiply_and_experts_do_not() {
        let wide = Shape { data_parallel: 8, expert_parallel: 16, ..shape(2, 1) };
        assert_eq!((wide.gpus(), wide.stage_gpus(), wide.nodes_of(8)), (16, 16, 2));
        assert_eq!(wide.to_string(), "bf16 TP2 DP8 EP16 H100");
        assert_eq!(wide.stage_splits().collect::<Vec<_>>(), [1], "its ranks stay together");
        assert_eq!(shape(4, 6).stage_splits().collect::<Vec<_>>(), [1, 2, 3, 6]);
        assert_eq!(shape(2, 2).to_string(), "bf16 TP2 PP2 H100");
    }

    #[test]
    fn stages_are_spread_evenly_over_as_few_nodes_as_hold_them() {
        assert_eq!(shape(8, 2).nodes_of(8), 2);
        assert_eq!(shape(4, 2).nodes_of(8), 1);
        assert_eq!(shape(4, 4).nodes_of(8), 2);
        assert_eq!((shape(2, 6).nodes_of(8), shape(2, 6).gpus_on_each(2)), (2, 6));
        assert_eq!(shape(8, 3).nodes_of(8), 3);
        assert_eq!(shape(8, 2).nodes_of(4), 2, "no stage is cut");
        assert_eq!(shape(4, 6).splits().collect::<Vec<_>>(), [1, 2, 3, 6]);
    }
}
