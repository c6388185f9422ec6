//! From resources to the domain. Pure: a broken object is set aside with its reasons and disturbs no other.

use std::collections::BTreeMap;

use kube::ResourceExt;
use plimsoll_crds::invalid::describe;
use plimsoll_crds::{AcceleratorClass, Budget, InvalidField, LoraAdapter, ModelPool, Tenant};
use plimsoll_fleet as fleet;
use plimsoll_fleet::PoolId;

use crate::revision::{self, Stop};
use crate::world::World;

/// Why an object takes no part in planning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// One CamelCase word: `Invalid`, `NameTaken`, `Unreadable`, `NoBasePool`.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl Rejection {
    fn invalid(fields: &[InvalidField]) -> Self {
        Self { reason: "Invalid", message: describe(fields) }
    }
}

/// A resource and what became of it.
#[derive(Debug, Clone)]
pub struct Judged<R, T> {
    /// The resource.
    pub resource: R,
    /// Its meaning, or why it has none.
    pub verdict: Result<T, Rejection>,
}

/// A pool that takes part in planning.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// The pool.
    pub pool: fleet::ModelPool,
    /// Set if the newest spec is invalid and an earlier one stays in force.
    pub outdated: Option<Rejection>,
    /// Set if a rollout was stopped: an earlier engine configuration may be in force in the place of the spec's own.
    pub stop: Option<Stop>,
}

/// Everything understood.
#[derive(Debug, Clone, Default)]
pub struct Validated {
    /// Pools, oldest first; those being deleted are in `deleting`.
    pub pools: Vec<Judged<ModelPool, Accepted>>,
    /// Pools being deleted.
    pub deleting: Vec<ModelPool>,
    /// Accelerator classes.
    pub accelerators: Vec<Judged<AcceleratorClass, fleet::AcceleratorClass>>,
    /// Budgets.
    pub budgets: Vec<Judged<Budget, fleet::Budget>>,
    /// Tenants.
    pub tenants: Vec<Judged<Tenant, fleet::Tenant>>,
    /// Adapters.
    pub adapters: Vec<Judged<LoraAdapter, fleet::Adapter>>,
    /// Room for them by pool.
    adapter_rooms: BTreeMap<PoolId, fleet::AdapterRoom>,
}

impl Validated {
    /// The accepted pools with their resources.
    pub fn accepted(&self) -> impl Iterator<Item = (&ModelPool, &Accepted)> {
        self.pools.iter().filter_map(|j| j.verdict.as_ref().ok().map(|a| (&j.resource, a)))
    }

    /// The accelerator class of this name.
    pub fn accelerator(&self, name: &str) -> Option<&fleet::AcceleratorClass> {
        self.accelerators.iter().filter_map(|j| j.verdict.as_ref().ok()).find(|a| a.name == name)
    }

    /// The accepted accelerator classes.
    pub fn accelerator_classes(&self) -> impl Iterator<Item = &fleet::AcceleratorClass> + Clone {
        self.accelerators.iter().filter_map(|j| j.verdict.as_ref().ok())
    }

    /// The accepted adapters of a pool.
    pub fn adapters_of<'a>(&'a self, pool: &'a PoolId) -> impl Iterator<Item = &'a fleet::Adapter> {
        self.adapters.iter().filter_map(|j| j.verdict.as_ref().ok()).filter(move |a| &a.base_pool == pool)
    }

    /// The room for adapters that engines of a pool are started with now.
    pub fn adapter_room(&self, pool: &PoolId) -> fleet::AdapterRoom {
        self.adapter_rooms.get(pool).copied().unwrap_or_default()
    }

    /// The room for adapters of each pool that has any. O(pools and adapters).
    fn rooms(&self) -> BTreeMap<PoolId, fleet::AdapterRoom> {
        let mut of_pools: BTreeMap<&PoolId, Vec<&fleet::Adapter>> = BTreeMap::new();
        for adapter in self.adapters.iter().filter_map(|j| j.verdict.as_ref().ok()) {
            of_pools.entry(&adapter.base_pool).or_default().push(adapter);
        }
        let pools = self.accepted().map(|(_, a)| &a.pool);
        let room = |pool: &fleet::ModelPool| {
            let adapters = of_pools.get(&pool.id)?.iter().copied();
            Some((pool.id.clone(), fleet::AdapterRoom::wanted(pool.engine.kind, adapters)))
        };
        pools.filter_map(room).collect()
    }
}

/// The last accepted form of each pool by UID, so that an invalid edit does not take a running service down.
pub type LastGood = BTreeMap<String, fleet::ModelPool>;

/// Judges every resource.
pub fn validate(world: &World, last_good: &LastGood) -> Validated {
    let mut validated = Validated {
        accelerators: judge(&world.accelerators, AcceleratorClass::to_fleet),
        budgets: judge(&world.budgets, Budget::to_fleet),
        tenants: judge(&world.tenants, |t| t.to_fleet(key_digests(world, t))),
        ..Validated::default()
    };
    let (deleting, mut living): (Vec<_>, Vec<_>) =
        world.pools.iter().cloned().partition(|p| p.metadata.deletion_timestamp.is_some());
    validated.deleting = deleting;
    // The oldest keeps a served name; ties (within one second) go by name, so that every instance agrees.
    living.sort_by_cached_key(|p| {
        (p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.namespace(), p.name_any())
    });
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    let revisions = revision::by_owner(world.revisions.as_deref().unwrap_or_default());
    for resource in living {
        let uid = resource.metadata.uid.clone().unwrap_or_default();
        let label = format!("ModelPool {}/{}", resource.namespace().unwrap_or_default(), resource.name_any());
        let own = revisions.get(uid.as_str()).map(Vec::as_slice).unwrap_or_default();
        let mut in_force = revision::in_force(&resource, own);
        // A spec that is invalid stays one, whatever is in force in its place.
        let mut fleet = resource.to_fleet();
        let mut resource = resource;
        if let Some(earlier) = in_force.earlier.take() {
            fleet = fleet.and_then(|_| earlier.to_fleet());
            resource = earlier;
        }
        let verdict = match fleet {
            Ok(mut pool) => {
                in_force.tell(&mut pool);
                Ok(Accepted { pool, outdated: None, stop: in_force.stop })
            }
            Err(fields) => {
                let rejection = Rejection::invalid(&fields);
                match last_good.get(&uid) {
                    Some(pool) => Ok(Accepted { pool: pool.clone(), outdated: Some(rejection), stop: None }),
                    None => Err(rejection),
                }
            }
        };
        let verdict = verdict.and_then(|accepted| match taken.get(&accepted.pool.served_name) {
            Some(owner) => Err(name_taken("spec.model.name", &accepted.pool.served_name, owner)),
            None => {
                taken.insert(accepted.pool.served_name.clone(), label);
                Ok(accepted)
            }
        });
        validated.pools.push(Judged { resource, verdict });
    }
    let mut adapters: Vec<&LoraAdapter> =
        world.adapters.iter().filter(|a| a.metadata.deletion_timestamp.is_none()).collect();
    adapters.sort_by_cached_key(|a| {
        (a.metadata.creation_timestamp.as_ref().map(|t| t.0), a.namespace(), a.name_any())
    });
    let mut groups = BTreeMap::new();
    for resource in adapters {
        let verdict = resource.to_fleet().map_err(|fields| Rejection::invalid(&fields)).and_then(|adapter| {
            if let Some(owner) = taken.get(&adapter.served_name) {
                return Err(name_taken("spec.modelName", &adapter.served_name, owner));
            }
            if let Some(pool) = groups.get(&adapter.served_name) {
                let owner = format!("an adapter group of ModelPool {pool}");
                return Err(name_taken("spec.modelName", &adapter.served_name, &owner));
            }
            if !validated.accepted().any(|(_, a)| a.pool.id == adapter.base_pool) {
                return Err(Rejection {
                    reason: "NoBasePool",
                    message: format!(
                        "spec.basePool: there is no accepted ModelPool {}; create it, or name another",
                        adapter.base_pool
                    ),
                });
            }
            check_group(&adapter, &taken, &mut groups)?;
            taken.insert(
                adapter.served_name.clone(),
                format!("LoraAdapter {}/{}", adapter.namespace, adapter.name),
            );
            Ok(adapter)
        });
        validated.adapters.push(Judged { resource: resource.clone(), verdict });
    }
    validated.adapter_rooms = validated.rooms();
    validated
}

/// What to remember for the next time.
pub fn remember(validated: &Validated) -> LastGood {
    validated
        .accepted()
        .filter_map(|(resource, accepted)| Some((resource.metadata.uid.clone()?, accepted.pool.clone())))
        .collect()
}

/// A group's name is in requests what a model's is: nobody else may have it, and all of a group adapt one pool's model. Takes note of
/// a new group.
fn check_group(
    adapter: &fleet::Adapter,
    taken: &BTreeMap<String, String>,
    groups: &mut BTreeMap<String, PoolId>,
) -> Result<(), Rejection> {
    let Some(group) = &adapter.group else { return Ok(()) };
    if *group == adapter.served_name {
        return Err(name_taken("spec.adapterGroup", group, "this adapter itself"));
    }
    if let Some(owner) = taken.get(group) {
        return Err(name_taken("spec.adapterGroup", group, owner));
    }
    match groups.entry(group.clone()).or_insert_with(|| adapter.base_pool.clone()) {
        pool if *pool == adapter.base_pool => Ok(()),
        pool => {
            Err(name_taken("spec.adapterGroup", group, &format!("adapters of ModelPool {pool}, another one")))
        }
    }
}

fn name_taken(field: &str, name: &str, owner: &str) -> Rejection {
    Rejection {
        reason: "NameTaken",
        message: format!(
            "{field}: {name:?} is already served by {owner}; choose another name, or delete that one"
        ),
    }
}

fn judge<R: Clone + kube::Resource, T>(
    resources: &[R],
    convert: impl Fn(&R) -> Result<T, Vec<InvalidField>>,
) -> Vec<Judged<R, T>> {
    resources
        .iter()
        .filter(|r| r.meta().deletion_timestamp.is_none())
        .map(|r| Judged {
            resource: r.clone(),
            verdict: convert(r).map_err(|fields| Rejection::invalid(&fields)),
        })
        .collect()
}

fn key_digests(world: &World, tenant: &Tenant) -> Vec<String> {
    tenant
        .spec
        .api_key_secrets
        .iter()
        .filter_map(|s| world.api_keys.get(&(s.namespace.clone(), s.name.clone(), s.key.clone())).cloned())
        .collect()
}
