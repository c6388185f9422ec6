//! Performance and memory model of one replica, and its step-level simulation. Pure.
