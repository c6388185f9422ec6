//! Simulated engine server, traces and their generators, load replay.

pub mod engine_server;
pub mod replay;
pub mod sse;
pub mod text;
pub mod trace;
