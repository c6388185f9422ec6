//! Kubernetes API types of plimsoll.dev, their schemas, and conversion to the domain.
