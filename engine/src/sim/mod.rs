//! Iteration-level simulation of one replica.
