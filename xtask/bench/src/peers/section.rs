//! The sections of the report.

use std::fmt::Write as _;

use super::load::Metric;
use super::outcome::file;
use super::way::Group;

/// A group's section.
pub(super) fn section(group: Group, tables: &str, rounds: usize, ms: u32) -> String {
    let mut plots = String::new();
    for metric in Metric::ALL {
        // Writing to a String can't fail.
        _ = writeln!(plots, "![{}](xtask/bench/plots/{})", metric.name(), file(group, metric));
    }
    match group {
        Group::Published => published(tables, &plots, rounds, ms),
        Group::Networks => networks(tables, &plots, rounds, ms),
    }
}

fn published(tables: &str, plots: &str, rounds: usize, ms: u32) -> String {
    format!(
        "## What clients get\n\n\
         `cargo xtask bench peers`: a client, two nodes and a task on each, in namespaces of one machine, joined by veths and one \
         bridge; every way has namespaces of its own. One client thread and one server thread (`bench-load`, 64 bytes asked, 128 \
         answered out of memory): 32 connections at once for new ones and requests, 4 for bulk, {ms} ms each. {rounds} rounds, every \
         second one backwards; medians, and medians of ratios within one round. Connection tracking is on in all nodes, as an engine \
         leaves it; tunnels have an MTU of 1450; TCP's congestion control is reno, as one that paces (bbr) would be what is measured.\n\n\
         *direct*: the client has a route to the task by its node. *vxlan*: over the other node and a plain kernel VXLAN, both ways, \
         without balancing. *nft*: round-robin DNAT and masquerade by nftables, the task behind a route; *nft-vxlan*: behind that \
         VXLAN, the shape of Swarm's ingress. *haproxy*, *nginx*: Debian's, two threads or workers, the task on the same node; \
         *remote*: on the other one. *mesh tc tunnel*, *dsr*, *local*, *xdp*: mesh's programs; *userspace*, *relay*: its proxy, the \
         task on the same node or the other.\n\n\
         In bulk, where the kernel alone is between them, the client has one CPU and the task another: left to the scheduler, a way differs \
         from itself by more than from any other. Readers are woken for 128 KiB at a time. With both *on one CPU* the sum of all costs \
         counts, and nothing else.\n\n\
         {tables}\n{plots}\n\
         Not shown: real network cards and their offloads. veths hand whole 64 KiB packets on, which native XDP on a veth forbids: its \
         bulk is not what a card would give. Client, nodes and tasks share the machine's CPUs, so a way's cost is also its \
         neighbours' loss.\n"
    )
}

fn networks(tables: &str, plots: &str, rounds: usize, ms: u32) -> String {
    format!(
        "## From task to task\n\n\
         `cargo xtask bench peers --only networks` (three minutes; without `--only`, together with the ways above): the same two nodes, \
         where the client is a task as well, on node 1, and each node has a bridge with the veths of its tasks. Same load: {rounds} rounds \
         of {ms} ms, every second one backwards; medians, and medians of ratios within one round. On a machine that others use as well, put \
         `chrt --rr 1` in front once everything is built, so that load and server do not wait for a CPU.\n\n\
         *bridge*: a task of the same node, over the plain bridge. *bridge-vxlan*: a task of the other node; the bridges are joined by a \
         VXLAN device on each, the data path of Docker's overlay networks. *bridge-vxlan-nft*: the same by a virtual IP, which nftables \
         translate on the bridge (Swarm does it with IPVS, one veth pair further away; this kernel has no IPVS). The bridges of these three bypass the node's firewall, as \
         Docker's overlay networks do. *mesh network address*, *vip*: mesh's programs, a task of the other node; *local vip*: one of the same \
         node. All programs are attached that an agent attaches, tunnel packets bear cookies, and all tasks are backends of a virtual IP.\n\n\
         {tables}\n{plots}\n\
         Not shown: real network cards. Client, nodes and tasks share the machine's CPUs.\n"
    )
}
