//! From an AcceleratorClass to the domain, validating everything again.

use std::collections::BTreeMap;

use plimsoll_fleet as fleet;
use plimsoll_fleet::presets;

use super::spec::{AcceleratorClass, AcceleratorClassSpec, Calibration, Dra, dtype_names};
use crate::invalid::{Check, InvalidField};
use crate::names::nearest;
use crate::quantity;
use crate::tolerations::tolerations;

/// The prior for hardware that is no preset: Hopper's coefficients, with the error widened to what predictions for
/// unmeasured hardware were seen to have.
const UNMEASURED_RELATIVE_ERROR: f64 = 0.3;

/// Latency of an all-reduce over a node's link where none is given, microseconds: measured over PCIe between NVLink
/// pairs.
const NODE_LINK_ALPHA_US: f64 = 50.0;

impl AcceleratorClass {
    /// The class as the domain knows it: the preset's facts with those of the spec over them.
    ///
    /// # Errors
    /// Every invalid field, in the order of the spec.
    pub fn to_fleet(&self) -> Result<fleet::AcceleratorClass, Vec<InvalidField>> {
        let mut check = Check::default();
        let spec = &self.spec;
        let name = self.metadata.name.clone().unwrap_or_default();
        let base = spec.preset.as_ref().and_then(|preset| {
            let found = presets::accelerator(preset);
            if found.is_none() {
                let near = nearest(preset, presets::accelerators().into_iter().map(|a| a.name)).join(", ");
                check.invalid(
                    "spec.preset",
                    preset,
                    "is not a known accelerator",
                    format!("use one of {near}, or give every fact"),
                );
            }
            found
        });
        let flops = teraflops(&mut check, spec);
        let memory = spec.memory.as_ref().and_then(|text| {
            let bytes = quantity::parse(text).filter(|b| *b > 0.0);
            if bytes.is_none() {
                check.invalid("spec.memory", text, "is not an amount of memory", "use one such as 80Gi");
            }
            bytes
        });
        let gigabytes = |check: &mut Check, field: &str, value: Option<f64>| {
            value.map(|v| {
                check.positive(&format!("spec.{field}"), v);
                v * 1e9
            })
        };
        let memory_rate = gigabytes(&mut check, "memoryGBPerSecond", spec.memory_gb_per_second);
        let link_rate = gigabytes(&mut check, "linkGBPerSecond", spec.link_gb_per_second);
        let nic_rate = gigabytes(&mut check, "nicGBPerSecond", spec.nic_gb_per_second);
        for (field, value) in [
            ("idleWatts", spec.idle_watts),
            ("tdpWatts", spec.tdp_watts),
            ("powerCapWatts", spec.power_cap_watts),
            ("usdPerHour", spec.usd_per_hour),
            ("spotUsdPerHour", spec.spot_usd_per_hour),
        ] {
            if let Some(value) = value {
                check.range(&format!("spec.{field}"), value, 0.0, 1e6);
            }
        }
        if let Some(value) = spec.spot_interruptions_per_hour {
            check.range("spec.spotInterruptionsPerHour", value, 0.0, 3600.0);
        }
        let node_link = spec.node_link.as_ref().map(|n| {
            check.positive("spec.nodeLink.GBPerSecond", n.gb_per_second);
            let alpha_us = n.alpha_us.unwrap_or(NODE_LINK_ALPHA_US);
            check.range("spec.nodeLink.alphaUs", alpha_us, 0.0, 1e6);
            fleet::NodeLink {
                accelerators: check.count("spec.nodeLink.accelerators", i64::from(n.accelerators), 1, 1024),
                bytes_per_second: n.gb_per_second * 1e9,
                alpha_us,
            }
        });
        let domain = spec.link_domain_size.map(|n| check.count("spec.linkDomainSize", i64::from(n), 1, 1024));
        let autoscalable =
            spec.autoscalable_max.map(|n| check.count("spec.autoscalableMax", i64::from(n), 0, 1_000_000));
        if let Some(selector) = &spec.node_selector
            && selector.is_empty()
        {
            check.invalid(
                "spec.nodeSelector",
                "",
                "is empty and would match no node",
                "give the labels that mark nodes of this class",
            );
        }
        let resource = resource(&mut check, spec);
        let tolerations = tolerations(&mut check, "spec.tolerations", &spec.tolerations);
        let vendor = spec.vendor.map(Into::into).or(base.as_ref().map(|b| b.vendor));
        let devices = spec.dra.as_ref().map(|dra| devices(&mut check, dra, vendor));
        if base.is_none() && spec.preset.is_none() {
            for (field, missing) in [
                ("vendor", spec.vendor.is_none()),
                ("teraflops", spec.teraflops.is_none()),
                ("memory", spec.memory.is_none()),
                ("memoryGBPerSecond", spec.memory_gb_per_second.is_none()),
                ("idleWatts", spec.idle_watts.is_none()),
                ("tdpWatts", spec.tdp_watts.is_none()),
                ("usdPerHour", spec.usd_per_hour.is_none()),
                ("nodeSelector", spec.node_selector.is_none()),
            ] {
                if missing {
                    check.invalid(format!("spec.{field}"), "", "is missing", "give it, or name a preset");
                }
            }
        }
        // What hardware that is no preset starts from; every fact without a safe default was demanded above.
        let base = base.or_else(|| {
            presets::accelerator("h100").map(|hopper| fleet::AcceleratorClass {
                link_domain_size: 1,
                link_bytes_per_second: 16e9,
                nic_bytes_per_second: 3e9,
                spot_usd_per_hour: None,
                node_selector: BTreeMap::new(),
                calibration: fleet::Calibration {
                    relative_error: UNMEASURED_RELATIVE_ERROR,
                    ..hopper.calibration.clone()
                },
                ..hopper
            })
        });
        let value = base.map(|base| fleet::AcceleratorClass {
            name,
            vendor: spec.vendor.map_or(base.vendor, Into::into),
            flops_per_second: flops.unwrap_or(base.flops_per_second),
            memory_bytes: memory.unwrap_or(base.memory_bytes),
            memory_bytes_per_second: memory_rate.unwrap_or(base.memory_bytes_per_second),
            link_domain_size: domain.unwrap_or(base.link_domain_size),
            link_bytes_per_second: link_rate.unwrap_or(base.link_bytes_per_second),
            nic_bytes_per_second: nic_rate.unwrap_or(base.nic_bytes_per_second),
            node_link: node_link.or(base.node_link),
            power_cap_watts: spec.power_cap_watts.or(base.power_cap_watts),
            idle_watts: spec.idle_watts.unwrap_or(base.idle_watts),
            tdp_watts: spec.tdp_watts.unwrap_or(base.tdp_watts),
            usd_per_hour: spec.usd_per_hour.unwrap_or(base.usd_per_hour),
            spot_usd_per_hour: spec.spot_usd_per_hour.or(base.spot_usd_per_hour),
            spot_interruptions_per_hour: spec
                .spot_interruptions_per_hour
                .unwrap_or(base.spot_interruptions_per_hour),
            electricity: electricity(&mut check, spec, base.electricity),
            node_selector: spec.node_selector.clone().unwrap_or(base.node_selector),
            autoscalable_max: autoscalable.unwrap_or(base.autoscalable_max),
            resource: resource.or(base.resource),
            tolerations,
            devices,
            calibration: calibration(&mut check, base.calibration, spec.calibration.as_ref()),
        });
        if let Some(class) = &value
            && class.tdp_watts < class.idle_watts
        {
            check.invalid(
                "spec.tdpWatts",
                class.tdp_watts,
                format!("is below the idle power ({})", class.idle_watts),
                format!("use at least {}", class.idle_watts),
            );
        }
        if let Some(class) = &value
            && let Some(cap) = class.power_cap_watts
            && cap <= class.idle_watts
        {
            check.invalid(
                "spec.powerCapWatts",
                cap,
                format!("is not above the idle power ({})", class.idle_watts),
                format!("use more than {}", class.idle_watts),
            );
        }
        check.finish(value)
    }
}

fn electricity(
    check: &mut Check,
    spec: &AcceleratorClassSpec,
    base: fleet::Electricity,
) -> fleet::Electricity {
    let mut range = |field: String, value: f64, least: f64, most: f64| {
        check.range(&format!("spec.{field}"), value, least, most);
        value
    };
    let by_zone = spec.grams_co2e_per_kwh_by_zone.iter().flatten().map(|(zone, grams)| {
        (zone.clone(), range(format!("gramsCO2ePerKwhByZone.{zone}"), *grams, 0.0, 10_000.0))
    });
    let by_zone: BTreeMap<String, f64> = by_zone.collect();
    let of = |value: Option<f64>, base: f64| value.unwrap_or(base);
    fleet::Electricity {
        pue: range("pue".to_owned(), of(spec.pue, base.pue), 1.0, 10.0),
        grams_co2e_per_kwh: range(
            "gramsCO2ePerKwh".to_owned(),
            of(spec.grams_co2e_per_kwh, base.grams_co2e_per_kwh),
            0.0,
            10_000.0,
        ),
        grams_co2e_per_kwh_by_zone: by_zone,
    }
}

fn resource(check: &mut Check, spec: &AcceleratorClassSpec) -> Option<String> {
    let name = spec.resource.as_deref()?;
    let word = |text: &str, more: &[char]| {
        let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(&c))
            && end(text.chars().next())
            && end(text.chars().last())
    };
    let valid = name.split_once('/').is_some_and(|(domain, name)| {
        domain.len() <= 253
            && name.len() <= 63
            && word(domain, &['.', '-'])
            && word(name, &['.', '-', '_'])
            && !domain.chars().any(|c| c.is_ascii_uppercase())
    });
    if !valid {
        let remedy = "use one that nodes list under status.allocatable, e.g. gpu.intel.com/xe";
        check.invalid("spec.resource", name, "is not an extended resource", remedy);
    }
    Some(name.to_owned())
}

fn devices(check: &mut Check, dra: &Dra, vendor: Option<fleet::Vendor>) -> fleet::accelerator::DeviceRequest {
    let subdomain = |name: &str, most: usize| {
        let label = |l: &str| {
            l.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
                && !l.is_empty()
                && !l.starts_with('-')
                && !l.ends_with('-')
        };
        name.len() <= most && name.split('.').all(label)
    };
    if !subdomain(&dra.device_class_name, 253) {
        check.invalid(
            "spec.dra.deviceClassName",
            &dra.device_class_name,
            "is not the name of a DeviceClass",
            "use one of kubectl get deviceclasses, e.g. gpu.nvidia.com",
        );
    }
    let driver = dra.driver.clone().or(vendor.and_then(fleet::Vendor::device_driver).map(str::to_owned));
    match &driver {
        Some(driver) if !subdomain(driver, 63) => check.invalid(
            "spec.dra.driver",
            driver,
            "is not the name of a driver",
            "use one of kubectl get resourceslices, e.g. gpu.nvidia.com",
        ),
        None => check.invalid(
            "spec.dra.driver",
            "",
            "is missing, and the vendor has no usual one",
            "use one of kubectl get resourceslices",
        ),
        Some(_) => {}
    }
    for name in dra.attributes.keys() {
        let (domain, id) = name.rsplit_once('/').unwrap_or(("a", name));
        let first = |c: char| c.is_ascii_alphabetic() || c == '_';
        let identifier =
            id.len() <= 32 && id.starts_with(first) && id.chars().all(|c| first(c) || c.is_ascii_digit());
        if !identifier || !subdomain(domain, 63) {
            check.invalid(
                format!("spec.dra.attributes.{name}"),
                name,
                "is not the name of a device attribute",
                "use one of kubectl get resourceslices -o yaml, e.g. productName",
            );
        }
    }
    for (i, expression) in dra.selectors.iter().enumerate() {
        if expression.trim().is_empty() {
            let at = format!("spec.dra.selectors[{i}]");
            check.invalid(at, expression, "is empty", "remove it, or give a CEL expression over device");
        }
    }
    fleet::accelerator::DeviceRequest {
        device_class: dra.device_class_name.clone(),
        driver: driver.unwrap_or_default(),
        attributes: dra.attributes.clone(),
        selectors: dra.selectors.clone(),
    }
}

fn teraflops(check: &mut Check, spec: &AcceleratorClassSpec) -> Option<BTreeMap<fleet::Dtype, f64>> {
    let given = spec.teraflops.as_ref()?;
    if given.is_empty() {
        check.invalid("spec.teraflops", "", "is empty", "give at least one rate, e.g. {bf16: 989}");
    }
    let mut flops = BTreeMap::new();
    for (dtype, rate) in given {
        let at = format!("spec.teraflops.{dtype}");
        check.positive(&at, *rate);
        match dtype.parse::<fleet::Dtype>() {
            Ok(dtype) => {
                flops.insert(dtype, rate * 1e12);
            }
            Err(_) => {
                check.invalid(at, dtype, "is not a number format", format!("use one of {}", dtype_names()))
            }
        }
    }
    Some(flops)
}

fn calibration(
    check: &mut Check,
    base: fleet::Calibration,
    given: Option<&Calibration>,
) -> fleet::Calibration {
    let Some(given) = given else { return base };
    let mut share = |field: &str, value: Option<f64>, base: f64| {
        if let Some(v) = value {
            let at = format!("spec.calibration.{field}");
            check.positive(&at, v);
            check.range(&at, v, 0.0, 1.5);
        }
        value.unwrap_or(base)
    };
    let eta_compute = share("etaCompute", given.eta_compute, base.eta_compute);
    let eta_attention = share("etaAttention", given.eta_attention, base.eta_attention);
    let eta_weights = share("etaWeights", given.eta_weights, base.eta_weights);
    let eta_kv = share("etaKv", given.eta_kv, base.eta_kv);
    let eta_link = share("etaLink", given.eta_link, base.eta_link);
    let mut cost = |field: &str, value: Option<f64>, base: f64| {
        if let Some(v) = value {
            check.range(&format!("spec.calibration.{field}"), v, 0.0, 1e7);
        }
        value.unwrap_or(base)
    };
    fleet::Calibration {
        eta_compute,
        eta_attention,
        eta_weights,
        eta_kv,
        eta_link,
        layer_overhead_us: cost("layerOverheadUs", given.layer_overhead_us, base.layer_overhead_us),
        step_overhead_us: cost("stepOverheadUs", given.step_overhead_us, base.step_overhead_us),
        request_overhead_us: cost("requestOverheadUs", given.request_overhead_us, base.request_overhead_us),
        allreduce_alpha_us: cost("allreduceAlphaUs", given.allreduce_alpha_us, base.allreduce_alpha_us),
        api_overhead_ms: cost("apiOverheadMs", given.api_overhead_ms, base.api_overhead_ms),
        relative_error: cost("relativeError", given.relative_error, base.relative_error),
        launch_layer_us: cost("launchLayerUs", given.launch_layer_us, base.launch_layer_us),
        launch_step_us: cost("launchStepUs", given.launch_step_us, base.launch_step_us),
    }
}
