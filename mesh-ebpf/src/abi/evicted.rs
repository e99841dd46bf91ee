//! Why flows were forgotten before they ended: indexes of counters that userspace keeps in a map, to outlive it.

use super::protocol;

/// Why a flow was forgotten before it was seen to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Evicted {
    /// By programs or the kernel, as there was no room.
    Lru = 0,
    /// Idle for too long.
    Timeout = 1,
    /// Its backend is gone.
    BackendGone = 2,
}

impl Evicted {
    /// Every cause, in the order of the numbers.
    pub const ALL: [Self; 3] = [Self::Lru, Self::Timeout, Self::BackendGone];

    /// Entries of [`super::names::EVICTIONS`].
    pub const COUNT: usize = 2 * Self::ALL.len();

    /// The entry of [`super::names::EVICTIONS`] for flows of this IP protocol.
    pub const fn index(self, ip_protocol: u8) -> u32 {
        let udp = (ip_protocol == protocol::UDP) as u32;
        udp * Self::ALL.len() as u32 + self as u32
    }

    /// The metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Timeout => "timeout",
            Self::BackendGone => "backend_gone",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_cause_has_an_entry_for_each_protocol() {
        let protocols = [protocol::TCP, protocol::UDP];
        let indexes: BTreeSet<u32> =
            protocols.iter().flat_map(|protocol| Evicted::ALL.map(|cause| cause.index(*protocol))).collect();
        assert!(indexes.into_iter().eq(0..Evicted::COUNT as u32), "dense and distinct");
    }
}
