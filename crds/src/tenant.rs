//! Tenant: who sends requests, and with what standing.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use plimsoll_fleet as fleet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::invalid::{Check, InvalidField};

/// Who sends requests: the API keys that name them, their tier and share when capacity binds, and their budget.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[kube(
    group = "plimsoll.dev",
    version = "v1alpha1",
    kind = "Tenant",
    plural = "tenants",
    category = "plimsoll",
    status = "TenantStatus",
    derive = "PartialEq",
    doc = "Who sends requests: the API keys that name them, their tier and share when capacity binds, and their budget.",
    printcolumn(name = "Tier", type_ = "string", json_path = ".spec.tier"),
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority"),
    printcolumn(name = "Weight", type_ = "number", json_path = ".spec.weight"),
    printcolumn(name = "Budget", type_ = "string", json_path = ".spec.budget"),
    printcolumn(name = "Keys", type_ = "integer", json_path = ".status.apiKeys")
)]
#[serde(rename_all = "camelCase")]
pub struct TenantSpec {
    /// Secrets that hold the tenant's API keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub api_key_secrets: Vec<SecretKey>,
    /// Tier label in metrics and reports, e.g. `gold`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub tier: Option<String>,
    /// Higher is admitted first.
    #[serde(default)]
    #[schemars(range(min = -1000000, max = 1000000))]
    pub priority: i32,
    /// Share among tenants of one priority when capacity binds.
    #[serde(default = "one")]
    #[schemars(range(min = 0.001, max = 1000000.0))]
    pub weight: f64,
    /// The Budget that the tenant's spending counts against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub budget: Option<String>,
}

fn one() -> f64 {
    1.0
}

/// One key of a Secret.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// The Secret's namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key within the Secret.
    #[serde(default = "SecretKey::default_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

impl SecretKey {
    fn default_key() -> String {
        "api-key".to_owned()
    }
}

/// What was understood of the tenant.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct TenantStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// API keys found.
    #[serde(default)]
    pub api_keys: i32,
}

impl Tenant {
    /// The tenant as the domain knows it. `api_key_sha256` are the lower-case hex digests of its keys, which the caller
    /// reads from the Secrets.
    ///
    /// # Errors
    /// Every invalid field, in the order of the spec.
    pub fn to_fleet(&self, api_key_sha256: Vec<String>) -> Result<fleet::Tenant, Vec<InvalidField>> {
        let mut check = Check::default();
        let spec = &self.spec;
        for (i, secret) in spec.api_key_secrets.iter().enumerate() {
            for (field, value) in
                [("namespace", &secret.namespace), ("name", &secret.name), ("key", &secret.key)]
            {
                if value.is_empty() {
                    check.invalid(
                        format!("spec.apiKeySecrets[{i}].{field}"),
                        "",
                        "is empty",
                        "name the Secret's namespace, name and key",
                    );
                }
            }
        }
        check.positive("spec.weight", spec.weight);
        check.finish(Some(fleet::Tenant {
            name: self.metadata.name.clone().unwrap_or_default(),
            tier: spec.tier.clone(),
            priority: spec.priority,
            weight: spec.weight,
            budget: spec.budget.clone(),
            api_key_sha256,
        }))
    }
}
