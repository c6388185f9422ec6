//! Simulated engine server, traces and their generators, load replay.

pub mod engine_server;
pub mod text;
pub mod trace;
