//! Loads mesh's programs on the nodes of a cluster, and fills their maps as the agent would.

use anyhow::{Context, Result, anyhow};
use aya::maps::{MapData, ProgramArray};
use aya::programs::{SchedClassifier, TcAttachType, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use mesh_checkout::command::Program;
use mesh_ebpf::abi::{
    Backend, BackendState, Be16, Config, Edge, Mac, Mode, Node, Policy, Service, ServiceKey, backend_flag,
    names, protocol,
};
use mesh_ebpf::parse::vxlan::{SOURCE_PORT_MAX, SOURCE_PORT_MIN};

use super::cluster::{Cluster, TUNNEL_MTU, node_address, node_mac, task_address, task_mac};
use crate::maps::{ifindex, insert, set};
use crate::objects::Objects;

const TUNNEL_PORT: u16 = 4799;
const PUBLISHED: u16 = 80;

/// How mesh serves the published port.
#[derive(Debug, Clone, Copy)]
pub(super) struct Carriage {
    /// Whether XDP runs on the uplinks, with TC behind it.
    pub(super) has_xdp: bool,
    /// The service's mode.
    pub(super) mode: Mode,
    /// The node of the task that serves.
    pub(super) task_node: u8,
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
    let edges = edges(&mut object)?;
    let hooks = [
        (names::PROGRAM_UPLINK, "eth0"),
        (names::PROGRAM_TUNNEL, "mesh-vxlan0"),
        (names::PROGRAM_TASK, "task0"),
    ];
    for (name, device) in hooks {
        classifier(&mut object, name)?
            .attach(device, TcAttachType::Ingress)
            .with_context(|| format!("attach {name}"))?;
    }
    if carriage.has_xdp {
        let xdp = xdp(&mut object, names::PROGRAM_XDP)?;
        xdp.load().context("load mesh_xdp")?;
        xdp.attach("eth0", XdpMode::Driver).context("attach mesh_xdp")?;
    }
    Ok(Loaded { _programs: object, _edges: Some(edges) })
}

/// The tail-call targets of the hooks' programs.
fn edges(object: &mut Ebpf) -> Result<ProgramArray<MapData>> {
    let map = object.take_map(names::EDGES).ok_or_else(|| anyhow!("no map {}", names::EDGES))?;
    let mut edges = ProgramArray::try_from(map).context(names::EDGES)?;
    for edge in Edge::ALL {
        let program = classifier(object, edge.program())?;
        edges.set(edge as u32, program.fd().context(edge.program())?, 0).context(names::EDGES)?;
    }
    Ok(edges)
}

/// A TC program, loaded.
fn classifier<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = object.program_mut(name).ok_or_else(|| anyhow!("no program {name}"))?;
    let classifier: &mut SchedClassifier = program.try_into().with_context(|| name.to_owned())?;
    classifier.load().with_context(|| format!("load {name}"))?;
    Ok(classifier)
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
        ..Node::default()
    };
    let is_local = carriage.task_node == number;
    let backend = Backend {
        task_address: task_address(carriage.task_node).into(),
        node: if is_local { 0 } else { u32::from(other) },
        task_port_be: Be16::new(8080),
        published_port_be: Be16::new(PUBLISHED),
        protocol: protocol::TCP,
        state: BackendState::Active as u8,
        flags: if is_local { backend_flag::LOCAL } else { 0 },
        ifindex: if is_local { ifindex("task0")? } else { 0 },
        task_mac: if is_local { Mac(task_mac(number)) } else { Mac::NONE },
        ..Backend::default()
    };
    let service = Service {
        slot_count: 1,
        policy: Policy::RoundRobin as u8,
        mode: carriage.mode as u8,
        ..Service::default()
    };
    set(object, names::CONFIG, [(0, config)])?;
    insert(object, names::ADDRESSES, [(config.address, 0_u32)])?;
    set(object, names::NODES, [(u32::from(other), peer)])?;
    insert(object, names::PEERS, [(peer.address, u32::from(other))])?;
    set(object, names::BACKENDS, [(1, backend)])?;
    set(object, names::SLOTS, [(0, 1_u32)])?;
    insert(object, names::SERVICES, [(ServiceKey::tcp(PUBLISHED), service)])
}

fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = object.program_mut(name).ok_or_else(|| anyhow!("no program {name}"))?;
    program.try_into().with_context(|| format!("{name} as an XDP program"))
}
