//! Whether an adapter's files are what engines can load: read before an engine sees them. Pure.
//!
//! The format is PEFT's (`adapter_config.json`, `adapter_model.safetensors`) with safetensors' header: eight bytes of its length,
//! little-endian, then JSON that gives each tensor's type, shape and place; then the tensors, without a gap.

use std::collections::BTreeMap;

use plimsoll_fleet::AdapterFiles;
use serde::Deserialize;
use serde_json::Value;

/// File of an adapter's settings.
pub const CONFIG: &str = "adapter_config.json";
/// File of its weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// Longest settings that are read, bytes.
pub const LONGEST_CONFIG: usize = 1 << 20;
/// Longest header that is read, bytes: a thousand times what 80 layers need.
pub const LONGEST_HEADER: u64 = 64 << 20;

/// Projections that read the model's hidden state, so that the width of their input is the model's.
const OF_HIDDEN: [&str; 8] =
    ["q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "c_attn"];

/// What is wrong with an adapter's files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadFiles {
    /// A file is not what it should be.
    #[error("{file} is damaged: {problem}; upload it again")]
    Corrupt {
        /// Which.
        file: &'static str,
        /// Why.
        problem: String,
    },
    /// The settings are not of a LoRA adapter.
    #[error("{CONFIG} {problem}; point spec.source at a LoRA adapter in PEFT's format")]
    NotLora {
        /// Why.
        problem: String,
    },
    /// More than engines have room for.
    #[error(
        "its rank is {rank} and engines of this pool have room for {limit}; set spec.rank to {rank}, and change spec.engine of the pool \
         to have its engines replaced"
    )]
    Rank {
        /// Its own.
        rank: u64,
        /// The pool's.
        limit: u32,
    },
    /// Made for another model.
    #[error(
        "it was made for another model than the pool's{named}: {problem}; set spec.basePool to a pool of its base model"
    )]
    Base {
        /// Name of its base model, where it says one.
        named: String,
        /// What differs.
        problem: String,
    },
    /// Another digest than `spec.sha256`.
    #[error(
        "the SHA-256 of {WEIGHTS} is {found} and spec.sha256 is {wanted}; correct one of them: the file was changed, or is another"
    )]
    Digest {
        /// As it is.
        found: String,
        /// As it should be.
        wanted: String,
    },
}

/// What its files say of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Largest rank of its matrices.
    pub rank: u64,
    /// Its base model's name.
    pub base: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

fn corrupt(problem: impl Into<String>) -> BadFiles {
    BadFiles::Corrupt { file: WEIGHTS, problem: problem.into() }
}

/// The length of the header of a safetensors file that begins with these bytes and is `length` bytes long.
///
/// # Errors
/// [`BadFiles::Corrupt`] if it cannot be one.
pub fn header_length(begin: &[u8], length: u64) -> Result<u64, BadFiles> {
    let Some(begin) = begin.first_chunk::<8>() else {
        return Err(corrupt(format!("it is {length} bytes long, too short for a header")));
    };
    let header = u64::from_le_bytes(*begin);
    if header > LONGEST_HEADER || header.saturating_add(8) > length {
        return Err(corrupt(format!(
            "its header says that it is {header} bytes long, in a file of {length}"
        )));
    }
    Ok(header)
}

/// Judges settings and weights. `header` is the header's JSON, `length` the whole file's bytes, `limit` the largest rank of the pool's
/// adapters (0: unknown).
///
/// # Errors
/// [`BadFiles`], the first thing that is wrong.
pub fn check(
    config: &[u8],
    header: &[u8],
    length: u64,
    expected: &AdapterFiles,
    limit: u32,
) -> Result<Facts, BadFiles> {
    let base = settings(config)?;
    let tensors = tensors(header, length)?;
    let mut rank = 0;
    let wrong = |problem| BadFiles::Base {
        named: base.as_ref().map(|b| format!(" ({b})")).unwrap_or_default(),
        problem,
    };
    for (name, tensor) in &tensors {
        if let Some(layer) =
            layer(name).filter(|layer| expected.layers > 0 && *layer >= u64::from(expected.layers))
        {
            return Err(wrong(format!(
                "it has weights of layer {layer}, and the model has {} layers",
                expected.layers
            )));
        }
        let (Some(module), [r, width]) = (module_of(name), &tensor.shape[..]) else { continue };
        rank = rank.max(*r);
        if expected.hidden > 0 && OF_HIDDEN.contains(&module) && *width != u64::from(expected.hidden) {
            return Err(wrong(format!(
                "{module} takes {width} numbers, and the model's hidden state has {}",
                expected.hidden
            )));
        }
    }
    if rank == 0 {
        return Err(BadFiles::NotLora {
            problem: format!("goes with a {WEIGHTS} that has no lora_A matrices"),
        });
    }
    if limit > 0 && rank > u64::from(limit) {
        return Err(BadFiles::Rank { rank, limit });
    }
    Ok(Facts { rank, base })
}

/// The name of the base model.
fn settings(config: &[u8]) -> Result<Option<String>, BadFiles> {
    let config: Value = serde_json::from_slice(config)
        .map_err(|e| BadFiles::Corrupt { file: CONFIG, problem: format!("it is not JSON: {e}") })?;
    match config["peft_type"].as_str() {
        Some(kind) if kind.eq_ignore_ascii_case("lora") => {}
        Some(kind) => {
            let kind: String = kind.chars().take(40).collect();
            return Err(BadFiles::NotLora { problem: format!("says that it is a {kind:?}") });
        }
        None => return Err(BadFiles::NotLora { problem: "has no peft_type".to_owned() }),
    }
    let base = config["base_model_name_or_path"].as_str().filter(|base| !base.is_empty());
    Ok(base.map(|base| base.chars().filter(|c| !c.is_control()).take(120).collect()))
}

/// The tensors of a header whose file is whole.
fn tensors(header: &[u8], length: u64) -> Result<BTreeMap<String, Tensor>, BadFiles> {
    let all: BTreeMap<String, Value> =
        serde_json::from_slice(header).map_err(|e| corrupt(format!("its header is not JSON: {e}")))?;
    let mut tensors = BTreeMap::new();
    for (name, value) in all.into_iter().filter(|(name, _)| name != "__metadata__") {
        let tensor: Tensor = serde_json::from_value(value)
            .map_err(|e| corrupt(format!("its header is wrong at {name:.80}: {e}")))?;
        tensors.insert(name, tensor);
    }
    let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| tensor.data_offsets);
    let mut at = 0;
    for (name, tensor) in order {
        let [begin, end] = tensor.data_offsets;
        if begin != at || end < begin {
            return Err(corrupt(format!("there is a gap or an overlap before {name:.80}")));
        }
        let bytes = tensor
            .shape
            .iter()
            .try_fold(bits(&tensor.dtype).unwrap_or(0), |all, n| all.checked_mul(*n))
            .map(|bits| bits / 8);
        if bits(&tensor.dtype).is_some() && bytes != Some(end - begin) {
            return Err(corrupt(format!(
                "{name:.80} takes {} bytes and its shape says otherwise",
                end - begin
            )));
        }
        at = end;
    }
    let whole = (header.len() as u64).saturating_add(8).saturating_add(at);
    if whole != length {
        return Err(corrupt(format!(
            "it has {length} bytes of {whole}: it was cut off, or something follows it"
        )));
    }
    Ok(tensors)
}

/// Bits of a number of a type; `None`: a type that is not known, whose size is taken as it is said.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "I64" | "U64" | "F64" => 64,
        _ => return None,
    })
}

/// Of `….layers.7.self_attn.q_proj.lora_A.weight`: `q_proj`. `None`: not the matrix that a rank is read from.
fn module_of(name: &str) -> Option<&str> {
    let (before, _) = name.split_once(".lora_A")?;
    before.rsplit('.').next()
}

/// Of the same: 7.
fn layer(name: &str) -> Option<u64> {
    let mut parts = name.split('.').skip_while(|part| !matches!(*part, "layers" | "h" | "blocks"));
    parts.nth(1)?.parse().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A safetensors file with `q_proj` of these layers.
    pub(crate) fn weights(rank: u64, hidden: u64, layers: u64) -> Vec<u8> {
        let (mut header, mut at) = (json!({"__metadata__": {"format": "pt"}}), 0);
        for layer in 0..layers {
            for (matrix, shape) in [("lora_A", [rank, hidden]), ("lora_B", [hidden, rank])] {
                let end = at + 4 * rank * hidden;
                header[format!("base_model.model.model.layers.{layer}.self_attn.q_proj.{matrix}.weight")] =
                    json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]});
                at = end;
            }
        }
        let header = header.to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.resize(file.len() + at as usize, 1);
        file
    }

    pub(crate) fn config() -> Vec<u8> {
        json!({"peft_type": "LORA", "r": 8, "base_model_name_or_path": "acme/base"}).to_string().into_bytes()
    }

    fn judged(config: &[u8], file: &[u8], expected: &AdapterFiles, limit: u32) -> Result<Facts, BadFiles> {
        let header = header_length(file, file.len() as u64)? as usize;
        check(config, &file[8..8 + header], file.len() as u64, expected, limit)
    }

    fn of(hidden: u32, layers: u32) -> AdapterFiles {
        AdapterFiles { hidden, layers, ..AdapterFiles::default() }
    }

    #[test]
    fn what_fits_is_measured() {
        let facts = judged(&config(), &weights(8, 32, 2), &of(32, 2), 8).unwrap();
        assert_eq!(facts, Facts { rank: 8, base: Some("acme/base".into()) });
        assert!(judged(&config(), &weights(8, 32, 2), &AdapterFiles::default(), 0).is_ok());
    }

    #[test]
    fn what_does_not_fit_says_why() {
        let said = |config: &[u8], file: &[u8], expected: AdapterFiles, limit: u32| {
            judged(config, file, &expected, limit).unwrap_err().to_string()
        };
        let good = weights(8, 32, 2);
        assert!(
            said(&config(), &good, of(32, 2), 4)
                .contains("its rank is 8 and engines of this pool have room for 4")
        );
        let base = said(&config(), &good, of(64, 2), 8);
        assert!(
            base.contains("acme/base") && base.contains("32") && base.contains("spec.basePool"),
            "{base}"
        );
        assert!(said(&config(), &good, of(32, 1), 8).contains("layer 1"));
        assert!(said(b"{", &good, of(0, 0), 8).contains("not JSON"));
        assert!(said(b"{\"peft_type\":\"IA3\"}", &good, of(0, 0), 8).contains("IA3"));
        assert!(said(b"{}", &good, of(0, 0), 8).contains("peft_type"));
        let none = [&2u64.to_le_bytes()[..], b"{}"].concat();
        assert!(said(&config(), &none, of(0, 0), 8).contains("no lora_A"));
    }

    #[test]
    fn a_file_that_was_cut_off_or_grew_is_damaged() {
        let good = weights(4, 16, 1);
        for length in [0, 7, 8, 20, good.len() - 1] {
            let error = judged(&config(), &good[..length], &of(16, 1), 8).unwrap_err();
            assert!(matches!(error, BadFiles::Corrupt { .. }), "{length}: {error}");
        }
        let longer = [&good[..], b"more"].concat();
        assert!(
            judged(&config(), &longer, &of(16, 1), 8).unwrap_err().to_string().contains("something follows")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(file in prop::collection::vec(any::<u8>(), 0..200), header in "[ -~]{0,120}") {
            let _ = judged(&config(), &file, &of(16, 1), 8);
            let mut built = (header.len() as u64).to_le_bytes().to_vec();
            built.extend_from_slice(header.as_bytes());
            let _ = judged(&config(), &built, &of(16, 1), 8);
        }

        #[test]
        fn any_offsets_are_judged(begin: u64, end: u64, a: u64, b: u64, dtype in "F32|BF16|X9") {
            let header = json!({"layers.0.q_proj.lora_A.weight": {"dtype": dtype, "shape": [a, b], "data_offsets": [begin, end]}}).to_string();
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend_from_slice(header.as_bytes());
            let _ = judged(&config(), &file, &of(16, 1), 8);
        }
    }
}
