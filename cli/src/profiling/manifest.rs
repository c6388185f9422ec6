//! The calibration as an AcceleratorClass manifest.

use plimsoll_crds as crds;
use plimsoll_fleet::Calibration;
use serde_json::{Value, json};

use crate::failure::Failure;

/// Rounds to four significant digits: more were never measured.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = 3 - value.abs().log10().floor() as i32;
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

/// `spec.calibration`.
pub fn calibration(c: &Calibration) -> Value {
    json!({
        "etaCompute": rounded(c.eta_compute),
        "etaAttention": rounded(c.eta_attention),
        "etaWeights": rounded(c.eta_weights),
        "etaKv": rounded(c.eta_kv),
        "etaLink": rounded(c.eta_link),
        "layerOverheadUs": rounded(c.layer_overhead_us),
        "stepOverheadUs": rounded(c.step_overhead_us),
        "requestOverheadUs": rounded(c.request_overhead_us),
        "allreduceAlphaUs": rounded(c.allreduce_alpha_us),
        "apiOverheadMs": rounded(c.api_overhead_ms),
        "relativeError": rounded(c.relative_error),
    })
}

/// The class with its new calibration: `own` is its manifest, where it was read from a file; otherwise it is a preset.
///
/// # Errors
/// If the class would not be accepted, saying which field is why.
pub fn manifest(
    class: &str,
    own: Option<Value>,
    c: &Calibration,
    comments: &[String],
) -> Result<String, Failure> {
    let mut object = own.unwrap_or_else(|| {
        json!({
            "apiVersion": "plimsoll.dev/v1alpha1",
            "kind": "AcceleratorClass",
            "metadata": {"name": class},
            "spec": {"preset": class},
        })
    });
    object["spec"]["calibration"] = calibration(c);
    let read: crds::AcceleratorClass = serde_json::from_value(object.clone())
        .map_err(|e| Failure::caused("failed to describe the calibrated class", e))?;
    read.to_fleet().map_err(|e| {
        Failure::new(format!(
            "the fitted class would not be accepted: {}",
            crds::invalid::describe(&e)
        ))
        .hint("measured times that need such coefficients are mostly those of another model, GPU or parallelism; check \
               --arch, --gpu, --tp and --weights")
    })?;
    let yaml = serde_saphyr::to_string(&object)
        .map_err(|e| Failure::caused("failed to write the calibrated class as YAML", e))?;
    let comments: String = comments.iter().map(|line| format!("# {line}\n")).collect();
    Ok(format!("{comments}{yaml}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_fleet::presets;

    #[test]
    fn figures_have_four_digits() {
        assert_eq!((rounded(0.588_349_2), rounded(60.6123), rounded(0.0)), (0.5883, 60.61, 0.0));
        assert_eq!(rounded(12_345.6), 12_350.0);
    }

    #[test]
    fn the_manifest_is_read_back_by_plan() {
        let mut c = presets::accelerator("l4").unwrap().calibration;
        c.eta_weights = 0.871_234;
        let text = manifest("l4", None, &c, &["measured".to_owned()]).unwrap();
        assert!(text.starts_with("# measured\n"), "{text}");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("l4.yaml");
        std::fs::write(&file, text).unwrap();
        let loaded = crate::manifests::load(&[file]).unwrap();
        assert_eq!(loaded.problems, Vec::<String>::new());
        let class = loaded.snapshot.accelerators.iter().find(|a| a.name == "l4").unwrap();
        assert!((class.calibration.eta_weights - 0.8712).abs() < 1e-9);
    }

    #[test]
    fn a_class_of_ones_own_keeps_its_facts() {
        let own = json!({
            "apiVersion": "plimsoll.dev/v1alpha1", "kind": "AcceleratorClass", "metadata": {"name": "mine"},
            "spec": {"preset": "l4", "usdPerHour": 0.4},
        });
        let c = presets::accelerator("l4").unwrap().calibration;
        let text = manifest("mine", Some(own.clone()), &c, &[]).unwrap();
        assert!(text.contains("usdPerHour: 0.4") && text.contains("etaWeights"), "{text}");
        let absurd = Calibration { eta_weights: 3.0, ..c };
        let error = manifest("mine", Some(own), &absurd, &[]).unwrap_err().to_string();
        assert!(error.contains("spec.calibration.etaWeights") && error.contains("--gpu"), "{error}");
    }
}
