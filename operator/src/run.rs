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
use plimsoll_fleet::canary::Standing;
use plimsoll_fleet::pool::Mode;
use plimsoll_fleet::{ClusterSnapshot, Plan, PoolId, ReplicaId, ReplicaPhase, ReplicaStatus};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch as channel;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, instrument, warn};

use crate::apply::{Applied, Applier, Throttle};
use crate::blackout;
use crate::brain::{Brain, BrainError, CanaryReport, Knowledge, follow};
use crate::build::{Action, DeleteReason, Inputs, Prepared, build, current_plan};
use crate::config::{Groups, OperatorConfig};
use crate::devices::Devices;
use crate::disruption;
use crate::events::{Events, Note, reference};
use crate::fault;
use crate::grpc::GrpcBrain;
use crate::inference_pool::{self, AllWanted};
use crate::lease;
use crate::lws::Lws;
use crate::observe::{self, Observed};
use crate::revision;
use crate::snapshot;
use crate::status::pool::{Facts, InForce};
use crate::status::queue::Target;
use crate::status::write::{Ended, Write, Writer};
use crate::status::{cluster, pool as pool_status, rollout};
use crate::validate::{Accepted, Judged, LastGood, Validated, remember, validate};
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
        let brain = GrpcBrain::new(&scheduler, &config.identity, None)?;
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
            let lead =
                Leader::new(&client, &config, watches.clone(), &term).lead(brain.clone(), term.clone());
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
    /// Statuses of ModelPools as last written, or on their way, by UID.
    pools: BTreeMap<String, WrittenPool>,
    /// Other writes as last made, or on their way.
    others: BTreeMap<Target, (Value, Timestamp)>,
    phases: BTreeMap<(PoolId, ReplicaId), ReplicaPhase>,
    strangers: BTreeSet<String>,
    /// Pools whose canary was being judged when the scheduler was last heard.
    judged: BTreeSet<PoolId>,
    /// When replicas first became ready, by UID of the pod.
    first_ready: BTreeMap<String, Timestamp>,
    lws: Lws,
    /// Whether no accelerator node was heard of when last looked at.
    silent: bool,
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
    applier: Applier,
    writer: Writer,
    /// What statuses give way to: pools that wait for a plan, and changes of pods.
    urgent: channel::Sender<usize>,
    /// Of these, pools.
    waiting_pools: usize,
    memory: Memory,
}

impl Leader {
    fn new(client: &Client, config: &OperatorConfig, watches: Watches, term: &CancellationToken) -> Self {
        let urgent = channel::Sender::new(0);
        let status_manager = format!("{}/status", config.field_manager);
        Self {
            client: client.clone(),
            config: config.clone(),
            watches,
            events: Events::start(client.clone(), config.field_manager.clone(), config.identity.clone()),
            applier: Applier::new(client.clone(), &config.field_manager, urgent.clone()),
            writer: Writer::start(client.clone(), status_manager, urgent.subscribe(), term.clone()),
            urgent,
            waiting_pools: 0,
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
        let (budgets, wanted) = channel::channel(None);
        let manager = format!("{}/disruption", self.config.field_manager);
        let (client, events) = (self.client.clone(), self.events.clone());
        tokio::spawn(disruption::run(client, manager, wanted, events, term.clone()));
        loop {
            let known = knowledge.borrow_and_update().clone();
            let began = Instant::now();
            let lws = self.uses_lws(known.plan.as_deref()).await;
            self.reconcile(&known, lws, &snapshots, &inference_pools, &budgets);
            let took = began.elapsed();
            tokio::select! {
                () = term.cancelled() => return,
                () = self.watches.changed() => {}
                () = self.applier.one_ended() => {}
                changed = knowledge.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(self.config.resync) => {}
            }
            // Changes come in bursts. In a large cluster, whose look takes long, at least half the time is left to others.
            tokio::time::sleep(self.config.debounce.max(took)).await;
        }
    }

    /// Whether replicas over several nodes are made as LeaderWorkerSets; asked of the cluster only once a plan has such.
    async fn uses_lws(&mut self, plan: Option<&Plan>) -> bool {
        let spans =
            |plan: &Plan| plan.pools.iter().flat_map(|p| &p.replicas).any(|r| r.shape.pipeline_parallel > 1);
        self.config.groups == Groups::Auto
            && plan.is_some_and(spans)
            && self.memory.lws.usable(&self.client).await
    }

    /// One look at everything: read → validate → build → apply → status. Changes and writes are made beside it.
    #[instrument(name = "reconcile", skip_all)]
    fn reconcile(
        &mut self,
        known: &Knowledge,
        lws: bool,
        snapshots: &channel::Sender<Option<Arc<ClusterSnapshot>>>,
        inference_pools: &channel::Sender<Option<Arc<AllWanted>>>,
        budgets: &channel::Sender<Option<Arc<disruption::AllWanted>>>,
    ) {
        let now = Timestamp::now();
        let outcomes = self.applier.take_ended(now);
        self.memory.throttle.note(&outcomes, now);
        let world = self.watches.world();
        let validated = validate(&world, &self.memory.last_good);
        self.memory.last_good = remember(&validated);
        let (world, silent) = blackout::assume(&world, validated.accelerator_classes());
        self.note_silence(&validated, silent, now);
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
            send_if_new(inference_pools, wanted);
        }
        if known.connected {
            self.memory.judged = judged(known);
        }
        let plan = known.plan.as_deref();
        send_if_new(budgets, disruption::wanted(&validated, plan, &world.pods));
        let devices = Devices::read(&world.dynamic, validated.accelerator_classes());
        let mut prepared = build(Inputs {
            validated: &validated,
            devices: &devices,
            replicas: &replicas,
            plan,
            drained: &known.observations.drained,
            nodes: &snapshot.nodes,
            lws,
            judged: &self.memory.judged,
            config: &self.config,
            now,
        });
        prepared.actions.extend(revision_steps(&world, &validated, &snapshot, known, now));
        // Destructured without `..`: a new kind of decision cannot be forgotten here.
        let Prepared { actions, problems } = self.memory.throttle.hold_back(prepared, now);
        self.applier.start(actions, now);
        let applied = Applied { outcomes, problems };
        self.note_waiting(&validated, known);
        for note in change_notes(&validated, &applied, now) {
            self.events.note(note);
        }
        let nodes = world.nodes.iter().map(AsRef::as_ref);
        let seen = fault::seen(&snapshot.replicas, nodes, &self.config.faults);
        self.note_phases(&validated, &seen, now);
        self.write_statuses(&world, &validated, &replicas, &snapshot, &seen, known, &applied, now);
    }

    /// Counts the pools whose pods the scheduler is about to say.
    fn note_waiting(&mut self, validated: &Validated, known: &Knowledge) {
        let unplanned = |a: &Accepted| current_plan(known.plan.as_deref(), a).is_none();
        let waiting =
            if known.connected { validated.accepted().filter(|(_, a)| unplanned(a)).count() } else { 0 };
        let before = std::mem::replace(&mut self.waiting_pools, waiting);
        self.urgent.send_if_modified(|n| {
            *n = n.saturating_sub(before) + waiting;
            before != waiting
        });
    }

    /// Tells once that no accelerator node is heard of, and once that this is over.
    fn note_silence(&mut self, validated: &Validated, silent: bool, now: Timestamp) {
        if std::mem::replace(&mut self.memory.silent, silent) == silent {
            return;
        }
        if !silent {
            info!("accelerator nodes are heard of again");
            return;
        }
        let message = "no accelerator node is heard of: engines count as they were last said to be, and nothing moves; look at the \
                       kubelets and their way to the API server";
        warn!("{message}");
        for (resource, _) in validated.accepted().filter(|(_, a)| a.pool.mode == Mode::Enforce) {
            self.events.note(Note {
                regarding: reference(resource),
                warning: true,
                reason: "NodesSilent",
                message: message.to_owned(),
                key: now.to_string(),
                at: now,
            });
        }
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
    fn write_statuses(
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
        self.note_written();
        let keeps_revisions = world.revisions.is_some();
        let mut writes = Vec::new();
        let mut notes = Vec::new();
        let mut own = Vec::new();
        for judged in &validated.pools {
            if let Some((uid, status, note)) =
                self.pool(judged, validated, replicas, snapshot, seen, known, applied, keeps_revisions, now)
            {
                writes.push(Write::status::<ModelPool>(
                    judged.resource.namespace().as_deref(),
                    &judged.resource.name_any(),
                    Some(&uid),
                    &status,
                ));
                notes.extend(note);
                own.push((uid, status));
            }
        }
        for (uid, status) in own {
            let observed_at = match self.memory.pools.get(&uid) {
                Some(w) if w.status.observed == status.observed => w.observed_at,
                _ => now,
            };
            self.memory.pools.insert(uid, WrittenPool { status, at: now, observed_at });
        }
        // What could not be read and now can may one day be broken again.
        writes.iter().for_each(|write| drop(self.memory.others.remove(&write.target())));
        let plan = known.plan.as_deref();
        for judged in &validated.accelerators {
            self.other(
                &judged.resource,
                judged.resource.status.as_ref(),
                &cluster::accelerator(judged, snapshot, &world.dynamic, now),
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
                &cluster::adapter(judged, &known.observations.adapters, now),
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
            if self.memory.others.get(&write.target()).is_none_or(|(body, _)| *body != write.body) {
                self.memory.others.insert(write.target(), (write.body.clone(), now));
                writes.push(write);
            }
        }
        // Events first: after a crash between the two they are written again under the same name, never lost.
        for note in notes {
            self.events.note(note);
        }
        self.writer.put(writes);
        let living: BTreeSet<&str> =
            validated.pools.iter().filter_map(|j| j.resource.metadata.uid.as_deref()).collect();
        self.memory.pools.retain(|uid, _| living.contains(uid.as_str()));
    }

    /// Takes note of the writes that ended.
    fn note_written(&mut self) {
        for Ended { write, made, at } in self.writer.ended() {
            let memory = &mut self.memory;
            let pool = write.uid().and_then(|uid| memory.pools.get_mut(uid));
            let at_of = match pool {
                Some(pool) => Some(&mut pool.at),
                None => memory.others.get_mut(&write.target()).map(|(_, at)| at),
            };
            if made {
                at_of.into_iter().for_each(|a| *a = at);
            } else if !self.writer.is_pending(&write.target()) {
                // Written anew, if it still belongs there.
                match write.uid() {
                    Some(uid) if memory.pools.remove(uid).is_some() => {}
                    _ => drop(memory.others.remove(&write.target())),
                }
            }
        }
    }

    /// A pool's new status with its Events, if it is worth a write.
    #[expect(clippy::too_many_arguments, reason = "one call, each argument one step's result")]
    fn pool(
        &self,
        judged: &Judged<ModelPool, Accepted>,
        validated: &Validated,
        replicas: &[Observed],
        snapshot: &ClusterSnapshot,
        seen: &[ReplicaStatus],
        known: &Knowledge,
        applied: &Applied,
        keeps_revisions: bool,
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
            let (plan, room) = (plan.map(|p| p.pool), validated.adapter_room(&a.pool.id));
            rollout::progress(resource, &a.pool, plan, snapshot, replicas, room, now)
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
            keeps_revisions,
            problems: applied.problems_of(&id),
            refresh_observed: observed_age >= refresh,
            now,
        });
        let fresh = remembered
            .is_some_and(|w| now.duration_since(w.at) < CACHE_LAG || self.is_pending::<ModelPool>(resource));
        let is_written = |s: Option<&ModelPoolStatus>| s.is_some_and(|s| pool_status::same(s, &status));
        // What others did to the status is overwritten once the cache can be trusted to show our own write.
        if is_written(before) && (fresh || is_written(stored)) {
            return None;
        }
        let notes = pool_status::notes(resource, before, &status, now);
        Some((uid, status, notes))
    }

    /// Whether a status of this is yet to be written.
    fn is_pending<K: Resource<DynamicType = ()>>(&self, resource: &K) -> bool {
        self.writer.is_pending(&Target {
            kind: K::kind(&()).into_owned(),
            namespace: resource.namespace(),
            name: resource.name_any(),
        })
    }

    /// Queues another kind's status if it changed.
    fn other<K, S>(
        &mut self,
        resource: &K,
        stored: Option<&S>,
        status: &S,
        now: Timestamp,
        writes: &mut Vec<Write>,
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
        let target = write.target();
        let lately = self.memory.others.get(&target).is_some_and(|(body, at)| {
            let fresh = now.duration_since(*at) < CACHE_LAG || self.writer.is_pending(&target);
            fresh && without_times(body) == without_times(&write.body)
        });
        if !lately {
            self.memory.others.insert(target, (write.body.clone(), now));
            writes.push(write);
        }
    }

    /// An object that cannot be read as its kind: says so, once.
    fn broken(&mut self, broken: &Broken, now: Timestamp, writes: &mut Vec<Write>, notes: &mut Vec<Note>) {
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
        if self
            .memory
            .others
            .get(&write.target())
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
        self.memory.others.insert(write.target(), (write.body.clone(), now));
        writes.push(write);
    }
}

/// Sends what differs from what was sent last.
fn send_if_new<T: PartialEq>(to: &channel::Sender<Option<Arc<T>>>, value: T) {
    to.send_if_modified(|current| {
        let changed = current.as_deref() != Some(&value);
        if changed {
            *current = Some(Arc::new(value));
        }
        changed
    });
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

/// Pools whose canary is being judged.
fn judged(known: &Knowledge) -> BTreeSet<PoolId> {
    let going = |c: &CanaryReport| matches!(c.standing, Standing::Watching | Standing::Held);
    let pools = known.observations.pools.iter();
    pools.filter(|(_, o)| o.canary.as_ref().is_some_and(going)).map(|(id, _)| id.clone()).collect()
}

/// What to write of every pool's revisions; nothing where they cannot be read.
fn revision_steps(
    world: &World,
    validated: &Validated,
    snapshot: &ClusterSnapshot,
    known: &Knowledge,
    now: Timestamp,
) -> Vec<Action> {
    let Some(revisions) = &world.revisions else { return Vec::new() };
    let owned = revision::by_owner(revisions);
    let steps = |(resource, accepted): (&ModelPool, &crate::validate::Accepted)| {
        let uid = resource.metadata.uid.as_deref().unwrap_or_default();
        let canary = known.observations.pools.get(&accepted.pool.id).and_then(|o| o.canary.as_ref());
        revision::steps(&revision::Look {
            resource,
            accepted,
            own: owned.get(uid).map(Vec::as_slice).unwrap_or_default(),
            plan: current_plan(known.plan.as_deref(), accepted),
            snapshot,
            canary,
            now,
        })
    };
    validated.accepted().flat_map(steps).collect()
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
                (Action::DeletePod { replica, pods, reason: DeleteReason::DrainTimeout, .. }, Ok(())) => (
                    "DrainTimedOut",
                    format!("{replica} was deleted before every request was known to be finished: the drain timed out"),
                    pods.first().map(|(_, uid)| uid.clone()).unwrap_or_default(),
                ),
                (_, Err(problem)) => ("ChangeRefused", problem.clone(), String::new()),
                _ => return None,
            };
            let resource = resource_of(validated, outcome.action.pool())?;
            Some(Note { regarding: reference(resource), warning: true, reason, message, key, at: now })
        })
        .collect()
}
