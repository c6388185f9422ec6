//! Statuses of the other kinds, and the FleetPlan. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use plimsoll_crds::budget::CapStatus;
use plimsoll_crds::conditions::{self, condition};
use plimsoll_crds::fleet_plan::{Binding, Change, FleetPlanSpec, Totals};
use plimsoll_crds::quantity::format_bytes;
use plimsoll_crds::{
    AcceleratorClass, AcceleratorClassStatus, AdapterPlace, Budget, BudgetStatus, LoraAdapter,
    LoraAdapterStatus, Tenant, TenantStatus,
};
use plimsoll_fleet as fleet;
use plimsoll_fleet::plan::{BudgetUse, PoolOutcome};
use plimsoll_fleet::{BudgetUnit, ClusterSnapshot, Plan, ReplicaId, ReplicaPhase, ReplicaStatus, Vendor};

use super::NONE;
use crate::brain::AdapterObservation;
use crate::devices::{Devices, DynamicResources};
use crate::validate::{Judged, Rejection};

fn accepted<T>(verdict: &Result<T, Rejection>, generation: Option<i64>, now: Timestamp) -> Condition {
    match verdict {
        Ok(_) => condition(conditions::ACCEPTED, Some(true), "Valid", "", generation, now),
        Err(r) => condition(conditions::ACCEPTED, Some(false), r.reason, r.message.clone(), generation, now),
    }
}

fn carried(before: Option<&[Condition]>, mut conditions: Vec<Condition>) -> Vec<Condition> {
    conditions::carry_transition_times(before.unwrap_or_default(), &mut conditions);
    conditions
}

/// Status of an AcceleratorClass.
pub fn accelerator(
    judged: &Judged<AcceleratorClass, fleet::AcceleratorClass>,
    snapshot: &ClusterSnapshot,
    dynamic: &DynamicResources,
    now: Timestamp,
) -> AcceleratorClassStatus {
    let meta = &judged.resource.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    let before = judged.resource.status.as_ref().map(|s| s.conditions.as_slice());
    let class = judged.verdict.as_ref().ok();
    let nodes: Vec<_> = snapshot.nodes.iter().filter(|n| n.accelerator == name).collect();
    let held: u32 =
        snapshot.replicas.iter().filter(|r| r.shape.accelerator == name).map(|r| r.shape.gpus()).sum();
    let mut conditions = vec![accepted(&judged.verdict, meta.generation, now)];
    conditions.extend(class.and_then(|c| claims_devices(c, dynamic, meta.generation, now)));
    AcceleratorClassStatus {
        observed_generation: meta.generation,
        conditions: carried(before, conditions),
        vendor: class.map(|c| {
            match c.vendor {
                Vendor::Nvidia => "nvidia",
                Vendor::Amd => "amd",
                Vendor::Intel => "intel",
                Vendor::Cpu => "cpu",
            }
            .to_owned()
        }),
        memory: class.map(|c| format_bytes(c.memory_bytes)),
        usd_per_hour: class.map(|c| format!("{:.2}", c.usd_per_hour)),
        nodes: nodes.len() as i32,
        accelerators: nodes.iter().map(|n| n.allocatable_gpus).sum::<u32>() as i32,
        used: (held + nodes.iter().map(|n| n.foreign_gpus).sum::<u32>()) as i32,
    }
}

/// Whether replicas on a class that names a DeviceClass claim its devices.
fn claims_devices(
    class: &fleet::AcceleratorClass,
    dynamic: &DynamicResources,
    generation: Option<i64>,
    now: Timestamp,
) -> Option<Condition> {
    let request = class.devices.as_ref()?;
    let name = &request.device_class;
    let devices = Devices::read(dynamic, std::iter::once(class));
    let (status, reason, message) = if devices.are_claimed(class) {
        let text = match devices.nodes() {
            0 => format!("no node publishes such devices of driver {} yet", request.driver),
            1 => "1 node publishes such devices".to_owned(),
            n => format!("{n} nodes publish such devices"),
        };
        (true, "DeviceClassFound", text)
    } else {
        let instead = class.resource_name().unwrap_or("no extended resource");
        let text = format!(
            "DeviceClass {name} is not to be seen; replicas request {instead} until the cluster serves resource.k8s.io/v1, grants the operator to read it, and has that DeviceClass"
        );
        (false, "DeviceClassMissing", text)
    };
    Some(condition(conditions::CLAIMS_DEVICES, Some(status), reason, message, generation, now))
}

/// Status of a Budget.
pub fn budget(judged: &Judged<Budget, fleet::Budget>, plan: Option<&Plan>, now: Timestamp) -> BudgetStatus {
    let meta = &judged.resource.metadata;
    let before = judged.resource.status.as_ref();
    let mut all = vec![accepted(&judged.verdict, meta.generation, now)];
    let mut status = BudgetStatus { observed_generation: meta.generation, ..BudgetStatus::default() };
    if let Ok(budget) = &judged.verdict {
        status.cap_usd_per_hour = budget.effective_usd_per_hour().map(|cap| format!("{cap:.2}"));
        let uses: Vec<&BudgetUse> =
            plan.iter().flat_map(|p| &p.budgets).filter(|b| b.budget == budget.name).collect();
        // With what nested budgets cover, which only the plan counts; its own scope where the plan knows of no such cap.
        let dollars = uses.iter().find(|b| b.unit == BudgetUnit::UsdPerHour).map(|b| b.planned);
        let covered = |plan: &Plan| -> f64 {
            plan.pools.iter().filter(|p| budget.scope.covers(&p.pool)).map(|p| p.usd_per_hour).sum()
        };
        status.planned_usd_per_hour = plan.map(|p| format!("{:.2}", dollars.unwrap_or_else(|| covered(p))));
        status.caps = uses
            .iter()
            .map(|b| CapStatus {
                cap: b.unit.field().to_owned(),
                most: b.unit.amount(b.cap),
                planned: b.unit.amount(b.planned),
            })
            .collect();
        let exceeded = uses.iter().find_map(|b| Some((b, b.excess()?)));
        let named = |constraint: &str| {
            let mut words = constraint.split_whitespace();
            words.next() == Some("budget") && words.next() == Some(budget.name.as_str())
        };
        let price = plan.and_then(|p| p.binding.iter().find(|b| named(&b.constraint)));
        status.binding = plan.map(|_| match (price, exceeded) {
            (Some(b), _) if b.unserved => "yes, demand is unserved".to_owned(),
            (Some(b), _) => {
                let per = if b.unit.starts_with(|c: char| c.is_ascii_digit()) { "for" } else { "a" };
                format!("yes, ${:.2}/h {per} {}", b.usd_per_hour_per_unit, b.unit)
            }
            (None, Some((b, excess))) => format!("no, exceeded by {}", b.unit.amount(excess)),
            (None, None) => "no".to_owned(),
        });
        all.push(match (plan, price) {
            (None, _) => {
                condition(conditions::BUDGET_LIMITED, None, "AwaitingPlan", "", meta.generation, now)
            }
            (Some(_), None) => {
                let (reason, message) = match exceeded {
                    Some((b, _)) => ("Exceeded", b.to_string()),
                    None => ("NotBinding", String::new()),
                };
                condition(conditions::BUDGET_LIMITED, Some(false), reason, message, meta.generation, now)
            }
            (Some(_), Some(b)) => {
                let message =
                    format!("{} binds; demand goes unserved or is served dearer because of it", b.constraint);
                condition(conditions::BUDGET_LIMITED, Some(true), "Binding", message, meta.generation, now)
            }
        });
    }
    status.conditions = carried(before.map(|s| s.conditions.as_slice()), all);
    status
}

/// Status of a Tenant.
pub fn tenant(judged: &Judged<Tenant, fleet::Tenant>, now: Timestamp) -> TenantStatus {
    let meta = &judged.resource.metadata;
    let before = judged.resource.status.as_ref().map(|s| s.conditions.as_slice());
    TenantStatus {
        observed_generation: meta.generation,
        conditions: carried(before, vec![accepted(&judged.verdict, meta.generation, now)]),
        api_keys: judged.verdict.as_ref().map_or(0, |t| t.api_key_sha256.len() as i32),
    }
}

/// Status of a LoraAdapter. `seen` is by the model name in requests.
pub fn adapter(
    judged: &Judged<LoraAdapter, fleet::Adapter>,
    seen: &BTreeMap<String, AdapterObservation>,
    now: Timestamp,
) -> LoraAdapterStatus {
    let meta = &judged.resource.metadata;
    let before = judged.resource.status.as_ref();
    let mut conditions = vec![accepted(&judged.verdict, meta.generation, now)];
    let adapter = judged.verdict.as_ref().ok();
    let seen = adapter.and_then(|a| seen.get(&a.served_name));
    conditions.extend(adapter.map(|a| loaded(a, seen, meta.generation, now)));
    let held = seen.map(|s| s.held.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap_or_default();
    LoraAdapterStatus {
        observed_generation: meta.generation,
        conditions: carried(before.map(|s| s.conditions.as_slice()), conditions),
        resident_replicas: held.len() as i32,
        resident_on: held,
        size_bytes: seen.and_then(|s| s.bytes).and_then(|bytes| i64::try_from(bytes).ok()),
        hit_percent: seen.and_then(|s| {
            let asked = s.hits.saturating_add(s.misses);
            (asked > 0).then(|| (100.0 * s.hits as f64 / asked as f64).round() as i32)
        }),
        places: seen.map(|s| s.places.iter().map(place).collect()).unwrap_or_default(),
    }
}

fn place((replica, (in_engine, load_ms)): (&ReplicaId, &(bool, Option<u64>))) -> AdapterPlace {
    AdapterPlace {
        replica: replica.to_string(),
        tier: if *in_engine { "Engine" } else { "Disk" }.to_owned(),
        load_ms: load_ms.and_then(|ms| i64::try_from(ms).ok()),
    }
}

/// Whether all replicas that are to hold an adapter do.
fn loaded(
    adapter: &fleet::Adapter,
    seen: Option<&AdapterObservation>,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let pool = &adapter.base_pool;
    let (status, reason, message) = match seen {
        None => (None, "AwaitingRoutes", String::new()),
        Some(seen) if seen.placed.is_empty() => (
            Some(false),
            "NotPlaced",
            format!(
                "no replica of {pool} has room for it: none runs that serves requests whole and loads adapters, or others are wanted more; \
                 more replicas (scaling.min) make room"
            ),
        ),
        Some(seen) if seen.held.is_superset(&seen.placed) => (Some(true), "Loaded", String::new()),
        Some(seen) if !seen.failure.is_empty() => (Some(false), "LoadFailed", seen.failure.clone()),
        Some(seen) => {
            let there = seen.held.intersection(&seen.placed).count();
            (Some(false), "Loading", format!("{there} of {} replicas hold it", seen.placed.len()))
        }
    };
    condition(conditions::LOADED, status, reason, message, generation, now)
}

/// The FleetPlan's content.
pub fn fleet_plan(plan: &Plan, replicas: &[ReplicaStatus]) -> FleetPlanSpec {
    let wanted = |p: &fleet::PoolPlan| p.replicas.iter().map(|r| r.shape.gpus()).sum::<u32>();
    let changes = plan
        .pools
        .iter()
        .filter_map(|p| {
            let of_pool = || replicas.iter().filter(|r| r.pool == p.pool);
            let starting = p
                .replicas
                .iter()
                .filter(|a| !of_pool().any(|r| r.id == a.id && r.phase == ReplicaPhase::Ready))
                .count() as i32;
            let draining = of_pool().filter(|r| !p.replicas.iter().any(|a| a.id == r.id)).count() as i32;
            (starting + draining > 0).then(|| Change {
                pool: p.pool.to_string(),
                starting,
                draining,
                to: p.fleet_text(),
            })
        })
        .collect();
    let unserved = |p: &&fleet::PoolPlan| {
        matches!(
            p.outcome,
            PoolOutcome::BudgetLimited | PoolOutcome::CapacityLimited | PoolOutcome::Infeasible
        )
    };
    FleetPlanSpec {
        number: i64::try_from(plan.number).unwrap_or(i64::MAX),
        created_at: plan.created_at.to_string(),
        trigger: plan.trigger.clone(),
        totals: Totals {
            pools: plan.pools.len() as i32,
            unserved_pools: plan.pools.iter().filter(unserved).count() as i32,
            replicas: plan.pools.iter().map(|p| p.replicas.len()).sum::<usize>() as i32,
            accelerators: plan.pools.iter().map(wanted).sum::<u32>() as i32,
            usd_per_hour: format!("{:.2}", plan.usd_per_hour),
            watts: format!("{:.0}", plan.watts),
            grams_co2e_per_hour: format!("{:.0}", plan.grams_co2e_per_hour),
            gap: format!("{:.1} %", 100.0 * plan.quality.gap),
            solve_ms: plan.quality.solve_ms,
            binding: plan.binding.first().map_or_else(|| NONE.to_owned(), |b| b.constraint.clone()),
        },
        binding: plan
            .binding
            .iter()
            .map(|b| Binding {
                constraint: b.constraint.clone(),
                unit: b.unit.clone(),
                usd_per_hour_per_unit: b.usd_per_hour_per_unit,
            })
            .collect(),
        exceeded: plan.budgets.iter().filter(|b| b.excess().is_some()).map(ToString::to_string).collect(),
        changes,
    }
}
