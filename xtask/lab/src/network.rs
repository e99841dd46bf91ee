//! The lab's network: a bridge in a namespace of its own, and a veth pair to the client and to each
//! node.
//!
//! The bridge has no address and passes no firewall: Docker engines live in other namespaces. Two
//! labs can use the same addresses, since nothing connects their bridges.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mesh_checkout::command::Program;
use rustix::mount::{MountFlags, mount};

use super::layout::{CLIENT_IP, Layout, NodeLayout, PREFIX_BITS, PREFIX6_BITS, ip6_of, mac_of};
use super::netns::Netns;
use super::pass_program;

const BRIDGE: &str = "br0";
const CLIENT_PORT: &str = "client";

/// The device group of the bridge's ports, by which they are removed together.
const WIRES: &str = "77";

/// Makes the bridge and the client.
pub(super) fn build_middle(layout: &Layout, xdp: bool) -> Result<()> {
    let bridge = Netns::named(layout.bridge_netns());
    bridge.add()?;
    // A freshly loaded br_netfilter would pass the bridge's frames to iptables.
    bridge.sysctl("net.bridge.bridge-nf-call-iptables", "0")?;
    bridge.sysctl("net.bridge.bridge-nf-call-ip6tables", "0")?;
    bridge.ip(&["link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "mcast_snooping", "0"])?;
    bridge.ip(&["link", "set", BRIDGE, "addrgenmode", "none", "up"])?;
    if xdp {
        let directory = layout.bridge_bpf_dir();
        mount_bpffs(&directory)?;
        pass_program::pin(&pass_pin(layout))?;
    }
    let client = Netns::named(layout.client_netns());
    client.add()?;
    client.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
    // Nodes send DNS queries to the client and need every refusal at once.
    client.sysctl("net.ipv4.icmp_ratelimit", "0")?;
    plug(&bridge, CLIENT_PORT, &client, CLIENT_IP)
}

/// Makes a node's namespace and connects it to the bridge.
pub(super) fn build_node(node: &NodeLayout, xdp: bool) -> Result<()> {
    let netns = Netns::named(node.netns());
    let bridge = bridge_of(node);
    let port = node.name();
    netns.add()?;
    plug(&bridge, &port, &netns, node.ip())?;
    netns.ip(&["route", "add", "default", "via", &CLIENT_IP.to_string()])?;
    netns.ip(&["-6", "route", "add", "default", "via", &ip6_of(CLIENT_IP).to_string()])?;
    if xdp {
        let pin = pass_pin(node.lab());
        bridge.ip(&["link", "set", "dev", &port, "xdpdrv", "pinned", &pin.display().to_string()])?;
        // Otherwise frames reach the XDP program without valid checksums.
        in_netns(&bridge, "ethtool").args(["-K", &port, "tx", "off"]).run()?;
    }
    Ok(())
}

/// Removes a node's namespace and its veth pair.
pub(super) fn remove_node(node: &NodeLayout) -> Result<()> {
    let netns = Netns::named(node.netns());
    if !netns.is_live() {
        return netns.delete();
    }
    // The namespace lives until its last socket is closed, but its port must be free at once.
    bridge_of(node).ip(&["link", "delete", &node.name()])?;
    netns.delete()
}

/// Removes all veth pairs in one step: the kernel clears a deleted namespace later, and programs on
/// its devices live until then.
pub(super) fn remove_wires(layout: &Layout) -> Result<()> {
    let bridge = Netns::named(layout.bridge_netns());
    if !bridge.is_live() {
        return Ok(());
    }
    let wires =
        Program::new("ip").args(["-netns", bridge.name(), "link", "show", "group", WIRES]).output()?;
    if wires.is_empty() { Ok(()) } else { bridge.ip(&["link", "delete", "group", WIRES]) }
}

/// Sets a node's port on the bridge down, or up again.
pub(super) fn set_link(node: &NodeLayout, up: bool) -> Result<()> {
    bridge_of(node).ip(&["link", "set", &node.name(), if up { "up" } else { "down" }])
}

/// Drops this many per cent of the packets from and to a node on the bridge; 0 drops none.
pub(super) fn lose(node: &NodeLayout, percent: u8) -> Result<()> {
    let (bridge, table) = (bridge_of(node), format!("loss-{}", node.name()));
    let port = node.name();
    let lossy = |side: &str| format!("{side} \"{port}\" numgen random mod 100 < {percent} drop;");
    // Declared first, so that the removal of a table that isn't there is no error.
    let removed = format!("table bridge {table}; delete table bridge {table};");
    let rules = match percent {
        0 => removed,
        _ => format!(
            "{removed} table bridge {table} {{ chain forward {{ type filter hook forward priority 0; {} {} }}; }}",
            lossy("iifname"),
            lossy("oifname")
        ),
    };
    in_netns(&bridge, "nft").arg(rules).run()
}

/// True if a node's link is up.
pub(super) fn link_is_up(node: &NodeLayout) -> bool {
    let file = PathBuf::from(format!("/sys/class/net/{}/operstate", node.name()));
    in_netns(&bridge_of(node), "cat").arg(file).output().is_ok_and(|state| state.trim() == "up")
}

/// Mounts a bpffs at a new directory.
pub(super) fn mount_bpffs(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    mount("bpf", directory, "bpf", MountFlags::empty(), Some(c"mode=0700"))
        .with_context(|| format!("mount a bpffs at {} (needs root)", directory.display()))
}

fn plug(bridge: &Netns, port: &str, netns: &Netns, ip: Ipv4Addr) -> Result<()> {
    let mac = mac_of(ip);
    Program::new("ip")
        .args(["link", "add", "eth0", "netns", netns.name(), "address", &mac, "type", "veth"])
        .args(["peer", "name", port, "netns", bridge.name()])
        .run()?;
    bridge.ip(&["link", "set", port, "master", BRIDGE, "group", WIRES, "addrgenmode", "none", "up"])?;
    netns.ip(&["address", "add", &format!("{ip}/{PREFIX_BITS}"), "dev", "eth0"])?;
    netns.ip(&["address", "add", &format!("{}/{PREFIX6_BITS}", ip6_of(ip)), "dev", "eth0", "nodad"])?;
    netns.ip(&["link", "set", "eth0", "up"])
}

fn in_netns(netns: &Netns, program: &str) -> Program {
    Program::new("ip").args(["netns", "exec", netns.name(), program])
}

fn bridge_of(node: &NodeLayout) -> Netns {
    Netns::named(node.lab().bridge_netns())
}

fn pass_pin(layout: &Layout) -> PathBuf {
    layout.bridge_bpf_dir().join("pass")
}
