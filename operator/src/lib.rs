//! Kubernetes operator: reads resources, applies plans, writes status.
