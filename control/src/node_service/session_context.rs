//! The dependencies of every session with this manager.
//!
//! Left to others: which sessions there are ([`super::sessions`]), and what one does
//! ([`super::session`]).

use std::sync::Arc;

use mesh_admission::door::Door;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::loads::Loads;
use super::mesh_table::Table;
use super::recorder::Reports;
use crate::context::ApiContext;

/// The dependencies that the sessions of one manager share.
pub struct SessionContext {
    /// The store and the snapshot of the cluster that the node belongs to.
    pub cluster: ApiContext,
    /// The newest mesh table.
    pub tables: watch::Receiver<Arc<Table>>,
    /// The queue for nodes' reports.
    pub reports: Reports,
    /// Load figures of nodes' backends.
    pub loads: Arc<Loads>,
    /// The key that authenticates relay preambles between members.
    pub relay_key: Zeroizing<Vec<u8>>,
    /// The limits of the node service's clients.
    pub door: Arc<Door>,
    /// Ends all sessions when the manager stops.
    pub shutdown: CancellationToken,
}
