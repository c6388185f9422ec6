//! From AcceleratorClasses to the domain: what is refused, and why.

#![allow(clippy::unwrap_used, reason = "tests")]

use plimsoll_crds::AcceleratorClass;
use serde_json::{Value, json};

fn class(more: Value) -> AcceleratorClass {
    let mut spec = json!({"preset": "h100"});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(json!({
        "apiVersion": "plimsoll.dev/v1alpha1", "kind": "AcceleratorClass", "metadata": {"name": "h100"}, "spec": spec,
    }))
    .unwrap()
}

fn refused(more: Value) -> Vec<String> {
    class(more).to_fleet().unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn the_resource_is_the_vendors_unless_named() {
    let resource = |more: Value| class(more).to_fleet().unwrap().resource_name().map(str::to_owned);
    assert_eq!(resource(json!({})).as_deref(), Some("nvidia.com/gpu"));
    assert_eq!(resource(json!({"vendor": "intel"})).as_deref(), Some("gpu.intel.com/i915"));
    let xe = json!({"vendor": "intel", "resource": "gpu.intel.com/xe"});
    assert_eq!(resource(xe).as_deref(), Some("gpu.intel.com/xe"));
    assert_eq!(resource(json!({"vendor": "cpu"})), None);
    for wrong in ["gpu", "NVIDIA.com/gpu", "nvidia.com/", "/gpu", "nvidia.com/g pu", "-a.com/gpu"] {
        let problems = refused(json!({"resource": wrong}));
        assert!(problems[0].starts_with("spec.resource:"), "{wrong}: {problems:?}");
        assert!(problems[0].contains("status.allocatable"), "{problems:?}");
    }
}

#[test]
fn links_caps_and_launches_reach_the_engine_model() {
    let class_ = class(json!({
        "linkDomainSize": 2, "nodeLink": {"accelerators": 8, "GBPerSecond": 25}, "powerCapWatts": 400,
        "calibration": {"launchLayerUs": 150, "launchStepUs": 900, "relativeError": 0.2},
    }))
    .to_fleet()
    .unwrap();
    let link = class_.node_link.unwrap();
    assert_eq!((class_.link_domain_size, link.accelerators, link.bytes_per_second), (2, 8, 25e9));
    assert_eq!(link.alpha_us, 50.0, "the default");
    assert_eq!(class_.power_cap_watts, Some(400.0));
    let c = &class_.calibration;
    assert_eq!((c.launch_layer_us, c.launch_step_us, c.relative_error), (150.0, 900.0, 0.2));
    let problems = refused(json!({
        "nodeLink": {"accelerators": 0, "GBPerSecond": 0, "alphaUs": -1},
        "calibration": {"etaCompute": -0.5, "launchStepUs": -1},
    }));
    for field in [
        "spec.nodeLink.GBPerSecond",
        "spec.nodeLink.alphaUs",
        "spec.nodeLink.accelerators",
        "spec.calibration.etaCompute",
        "spec.calibration.launchStepUs",
    ] {
        assert!(problems.iter().any(|p| p.starts_with(field)), "{field}: {problems:?}");
    }
    let capped = refused(json!({"powerCapWatts": 50}));
    assert!(capped[0].starts_with("spec.powerCapWatts: \"50\" is not above the idle power"), "{capped:?}");
}

#[test]
fn tolerations_are_checked_as_those_of_pools() {
    let problems = refused(json!({"tolerations": [{"key": "sku", "operator": "Is"}]}));
    assert_eq!(problems, ["spec.tolerations[0].operator: \"Is\" is not an operator; use Exists or Equal"]);
}

#[test]
fn electricity_and_interruptions_have_defaults_and_limits() {
    let plain = class(json!({})).to_fleet().unwrap();
    assert_eq!((plain.electricity.pue, plain.electricity.grams_co2e_per_kwh), (1.2, 473.0));
    assert_eq!(plain.spot_interruptions_per_hour, 0.05);
    let given = class(json!({
        "pue": 1.1, "gramsCO2ePerKwh": 300, "gramsCO2ePerKwhByZone": {"eu-north-1a": 20, "x": 700},
        "spotInterruptionsPerHour": 0.2,
    }))
    .to_fleet()
    .unwrap();
    let grid = &given.electricity;
    assert_eq!((grid.pue, given.spot_interruptions_per_hour), (1.1, 0.2));
    let of = |zone: &str| grid.intensity(zone);
    assert_eq!([of("eu-north-1a"), of("elsewhere"), of("")], [20.0, 300.0, 700.0], "unknown: the dirtiest");
    let problems = refused(json!({
        "pue": 0.9, "gramsCO2ePerKwh": -1, "gramsCO2ePerKwhByZone": {"a": 1e6}, "spotInterruptionsPerHour": -1,
    }));
    for field in
        ["spec.spotInterruptionsPerHour", "spec.gramsCO2ePerKwhByZone.a", "spec.pue", "spec.gramsCO2ePerKwh:"]
    {
        assert!(problems.iter().any(|p| p.starts_with(field)), "{field}: {problems:?}");
    }
}
