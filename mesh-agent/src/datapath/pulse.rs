//! Once-a-second work: writes loads and slow-start weights to the maps, and serves the passive
//! health check.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mesh_state::ids::BackendId;
use mesh_state::spec::Protocol;
use tracing::{info, warn};

use super::contents::Frontend;
use super::diff::frontend;
use super::engine::Datapath;
use super::error::DatapathError;
use super::lock::lock;
use super::network::upkeep::HostSettings;
use super::sweep::monotonic_ns;
use crate::lb::health::Handshakes;
use crate::lb::loads::HEARSAY_AGE;

impl Datapath {
    /// Writes the loads of this node's own backends, which replace any others.
    ///
    /// # Errors
    /// A map refuses one.
    pub fn note_own_loads(&self, loads: &[(BackendId, u8)]) -> Result<(), DatapathError> {
        lock(&self.state).note_loads(loads, monotonic_ns(), 0)
    }

    /// Does the work of one second; `since` is when it was done last.
    ///
    /// # Errors
    /// A map can't be read or written.
    pub(super) fn pulse(&self, since: Instant) -> Result<u64, DatapathError> {
        let heard = self.config.loads.changed_since(since);
        let age_ns = u64::try_from(HEARSAY_AGE.as_nanos()).unwrap_or(u64::MAX);
        let mut state = lock(&self.state);
        state.note_loads(&heard, monotonic_ns(), age_ns)?;
        let now = Instant::now();
        state.raise_weights(now);
        state.reconcile(now)
    }

    /// Checks the host's settings; all of them if `thoroughly`.
    pub(super) fn look_after_host(&self, thoroughly: bool) {
        lock(&self.upkeep).look(thoroughly);
    }

    /// The state of the host's settings.
    ///
    /// # Errors
    /// Another thread failed in the middle of a change.
    pub fn host_settings(&self) -> Result<HostSettings, DatapathError> {
        Ok(lock(&self.upkeep).settings.clone())
    }

    /// The programs' handshake counters of these backends.
    ///
    /// # Errors
    /// A map can't be read.
    pub fn handshakes(
        &self,
        backends: &[BackendId],
    ) -> Result<BTreeMap<BackendId, Handshakes>, DatapathError> {
        let counted = backends.iter().map(|id| {
            let stats = self.counters.backend_stats(id.get())?;
            let failed = stats.refused + stats.unanswered;
            Ok((*id, Handshakes { answered: stats.answered, failed }))
        });
        let counted: Result<_, DatapathError> = counted.collect();
        self.published.counted(counted)
    }

    /// Leaves exactly these ports to the host stack, with a table or without. Ports that were left
    /// to it before belong to their services again.
    ///
    /// # Errors
    /// A map refuses a change; the next change of any kind tries again.
    pub fn leave_to_host(&self, ports: &BTreeSet<(Protocol, u16)>) -> Result<(), DatapathError> {
        let mut state = lock(&self.state);
        let ports: BTreeSet<Frontend> =
            ports.iter().map(|(protocol, port)| frontend(*protocol, *port)).collect();
        for port in state.leave_to_host(ports) {
            if state.facts().host_ports.contains(&port) {
                warn!(%port, "a published port is the host's own here: its packets are left to the host");
            } else {
                info!(%port, "a published port is no longer the host's own: its packets go to the service");
            }
        }
        state.reconcile(Instant::now()).map(drop)
    }

    /// Replaces the set of backends that the health check has ejected.
    ///
    /// # Errors
    /// A map refuses a change; the next change of any kind tries again.
    pub fn eject(&self, backends: &BTreeSet<BackendId>) -> Result<(), DatapathError> {
        let mut state = lock(&self.state);
        state.change_facts(|facts| facts.ejected = backends.iter().map(|id| id.get()).collect());
        state.reconcile(Instant::now()).map(drop)
    }
}
