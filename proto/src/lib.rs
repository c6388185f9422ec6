//! gRPC between operator, scheduler and agents.
