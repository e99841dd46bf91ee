//! The outline of the tables that a scrape needs, published whenever the maps have changed.
//!
//! Invariants: a scrape takes no lock under which a table is written, and copies nothing that grows
//! with the number of slots, so that neither waits for the other. The outline is what the maps held
//! after the last change.

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use mesh_ebpf::abi::{Backend, Service, Timed, names};

use super::contents::{Contents, Front, service_map};
use super::error::{DatapathError, MapErrors};
use super::lock::lock;

/// The published ports and backends whose counters are read, and how full the tables are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outline {
    /// Published ports and virtual IPs.
    pub(super) frontends: Vec<(Front, Service)>,
    /// Backends whose flows go on.
    pub(super) backends: Vec<(u32, Backend)>,
    /// Entries in use and most entries, by map.
    pub(super) fills: Vec<(&'static str, u64, u32)>,
}

impl From<&Contents> for Outline {
    fn from(contents: &Contents) -> Self {
        let frontends: Vec<_> = contents.services.iter().map(|(port, service)| (*port, *service)).collect();
        let backends: Vec<_> = contents.alive().map(|(id, backend)| (id, *backend)).collect();
        let slots = frontends.iter().map(|(_, service)| u64::from(service.slot_count)).sum();
        let of_map = |map| frontends.iter().filter(|(front, _)| service_map(*front) == map).count() as u64;
        let (ports, virtual_ips) = (of_map(names::SERVICES), of_map(names::VIRTUAL_IPS));
        let fills = vec![
            (names::ADDRESSES, contents.addresses.len() as u64, names::ADDRESSES_MAX),
            (names::SERVICES, ports, names::SERVICES_MAX),
            (names::SLOTS, slots, names::SLOTS_MAX),
            (names::BACKENDS, backends.len() as u64, names::BACKENDS_MAX),
            (names::NODES, contents.nodes.len() as u64, names::NODES_MAX),
            (names::PEERS, contents.peers.len() as u64, names::NODES_MAX),
            (names::ALLOWED, contents.allowed.len() as u64, names::ALLOWED_MAX),
            (names::LINKS, contents.links.len() as u64, names::LINKS_MAX),
            (names::ENDPOINTS, contents.endpoints.len() as u64, names::ENDPOINTS_MAX),
            (names::VIRTUAL_IPS, virtual_ips, names::VIRTUAL_IPS_MAX),
            (names::ISOLATED, contents.isolated.len() as u64, names::ISOLATED_MAX),
            (names::SUBNETS6, contents.subnets6.len() as u64, names::SUBNETS6_MAX),
            (names::DURATIONS, (ports + virtual_ips) * Timed::ALL.len() as u64, names::DURATIONS_MAX),
        ];
        Self { frontends, backends, fills }
    }
}

/// The newest outline, and failed map operations so far.
#[derive(Debug, Default)]
pub(super) struct Published {
    outline: ArcSwap<Outline>,
    errors: Mutex<MapErrors>,
}

impl Published {
    /// Publishes the outline of `contents`.
    pub(super) fn publish(&self, contents: &Contents) {
        self.outline.store(Arc::new(Outline::from(contents)));
    }

    /// The outline after the last change.
    pub(super) fn outline(&self) -> Arc<Outline> {
        self.outline.load_full()
    }

    /// Counts a failure of a map operation, and passes the result on.
    pub(super) fn counted<T>(&self, result: Result<T, DatapathError>) -> Result<T, DatapathError> {
        if let Err(DatapathError::MapOperation { map, operation, .. }) = &result {
            self.count(map, operation);
        }
        result
    }

    /// Counts a failed operation on a map.
    pub(super) fn count(&self, map: &'static str, operation: &'static str) {
        *lock(&self.errors).entry((map, operation)).or_default() += 1;
    }

    /// Failures so far.
    pub(super) fn errors(&self) -> MapErrors {
        lock(&self.errors).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mesh_ebpf::abi::BackendState;

    use super::super::contents::Frontend;
    use super::*;

    #[test]
    fn the_outline_has_what_figures_are_read_for() {
        let frontend = Front::Port(Frontend { protocol: 6, port: 80 });
        let service = Service { slot_base: 4, slot_count: 2, index: 1, ..Service::default() };
        let alive = Backend { state: BackendState::Active as u8, ..Backend::default() };
        let gone = Backend { state: BackendState::Down as u8, ..Backend::default() };
        let contents = Contents {
            services: BTreeMap::from([(frontend, service)]),
            slots: BTreeMap::from([(4, 7), (5, 7), (99, 1)]),
            backends: BTreeMap::from([(7, alive), (8, gone)]),
            ..Contents::default()
        };
        let outline = Outline::from(&contents);
        assert_eq!(outline.frontends, [(frontend, service)]);
        assert_eq!(outline.backends, [(7, alive)], "of those whose flows go on");
        let filled =
            |map| outline.fills.iter().find(|(name, ..)| *name == map).map(|(_, entries, _)| *entries);
        assert_eq!(
            [names::SERVICES, names::SLOTS, names::BACKENDS, names::DURATIONS].map(filled),
            [Some(1), Some(2), Some(1), Some(Timed::ALL.len() as u64)]
        );
    }
}
