//! PlanService: for the operator and the command line.

use std::collections::BTreeMap;
use std::sync::Arc;

use plimsoll_fleet::plan::ScalingRecord;
use plimsoll_fleet::{ClusterSnapshot, DemandEstimate, Plan, PoolId};
use plimsoll_proto::document::{decode, encode};
use plimsoll_proto::v1;
use plimsoll_proto::v1::plan_service_server::PlanService;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::observe::observations;
use super::shared::Shared;
use crate::control::{DuplicateName, check_names, in_virtual_time};
use crate::explain::applied;
use crate::planner::PlanRequest;

/// Scaling records in one answer.
const HISTORY: usize = 50;

/// The service.
pub struct Plans {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Plans {
    /// Serves the shared state until `stop`.
    pub fn new(shared: Arc<Shared>, stop: CancellationToken) -> Self {
        Self { shared, stop }
    }

    /// The snapshot, or why there is none.
    fn snapshot(&self) -> Result<Arc<ClusterSnapshot>, Status> {
        self.shared.state.lock().snapshot.clone().ok_or_else(|| {
            Status::failed_precondition(
                "the scheduler has not seen the cluster yet; check that the operator runs and reaches it",
            )
        })
    }

    /// Puts a snapshot into force; gives the number of the plan and the pools that are gone.
    fn take_snapshot(&self, request: v1::PushSnapshotRequest) -> Result<(u64, Vec<PoolId>), Status> {
        let snapshot: ClusterSnapshot = decode("snapshot", request.snapshot.as_ref())?;
        let mut state = self.shared.state.lock();
        let plan = state.plan.as_ref().map_or(0, |p| p.number);
        if state.pushed.as_ref().is_some_and(|(who, n)| *who == request.operator && request.sequence <= *n) {
            tracing::debug!("an older snapshot was ignored");
            return Ok((plan, Vec::new()));
        }
        let forgotten = state.take_snapshot(snapshot, self.shared.wall_now()).map_err(unusable)?;
        state.pushed = Some((request.operator, request.sequence));
        self.shared.metrics.snapshots.inc();
        self.shared.wake.notify_one();
        Ok((plan, forgotten))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "an error to map")]
fn unusable(error: DuplicateName) -> Status {
    Status::invalid_argument(error.to_string())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Status::internal(format!("planning failed; this is a defect: {e}")))
}

#[tonic::async_trait]
impl PlanService for Plans {
    #[tracing::instrument(skip_all, fields(operator = request.get_ref().operator, sequence = request.get_ref().sequence))]
    async fn push_snapshot(
        &self,
        request: Request<v1::PushSnapshotRequest>,
    ) -> Result<Response<v1::PushSnapshotResponse>, Status> {
        let (plan, forgotten) = self.take_snapshot(request.into_inner())?;
        super::brain::reserve_tokens(&self.shared).await;
        if !forgotten.is_empty() {
            let store = Arc::clone(&self.shared.store);
            let result = blocking(move || super::persist::forget_records(store.as_ref(), &forgotten)).await?;
            if let Err(error) = result {
                tracing::warn!(%error, "records of deleted pools were not removed");
            }
        }
        Ok(Response::new(v1::PushSnapshotResponse { plan }))
    }

    type WatchFleetStream = ReceiverStream<Result<v1::FleetUpdate, Status>>;

    async fn watch_fleet(
        &self,
        request: Request<v1::WatchFleetRequest>,
    ) -> Result<Response<Self::WatchFleetStream>, Status> {
        let plans_only = request.get_ref().plans_only;
        let (sender, receiver) = mpsc::channel(8);
        let mut plans = self.shared.plans.subscribe();
        let mut seen = self.shared.observations.subscribe();
        plans.mark_changed();
        let stop = self.stop.clone();
        // A slow watcher misses plans in between, never the newest: it is asked for when there is room.
        tokio::spawn(async move {
            loop {
                let update = tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    () = sender.closed() => break,
                    changed = plans.changed() => {
                        if changed.is_err() {
                            break;
                        }
                        let Some(plan) = plans.borrow_and_update().clone() else { continue };
                        encode("plan", plan.as_ref()).map(v1::fleet_update::Update::Plan).map_err(Status::from)
                    }
                    changed = seen.changed(), if !plans_only => {
                        if changed.is_err() {
                            break;
                        }
                        Ok(v1::fleet_update::Update::Observations(seen.borrow_and_update().as_ref().clone()))
                    }
                };
                let update = update.map(|u| v1::FleetUpdate { update: Some(u) });
                let sent = tokio::select! {
                    () = stop.cancelled() => break,
                    sent = sender.send(update) => sent,
                };
                if sent.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    #[tracing::instrument(skip_all)]
    async fn what_if(
        &self,
        request: Request<v1::WhatIfRequest>,
    ) -> Result<Response<v1::WhatIfResponse>, Status> {
        let request = request.into_inner();
        let given = match &request.snapshot {
            Some(document) => {
                let snapshot: ClusterSnapshot = decode("snapshot", Some(document))?;
                check_names(&snapshot).map_err(unusable)?;
                Some(Arc::new(in_virtual_time(self.shared.clock, snapshot)))
            }
            None => None,
        };
        let snapshot = match &given {
            Some(s) => Arc::clone(s),
            None => self.snapshot()?,
        };
        let mut after = ClusterSnapshot::clone(&snapshot);
        let applied = match &request.objects {
            Some(document) => {
                let objects: ClusterSnapshot = decode("objects", Some(document))?;
                check_names(&objects).map_err(unusable)?;
                Some(applied::apply(&mut after, objects))
            }
            None => None,
        };
        let now = self.shared.now();
        let (mut demands, idle, current, next_serial) = {
            let state = self.shared.state.lock();
            let (demands, idle) = state.demands(&after, crate::clock::seconds(now));
            let current = state.plan.clone().filter(|_| given.is_none());
            (demands, idle, current, state.next_serial)
        };
        let anew = |pool: &PoolId| applied.as_ref().is_some_and(|a| a.demand_anew.contains(pool));
        if let Some(plan) = &current {
            // What differs is then due to the changes alone, not to demand that moved since.
            for pool in plan.pools.iter().filter(|p| !anew(&p.pool)) {
                if let Some(demand) = demands.get_mut(&pool.pool) {
                    *demand = pool.demand.clone();
                }
            }
        }
        let is_applied = applied.is_some();
        let changes_nothing = request.changes.is_empty() && !is_applied;
        let remarks = applied.map(|a| a.remarks).unwrap_or_default();
        let planner = Arc::clone(&self.shared.planner);
        let clock = self.shared.clock;
        let (base, changed) = blocking(move || {
            let mut ask = PlanRequest {
                next_serial: crate::records::free_serial(next_serial, &snapshot, current.as_deref()),
                snapshot,
                demands,
                previous: current.as_deref().cloned().map(|mut p| {
                    p.created_at = clock.to_virtual(p.created_at);
                    p
                }),
                number: current.as_ref().map_or(1, |p| p.number + 1),
                now,
                trigger: "what if".to_owned(),
                idle,
            };
            let base = match current {
                Some(plan) => Plan::clone(&plan),
                None => planner.plan(&ask).plan,
            };
            if changes_nothing {
                return Ok((base.clone(), base));
            }
            for change in &request.changes {
                planner
                    .change(&mut after, &mut ask.demands, change)
                    .map_err(|why| Status::invalid_argument(format!("change {change:?}: {why}")))?;
            }
            ask.snapshot = Arc::new(after);
            ask.trigger = match request.changes.is_empty() {
                true => "what if manifests were applied".to_owned(),
                false => format!("what if {}", request.changes.join(", ")),
            };
            Ok::<_, Status>((base, planner.plan(&ask).plan))
        })
        .await??;
        Ok(Response::new(v1::WhatIfResponse {
            base: Some(encode("plan", &base)?),
            changed: Some(encode("plan", &changed)?),
            remarks,
            applied: is_applied,
        }))
    }

    #[tracing::instrument(skip_all)]
    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let name = request.into_inner().pool;
        let snapshot = self.snapshot()?;
        let pool: Option<PoolId> = if name.is_empty() {
            None
        } else {
            Some(name.parse().map_err(|e| Status::invalid_argument(format!("pool: {e}")))?)
        };
        let now = self.shared.now();
        let (plan, demands, idle, history, seen, next_serial) = {
            let state = self.shared.state.lock();
            let plan = state.plan.clone().ok_or_else(|| {
                Status::failed_precondition("no plan has been made yet; try again in a few seconds")
            })?;
            let mut demands: BTreeMap<PoolId, DemandEstimate> = BTreeMap::new();
            for p in &plan.pools {
                demands.insert(p.pool.clone(), p.demand.clone());
            }
            let idle = state.demands(&snapshot, crate::clock::seconds(now)).1;
            let mut history: Vec<ScalingRecord> = state
                .records
                .iter()
                .filter(|(id, _)| pool.as_ref().is_none_or(|p| p == *id))
                .flat_map(|(_, list)| list.iter().cloned())
                .collect();
            history.sort_by_key(|r| std::cmp::Reverse((r.at, r.plan)));
            history.truncate(HISTORY);
            let mut seen = observations(&self.shared, &state);
            if let Some(id) = &pool {
                seen.pools.retain(|p| p.pool == id.to_string());
            }
            (plan, demands, idle, history, seen, state.next_serial)
        };
        let mut shown = Plan::clone(&plan);
        if let Some(id) = &pool {
            if plan.pool(id).is_none() {
                let known: Vec<String> = plan.pools.iter().map(|p| p.pool.to_string()).collect();
                return Err(Status::not_found(format!(
                    "no pool {id} in plan {}; there are: {}",
                    plan.number,
                    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                )));
            }
            shown.pools.retain(|p| &p.pool == id);
            let (planner, id) = (Arc::clone(&self.shared.planner), id.clone());
            let clock = self.shared.clock;
            let why = blocking(move || {
                let mut previous = Plan::clone(&plan);
                previous.created_at = clock.to_virtual(previous.created_at);
                let ask = PlanRequest {
                    next_serial: crate::records::free_serial(next_serial, &snapshot, Some(&plan)),
                    snapshot,
                    demands,
                    previous: Some(previous),
                    number: plan.number + 1,
                    now,
                    trigger: format!("explain {id}"),
                    idle,
                };
                planner.explain(&ask, &plan, &id)
            })
            .await?;
            if let (Some(why), Some(entry)) = (why, shown.pools.first_mut()) {
                entry.why = why;
            }
        }
        Ok(Response::new(v1::ExplainResponse {
            plan: Some(encode("plan", &shown)?),
            history: Some(encode("history", &history)?),
            observations: Some(seen),
        }))
    }
}
