//! The fleet: nodes of four classes in three zones, and pools of four models with objectives and demand of their own.

use serde_json::{Value, json};

/// Label value, accelerators of a node.
const CLASSES: [(&str, u32); 4] =
    [("NVIDIA-H100-80GB-HBM3", 8), ("NVIDIA-A100-SXM4-80GB", 8), ("NVIDIA-L40S", 4), ("NVIDIA-L4", 1)];
/// AcceleratorClasses of these.
pub const PRESETS: [&str; 4] = ["h100", "a100-80", "l40s", "l4"];
/// Preset of the model, TTFT and TPOT in milliseconds, requests per second.
const MODELS: [(&str, u32, u32, f64); 4] = [
    ("llama-3.1-8b", 800, 40, 4.0),
    ("qwen3-32b", 1500, 60, 2.0),
    ("llama-3.1-70b", 1500, 60, 1.5),
    ("llama-3.1-8b", 2500, 90, 1.0),
];
/// Namespaces that the pools are spread over.
pub const NAMESPACES: usize = 10;

/// The namespace of a pool.
pub fn namespace(i: usize) -> String {
    format!("team-{}", i % NAMESPACES)
}

/// A node as a kubelet registers it, with the conditions, addresses, images and labels that real ones carry.
pub fn node(i: usize) -> Value {
    let (product, gpus) = CLASSES[i % CLASSES.len()];
    let name = format!("gpu-{i}");
    let zone = format!("zone-{}", ["a", "b", "c"][(i / CLASSES.len()) % 3]);
    let resources = json!({"cpu": "96", "memory": "1007Gi", "ephemeral-storage": "900Gi", "pods": "110",
        "hugepages-2Mi": "0", "nvidia.com/gpu": gpus.to_string()});
    let condition = |type_: &str, status: &str| {
        json!({"type": type_, "status": status, "reason": "Kubelet", "message": "kubelet has reported this",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let images: Vec<Value> = (0..20)
        .map(|n| {
            json!({"names": [format!("registry.example/team/image-{n}@sha256:{:064x}", n * 7919 + 1),
                format!("registry.example/team/image-{n}:v1.{n}")], "sizeBytes": 100_000_000 + n})
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "topology.kubernetes.io/region": "region-1", "topology.kubernetes.io/zone": zone,
                "node.kubernetes.io/instance-type": format!("gpu.{gpus}x"),
                "nvidia.com/gpu.product": product, "nvidia.com/gpu.count": gpus.to_string(),
                "nvidia.com/gpu.present": "true", "nvidia.com/cuda.driver.major": "580",
                "nvidia.com/gpu.memory": "81559", "feature.node.kubernetes.io/cpu-model.vendor_id": "Intel",
            },
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                "csi.volume.kubernetes.io/nodeid": format!("{{\"disk.example\":\"{name}\"}}"),
            },
        },
        "spec": {"podCIDR": format!("10.{}.{}.0/24", i / 256, i % 256), "providerID": format!("example:///{zone}/{name}")},
        "status": {
            "capacity": resources, "allocatable": resources,
            "conditions": [
                condition("MemoryPressure", "False"), condition("DiskPressure", "False"),
                condition("PIDPressure", "False"), condition("Ready", "True"),
            ],
            "addresses": [{"type": "InternalIP", "address": format!("172.16.{}.{}", i / 256, i % 256)},
                {"type": "Hostname", "address": name}],
            "nodeInfo": {"machineID": format!("{i:032x}"), "systemUUID": format!("{i:032x}"), "bootID": format!("{i:032x}"),
                "kernelVersion": "6.12.0", "osImage": "Linux", "containerRuntimeVersion": "containerd://2.1.4",
                "kubeletVersion": "v1.35.4", "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64"},
            "images": images,
        },
    })
}

/// A pool; `least` replicas at least.
pub fn pool(name: &str, i: usize, least: usize) -> Value {
    let (preset, ttft_ms, tpot_ms, rps) = MODELS[i % MODELS.len()];
    let rps = rps * (0.4 + 0.2 * ((i * 7) % 11) as f64);
    json!({
        "apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelPool",
        "metadata": {"name": name, "namespace": namespace(i)},
        "spec": {
            "model": {"name": name, "preset": preset},
            "slo": {"ttft": {"p95": format!("{}ms", ttft_ms + 10 * (i as u32 % 7))}, "tpot": {"p95": format!("{tpot_ms}ms")}},
            "demand": {"rps": rps, "input": {"mean": 800, "p95": 3000}, "output": {"mean": 200, "p95": 600}},
            "maxContextTokens": 8192,
            "scaling": {"min": least, "max": 16},
            "engine": {"kind": "simulated"},
            "priority": i % 3,
        },
    })
}
