//! What a manager with an etcd of its own can be told to do, by calls on its control socket.

use tokio::sync::mpsc;

/// A call that changes what this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManagerOrder {
    /// Give up the place among the managers, and wait for a cluster again.
    Resign {
        /// Whether to do so though the cluster can't be told, or is lost with this manager.
        force: bool,
    },
    /// Become the only manager, with the data that it has.
    ForceNewCluster,
}

/// The way to order. Only one order waits at a time.
pub type Orders = mpsc::Sender<ManagerOrder>;
