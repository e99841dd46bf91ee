//! Counts evicted flow entries, by protocol and cause, over restarts of the agent.
//!
//! Why a map: the counters belong to those of the programs, which outlive the agent. When a table
//! is full the kernel evicts entries without reporting it: that count is computed from the entries
//! that are missing.
//!
//! Invariant: a count never falls.

use aya::maps::{Array, MapData};
use mesh_ebpf::abi::{Evicted, names, protocol};

use super::error::DatapathError;
use super::loader;
use super::pins::Pins;

/// A value for each protocol that flows have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByProtocol<T> {
    /// The value for TCP.
    pub tcp: T,
    /// The value for UDP.
    pub udp: T,
}

impl<T> ByProtocol<T> {
    /// The value for an IP protocol number.
    pub fn of_mut(&mut self, ip_protocol: u8) -> &mut T {
        if ip_protocol == protocol::UDP { &mut self.udp } else { &mut self.tcp }
    }

    /// Both values, with the protocols' names.
    pub fn named(&self) -> [(&'static str, &T); 2] {
        [("tcp", &self.tcp), ("udp", &self.udp)]
    }
}

/// Numbers of flow entries that were evicted before the flow was seen to end, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evictions {
    /// Evicted by the kernel from a full table (LRU). Computed from the entries that are missing.
    pub lru: u64,
    /// Idle for too long.
    pub timeout: u64,
    /// Flows that were removed because their backend is gone.
    pub backend_gone: u64,
}

impl Evictions {
    /// The count of a cause.
    pub fn of(&self, cause: Evicted) -> u64 {
        match cause {
            Evicted::Lru => self.lru,
            Evicted::Timeout => self.timeout,
            Evicted::BackendGone => self.backend_gone,
        }
    }

    fn of_mut(&mut self, cause: Evicted) -> &mut u64 {
        match cause {
            Evicted::Lru => &mut self.lru,
            Evicted::Timeout => &mut self.timeout,
            Evicted::BackendGone => &mut self.backend_gone,
        }
    }
}

/// The counts of one protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    /// The counts of earlier agents.
    before: Evictions,
    now: Evictions,
    /// Flows that were counted as opened and never as ended, since the agent started.
    missing: i64,
}

impl Tally {
    fn starting_at(before: Evictions) -> Self {
        Self { before, now: before, missing: 0 }
    }

    /// Computes the kernel's share: the missing flows, less those that this agent evicted. Flows
    /// that change during a walk may make it too small for a while.
    fn work_out_lru(&mut self) {
        let own = self.now.timeout - self.before.timeout + self.now.backend_gone - self.before.backend_gone;
        let by_kernel = self.missing.saturating_sub_unsigned(own).max(0).cast_unsigned();
        self.now.lru = self.now.lru.max(self.before.lru + by_kernel);
    }
}

/// The counts, and the map that stores them.
pub(super) struct EvictionLedger {
    map: Array<MapData, u64>,
    tallies: ByProtocol<Tally>,
    written: ByProtocol<Evictions>,
}

impl EvictionLedger {
    /// Continues with the counts in the pinned map.
    ///
    /// # Errors
    /// It isn't pinned, or can't be read.
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let map: Array<MapData, u64> = loader::open(pins, names::EVICTIONS)?;
        let mut written = ByProtocol::<Evictions>::default();
        for ip_protocol in [protocol::TCP, protocol::UDP] {
            for cause in Evicted::ALL {
                *written.of_mut(ip_protocol).of_mut(cause) = map
                    .get(&cause.index(ip_protocol), 0)
                    .map_err(|error| DatapathError::map(names::EVICTIONS, "lookup", error))?;
            }
        }
        let tallies =
            ByProtocol { tcp: Tally::starting_at(written.tcp), udp: Tally::starting_at(written.udp) };
        Ok(Self { map, tallies, written })
    }

    /// Counts flows that the agent evicted.
    pub(super) fn add(&mut self, ip_protocol: u8, cause: Evicted, flows: u64) {
        *self.tallies.of_mut(ip_protocol).now.of_mut(cause) += flows;
    }

    /// Counts flows that were found missing (or, below zero, found after all), whoever evicted
    /// them.
    pub(super) fn miss(&mut self, ip_protocol: u8, flows: i64) {
        let missing = &mut self.tallies.of_mut(ip_protocol).missing;
        *missing = missing.saturating_add(flows);
    }

    /// Ends a walk: computes the kernel's share, and stores the counts that have changed.
    ///
    /// # Errors
    /// The map refuses it; the next walk tries again.
    pub(super) fn settle(&mut self) -> Result<ByProtocol<Evictions>, DatapathError> {
        self.tallies.tcp.work_out_lru();
        self.tallies.udp.work_out_lru();
        let counts = ByProtocol { tcp: self.tallies.tcp.now, udp: self.tallies.udp.now };
        for ip_protocol in [protocol::TCP, protocol::UDP] {
            for cause in Evicted::ALL {
                let count = self.tallies.of_mut(ip_protocol).now.of(cause);
                let written = self.written.of_mut(ip_protocol).of_mut(cause);
                if *written != count {
                    self.map
                        .set(cause.index(ip_protocol), count, 0)
                        .map_err(|error| DatapathError::map(names::EVICTIONS, "update", error))?;
                    *written = count;
                }
            }
        }
        Ok(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_did_not_forget_itself_was_the_kernel() {
        let before = Evictions { lru: 7, timeout: 5, backend_gone: 3 };
        let mut tally = Tally::starting_at(before);
        tally.now.timeout += 2;
        tally.missing = 10;
        tally.work_out_lru();
        assert_eq!(tally.now, Evictions { lru: 15, timeout: 7, backend_gone: 3 });
        tally.now.backend_gone += 1;
        tally.work_out_lru();
        assert_eq!(tally.now.lru, 15, "its counterpart is not found missing yet: nothing falls");
        tally.missing = 11;
        tally.work_out_lru();
        assert_eq!(tally.now.lru, 15, "now it is");
        tally.missing = 12;
        tally.work_out_lru();
        assert_eq!(tally.now.lru, 16, "and one more");
    }

    #[test]
    fn more_flows_than_were_counted_are_no_evictions() {
        let mut tally = Tally::starting_at(Evictions::default());
        tally.missing = -4;
        tally.work_out_lru();
        assert_eq!(tally.now, Evictions::default());
    }
}
