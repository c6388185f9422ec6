//! The one-screen summary of `plimsoll up` and `plimsoll top`: a pure function from what is known to lines.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use plimsoll_proto::v1::PoolObservation;

use crate::nodespec::NodeFacts;
use crate::watch::FleetView;

/// Draws the summary, `width` columns wide at most.
///
/// `nodes` may be empty (`plimsoll top` on a cluster whose nodes it does not know): then nodes come from the plan.
pub fn render(view: &FleetView, nodes: &[NodeFacts], title: &str, width: usize) -> Vec<String> {
    let mut lines = vec![header(view, title), String::new()];
    lines.extend(node_lines(view, nodes));
    lines.push(String::new());
    lines.extend(pool_lines(view));
    if let Some(plan) = &view.plan {
        lines.push(String::new());
        lines.push(format!("last decision   plan {}: {}", plan.number, plan.trigger));
        for binding in plan.binding.iter().take(3) {
            lines.push(format!("binding         {binding}"));
        }
    }
    for line in &mut lines {
        if line.chars().count() > width {
            *line = line.chars().take(width.saturating_sub(1)).chain(['…']).collect();
        }
    }
    lines
}

fn header(view: &FleetView, title: &str) -> String {
    let mut text = title.to_owned();
    match &view.plan {
        Some(plan) => {
            let _ = write!(text, "   plan {}   ${:.2}/h", plan.number, plan.usd_per_hour);
            if plan.quality.gap > 0.0005 {
                let _ = write!(text, "   gap {:.1} %", 100.0 * plan.quality.gap);
            }
        }
        None => text.push_str("   no plan yet: kubectl apply a ModelPool"),
    }
    if let Some(observations) = &view.observations {
        let _ = write!(text, "   agents {}", observations.agents);
    }
    if !view.connected {
        text.push_str("   (scheduler not heard)");
    }
    text
}

fn node_lines(view: &FleetView, nodes: &[NodeFacts]) -> Vec<String> {
    let mut used: BTreeMap<String, (u32, Vec<String>)> = BTreeMap::new();
    for pool in view.plan.iter().flat_map(|p| &p.pools) {
        for replica in &pool.replicas {
            for node in &replica.nodes {
                let entry = used.entry(node.to_string()).or_default();
                entry.0 += replica.shape.gpus() / replica.nodes.len().max(1) as u32;
                entry.1.push(replica.id.to_string());
            }
        }
    }
    if nodes.is_empty() && used.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!("{:<12} {:<17} {:<8} {}", "NODE", "GPUS", "ZONE", "REPLICAS")];
    if nodes.is_empty() {
        for (name, (gpus, replicas)) in &used {
            lines.push(format!("{name:<12} {:<17} {:<8} {}", format!("{gpus} used"), "", replicas.join(" ")));
        }
    }
    for node in nodes {
        let (gpus, replicas) = used.remove(&node.name).unwrap_or_default();
        let full = gpus.min(node.gpus) as usize;
        let bar = "■".repeat(full) + &"□".repeat(node.gpus as usize - full);
        lines.push(format!(
            "{:<12} {:<17} {:<8} {}",
            node.name,
            format!("{bar} {}", node.class.to_uppercase()),
            node.zone,
            replicas.join(" ")
        ));
    }
    lines
}

fn pool_lines(view: &FleetView) -> Vec<String> {
    let observed: BTreeMap<&str, &PoolObservation> =
        view.observations.iter().flat_map(|o| &o.pools).map(|p| (p.pool.as_str(), p)).collect();
    let Some(plan) = &view.plan else { return Vec::new() };
    if plan.pools.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!(
        "{:<14} {:<6} {:<30} {:>7} {:>14} {:>12} {:>7} {:>7}  {}",
        "POOL", "READY", "SHAPE", "RPS", "TTFT", "TPOT", "ATTAIN", "$/H", "WHY"
    )];
    for pool in &plan.pools {
        let id = pool.pool.to_string();
        let seen = observed.get(id.as_str());
        let name = id.strip_prefix("default/").unwrap_or(&id);
        let rps = seen.map_or_else(|| "–".to_owned(), |o| format!("{:.1}", o.rps));
        let attainment =
            seen.and_then(|o| o.attainment).map_or_else(|| "–".to_owned(), |a| format!("{:.1} %", 100.0 * a));
        lines.push(format!(
            "{name:<14} {:<6} {:<30} {rps:>7} {:>14} {:>12} {attainment:>7} {:>7.2}  {}",
            format!("{}/{}", seen.map_or(0, |o| o.ready_replicas), pool.replicas.len()),
            pool.fleet_text(),
            limit(seen.and_then(|o| o.ttft_ms), seen.and_then(|o| o.ttft_objective_ms)),
            limit(seen.and_then(|o| o.tpot_ms), seen.and_then(|o| o.tpot_objective_ms)),
            pool.usd_per_hour,
            pool.why.summary,
        ));
    }
    lines
}

/// `412/800 ms`: observed over objective.
fn limit(observed: Option<f64>, objective: Option<f64>) -> String {
    match (observed, objective) {
        (Some(o), Some(l)) => format!("{o:.0}/{l:.0} ms"),
        (Some(o), None) => format!("{o:.0} ms"),
        (None, Some(l)) => format!("–/{l:.0} ms"),
        (None, None) => "–".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodespec::NodeGroups;
    use plimsoll_proto::v1::Observations;

    #[test]
    fn an_empty_fleet_says_what_to_do() {
        let nodes = "1x4xl40s".parse::<NodeGroups>().unwrap().nodes();
        let text = render(&FleetView::default(), &nodes, "Plimsoll", 120).join("\n");
        assert!(text.contains("kubectl apply"), "{text}");
        assert!(text.contains("□□□□ L40S"), "{text}");
    }

    #[test]
    fn lines_are_cut_to_the_width() {
        let view = FleetView { observations: Some(Observations::default()), ..FleetView::default() };
        let lines = render(&view, &[], &"x".repeat(500), 80);
        assert!(lines.iter().all(|l| l.chars().count() <= 80));
    }

    #[test]
    fn limits_read_as_people_write_them() {
        assert_eq!(limit(Some(412.3), Some(800.0)), "412/800 ms");
        assert_eq!(limit(None, Some(50.0)), "–/50 ms");
        assert_eq!(limit(None, None), "–");
    }
}
