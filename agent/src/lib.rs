//! Routing, admission and budget spending; then the OpenAI proxy, telemetry and engine drivers around them.
