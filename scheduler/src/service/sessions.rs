//! AgentService: one stream for each agent.
//!
//! A session sends what differs between what its agent holds and what is in force, whenever there is room: routes that
//! change faster than an agent reads them are merged, and an agent that does not read at all is dropped and told so.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_fleet::telemetry::AgentReport;
use plimsoll_fleet::{NodeName, ReplicaId, RouteTable};
use plimsoll_proto::convert::{route_delta, route_table};
use plimsoll_proto::v1;
use plimsoll_proto::v1::agent_message::Message as Up;
use plimsoll_proto::v1::agent_service_server::AgentService;
use plimsoll_proto::v1::scheduler_message::Message as Down;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use super::brain::lease_end_ms;
use super::metrics::SchedulerMetrics;
use super::shared::Shared;
use crate::control::{Agent, ReportTaken};

/// Messages that may wait for one agent.
const QUEUE: usize = 16;
/// Wall time that a full queue may take to move before the agent is dropped.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Wall time for the first message.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The service.
pub struct Sessions {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Sessions {
    /// Serves the shared state until `stop`.
    pub fn new(shared: Arc<Shared>, stop: CancellationToken) -> Self {
        Self { shared, stop }
    }
}

#[tonic::async_trait]
impl AgentService for Sessions {
    type SessionStream = ReceiverStream<Result<v1::SchedulerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let inbound = request.into_inner();
        let (sender, receiver) = mpsc::channel(QUEUE + 1);
        let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
        tokio::spawn(
            async move {
                // One place is kept for the last word, so that it can be said even to an agent that does not read.
                let last_word = sender.clone().try_reserve_owned();
                if let Err(status) = converse(&shared, inbound, &sender, &stop).await {
                    tracing::info!(code = ?status.code(), message = status.message(), "session ends");
                    if let Ok(permit) = last_word {
                        permit.send(Err(status));
                    }
                }
            }
            .instrument(tracing::info_span!("session", agent = tracing::field::Empty)),
        );
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

type Sender = mpsc::Sender<Result<v1::SchedulerMessage, Status>>;

async fn send(metrics: &SchedulerMetrics, to: &Sender, message: Down) -> Result<(), Status> {
    let message = Ok(v1::SchedulerMessage { message: Some(message) });
    match to.send_timeout(message, SEND_TIMEOUT).await {
        Ok(()) => Ok(()),
        Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
            metrics.agents_dropped.inc();
            Err(Status::resource_exhausted("the agent does not keep up with its messages; reconnect"))
        }
        Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(Status::cancelled("the agent hung up")),
    }
}

async fn converse(
    shared: &Arc<Shared>,
    mut inbound: Streaming<v1::AgentMessage>,
    to: &Sender,
    stop: &CancellationToken,
) -> Result<(), Status> {
    let first = tokio::select! {
        () = stop.cancelled() => return Err(Status::unavailable("the scheduler stops; reconnect")),
        first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()) => first,
    };
    let Ok(first) = first else {
        return Err(Status::deadline_exceeded("no hello came; send AgentMessage.hello first"));
    };
    let Some(v1::AgentMessage { message: Some(Up::Hello(hello)) }) = first? else {
        return Err(Status::invalid_argument("the first message must be AgentMessage.hello"));
    };
    if hello.agent.is_empty() {
        return Err(Status::invalid_argument("Hello.agent is empty; send the agent's name"));
    }
    let node = match hello.node.as_str() {
        "" => None,
        name => Some(NodeName::new(name).map_err(|e| Status::invalid_argument(format!("Hello.node: {e}")))?),
    };
    tracing::Span::current().record("agent", hello.agent.as_str());
    tracing::info!(address = hello.address, incarnation = hello.incarnation, "agent says hello");

    let (session, held) = {
        let mut state = shared.state.lock();
        state.sessions += 1;
        let session = state.sessions;
        let agent = Agent {
            node: node.clone(),
            address: hello.address.clone(),
            last_seen: shared.wall_now(),
            session,
        };
        state.agents.insert(hello.agent.clone(), agent);
        state.routes_dirty = true;
        // A version counts only within the store it came from, and only while its table is still at hand.
        let held = (hello.route_epoch == shared.identity)
            .then(|| state.tables.iter().find(|t| t.version == hello.route_version).cloned())
            .flatten();
        (session, held)
    };
    shared.wake.notify_one();

    let mut routes = shared.routes.subscribe();
    let mut drains = shared.drains.subscribe();
    drains.mark_changed();
    let mut sent_routes: Option<Arc<RouteTable>> = held;
    let mut sent_drains: Option<BTreeSet<ReplicaId>> = None;
    let current = routes.borrow_and_update().clone();
    if let Some(table) = current {
        // Also when nothing changed: the agent then knows that what it holds is in force.
        send_routes(shared, to, &mut sent_routes, table).await?;
    }
    loop {
        tokio::select! {
            () = stop.cancelled() => return Err(Status::unavailable("the scheduler stops; reconnect")),
            () = to.closed() => return Ok(()),
            message = inbound.message() => {
                let Some(message) = message? else { return Ok(()) };
                match message.message {
                    Some(Up::Report(report)) => {
                        if report.agent != hello.agent {
                            return Err(Status::invalid_argument(format!(
                                "AgentReport.agent is {:?}, the session is {:?}'s", report.agent, hello.agent
                            )));
                        }
                        for message in take_report(shared, report, session)? {
                            send(&shared.metrics, to, message).await?;
                        }
                    }
                    Some(Up::Hello(_)) => {
                        return Err(Status::invalid_argument("a second hello; open a new session instead"));
                    }
                    None => {}
                }
            }
            changed = routes.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let table = routes.borrow_and_update().clone();
                if let Some(table) = table {
                    send_routes(shared, to, &mut sent_routes, table).await?;
                }
            }
            changed = drains.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let all = drains.borrow_and_update().clone();
                let own = node.as_ref().and_then(|n| all.get(n)).cloned().unwrap_or_default();
                if sent_drains.as_ref() != Some(&own) && !(sent_drains.is_none() && own.is_empty()) {
                    let replicas = own.iter().map(ToString::to_string).collect();
                    send(&shared.metrics, to, Down::Drains(v1::Drains { replicas })).await?;
                    sent_drains = Some(own);
                }
            }
        }
    }
}

async fn send_routes(
    shared: &Shared,
    to: &Sender,
    sent: &mut Option<Arc<RouteTable>>,
    table: Arc<RouteTable>,
) -> Result<(), Status> {
    let message = match sent.as_ref() {
        Some(base) => Down::Delta(route_delta(base, &table)),
        None => Down::Routes(route_table(&table, &shared.identity)),
    };
    send(&shared.metrics, to, message).await?;
    *sent = Some(table);
    Ok(())
}

/// Takes in a report and says what to answer.
fn take_report(shared: &Shared, report: v1::AgentReport, session: u64) -> Result<Vec<Down>, Status> {
    let sequence = report.sequence;
    let ack = Down::Ack(v1::ReportAck { sequence });
    let report = match AgentReport::try_from(report) {
        Ok(report) => report,
        Err(error) => {
            // Acknowledged all the same: sent again it would be no better.
            shared.metrics.reports_rejected.inc();
            tracing::warn!(%error, sequence, "a report was left out");
            return Ok(vec![ack]);
        }
    };
    let wall = shared.wall_now();
    let mut state = shared.state.lock();
    match state.agents.get_mut(&report.agent) {
        Some(agent) if agent.session > session => {
            return Err(Status::aborted("the agent has opened another session"));
        }
        Some(agent) => {
            agent.last_seen = wall;
            agent.session = session;
            if !report.address.is_empty() {
                agent.address.clone_from(&report.address);
            }
        }
        None => {}
    }
    match state.take_report(&report, wall) {
        ReportTaken::Duplicate => {
            shared.metrics.reports_duplicate.inc();
            return Ok(vec![ack]);
        }
        ReportTaken::Counted { left_out, wake } => {
            match left_out {
                Some(why) => {
                    shared.metrics.reports_rejected.inc();
                    tracing::warn!(why, "traffic of a report was left out");
                }
                None => {
                    shared.metrics.reports.inc();
                }
            }
            if wake {
                shared.wake.notify_one();
            }
        }
    }
    let mut answers = vec![ack];
    if state.spend_tokens(&report, wall) {
        let sharing = state.agents_alive(wall, shared.config.agent_timeout_signed());
        let now = state.seconds_at(wall);
        // The store refuses a scheduler that was deposed; leases are granted without asking it.
        let granted =
            if shared.leads() { state.ledger.grant(&report.agent, sharing, now) } else { Vec::new() };
        let leases: Vec<v1::BudgetLease> = granted
            .into_iter()
            .map(|(budget, lease)| v1::BudgetLease {
                epoch: lease.epoch,
                budget,
                amount: lease.amount,
                expires_at_ms: lease_end_ms(shared, lease.expires_at),
            })
            .collect();
        if !leases.is_empty() {
            answers.push(Down::Leases(v1::Leases { leases }));
        }
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_does_not_read_is_dropped_and_counted() {
        let metrics = SchedulerMetrics::default();
        let (to, mut from) = mpsc::channel(2);
        let last_word = to.clone().try_reserve_owned().unwrap();
        let ack = || Down::Ack(v1::ReportAck { sequence: 1 });
        send(&metrics, &to, ack()).await.unwrap();
        let status = send(&metrics, &to, ack()).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(metrics.agents_dropped.get(), 1);
        last_word.send(Err(status));
        assert!(from.recv().await.unwrap().is_ok());
        assert!(from.recv().await.unwrap().unwrap_err().message().contains("reconnect"));
    }
}
