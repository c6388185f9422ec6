//! Figures that make no sense, and parallelism that a model cannot have.

use plimsoll_fleet::{AcceleratorClass, Attention, ModelArchitecture, Shape};

use super::DoesNotFit;
use crate::EngineConfig;
use crate::kv::kv_elements_per_layer;
use crate::links::{self, LinkTier};
use crate::speculation::Draft;

/// Attention ranks of the largest replica that is modelled.
const MOST_RANKS: u32 = 1024;

fn positive(object: &str, fields: &[(&'static str, f64)]) -> Result<(), DoesNotFit> {
    match fields.iter().find(|(_, v)| !(v.is_finite() && *v > 0.0)) {
        None => Ok(()),
        Some((field, value)) => Err(DoesNotFit::Invalid {
            object: object.to_owned(),
            field,
            value: *value,
            remedy: "use a finite number above 0",
        }),
    }
}

fn not_negative(object: &str, fields: &[(&'static str, f64)]) -> Result<(), DoesNotFit> {
    match fields.iter().find(|(_, v)| !(v.is_finite() && *v >= 0.0)) {
        None => Ok(()),
        Some((field, value)) => Err(DoesNotFit::Invalid {
            object: object.to_owned(),
            field,
            value: *value,
            remedy: "use a finite number of at least 0",
        }),
    }
}

/// Refuses figures that make no sense, by name.
pub(super) fn validate(
    arch: &ModelArchitecture,
    acc: &AcceleratorClass,
    shape: &Shape,
    config: &EngineConfig,
) -> Result<(), DoesNotFit> {
    let c = &acc.calibration;
    positive(
        &format!("model {}", arch.name),
        &[
            ("layers", f64::from(arch.layers)),
            ("hidden", f64::from(arch.hidden)),
            ("heads", f64::from(arch.heads)),
            ("head_dim", f64::from(arch.head_dim)),
            ("kv width", kv_elements_per_layer(arch, 1)),
            ("vocab", f64::from(arch.vocab)),
            ("total_parameters", arch.total_parameters),
            ("active_parameters", arch.active_parameters),
            ("max_context_tokens", f64::from(arch.max_context_tokens)),
        ],
    )?;
    if let Some(moe) = &arch.moe {
        positive(
            &format!("model {}", arch.name),
            &[
                ("experts", f64::from(moe.experts)),
                ("experts_per_token", f64::from(moe.experts_per_token)),
                ("expert_parameters", moe.expert_parameters),
            ],
        )?;
    }
    positive(
        &format!("accelerator class {}", acc.name),
        &[
            (
                "flops_per_second (the least)",
                acc.flops_per_second.values().copied().fold(f64::INFINITY, f64::min),
            ),
            ("memory_bytes", acc.memory_bytes),
            ("memory_bytes_per_second", acc.memory_bytes_per_second),
            ("link_bytes_per_second", acc.link_bytes_per_second),
            ("nic_bytes_per_second", acc.nic_bytes_per_second),
            ("calibration.eta_compute", c.eta_compute),
            ("calibration.eta_attention", c.eta_attention),
            ("calibration.eta_weights", c.eta_weights),
            ("calibration.eta_kv", c.eta_kv),
            ("calibration.eta_link", c.eta_link),
        ],
    )?;
    let overheads = [
        ("calibration.layer_overhead_us", c.layer_overhead_us),
        ("calibration.step_overhead_us", c.step_overhead_us),
        ("calibration.request_overhead_us", c.request_overhead_us),
        ("calibration.allreduce_alpha_us", c.allreduce_alpha_us),
        ("calibration.api_overhead_ms", c.api_overhead_ms),
        ("calibration.launch_layer_us", c.launch_layer_us),
        ("calibration.launch_step_us", c.launch_step_us),
        ("idle_watts", acc.idle_watts),
        ("tdp_watts", acc.tdp_watts),
    ];
    not_negative(&format!("accelerator class {}", acc.name), &overheads)?;
    positive(
        "engine settings",
        &[
            ("memory_utilisation", config.memory_utilisation),
            ("max_running", f64::from(config.max_running)),
            ("max_batched_tokens", f64::from(config.max_batched_tokens)),
            ("block_tokens", f64::from(config.block_tokens)),
        ],
    )?;
    if config.memory_utilisation > 1.0 || !(config.reserve_bytes.is_finite() && config.reserve_bytes >= 0.0) {
        let (field, value, remedy) = if config.memory_utilisation > 1.0 {
            ("memory_utilisation", config.memory_utilisation, "use a share above 0 and at most 1")
        } else {
            ("reserve_bytes", config.reserve_bytes, "use a finite number of at least 0")
        };
        return Err(DoesNotFit::Invalid { object: "engine settings".to_owned(), field, value, remedy });
    }
    if config.max_batched_tokens < config.max_running {
        return Err(DoesNotFit::Invalid {
            object: "engine settings".to_owned(),
            field: "max_batched_tokens",
            value: f64::from(config.max_batched_tokens),
            remedy: "use at least max_running, or running requests could not all advance in one step",
        });
    }
    validate_extensions(arch, acc, config)?;
    positive(
        &format!("shape {shape}"),
        &[
            ("tensor_parallel", f64::from(shape.tensor_parallel)),
            ("pipeline_parallel", f64::from(shape.pipeline_parallel)),
            ("data_parallel", f64::from(shape.data_parallel)),
            ("expert_parallel", f64::from(shape.expert_parallel)),
        ],
    )
}

/// Whether the shape can divide the model, and its tensor-parallel groups reach no further than `widest`.
pub(super) fn check_parallelism(
    arch: &ModelArchitecture,
    acc: &AcceleratorClass,
    shape: &Shape,
    widest: LinkTier,
) -> Result<(), DoesNotFit> {
    let tp = shape.tensor_parallel;
    if !arch.supports_tensor_parallel(tp) {
        let allowed: Vec<String> = (1..=acc.link_domain_size.max(1))
            .filter(|t| arch.supports_tensor_parallel(*t))
            .map(|t| t.to_string())
            .collect();
        return Err(DoesNotFit::Heads {
            model: arch.name.clone(),
            heads: arch.heads,
            kv_heads: match arch.attention {
                Attention::Grouped { kv_heads } if arch.heads.is_multiple_of(tp) => Some(kv_heads),
                _ => None,
            },
            tensor_parallel: tp,
            allowed: allowed.join(", "),
        });
    }
    if shape.pipeline_parallel > arch.layers {
        return Err(DoesNotFit::Layers {
            model: arch.name.clone(),
            layers: arch.layers,
            pipeline_parallel: shape.pipeline_parallel,
        });
    }
    if links::tier(acc, tp) > widest {
        return Err(DoesNotFit::LinkDomain {
            accelerator: acc.name.clone(),
            link_domain_size: acc.link_domain_size.max(1),
            tensor_parallel: tp,
        });
    }
    check_experts(arch, shape)
}

fn check_experts(arch: &ModelArchitecture, shape: &Shape) -> Result<(), DoesNotFit> {
    let (dp, ep, gpus) = (shape.data_parallel, shape.expert_parallel, shape.stage_gpus());
    let refuse = |problem: String, remedy: String| {
        Err(DoesNotFit::Experts { model: arch.name.clone(), shape: shape.to_string(), problem, remedy })
    };
    match &arch.moe {
        None if dp > 1 || ep > 1 => refuse(
            "a dense model has no experts to share or divide".to_owned(),
            "use data and expert parallel 1, and more replicas or tensor parallel".to_owned(),
        ),
        Some(_) if dp > MOST_RANKS => refuse(
            format!("{dp} attention ranks are more than any engine has"),
            format!("use data parallel of at most {MOST_RANKS}"),
        ),
        Some(moe) if ep > moe.experts => refuse(
            format!("{} experts do not make {ep} parts", moe.experts),
            format!("use expert parallel of at most {}", moe.experts),
        ),
        Some(_) if !gpus.is_multiple_of(ep) => {
            let allowed: Vec<String> = (1..=gpus.min(1024))
                .filter(|e| gpus.is_multiple_of(*e))
                .take(16)
                .map(|e| e.to_string())
                .collect();
            refuse(
                format!("expert parallel {ep} does not divide the {gpus} accelerators of a stage"),
                format!("use {}", allowed.join(", ")),
            )
        }
        _ => Ok(()),
    }
}

/// Layers of special kinds, LoRA, speculation and offload.
fn validate_extensions(
    arch: &ModelArchitecture,
    acc: &AcceleratorClass,
    config: &EngineConfig,
) -> Result<(), DoesNotFit> {
    let model = format!("model {}", arch.name);
    if let Some(s) = arch.sliding {
        positive(&model, &[("sliding.window_tokens", f64::from(s.window_tokens))])?;
    }
    if let Some(r) = arch.recurrent {
        positive(&model, &[("recurrent.state_bytes", r.state_bytes)])?;
    }
    let special = u64::from(arch.sliding_layers()) + u64::from(arch.recurrent_layers());
    if special > u64::from(arch.layers) || arch.recurrent_layers() >= arch.layers {
        return Err(DoesNotFit::Invalid {
            object: model,
            field: "sliding.layers + recurrent.layers",
            value: special as f64,
            remedy: "use at most the model's layers, at least one of them with attention",
        });
    }
    let class = format!("accelerator class {}", acc.name);
    if let Some(n) = acc.node_link {
        positive(&class, &[("node_link.bytes_per_second", n.bytes_per_second)])?;
        not_negative(&class, &[("node_link.alpha_us", n.alpha_us)])?;
    }
    if let Some(cap) = acc.power_cap_watts
        && (cap.is_nan() || cap <= acc.idle_watts)
    {
        return Err(DoesNotFit::Invalid {
            object: class,
            field: "power_cap_watts",
            value: cap,
            remedy: "use more than idle_watts",
        });
    }
    let at_least_one = |field, value: f64, remedy| {
        if value >= 1.0 && value.is_finite() {
            Ok(())
        } else {
            Err(DoesNotFit::Invalid { object: "engine settings".to_owned(), field, value, remedy })
        }
    };
    at_least_one("expert_skew", config.expert_skew, "use a finite number of at least 1")?;
    let share = |field, value: f64| {
        if (0.0..=1.0).contains(&value) {
            Ok(())
        } else {
            let remedy = "use a share between 0 and 1";
            Err(DoesNotFit::Invalid { object: "engine settings".to_owned(), field, value, remedy })
        }
    };
    if let Some(l) = config.lora {
        let fields = [
            ("lora.slots", f64::from(l.slots)),
            ("lora.max_rank", f64::from(l.max_rank)),
            ("lora.adapters", f64::from(l.adapters)),
            ("lora.mean_rank", l.mean_rank),
        ];
        positive("engine settings", &fields)?;
        share("lora.share", l.share)?;
    }
    if let Some(s) = config.speculation {
        share("speculation.acceptance", s.acceptance)?;
        at_least_one(
            "speculation.draft_tokens",
            f64::from(s.draft_tokens),
            "use at least 1, or no speculation",
        )?;
        match s.draft {
            Draft::NGram => {}
            Draft::SameGpus { parameters, kv_bytes_per_token, .. } => not_negative(
                "engine settings",
                &[
                    ("speculation.draft.parameters", parameters),
                    ("speculation.draft.kv_bytes_per_token", kv_bytes_per_token),
                ],
            )?,
            Draft::OtherGpus { token_ms, transfer_ms } => not_negative(
                "engine settings",
                &[("speculation.draft.token_ms", token_ms), ("speculation.draft.transfer_ms", transfer_ms)],
            )?,
        }
    }
    if let Some(o) = config.kv_offload {
        positive("engine settings", &[("kv_offload.bytes_per_second", o.bytes_per_second)])?;
        not_negative("engine settings", &[("kv_offload.latency_ms", o.latency_ms)])?;
        share("kv_offload.hit_fraction", o.hit_fraction)?;
    }
    Ok(())
}
