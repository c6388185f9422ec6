//! Demand forecast, plan, placement, explanation; then the service around them.
