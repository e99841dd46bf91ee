//! Counters of runs over the host's tables.

use std::collections::HashMap;

use crate::abi::{Direction, DropReason, Histogram, Timed};

/// The counters; keys are backend ids or service indexes.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// Flows opened, by backend.
    pub opened: HashMap<u32, u64>,
    /// Flows closed, by backend.
    pub closed: HashMap<u32, u64>,
    /// Flows that went on after they were counted as closed, by backend.
    pub revived: HashMap<u32, u64>,
    /// Handshakes answered, by backend.
    pub answered: HashMap<u32, u64>,
    /// Handshakes refused, by backend.
    pub refused: HashMap<u32, u64>,
    /// Handshakes left unanswered, by backend.
    pub unanswered: HashMap<u32, u64>,
    /// New flows for which there was no backend, by service.
    pub no_backend: HashMap<u32, u64>,
    /// SYNs that were forwarded without a flow, by service.
    pub unremembered: HashMap<u32, u64>,
    /// Histograms of durations, by what is timed and service.
    pub durations: HashMap<(Timed, u32), Histogram>,
    /// Forwarded packets, by backend and direction.
    pub packets: HashMap<(u32, Direction), u64>,
    /// Dropped packets, by reason and direction.
    pub drops: HashMap<(DropReason, Direction), u64>,
}
