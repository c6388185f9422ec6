//! The operator's loop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kube::{Client, Resource, ResourceExt};
use plimsoll_crds::fleet_plan::FleetPlanSpec;
use plimsoll_crds::model_pool::ModelPoolStatus;
use plimsoll_crds::{
    AcceleratorClass, Budget, FleetPlan, LoraAdapter, ModelPool, Tenant, conditions, fleet_plan::CURRENT,
};
use plimsoll_fleet::{ClusterSnapshot, PoolId, ReplicaId, ReplicaPhase, ReplicaStatus};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, instrument, warn};

use crate::apply::{Applied, Throttle, apply};
use crate::brain::{Brain, BrainError, Knowledge, follow};
use crate::build::{Action, DeleteReason, Inputs, build, current_plan};
use crate::config::OperatorConfig;
use crate::events::{Events, Note, reference};
use crate::fault;
use crate::grpc::GrpcBrain;
use crate::inference_pool::{self, AllWanted};
use crate::lease;
use crate::observe::{self, Observed};
use crate::snapshot;
use crate::status::pool::{Facts, InForce};
use crate::status::write::{Write, write};
use crate::status::{cluster, pool as pool_status, rollout};
use crate::validate::{Judged, LastGood, Validated, remember, validate};
use crate::watch::Watches;
use crate::world::{Broken, World};

/// Time for which a write counts although the cache does not show it yet.
const CACHE_LAG: SignedDuration = SignedDuration::from_secs(5);

/// Why the operator cannot run.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The scheduler's address is not usable.
    #[error("failed to set up the connection to the scheduler")]
    Scheduler(#[from] BrainError),
}

/// The operator.
#[derive(Debug)]
pub struct Operator;

impl Operator {
    /// Runs against a scheduler at an address such as `http://scheduler:9090` until `stop` is cancelled. Survives failures
    /// of the Kubernetes API and of the scheduler; acts only while it holds the Lease.
    ///
    /// # Errors
    /// [`OperatorError::Scheduler`] if the address is not a URI.
    pub async fn run(
        client: Client,
        scheduler: String,
        config: OperatorConfig,
        stop: CancellationToken,
    ) -> Result<(), OperatorError> {
        let brain = GrpcBrain::new(&scheduler, &config.identity)?;
        Self::run_with(client, brain, config, stop).await;
        Ok(())
    }

    /// Runs against any [`Brain`] until `stop` is cancelled.
    pub async fn run_with<B: Brain>(
        client: Client,
        brain: B,
        config: OperatorConfig,
        stop: CancellationToken,
    ) {
        let brain = Arc::new(brain);
        let watches = Watches::start(&client, &stop);
        let (mut leads, elector) = lease::elect(client.clone(), &config, stop.clone());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                leading = leads.wait_for(|leads| *leads) => if leading.is_err() { break },
            }
            info!(identity = %config.identity, "leading");
            let term = stop.child_token();
            let lead = Leader::new(&client, &config, watches.clone()).lead(brain.clone(), term.clone());
            tokio::select! {
                () = lead => {}
                _ = leads.wait_for(|leads| !*leads) => warn!("no longer leading"),
            }
            term.cancel();
        }
        if let Err(error) = elector.await {
            warn!(%error, "the leader election ended badly");
        }
        info!("operator stopped");
    }
}

/// What a leader remembers between two looks. All of it can be lost: it saves writes and Events, and holds no truth.
#[derive(Default)]
struct Memory {
    last_good: LastGood,
    throttle: Throttle,
    /// By UID of the ModelPool.
    pools: BTreeMap<String, WrittenPool>,
    /// Other writes by kind and name.
    others: BTreeMap<String, (Value, Timestamp)>,
    phases: BTreeMap<(PoolId, ReplicaId), ReplicaPhase>,
    strangers: BTreeSet<String>,
    /// When replicas first became ready, by UID of the pod.
    first_ready: BTreeMap<String, Timestamp>,
}

struct WrittenPool {
    status: ModelPoolStatus,
    at: Timestamp,
    observed_at: Timestamp,
}

struct Leader {
    client: Client,
    config: OperatorConfig,
    watches: Watches,
    events: Events,
    memory: Memory,
}

impl Leader {
    fn new(client: &Client, config: &OperatorConfig, watches: Watches) -> Self {
        Self {
            client: client.clone(),
            config: config.clone(),
            watches,
            events: Events::start(client.clone(), config.field_manager.clone(), config.identity.clone()),
            memory: Memory::default(),
        }
    }

    /// Leads until the term ends.
    async fn lead<B: Brain>(mut self, brain: Arc<B>, term: CancellationToken) {
        tokio::select! {
            () = term.cancelled() => return,
            () = self.watches.ready() => {}
        }
        let (snapshots, snapshot) = channel::channel(None);
        let (teach, mut knowledge) = channel::channel(Knowledge::default());
        let seed = Timestamp::now().as_nanosecond() as u64;
        tokio::spawn(follow(brain, snapshot, teach, seed, term.clone()));
        let (inference_pools, wanted) = channel::channel(None);
        if let Some(settings) = self.config.inference_pools.clone() {
            let manager = format!("{}/inference", self.config.field_manager);
            let (client, events, term) = (self.client.clone(), self.events.clone(), term.clone());
            tokio::spawn(inference_pool::run(client, manager, settings, wanted, events, term));
        }
        loop {
            let known = knowledge.borrow_and_update().clone();
            self.reconcile(&known, &snapshots, &inference_pools).await;
            tokio::select! {
                () = term.cancelled() => return,
                () = self.watches.changed() => {}
                changed = knowledge.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(self.config.resync) => {}
            }
            // Changes come in bursts.
            tokio::time::sleep(self.config.debounce).await;
        }
    }

    /// One look at everything: read → validate → build → apply → status.
    #[instrument(name = "reconcile", skip_all)]
    async fn reconcile(
        &mut self,
        known: &Knowledge,
        snapshots: &channel::Sender<Option<Arc<ClusterSnapshot>>>,
        inference_pools: &channel::Sender<Option<Arc<AllWanted>>>,
    ) {
        let now = Timestamp::now();
        let world = self.watches.world();
        let validated = validate(&world, &self.memory.last_good);
        self.memory.last_good = remember(&validated);
        let (mut replicas, strangers) = snapshot::replicas(&world);
        observe::remember_ready(&mut self.memory.first_ready, &mut replicas);
        for stranger in strangers.iter().map(ToString::to_string) {
            if self.memory.strangers.insert(stranger.clone()) {
                warn!("{stranger}");
            }
        }
        let snapshot = Arc::new(snapshot::snapshot(&world, &validated, &replicas, &self.config.faults));
        snapshots.send_if_modified(|current| {
            let changed = current.as_deref() != Some(&*snapshot);
            if changed {
                *current = Some(snapshot.clone());
            }
            changed
        });
        if let Some(settings) = &self.config.inference_pools {
            let wanted = inference_pool::wanted(&validated, settings);
            inference_pools.send_if_modified(|current| {
                let changed = current.as_deref() != Some(&wanted);
                if changed {
                    *current = Some(Arc::new(wanted));
                }
                changed
            });
        }
        let prepared = build(Inputs {
            validated: &validated,
            replicas: &replicas,
            plan: known.plan.as_deref(),
            drained: &known.observations.drained,
            config: &self.config,
            now,
        });
        let prepared = self.memory.throttle.hold_back(prepared, now);
        let applied = apply(&self.client, &self.config.field_manager, prepared).await;
        self.memory.throttle.note(&applied, now);
        for note in change_notes(&validated, &applied, now) {
            self.events.note(note);
        }
        let nodes = world.nodes.iter().map(AsRef::as_ref);
        let seen = fault::seen(&snapshot.replicas, nodes, &self.config.faults);
        self.note_phases(&validated, &seen, now);
        self.write_statuses(&world, &validated, &replicas, &snapshot, &seen, known, &applied, now).await;
    }

    /// Events for replicas that began to serve or failed.
    fn note_phases(&mut self, validated: &Validated, replicas: &[ReplicaStatus], now: Timestamp) {
        let mut phases = BTreeMap::new();
        // What Plimsoll does not run has no life to tell of.
        for status in replicas.iter().filter(|r| r.plan > 0 || !r.nodes.is_empty()) {
            let key = (status.pool.clone(), status.id.clone());
            let before = self.memory.phases.get(&key).copied();
            phases.insert(key, status.phase);
            let Some(resource) = resource_of(validated, &status.pool) else { continue };
            let note = |warning, reason, message| Note {
                regarding: reference(resource),
                warning,
                reason,
                message,
                key: status.since.to_string(),
                at: now,
            };
            if status.phase == ReplicaPhase::Failed && before != Some(ReplicaPhase::Failed) {
                self.events.note(note(
                    true,
                    "ReplicaFailed",
                    format!("{} ({}): {}", status.id, status.shape, status.message),
                ));
            }
            if status.phase == ReplicaPhase::Ready && before.is_some_and(|p| p < ReplicaPhase::Ready) {
                let took = status.ready_at.unwrap_or(now).duration_since(status.created_at).as_secs();
                self.events.note(note(
                    false,
                    "ReplicaReady",
                    format!("{} ({}) serves, {took} s after its creation", status.id, status.shape),
                ));
            }
        }
        self.memory.phases = phases;
    }

    #[expect(clippy::too_many_arguments, reason = "one call, each argument one step's result")]
    async fn write_statuses(
        &mut self,
        world: &World,
        validated: &Validated,
        replicas: &[Observed],
        snapshot: &ClusterSnapshot,
        seen: &[ReplicaStatus],
        known: &Knowledge,
        applied: &Applied,
        now: Timestamp,
    ) {
        let mut writes = Vec::new();
        let mut notes = Vec::new();
        let mut pools = BTreeMap::new();
        for judged in &validated.pools {
            if let Some((uid, status, note)) =
                self.pool(judged, replicas, snapshot, seen, known, applied, now)
            {
                writes.push((
                    Some(uid.clone()),
                    Write::status::<ModelPool>(
                        judged.resource.namespace().as_deref(),
                        &judged.resource.name_any(),
                        judged.resource.metadata.uid.as_deref(),
                        &status,
                    ),
                ));
                notes.extend(note);
                pools.insert(uid, status);
            }
        }
        let plan = known.plan.as_deref();
        for judged in &validated.accelerators {
            self.other(
                &judged.resource,
                judged.resource.status.as_ref(),
                &cluster::accelerator(judged, snapshot, now),
                now,
                &mut writes,
            );
        }
        for judged in &validated.budgets {
            self.other(
                &judged.resource,
                judged.resource.status.as_ref(),
                &cluster::budget(judged, plan, now),
                now,
                &mut writes,
            );
        }
        for judged in &validated.tenants {
            self.other(
                &judged.resource,
                judged.resource.status.as_ref(),
                &cluster::tenant(judged, now),
                now,
                &mut writes,
            );
        }
        for judged in &validated.adapters {
            self.other(
                &judged.resource,
                judged.resource.status.as_ref(),
                &cluster::adapter(judged, now),
                now,
                &mut writes,
            );
        }
        for broken in &world.broken {
            self.broken(broken, now, &mut writes, &mut notes);
        }
        if let Some(plan) = plan {
            let spec: FleetPlanSpec = cluster::fleet_plan(plan, seen);
            let write = Write::object::<FleetPlan>(CURRENT, &spec);
            if self.memory.others.get("FleetPlan").is_none_or(|(body, _)| *body != write.body) {
                writes.push((None, write));
            }
        }
        // Events first: after a crash between the two they are written again under the same name, never lost.
        for note in notes {
            self.events.note(note);
        }
        let uids: BTreeMap<(Option<String>, String), String> = writes
            .iter()
            .filter_map(|(uid, w)| Some(((w.namespace.clone(), w.name.clone()), uid.clone()?)))
            .collect();
        let field_manager = format!("{}/status", self.config.field_manager);
        for (written, made) in
            write(&self.client, &field_manager, writes.into_iter().map(|(_, w)| w).collect()).await
        {
            let is_pool = written.resource.kind == ModelPool::kind(&());
            let uid = uids.get(&(written.namespace.clone(), written.name.clone())).filter(|_| is_pool);
            match uid.and_then(|uid| Some((uid.clone(), pools.remove(uid)?))) {
                Some((uid, status)) if made => {
                    let observed_at = match self.memory.pools.get(&uid) {
                        Some(w) if w.status.observed == status.observed => w.observed_at,
                        _ => now,
                    };
                    self.memory.pools.insert(uid, WrittenPool { status, at: now, observed_at });
                }
                Some((uid, _)) => {
                    self.memory.pools.remove(&uid);
                }
                None if made => {
                    self.memory.others.insert(
                        other_key(&written.resource.kind, written.namespace.as_deref(), &written.name),
                        (written.body, now),
                    );
                }
                None => {}
            }
        }
        let living: BTreeSet<&str> =
            validated.pools.iter().filter_map(|j| j.resource.metadata.uid.as_deref()).collect();
        self.memory.pools.retain(|uid, _| living.contains(uid.as_str()));
    }

    /// A pool's new status with its Events, if it is worth a write.
    #[expect(clippy::too_many_arguments, reason = "one call, each argument one step's result")]
    fn pool(
        &self,
        judged: &Judged<ModelPool, crate::validate::Accepted>,
        replicas: &[Observed],
        snapshot: &ClusterSnapshot,
        seen: &[ReplicaStatus],
        known: &Knowledge,
        applied: &Applied,
        now: Timestamp,
    ) -> Option<(String, ModelPoolStatus, Vec<Note>)> {
        let resource = &judged.resource;
        let uid = resource.metadata.uid.clone()?;
        let id = PoolId::new(resource.namespace().unwrap_or_default(), resource.name_any()).ok()?;
        let remembered = self.memory.pools.get(&uid);
        let stored = resource.status.as_ref();
        let before = remembered.map(|w| &w.status).or(stored);
        let own: Vec<&ReplicaStatus> = seen.iter().filter(|r| r.pool == id).collect();
        let adopted: Vec<_> = snapshot.adopted.iter().filter(|a| a.pool == id).collect();
        let accepted = judged.verdict.as_ref();
        let plan = known.plan.as_deref().zip(accepted.ok()).and_then(|(plan, a)| {
            Some(InForce {
                number: plan.number,
                created_at: plan.created_at,
                trigger: &plan.trigger,
                pool: current_plan(Some(plan), a)?,
            })
        });
        let progress = accepted.ok().and_then(|a| {
            rollout::progress(resource, &a.pool, plan.map(|p| p.pool), snapshot, replicas, now)
        });
        let observed_age = remembered.map_or(SignedDuration::MAX, |w| now.duration_since(w.observed_at));
        let refresh = SignedDuration::try_from(self.config.observed_interval).unwrap_or(SignedDuration::MAX);
        let status = pool_status::status(&Facts {
            resource,
            verdict: accepted,
            before,
            plan,
            replicas: &own,
            adopted: &adopted,
            rollout: progress.as_ref(),
            observation: known.observations.pools.get(&id),
            connected: known.connected,
            problems: applied.problems_of(&id),
            refresh_observed: observed_age >= refresh,
            now,
        });
        let fresh = remembered.is_some_and(|w| now.duration_since(w.at) < CACHE_LAG);
        let is_written = |s: Option<&ModelPoolStatus>| s.is_some_and(|s| pool_status::same(s, &status));
        // What others did to the status is overwritten once the cache can be trusted to show our own write.
        if is_written(before) && (fresh || is_written(stored)) {
            return None;
        }
        let notes = pool_status::notes(resource, before, &status, now);
        Some((uid, status, notes))
    }

    /// Queues another kind's status if it changed.
    fn other<K, S>(
        &self,
        resource: &K,
        stored: Option<&S>,
        status: &S,
        now: Timestamp,
        writes: &mut Vec<(Option<String>, Write)>,
    ) where
        K: Resource<DynamicType = ()>,
        S: Serialize + PartialEq,
    {
        if stored == Some(status) {
            return;
        }
        let meta = resource.meta();
        let name = meta.name.clone().unwrap_or_default();
        let write = Write::status::<K>(meta.namespace.as_deref(), &name, meta.uid.as_deref(), status);
        let key = other_key(&K::kind(&()), meta.namespace.as_deref(), &name);
        let lately = self.memory.others.get(&key).is_some_and(|(body, at)| {
            now.duration_since(*at) < CACHE_LAG && without_times(body) == without_times(&write.body)
        });
        if !lately {
            writes.push((None, write));
        }
    }

    /// An object that cannot be read as its kind: says so, once.
    fn broken(
        &self,
        broken: &Broken,
        now: Timestamp,
        writes: &mut Vec<(Option<String>, Write)>,
        notes: &mut Vec<Note>,
    ) {
        let message =
            format!("the object cannot be read: {}; correct the field and apply it again", broken.error);
        let status = json!({
            "observedGeneration": broken.generation,
            "conditions": [conditions::condition(conditions::ACCEPTED, Some(false), "Unreadable", message.clone(), Some(broken.generation), now)],
        });
        let at = (broken.namespace.as_deref(), broken.name.as_str(), Some(broken.uid.as_str()));
        let write = match broken.kind {
            "ModelPool" => Write::status::<ModelPool>(at.0, at.1, at.2, &status),
            "AcceleratorClass" => Write::status::<AcceleratorClass>(at.0, at.1, at.2, &status),
            "Budget" => Write::status::<Budget>(at.0, at.1, at.2, &status),
            "Tenant" => Write::status::<Tenant>(at.0, at.1, at.2, &status),
            _ => Write::status::<LoraAdapter>(at.0, at.1, at.2, &status),
        };
        let key = other_key(broken.kind, broken.namespace.as_deref(), &broken.name);
        if self
            .memory
            .others
            .get(&key)
            .is_some_and(|(body, _)| without_times(body) == without_times(&write.body))
        {
            return;
        }
        notes.push(Note {
            regarding: k8s_openapi::api::core::v1::ObjectReference {
                api_version: Some(write.resource.api_version.clone()),
                kind: Some(broken.kind.to_owned()),
                namespace: broken.namespace.clone(),
                name: Some(broken.name.clone()),
                uid: Some(broken.uid.clone()),
                ..Default::default()
            },
            warning: true,
            reason: "Invalid",
            message,
            key: broken.generation.to_string(),
            at: now,
        });
        debug!(kind = broken.kind, name = %broken.name, "object cannot be read");
        writes.push((None, write));
    }
}

fn other_key(kind: &str, namespace: Option<&str>, name: &str) -> String {
    if kind == "FleetPlan" {
        kind.to_owned()
    } else {
        format!("{kind}/{}/{name}", namespace.unwrap_or_default())
    }
}

/// A status body without the transition times of its conditions.
fn without_times(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(conditions) = body.pointer_mut("/status/conditions").and_then(Value::as_array_mut) {
        for condition in conditions {
            if let Some(fields) = condition.as_object_mut() {
                fields.remove("lastTransitionTime");
            }
        }
    }
    body
}

fn resource_of<'a>(validated: &'a Validated, pool: &PoolId) -> Option<&'a ModelPool> {
    let is =
        |r: &&ModelPool| r.namespace().as_deref() == Some(pool.namespace()) && r.name_any() == pool.name();
    validated.pools.iter().map(|j| &j.resource).chain(&validated.deleting).find(is)
}

/// Events for changes that were refused, and for drains that took too long.
fn change_notes(validated: &Validated, applied: &Applied, now: Timestamp) -> Vec<Note> {
    applied
        .outcomes
        .iter()
        .filter_map(|outcome| {
            let (reason, message, key) = match (&outcome.action, &outcome.result) {
                (Action::DeletePod { replica, pod_uid, reason: DeleteReason::DrainTimeout, .. }, Ok(())) => (
                    "DrainTimedOut",
                    format!("{replica} was deleted before every request was known to be finished: the drain timed out"),
                    pod_uid.clone(),
                ),
                (_, Err(problem)) => ("ChangeRefused", problem.clone(), String::new()),
                _ => return None,
            };
            let resource = resource_of(validated, outcome.action.pool())?;
            Some(Note { regarding: reference(resource), warning: true, reason, message, key, at: now })
        })
        .collect()
}
