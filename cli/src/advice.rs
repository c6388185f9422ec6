//! The advised number of replicas over HTTP, for autoscalers that actuate what Plimsoll advises.
//!
//! `/advice/NAMESPACE/POOL[/ACCELERATOR]` answers in JSON, `/metrics/NAMESPACE/POOL[/ACCELERATOR]` in Prometheus's text
//! format with that one number.

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use plimsoll_scheduler::advice::{Advice, Advised, NoAdvice};
use serde_json::json;

/// The routes.
pub fn router(advised: Advised) -> Router {
    Router::new()
        .route("/advice/{namespace}/{pool}", get(as_json))
        .route("/advice/{namespace}/{pool}/{accelerator}", get(as_json_on))
        .route("/metrics/{namespace}/{pool}", get(as_text))
        .route("/metrics/{namespace}/{pool}/{accelerator}", get(as_text_on))
        .with_state(advised)
}

type Of = Path<(String, String)>;
type On = Path<(String, String, String)>;

async fn as_json(State(advised): State<Advised>, Path((namespace, pool)): Of) -> Response {
    answer(advised.find(&namespace, &pool, None), |advice| Json(advice).into_response())
}

async fn as_json_on(State(advised): State<Advised>, Path((namespace, pool, class)): On) -> Response {
    answer(advised.find(&namespace, &pool, Some(&class)), |advice| Json(advice).into_response())
}

async fn as_text(State(advised): State<Advised>, Path((namespace, pool)): Of) -> Response {
    answer(advised.find(&namespace, &pool, None), text)
}

async fn as_text_on(State(advised): State<Advised>, Path((namespace, pool, class)): On) -> Response {
    answer(advised.find(&namespace, &pool, Some(&class)), text)
}

fn text(advice: Advice) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], advice.to_prometheus()).into_response()
}

fn answer(found: Result<Advice, NoAdvice>, form: impl Fn(Advice) -> Response) -> Response {
    match found {
        Ok(advice) => form(advice),
        // An autoscaler keeps what it has while there is no number; a zero would be one.
        Err(why) => {
            let status = match why {
                NoAdvice::NoPlan => StatusCode::SERVICE_UNAVAILABLE,
                NoAdvice::NoPool(_) => StatusCode::NOT_FOUND,
            };
            (status, Json(json!({"error": why.to_string()}))).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_advice_is_an_error_and_not_a_zero() {
        let status = |why| answer(Err(why), text).status().as_u16();
        assert_eq!(status(NoAdvice::NoPlan), 503);
        assert_eq!(status(NoAdvice::NoPool("a/b".to_owned())), 404);
    }
}
