//! Counts the flows to a draining task of this node that go on: its drain waits for them.
//!
//! Invariants: one walk over the NAT tables serves all callers within [`WALK_AGE`], so that many
//! tasks that drain at once cost no more than one; flows that began after the drain don't count.
//!
//! Left to others: how long a drain lasts ([`crate::task`]), evicting flows ([`super::sweep`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use mesh_ebpf::abi::flow_event::TASK_FIN;
use mesh_ebpf::abi::{Nat, NatKey, names, protocol};
use mesh_ebpf::conntrack::{is_closed, is_established};

use super::error::DatapathError;
use super::lock::lock;
use super::maps::Dump;
use super::pins::Pins;
use super::sweep::monotonic_ns;
use crate::task::network::Draining;

/// How old a walk's result may be.
const WALK_AGE: Duration = Duration::from_millis(100);
/// A handshake, a UDP flow or a connection that the task has closed counts as over after this much
/// silence.
const QUIET_NS: u64 = 5_000_000_000;

/// Counts the flows that drains wait for.
pub(super) struct DrainCount {
    flows: Mutex<Flows>,
}

/// The NAT tables, and the result of the last walk.
struct Flows {
    half_open: Dump<NatKey, Nat>,
    established: Dump<NatKey, Nat>,
    walk: Option<Walk>,
}

/// The result of a walk.
struct Walk {
    at: Instant,
    /// When each flow that goes on began, by backend.
    began_ns: BTreeMap<u32, Vec<u64>>,
}

/// Whether a flow goes on. An established TCP connection does until both sides have closed it,
/// however long it is silent.
const fn goes_on(ip_protocol: u8, events: u32, idle_ns: u64) -> bool {
    if is_closed(events) {
        return false;
    }
    let may_rest = ip_protocol == protocol::TCP && is_established(events) && events & TASK_FIN == 0;
    may_rest || idle_ns <= QUIET_NS
}

impl Flows {
    fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self {
            half_open: Dump::open(pins, names::NAT_HALF_OPEN)?,
            established: Dump::open(pins, names::NAT_ESTABLISHED)?,
            walk: None,
        })
    }

    /// The number of flows to `wanted` that go on and began before `before_ns`. If a walk is
    /// needed, it covers all of `draining`.
    fn left(
        &mut self,
        wanted: &BTreeSet<u32>,
        draining: BTreeSet<u32>,
        before_ns: u64,
    ) -> Result<u64, DatapathError> {
        let fresh = self.walk.take().filter(|walk| {
            walk.at.elapsed() < WALK_AGE && wanted.iter().all(|id| walk.began_ns.contains_key(id))
        });
        let walk = match fresh {
            Some(walk) => walk,
            None => self.walk(draining.into_iter().chain(wanted.iter().copied()))?,
        };
        let began = wanted.iter().filter_map(|id| walk.began_ns.get(id)).flatten();
        let left = began.filter(|began_ns| **began_ns < before_ns).count();
        self.walk = Some(walk);
        Ok(left as u64)
    }

    fn walk(&self, backends: impl Iterator<Item = u32>) -> Result<Walk, DatapathError> {
        let mut began_ns: BTreeMap<u32, Vec<u64>> = backends.map(|id| (id, Vec::new())).collect();
        let now_ns = monotonic_ns();
        for table in [&self.half_open, &self.established] {
            table.for_each(|key, nat| {
                let idle_ns = now_ns.saturating_sub(nat.seen_ns);
                if let Some(began) = began_ns.get_mut(&nat.backend)
                    && goes_on(key.protocol(), nat.events, idle_ns)
                {
                    began.push(nat.opened_ns);
                }
            })?;
        }
        Ok(Walk { at: Instant::now(), began_ns })
    }
}

impl DrainCount {
    /// Opens the pinned tables.
    ///
    /// # Errors
    /// One isn't pinned, or isn't of the expected kind.
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self { flows: Mutex::new(Flows::open(pins)?) })
    }

    /// The number of flows that the drain of `task` still waits for. If a walk is needed, it covers
    /// all of `draining`, too.
    ///
    /// # Errors
    /// A table can't be read.
    pub(super) fn left(&self, task: &Draining, draining: BTreeSet<u32>) -> Result<u64, DatapathError> {
        let wanted = task.backends.iter().map(|id| id.get()).collect();
        let since = u64::try_from(task.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        lock(&self.flows).left(&wanted, draining, monotonic_ns().saturating_sub(since))
    }
}

#[cfg(test)]
mod tests {
    use mesh_ebpf::abi::flow_event::{ACK, CLIENT_FIN, RESET, SYN, SYN_ACK};
    use mesh_ebpf::abi::protocol::{TCP, UDP};

    use super::*;

    #[test]
    fn connections_go_on_until_both_sides_have_closed_them() {
        let up = SYN | SYN_ACK | ACK;
        assert!(goes_on(TCP, up, u64::MAX), "an idle connection");
        assert!(goes_on(TCP, up | CLIENT_FIN, u64::MAX), "the client has said all, the task may still send");
        assert!(goes_on(TCP, up | TASK_FIN, QUIET_NS), "the task's last bytes may be on their way");
        assert!(!goes_on(TCP, up | TASK_FIN, QUIET_NS + 1), "the task has closed, the client never does");
        assert!(!goes_on(TCP, up | CLIENT_FIN | TASK_FIN, 0));
        assert!(!goes_on(TCP, up | RESET, 0));
    }

    #[test]
    fn what_may_never_be_answered_is_waited_for_a_moment() {
        assert!(goes_on(TCP, SYN, QUIET_NS));
        assert!(!goes_on(TCP, SYN, QUIET_NS + 1));
        assert!(goes_on(UDP, SYN | SYN_ACK | ACK, QUIET_NS));
        assert!(!goes_on(UDP, SYN | SYN_ACK | ACK, QUIET_NS + 1));
    }
}
