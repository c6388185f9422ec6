//! The fleet view: a small read-only page, its data as JSON, and the metrics of every part in this process.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use plimsoll_proto::v1::PoolObservation;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::nodespec::NodeFacts;
use crate::watch::FleetView;

const PAGE: &str = include_str!("view.html");

/// What the page is made from.
#[derive(Clone)]
pub struct ViewState {
    /// Newest plan and observations.
    pub fleet: watch::Receiver<FleetView>,
    /// Nodes to draw.
    pub nodes: Arc<Vec<NodeFacts>>,
    /// Metrics of the parts that run in this process.
    pub metrics: Arc<Mutex<Registry>>,
}

/// Serves the view until `stop`; the address it listens on.
///
/// # Errors
/// If the address cannot be listened on.
pub async fn start(
    listen: SocketAddr,
    state: ViewState,
    stop: CancellationToken,
) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind(listen).await.map_err(|e| {
        Failure::caused(format!("the fleet view cannot listen on {listen}"), e)
            .hint("stop what uses the port, or choose another: --view-listen 127.0.0.1:0")
    })?;
    let addr = listener.local_addr().map_err(|e| Failure::caused("the fleet view has no address", e))?;
    let router = Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/api/fleet", get(fleet))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(state);
    tokio::spawn(async move {
        let served =
            axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await });
        if let Err(error) = served.await {
            tracing::error!(%error, "the fleet view stopped");
        }
    });
    Ok(addr)
}

async fn metrics(State(state): State<ViewState>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &state.metrics.lock()) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (axum::http::StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn fleet(State(state): State<ViewState>) -> axum::Json<Value> {
    axum::Json(document(&state.fleet.borrow(), &state.nodes))
}

/// The page's data: nodes, pools (plan and observation side by side), totals.
fn document(view: &FleetView, nodes: &[NodeFacts]) -> Value {
    let observations = view.observations.clone().unwrap_or_default();
    let pools: Vec<Value> = view
        .plan
        .iter()
        .flat_map(|p| &p.pools)
        .map(|pool| {
            let id = pool.pool.to_string();
            let seen: Option<&PoolObservation> = observations.pools.iter().find(|o| o.pool == id);
            json!({
                "pool": id,
                "model": seen.map(|o| o.served_name.clone()),
                "outcome": pool.outcome.to_string(),
                "fleet": pool.fleet_text(),
                "ready": seen.map_or(0, |o| o.ready_replicas),
                "wanted": pool.replicas.len(),
                "replicas": pool.replicas.iter().map(|r| json!({
                    "id": r.id.to_string(),
                    "shape": r.shape.to_string(),
                    "gpus": r.shape.gpus(),
                    "nodes": r.nodes.iter().map(ToString::to_string).collect::<Vec<_>>(),
                })).collect::<Vec<_>>(),
                "usd_per_hour": pool.usd_per_hour,
                "watts": pool.watts,
                "grams_co2e_per_hour": pool.grams_co2e_per_hour,
                "demand_rps": pool.demand.total_rps(),
                "rps": seen.map(|o| o.rps),
                "ttft_ms": seen.and_then(|o| o.ttft_ms),
                "ttft_objective_ms": seen.and_then(|o| o.ttft_objective_ms),
                "tpot_ms": seen.and_then(|o| o.tpot_ms),
                "tpot_objective_ms": seen.and_then(|o| o.tpot_objective_ms),
                "attainment": seen.and_then(|o| o.attainment),
                "why": pool.why.summary,
            })
        })
        .collect();
    json!({
        "connected": view.connected,
        "plan": view.plan.as_ref().map(|p| p.number),
        "trigger": view.plan.as_ref().map(|p| p.trigger.clone()),
        "usd_per_hour": view.plan.as_ref().map(|p| p.usd_per_hour),
        "watts": view.plan.as_ref().map(|p| p.watts),
        "grams_co2e_per_hour": view.plan.as_ref().map(|p| p.grams_co2e_per_hour),
        "gap": view.plan.as_ref().map(|p| p.quality.gap),
        "binding": view.plan.iter().flat_map(|p| &p.binding).map(|b| json!({
            "constraint": b.constraint, "unit": b.unit, "usd_per_hour": b.usd_per_hour_per_unit,
        })).collect::<Vec<_>>(),
        "agents": observations.agents,
        "nodes": nodes.iter().map(|n| json!({
            "name": n.name, "class": n.class, "gpus": n.gpus, "zone": n.zone,
        })).collect::<Vec<_>>(),
        "pools": pools,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodespec::NodeGroups;

    #[test]
    fn an_empty_fleet_has_a_document() {
        let nodes = "1x1xl4".parse::<NodeGroups>().unwrap().nodes();
        let value = document(&FleetView::default(), &nodes);
        assert_eq!(value["nodes"][0]["name"], "l4-1");
        assert_eq!(value["pools"], json!([]));
        assert_eq!(value["plan"], Value::Null);
    }
}
