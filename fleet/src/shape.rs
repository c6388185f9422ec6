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
    /// Role.
    pub role: Role,
}

impl Shape {
    /// Accelerators a replica of this shape occupies.
    pub fn gpus(&self) -> u32 {
        self.tensor_parallel * self.pipeline_parallel
    }

    /// Over how many nodes a replica of this shape may be spread, fewest first: equally many whole pipeline stages on each,
    /// since a tensor-parallel group stays on one node.
    pub fn splits(&self) -> impl Iterator<Item = u32> + '_ {
        (1..=self.pipeline_parallel).filter(|nodes| self.pipeline_parallel.is_multiple_of(*nodes))
    }

    /// Accelerators that a replica takes on each of so many nodes.
    pub fn gpus_on_each(&self, nodes: u32) -> u32 {
        self.gpus().div_ceil(nodes.max(1))
    }

    /// Over how many nodes of `node_gpus` accelerators a replica has to be spread (at most one stage on each, however small
    /// they are).
    pub fn nodes_of(&self, node_gpus: u32) -> u32 {
        self.splits()
            .find(|nodes| self.gpus_on_each(*nodes) <= node_gpus)
            .unwrap_or_else(|| self.pipeline_parallel.max(1))
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} TP{}", self.variant, self.tensor_parallel)?;
        if self.pipeline_parallel > 1 {
            write!(f, " PP{}", self.pipeline_parallel)?;
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
        Shape { variant, accelerator, tensor_parallel, pipeline_parallel, role: Role::Mixed }
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
