//! Passive health: a backend whose handshakes fail gets no new flows for a while.
//!
//! Pure: told what was counted, once a second, and the time.
//!
//! A backend is ejected when, in the last [`WINDOW`] looks, at least [`FAILURES_MIN`] handshakes failed and they were at least half of all.
//! Ejection lasts [`EJECTION_MIN`], twice as long each next time up to [`EJECTION_MAX`]; a backend that stays good for
//! [`GOOD_PERIOD`] after its return starts from the shortest again.
//!
//! Invariant: at most half of a published port's backends are ejected, those that failed first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Looks that count.
const WINDOW: usize = 10;
/// Fewer failures say nothing.
const FAILURES_MIN: u64 = 3;
const EJECTION_MIN: Duration = Duration::from_secs(10);
const EJECTION_MAX: Duration = Duration::from_mins(5);
const GOOD_PERIOD: Duration = Duration::from_mins(1);

/// What was counted of an active backend since its id was given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Its id.
    pub id: u32,
    /// Its published port.
    pub service_index: u32,
    /// Flows that it was given.
    pub opened: u64,
    /// Those of them that it refused or left unanswered.
    pub failed: u64,
}

/// Handshakes that went well, and that did not. Only ever more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checks {
    /// Went well, as far as is known.
    pub ok: u64,
    /// Refused or left unanswered.
    pub failed: u64,
}

/// What is remembered of all backends.
#[derive(Debug, Clone, Default)]
pub struct Health {
    backends: BTreeMap<u32, Record>,
    ejected: BTreeSet<u32>,
}

#[derive(Debug, Clone, Default)]
struct Record {
    service_index: u32,
    /// The counters at the last look.
    last: Option<Checks>,
    /// What the last looks found, the newest at the back.
    window: VecDeque<Checks>,
    total: Checks,
    ejection: Option<Ejection>,
}

#[derive(Debug, Clone, Copy)]
struct Ejection {
    since: Instant,
    lasts: Duration,
}

impl Health {
    /// Takes one look at the backends that are active; others are forgotten.
    pub fn observe(&mut self, counted: &[Counted], now: Instant) {
        let active: BTreeSet<u32> = counted.iter().map(|backend| backend.id).collect();
        self.backends.retain(|id, _| active.contains(id));
        for backend in counted {
            let record = self.backends.entry(backend.id).or_default();
            record.service_index = backend.service_index;
            record.look(*backend, now);
        }
        self.ejected = self.choose(now);
    }

    /// The backends that get no new flows.
    pub fn ejected(&self) -> &BTreeSet<u32> {
        &self.ejected
    }

    /// How a backend's handshakes went.
    pub fn checks(&self, id: u32) -> Checks {
        self.backends.get(&id).map(|record| record.total).unwrap_or_default()
    }

    fn choose(&self, now: Instant) -> BTreeSet<u32> {
        let mut actives: BTreeMap<u32, usize> = BTreeMap::new();
        let mut failing: Vec<(Instant, u32, u32)> = Vec::new();
        for (id, record) in &self.backends {
            *actives.entry(record.service_index).or_default() += 1;
            let ejection = record.ejection.filter(|ejection| now < ejection.since + ejection.lasts);
            failing.extend(ejection.map(|ejection| (ejection.since, *id, record.service_index)));
        }
        failing.sort_unstable();
        let mut room: BTreeMap<u32, usize> =
            actives.into_iter().map(|(service, count)| (service, count / 2)).collect();
        let mut chosen = BTreeSet::new();
        for (_, id, service) in failing {
            if let Some(left @ 1..) = room.get_mut(&service) {
                *left -= 1;
                chosen.insert(id);
            }
        }
        chosen
    }
}

impl Record {
    fn look(&mut self, counted: Counted, now: Instant) {
        let present = Checks { ok: counted.opened, failed: counted.failed };
        // Counters that go back are another backend's: nothing is known of this look.
        let last = self.last.replace(present).unwrap_or(present);
        let failed = present.failed.saturating_sub(last.failed);
        let ok = present.ok.saturating_sub(last.ok).saturating_sub(failed);
        self.total.ok += ok;
        self.total.failed += failed;
        if self.ejection.is_some_and(|ejection| now < ejection.since + ejection.lasts) {
            self.window.clear();
            return;
        }
        self.window.push_back(Checks { ok, failed });
        if self.window.len() > WINDOW {
            self.window.pop_front();
        }
        let ok: u64 = self.window.iter().map(|look| look.ok).sum();
        let failed: u64 = self.window.iter().map(|look| look.failed).sum();
        if failed >= FAILURES_MIN && failed >= ok {
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

    /// Backends of one port with their counters, looked at second by second.
    struct Bench {
        health: Health,
        counted: Vec<Counted>,
        now: Instant,
    }

    impl Bench {
        fn new(backends: u32) -> Self {
            let counted =
                (1..=backends).map(|id| Counted { id, service_index: 0, opened: 0, failed: 0 }).collect();
            let mut bench = Self { health: Health::default(), counted, now: Instant::now() };
            bench.seconds(1, &[]);
            bench
        }

        /// Each second every backend gets four flows; those of `failing` fail.
        fn seconds(&mut self, seconds: u32, failing: &[u32]) {
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                for backend in &mut self.counted {
                    if self.health.ejected().contains(&backend.id) {
                        continue;
                    }
                    backend.opened += 4;
                    backend.failed += if failing.contains(&backend.id) { 4 } else { 0 };
                }
                self.health.observe(&self.counted, self.now);
            }
        }

        #[track_caller]
        fn check(&self, expected: &[u32], when: &str) {
            let ejected: Vec<u32> = self.health.ejected().iter().copied().collect();
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
        assert_eq!(bench.health.checks(2).failed, 12);
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
        let look = |opened, failed| [1, 2].map(|id| Counted { id, service_index: 0, opened, failed });
        health.observe(&look(0, 0), now);
        health.observe(&look(2, 2), now + Duration::from_secs(1));
        health.observe(&look(20, 9), now + Duration::from_secs(2));
        assert!(health.ejected().is_empty(), "9 of 20 failed");
        assert_eq!(health.checks(1), Checks { ok: 11, failed: 9 });
    }
}
