//! Inventory: which accelerators may be used by which pool, in cells that the program can count.
//!
//! Nodes of one accelerator class, zone and capacity type that the same pools may use form a *cell*; within a cell
//! nodes are interchangeable, so the program counts replicas per cell and placement picks the nodes. Pipeline stages
//! (tensor-parallel groups, with all attention ranks) must fit a node: for each group size `g` a cell offers `Σ_nodes ⌊free/g⌋` *slots*, and a group of size
//! `s ≥ g` takes `⌊s/g⌋` of them. Where sizes divide one another (1, 2, 4, 8) these rows are exact.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use plimsoll_engine::power::Grid;
use plimsoll_fleet::accelerator::SPOT_INTERRUPTIONS_PER_HOUR;
use plimsoll_fleet::pool::{SpotPolicy, Toleration};
use plimsoll_fleet::{AcceleratorClass, ClusterSnapshot, ModelPool, NodeInfo, NodeName, Shape};

/// What a pool may do with a cell's nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Eligibility {
    /// New replicas may come.
    Open,
    /// Replicas that run there may stay (cordoned, or a taint that only repels new pods).
    KeepOnly,
    /// Not usable.
    Closed,
}

/// A node of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The node (`None`: one that an autoscaler could still add).
    pub node: Option<NodeName>,
    /// Accelerators that this plan may use on it.
    pub free: u32,
    /// Accelerators of `free` that replicas on their way out still hold.
    pub leaving: u32,
}

/// Interchangeable nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Name of the accelerator class.
    pub accelerator: String,
    /// Zone (empty: unknown).
    pub zone: String,
    /// Interruptible capacity.
    pub spot: bool,
    /// Price of one accelerator here.
    pub usd_per_hour: f64,
    /// Where the electricity comes from.
    pub grid: Grid,
    /// How often a node here is taken away, times per hour (0 on demand).
    pub interruptions_per_hour: f64,
    /// Nodes, in order of name; shared, because every pool looks at every cell.
    pub slots: Arc<[Slot]>,
    /// Each pool's eligibility, in the order the pools were given.
    pub eligible: Vec<Eligibility>,
}

impl Cell {
    /// Stages of `size` accelerators that fit.
    pub fn groups(&self, size: u32) -> u32 {
        if size == 0 { 0 } else { self.slots.iter().map(|s| s.free / size).sum() }
    }

    /// Whether it is capacity that an autoscaler has yet to add.
    pub fn is_autoscaled(&self) -> bool {
        self.slots.iter().all(|s| s.node.is_none())
    }

    /// Name for people: `h100 zone-a`, `l40s spot`.
    pub fn label(&self) -> String {
        let mut text = self.accelerator.clone();
        if !self.zone.is_empty() {
            text.push(' ');
            text.push_str(&self.zone);
        }
        if self.spot {
            text.push_str(" spot");
        }
        if self.is_autoscaled() {
            text.push_str(" autoscaled");
        }
        text
    }
}

/// Accelerators a replica takes on each of its nodes: equally many.
pub fn gpus_by_node<'a>(shape: &Shape, nodes: &'a [NodeName]) -> Vec<(&'a NodeName, u32)> {
    let each = shape.gpus_on_each(nodes.len() as u32);
    nodes.iter().map(|n| (n, each)).collect()
}

/// Whether a toleration list tolerates a taint written `key=value:Effect` or `key:Effect`.
fn tolerated(taint: &str, tolerations: &[Toleration]) -> bool {
    let (key_value, effect) = taint.rsplit_once(':').unwrap_or((taint, ""));
    let (key, value) = key_value.split_once('=').unwrap_or((key_value, ""));
    tolerations.iter().any(|t| t.tolerates(key, value, effect))
}

/// What a pool may do with a node.
pub fn eligibility(pool: &ModelPool, node: &NodeInfo) -> Eligibility {
    let allowed =
        pool.placement.accelerators.is_empty() || pool.placement.accelerators.contains(&node.accelerator);
    let selected = pool.placement.node_selector.iter().all(|(k, v)| node.labels.get(k) == Some(v));
    if !node.ready || !allowed || !selected || (node.spot && pool.placement.spot == SpotPolicy::Never) {
        return Eligibility::Closed;
    }
    let repelled = |effect: &str| {
        node.taints
            .iter()
            .any(|t| t.ends_with(&format!(":{effect}")) && !tolerated(t, &pool.placement.tolerations))
    };
    if repelled("NoExecute") {
        Eligibility::Closed
    } else if !node.schedulable || repelled("NoSchedule") {
        Eligibility::KeepOnly
    } else {
        Eligibility::Open
    }
}

/// Accelerators that are spoken for before the program is written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reserved {
    /// By node.
    pub nodes: BTreeMap<NodeName, u32>,
    /// Of each class's autoscalable capacity.
    pub autoscaled: BTreeMap<String, u32>,
    /// Accelerators by node that others hold and that may be planned with all the same.
    pub returned: BTreeMap<NodeName, u32>,
}

impl Reserved {
    /// Speaks for what a replica takes.
    pub fn add(&mut self, shape: &Shape, nodes: &[NodeName]) {
        if nodes.is_empty() {
            *self.autoscaled.entry(shape.accelerator.clone()).or_default() += shape.gpus();
        }
        for (node, gpus) in gpus_by_node(shape, nodes) {
            *self.nodes.entry(node.clone()).or_default() += gpus;
        }
    }
}

/// Highest price of an accelerator that is believed, dollars per hour: beyond it figures in one program are too far apart.
pub const MOST_USD_PER_HOUR: f64 = 1e6;

/// Price of one accelerator on a node of this class; `None` where it is not a price.
pub fn price(snapshot: &ClusterSnapshot, accelerator: &str, spot: bool) -> Option<f64> {
    let class = snapshot.accelerators.iter().find(|a| a.name == accelerator)?;
    let usd = if spot { class.spot_usd_per_hour.unwrap_or(class.usd_per_hour) } else { class.usd_per_hour };
    (0.0..=MOST_USD_PER_HOUR).contains(&usd).then_some(usd)
}

/// Where the electricity of a class's nodes in a zone comes from (an empty zone is not known). Figures that are none count as
/// the highest allowed.
pub fn grid(class: &AcceleratorClass, zone: &str) -> Grid {
    let figure = |x: f64, most: f64| if x.is_finite() { x.clamp(0.0, most) } else { most };
    Grid {
        pue: figure(class.electricity.pue, 10.0),
        grams_per_kwh: figure(class.electricity.intensity(zone), 10_000.0),
    }
}

fn interruptions_per_hour(class: &AcceleratorClass) -> f64 {
    let rate = class.spot_interruptions_per_hour;
    if rate.is_finite() { rate.clamp(0.0, 3600.0) } else { SPOT_INTERRUPTIONS_PER_HOUR }
}

/// All of a node that [`eligibility`] depends on for some pools: those whose selectors name the labels listed.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Look<'a> {
    accelerator: &'a str,
    zone: &'a str,
    spot: bool,
    ready: bool,
    schedulable: bool,
    taints: &'a [String],
    labels: Vec<Option<&'a str>>,
}

impl<'a> Look<'a> {
    fn of(node: &'a NodeInfo, keys: &BTreeSet<&str>) -> Self {
        Self {
            accelerator: &node.accelerator,
            zone: &node.zone,
            spot: node.spot,
            ready: node.ready,
            schedulable: node.schedulable,
            taints: &node.taints,
            labels: keys.iter().map(|key| node.labels.get(*key).map(String::as_str)).collect(),
        }
    }
}

/// The cells of a snapshot for these pools. `leaving` counts accelerators that replicas on their way out hold, by node.
/// Nodes of unknown classes, or of classes without a usable price, are in no cell. O(nodes + pools × kinds of node).
pub fn cells(
    snapshot: &ClusterSnapshot,
    pools: &[&ModelPool],
    reserved: &Reserved,
    leaving: &BTreeMap<NodeName, u32>,
) -> Vec<Cell> {
    type Signature = (String, String, bool, Vec<Eligibility>);
    let mut by_signature: BTreeMap<Signature, Vec<Slot>> = BTreeMap::new();
    // Of nodes that look alike to all pools, one is asked about.
    let keys: BTreeSet<&str> =
        pools.iter().flat_map(|p| p.placement.node_selector.keys()).map(String::as_str).collect();
    let mut alike: BTreeMap<Look<'_>, (&NodeInfo, Vec<Slot>)> = BTreeMap::new();
    let mut nodes: Vec<&NodeInfo> = snapshot.nodes.iter().collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes.dedup_by(|a, b| a.name == b.name);
    for node in &nodes {
        let of = |by_node: &BTreeMap<NodeName, u32>| by_node.get(&node.name).copied().unwrap_or(0);
        let foreign = node.foreign_gpus.saturating_sub(of(&reserved.returned));
        let taken = of(&reserved.nodes).saturating_add(foreign);
        let free = node.allocatable_gpus.saturating_sub(taken);
        let leaving = leaving.get(&node.name).copied().unwrap_or(0).min(free);
        alike.entry(Look::of(node, &keys)).or_insert_with(|| (*node, Vec::new())).1.push(Slot {
            node: Some(node.name.clone()),
            free,
            leaving,
        });
    }
    for (node, slots) in alike.into_values() {
        let eligible: Vec<Eligibility> = pools.iter().map(|p| eligibility(p, node)).collect();
        if eligible.iter().any(|e| *e != Eligibility::Closed) {
            by_signature
                .entry((node.accelerator.clone(), node.zone.clone(), node.spot, eligible))
                .or_default()
                .extend(slots);
        }
    }
    let mut cells: Vec<Cell> = by_signature
        .into_iter()
        .filter_map(|((accelerator, zone, spot, eligible), mut slots)| {
            let usd_per_hour = price(snapshot, &accelerator, spot)?;
            let class = snapshot.accelerators.iter().find(|a| a.name == accelerator)?;
            let interruptions_per_hour = if spot { interruptions_per_hour(class) } else { 0.0 };
            let grid = grid(class, &zone);
            slots.sort_by(|a, b| a.node.cmp(&b.node));
            let slots = slots.into();
            Some(Cell {
                accelerator,
                zone,
                spot,
                usd_per_hour,
                grid,
                interruptions_per_hour,
                slots,
                eligible,
            })
        })
        .collect();
    for class in &snapshot.accelerators {
        let left =
            class.autoscalable_max.saturating_sub(reserved.autoscaled.get(&class.name).copied().unwrap_or(0));
        let Some(usd_per_hour) = price(snapshot, &class.name, false).filter(|_| left > 0) else { continue };
        let of_class = || nodes.iter().filter(|n| n.accelerator == class.name && !n.spot);
        let size = class.node_gpus(&snapshot.nodes);
        let eligible: Vec<Eligibility> = pools
            .iter()
            .map(|p| {
                let place = &p.placement;
                let allowed = place.accelerators.is_empty() || place.accelerators.contains(&class.name);
                let on = |labels: &BTreeMap<String, String>| {
                    place.node_selector.iter().all(|(k, v)| labels.get(k) == Some(v))
                };
                let selected = on(&class.node_selector) || of_class().any(|n| on(&n.labels));
                if allowed && selected { Eligibility::Open } else { Eligibility::Closed }
            })
            .collect();
        let mut slots = vec![Slot { node: None, free: size, leaving: 0 }; (left / size).min(4096) as usize];
        if left % size > 0 {
            slots.push(Slot { node: None, free: left % size, leaving: 0 });
        }
        let (accelerator, zone) = (class.name.clone(), String::new());
        let grid = grid(class, &zone);
        cells.push(Cell {
            accelerator,
            zone,
            spot: false,
            interruptions_per_hour: 0.0,
            usd_per_hour,
            grid,
            slots: slots.into(),
            eligible,
        });
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn toleration(key: Option<&str>, operator: Option<&str>, value: Option<&str>) -> Toleration {
        let own = |s: Option<&str>| s.map(str::to_owned);
        Toleration { key: own(key), operator: own(operator), value: own(value), effect: None }
    }

    #[test]
    fn nodes_that_some_pool_tells_apart_are_in_cells_of_their_own() {
        use crate::plan::tests::support::{node, pool};
        let mut picky = pool("picky", "llama-3.1-8b", 1e6, 1e4);
        picky.placement.node_selector.insert("disk".to_owned(), "fast".to_owned());
        let plain = pool("plain", "llama-3.1-8b", 1e6, 1e4);
        let mut nodes = vec![node("c", "l4", 4, "a"), node("a", "l4", 4, "a"), node("b", "l4", 4, "a")];
        nodes[1].labels.insert("disk".to_owned(), "fast".to_owned());
        nodes[0].labels.insert("host".to_owned(), "c".to_owned());
        let classes = vec![plimsoll_fleet::presets::accelerator("l4").unwrap()];
        let snapshot = ClusterSnapshot { nodes, accelerators: classes, ..ClusterSnapshot::default() };
        let of = |pools: &[&ModelPool]| -> Vec<Vec<String>> {
            let names =
                |c: &Cell| c.slots.iter().filter_map(|s| s.node.as_ref()).map(ToString::to_string).collect();
            cells(&snapshot, pools, &Reserved::default(), &BTreeMap::new()).iter().map(names).collect()
        };
        assert_eq!(of(&[&plain]), [["a", "b", "c"]]);
        assert_eq!(of(&[&picky]), [["a"]]);
        let mut both = of(&[&plain, &picky]);
        both.sort();
        assert_eq!(both, [vec!["a"], vec!["b", "c"]]);
    }

    #[rstest]
    #[case("gpu=yes:NoSchedule", None, Some("Exists"), None, true)]
    #[case("gpu=yes:NoSchedule", Some("gpu"), Some("Exists"), None, true)]
    #[case("gpu=yes:NoSchedule", Some("gpu"), None, Some("yes"), true)]
    #[case("gpu=yes:NoSchedule", Some("gpu"), Some("Equal"), Some("no"), false)]
    #[case("gpu:NoSchedule", Some("gpu"), None, None, true)]
    #[case("other:NoSchedule", Some("gpu"), Some("Exists"), None, false)]
    fn tolerations_follow_kubernetes(
        #[case] taint: &str,
        #[case] key: Option<&str>,
        #[case] operator: Option<&str>,
        #[case] value: Option<&str>,
        #[case] ok: bool,
    ) {
        assert_eq!(tolerated(taint, &[toleration(key, operator, value)]), ok);
        assert!(!tolerated(taint, &[]));
    }
}
