//! How far the manager on this node is in becoming what the node's role says, for those who wait.

use std::sync::Arc;

use tokio::sync::watch;

/// How far the manager on this node is in becoming what the node's role says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Promotion {
    /// There is nothing to wait for.
    #[default]
    Settled,
    /// The node is a manager: mesh-control serves the cluster here, or should.
    Manager,
    /// It is about to become a manager.
    Becoming,
    /// It was refused, for this reason.
    Refused(String),
    /// The node leaves: its manager is left alone.
    Leaving,
}

/// The state of the manager on this node. Clones share it.
pub type Promotions = Arc<watch::Sender<Promotion>>;
