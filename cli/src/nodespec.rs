//! Simulated nodes as people write them: `2x8xh100,2x4xl40s,2x1xl4`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use plimsoll_fleet::{AcceleratorClass, presets};

/// `count × gpus × class`.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeGroup {
    /// Nodes.
    pub count: u32,
    /// Accelerators a node.
    pub gpus: u32,
    /// Their class.
    pub class: AcceleratorClass,
}

/// A list of node groups.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeGroups(pub Vec<NodeGroup>);

/// Why a list of nodes could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNodes {
    /// An item is not `COUNTxGPUSxCLASS`.
    #[error("{0:?} is not COUNTxGPUSxCLASS, such as 2x8xh100")]
    Form(String),
    /// Too many or no nodes or GPUs.
    #[error("{0:?}: the counts must be 1 to 1000 nodes and 1 to 16 GPUs")]
    Count(String),
    /// The class is no preset.
    #[error("{item:?}: no accelerator preset {class:?}; there are {known}")]
    Class {
        /// The item.
        item: String,
        /// The unknown class.
        class: String,
        /// The known ones.
        known: String,
    },
}

impl FromStr for NodeGroup {
    type Err = InvalidNodes;

    fn from_str(item: &str) -> Result<Self, Self::Err> {
        let mut parts = item.trim().splitn(3, ['x', '×']);
        let (Some(count), Some(gpus), Some(class)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(InvalidNodes::Form(item.to_owned()));
        };
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| InvalidNodes::Form(item.to_owned()));
        let (count, gpus) = (number(count)?, number(gpus)?);
        if !(1..=1000).contains(&count) || !(1..=16).contains(&gpus) {
            return Err(InvalidNodes::Count(item.to_owned()));
        }
        let class = class.trim().to_lowercase();
        let preset = presets::accelerator(&class).ok_or_else(|| InvalidNodes::Class {
            item: item.to_owned(),
            class,
            known: presets::accelerators().iter().map(|a| a.name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        Ok(Self { count, gpus, class: preset })
    }
}

impl FromStr for NodeGroups {
    type Err = InvalidNodes;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for NodeGroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self
            .0
            .iter()
            .map(|g| format!("{}× {}×{}", g.count, g.gpus, g.class.name.to_uppercase()))
            .collect();
        f.write_str(&parts.join(", "))
    }
}

/// One node of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeFacts {
    /// Name, e.g. `h100-1`.
    pub name: String,
    /// Zone, `zone-a` or `zone-b`.
    pub zone: String,
    /// Accelerators.
    pub gpus: u32,
    /// Class name.
    pub class: String,
    /// Extended resource it counts accelerators in.
    pub resource: Option<&'static str>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl NodeGroups {
    /// All nodes, zones alternating within a group.
    pub fn nodes(&self) -> Vec<NodeFacts> {
        let mut serial: BTreeMap<&str, u32> = BTreeMap::new();
        let mut nodes = Vec::new();
        for group in &self.0 {
            for _ in 0..group.count {
                let n = serial.entry(&group.class.name).or_insert(0);
                *n += 1;
                let zone = if *n % 2 == 1 { "zone-a" } else { "zone-b" }.to_owned();
                let mut labels = group.class.node_selector.clone();
                labels.insert("topology.kubernetes.io/zone".into(), zone.clone());
                nodes.push(NodeFacts {
                    name: format!("{}-{n}", group.class.name),
                    zone,
                    gpus: group.gpus,
                    class: group.class.name.clone(),
                    resource: group.class.vendor.resource_name(),
                    labels,
                });
            }
        }
        nodes
    }

    /// How many nodes there are.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|g| g.count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_groups_and_names_nodes() {
        let groups: NodeGroups = "2x8xh100, 1x4xl40s".parse().unwrap();
        assert_eq!(groups.to_string(), "2× 8×H100, 1× 4×L40S");
        let nodes = groups.nodes();
        assert_eq!(
            nodes.iter().map(|n| (n.name.as_str(), n.zone.as_str(), n.gpus)).collect::<Vec<_>>(),
            [("h100-1", "zone-a", 8), ("h100-2", "zone-b", 8), ("l40s-1", "zone-a", 4)]
        );
        assert!(presets::accelerator("h100").unwrap().matches_labels(&nodes[0].labels));
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, part) in [
            ("8xh100", "COUNTxGPUSxCLASS"),
            ("ax8xh100", "COUNTxGPUSxCLASS"),
            ("0x8xh100", "1 to 1000"),
            ("1x8xgtx", "h100, h200"),
            ("", "COUNTxGPUSxCLASS"),
        ] {
            let error = text.parse::<NodeGroups>().unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
