//! The compared ways from a client to a task, and their setup.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use anyhow::{Context, Result};
use mesh_ebpf::abi::Mode;

use super::cluster::{CLIENT, Cluster, TUNNEL_MTU, node_address, task_address};
use super::load::Binaries;
use super::mesh::{self, Carriage, Loaded, Served};
use super::network;
use crate::objects::Objects;

/// MTU of Ethernet.
const MTU: u16 = 1500;
/// Addresses of the nodes in the plain VXLAN.
const OVERLAY: [&str; 2] = ["10.98.0.1", "10.98.0.2"];

/// A way from the client to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// A route to the task through the task's node.
    Direct,
    /// Through the other node and a plain VXLAN, both ways, without load balancing.
    Vxlan,
    /// nftables on the other node: round-robin DNAT and masquerade.
    Nft,
    /// The same, with the task behind the VXLAN: the shape of Swarm's ingress.
    NftVxlan,
    /// HAProxy in TCP mode, the task on its node.
    Haproxy,
    /// nginx's stream module, the task on its node.
    Nginx,
    /// nginx's stream module, the task on the other node.
    NginxRemote,
    /// mesh, TC, through the tunnel.
    Tunnel,
    /// mesh, TC, answered by the task's node.
    Dsr,
    /// mesh, TC, the task on the ingress node.
    Local,
    /// mesh, XDP, through the tunnel.
    Xdp,
    /// mesh's userspace proxy, the task on its node.
    Userspace,
    /// mesh's userspace proxy and relay, the task on the other node.
    Relay,
    /// Task to task on one node, over a plain bridge.
    Bridge,
    /// Task to task by address, over a bridge on each node and a VXLAN between them: the data path
    /// of Docker's overlay networks.
    BridgeVxlan,
    /// The same by a virtual IP, which nftables translate.
    BridgeNft,
    /// Task to task on mesh, by address, on two nodes.
    NetworkAddress,
    /// Task to task on mesh, by virtual IP, on two nodes.
    NetworkVirtualIp,
    /// Task to task on mesh, by virtual IP, on one node.
    NetworkLocal,
}

/// What ways have in common, and are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    /// From a client outside to a published port.
    Published,
    /// From task to task on a network.
    Networks,
}

impl Group {
    /// All groups, in the order of the report.
    pub(super) const ALL: [Self; 2] = [Self::Published, Self::Networks];

    /// The name by which a run is limited to its ways.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Networks => "networks",
        }
    }

    /// The ways that belong to it, in the order of the report.
    pub(super) fn ways(self) -> impl Iterator<Item = Way> {
        Way::ALL.into_iter().filter(move |way| way.group() == self)
    }
}

impl Way {
    /// Every way, in the order of the report.
    pub(super) const ALL: [Self; 19] = [
        Self::Direct,
        Self::Vxlan,
        Self::Nft,
        Self::NftVxlan,
        Self::Haproxy,
        Self::Nginx,
        Self::NginxRemote,
        Self::Tunnel,
        Self::Dsr,
        Self::Local,
        Self::Xdp,
        Self::Userspace,
        Self::Relay,
        Self::Bridge,
        Self::BridgeVxlan,
        Self::BridgeNft,
        Self::NetworkAddress,
        Self::NetworkVirtualIp,
        Self::NetworkLocal,
    ];

    /// The name in tables and plots.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Vxlan => "vxlan",
            Self::Nft => "nft",
            Self::NftVxlan => "nft-vxlan",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::NginxRemote => "nginx remote",
            Self::Tunnel => "mesh tc tunnel",
            Self::Dsr => "mesh tc dsr",
            Self::Local => "mesh tc local",
            Self::Xdp => "mesh xdp",
            Self::Userspace => "mesh userspace",
            Self::Relay => "mesh relay",
            Self::Bridge => "bridge",
            Self::BridgeVxlan => "bridge-vxlan",
            Self::BridgeNft => "bridge-vxlan-nft",
            Self::NetworkAddress => "mesh network address",
            Self::NetworkVirtualIp => "mesh network vip",
            Self::NetworkLocal => "mesh network local vip",
        }
    }

    /// The group that the way belongs to.
    pub(super) const fn group(self) -> Group {
        match self {
            Self::Bridge
            | Self::BridgeVxlan
            | Self::BridgeNft
            | Self::NetworkAddress
            | Self::NetworkVirtualIp
            | Self::NetworkLocal => Group::Networks,
            _ => Group::Published,
        }
    }

    /// The address that the client connects to.
    pub(super) fn destination(self) -> SocketAddrV4 {
        match self {
            Self::Direct | Self::Vxlan => SocketAddrV4::new(task_address(2), 8080),
            Self::Bridge => network::by_address(1),
            Self::BridgeVxlan | Self::NetworkAddress => network::by_address(2),
            Self::BridgeNft | Self::NetworkVirtualIp | Self::NetworkLocal => network::by_virtual_ip(),
            _ => SocketAddrV4::new(node_address(1), 80),
        }
    }

    /// Whether a process copies the bytes.
    pub(super) const fn is_proxied(self) -> bool {
        matches!(self, Self::Haproxy | Self::Nginx | Self::NginxRemote | Self::Userspace | Self::Relay)
    }

    /// Whether mesh's proxy runs, as a program of its own.
    pub(super) const fn needs_proxy(self) -> bool {
        matches!(self, Self::Userspace | Self::Relay)
    }

    const fn mtu(self) -> u16 {
        match self {
            Self::Vxlan | Self::NftVxlan | Self::Tunnel | Self::Dsr | Self::Local | Self::Xdp => TUNNEL_MTU,
            _ => MTU,
        }
    }

    fn carriage(self) -> Option<Carriage> {
        let carriage =
            |has_xdp, mode, task_node| Some(Carriage { has_xdp, served: Served::Port(mode), task_node });
        let on_network = |task_node| Some(Carriage { has_xdp: false, served: Served::Network, task_node });
        match self {
            Self::Tunnel => carriage(false, Mode::Tunnel, 2),
            Self::Dsr => carriage(false, Mode::Dsr, 2),
            Self::Local => carriage(false, Mode::Tunnel, 1),
            Self::Xdp => carriage(true, Mode::Tunnel, 2),
            Self::NetworkAddress | Self::NetworkVirtualIp => on_network(2),
            Self::NetworkLocal => on_network(1),
            _ => None,
        }
    }
}

/// A way that is set up. Dropping it removes it, programs before the namespaces.
pub(super) struct Paved {
    _programs: Vec<Loaded>,
    /// The namespaces of client, nodes and task.
    pub(super) cluster: Cluster,
}

/// Sets `way` up, in namespaces whose names begin with `prefix`; the configuration files of its
/// programs are written to `directory`.
pub(super) fn pave(
    way: Way,
    prefix: &str,
    objects: &Objects,
    binaries: &Binaries,
    directory: &Path,
) -> Result<Paved> {
    let mut cluster = Cluster::new(prefix, way.mtu(), &binaries.load)?;
    if way.group() == Group::Networks {
        network::build(&cluster)?;
    }
    let programs = match way.carriage() {
        Some(carriage) => mesh::attach(&cluster, objects, carriage)?,
        None => Vec::new(),
    };
    match way {
        Way::Direct => route(&cluster.client, "10.128.2.0/24", node_address(2))?,
        Way::Vxlan => {
            overlay(&cluster)?;
            route(&cluster.client, "10.128.2.0/24", node_address(1))?;
            cluster.node(2).ip(&[
                "route",
                "add",
                &format!("{CLIENT}/32"),
                "via",
                OVERLAY[0],
                "dev",
                "overlay",
            ])?;
        }
        Way::Nft => {
            route(cluster.node(1), "10.128.2.0/24", node_address(2))?;
            balance(&cluster)?;
        }
        Way::NftVxlan => {
            overlay(&cluster)?;
            balance(&cluster)?;
        }
        Way::Haproxy => cluster.start_on(1, &haproxy(task_address(1), directory)?)?,
        Way::Nginx => cluster.start_on(1, &nginx(task_address(1), &directory.join("local"))?)?,
        Way::NginxRemote => {
            route(cluster.node(1), "10.128.2.0/24", node_address(2))?;
            cluster.start_on(1, &nginx(task_address(2), &directory.join("remote"))?)?;
        }
        Way::Userspace | Way::Relay => {
            let task_node = if way == Way::Relay { "2" } else { "1" };
            for number in [1, 2] {
                let proxy = binaries.proxy.display().to_string();
                cluster.start_on(number, &[proxy, number.to_string(), task_node.to_owned()])?;
            }
        }
        Way::Bridge => network::leave_firewall(&cluster)?,
        Way::BridgeVxlan | Way::BridgeNft => {
            network::leave_firewall(&cluster)?;
            network::join_by_vxlan(&cluster)?;
            if way == Way::BridgeNft {
                network::translate_by_nft(&cluster)?;
            }
        }
        Way::Tunnel
        | Way::Dsr
        | Way::Local
        | Way::Xdp
        | Way::NetworkAddress
        | Way::NetworkVirtualIp
        | Way::NetworkLocal => {}
    }
    Ok(Paved { _programs: programs, cluster })
}

fn route(from: &mesh_lab::netns::Netns, network: &str, via: Ipv4Addr) -> Result<()> {
    from.ip(&["route", "add", network, "via", &via.to_string()])
}

/// A plain VXLAN between the nodes, with a route from the first one to the second one's tasks.
fn overlay(cluster: &Cluster) -> Result<()> {
    let mtu = TUNNEL_MTU.to_string();
    for number in [1, 2] {
        let node = cluster.node(number);
        let (own, other) = (node_address(number).to_string(), node_address(3 - number).to_string());
        let device = ["link", "add", "overlay", "mtu", &mtu, "type", "vxlan", "id", "7", "dstport", "4789"];
        node.ip(&[device.as_slice(), &["local", &own, "remote", &other]].concat())?;
        let address = format!("{}/24", OVERLAY[usize::from(number) - 1]);
        node.ip(&["address", "add", &address, "dev", "overlay"])?;
        node.ip(&["link", "set", "overlay", "up"])?;
    }
    cluster.node(1).ip(&["route", "add", "10.128.2.0/24", "via", OVERLAY[1], "dev", "overlay"])
}

/// Load balancing as in Swarm's ingress and kube-proxy: selects and translates the destination, and
/// the source so that replies come back.
fn balance(cluster: &Cluster) -> Result<()> {
    let (node, task) = (node_address(1), task_address(2));
    let rules = format!(
        "table ip balance {{\n\
         chain prerouting {{\ntype nat hook prerouting priority dstnat;\n\
         ip daddr {node} tcp dport 80 dnat to numgen inc mod 2 map {{ 0 : {task} . 8080, 1 : {task} . 8080 }}\n}}\n\
         chain postrouting {{\ntype nat hook postrouting priority srcnat;\n\
         ip daddr 10.128.2.0/24 masquerade\n}}\n}}\n"
    );
    cluster.nft(1, &rules)
}

fn haproxy(task: Ipv4Addr, directory: &Path) -> Result<Vec<String>> {
    let file = directory.join("haproxy.cfg");
    let text = format!(
        "global\n  maxconn 4000\n  nbthread 2\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         frontend in\n  bind *:80 backlog 8192\n  default_backend out\n\
         backend out\n  balance roundrobin\n  server one {task}:8080\n  server two {task}:8080\n"
    );
    fs::write(&file, text).context("write HAProxy's configuration")?;
    Ok(["haproxy", "-db", "-q", "-f", &file.display().to_string()].map(str::to_owned).into())
}

fn nginx(task: Ipv4Addr, directory: &Path) -> Result<Vec<String>> {
    fs::create_dir_all(directory).context("make nginx's directory")?;
    let (file, shown) = (directory.join("nginx.conf"), directory.display());
    let text = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
         daemon off; master_process on; worker_processes 2; user root;\n\
         pid {shown}/pid; error_log {shown}/error.log;\n\
         events {{ worker_connections 8000; }}\n\
         stream {{ upstream tasks {{ server {task}:8080; server {task}:8080 backup; }}\n\
         server {{ listen 80 reuseport backlog=8192; proxy_pass tasks; tcp_nodelay on; }} }}\n"
    );
    fs::write(&file, text).context("write nginx's configuration")?;
    Ok(["nginx", "-c", &file.display().to_string()].map(str::to_owned).into())
}
