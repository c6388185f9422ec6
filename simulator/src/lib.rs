//! Simulated engine server, traces and their generators, load replay.

pub mod trace;
