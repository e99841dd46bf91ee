//! Tables of flows or translations in the host's memory.

use core::cell::{Cell, RefCell};
use core::hash::Hash;
use std::collections::HashMap;
use std::rc::Rc;
use std::vec::Vec;

use crate::abi::{Flow, Nat};
use crate::conntrack;
use crate::lookups::{FlowEntry, FlowTable, Opened};

/// A half-open and an established table.
pub struct HostFlows<K, V> {
    /// Half-open entries.
    pub half_open: RefCell<HashMap<K, Rc<Cell<V>>>>,
    /// Established entries.
    pub established: RefCell<HashMap<K, Rc<Cell<V>>>>,
    /// Whether a closed entry moves from the established to the half-open ones, as in the kernel's
    /// maps of translations.
    pub(super) retires_ended: bool,
}

impl<K, V> Default for HostFlows<K, V> {
    fn default() -> Self {
        Self { half_open: RefCell::default(), established: RefCell::default(), retires_ended: false }
    }
}

impl<K: Eq + Hash + Copy, V: Copy> HostFlows<K, V> {
    pub(super) fn new(half_open: &[(K, V)], established: &[(K, V)]) -> Self {
        let table = |entries: &[(K, V)]| {
            entries.iter().map(|(key, value)| (*key, Rc::new(Cell::new(*value)))).collect()
        };
        Self {
            half_open: RefCell::new(table(half_open)),
            established: RefCell::new(table(established)),
            retires_ended: false,
        }
    }

    /// The values of both tables.
    pub fn all(&self) -> Vec<V> {
        let (half_open, established) = (self.half_open.borrow(), self.established.borrow());
        half_open.values().chain(established.values()).map(|entry| entry.get()).collect()
    }

    /// Stores an entry as established.
    fn adopt(&self, key: &K, value: &V) {
        self.established.borrow_mut().insert(*key, Rc::new(Cell::new(*value)));
        self.half_open.borrow_mut().remove(key);
    }
}

impl<K: Eq + Hash + Copy, V: Copy> FlowTable<K, V> for HostFlows<K, V>
where
    Rc<Cell<V>>: FlowEntry<V>,
{
    type Entry = Rc<Cell<V>>;

    fn find(&self, key: &K) -> Option<(Self::Entry, bool)> {
        let established = self.established.borrow().get(key).cloned().map(|entry| (entry, true));
        established.or_else(|| Some((self.half_open.borrow().get(key).cloned()?, false)))
    }

    fn open(&self, key: &K, value: &V) -> Opened {
        if self.half_open.borrow().contains_key(key) {
            return Opened::Exists;
        }
        self.half_open.borrow_mut().insert(*key, Rc::new(Cell::new(*value)));
        Opened::Added
    }

    fn reclassify(&self, key: &K, entry: &Self::Entry, is_established: bool, events: u32) {
        let is_ended = self.retires_ended && conntrack::is_closed(events);
        if !is_established && conntrack::is_established(events) && !is_ended {
            self.adopt(key, &Cell::get(entry));
        } else if is_established && is_ended {
            self.established.borrow_mut().remove(key);
            self.half_open.borrow_mut().insert(*key, entry.clone());
        }
    }

    fn replace(&self, key: &K, _: &Self::Entry, value: &V) {
        self.adopt(key, value);
    }

    fn forget(&self, key: &K) {
        self.established.borrow_mut().remove(key);
        self.half_open.borrow_mut().remove(key);
    }
}

macro_rules! entry_of {
    ($value:ident) => {
        impl FlowEntry<$value> for Rc<Cell<$value>> {
            fn get(&self) -> $value {
                Cell::get(self)
            }

            fn touch(&self, now_ns: u64) {
                self.set($value { seen_ns: now_ns, ..Cell::get(self) });
            }

            fn add_events(&self, events: u32) -> u32 {
                let before = Cell::get(self);
                self.set($value { events: before.events | events, ..before });
                before.events
            }

            fn clear_events(&self, events: u32) -> u32 {
                let before = Cell::get(self);
                self.set($value { events: before.events & !events, ..before });
                before.events
            }

            fn set_sequence(&self, sequence: u16) {
                self.set($value { sequence, ..Cell::get(self) });
            }
        }
    };
}
entry_of!(Flow);
entry_of!(Nat);
