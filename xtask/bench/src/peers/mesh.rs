//! Loads mesh's programs on the nodes of a cluster, and fills their maps as the agent would.

use anyhow::{Context, Result};
use aya::maps::{MapData, ProgramArray};
use aya::programs::{TcAttachType, XdpMode};
use aya::{Ebpf, EbpfLoader};
use mesh_checkout::command::Program;
use mesh_ebpf::abi::{
    Backend, BackendState, Be16, Config, Edge, Mac, Member, Mode, Node, Policy, Service, ServiceKey,
    backend_flag, member_flag, names, protocol,
};
use mesh_ebpf::parse::vxlan::{SOURCE_PORT_MAX, SOURCE_PORT_MIN};

use super::cluster::{Cluster, TUNNEL_MTU, node_address, node_mac, task_address, task_mac};
use super::network;
use crate::maps::{ifindex, insert, set};
use crate::objects::Objects;
use crate::programs::{self, classifier, xdp};

const TUNNEL_PORT: u16 = 4799;
const PUBLISHED: u16 = 80;

/// How mesh serves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Carriage {
    /// Whether XDP runs on the uplinks, with TC behind it.
    pub(super) has_xdp: bool,
    /// What clients ask for.
    pub(super) served: Served,
    /// The node of the task that serves.
    pub(super) task_node: u8,
}

/// What clients ask for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Served {
    /// The published port of a service in this mode.
    Port(Mode),
    /// A virtual IP, or an address, on the [`network`].
    Network,
}

/// The programs on a node, and the tail-call targets, which their array loses when it is dropped.
pub(super) struct Loaded {
    _programs: Ebpf,
    _edges: Option<ProgramArray<MapData>>,
}

/// Loads mesh on both nodes. Dropping the result removes the programs.
pub(super) fn attach(cluster: &Cluster, objects: &Objects, carriage: Carriage) -> Result<Vec<Loaded>> {
    let mut loaded = Vec::new();
    if carriage.has_xdp {
        // A veth receives what XDP sends only if it runs XDP itself, and frames need valid
        // checksums on the way into XDP.
        let programs = cluster.bridge.run(|| pass(objects))?;
        loaded.push(Loaded { _programs: programs, _edges: None });
    }
    let (port, mtu) = (TUNNEL_PORT.to_string(), TUNNEL_MTU.to_string());
    for number in [1, 2] {
        let node = cluster.node(number);
        let tunnel =
            ["link", "add", "mesh-vxlan0", "type", "vxlan", "external", "dstport", &port, "nolearning"];
        let (min, max) = (SOURCE_PORT_MIN.to_string(), SOURCE_PORT_MAX.to_string());
        node.ip(&[tunnel.as_slice(), &["srcport", &min, &max]].concat())?;
        node.ip(&["link", "set", "mesh-vxlan0", "mtu", &mtu, "up"])?;
        node.sysctl("net.ipv4.conf.mesh-vxlan0.rp_filter", "0")?;
        cluster.nft(
            number,
            &format!(
                "table ip mesh {{\n\
                 chain prerouting {{\ntype filter hook prerouting priority raw;\nudp dport {port} notrack\n}}\n\
                 chain output {{\ntype filter hook output priority raw;\nudp dport {port} notrack\n}}\n}}\n"
            ),
        )?;
        loaded.push(node.run(|| load(objects, number, carriage))?);
    }
    Ok(loaded)
}

fn pass(objects: &Objects) -> Result<Ebpf> {
    let mut object = Ebpf::load(&objects.pass).context("load the passing program")?;
    let xdp = xdp(&mut object, names::PROGRAM_PASS)?;
    xdp.load().context("load the passing program")?;
    for port in ["up1", "up2"] {
        Program::new("ethtool").args(["-K", port, "tx", "off"]).run()?;
        xdp.attach(port, XdpMode::Driver).with_context(|| format!("attach the passing program to {port}"))?;
    }
    Ok(object)
}

/// Loads, fills and attaches the programs, on a thread inside the node's namespace.
fn load(objects: &Objects, number: u8, carriage: Carriage) -> Result<Loaded> {
    let mut object = EbpfLoader::new().load(&objects.programs).context("load the data plane's maps")?;
    fill(&mut object, number, carriage)?;
    let edges = programs::edges(&mut object, &Edge::ALL)?;
    let hooks = [
        (names::PROGRAM_UPLINK, "eth0", TcAttachType::Ingress),
        (names::PROGRAM_EGRESS, "eth0", TcAttachType::Egress),
        (names::PROGRAM_TUNNEL, "mesh-vxlan0", TcAttachType::Ingress),
        (names::PROGRAM_DEVICE, "mesh-vxlan0", TcAttachType::Egress),
        (names::PROGRAM_TASK, "task0", TcAttachType::Ingress),
    ];
    for (name, device, direction) in hooks {
        classifier(&mut object, name)?.attach(device, direction).with_context(|| format!("attach {name}"))?;
    }
    if let Served::Network = carriage.served {
        let overlay = classifier(&mut object, names::PROGRAM_OVERLAY)?;
        for port in network::ports(number) {
            overlay
                .attach(port, TcAttachType::Ingress)
                .with_context(|| format!("attach {} to {port}", names::PROGRAM_OVERLAY))?;
        }
    }
    if carriage.has_xdp {
        let xdp = xdp(&mut object, names::PROGRAM_XDP)?;
        xdp.load().context("load mesh_xdp")?;
        xdp.attach("eth0", XdpMode::Driver).context("attach mesh_xdp")?;
    }
    Ok(Loaded { _programs: object, _edges: Some(edges) })
}

fn fill(object: &mut Ebpf, number: u8, carriage: Carriage) -> Result<()> {
    let (other, uplink) = (3 - number, ifindex("eth0")?);
    let config = Config {
        address: node_address(number).into(),
        tunnel_ifindex: ifindex("mesh-vxlan0")?,
        tunnel_port_be: Be16::new(TUNNEL_PORT),
        tunnel_mss: TUNNEL_MTU - 40,
        tunnel_mtu: u32::from(TUNNEL_MTU),
        uplink_ifindex: uplink,
        ..Config::default()
    };
    let peer = Node {
        address: node_address(other).into(),
        mac: Mac(node_mac(other)),
        source_mac: Mac(node_mac(number)),
        ifindex: uplink,
        cookie: cookie(number, other),
        ..Node::default()
    };
    let accepted = cookie(other, number);
    let member = Member { accepted: [accepted; 2], flags: member_flag::COOKIE };
    set(object, names::CONFIG, [(0, config)])?;
    insert(object, names::ADDRESSES, [(config.address, 0_u32)])?;
    set(object, names::NODES, [(u32::from(other), peer)])?;
    insert(object, names::PEERS, [(peer.address, u32::from(other))])?;
    set(object, names::MEMBERS, [(u32::from(other), member)])?;
    match carriage.served {
        Served::Port(mode) => publish(object, number, mode, carriage.task_node),
        Served::Network => network::fill(object, number, carriage.task_node),
    }
}

/// The cookie that a node's packets to another bear.
fn cookie(from: u8, to: u8) -> u32 {
    u32::from_be_bytes([0x5e, from, to, 1])
}

/// Writes the published port and its one backend.
fn publish(object: &mut Ebpf, number: u8, mode: Mode, task_node: u8) -> Result<()> {
    let is_local = task_node == number;
    let backend = Backend {
        task_address: task_address(task_node).into(),
        node: if is_local { 0 } else { u32::from(task_node) },
        task_port_be: Be16::new(8080),
        published_port_be: Be16::new(PUBLISHED),
        protocol: protocol::TCP,
        state: BackendState::Active as u8,
        flags: if is_local { backend_flag::LOCAL } else { 0 },
        ifindex: if is_local { ifindex("task0")? } else { 0 },
        task_mac: if is_local { Mac(task_mac(number)) } else { Mac::NONE },
        ..Backend::default()
    };
    let service =
        Service { slot_count: 1, policy: Policy::RoundRobin as u8, mode: mode as u8, ..Service::default() };
    set(object, names::BACKENDS, [(1, backend)])?;
    set(object, names::SLOTS, [(0, 1_u32)])?;
    insert(object, names::SERVICES, [(ServiceKey::tcp(PUBLISHED), service)])
}
