//! The schema of an AcceleratorClass.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model_pool::Toleration;

/// One kind of accelerator: its speed, memory, power, price, and the nodes that have it. Name a preset and override what
/// differs, or give every fact.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[kube(
    group = "plimsoll.dev",
    version = "v1alpha1",
    kind = "AcceleratorClass",
    plural = "acceleratorclasses",
    shortname = "ac",
    category = "plimsoll",
    status = "AcceleratorClassStatus",
    derive = "PartialEq",
    doc = "One kind of accelerator: its speed, memory, power, price, and the nodes that have it. Name a preset and override what differs, or give every fact.",
    printcolumn(name = "Vendor", type_ = "string", json_path = ".status.vendor"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.memory"),
    printcolumn(
        name = "$/h",
        type_ = "string",
        json_path = ".status.usdPerHour",
        description = "Price of one accelerator, on demand"
    ),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".status.accelerators"),
    printcolumn(
        name = "Used",
        type_ = "integer",
        json_path = ".status.used",
        description = "Accelerators held by replicas and by other pods"
    ),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.preset) || (has(self.vendor) && has(self.teraflops) && has(self.memory) && has(self.memoryGBPerSecond) && has(self.idleWatts) && has(self.tdpWatts) && has(self.usdPerHour) && has(self.nodeSelector))")
        .message("without a preset give vendor, teraflops, memory, memoryGBPerSecond, idleWatts, tdpWatts, usdPerHour and nodeSelector")
)]
pub struct AcceleratorClassSpec {
    /// A known accelerator to take all facts from that are not given here: h100, h200, b200, a100-80, a100-40, a100-80-pcie,
    /// l40s, l4, a10g, mi300x, rtx-4090, jetson-agx-orin-64, cpu or cpu-edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub preset: Option<String>,
    /// Maker; decides the extended resource that pods request (nvidia.com/gpu, amd.com/gpu, gpu.intel.com/i915, none),
    /// unless `resource` names another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<Vendor>,
    /// Dense peak rate by number format in 10¹² FLOP/s, e.g. `{bf16: 989, fp8: 1979}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 8))]
    pub teraflops: Option<BTreeMap<String, f64>>,
    /// Memory of one accelerator, e.g. `80Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"))]
    pub memory: Option<String>,
    /// Memory bandwidth of one accelerator, 10⁹ bytes per second.
    #[serde(default, rename = "memoryGBPerSecond", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001, max = 1000000000.0))]
    pub memory_gb_per_second: Option<f64>,
    /// Accelerators that share one fast-link (NVLink, xGMI) domain; 1 = none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub link_domain_size: Option<i32>,
    /// Link bandwidth of one accelerator inside the domain (PCIe if there is no fast link), 10⁹ bytes per second.
    #[serde(default, rename = "linkGBPerSecond", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001, max = 1000000000.0))]
    pub link_gb_per_second: Option<f64>,
    /// What joins the accelerators of a node where fast links join only some of them, e.g. PCIe between NVLink pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_link: Option<NodeLink>,
    /// Network bandwidth of one accelerator to other nodes, 10⁹ bytes per second.
    #[serde(default, rename = "nicGBPerSecond", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001, max = 1000000000.0))]
    pub nic_gb_per_second: Option<f64>,
    /// Idle power of one accelerator, watts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1000000.0))]
    pub idle_watts: Option<f64>,
    /// Power of one accelerator at full load, watts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1000000.0))]
    pub tdp_watts: Option<f64>,
    /// Power that one accelerator is held to, watts (`nvidia-smi -pl`); prompts take longer under it. Above idleWatts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1000000.0))]
    pub power_cap_watts: Option<f64>,
    /// Price of one accelerator on demand, $/h. Use your own contract's price here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1000000.0))]
    pub usd_per_hour: Option<f64>,
    /// Price of one accelerator as interruptible capacity, $/h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1000000.0))]
    pub spot_usd_per_hour: Option<f64>,
    /// How often a node of interruptible capacity is taken away, times per hour. Its expected cost decides whether spot is
    /// worth its price. Left out: 0.05, once in 20 hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 3600.0))]
    pub spot_interruptions_per_hour: Option<f64>,
    /// Power usage effectiveness of the data centre: all its power over that of its machines. Left out: 1.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0, max = 10.0))]
    pub pue: Option<f64>,
    /// Carbon intensity of the grid, grams of CO₂ equivalent for a kilowatt-hour. Left out: 473, the world's average in 2024.
    #[serde(default, rename = "gramsCO2ePerKwh", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 10000.0))]
    pub grams_co2e_per_kwh: Option<f64>,
    /// The same in zones where it is another, by the nodes' `topology.kubernetes.io/zone`.
    #[serde(default, rename = "gramsCO2ePerKwhByZone", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub grams_co2e_per_kwh_by_zone: Option<BTreeMap<String, f64>>,
    /// Labels that mark a node as being of this class. Replaces the preset's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Extended resource that pods request, if it is not the vendor's usual one, e.g. `gpu.intel.com/xe` or
    /// `nvidia.com/mig-3g.40gb`. Engines tolerate a taint NoSchedule of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 317),
        regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$")
    )]
    pub resource: Option<String>,
    /// Taints that nodes of this class carry and that every engine on them tolerates, as in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Dynamic resource allocation: replicas claim devices of a DeviceClass, on nodes that publish them in ResourceSlices,
    /// instead of the extended resource. Used where the cluster serves resource.k8s.io/v1 and has the DeviceClass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dra: Option<Dra>,
    /// Accelerators that a cluster autoscaler could still add beyond the nodes that exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000000))]
    pub autoscalable_max: Option<i32>,
    /// Coefficients of the latency model, from `plimsoll profile`. Those left out come from the preset or a prior.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
}

/// What joins the link domains of a node.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct NodeLink {
    /// Accelerators of a node.
    #[schemars(range(min = 1, max = 1024))]
    pub accelerators: i32,
    /// Bandwidth of one accelerator over it, 10⁹ bytes per second.
    #[serde(rename = "GBPerSecond")]
    #[schemars(range(min = 0.001, max = 1000000000.0))]
    pub gb_per_second: f64,
    /// Latency of an all-reduce over it, microseconds. Left out: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1000000.0))]
    pub alpha_us: Option<f64>,
}

/// What replicas claim under dynamic resource allocation.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Dra {
    /// DeviceClass, e.g. `gpu.nvidia.com`.
    #[schemars(length(min = 1, max = 253))]
    pub device_class_name: String,
    /// Driver that publishes the devices. Left out: the vendor's (gpu.nvidia.com, gpu.amd.com, gpu.intel.com).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub driver: Option<String>,
    /// Text attributes that a device must have, e.g. `{type: gpu}`; a name without a domain is the driver's own. They both
    /// select devices and say which devices of a node count as accelerators of this class.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub attributes: BTreeMap<String, String>,
    /// Further CEL expressions that must hold for a device, as in a ResourceClaim. The cluster evaluates them, Plimsoll does
    /// not: devices that they rule out still count as accelerators of the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 10240)))]
    pub selectors: Vec<String>,
}

/// Maker.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
    /// Intel.
    Intel,
    /// A CPU socket.
    Cpu,
}

/// Coefficients of the latency model.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Calibration {
    /// Share of peak FLOP/s that matrix products reach in prefill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_compute: Option<f64>,
    /// Share of peak bf16 FLOP/s that attention reaches in prefill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_attention: Option<f64>,
    /// Share of memory bandwidth reached when reading weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_weights: Option<f64>,
    /// Share of memory bandwidth reached when reading KV cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_kv: Option<f64>,
    /// Share of link bandwidth reached by large all-reduces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_link: Option<f64>,
    /// Fixed cost of one transformer layer, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_overhead_us: Option<f64>,
    /// Fixed cost of one engine step, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_overhead_us: Option<f64>,
    /// Cost of one running request in a step, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_overhead_us: Option<f64>,
    /// All-reduce latency per doubling of the group, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allreduce_alpha_us: Option<f64>,
    /// CPU time to launch the kernels of one layer without CUDA graphs, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch_layer_us: Option<f64>,
    /// CPU time to schedule and launch one step with CUDA graphs, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch_step_us: Option<f64>,
    /// API server time before a request reaches the engine's queue, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_overhead_ms: Option<f64>,
    /// Relative error that predictions with these coefficients were seen to have (p90), e.g. 0.08.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_error: Option<f64>,
}

/// What the cluster has of the class.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct AcceleratorClassStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Maker, preset applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Memory of one accelerator, preset applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Price of one accelerator, preset applied, e.g. `2.30`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd_per_hour: Option<String>,
    /// Nodes of the class.
    #[serde(default)]
    pub nodes: i32,
    /// Accelerators on those nodes.
    #[serde(default)]
    pub accelerators: i32,
    /// Accelerators held by replicas and by other pods.
    #[serde(default)]
    pub used: i32,
}

/// The manifest's name of a number format.
pub(crate) fn dtype_names() -> String {
    plimsoll_fleet::Dtype::ALL.map(plimsoll_fleet::Dtype::as_str).join(", ")
}

impl From<Vendor> for plimsoll_fleet::Vendor {
    fn from(vendor: Vendor) -> Self {
        match vendor {
            Vendor::Nvidia => Self::Nvidia,
            Vendor::Amd => Self::Amd,
            Vendor::Intel => Self::Intel,
            Vendor::Cpu => Self::Cpu,
        }
    }
}
