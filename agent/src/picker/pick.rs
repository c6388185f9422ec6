//! Where a request is to go: the proxy's choice, and whom it is refused by.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use plimsoll_fleet::{Endpoint, HandOverProtocol};

use crate::body::{Api, Parsed};
use crate::openai::ApiError;
use crate::proxy::account::{Account, Outcome};
use crate::proxy::handler::Proxy;
use crate::proxy::headers::{self as names, positive};
use crate::proxy::routing::{Held, Opened, question};
use crate::replica::Flight;
use crate::route::Ranked;
use crate::shared::Pool;

/// A request that has been given endpoints.
#[derive(Debug)]
pub(super) struct Picked {
    pub(super) account: Account,
    pub(super) pool: Arc<Pool>,
    /// In the order in which they are to be tried; never empty.
    pub(super) order: Vec<Ranked>,
    /// Its place at the first, or at whoever served it.
    pub(super) flight: Flight,
}

impl Picked {
    /// The endpoint of a choice.
    pub(super) fn endpoint(&self, ranked: &Ranked) -> &Endpoint {
        &self.pool.view.route.endpoints[ranked.endpoint]
    }

    /// Addresses, for the header and the metadata.
    pub(super) fn addresses(&self) -> String {
        let of = |r: &Ranked| self.endpoint(r).engine_address.as_str();
        self.order.iter().map(of).collect::<Vec<_>>().join(",")
    }

    /// Whom the first is to have the prompt computed by, for a sidecar beside it.
    pub(super) fn prefiller(&self) -> Option<&str> {
        let partner = self.order.first()?.prefill?;
        Some(&self.pool.view.route.endpoints[partner.endpoint].engine_address)
    }
}

/// Why a request is refused though there are endpoints: it has priority below zero and would wait wherever it went, or no
/// endpoint would finish it before its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shed {
    Sheddable,
    Late,
}

/// Decides from predictions alone: the engines' agents are not asked. A wait counts as one once it is longer than the objective
/// for the first token; without one, than the prompt itself takes.
fn shed(
    order: &[Ranked],
    priority: i32,
    ttft_objective_ms: Option<f64>,
    left_ms: Option<f64>,
) -> Option<Shed> {
    let all = |waits: &dyn Fn(&Ranked) -> bool| !order.is_empty() && order.iter().all(waits);
    let longest = |r: &Ranked| ttft_objective_ms.unwrap_or(r.prediction.prefill_ms);
    if priority < 0 && all(&|r| r.prediction.queue_ms > longest(r)) {
        return Some(Shed::Sheddable);
    }
    left_ms.is_some_and(|left| all(&|r| r.prediction.e2e_ms() > left)).then_some(Shed::Late)
}

impl Proxy {
    /// Gives a request endpoints, of `subset` if there is one. Waits for a pool to wake as the proxy does.
    ///
    /// # Errors
    /// What the client is to be told: 404 for an unknown model, 503 without a ready endpoint, 429 for what is shed, late
    /// or over budget.
    pub(super) async fn pick(
        &self,
        headers: &HeaderMap,
        api: Api,
        parsed: &mut Parsed,
        subset: Option<&[String]>,
    ) -> Result<Picked, ApiError> {
        let shared = &self.shared;
        if let Some(group) = self.group_named(headers, parsed)? {
            // Bodies go on as they are, and name the group, which engines do not know.
            let message = format!(
                "{group:?} is a group of adapters, among which Plimsoll's own gateway alone chooses; name one of them, see GET /v1/models"
            );
            return Err(ApiError::invalid(http::StatusCode::BAD_REQUEST, "adapter_group", message)
                .with_param("model"));
        }
        let of_table = |model: &str| shared.table.load().by_name.get(model).cloned();
        let pool = of_table(&parsed.model).ok_or_else(|| self.unknown_model(&parsed.model))?;
        let Opened { mut account, ttft_objective_ms } = self.open(headers, api, parsed, &pool, None)?;
        let parsed = &*parsed;
        let deadline_ms = positive(headers, &[names::DEADLINE_MS]).map(|ms| account.begun_ms() + ms);
        let mut held: Option<Held> = None;
        loop {
            // Subscribed before the table is read, so that no change is missed.
            let mut changed = shared.changed.subscribe();
            let Some(pool) = of_table(&parsed.model) else {
                account.settle(Outcome::Refused, None);
                return Err(self.unknown_model(&parsed.model));
            };
            account.pool = pool.clone();
            let class = account.class.clone();
            let question = question(parsed, ttft_objective_ms, &class, account.sizes(), &pool);
            let endpoints = &pool.view.route.endpoints;
            let in_subset = |e: &Endpoint| subset.is_none_or(|s| s.contains(&e.engine_address));
            // Bodies go on as they are: who knows the model by another name would not know what is meant.
            let may = |e: &Endpoint| {
                in_subset(e) && (e.engine_model == parsed.model || pool.view.is_adapter(&parsed.model))
            };
            let mut choice = self.choose_among(&pool, &question, may);
            // A decode engine that does not prefill needs a proxy that asks both.
            let asks_both =
                |e: &Endpoint| e.hand_over.as_ref().is_some_and(|h| h.protocol == HandOverProtocol::Sglang);
            choice.order.retain(|r| !asks_both(&endpoints[r.endpoint]));
            let mut seen = Vec::with_capacity(choice.order.len());
            choice.order.retain(|r| {
                !seen.contains(&r.endpoint) && {
                    seen.push(r.endpoint);
                    true
                }
            });
            let Some(first) = choice.order.first().copied() else {
                if subset.is_some() && !endpoints.iter().any(in_subset) {
                    account.settle(Outcome::Refused, None);
                    return Err(ApiError::server(
                        http::StatusCode::SERVICE_UNAVAILABLE,
                        "not_ready",
                        format!("none of the endpoints that the gateway allows serves {:?}", parsed.model),
                    ));
                }
                if held.is_none() {
                    held = Held::begin(shared, &pool, &class);
                }
                let waited = match &held {
                    Some(_) => self.hold(&pool, choice.excluded, &account, &mut changed).await,
                    None => Err(ApiError::busy(
                        "too_many_waiting",
                        format!("too many requests wait for {:?} already", parsed.model),
                        Duration::from_secs(5),
                    )),
                };
                if let Err(e) = waited {
                    account.settle(Outcome::Refused, None);
                    return Err(e);
                }
                continue;
            };
            let now = shared.clock.now_ms();
            let priority = names::priority(headers, &pool.view.route);
            if let Some(why) = shed(&choice.order, priority, ttft_objective_ms, deadline_ms.map(|d| d - now))
            {
                account.settle(Outcome::Refused, None);
                let waits = choice.order.iter().map(|r| r.prediction.queue_ms).fold(f64::INFINITY, f64::min);
                let after = shared.clock.real(waits).clamp(Duration::from_secs(1), Duration::from_secs(60));
                return Err(match why {
                    Shed::Sheddable => ApiError::busy(
                        "displaced",
                        format!(
                            "every replica of {:?} has requests of a higher priority waiting; try again later",
                            parsed.model
                        ),
                        after,
                    ),
                    Shed::Late => ApiError::busy(
                        "deadline",
                        format!(
                            "no replica of {:?} can meet the deadline; allow more than {} asks, or try again later",
                            parsed.model,
                            names::DEADLINE_MS
                        ),
                        after,
                    ),
                });
            }
            self.count_choice(first.reason);
            let sizes = account.sizes();
            let replica = pool.replicas[first.endpoint].clone();
            let flight = match first.prefill {
                Some(_) => Flight::prefilled(replica, sizes.prompt_tokens),
                None => Flight::new(replica, sizes.prompt_tokens - first.cached_tokens),
            };
            return Ok(Picked { pool: pool.clone(), order: choice.order, flight, account });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::route::{Prediction, Reason};

    fn ranked(queue_ms: f64, prefill_ms: f64, decode_ms: f64) -> Ranked {
        Ranked {
            endpoint: 0,
            prediction: Prediction { queue_ms, prefill_ms, decode_ms },
            cached_tokens: 0.0,
            reason: Reason::Completion,
            prefill: None,
        }
    }

    fn adapter(name: &str, group: Option<&str>) -> plimsoll_fleet::AdapterRoute {
        let replica = vec![plimsoll_fleet::ReplicaId::new("r1").unwrap()];
        plimsoll_fleet::AdapterRoute {
            served_name: name.into(),
            source: format!("hf://acme/{name}"),
            placed: replica.clone(),
            held: replica,
            group: group.map(str::to_owned),
            load_ms: 27.0,
            ..Default::default()
        }
    }

    fn gateway() -> Proxy {
        let proxy = Proxy::new_for_tests(crate::config::AgentConfig::new("gw"));
        let endpoint = Endpoint {
            replica: plimsoll_fleet::ReplicaId::new("r1").unwrap(),
            node: plimsoll_fleet::NodeName::new("n1").unwrap(),
            zone: "a".into(),
            role: plimsoll_fleet::Role::Mixed,
            agent_address: None,
            engine_address: "127.0.0.1:1".into(),
            engine_model: "chat".into(),
            weights: Vec::new(),
            coefficients: plimsoll_fleet::StepCoefficients {
                base_ms: 10.0,
                per_request_ms: 0.1,
                per_context_token_ms: 1e-4,
                per_prefill_token_ms: 0.05,
                api_overhead_ms: 1.0,
                kv_tokens: 1e6,
                max_running: 256,
                max_batched_tokens: 8192,
            },
            draining: false,
            engine: plimsoll_fleet::EngineKind::Vllm,
            hand_over: None,
        };
        let pool = plimsoll_fleet::PoolRoute {
            pool: "default/chat".parse().unwrap(),
            served_name: "chat".into(),
            slo_classes: Vec::new(),
            priority: 0,
            max_context_tokens: 8192,
            endpoints: vec![endpoint],
            wake_wait_ms: 0.0,
            usd_per_million_tokens: (0.0, 0.0),
            unavailable_reason: String::new(),
            objectives: Vec::new(),
            adapters: vec![adapter("law", None), adapter("sql", Some("tasks"))],
        };
        let table = plimsoll_fleet::RouteTable { version: 1, pools: vec![pool], ..Default::default() };
        proxy.shared.install(table, "epoch".into());
        proxy
    }

    fn asked(model: &str) -> Parsed {
        let text = "What is a load line? ".repeat(40);
        let body = serde_json::json!({"model": model, "messages": [{"role": "user", "content": text}]});
        crate::body::parse(Api::Chat, body.to_string().as_bytes()).unwrap()
    }

    #[tokio::test]
    async fn requests_for_adapters_are_counted_and_their_prompts_cached_apart() {
        let proxy = gateway();
        let (none, seen) = (HeaderMap::new(), |model: &str| asked(model));
        let mut prompts = Vec::new();
        for model in ["chat", "law", "sql", "sql"] {
            let mut parsed = seen(model);
            proxy.pick(&none, Api::Chat, &mut parsed, None).await.unwrap();
            prompts.push(parsed.prefix);
        }
        let demand = proxy.shared.book.lock().take_adapters();
        assert_eq!(demand, [("law".to_owned(), 1), ("sql".to_owned(), 2)]);
        assert!(!prompts[0].is_empty());
        assert_eq!(prompts[2], prompts[3]);
        assert!(prompts[0] != prompts[1] && prompts[1] != prompts[2] && prompts[0] != prompts[2]);
        // The second of the same is expected where the first went; another adapter's cache is no use to it.
        let again = proxy.pick(&none, Api::Chat, &mut seen("sql"), None).await.unwrap();
        assert!(again.order[0].cached_tokens > 0.0);
        let fresh = gateway();
        fresh.pick(&none, Api::Chat, &mut seen("law"), None).await.unwrap();
        let other = fresh.pick(&none, Api::Chat, &mut seen("sql"), None).await.unwrap();
        assert_eq!(other.order[0].cached_tokens, 0.0);
    }

    #[tokio::test]
    async fn groups_are_chosen_among_by_the_gateway_alone() {
        let proxy = gateway();
        let by_header =
            HeaderMap::from_iter([(names::ADAPTER_GROUP, http::HeaderValue::from_static("tasks"))]);
        for (headers, model) in [(HeaderMap::new(), "tasks"), (by_header, "chat")] {
            let error = proxy.pick(&headers, Api::Chat, &mut asked(model), None).await.unwrap_err();
            assert_eq!((error.status.as_u16(), error.code), (400, "adapter_group"), "{}", error.message);
        }
        assert!(proxy.shared.book.lock().take_adapters().is_empty());
    }

    #[test]
    fn only_what_may_be_shed_is_shed_and_only_where_it_would_wait_everywhere() {
        let busy = [ranked(500.0, 100.0, 1.0), ranked(900.0, 100.0, 1.0)];
        assert_eq!(shed(&busy, -1, None, None), Some(Shed::Sheddable));
        assert_eq!(shed(&busy, 0, None, None), None);
        assert_eq!(shed(&busy, -1, Some(600.0), None), None, "one meets the objective");
        assert_eq!(shed(&[ranked(0.0, 100.0, 1.0), busy[0]], -1, None, None), None);
        assert_eq!(shed(&busy, 5, None, Some(400.0)), Some(Shed::Late));
        assert_eq!(shed(&busy, 5, None, Some(700.0)), None);
        assert_eq!(shed(&[], -1, None, Some(0.0)), None);
    }
}
