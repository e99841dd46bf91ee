//! The loads of backends, as their own nodes measure them: one table for the whole agent.
//!
//! Invariants: a load is 1 (idle) to 127 (saturated), with the time when it was measured or
//! received; a load that is too old isn't used. Locks are held for one read or write, never across
//! an await.
//!
//! Left to others: measuring ([`crate::task::load`]), the kernel's table ([`crate::datapath`]),
//! sending loads to managers ([`crate::control_link`]).

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use mesh_ebpf::abi::LOAD_MAX_AGE_NS;
use mesh_state::ids::BackendId;

/// The largest load: saturated.
pub const LOAD_MAX: u8 = 127;
/// Loads that are older than this are not used.
pub const MAX_AGE: Duration = Duration::from_nanos(LOAD_MAX_AGE_NS);

/// A load from a manager is used only if no load younger than this is known: replies of the
/// backend's node carry fresher ones.
pub const HEARSAY_AGE: Duration = Duration::from_secs(2);

/// A load, and when it was true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// From 1 (idle) to 127 (saturated).
    pub level: u8,
    /// When the load was measured or received.
    pub seen: Instant,
}

/// Loads of this node's own backends, and when they were measured.
pub type Measured = (Instant, Vec<(BackendId, u8)>);

/// Loads by backend.
#[derive(Debug, Default)]
pub struct Loads {
    table: RwLock<BTreeMap<BackendId, Load>>,
    /// The loads of this node's own backends, and when they were measured.
    own: RwLock<Option<Measured>>,
}

impl Loads {
    /// The newest load of a backend, however old.
    pub fn newest(&self, backend: BackendId) -> Option<Load> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).get(&backend).copied()
    }

    /// The load of a backend, if a recent enough one is known.
    pub fn fresh(&self, backend: BackendId, now: Instant) -> Option<u8> {
        let load = self.newest(backend)?;
        (now.saturating_duration_since(load.seen) <= MAX_AGE).then_some(load.level)
    }

    /// Stores the measured loads of all of this node's own backends.
    pub fn set_own(&self, levels: &[(BackendId, u8)], now: Instant) {
        self.set(levels.iter().copied(), now);
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = Some((now, levels.to_vec()));
    }

    /// The loads of this node's own backends and when they were measured, if that was later than
    /// `since`.
    pub fn own_since(&self, since: Option<Instant>) -> Option<Measured> {
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        own.clone().filter(|(measured, _)| since.is_none_or(|since| *measured > since))
    }

    /// Stores loads, and replaces those that are known.
    pub fn set(&self, levels: impl IntoIterator<Item = (BackendId, u8)>, now: Instant) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        for (backend, level) in levels {
            table.insert(backend, Load { level: level.clamp(1, LOAD_MAX), seen: now });
        }
    }

    /// Stores loads of backends of which no load younger than `age` is known.
    pub fn set_if_older(
        &self,
        levels: impl IntoIterator<Item = (BackendId, u8)>,
        age: Duration,
        now: Instant,
    ) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        for (backend, level) in levels {
            let is_known =
                table.get(&backend).is_some_and(|load| now.saturating_duration_since(load.seen) <= age);
            if !is_known {
                table.insert(backend, Load { level: level.clamp(1, LOAD_MAX), seen: now });
            }
        }
    }

    /// The loads that became known at `since` or later.
    pub fn changed_since(&self, since: Instant) -> Vec<(BackendId, u8)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.iter().filter(|(_, load)| load.seen >= since).map(|(id, load)| (*id, load.level)).collect()
    }

    /// The loads that are known, by backend.
    pub fn all(&self) -> BTreeMap<BackendId, Load> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Removes backends that are gone.
    pub fn retain(&self, is_kept: impl Fn(BackendId) -> bool) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).retain(|backend, _| is_kept(*backend));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_figures_are_none_and_hearsay_does_not_replace_young_ones() {
        let (loads, start) = (Loads::default(), Instant::now());
        let id = BackendId::new(7).expect("an id");
        loads.set([(id, 200)], start);
        assert_eq!(loads.fresh(id, start), Some(LOAD_MAX), "cut to the largest");
        assert_eq!(loads.fresh(id, start + MAX_AGE * 2), None);
        let soon = start + Duration::from_secs(1);
        loads.set_if_older([(id, 3)], Duration::from_secs(2), soon);
        assert_eq!(loads.changed_since(soon), []);
        let later = start + Duration::from_secs(3);
        loads.set_if_older([(id, 3)], Duration::from_secs(2), later);
        assert_eq!(loads.own_since(None), None);
        loads.set_own(&[(id, 3)], later);
        assert_eq!(loads.own_since(Some(soon)), Some((later, vec![(id, 3)])));
        assert_eq!(loads.own_since(Some(later)), None, "told already");
        assert_eq!(loads.changed_since(soon), [(id, 3)]);
        assert_eq!(loads.fresh(id, later), Some(3));
    }
}
