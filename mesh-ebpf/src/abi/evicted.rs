//! Causes for which flows were removed before they ended: indexes of counters that userspace keeps
//! in a map, so that they outlive the agent.

use super::closed_list::closed_list;
use super::protocol;

closed_list! {
    /// Why a flow's entry was removed before the flow was seen to end.
    pub enum Evicted: u32 {
        /// A program or the kernel evicted the entry, as the table had no room for a new one.
        Lru = 0 => "lru",
        /// The sweep removed the entry: the flow was idle for longer than its timeout.
        Timeout = 1 => "timeout",
        /// The sweep removed the entry: the flow's backend is gone.
        BackendGone = 2 => "backend_gone",
    }
    /// The cause as the metric's label `cause`.
    name: label;
}

impl Evicted {
    /// The number of entries of [`super::names::EVICTIONS`]: one for each cause and protocol.
    pub const COUNT: usize = 2 * Self::ALL.len();

    /// The index in [`super::names::EVICTIONS`] for flows of this IP protocol.
    pub const fn index(self, ip_protocol: u8) -> u32 {
        let udp = (ip_protocol == protocol::UDP) as u32;
        udp * Self::ALL.len() as u32 + self as u32
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
