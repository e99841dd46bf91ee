//! The programs' histograms of durations: made for every published port, summed over CPUs, removed
//! with their port.
//!
//! Invariants: a port has its histograms before the programs know it; a port that takes another's
//! index begins at zero. If no packet ends a flow, the sweep adds to a histogram of its own, which
//! the programs don't write. There is one [`Durations`], in [`super::tallies`]; readers use
//! [`Timings`].

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

use aya::maps::{MapData, MapError, PerCpuHashMap, PerCpuValues};
use mesh_ebpf::abi::{Histogram, Timed, names};

use super::contents::Contents;
use super::error::DatapathError;
use super::loader;
use super::map_access::{deleted, per_cpu, zeros};
use super::pins::Pins;

/// The pause between attempts to make an entry. The kernel takes per-CPU entries from a small stock
/// that it refills in the background: thousands of new ports at once find it empty.
const PAUSE: Duration = Duration::from_millis(1);
/// The most attempts to make an entry.
const PAUSES_MAX: u32 = 1000;

/// The histograms of one published port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortDurations {
    /// Time from SYN to SYN-ACK.
    pub connect: Histogram,
    /// Lifetimes of ended flows.
    pub flow: Histogram,
}

/// The map of histograms, for reading.
pub(super) struct Timings {
    map: PerCpuHashMap<MapData, u32, Histogram>,
}

impl Timings {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// It isn't pinned, or isn't of the expected kind.
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self { map: loader::open(pins, names::DURATIONS)? })
    }

    /// The histograms of the published port with this index; empty if it has none yet.
    ///
    /// # Errors
    /// The map can't be read.
    pub(super) fn read(&self, service_index: u32) -> Result<PortDurations, DatapathError> {
        let sum = |timed: Timed| -> Result<Histogram, DatapathError> {
            let values = self.get(timed.key(service_index))?;
            Ok(values.iter().flat_map(|values| values.iter()).fold(Histogram::default(), Histogram::plus))
        };
        Ok(PortDurations { connect: sum(Timed::Connect)?, flow: sum(Timed::Flow)?.plus(&sum(Timed::Swept)?) })
    }

    /// Whether no published port has histograms.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> Result<bool, MapError> {
        self.map.keys().next().transpose().map(|key| key.is_none())
    }

    fn get(&self, key: u32) -> Result<Option<PerCpuValues<Histogram>>, DatapathError> {
        match self.map.get(&key, 0) {
            Ok(values) => Ok(Some(values)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(DatapathError::map(names::DURATIONS, "lookup", error)),
        }
    }
}

/// The map of histograms, for writing.
pub(super) struct Durations {
    timings: Timings,
    /// Indexes of published ports that have histograms.
    made: BTreeSet<u32>,
    /// Indexes whose port began or went since [`Durations::begin_walk`].
    renewed: BTreeSet<u32>,
}

impl Durations {
    /// Opens the pinned map, and lists the ports that have histograms.
    ///
    /// # Errors
    /// It isn't pinned, isn't of the expected kind, or can't be read.
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let timings = Timings::open(pins)?;
        let made = timings
            .map
            .keys()
            .map(|key| key.map(Timed::service_index))
            .collect::<Result<_, _>>()
            .map_err(|error| DatapathError::map(names::DURATIONS, "dump", error))?;
        Ok(Self { timings, made, renewed: BTreeSet::new() })
    }

    /// Begins a walk: [`Durations::add_swept`] skips ports that begin or go from now on, as the
    /// walk's flows belong to the ports before them.
    pub(super) fn begin_walk(&mut self) {
        self.renewed.clear();
    }

    /// Resets the histograms of the published port with this index to zero.
    ///
    /// # Errors
    /// The map refuses the entries.
    pub(super) fn reset(&mut self, service_index: u32) -> Result<(), DatapathError> {
        self.renewed.insert(service_index);
        for timed in Timed::ALL {
            self.set(timed.key(service_index), &zeros(names::DURATIONS)?)?;
        }
        self.made.insert(service_index);
        Ok(())
    }

    /// Makes the histograms that the published ports in `contents` lack, and removes those that
    /// belong to none of them.
    ///
    /// # Errors
    /// The map refuses a change.
    pub(super) fn follow(&mut self, contents: &Contents) -> Result<(), DatapathError> {
        let wanted: BTreeSet<u32> = contents.services.values().map(|service| service.index).collect();
        let missing: Vec<u32> = wanted.difference(&self.made).copied().collect();
        for service_index in missing {
            self.reset(service_index)?;
        }
        let over: Vec<u32> = self.made.difference(&wanted).copied().collect();
        for service_index in over {
            self.renewed.insert(service_index);
            for timed in Timed::ALL {
                deleted(names::DURATIONS, self.timings.map.remove(&timed.key(service_index)))?;
            }
            self.made.remove(&service_index);
        }
        Ok(())
    }

    /// Adds the lifetimes of flows that no packet ended, unless their port has gone since the walk
    /// that found them began.
    ///
    /// # Errors
    /// The map can't be read, or refuses the change.
    pub(super) fn add_swept(&mut self, service_index: u32, lives: &Histogram) -> Result<(), DatapathError> {
        if self.renewed.contains(&service_index) || !self.made.contains(&service_index) {
            return Ok(());
        }
        let key = Timed::Swept.key(service_index);
        let Some(values) = self.timings.get(key)? else { return Ok(()) };
        let mut values = values.to_vec();
        if let Some(first) = values.first_mut() {
            *first = first.plus(lives);
        }
        self.set(key, &values)
    }

    fn set(&mut self, key: u32, values: &[Histogram]) -> Result<(), DatapathError> {
        let mut pauses = 0..PAUSES_MAX;
        loop {
            match self.timings.map.insert(key, per_cpu(names::DURATIONS, values.to_vec())?, 0) {
                Err(error) if is_out_of_memory(&error) && pauses.next().is_some() => sleep(PAUSE),
                result => {
                    return result.map_err(|error| DatapathError::map(names::DURATIONS, "update", error));
                }
            }
        }
    }
}

fn is_out_of_memory(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::ENOMEM))
}
