//! Accelerator classes: one kind of GPU (or CPU socket) as the planner sees it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::pool::Toleration;
use crate::{Dtype, NodeInfo};

/// Who makes it; decides the Kubernetes extended resource it is counted under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    /// NVIDIA: `nvidia.com/gpu`.
    Nvidia,
    /// AMD: `amd.com/gpu`.
    Amd,
    /// Intel: `gpu.intel.com/i915` (with the xe driver: `gpu.intel.com/xe`, see [`AcceleratorClass::resource`]).
    Intel,
    /// A CPU socket: counted in no extended resource.
    Cpu,
}

impl Vendor {
    /// The driver that publishes its devices under dynamic resource allocation, if any.
    pub fn device_driver(self) -> Option<&'static str> {
        match self {
            Self::Nvidia => Some("gpu.nvidia.com"),
            Self::Amd => Some("gpu.amd.com"),
            Self::Intel => Some("gpu.intel.com"),
            Self::Cpu => None,
        }
    }

    /// The Kubernetes extended resource, if any.
    pub fn resource_name(self) -> Option<&'static str> {
        match self {
            Self::Nvidia => Some("nvidia.com/gpu"),
            Self::Amd => Some("amd.com/gpu"),
            Self::Intel => Some("gpu.intel.com/i915"),
            Self::Cpu => None,
        }
    }
}

/// Coefficients of the latency model for one accelerator class; see `plimsoll-engine` for their use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Share of peak FLOP/s that matrix products reach in prefill.
    pub eta_compute: f64,
    /// Share of peak bf16 FLOP/s that attention reaches in prefill.
    pub eta_attention: f64,
    /// Share of memory bandwidth reached when reading weights.
    pub eta_weights: f64,
    /// Share of memory bandwidth reached when reading KV cache.
    pub eta_kv: f64,
    /// Share of link bandwidth reached by large all-reduces.
    pub eta_link: f64,
    /// Fixed cost of one transformer layer, microseconds.
    pub layer_overhead_us: f64,
    /// Fixed cost of one engine step, microseconds.
    pub step_overhead_us: f64,
    /// Cost of one running request in a step, microseconds.
    pub request_overhead_us: f64,
    /// All-reduce latency (alpha) per doubling of the group, microseconds.
    pub allreduce_alpha_us: f64,
    /// API server time before a request reaches the engine's queue, milliseconds.
    pub api_overhead_ms: f64,
    /// Relative error (e.g. 0.08 = 8 %) that predictions with these coefficients were seen to have (p90).
    pub relative_error: f64,
    /// CPU time to launch the kernels of one layer without CUDA graphs, microseconds: no step is shorter (0: not
    /// known).
    #[serde(default)]
    pub launch_layer_us: f64,
    /// CPU time to schedule and launch one step with CUDA graphs, microseconds: no step is shorter (0: not known).
    #[serde(default)]
    pub launch_step_us: f64,
}

/// What joins the accelerators of a node where fast links join only some of them, e.g. PCIe between NVLink pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NodeLink {
    /// Accelerators of a node.
    pub accelerators: u32,
    /// Bandwidth of one accelerator over this link, bytes per second.
    pub bytes_per_second: f64,
    /// Latency of an all-reduce over this link, microseconds, on top of that inside a domain.
    pub alpha_us: f64,
}

/// Where the electricity of accelerators comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Electricity {
    /// Power usage effectiveness: all power of the data centre over that of its machines, at least 1.
    pub pue: f64,
    /// Carbon intensity of the grid, grams of CO₂ equivalent for a kilowatt-hour.
    pub grams_co2e_per_kwh: f64,
    /// The same in zones where it is another.
    #[serde(default)]
    pub grams_co2e_per_kwh_by_zone: BTreeMap<String, f64>,
}

impl Default for Electricity {
    /// A large cloud's data centre (they publish a PUE of 1.09 to 1.16) on the world's average grid (473 g/kWh in 2024,
    /// Ember).
    fn default() -> Self {
        Self { pue: 1.2, grams_co2e_per_kwh: 473.0, grams_co2e_per_kwh_by_zone: BTreeMap::new() }
    }
}

impl Electricity {
    /// Carbon intensity in a zone, grams of CO₂ equivalent for a kilowatt-hour; where the zone is not known (empty), the
    /// highest that it may be.
    pub fn intensity(&self, zone: &str) -> f64 {
        let other = self.grams_co2e_per_kwh_by_zone.get(zone);
        let highest =
            || self.grams_co2e_per_kwh_by_zone.values().copied().fold(self.grams_co2e_per_kwh, f64::max);
        if zone.is_empty() { highest() } else { other.copied().unwrap_or(self.grams_co2e_per_kwh) }
    }
}

/// Interruptions of a node of spot capacity that are expected where nothing else is said, per hour: one in 20 hours.
pub const SPOT_INTERRUPTIONS_PER_HOUR: f64 = 0.05;

fn spot_interruptions_per_hour() -> f64 {
    SPOT_INTERRUPTIONS_PER_HOUR
}

/// One kind of accelerator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AcceleratorClass {
    /// Class name, e.g. `h100`.
    pub name: String,
    /// Maker.
    pub vendor: Vendor,
    /// Dense peak FLOP/s by format; a format that is absent is computed at the bf16 (else fp16, fp32) rate.
    pub flops_per_second: BTreeMap<Dtype, f64>,
    /// Memory of one accelerator, bytes.
    pub memory_bytes: f64,
    /// Memory bandwidth of one accelerator, bytes per second.
    pub memory_bytes_per_second: f64,
    /// Accelerators that share one fast-link domain (1 = none).
    pub link_domain_size: u32,
    /// Link bandwidth of one accelerator inside the domain, bytes per second (PCIe if there is no fast link).
    pub link_bytes_per_second: f64,
    /// What joins the link domains of a node (`None`: nothing does, or a node is one domain).
    #[serde(default)]
    pub node_link: Option<NodeLink>,
    /// Network bandwidth of one accelerator to other nodes, bytes per second.
    pub nic_bytes_per_second: f64,
    /// Idle power, watts.
    pub idle_watts: f64,
    /// Power at full load, watts.
    pub tdp_watts: f64,
    /// Power that the accelerator is held to, watts (`None`: its full load).
    #[serde(default)]
    pub power_cap_watts: Option<f64>,
    /// Price of one accelerator, on demand.
    pub usd_per_hour: f64,
    /// Price of one accelerator as spot capacity, if offered.
    pub spot_usd_per_hour: Option<f64>,
    /// How often a node of it that is spot capacity is taken away, times per hour.
    #[serde(default = "spot_interruptions_per_hour")]
    pub spot_interruptions_per_hour: f64,
    /// Where its electricity comes from.
    #[serde(default)]
    pub electricity: Electricity,
    /// Labels a node must carry to be of this class.
    pub node_selector: BTreeMap<String, String>,
    /// Accelerators that an autoscaler could still add beyond the nodes that exist.
    pub autoscalable_max: u32,
    /// Extended resource that pods request, where it is not the vendor's usual one.
    #[serde(default)]
    pub resource: Option<String>,
    /// Taints that nodes of this class carry and engines tolerate.
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
    /// How pods claim its accelerators where the cluster allocates devices dynamically.
    #[serde(default)]
    pub devices: Option<DeviceRequest>,
    /// Latency-model coefficients.
    pub calibration: Calibration,
}

/// What to claim under dynamic resource allocation (`resource.k8s.io`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceRequest {
    /// Name of the DeviceClass.
    pub device_class: String,
    /// Driver that publishes the devices.
    pub driver: String,
    /// Attributes that a device must have, as text; a name without a domain is the driver's own.
    pub attributes: BTreeMap<String, String>,
    /// Further CEL expressions that must hold for a device.
    pub selectors: Vec<String>,
}

impl AcceleratorClass {
    /// Peak FLOP/s for a format, falling back to the nearest wider one that the hardware computes in.
    pub fn flops(&self, dtype: Dtype) -> f64 {
        [dtype, Dtype::Bf16, Dtype::Fp16, Dtype::Fp32]
            .iter()
            .find_map(|d| self.flops_per_second.get(d).copied())
            .or_else(|| self.flops_per_second.values().copied().reduce(f64::min))
            .unwrap_or(0.0)
    }

    /// Most power that one accelerator draws: its full load's, or what it is held to.
    pub fn most_watts(&self) -> f64 {
        self.power_cap_watts.unwrap_or(self.tdp_watts).min(self.tdp_watts).max(self.idle_watts)
    }

    /// Accelerators of one node of this class: of the largest on-demand one there is, else as many as share a link
    /// domain.
    pub fn node_gpus(&self, nodes: &[NodeInfo]) -> u32 {
        let of_class = nodes.iter().filter(|n| n.accelerator == self.name && !n.spot);
        of_class.map(|n| n.allocatable_gpus).max().unwrap_or(self.link_domain_size).max(1)
    }

    /// The extended resource that pods request, if any.
    pub fn resource_name(&self) -> Option<&str> {
        self.resource.as_deref().or(self.vendor.resource_name())
    }

    /// Taints that every engine on this class tolerates: the class's own, and that of GPU nodes, which are commonly
    /// tainted with their own resource's name.
    pub fn all_tolerations(&self) -> Vec<Toleration> {
        let mut all = self.tolerations.clone();
        all.extend(self.resource_name().map(|resource| Toleration {
            key: Some(resource.to_owned()),
            operator: Some("Exists".to_owned()),
            value: None,
            effect: Some("NoSchedule".to_owned()),
        }));
        all
    }

    /// Whether a node with these labels is of this class. A class without selector matches no node.
    pub fn matches_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.node_selector.is_empty() && self.node_selector.iter().all(|(k, v)| labels.get(k) == Some(v))
    }
}
