//! Simulated GPU nodes: node objects, a small scheduler and a kubelet for each node.
