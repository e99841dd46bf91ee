//! What a run over the host's tables counted.

use std::collections::HashMap;

use crate::abi::{Direction, DropReason, Histogram, Timed};

/// What was counted; backend ids and service indexes are keys.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// Flows opened, by backend.
    pub opened: HashMap<u32, u64>,
    /// Flows closed, by backend.
    pub closed: HashMap<u32, u64>,
    /// Flows that went on after they had been counted as closed, by backend.
    pub revived: HashMap<u32, u64>,
    /// Handshakes answered, by backend.
    pub answered: HashMap<u32, u64>,
    /// Handshakes refused, by backend.
    pub refused: HashMap<u32, u64>,
    /// Handshakes left unanswered, by backend.
    pub unanswered: HashMap<u32, u64>,
    /// Flows without backend, by service.
    pub no_backend: HashMap<u32, u64>,
    /// SYNs that were forwarded but not remembered, by service.
    pub unremembered: HashMap<u32, u64>,
    /// Durations, by what is timed and service.
    pub durations: HashMap<(Timed, u32), Histogram>,
    /// Packets, by backend and direction.
    pub packets: HashMap<(u32, Direction), u64>,
    /// Drops.
    pub drops: HashMap<(DropReason, Direction), u64>,
}
