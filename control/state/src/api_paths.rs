//! The Docker Engine API's paths that the control plane answers, as the agent's socket and the
//! control plane's router both know them.

/// First segments of paths that are the cluster's alone: the agent passes such calls on to the
/// control plane unseen. Calls that both answer (`/info`, `/events`, `/networks`) are the agent's
/// to divide.
pub const CONTROL_SEGMENTS: [&str; 6] = ["services", "tasks", "nodes", "swarm", "secrets", "configs"];
