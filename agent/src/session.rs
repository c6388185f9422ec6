//! The stream to the scheduler: reports up; routes, drains and leases down. It reconnects for ever, and nothing on the
//! request path waits for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use plimsoll_fleet::telemetry::AgentReport;
use plimsoll_fleet::{ReplicaId, RouteTable};
use plimsoll_proto::convert::apply_route_delta;
use plimsoll_proto::tls;
use plimsoll_proto::v1;
use plimsoll_proto::v1::agent_service_client::AgentServiceClient;
use plimsoll_proto::v1::scheduler_message::Message;
use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::engines;
use crate::metrics::AgentLabels;
use crate::proxy::upstream::chain;
use crate::shared::Shared;
use crate::telemetry::Outbox;

const BACKOFF_LEAST: Duration = Duration::from_millis(200);
const BACKOFF_MOST: Duration = Duration::from_secs(10);
/// A stream on which the scheduler acknowledges nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(15);

/// However urgent, reports are at least so far apart.
const REPORT_GAP: Duration = Duration::from_millis(20);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("cannot connect: {}", chain(.0))]
    Connect(#[from] tonic::transport::Error),
    #[error("{0}")]
    Address(#[from] tls::TlsError),
    #[error("{0}")]
    Status(#[from] tonic::Status),
    #[error("the scheduler closed the stream")]
    Closed,
    #[error(
        "a route delta from version {base} does not fit the table of version {held}; asking for a full one"
    )]
    Delta { base: u64, held: u64 },
    #[error("a message could not be used: {0}")]
    Message(#[from] plimsoll_proto::InvalidMessage),
    #[error("nothing was acknowledged for {SILENCE:?}")]
    Silence,
}

/// Runs until cancelled.
pub(crate) async fn run(shared: Arc<Shared>, scheduler: String, stop: CancellationToken) {
    let outbox = Mutex::new(Outbox::default());
    let mut backoff = BACKOFF_LEAST;
    let label = AgentLabels { agent: shared.config.name.clone() };
    let connected = shared.config.metrics.scheduler_connected.clone();
    let mut cut_at = Instant::now();
    let mut full_table = false;
    loop {
        let began = Instant::now();
        let end = tokio::select! {
            () = stop.cancelled() => return,
            end = session(&shared, &scheduler, &outbox, &mut cut_at, full_table) => end,
        };
        connected.get_or_create(&label).set(0);
        full_table = matches!(end, SessionEnd::Delta { .. } | SessionEnd::Message(_));
        tracing::info!(%scheduler, reason = %end, "no stream to the scheduler; routing by the last table");
        if began.elapsed() > Duration::from_secs(30) {
            backoff = BACKOFF_LEAST;
        }
        let wait = backoff.mul_f64(rand::rng().random_range(0.5..1.5));
        backoff = (backoff * 2).min(BACKOFF_MOST);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn session(
    shared: &Arc<Shared>,
    scheduler: &str,
    outbox: &Mutex<Outbox>,
    cut_at: &mut Instant,
    full_table: bool,
) -> SessionEnd {
    match converse(shared, scheduler, outbox, cut_at, full_table).await {
        Ok(()) => SessionEnd::Closed,
        Err(end) => end,
    }
}

async fn converse(
    shared: &Arc<Shared>,
    scheduler: &str,
    outbox: &Mutex<Outbox>,
    cut_at: &mut Instant,
    full_table: bool,
) -> Result<(), SessionEnd> {
    let tls = shared.config.tls.as_ref().map(|tls| &tls.scheduler);
    let endpoint = tls::endpoint(scheduler, tls)?
        .connect_timeout(Duration::from_secs(3))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    let channel = tls::connect(&endpoint, tls).await?;
    let mut client = AgentServiceClient::new(channel).max_decoding_message_size(256 << 20);
    let (tx, rx) = mpsc::channel::<v1::AgentMessage>(32);
    let hello = {
        let table = shared.table.load();
        v1::Hello {
            agent: shared.config.name.clone(),
            node: shared.config.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            address: shared.address.clone(),
            incarnation: shared.incarnation,
            route_version: if full_table { 0 } else { table.routes.version },
            route_epoch: if full_table { String::new() } else { table.epoch.clone() },
        }
    };
    let send = |message| v1::AgentMessage { message: Some(message) };
    // The channel is empty and holds more than this: nothing here can wait.
    let _ = tx.try_send(send(v1::agent_message::Message::Hello(hello)));
    let again: Vec<v1::AgentReport> = outbox.lock().unacknowledged().map(Into::into).collect();
    for report in again {
        let _ = tx.try_send(send(v1::agent_message::Message::Report(report)));
    }
    let mut inbound = client.session(ReceiverStream::new(rx)).await?.into_inner();
    shared
        .config
        .metrics
        .scheduler_connected
        .get_or_create(&AgentLabels { agent: shared.config.name.clone() })
        .set(1);
    tracing::info!(%scheduler, "stream to the scheduler is open");

    let mut tick = tokio::time::interval(shared.config.limits.report_interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let mut reported = *cut_at;
    loop {
        let mut report = false;
        tokio::select! {
            message = inbound.message() => match message? {
                None => return Ok(()),
                Some(message) => {
                    heard = Instant::now();
                    take_in(shared, outbox, message.message).await?;
                }
            },
            _ = tick.tick() => report = true,
            () = shared.report_now.notified(), if reported.elapsed() >= REPORT_GAP => report = true,
        }
        let room = outbox.lock().has_room();
        if report && room {
            reported = Instant::now();
            let made = make_report(shared, cut_at);
            let wire = v1::AgentReport::from(outbox.lock().add(made));
            if tx.try_send(send(v1::agent_message::Message::Report(wire))).is_err() && tx.is_closed() {
                return Ok(());
            }
        }
        if !outbox.lock().has_room() && heard.elapsed() > SILENCE {
            return Err(SessionEnd::Silence);
        }
    }
}

/// Everything since the last report. The interval is real time: the scheduler knows how fast its time runs.
fn make_report(shared: &Shared, cut_at: &mut Instant) -> AgentReport {
    let now = Instant::now();
    let interval_seconds = now.duration_since(std::mem::replace(cut_at, now)).as_secs_f64();
    let (traffic, replicas, adapters) = {
        let mut book = shared.book.lock();
        (book.take(), book.take_replicas(), book.take_adapters())
    };
    AgentReport {
        agent: shared.config.name.clone(),
        node: shared.config.node.clone(),
        address: shared.address.clone(),
        sequence: 0,
        incarnation: shared.incarnation,
        interval_seconds,
        traffic,
        engines: engines::reports(shared),
        replicas,
        route_version: shared.table.load().routes.version,
        adapters,
    }
}

async fn take_in(
    shared: &Arc<Shared>,
    outbox: &Mutex<Outbox>,
    message: Option<Message>,
) -> Result<(), SessionEnd> {
    match message {
        Some(Message::Routes(wire)) => {
            let epoch = wire.epoch.clone();
            let table = RouteTable::try_from(wire)?;
            let current = shared.table.load();
            if current.epoch == epoch && table.version < current.routes.version {
                tracing::warn!(
                    version = table.version,
                    held = current.routes.version,
                    "ignored an older route table"
                );
                return Ok(());
            }
            drop(current);
            install(shared, table, epoch).await;
        }
        Some(Message::Delta(delta)) => {
            let current = shared.table.load_full();
            let base = delta.base_version;
            match apply_route_delta(&current.routes, delta)? {
                Some(table) => install(shared, table, current.epoch.clone()).await,
                None => return Err(SessionEnd::Delta { base, held: current.routes.version }),
            }
        }
        Some(Message::Ack(ack)) => outbox.lock().acknowledge(ack.sequence),
        Some(Message::Drains(drains)) => {
            let named: BTreeSet<ReplicaId> =
                drains.replicas.into_iter().filter_map(|r| ReplicaId::new(r).ok()).collect();
            tracing::info!(replicas = ?named.iter().map(ReplicaId::as_str).collect::<Vec<_>>(), "drains");
            shared.set_drains(named);
            shared.report_now.notify_one();
        }
        Some(Message::Leases(leases)) => {
            let mut ledger = shared.spend.lock();
            for lease in leases.leases {
                ledger.grant(&lease.budget, lease.epoch, lease.amount, lease.expires_at_ms);
            }
        }
        None => {}
    }
    Ok(())
}

/// Makes a table current, then keeps it on disk. A disk that fails costs only the next start.
async fn install(shared: &Arc<Shared>, table: RouteTable, epoch: String) {
    tracing::info!(version = table.version, plan = table.plan, pools = table.pools.len(), "new route table");
    shared.install(table, epoch);
    let Some(dir) = shared.config.state_dir.clone() else { return };
    let current = shared.table.load_full();
    let saved =
        tokio::task::spawn_blocking(move || crate::persist::save(&dir, &current.routes, &current.epoch))
            .await;
    match saved {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the route table was not kept"),
        Err(error) => tracing::warn!(%error, "the route table was not kept"),
    }
}
