//! Tolerations, as pools and accelerator classes give them.

use plimsoll_fleet::pool;

use crate::invalid::Check;
use crate::model_pool::Toleration;

/// Checks the tolerations of the field `at`.
pub(crate) fn tolerations(check: &mut Check, at: &str, given: &[Toleration]) -> Vec<pool::Toleration> {
    for (i, t) in given.iter().enumerate() {
        let at = format!("{at}[{i}]");
        if let Some(operator) = &t.operator
            && !matches!(operator.as_str(), "Exists" | "Equal")
        {
            check.invalid(format!("{at}.operator"), operator, "is not an operator", "use Exists or Equal");
        }
        if let Some(effect) = &t.effect
            && !matches!(effect.as_str(), "NoSchedule" | "PreferNoSchedule" | "NoExecute")
        {
            check.invalid(
                format!("{at}.effect"),
                effect,
                "is not an effect",
                "use NoSchedule, PreferNoSchedule or NoExecute",
            );
        }
        if t.key.as_deref().unwrap_or_default().is_empty() && t.operator.as_deref() != Some("Exists") {
            check.invalid(
                format!("{at}.key"),
                "",
                "is missing",
                "name the taint's key, or use operator: Exists for all",
            );
        }
        if t.operator.as_deref() == Some("Exists") && t.value.as_deref().is_some_and(|v| !v.is_empty()) {
            check.invalid(
                format!("{at}.value"),
                t.value.clone().unwrap_or_default(),
                "goes with operator Equal only",
                "remove it",
            );
        }
    }
    given
        .iter()
        .map(|t| pool::Toleration {
            key: t.key.clone(),
            operator: t.operator.clone(),
            value: t.value.clone(),
            effect: t.effect.clone(),
        })
        .collect()
}
