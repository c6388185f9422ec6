//! Accelerator presets, from the makers' data sheets (dense peak rates, no sparsity) and typical on-demand prices.

use std::collections::BTreeMap;

use crate::{AcceleratorClass, Calibration, Dtype, Vendor};

/// The calibrated vector for vLLM on Hopper: median TPOT error 4 % (mean 7 %) over 198 closed-loop measurements,
/// H100 and H200, TP 1–8.
const HOPPER: Calibration = Calibration {
    eta_compute: 0.588,
    eta_attention: 0.70,
    eta_weights: 0.95,
    eta_kv: 1.0,
    eta_link: 0.69,
    layer_overhead_us: 60.6,
    step_overhead_us: 0.0,
    request_overhead_us: 19.0,
    allreduce_alpha_us: 2.95,
    api_overhead_ms: 17.0,
    relative_error: 0.15,
};

/// Prior for hardware without measurements of its own: Hopper's shares, wider error.
const PRIOR: Calibration = Calibration { relative_error: 0.25, ..HOPPER };

const GB: f64 = 1e9;
const TERA: f64 = 1e12;

struct Facts {
    name: &'static str,
    vendor: Vendor,
    flops: &'static [(Dtype, f64)],
    memory_gb: f64,
    memory_gb_per_second: f64,
    domain: u32,
    link_gb_per_second: f64,
    nic_gb_per_second: f64,
    idle_watts: f64,
    tdp_watts: f64,
    usd_per_hour: f64,
    spot_usd_per_hour: Option<f64>,
    label: (&'static str, &'static str),
    calibration: Calibration,
}

const GPU_PRODUCT: &str = "nvidia.com/gpu.product";

const FACTS: &[Facts] = &[
    Facts {
        name: "h100",
        vendor: Vendor::Nvidia,
        flops: &[(Dtype::Bf16, 989.0 * TERA), (Dtype::Fp8, 1979.0 * TERA), (Dtype::Int8, 1979.0 * TERA)],
        memory_gb: 85.0,
        memory_gb_per_second: 3350.0,
        domain: 8,
        link_gb_per_second: 450.0,
        nic_gb_per_second: 50.0,
        idle_watts: 70.0,
        tdp_watts: 700.0,
        usd_per_hour: 2.30,
        spot_usd_per_hour: Some(1.40),
        label: (GPU_PRODUCT, "NVIDIA-H100-80GB-HBM3"),
        calibration: HOPPER,
    },
    Facts {
        name: "h200",
        vendor: Vendor::Nvidia,
        flops: &[(Dtype::Bf16, 989.0 * TERA), (Dtype::Fp8, 1979.0 * TERA), (Dtype::Int8, 1979.0 * TERA)],
        memory_gb: 151.0,
        memory_gb_per_second: 4800.0,
        domain: 8,
        link_gb_per_second: 450.0,
        nic_gb_per_second: 50.0,
        idle_watts: 75.0,
        tdp_watts: 700.0,
        usd_per_hour: 3.20,
        spot_usd_per_hour: Some(2.00),
        label: (GPU_PRODUCT, "NVIDIA-H200"),
        calibration: HOPPER,
    },
    Facts {
        name: "b200",
        vendor: Vendor::Nvidia,
        flops: &[
            (Dtype::Bf16, 2250.0 * TERA),
            (Dtype::Fp8, 4500.0 * TERA),
            (Dtype::Int8, 4500.0 * TERA),
            (Dtype::Fp4, 9000.0 * TERA),
        ],
        memory_gb: 192.0,
        memory_gb_per_second: 8000.0,
        domain: 8,
        link_gb_per_second: 900.0,
        nic_gb_per_second: 50.0,
        idle_watts: 140.0,
        tdp_watts: 1000.0,
        usd_per_hour: 5.20,
        spot_usd_per_hour: Some(3.20),
        label: (GPU_PRODUCT, "NVIDIA-B200"),
        calibration: PRIOR,
    },
    Facts {
        name: "a100-80",
        vendor: Vendor::Nvidia,
        flops: &[(Dtype::Bf16, 312.0 * TERA), (Dtype::Int8, 624.0 * TERA)],
        memory_gb: 85.0,
        memory_gb_per_second: 2039.0,
        domain: 8,
        link_gb_per_second: 300.0,
        nic_gb_per_second: 25.0,
        idle_watts: 55.0,
        tdp_watts: 400.0,
        usd_per_hour: 1.70,
        spot_usd_per_hour: Some(0.95),
        label: (GPU_PRODUCT, "NVIDIA-A100-SXM4-80GB"),
        calibration: Calibration { allreduce_alpha_us: 4.5, relative_error: 0.2, ..HOPPER },
    },
    Facts {
        name: "a100-40",
        vendor: Vendor::Nvidia,
        flops: &[(Dtype::Bf16, 312.0 * TERA), (Dtype::Int8, 624.0 * TERA)],
        memory_gb: 42.5,
        memory_gb_per_second: 1555.0,
        domain: 8,
        link_gb_per_second: 300.0,
        nic_gb_per_second: 25.0,
        idle_watts: 50.0,
        tdp_watts: 400.0,
        usd_per_hour: 1.30,
        spot_usd_per_hour: Some(0.70),
        label: (GPU_PRODUCT, "NVIDIA-A100-SXM4-40GB"),
        calibration: Calibration { allreduce_alpha_us: 4.5, relative_error: 0.2, ..HOPPER },
    },
    Facts {
        name: "l40s",
        vendor: Vendor::Nvidia,
        flops: &[(Dtype::Bf16, 362.0 * TERA), (Dtype::Fp8, 733.0 * TERA), (Dtype::Int8, 733.0 * TERA)],
        memory_gb: 48.0,
        memory_gb_per_second: 864.0,
        domain: 4,
        link_gb_per_second: 26.0,
        nic_gb_per_second: 12.5,
        idle_watts: 35.0,
        tdp_watts: 350.0,
        usd_per_hour: 1.10,
        spot_usd_per_hour: Some(0.60),
        label: (GPU_PRODUCT, "NVIDIA-L40S"),
        calibration: Calibration { allreduce_alpha_us: 12.0, ..PRIOR },
    },
    Facts {
        name: "l4",
        vendor: Vendor::Nvidia,
        flops: &[(Dtype::Bf16, 121.0 * TERA), (Dtype::Fp8, 242.0 * TERA), (Dtype::Int8, 242.0 * TERA)],
        memory_gb: 24.0,
        memory_gb_per_second: 300.0,
        domain: 1,
        link_gb_per_second: 13.0,
        nic_gb_per_second: 6.0,
        idle_watts: 16.0,
        tdp_watts: 72.0,
        usd_per_hour: 0.55,
        spot_usd_per_hour: Some(0.28),
        label: (GPU_PRODUCT, "NVIDIA-L4"),
        calibration: Calibration { allreduce_alpha_us: 15.0, ..PRIOR },
    },
    Facts {
        name: "a10g",
        vendor: Vendor::Nvidia,
        flops: &[(Dtype::Bf16, 70.0 * TERA), (Dtype::Int8, 140.0 * TERA)],
        memory_gb: 24.0,
        memory_gb_per_second: 600.0,
        domain: 1,
        link_gb_per_second: 13.0,
        nic_gb_per_second: 6.0,
        idle_watts: 25.0,
        tdp_watts: 300.0,
        usd_per_hour: 1.01,
        spot_usd_per_hour: Some(0.45),
        label: (GPU_PRODUCT, "NVIDIA-A10G"),
        calibration: Calibration { allreduce_alpha_us: 15.0, ..PRIOR },
    },
    Facts {
        name: "mi300x",
        vendor: Vendor::Amd,
        flops: &[(Dtype::Bf16, 1307.0 * TERA), (Dtype::Fp8, 2615.0 * TERA), (Dtype::Int8, 2615.0 * TERA)],
        memory_gb: 206.0,
        memory_gb_per_second: 5300.0,
        domain: 8,
        link_gb_per_second: 448.0,
        nic_gb_per_second: 50.0,
        idle_watts: 130.0,
        tdp_watts: 750.0,
        usd_per_hour: 2.60,
        spot_usd_per_hour: Some(1.60),
        label: ("amd.com/gpu.product-name", "AMD_Instinct_MI300X_OAM"),
        calibration: Calibration { eta_compute: 0.42, eta_weights: 0.75, allreduce_alpha_us: 6.0, ..PRIOR },
    },
    Facts {
        name: "cpu",
        vendor: Vendor::Cpu,
        flops: &[(Dtype::Bf16, 20.0 * TERA), (Dtype::Int8, 40.0 * TERA), (Dtype::Fp32, 5.0 * TERA)],
        memory_gb: 256.0,
        memory_gb_per_second: 300.0,
        domain: 1,
        link_gb_per_second: 30.0,
        nic_gb_per_second: 6.0,
        idle_watts: 90.0,
        tdp_watts: 350.0,
        usd_per_hour: 0.90,
        spot_usd_per_hour: Some(0.35),
        label: ("plimsoll.dev/accelerator", "cpu"),
        calibration: Calibration {
            eta_compute: 0.35,
            eta_attention: 0.3,
            eta_weights: 0.7,
            eta_kv: 0.6,
            layer_overhead_us: 120.0,
            ..PRIOR
        },
    },
];

fn build(f: &Facts) -> AcceleratorClass {
    AcceleratorClass {
        name: f.name.to_owned(),
        vendor: f.vendor,
        flops_per_second: f.flops.iter().copied().collect(),
        memory_bytes: f.memory_gb * GB,
        memory_bytes_per_second: f.memory_gb_per_second * GB,
        link_domain_size: f.domain,
        link_bytes_per_second: f.link_gb_per_second * GB,
        nic_bytes_per_second: f.nic_gb_per_second * GB,
        idle_watts: f.idle_watts,
        tdp_watts: f.tdp_watts,
        usd_per_hour: f.usd_per_hour,
        spot_usd_per_hour: f.spot_usd_per_hour,
        node_selector: BTreeMap::from([(f.label.0.to_owned(), f.label.1.to_owned())]),
        autoscalable_max: 0,
        resource: None,
        tolerations: Vec::new(),
        devices: None,
        calibration: f.calibration.clone(),
    }
}

/// All presets, in the order of this file.
pub fn accelerators() -> Vec<AcceleratorClass> {
    FACTS.iter().map(build).collect()
}

/// The preset of this name.
pub fn accelerator(name: &str) -> Option<AcceleratorClass> {
    FACTS.iter().find(|f| f.name == name).map(build)
}
