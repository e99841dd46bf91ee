//! The maps of users' networks: links, endpoints, virtual IPs, IPv6 addresses, and what tasks must
//! not send to.

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData};
use ipnet::IpNet;
use mesh_ebpf::abi::{Endpoint, EndpointKey, IsolatedKey, Link, Service, Subnet6, names};

use super::Dump;
use crate::datapath::contents::{Contents, Front, Write, isolated_key, isolated_network};
use crate::datapath::error::DatapathError;
use crate::datapath::loader;
use crate::datapath::map_access::deleted;
use crate::datapath::pins::Pins;

/// The maps that overlay networks need.
pub(super) struct NetworkMaps {
    links: HashMap<MapData, u32, Link>,
    all_links: Dump<u32, Link>,
    endpoints: HashMap<MapData, EndpointKey, Endpoint>,
    all_endpoints: Dump<EndpointKey, Endpoint>,
    virtual_ips: HashMap<MapData, EndpointKey, Service>,
    isolated: LpmTrie<MapData, IsolatedKey, u32>,
    subnets6: HashMap<MapData, u32, Subnet6>,
}

impl NetworkMaps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// A map isn't pinned, or isn't of the expected kind.
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self {
            links: loader::open(pins, names::LINKS)?,
            all_links: Dump::open(pins, names::LINKS)?,
            endpoints: loader::open(pins, names::ENDPOINTS)?,
            all_endpoints: Dump::open(pins, names::ENDPOINTS)?,
            virtual_ips: loader::open(pins, names::VIRTUAL_IPS)?,
            isolated: loader::open(pins, names::ISOLATED)?,
            subnets6: loader::open(pins, names::SUBNETS6)?,
        })
    }

    /// Adds what the maps hold to `contents`.
    ///
    /// # Errors
    /// A map can't be read.
    pub(super) fn read(&self, contents: &mut Contents) -> Result<(), DatapathError> {
        let failed = |map| move |error| DatapathError::map(map, "dump", error);
        self.all_links.for_each(|ifindex, link| _ = contents.links.insert(ifindex, link))?;
        self.all_endpoints.for_each(|key, endpoint| _ = contents.endpoints.insert(key.into(), endpoint))?;
        for entry in &self.virtual_ips {
            let (key, service) = entry.map_err(failed(names::VIRTUAL_IPS))?;
            contents.services.insert(Front::VirtualIp(key.into()), service);
        }
        for entry in &self.subnets6 {
            let (network, subnet) = entry.map_err(failed(names::SUBNETS6))?;
            contents.subnets6.insert(network, subnet);
        }
        for entry in &self.isolated {
            let (key, value) = entry.map_err(failed(names::ISOLATED))?;
            if let Some(network) = isolated_network(key.prefix_len(), key.data()) {
                contents.isolated.insert(network, value);
            }
        }
        Ok(())
    }

    /// Carries out a write to one of these maps. Writes to others are left alone.
    ///
    /// # Errors
    /// The map refuses it.
    pub(super) fn write(&mut self, write: &Write) -> Result<(), DatapathError> {
        let map = write.map();
        let updated = match write {
            Write::Link(ifindex, link) => self.links.insert(ifindex, link, 0),
            Write::Endpoint(place, endpoint) => self.endpoints.insert(EndpointKey::from(*place), endpoint, 0),
            Write::Service(Front::VirtualIp(place), service) => {
                self.virtual_ips.insert(EndpointKey::from(*place), service, 0)
            }
            Write::Isolate(network, value) => self.isolated.insert(&trie_key(*network), value, 0),
            Write::Subnet6(network, subnet) => self.subnets6.insert(network, subnet, 0),
            Write::RemoveSubnet6(network) => return deleted(map, self.subnets6.remove(network)),
            Write::RemoveLink(ifindex) => return deleted(map, self.links.remove(ifindex)),
            Write::RemoveEndpoint(place) => {
                return deleted(map, self.endpoints.remove(&EndpointKey::from(*place)));
            }
            Write::RemoveService(Front::VirtualIp(place)) => {
                return deleted(map, self.virtual_ips.remove(&EndpointKey::from(*place)));
            }
            Write::RemoveIsolated(network) => return deleted(map, self.isolated.remove(&trie_key(*network))),
            _ => return Ok(()),
        };
        updated.map_err(|error| DatapathError::map(map, "update", error))
    }
}

fn trie_key(network: IpNet) -> Key<IsolatedKey> {
    let (bits, key) = isolated_key(network);
    Key::new(bits, key)
}
