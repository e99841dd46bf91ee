//! Tasks on an overlay network, for real: by address and by virtual IP, on one node and between
//! two.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::SchedClassifier;
use mesh_ebpf::abi::{
    Backend, BackendState, Endpoint, EndpointKey, ISOLATED, IsolatedKey, Link, Mac, Service, endpoint_flag,
    names,
};
use socket2::{Domain, Socket, Type};

use crate::netns::{Netns, run};
use crate::node::{Datapath, MTU, Node, TASK_PORT, attach_tc, dotted};
use crate::overlay6::over_ipv6;
use crate::{Cluster, Greeting, PATIENCE, eventually, greet, is_privileged};

pub(crate) const NUMBER: u32 = 5;
const VIRTUAL_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 5, 100);
/// The index of the virtual IP among the services.
const SERVICE: u32 = 9;

/// The address of a node's bridge, of its task, and of the task's neighbour.
pub(crate) const fn bridge_of(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 5, node)
}

pub(crate) const fn task_of(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 5, 10 + node)
}

pub(crate) const fn neighbour_of(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 5, 20 + node)
}

/// The id of a node's task as a backend of the virtual IP.
const fn backend_of(node: u8) -> u32 {
    10 + node as u32
}

const fn mac_of(address: Ipv4Addr) -> Mac {
    let [.., last] = address.octets();
    Mac([2, 0, 0, 0, 5, last])
}

fn key(address: Ipv4Addr) -> EndpointKey {
    EndpointKey::new(NUMBER, address.octets())
}

fn word(octets: [u8; 4]) -> u32 {
    u32::from_ne_bytes(octets)
}

impl Node {
    /// Connects the node's task to the network, and a neighbour of it, which this returns.
    fn join(&mut self) -> Netns {
        let neighbour = Netns::new(&format!("neighbour-{}", self.number));
        self.netns.ip("link add meshn5 type bridge");
        self.netns.ip(&format!("addr add {}/24 dev meshn5", bridge_of(self.number)));
        self.netns.ip("link set meshn5 up");
        let (task, number) = (self.task.name().to_owned(), self.number);
        self.connect("net0", &task, task_of(number), backend_of(number));
        self.connect("net1", neighbour.name(), neighbour_of(number), 0);
        let bridge = Endpoint { flags: endpoint_flag::BRIDGE, ..Endpoint::default() };
        self.insert(names::ENDPOINTS, key(bridge_of(number)), bridge);
        neighbour
    }

    /// Makes the veth by which a task is connected to the network, and attaches the program.
    fn connect(&mut self, outside: &str, task: &str, address: Ipv4Addr, backend: u32) {
        let (mac, mtu) = (mac_of(address), MTU - 50);
        self.netns.ip(&format!(
            "link add {outside} mtu {mtu} type veth peer name eth1 mtu {mtu} address {} netns {task}",
            dotted(mac)
        ));
        self.netns.ip(&format!("link set {outside} master meshn5 up"));
        // As the engine does on a network without IPv6.
        run(&format!("ip netns exec {task} sysctl -qw net.ipv6.conf.eth1.disable_ipv6=1"));
        run(&format!("ip -n {task} addr add {address}/24 dev eth1"));
        run(&format!("ip -n {task} link set eth1 up"));
        let ifindex = self.ifindex(outside);
        let endpoint = Endpoint { ifindex, mac, backend, ..Endpoint::default() };
        self.insert(names::ENDPOINTS, key(address), endpoint);
        let link = Link {
            network: NUMBER,
            address: word(address.octets()),
            subnet: word([10, 0, 5, 0]),
            mask: word([255, 255, 255, 0]),
            mac,
            backend,
            ..Link::default()
        };
        self.insert(names::LINKS, ifindex, link);
        let program = self.programs.program_mut(names::PROGRAM_OVERLAY).expect("mesh_overlay");
        let program: &mut SchedClassifier = program.try_into().expect("a TC program");
        if program.fd().is_err() {
            program.load().expect("verifier accepts mesh_overlay");
        }
        self.netns.within(|| attach_tc(program, outside)).expect("attached");
    }

    /// Adds what another node has on the network.
    fn learn(&mut self, other: u8) {
        for (address, backend) in [(task_of(other), backend_of(other)), (neighbour_of(other), 0)] {
            let endpoint = Endpoint { node: u32::from(other), backend, ..Endpoint::default() };
            self.insert(names::ENDPOINTS, key(address), endpoint);
        }
    }

    /// Makes the virtual IP lead to the tasks of these nodes.
    fn lead_to(&mut self, nodes: &[u8]) {
        const BASE: u32 = 64;
        for node in [1, 2] {
            let backend = Backend {
                task_address: task_of(node).into(),
                task_address6: VIRTUAL_IP.into(),
                service_index: SERVICE,
                state: BackendState::Active as u8,
                network: NUMBER,
                ..Backend::default()
            };
            self.set(names::BACKENDS, backend_of(node), backend);
        }
        for (slot, node) in (BASE..).zip(nodes) {
            self.set(names::SLOTS, slot, backend_of(*node));
        }
        let slot_count = u32::try_from(nodes.len()).expect("few nodes");
        let service = Service { index: SERVICE, slot_base: BASE, slot_count, ..Service::default() };
        self.insert(names::VIRTUAL_IPS, key(VIRTUAL_IP), service);
    }

    /// Isolates the tasks' subnets.
    fn isolate(&mut self) {
        let map = self.programs.map_mut(names::ISOLATED).expect("map of isolated networks");
        let mut isolated: aya::maps::lpm_trie::LpmTrie<_, IsolatedKey, u32> = map.try_into().expect("trie");
        let network = mesh_ebpf::abi::Address::v4([10, 128, 0, 0]).0;
        let prefix = aya::maps::lpm_trie::Key::new(96 + 16, IsolatedKey { network });
        isolated.insert(&prefix, ISOLATED, 0).expect("network");
    }

    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        self.drops().iter().find(|(label, _)| *label == reason).map_or(0, |(_, count)| *count)
    }
}

fn connect(from: &Netns, to: Ipv4Addr) -> std::io::Result<TcpStream> {
    from.within(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.connect_timeout(&SocketAddr::from((to, TASK_PORT)).into(), PATIENCE)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// One conversation with a megabyte, which comes back as it was.
fn converse(from: &Netns, to: Ipv4Addr) -> Greeting {
    let mut stream = connect(from, to).unwrap_or_else(|error| panic!("connect to {to}: {error}"));
    let greeting = greet(&mut stream);
    let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut writer, copy) = (stream.try_clone().expect("second handle"), sent.clone());
    let writing =
        thread::spawn(move || writer.write_all(&copy).and_then(|()| writer.shutdown(Shutdown::Write)));
    let mut seen = Vec::new();
    stream.read_to_end(&mut seen).expect("echo");
    writing.join().expect("writer").expect("all written");
    assert!(seen == sent, "{} of {} bytes came back from {to}, or changed", seen.len(), sent.len());
    greeting
}

/// Whether an echo request with this much data is answered.
fn is_answered(from: &Netns, to: Ipv4Addr, size: u32) -> bool {
    from.succeeds(&format!("busybox ping -c 1 -W 1 -s {size} {to}"))
}

fn by_address(cluster: &Cluster, neighbours: &[Netns; 2]) {
    let [first, second] = &cluster.nodes;
    for (from, source) in [(&first.task, task_of(1)), (&neighbours[0], neighbour_of(1))] {
        let greeting = converse(from, task_of(2));
        assert_eq!((greeting.task, *greeting.peer.ip()), (2, source), "to the other node");
    }
    let greeting = converse(&neighbours[0], task_of(1));
    assert_eq!((greeting.task, *greeting.peer.ip()), (1, neighbour_of(1)), "on one node");
    let greeting = converse(&second.task, task_of(1));
    assert_eq!((greeting.task, *greeting.peer.ip()), (1, task_of(2)), "the other way");
    for size in [56, 4000] {
        assert!(is_answered(&neighbours[0], neighbour_of(2), size), "an echo of {size} bytes");
    }
    assert!(is_answered(&first.task, bridge_of(1), 56), "the node itself");
    assert_eq!(cluster.drops(), [vec![], vec![]], "nothing dropped");
}

fn by_virtual_ip(cluster: &mut Cluster, neighbours: &[Netns; 2]) {
    for (to, from, source) in [(2, 1, task_of(1)), (1, 1, VIRTUAL_IP), (1, 2, task_of(2))] {
        for node in &mut cluster.nodes {
            node.lead_to(&[to]);
        }
        let greeting = converse(&cluster.nodes[from - 1].task, VIRTUAL_IP);
        assert_eq!((greeting.task, *greeting.peer.ip()), (to, source), "task {from} to task {to}");
    }
    let greeting = converse(&neighbours[0], VIRTUAL_IP);
    assert_eq!((greeting.task, *greeting.peer.ip()), (1, neighbour_of(1)), "on one node");
    assert!(is_answered(&neighbours[0], VIRTUAL_IP, 56), "an echo of the virtual IP");
    let [first, second] = &cluster.nodes;
    for (node, backend, count) in [(first, 11, 2), (first, 12, 1), (second, 11, 1)] {
        let seen = || node.backend_stats(backend);
        eventually("all closed", || seen().closed == count && node.live(backend) == 0);
        assert_eq!((seen().opened, seen().answered), (count, count), "node {}: {backend}", node.number);
    }
    cluster.nodes[0].lead_to(&[1, 2]);
    let mut tasks = [(); 4].map(|()| converse(&neighbours[0], VIRTUAL_IP).task);
    tasks.sort_unstable();
    assert_eq!(tasks, [1, 1, 2, 2], "round robin");
    assert_eq!(cluster.drops(), [vec![], vec![]], "nothing dropped");
    cluster.nodes[0].lead_to(&[]);
    let start = Instant::now();
    let error = connect(&neighbours[0], VIRTUAL_IP).expect_err("no backend");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert!(start.elapsed() < Duration::from_millis(500), "refused after {:?}", start.elapsed());
}

fn nobody_sends_as_another(cluster: &Cluster, neighbours: &[Netns; 2]) {
    let spoofed = || cluster.nodes[0].dropped("spoofed_source");
    let before = spoofed();
    neighbours[0].ip("addr add 10.0.5.77/24 dev eth1");
    let is_heard = neighbours[0].succeeds("busybox ping -c 1 -W 1 -I 10.0.5.77 10.0.5.12");
    assert!(!is_heard, "another address is answered");
    assert!(spoofed() > before, "it is counted: {:?}", cluster.nodes[0].drops());
    neighbours[0].ip("addr del 10.0.5.77/24 dev eth1");
    assert!(is_answered(&neighbours[0], task_of(2), 56), "its own still is");
}

fn tasks_are_isolated_elsewhere(cluster: &mut Cluster) {
    for node in &mut cluster.nodes {
        node.isolate();
    }
    let [first, second] = &cluster.nodes;
    let before = first.dropped("isolated");
    assert!(!is_answered(&first.task, Ipv4Addr::new(10, 128, 2, 2), 56), "by the address on mesh");
    assert!(first.dropped("isolated") > before, "it is counted: {:?}", first.drops());
    assert!(is_answered(&first.task, task_of(2), 56), "on the network");
    assert_eq!(cluster.ask(1).peer.ip(), &crate::CLIENT, "published ports go on: {:?}", second.drops());
}

fn walk(datapath: Datapath) {
    if !is_privileged() {
        return;
    }
    let mut cluster = Cluster::new(datapath);
    let [first, second] = &mut cluster.nodes;
    let neighbours = [first.join(), second.join()];
    first.learn(2);
    second.learn(1);
    by_address(&cluster, &neighbours);
    by_virtual_ip(&mut cluster, &neighbours);
    if datapath == Datapath::Tc {
        over_ipv6(&mut cluster, &neighbours);
    }
    nobody_sends_as_another(&cluster, &neighbours);
    tasks_are_isolated_elsewhere(&mut cluster);
}

#[test]
fn networks_over_tc() {
    walk(Datapath::Tc);
}

#[test]
fn networks_over_xdp() {
    walk(Datapath::Xdp);
}
