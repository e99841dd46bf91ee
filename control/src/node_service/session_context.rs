//! What every session with this manager works with.
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

/// What the sessions of one manager share.
pub struct SessionContext {
    /// The cluster.
    pub cluster: ApiContext,
    /// The newest mesh table.
    pub tables: watch::Receiver<Arc<Table>>,
    /// Where nodes' reports go.
    pub reports: Reports,
    /// What nodes measured of their backends.
    pub loads: Arc<Loads>,
    /// Authenticates relay preambles between members.
    pub relay_key: Zeroizing<Vec<u8>>,
    /// The node service's admission.
    pub door: Arc<Door>,
    /// Ends all sessions, with the manager.
    pub shutdown: CancellationToken,
}
