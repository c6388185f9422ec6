//! Simulated engine server, traces and their generators, load replay, and a fleet in virtual time.
//!
//! - [`engine_server`]: an HTTP server that behaves like vLLM on a chosen model and accelerator (`plimsoll engine-sim`);
//! - [`group`]: how such engines form one replica over several nodes;
//! - [`fleet`]: a whole fleet in virtual time under the production code, or another policy (`plimsoll simulate`);
//! - [`trace`]: traffic traces, read from the public formats or generated;
//! - [`profile`]: measures an endpoint for calibration (`plimsoll profile`);
//! - [`replay`]: an open-loop load generator that sends a trace to any OpenAI endpoint (`plimsoll replay`).
//!
//! ```
//! use plimsoll_simulator::engine_server::{EngineServer, EngineServerConfig};
//! use plimsoll_simulator::replay::{Replay, ReplayConfig};
//! use plimsoll_simulator::trace::{GeneratorConfig, Profile, generate};
//!
//! # tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
//! let mut engine = EngineServerConfig::from_presets("llama-3.1-8b", "h100", 1, "bf16")?;
//! engine.speed = 20.0;
//! let engine = EngineServer::start(engine).await?;
//! let trace = generate(&GeneratorConfig::new(Profile::Constant { rps: 2.0 }, 10.0, 1));
//! let mut replay = ReplayConfig::new(engine.base_url(), "llama-3.1-8b", trace);
//! (replay.speed, replay.time_scale) = (20.0, 20.0);
//! let report = Replay::run(replay, |_| ()).await?;
//! assert_eq!(report.failed(), 0);
//! println!("{report}");
//! engine.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod engine_server;
pub mod fleet;
pub mod group;
pub mod profile;
pub mod replay;
pub mod sse;
pub mod text;
pub mod trace;
