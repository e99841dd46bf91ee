//! The Docker Engine API's paths that the control plane answers, shared by the agent's socket and
//! the control plane's router.

/// First segments of paths that only the control plane answers: the agent passes such calls on. The
/// agent itself divides calls that both answer (`/info`, `/events`, `/networks`).
pub const CONTROL_SEGMENTS: [&str; 6] = ["services", "tasks", "nodes", "swarm", "secrets", "configs"];
