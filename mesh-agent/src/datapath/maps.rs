//! Typed handles of the pinned maps: reads their contents, carries out one write.
//!
//! Invariants: a write changes the maps exactly as [`Contents::apply`] changes the model. In this
//! process only [`Maps`] writes them, except for the maps of [`Tallies`], which the sweep writes
//! too.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use mesh_ebpf::abi::{
    Address, AllowedKey, Backend, BackendLoad, BackendStats, Config, FrontendStats, Member, Node, Service,
    ServiceKey, names,
};

use super::contents::{Allowed, Contents, Front, Write};
use super::error::DatapathError;
use super::loader;
use super::lock::lock;
use super::map_access::{deleted, zeros};
use super::pins::Pins;
use super::syscall;
use super::tallies::Tallies;

mod networks;

use networks::NetworkMaps;

/// The maps that userspace writes, and the counters it resets.
pub(super) struct Maps {
    config: Array<MapData, Config>,
    addresses: HashMap<MapData, Address, u32>,
    services: HashMap<MapData, ServiceKey, Service>,
    slots: Array<MapData, u32>,
    all_slots: Dump<u32, u32>,
    backends: Array<MapData, Backend>,
    all_backends: Dump<u32, Backend>,
    nodes: Array<MapData, Node>,
    all_nodes: Dump<u32, Node>,
    members: Array<MapData, Member>,
    all_members: Dump<u32, Member>,
    peers: HashMap<MapData, Address, u32>,
    allowed: LpmTrie<MapData, AllowedKey, u32>,
    networks: NetworkMaps,
    loads: Array<MapData, BackendLoad>,
    backend_stats: PerCpuArray<MapData, BackendStats>,
    frontend_stats: PerCpuArray<MapData, FrontendStats>,
    tallies: Arc<Mutex<Tallies>>,
}

impl Maps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// A map isn't pinned, or isn't of the expected kind.
    pub(super) fn open(pins: &Pins, tallies: Arc<Mutex<Tallies>>) -> Result<Self, DatapathError> {
        Ok(Self {
            config: loader::open(pins, names::CONFIG)?,
            addresses: loader::open(pins, names::ADDRESSES)?,
            services: loader::open(pins, names::SERVICES)?,
            slots: loader::open(pins, names::SLOTS)?,
            all_slots: Dump::open(pins, names::SLOTS)?,
            backends: loader::open(pins, names::BACKENDS)?,
            all_backends: Dump::open(pins, names::BACKENDS)?,
            nodes: loader::open(pins, names::NODES)?,
            all_nodes: Dump::open(pins, names::NODES)?,
            members: loader::open(pins, names::MEMBERS)?,
            all_members: Dump::open(pins, names::MEMBERS)?,
            peers: loader::open(pins, names::PEERS)?,
            allowed: loader::open(pins, names::ALLOWED)?,
            networks: NetworkMaps::open(pins)?,
            loads: loader::open(pins, names::LOADS)?,
            backend_stats: loader::open(pins, names::BACKEND_STATS)?,
            frontend_stats: loader::open(pins, names::FRONTEND_STATS)?,
            tallies,
        })
    }

    /// Reads everything that userspace writes.
    ///
    /// # Errors
    /// A map can't be read.
    pub(super) fn read(&self) -> Result<Contents, DatapathError> {
        let mut contents = Contents {
            config: self
                .config
                .get(&0, 0)
                .map_err(|error| DatapathError::map(names::CONFIG, "lookup", error))?,
            ..Contents::default()
        };
        for entry in &self.addresses {
            let (address, index) =
                entry.map_err(|error| DatapathError::map(names::ADDRESSES, "dump", error))?;
            contents.addresses.insert(address, index);
        }
        for entry in &self.peers {
            let (address, index) = entry.map_err(|error| DatapathError::map(names::PEERS, "dump", error))?;
            contents.peers.insert(address, index);
        }
        for entry in &self.services {
            let (key, service) = entry.map_err(|error| DatapathError::map(names::SERVICES, "dump", error))?;
            contents.services.insert(Front::Port(key.into()), service);
        }
        self.networks.read(&mut contents)?;
        let (services, slots) = (&contents.services, &mut contents.slots);
        for service in services.values() {
            let end = service.slot_base.saturating_add(service.slot_count).min(names::SLOTS_MAX);
            self.all_slots.for_each_in_range(service.slot_base..end, |slot, backend| {
                slots.insert(slot, backend);
            })?;
        }
        for key in self.allowed.keys() {
            let key = key.map_err(|error| DatapathError::map(names::ALLOWED, "dump", error))?;
            contents.allowed.insert(Allowed::from_key(key.prefix_len(), key.data()));
        }
        self.all_backends.for_each(|id, backend| {
            if backend != Backend::default() {
                contents.backends.insert(id, backend);
            }
        })?;
        self.all_nodes.for_each(|index, node| {
            if node != Node::default() {
                contents.nodes.insert(index, node);
            }
        })?;
        self.all_members.for_each(|index, member| {
            if member != Member::default() {
                contents.members.insert(index, member);
            }
        })?;
        Ok(contents)
    }

    /// Carries out one write.
    ///
    /// # Errors
    /// The map refuses it; what was written before stays.
    pub(super) fn write(&mut self, write: &Write) -> Result<(), DatapathError> {
        let map = write.map();
        let updated = match write {
            Write::Config(config) => self.config.set(0, config, 0),
            Write::Address(address, index) => self.addresses.insert(address, index, 0),
            Write::Node(index, node) => self.nodes.set(*index, node, 0),
            Write::Member(index, member) => self.members.set(*index, member, 0),
            Write::Peer(address, index) => self.peers.insert(address, index, 0),
            Write::Backend(id, backend) => self.backends.set(*id, backend, 0),
            Write::Slots { base, backends } => {
                (*base..).zip(backends).try_for_each(|(slot, backend)| self.slots.set(slot, backend, 0))
            }
            Write::Service(Front::Port(port), service) => {
                self.services.insert(ServiceKey::from(*port), service, 0)
            }
            Write::Service(Front::VirtualIp(_), _)
            | Write::RemoveService(Front::VirtualIp(_))
            | Write::Link(..)
            | Write::RemoveLink(_)
            | Write::Endpoint(..)
            | Write::RemoveEndpoint(_)
            | Write::Isolate(..)
            | Write::RemoveIsolated(_)
            | Write::Subnet6(..)
            | Write::RemoveSubnet6(_) => return self.networks.write(write),
            Write::Allow(allowed) => self.allowed.insert(&trie_key(*allowed), 1, 0),
            Write::Disallow(allowed) => return deleted(map, self.allowed.remove(&trie_key(*allowed))),
            Write::ResetBackend(id) => return self.reset_backend(*id),
            Write::ResetFrontend(index) => return self.reset_frontend(*index),
            Write::RemoveAddress(address) => return deleted(map, self.addresses.remove(address)),
            Write::RemovePeer(address) => return deleted(map, self.peers.remove(address)),
            Write::RemoveService(Front::Port(port)) => {
                return deleted(map, self.services.remove(&ServiceKey::from(*port)));
            }
        };
        updated.map_err(|error| DatapathError::map(map, "update", error))
    }

    /// Resets the counters of a backend to zero, and its live connections as well.
    fn reset_backend(&mut self, id: u32) -> Result<(), DatapathError> {
        lock(&self.tallies).reset_backend(id)?;
        self.set_load(id, BackendLoad::default())?;
        self.backend_stats
            .set(id, zeros(names::BACKEND_STATS)?, 0)
            .map_err(|error| DatapathError::map(names::BACKEND_STATS, "update", error))
    }

    /// The load of a backend that the programs use.
    ///
    /// # Errors
    /// The map can't be read.
    pub(super) fn load(&self, id: u32) -> Result<BackendLoad, DatapathError> {
        self.loads.get(&id, 0).map_err(|error| DatapathError::map(names::LOADS, "lookup", error))
    }

    /// Replaces the load of a backend.
    ///
    /// # Errors
    /// The map refuses it.
    pub(super) fn set_load(&mut self, id: u32, load: BackendLoad) -> Result<(), DatapathError> {
        self.loads.set(id, load, 0).map_err(|error| DatapathError::map(names::LOADS, "update", error))
    }

    /// Makes and removes histograms as the published ports in `contents` come and go.
    ///
    /// # Errors
    /// The map refuses a change.
    pub(super) fn follow_durations(&mut self, contents: &Contents) -> Result<(), DatapathError> {
        lock(&self.tallies).follow(contents)
    }

    fn reset_frontend(&mut self, index: u32) -> Result<(), DatapathError> {
        lock(&self.tallies).reset_port(index)?;
        self.frontend_stats
            .set(index, zeros(names::FRONTEND_STATS)?, 0)
            .map_err(|error| DatapathError::map(names::FRONTEND_STATS, "update", error))
    }
}

fn trie_key(allowed: Allowed) -> Key<AllowedKey> {
    let (bits, key) = allowed.key();
    Key::new(bits, key)
}

/// A map that is read as a whole.
pub(super) struct Dump<K, V> {
    map: &'static str,
    data: MapData,
    types: PhantomData<(K, V)>,
}

impl<K: Pod + Default, V: Pod + Default> Dump<K, V> {
    /// Opens a pinned map, and checks the sizes of its keys and values.
    ///
    /// # Errors
    /// It isn't pinned, or has entries of other sizes.
    pub(super) fn open(pins: &Pins, map: &'static str) -> Result<Self, DatapathError> {
        let failed = |source| DatapathError::Map { map, source: Box::new(source) };
        let data = MapData::from_pin(pins.map(map)).map_err(failed)?;
        let info = data.info().map_err(failed)?;
        let (key, value) = (size_of::<K>(), size_of::<V>());
        if info.key_size() as usize != key {
            return Err(failed(aya::maps::MapError::InvalidKeySize {
                size: key,
                expected: info.key_size() as usize,
            }));
        }
        if info.value_size() as usize != value {
            return Err(failed(aya::maps::MapError::InvalidValueSize {
                size: value,
                expected: info.value_size() as usize,
            }));
        }
        Ok(Self { map, data, types: PhantomData })
    }

    /// Calls `visit` with every entry.
    ///
    /// # Errors
    /// The kernel refuses a batch.
    pub(super) fn for_each(&self, visit: impl FnMut(K, V)) -> Result<(), DatapathError> {
        syscall::for_each_entry(self.data.fd(), visit).map_err(|source| DatapathError::MapOperation {
            map: self.map,
            operation: "dump",
            source,
        })
    }

    /// The most entries that the map holds.
    ///
    /// # Errors
    /// The kernel doesn't report it.
    pub(super) fn capacity(&self) -> Result<u32, DatapathError> {
        let info = self.data.info().map_err(|error| DatapathError::map(self.map, "lookup", error))?;
        Ok(info.max_entries())
    }
}

impl<V: Pod + Default> Dump<u32, V> {
    /// Calls `visit` with the entries of a range of an array map.
    ///
    /// # Errors
    /// The kernel refuses a batch.
    pub(super) fn for_each_in_range(
        &self,
        range: Range<u32>,
        visit: impl FnMut(u32, V),
    ) -> Result<(), DatapathError> {
        syscall::for_each_in_range(self.data.fd(), range, visit)
            .map_err(|source| DatapathError::MapOperation { map: self.map, operation: "dump", source })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::pinned;
    use super::*;

    #[test]
    fn a_range_is_read_whole_and_nothing_beside_it() {
        let Some(pins) = pinned("slots") else { return };
        let mut slots: Array<MapData, u32> = loader::open(&pins, names::SLOTS).expect("it is pinned");
        for slot in 0..10_000 {
            slots.set(slot, slot + 1, 0).expect("the map takes it");
        }
        let dump = Dump::<u32, u32>::open(&pins, names::SLOTS).expect("it is pinned");
        for range in
            [0..0, 0..1, 0..9000, 5..5, 4095..4097, 100..9999, names::SLOTS_MAX - 1..names::SLOTS_MAX]
        {
            let mut read = Vec::new();
            dump.for_each_in_range(range.clone(), |slot, backend| read.push((slot, backend)))
                .expect("it is read");
            let value = |slot: u32| if slot < 10_000 { slot + 1 } else { 0 };
            let expected: Vec<(u32, u32)> = range.clone().map(|slot| (slot, value(slot))).collect();
            assert!(read == expected, "{range:?}: {} entries, or others", read.len());
        }
    }
}
