//! The Docker Engine API's paths that the control plane answers, shared by the agent's socket and
//! the control plane's router.

/// First segments of paths that only the control plane answers: the agent passes such calls on. The
/// agent itself divides calls that both answer (`/info`, `/events`, `/networks`).
pub const CONTROL_SEGMENTS: [&str; 6] = ["services", "tasks", "nodes", "swarm", "secrets", "configs"];

/// The header in every answer of a manager that waits for its cluster: the agent's socket then
/// answers as if there were no manager.
pub const NO_CLUSTER_HEADER: &str = "mesh-no-cluster";

/// The socket of the manager on a node, at which mesh-control listens and the node's agent looks
/// for it. Its directory belongs to mesh-control's user alone: in the directory of docker.sock,
/// that user could replace docker.sock.
pub const CONTROL_SOCKET: &str = "/run/mesh-control/control.sock";

/// The path of the call that makes a cluster on a manager that waits for one. Clients of the
/// agent's socket can't make it.
pub const INIT_PATH: &str = "/mesh/init";

/// The state of a node whose manager waits for `docker swarm unlock`: in `LocalNodeState` of
/// `/info`, and in the header `swarm` of `/_ping`.
pub const LOCKED: &str = "locked";

/// The path of the call for the public key to which a cluster's keys are sealed for this manager.
pub const OFFER_PATH: &str = "/mesh/offer";

/// The path of the call that makes a waiting manager one of a cluster's managers.
pub const JOIN_PATH: &str = "/mesh/join";

/// The path of the call that makes a manager give up its place: it then waits again. `force=1` also
/// if the cluster can't be told.
pub const RESIGN_PATH: &str = "/mesh/resign";

/// The path of the call that makes a manager the only one of its cluster, after the loss of the
/// others.
pub const FORCE_NEW_PATH: &str = "/mesh/force-new-cluster";

/// The path of the calls that issue, list and revoke the certificates of the Docker API's remote
/// clients.
pub const CLIENTS_PATH: &str = "/mesh/clients";

/// The path of the call for a backup of the cluster, in clear. On the control socket alone.
pub const BACKUP_PATH: &str = "/mesh/backup";

/// The path of the call that restores a backup: onto the manager's cluster, or, on a manager that
/// waits, as what the next `docker swarm init` begins with.
pub const RESTORE_PATH: &str = "/mesh/restore";
