//! Which prefill replica may hand its KV cache to which decode replica. Pure.
//!
//! A KV cache is read by another process as the bytes that were written: that takes the same engine release with the same
//! configuration, the same number format, and layers and heads that are split so that one split is a refinement of the other.

use crate::{ModelPool, ReplicaStatus, Role};

/// Why two replicas cannot be a pair.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Incompatible {
    /// Not a prefill and a decode replica of one pool.
    #[error("{prefill} and {decode} are not a prefill and a decode replica of one pool")]
    Roles {
        /// The first.
        prefill: String,
        /// The second.
        decode: String,
    },
    /// Different engine configurations, or unknown ones.
    #[error("engine revisions {prefill:?} and {decode:?} differ or are not known")]
    Revision {
        /// Of the prefill replica.
        prefill: String,
        /// Of the decode replica.
        decode: String,
    },
    /// Different formats of the KV cache.
    #[error("variants {prefill} and {decode} keep KV caches of different formats")]
    Format {
        /// Variant of the prefill replica.
        prefill: String,
        /// Variant of the decode replica.
        decode: String,
    },
    /// Splits of which neither refines the other.
    #[error(
        "TP{prefill} and TP{decode} split heads so that neither divides the other, or layers are split differently"
    )]
    Layout {
        /// Tensor-parallel degree of the prefill replica.
        prefill: u32,
        /// … of the decode replica.
        decode: u32,
    },
}

/// Whether a decode replica can go on from the KV cache of a prefill replica.
///
/// # Errors
/// [`Incompatible`] says what differs.
pub fn compatible(
    pool: &ModelPool,
    prefill: &ReplicaStatus,
    decode: &ReplicaStatus,
) -> Result<(), Incompatible> {
    let (p, d) = (&prefill.shape, &decode.shape);
    let of_pool = prefill.pool == pool.id && decode.pool == pool.id;
    if !of_pool || p.role != Role::Prefill || d.role != Role::Decode {
        return Err(Incompatible::Roles { prefill: prefill.id.to_string(), decode: decode.id.to_string() });
    }
    if prefill.revision.is_empty() || prefill.revision != decode.revision {
        return Err(Incompatible::Revision {
            prefill: prefill.revision.clone(),
            decode: decode.revision.clone(),
        });
    }
    let format = |variant: &str| pool.variant(variant).map(|v| v.kv);
    if format(&p.variant).is_none() || format(&p.variant) != format(&d.variant) {
        return Err(Incompatible::Format { prefill: p.variant.clone(), decode: d.variant.clone() });
    }
    if !splits_fit(p.tensor_parallel, d.tensor_parallel) || p.pipeline_parallel != d.pipeline_parallel {
        return Err(Incompatible::Layout { prefill: p.tensor_parallel, decode: d.tensor_parallel });
    }
    Ok(())
}

/// Whether one split of heads is a refinement of the other.
pub fn splits_fit(a: u32, b: u32) -> bool {
    let (few, many) = (a.min(b), a.max(b));
    few != 0 && many.is_multiple_of(few)
}

/// All of a replica's KV cache that must be equal in a pair but the split of heads, as a text; `None` where that is not known.
pub fn cache_format(pool: &ModelPool, replica: &ReplicaStatus) -> Option<String> {
    let variant = pool.variant(&replica.shape.variant)?;
    let stages = replica.shape.pipeline_parallel;
    (!replica.revision.is_empty()).then(|| format!("{}/{}/pp{stages}", replica.revision, variant.kv.as_str()))
}

/// Whether a replica can serve at all beside these others: prefill and decode replicas need a compatible counterpart among
/// them, so that a new revision takes no request before both halves of it are there. O(others).
pub fn is_paired<'a>(
    pool: &ModelPool,
    replica: &ReplicaStatus,
    others: impl IntoIterator<Item = &'a ReplicaStatus>,
) -> bool {
    let mut others = others.into_iter();
    match replica.shape.role {
        Role::Mixed => true,
        Role::Prefill => others.any(|other| compatible(pool, replica, other).is_ok()),
        Role::Decode => others.any(|other| compatible(pool, other, replica).is_ok()),
    }
}
