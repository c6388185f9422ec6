//! Terms of leading. Without etcd there is one, for life; with it, this scheduler leads from each election that it wins
//! until its lease is lost, and everything that a term knows goes with the term.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use plimsoll_proto::tls::ClientTls;
use plimsoll_proto::v1::agent_service_server::AgentServiceServer;
use plimsoll_proto::v1::plan_service_server::PlanServiceServer;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::dispatch::Dispatch;
use super::forward::Forward;
use super::persist::{self, Loaded};
use super::plans::Plans;
use super::sessions::Sessions;
use super::shared::Shared;
use super::{SchedulerConfig, SchedulerError, brain};
use crate::clock::seconds;
use crate::control::{Agent, LEASE_SECONDS, State};
use crate::demand::{DemandConfig, DemandTracker};
use crate::ledger::Ledger;
use crate::store::Store;
use crate::store::etcd::{Election, EtcdStore, Seat, Seen};

/// Largest message taken, bytes: a snapshot of a large cluster.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// Wall time before standing again after a term that could not begin.
const RETRY: Duration = Duration::from_secs(2);

/// The services' dispatcher.
pub type Services = Dispatch<PlanServiceServer<Plans>, AgentServiceServer<Sessions>>;

/// A term under way: what serves, and the loops.
pub struct Term {
    stop: CancellationToken,
    tasks: [JoinHandle<()>; 2],
}

impl Term {
    /// Takes up what was stored, starts the loops and serves.
    pub fn begin(
        config: &SchedulerConfig,
        store: Arc<dyn Store>,
        loaded: Loaded,
        seat: Option<Seat>,
        services: &Services,
        stop: CancellationToken,
    ) -> Self {
        let shared = take_up(config, store, loaded, seat);
        let brain = tokio::spawn(brain::brain(Arc::clone(&shared), stop.clone()).in_current_span());
        let pulse = tokio::spawn(brain::pulse(Arc::clone(&shared), stop.clone()).in_current_span());
        let plans = PlanServiceServer::new(Plans::new(Arc::clone(&shared), stop.clone()))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let agents = AgentServiceServer::new(Sessions::new(shared, stop.clone()))
            .max_decoding_message_size(16 << 20)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        services.lead(plans, agents);
        config.metrics.leader.set(1);
        Self { stop, tasks: [brain, pulse] }
    }

    /// Ends sessions and loops, and waits for what they write last.
    ///
    /// # Errors
    /// [`SchedulerError::Task`] if a loop had failed.
    pub async fn end(self) -> Result<(), SchedulerError> {
        self.stop.cancel();
        for task in self.tasks {
            task.await.map_err(SchedulerError::Task)?;
        }
        Ok(())
    }
}

/// The shared state of a term, as it was stored.
fn take_up(
    config: &SchedulerConfig,
    store: Arc<dyn Store>,
    loaded: Loaded,
    seat: Option<Seat>,
) -> Arc<Shared> {
    let started = (Timestamp::now(), Instant::now());
    let clock = loaded.clock;
    let now = seconds(clock.to_virtual(started.0));
    let demand_config = DemandConfig {
        stale_after_seconds: clock.virtual_seconds(config.demand.stale_after_seconds),
        ..config.demand
    };
    let mut demand = loaded.demand.unwrap_or_else(|| DemandTracker::new(demand_config));
    demand.set_config(demand_config);
    let plan = loaded.plan.map(Arc::new);
    let mut state = State::new(clock, demand, started.0);
    state.snapshot = loaded.snapshot.map(Arc::new);
    state.cold_starts = loaded.cold_starts;
    state.canaries = loaded.canaries;
    state.plan.clone_from(&plan);
    state.next_serial = loaded.next_serial;
    state.drain = loaded.drain;
    state.ledger = Ledger::new(now, LEASE_SECONDS, loaded.reserves);
    state.records = loaded.records;
    // Agents known before are believed to be there until their time is up: they are about to reconnect.
    let believed = loaded.agents.into_iter().map(|(node, (name, address))| {
        (name, Agent { node: Some(node), address, last_seen: started.0, session: 0 })
    });
    state.agents = believed.collect();
    if let Some(plan) = &plan {
        state.learn_load_lines(plan);
        config.metrics.show_plan(plan);
    }
    let table = (loaded.routes.version > 0).then(|| Arc::new(loaded.routes));
    if let Some(table) = &table {
        state.push_table(Arc::clone(table));
        config.metrics.show_routes(table);
    }
    Arc::new(Shared {
        state: Mutex::new(state),
        identity: loaded.identity,
        clock,
        planner: Arc::clone(&config.planner),
        store,
        seat,
        metrics: config.metrics.clone(),
        reserving: tokio::sync::Mutex::new(()),
        wake: Notify::new(),
        plans: watch::Sender::new(plan),
        routes: watch::Sender::new(table),
        drains: watch::Sender::new(Arc::default()),
        observations: watch::Sender::new(Arc::default()),
        started,
        config: config.clone(),
    })
}

/// Stands for election again and again until `shutdown`.
pub async fn stand(
    config: SchedulerConfig,
    election: Election,
    services: Services,
    shutdown: CancellationToken,
) -> Result<(), SchedulerError> {
    loop {
        let tls = config.tls.as_ref().map(|tls| &tls.leader);
        let Some(seat) = campaign(&election, &services, tls, &shutdown).await else { break };
        tracing::info!(term = seat.term, "elected: this scheduler leads");
        services.vacate("the one just elected is taking up its state; try again".to_owned());
        let (lost, outcome) = serve(&config, &election, &seat, &services, &shutdown).await;
        config.metrics.leader.set(0);
        config.metrics.show_nothing();
        match lost {
            Some(why) => {
                tracing::warn!(term = seat.term, why, "this scheduler does not lead any more");
                services.vacate(why);
            }
            None => services.vacate("this one stops; try again".to_owned()),
        }
        // Only now: what the term wrote last is written.
        election.resign(seat).await;
        outcome?;
        if shutdown.is_cancelled() {
            break;
        }
    }
    services.vacate("this one stops; try again".to_owned());
    Ok(())
}

/// Waits to be elected; `None` at shutdown. Meanwhile requests go to whoever leads.
async fn campaign(
    election: &Election,
    services: &Services,
    tls: Option<&ClientTls>,
    shutdown: &CancellationToken,
) -> Option<Seat> {
    let mut known: Option<Seen> = None;
    let mut ended = CancellationToken::new();
    let campaign = election.campaign(|seen| {
        if known.as_ref() == Some(&seen) {
            return;
        }
        ended.cancel();
        ended = shutdown.child_token();
        match &seen {
            Seen::Leader(leader) => {
                tracing::info!(leader = leader.identity, address = leader.address, "another scheduler leads");
                match Forward::new(&leader.address, tls, ended.clone()) {
                    Ok(forward) => services.follow(leader.address.clone(), forward),
                    Err(why) => services.vacate(why),
                }
            }
            Seen::Nobody(why) => {
                tracing::warn!(why, "no scheduler leads");
                services.vacate(why.clone());
            }
        }
        known = Some(seen);
    });
    let seat = tokio::select! {
        () = shutdown.cancelled() => None,
        seat = campaign => Some(seat),
    };
    // Whom this one followed does not lead any more.
    ended.cancel();
    seat
}

/// One term, from its election to its end: why it was lost (`None` at shutdown).
async fn serve(
    config: &SchedulerConfig,
    election: &Election,
    seat: &Seat,
    services: &Services,
    shutdown: &CancellationToken,
) -> (Option<String>, Result<(), SchedulerError>) {
    let mut hold = pin!(election.hold(seat));
    let loaded = tokio::select! {
        why = &mut hold => return (Some(why), Ok(())),
        () = shutdown.cancelled() => return (None, Ok(())),
        loaded = open(config, election, seat) => loaded,
    };
    let (store, loaded) = match loaded {
        Ok(opened) => opened,
        Err(error) => {
            tracing::error!(%error, "the state in etcd cannot be taken up; another scheduler may try");
            tokio::time::sleep(RETRY).await;
            return (Some(error.to_string()), Ok(()));
        }
    };
    let term = Term::begin(config, store, loaded, Some(seat.clone()), services, shutdown.child_token());
    let lost = tokio::select! {
        why = &mut hold => Some(why),
        () = shutdown.cancelled() => None,
    };
    if let Some(why) = &lost {
        services.vacate(why.clone());
    }
    let end = term.end();
    let outcome = if lost.is_some() {
        end.await
    } else {
        // The last writes need the lease.
        let mut end = pin!(end);
        tokio::select! {
            outcome = &mut end => outcome,
            _ = &mut hold => end.await,
        }
    };
    (lost, outcome)
}

async fn open(
    config: &SchedulerConfig,
    election: &Election,
    seat: &Seat,
) -> Result<(Arc<dyn Store>, Loaded), SchedulerError> {
    let (election, seat, scale) = (election.clone(), seat.clone(), config.time_scale);
    let (wall, runtime) = (Timestamp::now(), Handle::current());
    tokio::task::spawn_blocking(move || {
        let store: Arc<dyn Store> = Arc::new(EtcdStore::open(&election, &seat, runtime)?);
        let loaded = persist::load(store.as_ref(), scale, wall)?;
        Ok((store, loaded))
    })
    .await
    .map_err(SchedulerError::Task)?
}
