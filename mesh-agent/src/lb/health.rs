//! Passive health check: ejects backends whose handshakes fail, for a while.
//!
//! Pure: its inputs are the counters of kernel programs and proxy, once a second, and the time.
//!
//! A backend is ejected when, over the last [`WINDOW`] checks, at least [`FAILURES_MIN`] handshakes
//! failed and they were at least half of all. Ejection lasts [`EJECTION_MIN`], twice as long each
//! next time up to [`EJECTION_MAX`]; a backend that stays good for [`GOOD_PERIOD`] after its return
//! starts from the shortest again.
//!
//! Invariant: at most half of the backends of a published port or virtual IP are ejected, those
//! that failed first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use mesh_state::ids::{BackendId, NetworkId, ServiceId};
use mesh_state::spec::Protocol;

/// The number of checks in the sliding window.
const WINDOW: usize = 10;
/// Fewer failures than this prove nothing.
const FAILURES_MIN: u64 = 3;
const EJECTION_MIN: Duration = Duration::from_secs(10);
const EJECTION_MAX: Duration = Duration::from_mins(5);
const GOOD_PERIOD: Duration = Duration::from_mins(1);

/// The counters of an active backend since its id was assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The backend's id.
    pub id: BackendId,
    /// What it is one of several backends of.
    pub group: Group,
    /// Counts of completed and failed handshakes.
    pub handshakes: Handshakes,
}

/// The backends of one published port, or of one virtual IP: at most half of them are ejected.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Of a published port.
    Port(Protocol, u16),
    /// Of a service's virtual IP on a network.
    VirtualIp(ServiceId, NetworkId),
}

/// Counts of completed and failed handshakes. They only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handshakes {
    /// Handshakes that the backend answered.
    pub answered: u64,
    /// Handshakes that the backend refused or did not answer, or that never reached it.
    pub failed: u64,
}

impl Handshakes {
    /// The sums of both counts.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { answered: self.answered + other.answered, failed: self.failed + other.failed }
    }

    /// The increase since `before`. Counters that fall belong to another backend, so the increase
    /// is unknown and counts as none.
    fn since(self, before: Self) -> Self {
        Self {
            answered: self.answered.saturating_sub(before.answered),
            failed: self.failed.saturating_sub(before.failed),
        }
    }
}

/// The state of the check, for all backends.
#[derive(Debug, Clone, Default)]
pub struct Health {
    backends: BTreeMap<BackendId, Record>,
    ejected: BTreeSet<BackendId>,
}

#[derive(Debug, Clone, Default)]
struct Record {
    group: Option<Group>,
    /// The counters at the last check.
    last: Option<Handshakes>,
    /// The increases of the last checks, the newest at the back.
    window: VecDeque<Handshakes>,
    ejection: Option<Ejection>,
}

#[derive(Debug, Clone, Copy)]
struct Ejection {
    since: Instant,
    lasts: Duration,
}

impl Health {
    /// Runs one check over the active backends, and drops the state of others.
    pub fn observe(&mut self, counted: &[Counted], now: Instant) {
        let active: BTreeSet<BackendId> = counted.iter().map(|backend| backend.id).collect();
        self.backends.retain(|id, _| active.contains(id));
        for backend in counted {
            let record = self.backends.entry(backend.id).or_default();
            record.group = Some(backend.group.clone());
            record.look(backend.handshakes, now);
        }
        self.ejected = self.choose(now);
    }

    /// The backends that get no new flows.
    pub fn ejected(&self) -> &BTreeSet<BackendId> {
        &self.ejected
    }

    fn choose(&self, now: Instant) -> BTreeSet<BackendId> {
        let mut actives: BTreeMap<Option<&Group>, usize> = BTreeMap::new();
        let mut failing = Vec::new();
        for (id, record) in &self.backends {
            *actives.entry(record.group.as_ref()).or_default() += 1;
            let ejection = record.ejection.filter(|ejection| now < ejection.since + ejection.lasts);
            failing.extend(ejection.map(|ejection| (ejection.since, *id, record.group.as_ref())));
        }
        failing.sort_unstable();
        let mut room: BTreeMap<_, usize> =
            actives.into_iter().map(|(group, count)| (group, count / 2)).collect();
        let mut chosen = BTreeSet::new();
        for (_, id, group) in failing {
            if let Some(left @ 1..) = room.get_mut(&group) {
                *left -= 1;
                chosen.insert(id);
            }
        }
        chosen
    }
}

impl Record {
    fn look(&mut self, present: Handshakes, now: Instant) {
        let last = self.last.replace(present).unwrap_or(present);
        if self.ejection.is_some_and(|ejection| now < ejection.since + ejection.lasts) {
            self.window.clear();
            return;
        }
        self.window.push_back(present.since(last));
        if self.window.len() > WINDOW {
            self.window.pop_front();
        }
        let sum = self.window.iter().fold(Handshakes::default(), |sum, look| sum.plus(*look));
        if sum.failed >= FAILURES_MIN && sum.failed >= sum.answered {
            self.ejection = Some(self.next_ejection(now));
            self.window.clear();
        }
    }

    fn next_ejection(&self, now: Instant) -> Ejection {
        let lasts = match self.ejection {
            Some(before) if now < before.since + before.lasts + GOOD_PERIOD => {
                (before.lasts * 2).min(EJECTION_MAX)
            }
            _ => EJECTION_MIN,
        };
        Ejection { since: now, lasts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Backends of one port with their counters, checked second by second.
    struct Bench {
        health: Health,
        counted: Vec<Counted>,
        now: Instant,
    }

    const PORT: Group = Group::Port(Protocol::Tcp, 80);

    fn id(id: u32) -> BackendId {
        BackendId::new(id).expect("an id")
    }

    fn counted(backend: u32, answered: u64, failed: u64) -> Counted {
        Counted { id: id(backend), group: PORT, handshakes: Handshakes { answered, failed } }
    }

    impl Bench {
        fn new(backends: u32) -> Self {
            let counted = (1..=backends).map(|id| counted(id, 0, 0)).collect();
            let mut bench = Self { health: Health::default(), counted, now: Instant::now() };
            bench.seconds(1, &[]);
            bench
        }

        /// In each second every backend gets four flows; those of `failing` fail.
        fn seconds(&mut self, seconds: u32, failing: &[u32]) {
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                for backend in &mut self.counted {
                    if self.health.ejected().contains(&backend.id) {
                        continue;
                    }
                    let is_failing = failing.contains(&backend.id.get());
                    let more = Handshakes {
                        answered: if is_failing { 0 } else { 4 },
                        failed: if is_failing { 4 } else { 0 },
                    };
                    backend.handshakes = backend.handshakes.plus(more);
                }
                self.health.observe(&self.counted, self.now);
            }
        }

        #[track_caller]
        fn check(&self, expected: &[u32], when: &str) {
            let ejected: Vec<u32> = self.health.ejected().iter().map(|id| id.get()).collect();
            assert_eq!(ejected, expected, "ejected backends {when}");
        }
    }

    #[test]
    fn a_failing_backend_goes_comes_back_and_goes_for_longer() {
        let mut bench = Bench::new(3);
        bench.seconds(1, &[2]);
        bench.check(&[2], "after a second of failures");
        bench.seconds(9, &[2]);
        bench.check(&[2], "before ten seconds are over");
        bench.seconds(1, &[]);
        bench.check(&[], "after ten seconds");
        bench.seconds(1, &[2]);
        bench.check(&[2], "as it fails again");
        bench.seconds(19, &[2]);
        bench.check(&[2], "twice as long");
        bench.seconds(1, &[]);
        bench.check(&[], "and back again");
        bench.seconds(70, &[]);
        bench.seconds(1, &[2]);
        bench.seconds(10, &[]);
        bench.check(&[], "a good minute made it forget");
    }

    #[test]
    fn never_more_than_half() {
        for (backends, expected) in [(1, &[][..]), (2, &[1]), (3, &[1]), (4, &[1, 2])] {
            let mut bench = Bench::new(backends);
            bench.seconds(1, &[1, 2, 3, 4]);
            bench.check(expected, &format!("of {backends} that all fail"));
        }
    }

    #[test]
    fn few_failures_among_many_successes_say_nothing() {
        let mut health = Health::default();
        let now = Instant::now();
        let look = |answered, failed| [1, 2].map(|id| counted(id, answered, failed));
        health.observe(&look(0, 0), now);
        health.observe(&look(0, 2), now + Duration::from_secs(1));
        health.observe(&look(11, 9), now + Duration::from_secs(2));
        assert!(health.ejected().is_empty(), "9 of 20 failed");
    }

    #[test]
    fn counters_of_another_backend_of_that_id_say_nothing() {
        let mut health = Health::default();
        let now = Instant::now();
        for (second, (answered, failed)) in (1..).zip([(0, 0), (100, 2), (0, 1), (0, 2)]) {
            let look = [counted(1, answered, failed), counted(2, 0, 0)];
            health.observe(&look, now + Duration::from_secs(second));
        }
        assert!(health.ejected().is_empty(), "two failures, then a new backend's second one");
    }

    #[test]
    fn each_port_has_its_own_half() {
        let mut health = Health::default();
        let now = Instant::now();
        let look = |failed| {
            let other = |id, group| Counted { group, ..counted(id, 0, failed) };
            let udp = || Group::Port(Protocol::Udp, 80);
            let virtual_ip = |network: &str| Group::VirtualIp("web".into(), network.into());
            let [front, back] = ["front", "back"].map(virtual_ip);
            let of_virtual_ips = [other(5, front.clone()), other(6, front), other(7, back)];
            let of_ports = [counted(1, 0, failed), counted(2, 0, failed), other(3, udp()), other(4, udp())];
            of_ports.into_iter().chain(of_virtual_ips).collect::<Vec<_>>()
        };
        health.observe(&look(0), now);
        health.observe(&look(3), now + Duration::from_secs(1));
        let ejected: Vec<u32> = health.ejected().iter().map(|id| id.get()).collect();
        assert_eq!(ejected, [1, 3, 5], "half of two, and none of one");
    }
}
