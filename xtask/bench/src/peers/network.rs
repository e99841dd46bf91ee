//! A network that joins tasks: on each node a bridge, as an engine makes it, with the veths of the
//! tasks there.
//!
//! The cluster's client is a task too, on node 1. So is a second task of that node, for ways that
//! stay on it, and one of node 2.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use aya::Ebpf;
use mesh_ebpf::abi::{Backend, BackendState, Endpoint, EndpointKey, Link, Mac, Policy, Service, names};
use mesh_lab::netns::Netns;

use super::cluster::{Cluster, TUNNEL_MTU, dotted, node_address};
use crate::maps::{ifindex, insert, set};

/// The network's number in mesh's tables.
const NUMBER: u32 = 1;
/// The network's subnet and its mask.
const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 0);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// The bridge on each node.
const BRIDGE: &str = "net0";
/// The port of the tasks' server.
const PORT: u16 = 8080;
/// The service's virtual IP.
pub(super) const VIRTUAL_IP: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 100);

/// A task on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Member {
    /// The client, on node 1.
    Client,
    /// The server on the node with this number.
    Server(u8),
}

impl Member {
    const ALL: [Self; 3] = [Self::Client, Self::Server(1), Self::Server(2)];

    const fn node(self) -> u8 {
        match self {
            Self::Client => 1,
            Self::Server(number) => number,
        }
    }

    const fn last(self) -> u8 {
        match self {
            Self::Client => 10,
            Self::Server(number) => 10 + number,
        }
    }

    /// The task's address on the network.
    pub(super) const fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 5, 0, self.last())
    }

    const fn mac(self) -> [u8; 6] {
        [2, 0, 0, 0, 5, self.last()]
    }

    /// The id as a backend: that of the client is one of its own service.
    const fn backend(self) -> u32 {
        self.last() as u32
    }

    /// The name of the veth's end on the node.
    const fn port(self) -> &'static str {
        match self {
            Self::Client => "net-client",
            Self::Server(_) => "net-server",
        }
    }

    fn netns(self, cluster: &Cluster) -> &Netns {
        match self {
            Self::Client => &cluster.client,
            Self::Server(number) => cluster.task(number),
        }
    }
}

/// Makes the bridges, and connects the tasks to them.
pub(super) fn build(cluster: &Cluster) -> Result<()> {
    let mtu = TUNNEL_MTU.to_string();
    for number in [1, 2] {
        let node = cluster.node(number);
        let bridge = ["link", "add", BRIDGE, "mtu", &mtu, "type", "bridge", "stp_state", "0"];
        node.ip(&[bridge.as_slice(), &["mcast_snooping", "0"]].concat())?;
        node.ip(&["address", "add", &format!("10.5.0.{number}/24"), "dev", BRIDGE])?;
        node.ip(&["link", "set", BRIDGE, "up"])?;
    }
    for member in Member::ALL {
        let (node, task) = (cluster.node(member.node()), member.netns(cluster));
        let mac = dotted(member.mac());
        let peer =
            ["type", "veth", "peer", "name", "net", "mtu", &mtu, "address", &mac, "netns", task.name()];
        node.ip(&[&["link", "add", member.port(), "mtu", &mtu], peer.as_slice()].concat())?;
        node.ip(&["link", "set", member.port(), "master", BRIDGE, "up"])?;
        task.ip(&["address", "add", &format!("{}/24", member.address()), "dev", "net"])?;
        task.ip(&["link", "set", "net", "up"])?;
    }
    Ok(())
}

/// Takes the bridges out of the nodes' firewalls, as those of Docker's overlay networks are, which
/// have namespaces of their own.
pub(super) fn leave_firewall(cluster: &Cluster) -> Result<()> {
    [1, 2]
        .iter()
        .try_for_each(|number| cluster.node(*number).sysctl("net.bridge.bridge-nf-call-iptables", "0"))
}

/// Joins the bridges by a VXLAN device on each: the data path of Docker's overlay networks.
pub(super) fn join_by_vxlan(cluster: &Cluster) -> Result<()> {
    let mtu = TUNNEL_MTU.to_string();
    for number in [1, 2] {
        let node = cluster.node(number);
        let (own, other) = (node_address(number).to_string(), node_address(3 - number).to_string());
        let device =
            ["link", "add", "overlay", "mtu", &mtu, "type", "vxlan", "id", "4097", "dstport", "4789"];
        node.ip(&[device.as_slice(), &["local", &own, "remote", &other]].concat())?;
        node.ip(&["link", "set", "overlay", "master", BRIDGE, "up"])?;
    }
    Ok(())
}

/// Gives the virtual IP to the bridge of node 1, whose nftables translate it to the server of node
/// 2, and the source so that replies come back, as Swarm does with IPVS in a namespace of its own.
/// This is a veth pair less on each way.
pub(super) fn translate_by_nft(cluster: &Cluster) -> Result<()> {
    let node = cluster.node(1);
    node.ip(&["address", "add", &format!("{VIRTUAL_IP}/32"), "dev", BRIDGE])?;
    for device in ["all", BRIDGE] {
        // Packets leave by the device that they came by, which is worth a redirect to a router.
        node.sysctl(&format!("net.ipv4.conf.{device}.send_redirects"), "0")?;
    }
    let task = Member::Server(2).address();
    cluster.nft(
        1,
        &format!(
            "table ip virtual {{\n\
             chain prerouting {{\ntype nat hook prerouting priority dstnat;\n\
             ip daddr {VIRTUAL_IP} dnat to numgen inc mod 2 map {{ 0 : {task}, 1 : {task} }}\n}}\n\
             chain postrouting {{\ntype nat hook postrouting priority srcnat;\n\
             iifname {BRIDGE} oifname {BRIDGE} masquerade\n}}\n}}\n"
        ),
    )
}

/// The veths' ends on the node with this number.
pub(super) fn ports(number: u8) -> impl Iterator<Item = &'static str> {
    Member::ALL.into_iter().filter(move |member| member.node() == number).map(Member::port)
}

/// Writes the network's maps of the node with this number as the agent would, on a thread inside
/// the node's namespace. The server on `task_node` is the one behind the virtual IP.
pub(super) fn fill(object: &mut Ebpf, number: u8, task_node: u8) -> Result<()> {
    for member in Member::ALL {
        let is_here = member.node() == number;
        let endpoint = Endpoint {
            node: if is_here { 0 } else { u32::from(member.node()) },
            ifindex: if is_here { ifindex(member.port())? } else { 0 },
            mac: if is_here { Mac(member.mac()) } else { Mac::NONE },
            backend: member.backend(),
            ..Endpoint::default()
        };
        let address = member.address().octets();
        insert(object, names::ENDPOINTS, [(EndpointKey::new(NUMBER, address), endpoint)])?;
        let backend = Backend {
            task_address: member.address().into(),
            task_address6: VIRTUAL_IP.into(),
            node: endpoint.node,
            state: BackendState::Active as u8,
            network: NUMBER,
            ..Backend::default()
        };
        set(object, names::BACKENDS, [(member.backend(), backend)])?;
        if is_here {
            let link = Link {
                network: NUMBER,
                address: u32::from_ne_bytes(address),
                subnet: u32::from_ne_bytes(SUBNET.octets()),
                mask: u32::from_ne_bytes(MASK.octets()),
                mac: Mac(member.mac()),
                backend: member.backend(),
                ..Link::default()
            };
            insert(object, names::LINKS, [(endpoint.ifindex, link)])?;
        }
    }
    let service = Service { slot_count: 1, policy: Policy::RoundRobin as u8, ..Service::default() };
    set(object, names::SLOTS, [(0, Member::Server(task_node).backend())])?;
    insert(object, names::VIRTUAL_IPS, [(EndpointKey::new(NUMBER, VIRTUAL_IP.octets()), service)])
        .context("the service's virtual IP")
}

/// Where a client asks the server of the node with this number by its own address.
pub(super) fn by_address(number: u8) -> std::net::SocketAddrV4 {
    std::net::SocketAddrV4::new(Member::Server(number).address(), PORT)
}

/// Where a client asks the service.
pub(super) fn by_virtual_ip() -> std::net::SocketAddrV4 {
    std::net::SocketAddrV4::new(VIRTUAL_IP, PORT)
}
