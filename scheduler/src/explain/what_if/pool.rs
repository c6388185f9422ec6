//! Changes of a pool's own settings, and of a node: `pool/chat.max=8`, `node/h-0=gone`.

use std::collections::BTreeMap;

use plimsoll_fleet::{ClusterSnapshot, DemandEstimate, PoolId};

use super::{WhatIfError, closest, list, pool_index, unknown};

/// Fields of `pool/`.
const FIELDS: [&str; 5] = ["rps", "min", "max", "priority", "minQuality"];
/// States of `node/`.
const STATES: [&str; 3] = ["gone", "cordoned", "ready"];

type Demands = BTreeMap<PoolId, DemandEstimate>;

/// `pool/NAME.FIELD=VALUE`.
pub(super) fn pool(
    snapshot: &mut ClusterSnapshot,
    demands: &mut Demands,
    change: &str,
    (path, value): (&str, &str),
) -> Result<(), WhatIfError> {
    let wrong = |problem: String| WhatIfError::Value { expression: change.to_owned(), problem };
    let (name, field) = path.rsplit_once('.').ok_or_else(|| {
        wrong(format!("name a field, e.g. pool/{path}.rps=2x; there is {}", FIELDS.join(", ")))
    })?;
    let at = pool_index(snapshot, change, name)?;
    let Some(field) = FIELDS.into_iter().find(|f| f.eq_ignore_ascii_case(field)) else {
        return Err(unknown(change, "pool field", field, FIELDS.iter().map(|f| (*f).to_owned())));
    };
    let value = value.trim();
    let count = || {
        let number = value.parse::<u32>();
        number.map_err(|_| {
            wrong(format!("{value:?} is not a whole number of replicas; write e.g. pool/{name}.{field}=2"))
        })
    };
    match field {
        "rps" => {
            let rate = Rate::parse(value).ok_or_else(|| {
                wrong(format!(
                    "{value:?} is not a rate; write a rate (7), a factor (2x) or a share (+50%, -20%)"
                ))
            })?;
            return super::set_rate(snapshot, demands, change, at, rate);
        }
        "min" => snapshot.pools[at].scaling.min_replicas = count()?,
        "max" => snapshot.pools[at].scaling.max_replicas = count()?,
        "priority" => {
            snapshot.pools[at].priority = value
                .parse()
                .map_err(|_| wrong(format!("{value:?} is not a whole number; write e.g. 100")))?;
        }
        _ => {
            let quality = value.parse::<f64>().ok().filter(|q| (0.0..=1.0).contains(q));
            snapshot.pools[at].min_quality = quality
                .ok_or_else(|| wrong(format!("{value:?} is not a quality from 0 to 1; write e.g. 0.95")))?;
        }
    }
    Ok(())
}

/// A new rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rate {
    /// So many times today's.
    Times(f64),
    /// Requests per second.
    Rps(f64),
}

impl Rate {
    /// `7`, `2x`, `*2`, `+50%`, `-20%`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let number = |t: &str| t.trim().parse::<f64>().ok().filter(|v| v.is_finite());
        let rate = if let Some(times) = text.strip_suffix(['x', 'X', '×']).or_else(|| text.strip_prefix('*'))
        {
            Self::Times(number(times)?)
        } else if let Some(percent) = text.strip_suffix('%') {
            let percent = number(percent)?;
            Self::Times(if text.starts_with(['+', '-']) { 1.0 + percent / 100.0 } else { percent / 100.0 })
        } else {
            Self::Rps(number(text)?)
        };
        let (Self::Times(value) | Self::Rps(value)) = rate;
        (value >= 0.0).then_some(rate)
    }
}

/// `node/NAME=STATE`.
pub(super) fn node(
    snapshot: &mut ClusterSnapshot,
    change: &str,
    (name, state): (&str, &str),
) -> Result<(), WhatIfError> {
    let Some(at) = snapshot.nodes.iter().position(|n| n.name.as_str() == name) else {
        // A cluster may have thousands of nodes: only what may have been meant is named.
        let near = closest::closest(name, snapshot.nodes.iter().map(|n| n.name.as_str()));
        let existing = match near {
            Some(near) => vec![near.to_owned()],
            None => vec![format!("{} nodes with other names", snapshot.nodes.len())],
        };
        return Err(unknown(change, "node", name, existing.into_iter()));
    };
    let node = &mut snapshot.nodes[at];
    match STATES.into_iter().find(|s| s.eq_ignore_ascii_case(state.trim())) {
        Some("gone") => node.ready = false,
        Some("cordoned") => node.schedulable = false,
        Some(_) => (node.ready, node.schedulable) = (true, true),
        None => {
            let states = list(STATES.iter().map(|s| (*s).to_owned()));
            let problem = format!("{state:?} is no state of a node; there is {states}");
            return Err(WhatIfError::Value { expression: change.to_owned(), problem });
        }
    }
    Ok(())
}
