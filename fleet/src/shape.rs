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
