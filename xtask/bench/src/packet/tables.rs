//! Fills the maps of the measured program as the agent would.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::{Ebpf, EbpfLoader};
use mesh_ebpf::abi::{
    Address, Backend, BackendState, Be16, Config, FrontendStats, Histogram, Mac, Node, Policy, Service,
    ServiceKey, Timed, names, protocol,
};
use mesh_ebpf::flow_table::{cell_count, factors};
use mesh_lab::cluster::eventually;

use super::case::Case;
use super::rig::{NODE_MAC, SOURCE_MAC};
use crate::maps::{insert, set};

/// The node's address.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
pub(super) const FIRST_PORT: u16 = 20_000;
/// The number of nodes that backends are on.
const NODES: u32 = 8;
/// The MTU of the measured end, less the tunnel's headers.
const TUNNEL_MTU: u32 = 1450;
/// The secret of the flow table's hash, the same in each round.
const SEED: u64 = 0x9e6c_63d0_76cc_4f13;
/// How long the kernel may take until it has memory for a histogram.
const HISTOGRAM_LIMIT: Duration = Duration::from_secs(5);

/// Loads the object, with the flow table's size from the case.
pub(super) fn load(programs: &[u8], case: &Case) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    let homes = case.homes();
    loader.map_max_entries(names::FLOWS, cell_count(homes));
    loader.override_global(names::FLOW_HOMES, &homes, true);
    let factors = factors(SEED);
    loader.override_global(names::FLOW_FACTORS, &factors[..], true);
    for table in [names::NAT_HALF_OPEN, names::NAT_ESTABLISHED] {
        loader.map_max_entries(table, 64);
    }
    loader.load(programs).context("load the data plane's maps")
}

/// Writes the services, backends and nodes of the case.
pub(super) fn fill(object: &mut Ebpf, case: &Case, ifindex: u32) -> Result<()> {
    configure(object, 0)?;
    insert(object, names::ADDRESSES, [(Address::from(ADDRESS), 0_u32)])?;
    let nodes = (1..=NODES).map(|index| (index, node(index, ifindex)));
    set(object, names::NODES, nodes.clone())?;
    insert(object, names::PEERS, nodes.map(|(index, node)| (node.address, index)))?;
    let ids = 1..=case.services * case.backends;
    set(object, names::BACKENDS, ids.clone().map(|id| (id, backend(id, (id - 1) / case.backends))))?;
    set(object, names::SLOTS, ids.map(|id| (id - 1, id)))?;
    let services = (0..case.services).map(|index| (ServiceKey::tcp(port(index)), service(case, index)));
    insert(object, names::SERVICES, services)?;
    make_histograms(object, case.services)
}

/// The case's service with this index.
pub(super) fn service(case: &Case, index: u32) -> Service {
    Service {
        index,
        slot_base: index * case.backends,
        slot_count: case.backends,
        policy: Policy::RoundRobin as u8,
        ..Service::default()
    }
}

/// Writes the node's configuration; each CPU remembers `syn_guard_rate` SYNs per second, 0: all.
pub(super) fn configure(object: &mut Ebpf, syn_guard_rate: u32) -> Result<()> {
    let config = Config {
        address: ADDRESS.into(),
        tunnel_port_be: Be16::new(4799),
        tunnel_mtu: TUNNEL_MTU,
        tunnel_mss: 1410,
        syn_guard_rate,
        ..Config::default()
    };
    set(object, names::CONFIG, [(0, config)])
}

/// Makes the histograms of published ports, which the program updates only if they exist.
fn make_histograms(object: &mut Ebpf, services: u32) -> Result<()> {
    let map = object.map_mut(names::DURATIONS).context("histograms of published ports")?;
    let mut histograms: PerCpuHashMap<_, u32, Histogram> = PerCpuHashMap::try_from(map)?;
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error).context("count CPUs")?;
    for index in 0..services {
        for timed in Timed::ALL {
            let make = || {
                let zeros = PerCpuValues::try_from(vec![Histogram::default(); cpus])?;
                histograms.insert(timed.key(index), zeros, 0).context("make a histogram")
            };
            // The kernel has few spare per-CPU entries, and refills them asynchronously.
            eventually("a histogram", HISTOGRAM_LIMIT, make)?;
        }
    }
    Ok(())
}

/// The published port with this index.
pub(super) fn port(index: u32) -> u16 {
    u16::try_from(index).map_or(u16::MAX, |index| FIRST_PORT.saturating_add(index))
}

fn node(index: u32, ifindex: u32) -> Node {
    let last = u8::try_from(11 + index).unwrap_or(u8::MAX);
    Node {
        address: Ipv4Addr::new(10, 77, 0, last).into(),
        mac: Mac(SOURCE_MAC),
        source_mac: Mac(NODE_MAC),
        ifindex,
        cookie: index,
        ..Node::default()
    }
}

/// The backend with this id.
pub(super) fn backend(id: u32, service_index: u32) -> Backend {
    Backend {
        task_address: Ipv4Addr::from_bits(0x0a80_0000 | id).into(),
        node: 1 + id % NODES,
        service_index,
        task_port_be: Be16::new(8080),
        published_port_be: Be16::new(port(service_index)),
        protocol: protocol::TCP,
        state: BackendState::Active as u8,
        ..Backend::default()
    }
}

/// Packets forwarded so far.
pub(super) fn forwarded(object: &Ebpf, case: &Case) -> Result<u64> {
    let map = object.map(names::FRONTEND_STATS).context("counters of published ports")?;
    let stats: PerCpuArray<_, FrontendStats> = PerCpuArray::try_from(map)?;
    let mut sum = 0;
    for index in 0..case.services {
        sum += stats.get(&index, 0)?.iter().map(|stats| stats.request.packets).sum::<u64>();
    }
    Ok(sum)
}
