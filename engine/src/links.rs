//! Communication: which link joins a group of accelerators, and what its collectives cost.
//!
//! A group is as fast as the weakest link in its ring: the fast-link domain where it holds the group, else the node's link
//! between domains, else the network. Costs are alpha-beta: latency, plus bytes over bandwidth.

use std::fmt;

use plimsoll_fleet::AcceleratorClass;
use serde::{Deserialize, Serialize};

/// Latency of a collective that crosses nodes, microseconds, on top of that inside a domain. Measured: 41–43 µs for two
/// A100 in two nodes, 65 µs for 16 in two.
const NETWORK_ALPHA_US: f64 = 40.0;

/// The weakest link of a group of accelerators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkTier {
    /// The fast-link domain (NVLink, xGMI), or PCIe where a class has nothing faster.
    Domain,
    /// What joins domains in one node, commonly PCIe.
    Node,
    /// The network between nodes.
    Network,
}

impl fmt::Display for LinkTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Domain => "link domain",
            Self::Node => "node link",
            Self::Network => "network",
        })
    }
}

/// A group's link: its tier, bandwidth and latency.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Link {
    /// Bandwidth of one accelerator as collectives reach it, bytes per millisecond.
    bytes_per_ms: f64,
    /// Latency of one collective, milliseconds.
    pub(crate) alpha_ms: f64,
}

/// The weakest link among `group` accelerators of a class.
pub fn tier(acc: &AcceleratorClass, group: u32) -> LinkTier {
    if group <= acc.link_domain_size.max(1) {
        LinkTier::Domain
    } else if acc.node_link.is_some_and(|n| group <= n.accelerators) {
        LinkTier::Node
    } else {
        LinkTier::Network
    }
}

/// Nominal bandwidth of one accelerator over a tier, bytes per second.
pub(crate) fn bandwidth(acc: &AcceleratorClass, tier: LinkTier) -> f64 {
    match (tier, acc.node_link) {
        (LinkTier::Domain, _) | (LinkTier::Node, None) => acc.link_bytes_per_second,
        // A ring's weakest link: never faster than what is inside the domain.
        (LinkTier::Node, Some(n)) => n.bytes_per_second.min(acc.link_bytes_per_second),
        (LinkTier::Network, n) => {
            let inside = n.map_or(f64::INFINITY, |n| n.bytes_per_second).min(acc.link_bytes_per_second);
            acc.nic_bytes_per_second.min(inside)
        }
    }
}

impl Link {
    pub(crate) fn new(acc: &AcceleratorClass, group: u32) -> Self {
        let tier = tier(acc, group);
        let c = &acc.calibration;
        let beyond_us = match tier {
            LinkTier::Domain => 0.0,
            LinkTier::Node => acc.node_link.map_or(0.0, |n| n.alpha_us),
            LinkTier::Network => acc.node_link.map_or(0.0, |n| n.alpha_us).max(NETWORK_ALPHA_US),
        };
        Self {
            bytes_per_ms: bandwidth(acc, tier) * c.eta_link * 1e-3,
            alpha_ms: if group > 1 {
                (c.allreduce_alpha_us * f64::from(group).log2() + beyond_us) * 1e-3
            } else {
                0.0
            },
        }
    }

    /// Moving this much in or out of each accelerator, milliseconds, latency aside.
    pub(crate) fn transfer_ms(&self, bytes: f64) -> f64 {
        bytes / self.bytes_per_ms
    }
}

/// What a ring all-reduce moves through each accelerator, as a multiple of the message: `2(n−1)/n`.
pub(crate) fn ring(group: f64) -> f64 {
    2.0 * (group - 1.0) / group
}

/// Time of an all-reduce of `bytes` over `group` accelerators, milliseconds: `alpha + 2(n−1)/n · bytes / bandwidth` of the
/// weakest link.
pub fn allreduce_ms(acc: &AcceleratorClass, group: u32, bytes: f64) -> f64 {
    if group < 2 {
        return 0.0;
    }
    let link = Link::new(acc, group);
    link.alpha_ms + link.transfer_ms(ring(f64::from(group)) * bytes)
}

/// Time to hand `bytes` from one accelerator to another across this tier, milliseconds, latency aside.
pub(crate) fn hand_over_ms(acc: &AcceleratorClass, tier: LinkTier, bytes: f64) -> f64 {
    1e3 * bytes / bandwidth(acc, tier)
}
