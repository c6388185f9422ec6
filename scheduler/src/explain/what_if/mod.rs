//! What-if: a change to the planner's input, in one short expression.
//!
//! | Expression | Meaning |
//! |---|---|
//! | `gpu/h100+4`, `gpu/l40s-2` | four more (autoscalable) H100s; two L40S fewer |
//! | `price/h100=1.9` | price of one accelerator, $/h |
//! | `budget/team-a=60` | cap of a budget, $/h |
//! | `budget/green.watts=5000`, `budget/green.gramsCO2ePerHour=900` | caps of power and emissions |
//! | `slo/default/chat.tpot=60ms` | an objective of a pool (of its default class, or `chat.batch.tpot`) |
//! | `demand/default/chat*2`, `demand/chat=10` | demand of a pool, as a factor or as requests per second |
//! | `pool/chat.rps=2x`, `pool/chat.rps=+50%` | the same |
//! | `pool/chat.min=2`, `.max=8`, `.priority=100`, `.minQuality=0.95` | a pool's bounds, tier and quality |
//! | `node/h-0=gone`, `node/h-0=cordoned`, `node/h-0=ready` | a node lost, closed to new replicas, or back |

mod closest;
mod pool;

use std::collections::BTreeMap;

use plimsoll_fleet::{BudgetUnit, ClusterSnapshot, DemandEstimate, Objective, Percentile, PoolId};

use closest::closest;
use pool::Rate;

/// What a change may begin with.
const KINDS: [&str; 7] = ["gpu", "price", "budget", "slo", "demand", "pool", "node"];

/// Why a what-if expression cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhatIfError {
    /// It is not of a known form.
    #[error(
        "what-if {expression:?} is not understood; use gpu/h100+4, price/h100=1.9, budget/team-a=60, \
         slo/namespace/pool.tpot=60ms, demand/namespace/pool*2, pool/namespace/pool.max=8 or node/name=gone{}",
        did_you_mean(.meant.as_deref())
    )]
    Syntax {
        /// The expression.
        expression: String,
        /// The same without what looks like a slip of the hand.
        meant: Option<String>,
    },
    /// It names something that does not exist.
    #[error(
        "what-if {expression:?}: there is no {kind} {name:?}; there is {existing}{}",
        did_you_mean(.meant.as_deref())
    )]
    Unknown {
        /// The expression.
        expression: String,
        /// What was named, e.g. `budget`.
        kind: &'static str,
        /// The name.
        name: String,
        /// What exists.
        existing: String,
        /// What of it looks as if it was meant.
        meant: Option<String>,
    },
    /// Its value cannot be.
    #[error("what-if {expression:?}: {problem}")]
    Value {
        /// The expression.
        expression: String,
        /// What is wrong and what to write instead.
        problem: String,
    },
}

fn did_you_mean(meant: Option<&str>) -> String {
    meant.map(|m| format!("; did you mean {m}?")).unwrap_or_default()
}

/// A changed input.
pub type Changed = (ClusterSnapshot, BTreeMap<PoolId, DemandEstimate>);

/// Applies one expression to copies of the snapshot and the demands.
///
/// # Errors
/// [`WhatIfError`] naming what was wrong and what exists.
pub fn apply(
    snapshot: &ClusterSnapshot,
    demands: &BTreeMap<PoolId, DemandEstimate>,
    change: &str,
) -> Result<Changed, WhatIfError> {
    let change = change.trim();
    let syntax = || {
        let (kind, rest) = change.split_once('/').unwrap_or((change, ""));
        let meant = closest(kind, KINDS).filter(|near| *near != kind && !rest.is_empty());
        let meant = meant.map(|near| format!("{near}/{rest}"));
        WhatIfError::Syntax { expression: change.to_owned(), meant }
    };
    let (kind, rest) = change.split_once('/').ok_or_else(syntax)?;
    let mut snapshot = snapshot.clone();
    let mut demands = demands.clone();
    match kind {
        "gpu" => {
            let at = rest.rfind(['+', '-']).filter(|i| *i > 0).ok_or_else(syntax)?;
            let (name, number) = rest.split_at(at);
            let delta: i64 = number.parse().map_err(|_| WhatIfError::Value {
                expression: change.to_owned(),
                problem: format!("{number:?} is not a whole number of accelerators; write e.g. gpu/{name}+4"),
            })?;
            gpus(&mut snapshot, change, name, delta)?;
        }
        "price" => {
            let (name, value) = rest.split_once('=').ok_or_else(syntax)?;
            let usd = dollars(change, value)?;
            let class = class_index(&snapshot, change, name)?;
            let class = &mut snapshot.accelerators[class];
            class.usd_per_hour = usd;
            class.spot_usd_per_hour = class.spot_usd_per_hour.map(|s| s.min(usd));
        }
        "budget" => {
            let (path, value) = rest.split_once('=').ok_or_else(syntax)?;
            let (budget, unit) = cap_index(&snapshot, change, path)?;
            let cap = match unit {
                BudgetUnit::UsdPerHour => dollars(change, value)?,
                BudgetUnit::Watts | BudgetUnit::GramsCo2ePerHour => amount(change, value, unit)?,
            };
            snapshot.budgets[budget].set_cap(unit, cap);
        }
        "slo" => {
            let (path, value) = rest.split_once('=').ok_or_else(syntax)?;
            slo(&mut snapshot, change, path, value)?;
        }
        "demand" => {
            let at = rest.find(['*', '=']).ok_or_else(syntax)?;
            let (name, number) = rest.split_at(at);
            let (factor, number) = (number.starts_with('*'), &number[1..]);
            let value = number.trim().parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.0).ok_or_else(
                || WhatIfError::Value {
                    expression: change.to_owned(),
                    problem: format!("{number:?} is not a number of 0 or more"),
                },
            )?;
            let pool = pool_index(&snapshot, change, name)?;
            let rate = if factor { Rate::Times(value) } else { Rate::Rps(value) };
            set_rate(&snapshot, &mut demands, change, pool, rate)?;
        }
        "pool" => {
            let at = rest.split_once('=').ok_or_else(syntax)?;
            pool::pool(&mut snapshot, &mut demands, change, at)?;
        }
        "node" => {
            let at = rest.split_once('=').ok_or_else(syntax)?;
            pool::node(&mut snapshot, change, at)?;
        }
        _ => return Err(syntax()),
    }
    Ok((snapshot, demands))
}

/// Gives a pool another rate.
fn set_rate(
    snapshot: &ClusterSnapshot,
    demands: &mut BTreeMap<PoolId, DemandEstimate>,
    change: &str,
    pool: usize,
    rate: Rate,
) -> Result<(), WhatIfError> {
    let id = snapshot.pools[pool].id.clone();
    let demand = demands.entry(id.clone()).or_default();
    let total = demand.total_rps();
    match rate {
        Rate::Times(scale) if total > 0.0 => demand.classes.iter_mut().for_each(|c| c.rps *= scale),
        Rate::Rps(rps) if total > 0.0 => demand.classes.iter_mut().for_each(|c| c.rps *= rps / total),
        Rate::Rps(rps) => {
            let mut classes = crate::plan::candidates::planned_classes(&snapshot.pools[pool], &[]);
            classes.iter_mut().for_each(|c| c.rps = rps);
            demand.classes = classes;
        }
        Rate::Times(_) => {
            return Err(WhatIfError::Value {
                expression: change.to_owned(),
                problem: format!("{id} has no demand to multiply; give a rate instead, e.g. demand/{id}=2"),
            });
        }
    }
    demand.source = format!("what-if {change}");
    Ok(())
}

fn list(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = names.collect();
    names.sort();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn unknown(
    expression: &str,
    kind: &'static str,
    name: &str,
    existing: impl Iterator<Item = String>,
) -> WhatIfError {
    let existing: Vec<String> = existing.collect();
    // A pool may be named without its namespace.
    let names =
        existing.iter().flat_map(|e| [Some(e.as_str()), e.split_once('/').map(|(_, short)| short)]).flatten();
    let meant = closest(name, names).map(str::to_owned);
    let (expression, name) = (expression.to_owned(), name.to_owned());
    WhatIfError::Unknown { expression, kind, name, existing: list(existing.into_iter()), meant }
}

fn dollars(change: &str, value: &str) -> Result<f64, WhatIfError> {
    let text = value.trim().trim_start_matches('$').trim_end_matches("/h");
    text.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.0).ok_or_else(|| WhatIfError::Value {
        expression: change.to_owned(),
        problem: format!("{value:?} is not an amount in dollars per hour; write e.g. 1.90"),
    })
}

fn amount(change: &str, value: &str, unit: BudgetUnit) -> Result<f64, WhatIfError> {
    let suffixes = if unit == BudgetUnit::Watts { ["W", "W"] } else { ["gCO2e/h", "g"] };
    let text = value.trim();
    let text = suffixes.iter().find_map(|s| text.strip_suffix(s)).unwrap_or(text).trim();
    text.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.0).ok_or_else(|| WhatIfError::Value {
        expression: change.to_owned(),
        problem: format!(
            "{value:?} is not an amount of {}; write a number of 0 or more, e.g. 5000",
            if unit == BudgetUnit::Watts { "watts" } else { "grams per hour" }
        ),
    })
}

/// The budget and cap that a path such as `team-a` (dollars per hour) or `green.watts` names; a budget's name may itself hold
/// dots.
fn cap_index(
    snapshot: &ClusterSnapshot,
    change: &str,
    path: &str,
) -> Result<(usize, BudgetUnit), WhatIfError> {
    let at = |name: &str| snapshot.budgets.iter().position(|b| b.name == name);
    if let Some(budget) = at(path) {
        return Ok((budget, BudgetUnit::UsdPerHour));
    }
    let existing = || snapshot.budgets.iter().map(|b| b.name.clone());
    let Some((name, field)) = path.rsplit_once('.') else {
        return Err(unknown(change, "budget", path, existing()));
    };
    let budget = at(name).ok_or_else(|| unknown(change, "budget", name, existing()))?;
    let unit = BudgetUnit::ALL.into_iter().find(|u| u.field().eq_ignore_ascii_case(field));
    let fields = || BudgetUnit::ALL.into_iter().map(|u| u.field().to_owned());
    unit.map(|u| (budget, u)).ok_or_else(|| unknown(change, "cap", field, fields()))
}

fn class_index(snapshot: &ClusterSnapshot, change: &str, name: &str) -> Result<usize, WhatIfError> {
    snapshot.accelerators.iter().position(|a| a.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
        unknown(change, "accelerator class", name, snapshot.accelerators.iter().map(|a| a.name.clone()))
    })
}

fn pool_index(snapshot: &ClusterSnapshot, change: &str, name: &str) -> Result<usize, WhatIfError> {
    let by_id = snapshot.pools.iter().position(|p| p.id.to_string() == name);
    let mut by_name = snapshot.pools.iter().enumerate().filter(|(_, p)| p.id.name() == name);
    let found = by_id.or_else(|| match (by_name.next(), by_name.next()) {
        (Some((i, _)), None) => Some(i),
        _ => None,
    });
    found.ok_or_else(|| unknown(change, "pool", name, snapshot.pools.iter().map(|p| p.id.to_string())))
}

fn gpus(snapshot: &mut ClusterSnapshot, change: &str, name: &str, delta: i64) -> Result<(), WhatIfError> {
    let class = class_index(snapshot, change, name)?;
    if delta >= 0 {
        let class = &mut snapshot.accelerators[class];
        class.autoscalable_max = class.autoscalable_max.saturating_add(delta.min(1_000_000) as u32);
        return Ok(());
    }
    // Take from what is not there yet first, then from the emptiest nodes.
    let mut left = delta.unsigned_abs();
    let class = &mut snapshot.accelerators[class];
    let name = class.name.clone();
    let from_autoscaler = left.min(u64::from(class.autoscalable_max)) as u32;
    class.autoscalable_max -= from_autoscaler;
    left -= u64::from(from_autoscaler);
    let mut used: BTreeMap<_, u32> = BTreeMap::new();
    for r in &snapshot.replicas {
        for (node, gpus) in crate::plan::inventory::gpus_by_node(&r.shape, &r.nodes) {
            *used.entry(node.clone()).or_default() += gpus;
        }
    }
    let mut order: Vec<usize> =
        (0..snapshot.nodes.len()).filter(|i| snapshot.nodes[*i].accelerator == name).collect();
    order.sort_by_key(|i| {
        (used.get(&snapshot.nodes[*i].name).copied().unwrap_or(0), snapshot.nodes[*i].name.clone())
    });
    for i in order {
        let take = left.min(u64::from(snapshot.nodes[i].allocatable_gpus)) as u32;
        snapshot.nodes[i].allocatable_gpus -= take;
        left -= u64::from(take);
    }
    if left > 0 {
        return Err(WhatIfError::Value {
            expression: change.to_owned(),
            problem: format!("{name} has {left} accelerators fewer than that"),
        });
    }
    Ok(())
}

fn slo(snapshot: &mut ClusterSnapshot, change: &str, path: &str, value: &str) -> Result<(), WhatIfError> {
    let wrong = |problem: String| WhatIfError::Value { expression: change.to_owned(), problem };
    let (rest, metric) = path
        .rsplit_once('.')
        .ok_or_else(|| wrong("name the objective, e.g. slo/default/chat.tpot=60ms".to_owned()))?;
    let text = value.trim();
    let ms = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(n), _) => n.trim().parse::<f64>().ok(),
        (None, Some(n)) => n.trim().parse::<f64>().ok().map(|s| s * 1e3),
        (None, None) => text.parse::<f64>().ok(),
    }
    .filter(|v| v.is_finite() && *v > 0.0)
    .ok_or_else(|| wrong(format!("{value:?} is not a duration; write e.g. 60ms or 1.5s")))?;
    // `ns/pool` or `ns/pool.class`; a pool's name may itself hold dots.
    let (pool, class) = match pool_index(snapshot, change, rest) {
        Ok(i) => (i, None),
        Err(e) => match rest.rsplit_once('.') {
            Some((pool, class)) => (pool_index(snapshot, change, pool).map_err(|_| e)?, Some(class)),
            None => return Err(e),
        },
    };
    let pool = &mut snapshot.pools[pool];
    let existing: Vec<String> = pool.slo_classes.iter().map(|c| c.name.clone()).collect();
    let index = match class {
        None => 0,
        Some(name) => pool
            .slo_classes
            .iter()
            .position(|c| c.name == name)
            .ok_or_else(|| unknown(change, "SLO class", name, existing.into_iter()))?,
    };
    let slo = &mut pool
        .slo_classes
        .get_mut(index)
        .ok_or_else(|| wrong(format!("{} has no SLO class", pool.id)))?
        .slo;
    let objective = match metric.to_ascii_lowercase().as_str() {
        "ttft" => &mut slo.ttft,
        "tpot" => &mut slo.tpot,
        "e2e" => &mut slo.e2e,
        _ => {
            return Err(unknown(
                change,
                "objective",
                metric,
                ["ttft", "tpot", "e2e"].map(str::to_owned).into_iter(),
            ));
        }
    };
    *objective = Some(Objective { percentile: objective.map_or(Percentile::P95, |o| o.percentile), ms });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::support::*;
    use rstest::rstest;

    fn world() -> World {
        let mut w = World::up();
        w.add(pool("chat", "llama-3.1-70b", 800.0, 50.0), demand(vec![class("a", 3.0, 1200.0, 250.0)]));
        w.add(pool("idle", "llama-3.1-8b", 800.0, 50.0), demand(vec![]));
        w.snapshot.budgets.push(budget("team-a", 20.0));
        w
    }

    #[test]
    fn each_form_changes_what_it_names() {
        let w = world();
        let go = |c: &str| apply(&w.snapshot, &w.demands, c).unwrap();
        assert_eq!(go("gpu/h100+4").0.accelerators[0].autoscalable_max, 4);
        let left: u32 = go("gpu/l40s-2")
            .0
            .nodes
            .iter()
            .filter(|n| n.accelerator == "l40s")
            .map(|n| n.allocatable_gpus)
            .sum();
        assert_eq!(left, 6);
        assert_eq!(go("price/H100=$1.9/h").0.accelerators[0].usd_per_hour, 1.9);
        assert_eq!(go("budget/team-a=60").0.budgets[0].usd_per_hour, Some(60.0));
        assert_eq!(go("budget/team-a.usdPerHour=$61/h").0.budgets[0].usd_per_hour, Some(61.0));
        assert_eq!(go("budget/team-a.watts=5000 W").0.budgets[0].watts, Some(5000.0));
        let green = go("budget/team-a.gramsCO2ePerHour=900").0.budgets[0].clone();
        assert_eq!((green.grams_co2e_per_hour, green.usd_per_hour), (Some(900.0), Some(20.0)));
        for path in ["default/chat", "chat", "chat.default"] {
            let (s, _) = go(&format!("slo/{path}.tpot=0.06s"));
            assert_eq!(s.pools[0].slo_classes[0].slo.tpot.unwrap().ms, 60.0);
        }
        let chat: PoolId = "chat".parse().unwrap();
        assert_eq!(go("demand/chat*2").1[&chat].total_rps(), 6.0);
        assert_eq!(go("demand/default/chat=1.5").1[&chat].total_rps(), 1.5);
        assert_eq!(go("demand/idle=2").1[&"idle".parse::<PoolId>().unwrap()].total_rps(), 2.0);
        for (text, rps) in [("2x", 6.0), ("*2", 6.0), ("+50%", 4.5), ("-20%", 2.4), ("50%", 1.5), ("7", 7.0)]
        {
            let got = go(&format!("pool/chat.rps={text}")).1[&chat].total_rps();
            assert!((got - rps).abs() < 1e-9, "{text}: {got}");
        }
        let scaling = |c: &str| go(c).0.pools[0].scaling.clone();
        assert_eq!(scaling("pool/chat.min=2").min_replicas, 2);
        assert_eq!(scaling("pool/default/chat.max=8").max_replicas, 8);
        assert_eq!(go("pool/chat.priority=-5").0.pools[0].priority, -5);
        assert_eq!(go("pool/chat.minquality=0.9").0.pools[0].min_quality, 0.9);
        let node = |c: &str| go(c).0.nodes[0].clone();
        assert!(!node("node/h-0=gone").ready && !node("node/h-0=cordoned").schedulable);
        assert!(node("node/h-0=ready").ready);
    }

    #[rstest]
    #[case("nonsense", "is not understood; use gpu/h100+4")]
    #[case("gpu/a100+4", "there is no accelerator class \"a100\"; there is h100, l4, l40s")]
    #[case("gpu/h100+x", "is not a whole number")]
    #[case("gpu/l4-3", "has 1 accelerators fewer than that")]
    #[case("budget/b=1", "there is no budget \"b\"; there is team-a")]
    #[case("budget/team-a=-1", "is not an amount in dollars per hour")]
    #[case("budget/b.watts=1", "there is no budget \"b\"; there is team-a")]
    #[case(
        "budget/team-a.joules=1",
        "there is no cap \"joules\"; there is gramsCO2ePerHour, usdPerHour, watts"
    )]
    #[case("budget/team-a.watts=much", "is not an amount of watts; write a number of 0 or more")]
    #[case("slo/x.tpot=1ms", "there is no pool \"x\"; there is default/chat, default/idle")]
    #[case("slo/chat.gold.tpot=1ms", "there is no SLO class \"gold\"; there is default")]
    #[case("slo/chat.speed=1ms", "there is no objective \"speed\"; there is e2e, tpot, ttft")]
    #[case("slo/chat.tpot=fast", "is not a duration")]
    #[case("demand/chat*NaN", "is not a number of 0 or more")]
    #[case("demand/idle*2", "has no demand to multiply")]
    #[case("price/h100=NaN", "is not an amount")]
    #[case("gpu/h10+4", "; did you mean h100?")]
    #[case("demand/chta*2", "; did you mean chat?")]
    #[case("budget/taem-a=3", "; did you mean team-a?")]
    #[case("gpus/h100+4", "; did you mean gpu/h100+4?")]
    #[case("slo/chat.tpto=60ms", "; did you mean tpot?")]
    #[case("pool/chat=2x", "name a field, e.g. pool/chat.rps=2x")]
    #[case(
        "pool/chat.maxx=2",
        "there is no pool field \"maxx\"; there is max, min, minQuality, priority, rps; did you mean max?"
    )]
    #[case("pool/chat.max=two", "is not a whole number of replicas")]
    #[case("pool/chat.rps=fast", "write a rate (7), a factor (2x) or a share (+50%, -20%)")]
    #[case("pool/chat.rps=-120%", "is not a rate")]
    #[case("pool/chat.minQuality=2", "is not a quality from 0 to 1")]
    #[case("node/h-9=gone", "there is no node \"h-9\"")]
    #[case("node/h-0=asleep", "is no state of a node; there is cordoned, gone, ready")]
    fn mistakes_name_what_exists(#[case] change: &str, #[case] says: &str) {
        let w = world();
        let error = apply(&w.snapshot, &w.demands, change).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
