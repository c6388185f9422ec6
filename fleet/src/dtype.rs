//! Number formats of weights, activations and KV cache.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit IEEE float.
    Fp32,
    /// bfloat16.
    Bf16,
    /// 16-bit IEEE float.
    Fp16,
    /// 8-bit float (E4M3 or E5M2).
    Fp8,
    /// 8-bit integer.
    Int8,
    /// 4-bit float with block scales (NVFP4, MXFP4).
    Fp4,
    /// 4-bit integer with group scales (GPTQ, AWQ, Q4_K).
    Int4,
}

impl Dtype {
    /// Every format, widest first.
    pub const ALL: [Self; 7] =
        [Self::Fp32, Self::Bf16, Self::Fp16, Self::Fp8, Self::Int8, Self::Fp4, Self::Int4];

    /// Stored bytes per element, block or group scales included for the 4-bit formats
    /// (one 8- or 16-bit scale for 16–128 elements adds about 0.06 bytes an element).
    pub fn bytes_per_element(self) -> f64 {
        match self {
            Self::Fp32 => 4.0,
            Self::Bf16 | Self::Fp16 => 2.0,
            Self::Fp8 | Self::Int8 => 1.0,
            Self::Fp4 | Self::Int4 => 0.5625,
        }
    }

    /// The lower-case name used in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Fp4 => "fp4",
            Self::Int4 => "int4",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An unknown number format's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown dtype {0:?}; use one of fp32, bf16, fp16, fp8, int8, fp4, int4")]
pub struct UnknownDtype(pub String);

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|d| d.as_str() == s).ok_or_else(|| UnknownDtype(s.to_owned()))
    }
}
