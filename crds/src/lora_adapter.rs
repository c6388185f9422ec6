//! LoraAdapter: a fine-tune served on top of a pool's base model.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use plimsoll_fleet as fleet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::invalid::{Check, InvalidField};
use crate::quantity;

/// A LoRA adapter served on top of a pool's base model under a name of its own.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[kube(
    group = "plimsoll.dev",
    version = "v1alpha1",
    kind = "LoraAdapter",
    plural = "loraadapters",
    shortname = "lora",
    category = "plimsoll",
    namespaced,
    status = "LoraAdapterStatus",
    derive = "PartialEq",
    doc = "A LoRA adapter served on top of a pool's base model under a model name of its own.",
    printcolumn(name = "Base", type_ = "string", json_path = ".spec.basePool"),
    printcolumn(name = "Rank", type_ = "integer", json_path = ".spec.rank"),
    printcolumn(
        name = "Resident",
        type_ = "integer",
        json_path = ".status.residentReplicas",
        description = "Replicas that hold it"
    ),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct LoraAdapterSpec {
    /// The ModelPool, in the same namespace, whose base model it adapts.
    #[schemars(length(min = 1, max = 253))]
    pub base_pool: String,
    /// The model name in requests. Left out: the resource's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$"))]
    pub model_name: Option<String>,
    /// A group that it may answer for: requests name the group as they name a model, and the gateway chooses among its adapters. All
    /// of a group have one `basePool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$"))]
    pub adapter_group: Option<String>,
    /// Where the adapter's files are: `hf://`, `s3://`, `oci://`, `https://`, `http://`, `pvc://` or `file://`.
    #[schemars(length(max = 1024), regex(pattern = r"^(hf|s3|oci|https?|pvc|file)://.+$"))]
    pub source: String,
    /// SHA-256 that the file of its weights must have, in lower-case hexadecimals. Left out: what the source itself says is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
    /// LoRA rank.
    #[serde(default = "default_rank")]
    #[schemars(range(min = 1, max = 1024))]
    pub rank: i32,
    /// Size in memory, e.g. `160Mi`. Left out: measured at the first load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"))]
    pub size: Option<String>,
    /// Expected rate until traffic is seen.
    #[serde(default)]
    pub demand: AdapterDemand,
    /// Keep it resident on every replica of the pool.
    #[serde(default)]
    pub pinned: bool,
}

fn default_rank() -> i32 {
    16
}

/// Expected demand for an adapter.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct AdapterDemand {
    /// Requests per second.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1000000.0))]
    pub rps: f64,
}

/// Where the adapter is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct LoraAdapterStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Replicas that hold it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resident_on: Vec<String>,
    /// Number of replicas that hold it.
    #[serde(default)]
    pub resident_replicas: i32,
    /// Bytes of its files, as measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// Of the requests that asked for it, those that found it loaded, in whole percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hit_percent: Option<i32>,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<AdapterPlace>,
}

/// A replica that an adapter is at.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct AdapterPlace {
    /// Replica.
    pub replica: String,
    /// Engine: its engine holds it; Disk: its files are in the cache of its node.
    pub tier: String,
    /// What its last load took, its download left out, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_ms: Option<i64>,
}

impl LoraAdapter {
    /// The adapter as the domain knows it.
    ///
    /// # Errors
    /// Every invalid field, in the order of the spec.
    pub fn to_fleet(&self) -> Result<fleet::Adapter, Vec<InvalidField>> {
        let mut check = Check::default();
        let spec = &self.spec;
        let namespace = self.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let name = self.metadata.name.clone().unwrap_or_default();
        let base_pool = match fleet::PoolId::new(namespace.clone(), spec.base_pool.clone()) {
            Ok(id) => Some(id),
            Err(e) => {
                check.invalid(
                    "spec.basePool",
                    &spec.base_pool,
                    e.problem,
                    "name a ModelPool in the same namespace",
                );
                None
            }
        };
        if !["hf://", "s3://", "oci://", "https://", "http://", "pvc://", "file://"]
            .iter()
            .any(|s| spec.source.strip_prefix(s).is_some_and(|r| !r.is_empty()))
        {
            check.invalid(
                "spec.source",
                &spec.source,
                "is not a source",
                "use hf://org/repo, s3://bucket/path, oci://registry/repo:tag, https://host/folder or pvc://claim/path",
            );
        }
        if let Some(digest) = &spec.sha256
            && !(digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
        {
            check.invalid(
                "spec.sha256",
                digest,
                "is not a SHA-256",
                "give 64 lower-case hexadecimals, as sha256sum prints them, or leave it out",
            );
        }
        let rank = check.count("spec.rank", i64::from(spec.rank), 1, 1024);
        let size_bytes = spec.size.as_ref().and_then(|text| {
            let bytes = quantity::parse(text).filter(|b| *b > 0.0);
            if bytes.is_none() {
                check.invalid(
                    "spec.size",
                    text,
                    "is not an amount of memory",
                    "use one such as 160Mi, or leave it out",
                );
            }
            bytes
        });
        check.range("spec.demand.rps", spec.demand.rps, 0.0, 1e6);
        let value = base_pool.map(|base_pool| fleet::Adapter {
            namespace,
            served_name: spec.model_name.clone().unwrap_or_else(|| name.clone()),
            name,
            base_pool,
            group: spec.adapter_group.clone(),
            source: spec.source.clone(),
            sha256: spec.sha256.clone(),
            rank,
            size_bytes,
            expected_rps: spec.demand.rps,
            observed_rps: None,
            pinned: spec.pinned,
        });
        check.finish(value)
    }
}
