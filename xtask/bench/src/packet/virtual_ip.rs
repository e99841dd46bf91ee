//! Cases of virtual IPs: the task's veth is the measured end, and the program is that of TC there,
//! with those that it tail-calls.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::{MapData, ProgramArray};
use aya::programs::{TcAttachType, XdpMode};
use mesh_checkout::command::Program;
use mesh_ebpf::abi::{Backend, Edge, Endpoint, EndpointKey, Link, Mac, names};

use super::case::Case;
use super::rig::{NODE, SOURCE_MAC};
use super::tables::{backend, service};
use crate::maps::{insert, set};
use crate::objects::Objects;
use crate::programs::{self, classifier, xdp};

/// The network's number.
const NETWORK: u32 = 1;
/// The task that sends.
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 2);
/// The network's subnet, 10.5.0.0/16, and its mask.
const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 0);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 0, 0);
/// The first virtual IP.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 5, 128, 0);

/// The virtual IP of the service with this index.
pub(super) fn address(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST.to_bits() + index)
}

/// Writes the network, and gives each service a virtual IP on it. All backends are on other nodes,
/// and their addresses belong to the network.
pub(super) fn fill(object: &mut Ebpf, case: &Case, ifindex: u32) -> Result<()> {
    let link = Link {
        network: NETWORK,
        address: u32::from_ne_bytes(CLIENT.octets()),
        subnet: u32::from_ne_bytes(SUBNET.octets()),
        mask: u32::from_ne_bytes(MASK.octets()),
        mac: Mac(SOURCE_MAC),
        ..Link::default()
    };
    insert(object, names::LINKS, [(ifindex, link)])?;
    let on_network = |octets: [u8; 4]| EndpointKey::new(NETWORK, octets);
    let own = Endpoint { ifindex, mac: link.mac, ..Endpoint::default() };
    insert(object, names::ENDPOINTS, [(on_network(CLIENT.octets()), own)])?;
    let ids = 1..=case.services * case.backends;
    let backends = ids.map(|id| {
        let service = (id - 1) / case.backends;
        let task_address6 = address(service).into();
        (id, Backend { network: NETWORK, task_address6, ..backend(id, service) })
    });
    set(object, names::BACKENDS, backends.clone())?;
    let endpoints = backends.map(|(id, backend)| {
        let endpoint = Endpoint { node: backend.node, backend: id, ..Endpoint::default() };
        (on_network(backend.task_address.v4_octets()), endpoint)
    });
    insert(object, names::ENDPOINTS, endpoints)?;
    let services =
        (0..case.services).map(|index| (on_network(address(index).octets()), service(case, index)));
    insert(object, names::VIRTUAL_IPS, services)
}

/// What must stay while the program is measured.
pub(super) struct Beside {
    _edges: ProgramArray<MapData>,
    _pass: Ebpf,
}

/// Attaches the program to the measured end, and an XDP program that passes everything, without
/// which a veth receives no frames from XDP.
pub(super) fn attach(object: &mut Ebpf, objects: &Objects) -> Result<Beside> {
    let edges = programs::edges(object, &[Edge::VirtualIp])?;
    let overlay = classifier(object, names::PROGRAM_OVERLAY)?;
    overlay.attach(NODE, TcAttachType::Ingress).context("attach the program of a task's veth")?;
    let mut pass = Ebpf::load(&objects.pass).context("load the passing program")?;
    let passing = xdp(&mut pass, names::PROGRAM_PASS)?;
    passing.load().context("load the passing program")?;
    passing.attach(NODE, XdpMode::Driver).context("attach the passing program")?;
    // The kernel would hold packets back to join them.
    Program::new("ethtool").args(["-K", NODE, "gro", "off"]).run()?;
    Ok(Beside { _edges: edges, _pass: pass })
}
