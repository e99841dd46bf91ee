//! What is done once a second: loads to the maps, a look at how handshakes go, weights that rise.

use std::time::Instant;

use mesh_ebpf::abi::BackendState;
use mesh_state::ids::BackendId;

use super::engine::{Datapath, lock};
use super::error::DatapathError;
use super::health::Counted;
use super::sweep::monotonic_ns;
use crate::lb::loads::HEARSAY_AGE;

impl Datapath {
    /// Writes loads of this node's own backends, which nobody knows better.
    ///
    /// # Errors
    /// A map refuses one.
    pub fn note_own_loads(&self, loads: &[(BackendId, u8)]) -> Result<(), DatapathError> {
        lock(&self.state)?.note_loads(loads, monotonic_ns(), 0)
    }

    /// Does what is due every second; `since` is when it was done last.
    ///
    /// # Errors
    /// A map can't be read or written.
    pub(super) fn pulse(&self, since: Instant) -> Result<u64, DatapathError> {
        let heard = self.config.loads.changed_since(since);
        let age_ns = u64::try_from(HEARSAY_AGE.as_nanos()).unwrap_or(u64::MAX);
        let active: Vec<(u32, u32)> = {
            let mut state = lock(&self.state)?;
            state.note_loads(&heard, monotonic_ns(), age_ns)?;
            let alive = state.contents().alive();
            alive
                .filter(|(_, backend)| backend.state == BackendState::Active as u8)
                .map(|(id, backend)| (id, backend.service_index))
                .collect()
        };
        let counted: Result<Vec<Counted>, DatapathError> = active
            .into_iter()
            .map(|(id, service_index)| {
                let stats = self.counters.backend_stats(id)?;
                let failed = stats.refused + stats.unanswered;
                Ok(Counted { id, service_index, opened: stats.opened, failed })
            })
            .collect();
        let mut state = lock(&self.state)?;
        let counted = state.counted(counted)?;
        let now = Instant::now();
        state.observe_health(&counted, now);
        state.reconcile(now)
    }
}
