//! Hand-overs of KV caches between simulated engines, by vLLM's and SGLang's protocols.
//!
//! **vLLM**: a request with `kv_transfer_params.do_remote_decode` leaves the prompt's cache here; the answer's own
//! `kv_transfer_params` say where. A request with `do_remote_prefill` takes it from there. **SGLang**: both engines get
//! `bootstrap_host`, `bootstrap_port` and `bootstrap_room`; the decode engine waits in that room for the prefill engine, which answers
//! once the cache was taken. Real engines move bytes over NIXL or Mooncake; these ask each other at `POST /hand_over/NAME`, on
//! the port that they serve on, and then wait as long as the bytes would take.
//!
//! A cache that nobody holds, was taken already or belongs to another prompt is refused.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use plimsoll_engine::{KvTransfer, LinkTier};
use plimsoll_fleet::Role;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::api::ApiError;
use super::clock::VirtualClock;
use super::config::EngineServerConfig;

/// How long a cache is kept for whoever takes it, virtual time; vLLM's own default.
const KEPT_FOR: Duration = Duration::from_secs(480);
/// How long a decode engine waits for the other to come to their room, virtual time.
const ROOM_WITHIN: Duration = Duration::from_secs(30);
/// Longest time to connect to another engine, wall time.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Most that another engine's word takes, bytes.
const LONGEST: usize = 64 << 10;

/// What a request says of a hand-over.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Told {
    kv_transfer_params: Option<Value>,
    bootstrap_host: Option<String>,
    bootstrap_port: Option<u16>,
    bootstrap_room: Option<u64>,
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// Nothing: one engine serves the request.
    None,
    /// Compute the prompt and keep its cache until it is taken.
    Leave,
    /// The same, and answer once it was taken from this room.
    Room(String),
    /// Take the cache of this name from the engine at this address.
    Take { address: String, name: String },
}

impl Told {
    /// Whether two engines meet in a room, to which either may come first.
    pub(super) fn meets(&self) -> bool {
        self.bootstrap_room.is_some()
    }

    /// Reads it as an engine of this role does.
    pub(super) fn part(&self, config: &EngineServerConfig) -> Result<Part, ApiError> {
        let role = config.shape.role;
        let text = |params: &Value, key: &str| params[key].as_str().map(str::to_owned);
        if let Some(room) = self.bootstrap_room {
            return match role {
                Role::Prefill => Ok(Part::Room(room.to_string())),
                Role::Decode => {
                    let host = self.bootstrap_host.as_deref().unwrap_or_default();
                    let port = self.bootstrap_port.unwrap_or(8998);
                    Ok(Part::Take { address: format!("{host}:{port}"), name: room.to_string() })
                }
                Role::Mixed => Ok(Part::None),
            };
        }
        if config.needs_room && role != Role::Mixed {
            return Err(ApiError::bad(
                Some("bootstrap_room"),
                "Invalid request: Disaggregated request received without bootstrap room id.",
            ));
        }
        let Some(params) = self.kv_transfer_params.as_ref().filter(|p| p.is_object()) else {
            return Ok(Part::None);
        };
        if params["do_remote_decode"] == true {
            return Ok(Part::Leave);
        }
        if params["do_remote_prefill"] != true {
            return Ok(Part::None);
        }
        let bad = |what: &str| ApiError::bad(Some("kv_transfer_params"), what.to_owned());
        if role != Role::Decode {
            return Err(bad("kv_transfer_params: do_remote_prefill is for decode engines."));
        }
        let (Some(host), Some(port), Some(name)) =
            (text(params, "remote_host"), params["remote_port"].as_u64(), text(params, "remote_request_id"))
        else {
            return Err(bad(
                "kv_transfer_params: remote_host, remote_port and remote_request_id are needed.",
            ));
        };
        Ok(Part::Take { address: format!("{host}:{port}"), name })
    }
}

/// A prompt's cache, as another engine sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cache {
    pub(super) fingerprint: u64,
    pub(super) prompt_tokens: u32,
    pub(super) tensor_parallel: u32,
}

#[derive(Debug, Clone, PartialEq)]
enum Stand {
    /// The prompt is being computed.
    Computing,
    /// It waits to be taken, until this virtual time.
    Ready(Cache, f64),
    /// Somebody has it.
    Taken,
}

/// The caches that an engine keeps for others.
pub(super) struct Keeper {
    places: Mutex<HashMap<String, watch::Sender<Stand>>>,
    /// Counts new places.
    opened: watch::Sender<u64>,
    clock: VirtualClock,
    client: Client<HttpConnector, Full<Bytes>>,
    transfer: KvTransfer,
}

/// A place with a prompt's cache, or one to come. Dropped before it is ready, it is gone.
pub(super) struct Place {
    keeper: Arc<Keeper>,
    name: String,
    stand: watch::Receiver<Stand>,
    kept: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.kept {
            self.keeper.places.lock().remove(&self.name);
        }
    }
}

impl Place {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The cache is there.
    pub(super) fn ready(&self, cache: Cache) {
        let until = self.keeper.clock.now_ms() + 1e3 * KEPT_FOR.as_secs_f64();
        if let Some(place) = self.keeper.places.lock().get(&self.name) {
            place.send_replace(Stand::Ready(cache, until));
        }
    }

    /// Leaves it for whoever takes it.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }

    /// Waits until somebody has taken it.
    pub(super) async fn taken(&mut self) -> Result<(), ApiError> {
        let within = self.keeper.clock.scaled(KEPT_FOR);
        match tokio::time::timeout(within, self.stand.wait_for(|s| *s == Stand::Taken)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ApiError::internal("KVTransferError: nobody came to take the KV cache.")),
        }
    }
}

impl Keeper {
    pub(super) fn new(config: &EngineServerConfig, clock: VirtualClock) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_WITHIN));
        let side = (&config.accelerator, &config.shape);
        Self {
            places: Mutex::default(),
            opened: watch::Sender::new(0),
            clock,
            client: Client::builder(TokioExecutor::new()).build(connector),
            transfer: KvTransfer::new(&config.architecture, &config.variant, side, side, LinkTier::Network),
        }
    }

    /// Opens a place for a prompt that is about to be computed.
    pub(super) fn open(self: &Arc<Self>, name: &str) -> Result<Place, ApiError> {
        let (sender, stand) = watch::channel(Stand::Computing);
        let now = self.clock.now_ms();
        let mut places = self.places.lock();
        // What nobody came for.
        places.retain(|_, place| match &*place.borrow() {
            Stand::Ready(_, until) => *until > now,
            Stand::Taken => place.receiver_count() > 0,
            Stand::Computing => true,
        });
        if places.contains_key(name) {
            return Err(ApiError::bad(Some("bootstrap_room"), format!("room {name} is in use.")));
        }
        places.insert(name.to_owned(), sender);
        drop(places);
        self.opened.send_modify(|n| *n += 1);
        Ok(Place { keeper: self.clone(), name: name.to_owned(), stand, kept: false })
    }

    /// Gives a cache away, once it is there. `wait`: whoever computes it may have yet to come.
    pub(super) async fn give(&self, name: &str, wait: bool) -> Result<Cache, ApiError> {
        let unknown = || ApiError {
            status: StatusCode::NOT_FOUND,
            kind: "NotFoundError",
            param: None,
            message: format!("there is no KV cache {name} here."),
        };
        let until = tokio::time::Instant::now() + self.clock.scaled(ROOM_WITHIN);
        let mut opened = self.opened.subscribe();
        let mut stand = loop {
            let known = self.places.lock().get(name).map(watch::Sender::subscribe);
            match known {
                Some(stand) => break stand,
                None if wait => {
                    let Ok(Ok(())) = tokio::time::timeout_at(until, opened.changed()).await else {
                        return Err(unknown());
                    };
                }
                None => return Err(unknown()),
            }
        };
        stand.wait_for(|s| *s != Stand::Computing).await.map_err(|_| unknown())?;
        let places = self.places.lock();
        let place = places.get(name).ok_or_else(unknown)?;
        match place.send_replace(Stand::Taken) {
            Stand::Ready(cache, _) => Ok(cache),
            Stand::Computing | Stand::Taken => Err(unknown()),
        }
    }

    /// Takes a cache from another engine and says how long its way here is, virtual milliseconds.
    pub(super) async fn take(
        &self,
        address: &str,
        name: &str,
        own: &Cache,
        wait: bool,
    ) -> Result<f64, ApiError> {
        let failed = |why: String| ApiError::internal(format!("KV load failed: {why}"));
        let request = Request::post(format!("http://{address}/hand_over/{name}?wait={wait}"))
            .body(Full::default())
            .map_err(|e| failed(format!("{address}: {e}")))?;
        let answer = self.client.request(request).await.map_err(|e| failed(format!("{address}: {e}")))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LONGEST).collect().await;
        let body = body.map_err(|e| failed(format!("{address}: {e}")))?.to_bytes();
        if !status.is_success() {
            return Err(failed(format!("{address} answered {status}: {}", String::from_utf8_lossy(&body))));
        }
        let theirs: Cache = serde_json::from_slice(&body).map_err(|e| failed(format!("{address}: {e}")))?;
        let (a, b) = (theirs.tensor_parallel, own.tensor_parallel);
        if (theirs.fingerprint, theirs.prompt_tokens) != (own.fingerprint, own.prompt_tokens) {
            return Err(failed("it is the cache of another prompt.".to_owned()));
        }
        if !plimsoll_fleet::pairing::splits_fit(a, b) {
            return Err(failed(format!("its heads are split {a} ways, {b} do not fit.")));
        }
        Ok(self.transfer.ms(f64::from(own.prompt_tokens)))
    }
}

/// What vLLM's answer says of where the cache lies.
pub(super) fn kept_at(addr: std::net::SocketAddr, name: &str, blocks: usize, tensor_parallel: u32) -> Value {
    json!({
        "do_remote_prefill": true, "do_remote_decode": false, "remote_engine_id": addr.to_string(),
        "remote_block_ids": (0..blocks).collect::<Vec<_>>(), "remote_request_id": name,
        "remote_host": addr.ip().to_string(), "remote_port": addr.port(), "tp_size": tensor_parallel,
    })
}
