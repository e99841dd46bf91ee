//! IPv6 on an overlay network, for real: the kernel's own neighbour discovery, TCP and fragments on
//! one node and between two.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;

use mesh_ebpf::abi::{Address, Subnet6, names};

use crate::netns::{Netns, run};
use crate::overlay::{NUMBER, bridge_of, neighbour_of, task_of};
use crate::{Cluster, PATIENCE, eventually};

const PREFIX: u128 = 0xfd00_0005 << 96;
const PORT: u16 = 7006;

/// The IPv6 address of whoever has this IPv4 address.
fn six(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(PREFIX | u128::from(u32::from(address)))
}

/// Gives the network IPv6, as agent and engine do.
fn enable(cluster: &mut Cluster, neighbours: &[Netns; 2]) {
    for (node, neighbour) in cluster.nodes.iter_mut().zip(neighbours) {
        node.insert(
            names::SUBNETS6,
            NUMBER,
            Subnet6::of(&Address::from(std::net::IpAddr::V6(Ipv6Addr::from(PREFIX)))),
        );
        node.netns.ip(&format!("addr add {}/64 dev meshn5 nodad", six(bridge_of(node.number))));
        let members = [(&node.task, task_of(node.number)), (neighbour, neighbour_of(node.number))];
        for (netns, address) in members {
            run(&format!("ip netns exec {} sysctl -qw net.ipv6.conf.eth1.disable_ipv6=0", netns.name()));
            netns.ip(&format!("addr add {}/64 dev eth1 nodad", six(address)));
        }
    }
}

fn is_answered(from: &Netns, to: Ipv6Addr, size: u32) -> bool {
    from.succeeds(&format!("busybox ping -6 -c 1 -W 2 -s {size} {to}"))
}

/// A megabyte to a listener in `server`, which sends it back as it was.
fn converse(from: &Netns, server: &Netns, to: Ipv6Addr) {
    let (ready, is_ready) = mpsc::channel();
    let serving = server.spawn(move || {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).expect("the port is free");
        ready.send(()).expect("test waits");
        let (mut stream, peer) = listener.accept().expect("a client");
        let mut taken = Vec::new();
        stream.read_to_end(&mut taken).expect("a megabyte");
        stream.write_all(&taken).expect("an answer");
        peer.ip()
    });
    is_ready.recv().expect("listener");
    let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let seen = from.within(|| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, PORT)), PATIENCE)
            .unwrap_or_else(|error| panic!("connect to {to}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        stream.write_all(&sent).expect("a megabyte");
        stream.shutdown(Shutdown::Write).expect("an end");
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).expect("echo");
        (seen, stream.local_addr().expect("an address").ip())
    });
    assert!(seen.0 == sent, "{} of {} bytes came back from {to}, or changed", seen.0.len(), sent.len());
    assert_eq!(serving.join().expect("server"), seen.1, "whom {to} saw");
}

pub(crate) fn over_ipv6(cluster: &mut Cluster, neighbours: &[Netns; 2]) {
    let drops = |cluster: &Cluster| cluster.drops();
    let before = drops(cluster);
    enable(cluster, neighbours);
    let [first, second] = &cluster.nodes;
    converse(&first.task, &second.task, six(task_of(2)));
    converse(&second.task, &neighbours[0], six(neighbour_of(1)));
    converse(&neighbours[0], &first.task, six(task_of(1)));
    for size in [56, 4000] {
        assert!(is_answered(&neighbours[0], six(neighbour_of(2)), size), "an echo of {size} bytes");
    }
    assert!(is_answered(&first.task, six(bridge_of(1)), 56), "the node itself");
    assert_eq!(drops(cluster), before, "nothing more dropped");
    nobody_takes_an_address(cluster, neighbours);
}

/// The address of a task of another node is found to be in use, and one that is set without that
/// check is not heard.
fn nobody_takes_an_address(cluster: &Cluster, neighbours: &[Netns; 2]) {
    let thief = &neighbours[0];
    thief.ip(&format!("addr add {}/64 dev eth1", six(task_of(2))));
    let failed = || {
        let shown = format!("ip -n {} -6 addr show dev eth1 dadfailed", thief.name());
        let output = std::process::Command::new("sh").args(["-c", &shown]).output().expect("ip starts");
        String::from_utf8_lossy(&output.stdout).contains(&six(task_of(2)).to_string())
    };
    eventually("a duplicate address is found", failed);
    thief.ip(&format!("addr del {}/64 dev eth1", six(task_of(2))));
    let spoofed = || cluster.nodes[0].dropped("spoofed_source");
    let before = spoofed();
    let foreign = Ipv6Addr::from(PREFIX | 0x77);
    thief.ip(&format!("addr add {foreign}/64 dev eth1 nodad"));
    let is_heard = thief.succeeds(&format!("busybox ping -6 -c 1 -W 1 -I {foreign} {}", six(task_of(2))));
    assert!(!is_heard, "another address is answered");
    assert!(spoofed() > before, "it is counted: {:?}", cluster.nodes[0].drops());
    thief.ip(&format!("addr del {foreign}/64 dev eth1"));
    assert!(is_answered(thief, six(task_of(2)), 56), "its own still is");
}
