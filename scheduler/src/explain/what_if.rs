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

use std::collections::BTreeMap;

use plimsoll_fleet::{BudgetUnit, ClusterSnapshot, DemandEstimate, Objective, Percentile, PoolId};

/// Why a what-if expression cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhatIfError {
    /// It is not of a known form.
    #[error(
        "what-if {0:?} is not understood; use gpu/h100+4, price/h100=1.9, budget/team-a=60, \
         slo/namespace/pool.tpot=60ms or demand/namespace/pool*2"
    )]
    Syntax(String),
    /// It names something that does not exist.
    #[error("what-if {expression:?}: there is no {kind} {name:?}; there is {existing}")]
    Unknown {
        /// The expression.
        expression: String,
        /// What was named, e.g. `budget`.
        kind: &'static str,
        /// The name.
        name: String,
        /// What exists.
        existing: String,
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
    let syntax = || WhatIfError::Syntax(change.to_owned());
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
            let id = snapshot.pools[pool].id.clone();
            let demand = demands.entry(id.clone()).or_default();
            let total = demand.total_rps();
            if total > 0.0 {
                let scale = if factor { value } else { value / total };
                demand.classes.iter_mut().for_each(|c| c.rps *= scale);
            } else if !factor {
                let mut classes = crate::plan::candidates::planned_classes(&snapshot.pools[pool], &[]);
                classes.iter_mut().for_each(|c| c.rps = value);
                demand.classes = classes;
            } else {
                return Err(WhatIfError::Value {
                    expression: change.to_owned(),
                    problem: format!(
                        "{id} has no demand to multiply; give a rate instead, e.g. demand/{id}=2"
                    ),
                });
            }
            demand.source = format!("what-if {change}");
        }
        _ => return Err(syntax()),
    }
    Ok((snapshot, demands))
}

fn list(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = names.collect();
    names.sort();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn unknown(expression: &str, kind: &'static str, name: &str, existing: String) -> WhatIfError {
    WhatIfError::Unknown { expression: expression.to_owned(), kind, name: name.to_owned(), existing }
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
    let existing = || list(snapshot.budgets.iter().map(|b| b.name.clone()));
    let Some((name, field)) = path.rsplit_once('.') else {
        return Err(unknown(change, "budget", path, existing()));
    };
    let budget = at(name).ok_or_else(|| unknown(change, "budget", name, existing()))?;
    let unit = BudgetUnit::ALL.into_iter().find(|u| u.field().eq_ignore_ascii_case(field));
    let fields = || BudgetUnit::ALL.map(BudgetUnit::field).join(", ");
    unit.map(|u| (budget, u)).ok_or_else(|| unknown(change, "cap", field, fields()))
}

fn class_index(snapshot: &ClusterSnapshot, change: &str, name: &str) -> Result<usize, WhatIfError> {
    snapshot.accelerators.iter().position(|a| a.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
        unknown(change, "accelerator class", name, list(snapshot.accelerators.iter().map(|a| a.name.clone())))
    })
}

fn pool_index(snapshot: &ClusterSnapshot, change: &str, name: &str) -> Result<usize, WhatIfError> {
    let by_id = snapshot.pools.iter().position(|p| p.id.to_string() == name);
    let mut by_name = snapshot.pools.iter().enumerate().filter(|(_, p)| p.id.name() == name);
    let found = by_id.or_else(|| match (by_name.next(), by_name.next()) {
        (Some((i, _)), None) => Some(i),
        _ => None,
    });
    found.ok_or_else(|| unknown(change, "pool", name, list(snapshot.pools.iter().map(|p| p.id.to_string()))))
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
    let existing = list(pool.slo_classes.iter().map(|c| c.name.clone()));
    let index = match class {
        None => 0,
        Some(name) => pool
            .slo_classes
            .iter()
            .position(|c| c.name == name)
            .ok_or_else(|| unknown(change, "SLO class", name, existing.clone()))?,
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
        _ => return Err(unknown(change, "objective", metric, "ttft, tpot, e2e".to_owned())),
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
        "there is no cap \"joules\"; there is usdPerHour, watts, gramsCO2ePerHour"
    )]
    #[case("budget/team-a.watts=much", "is not an amount of watts; write a number of 0 or more")]
    #[case("slo/x.tpot=1ms", "there is no pool \"x\"; there is default/chat, default/idle")]
    #[case("slo/chat.gold.tpot=1ms", "there is no SLO class \"gold\"; there is default")]
    #[case("slo/chat.speed=1ms", "there is no objective \"speed\"; there is ttft, tpot, e2e")]
    #[case("slo/chat.tpot=fast", "is not a duration")]
    #[case("demand/chat*NaN", "is not a number of 0 or more")]
    #[case("demand/idle*2", "has no demand to multiply")]
    #[case("price/h100=NaN", "is not an amount")]
    fn mistakes_name_what_exists(#[case] change: &str, #[case] says: &str) {
        let w = world();
        let error = apply(&w.snapshot, &w.demands, change).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
