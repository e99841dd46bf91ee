//! The counts that both table writes and the sweep change: the histograms of published ports, and
//! the corrections (drift) of the counts of live connections.
//!
//! Invariants: these maps have one owner in userspace, [`Tallies`], behind one lock, which is the
//! last to be taken (see [`super::engine`]). A walk over the flows takes seconds, and meanwhile
//! ports and backends begin anew under the same numbers: the walk's results for those are not
//! written.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{Array, MapData};
use mesh_ebpf::abi::{Histogram, Live, names};

use super::contents::Contents;
use super::durations::Durations;
use super::error::DatapathError;
use super::loader;
use super::pins::Pins;

/// The maps, and what was reset since the last walk began.
pub(super) struct Tallies {
    durations: Durations,
    live: Array<MapData, Live>,
    live_drift: Array<MapData, i64>,
    /// Backends that began anew since [`Tallies::begin_walk`].
    renewed: BTreeSet<u32>,
}

impl Tallies {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// One isn't pinned, isn't of the expected kind, or can't be read.
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self {
            durations: Durations::open(pins)?,
            live: loader::open(pins, names::LIVE)?,
            live_drift: loader::open(pins, names::LIVE_DRIFT)?,
            renewed: BTreeSet::new(),
        })
    }

    /// Begins a walk over the flows: [`Tallies::add_swept`] and [`Tallies::correct`] skip what is
    /// reset from now on.
    pub(super) fn begin_walk(&mut self) {
        self.renewed.clear();
        self.durations.begin_walk();
    }

    /// Resets the histograms of the published port with this index to zero.
    ///
    /// # Errors
    /// The map refuses the entries.
    pub(super) fn reset_port(&mut self, service_index: u32) -> Result<(), DatapathError> {
        self.durations.reset(service_index)
    }

    /// Makes the histograms that the published ports in `contents` lack, and removes those that
    /// belong to none of them.
    ///
    /// # Errors
    /// The map refuses a change.
    pub(super) fn follow(&mut self, contents: &Contents) -> Result<(), DatapathError> {
        self.durations.follow(contents)
    }

    /// Resets the backend's live connections to zero: the drift cancels all that was counted.
    ///
    /// # Errors
    /// A map can't be read or written.
    pub(super) fn reset_backend(&mut self, id: u32) -> Result<(), DatapathError> {
        self.renewed.insert(id);
        let live = self.live_of(id)?;
        self.set_drift(id, live.opened.wrapping_sub(live.closed).cast_signed())
    }

    /// The programs' counts of these backends' connections.
    ///
    /// # Errors
    /// The map can't be read.
    pub(super) fn live_counts(
        &self,
        backends: impl Iterator<Item = u32>,
    ) -> Result<BTreeMap<u32, Live>, DatapathError> {
        backends.map(|id| Ok((id, self.live_of(id)?))).collect()
    }

    /// Adds the lifetimes of flows that no packet ended, unless their port has gone since the walk
    /// began.
    ///
    /// # Errors
    /// The map can't be read, or refuses the change.
    pub(super) fn add_swept(&mut self, service_index: u32, lives: &Histogram) -> Result<(), DatapathError> {
        self.durations.add_swept(service_index, lives)
    }

    /// Corrects a backend's count to `counted`, the result of a walk, if it is wrong. `before` is
    /// what the programs had counted when the walk began. Returns the error of the count, if any.
    ///
    /// # Errors
    /// A map can't be read or written.
    pub(super) fn correct(
        &mut self,
        id: u32,
        before: Live,
        counted: u64,
    ) -> Result<Option<i64>, DatapathError> {
        if self.renewed.contains(&id) {
            return Ok(None);
        }
        let after = self.live_of(id)?;
        let present = self
            .live_drift
            .get(&id, 0)
            .map_err(|error| DatapathError::map(names::LIVE_DRIFT, "lookup", error))?;
        let Some(drift) = corrected_drift(before, after, counted, present) else { return Ok(None) };
        self.set_drift(id, drift)?;
        Ok(Some(drift.wrapping_sub(present)))
    }

    fn live_of(&self, id: u32) -> Result<Live, DatapathError> {
        self.live.get(&id, 0).map_err(|error| DatapathError::map(names::LIVE, "lookup", error))
    }

    fn set_drift(&mut self, id: u32, drift: i64) -> Result<(), DatapathError> {
        self.live_drift
            .set(id, drift, 0)
            .map_err(|error| DatapathError::map(names::LIVE_DRIFT, "update", error))
    }
}

/// The drift by which a backend's count becomes `counted`; `None` if the count may be right
/// already: a walk may have met flows that came or went during it, or not.
fn corrected_drift(before: Live, after: Live, counted: u64, present: i64) -> Option<i64> {
    let moved =
        after.opened.wrapping_sub(before.opened).saturating_add(after.closed.wrapping_sub(before.closed));
    let tracked = after.opened.wrapping_sub(after.closed).cast_signed();
    let drift = tracked.wrapping_sub_unsigned(counted);
    (drift.abs_diff(present) > moved).then_some(drift)
}

#[cfg(test)]
mod tests {
    use mesh_ebpf::abi::Service;

    use super::super::contents::{Front, Frontend};
    use super::super::durations::Timings;
    use super::super::testing::pinned;
    use super::*;

    /// What the maps are to hold for one published port with this index.
    fn one_port(index: u32) -> Contents {
        let frontend = Front::Port(Frontend { protocol: 6, port: 80 });
        let service = Service { index, ..Service::default() };
        Contents { services: BTreeMap::from([(frontend, service)]), ..Contents::default() }
    }

    #[test]
    fn a_walk_brings_no_histogram_back_and_adds_to_no_later_port() {
        let Some(pins) = pinned("tally") else { return };
        let mut tallies = Tallies::open(&pins).expect("the maps are pinned");
        let timings = Timings::open(&pins).expect("the map is pinned");
        let swept = || timings.read(3).expect("the map is read").flow.count();
        let mut lives = Histogram::default();
        lives.add(1_000_000);

        tallies.follow(&one_port(3)).expect("its histograms are made");
        tallies.begin_walk();
        tallies.add_swept(3, &lives).expect("the map takes it");
        assert_eq!(swept(), 1, "a port that stays");

        tallies.begin_walk();
        tallies.follow(&Contents::default()).expect("its histograms are removed");
        tallies.add_swept(3, &lives).expect("passed over");
        assert!(timings.is_empty().expect("the map is read"), "the port has gone during the walk");

        tallies.reset_port(3).expect("another port gets the index");
        tallies.add_swept(3, &lives).expect("passed over");
        assert_eq!(swept(), 0, "what the walk found was of the port before");
        tallies.begin_walk();
        tallies.add_swept(3, &lives).expect("the map takes it");
        assert_eq!(swept(), 1, "the next walk's is its own");
    }

    #[test]
    fn a_walk_corrects_no_backend_that_began_anew_meanwhile() {
        let Some(pins) = pinned("drift") else { return };
        let mut tallies = Tallies::open(&pins).expect("the maps are pinned");
        tallies.live.set(7, Live { opened: 9, closed: 4 }, 0).expect("as programs count");
        let before = |tallies: &Tallies| tallies.live_counts([7].into_iter()).expect("it is read")[&7];
        tallies.begin_walk();
        let seen = before(&tallies);
        tallies.reset_backend(7).expect("the maps take it");
        assert_eq!(tallies.correct(7, seen, 5).expect("passed over"), None, "5 flows of the one before it");
        assert_eq!(tallies.live_drift.get(&7, 0).expect("it is read"), 5, "it has no connection yet");
        tallies.begin_walk();
        let seen = before(&tallies);
        assert_eq!(tallies.correct(7, seen, 1).expect("it is written"), Some(-1), "the next walk corrects");
    }

    #[test]
    fn the_correction_makes_the_count_right() {
        let live = Live { opened: 9, closed: 2 };
        assert_eq!(corrected_drift(live, live, 4, 0), Some(3), "7 tracked, 4 found");
        assert_eq!(live.count(3), 4);
        assert_eq!(corrected_drift(live, live, 4, 3), None, "right already");
        let behind = Live { opened: 3, closed: 5 };
        assert_eq!(corrected_drift(behind, behind, 2, 0), Some(-4), "more closed than opened");
    }

    #[test]
    fn flows_that_move_during_the_walk_correct_nothing_but_great_errors_are_mended_all_the_same() {
        let (before, after) = (Live { opened: 9, closed: 2 }, Live { opened: 10, closed: 3 });
        assert_eq!(corrected_drift(before, after, 5, 0), None, "off by 2, and 2 flows moved");
        assert_eq!(corrected_drift(before, after, 1, 0), Some(6), "off by 6, and 2 flows moved");
    }
}
