//! The path of a packet, for real: a client and two nodes in namespaces of their own, the compiled
//! programs attached, TCP connections of the kernel's own stacks. Needs root; without it, the tests
//! print so and pass (they fail where `CI` is set).

mod flood;
mod netns;
mod node;
mod overlay;
mod overlay6;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mesh_ebpf::abi::{BackendState, Mac, Policy};
use netns::Netns;
use node::{Datapath, Node, PUBLISHED, TASK_PORT, TRANSLATIONS};
use socket2::{Domain, Socket, Type};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// How the node's own listener identifies itself.
const NOT_A_TASK: u8 = 99;
const PATIENCE: Duration = Duration::from_secs(5);

/// A client and two nodes, each with a task; dropping it removes everything.
struct Cluster {
    client: Netns,
    nodes: [Node; 2],
    _passing: Vec<aya::Ebpf>,
    _bridge: Netns,
}

impl Cluster {
    fn new(datapath: Datapath) -> Self {
        let bridge = Netns::new("bridge");
        bridge.ip("link add br0 type bridge");
        bridge.ip("link set br0 up");
        let client = Netns::new("client");
        node::plug(&bridge, &client, "client", &format!("{CLIENT}/24"), Mac([2, 0, 0, 0, 0, 1]));
        let mut nodes = [1, 2].map(|number| Node::new(&bridge, number, datapath));
        let passing = match datapath {
            Datapath::Xdp => ["up1", "up2"].map(|port| node::pass(&bridge, port)).into(),
            Datapath::Tc => Vec::new(),
        };
        for node in &mut nodes {
            node.add_peer(3 - node.number);
            node.set_backend(1, BackendState::Active);
            node.set_backend(2, BackendState::Active);
            node.publish(&[1, 2], Policy::RoundRobin);
            serve(node);
        }
        Self { client, nodes, _passing: passing, _bridge: bridge }
    }

    /// Connects from the client to the published port of a node.
    fn connect(&self, number: u8, from_port: u16) -> std::io::Result<TcpStream> {
        self.client.within(move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((CLIENT, from_port)).into())?;
            let to = SocketAddr::from((Node::address_of(number), PUBLISHED));
            socket.connect_timeout(&to.into(), PATIENCE)?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        })
    }

    /// One conversation, from a port that no task has seen: what the task reports of itself and of
    /// its peer.
    fn ask(&self, number: u8) -> Greeting {
        let (greeting, local) = self.converse(number);
        assert_eq!(SocketAddr::V4(greeting.peer), local, "the task sees the client's own address");
        greeting
    }

    /// One conversation: what the task reports, and the client's own address.
    fn converse(&self, number: u8) -> (Greeting, SocketAddr) {
        let mut stream = self.connect(number, 0).expect("connection");
        let local = stream.local_addr().expect("local address");
        let greeting = greet(&mut stream);
        stream.shutdown(Shutdown::Write).expect("shutdown");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("the task closes too");
        (greeting, local)
    }

    fn drops(&self) -> Vec<Vec<(&'static str, u64)>> {
        self.nodes.iter().map(Node::drops).collect()
    }
}

/// A task's first line.
#[derive(Debug)]
struct Greeting {
    task: u8,
    peer: SocketAddrV4,
}

/// Reads a task's first line.
fn greet(stream: &mut TcpStream) -> Greeting {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && byte != *b"\n" {
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).expect("text");
    let (task, peer) = line.split_once(' ').unwrap_or_else(|| panic!("no greeting but {line:?}"));
    Greeting { task: task.parse().expect("number"), peer: peer.parse().expect("address") }
}

/// The task: reports who it is and whom it sees, then echoes. And on the node itself, like the
/// userspace proxy, a listener on the published port, which must not get anything that arrived at
/// the uplink.
fn serve(node: &Node) {
    let (ready, is_ready) = mpsc::channel();
    let number = node.number;
    let task_ready = ready.clone();
    node.task.spawn(move || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, TASK_PORT)).expect("task listens");
        task_ready.send(()).expect("test waits");
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(stream, number));
        }
    });
    node.netns.spawn(move || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PUBLISHED)).expect("node listens");
        ready.send(()).expect("test waits");
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(stream, NOT_A_TASK));
        }
    });
    for _ in 0..2 {
        is_ready.recv().expect("listener");
    }
}

fn echo(mut stream: TcpStream, number: u8) {
    let Ok(peer) = stream.peer_addr() else { return };
    let mut buffer = vec![0; 1 << 16];
    if stream.write_all(format!("{number} {peer}\n").as_bytes()).is_err() {
        return;
    }
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..len]).is_err() {
            return;
        }
    }
}

/// Whether this process may make namespaces and load programs.
fn is_privileged() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root || std::env::var_os("CI").is_none(), "these tests need root");
    if !is_root {
        eprintln!("skipped: needs root");
    }
    is_root
}

/// Waits until `is_so`, at most [`PATIENCE`].
fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "still not: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn round_robin_spreads_exactly(cluster: &Cluster) {
    for ingress in [1, 2] {
        let mut answers = [0; 3];
        for _ in 0..20 {
            answers[usize::from(cluster.ask(ingress).task)] += 1;
        }
        assert_eq!(answers, [0, 10, 10], "20 connections to node {ingress}; drops {:?}", cluster.drops());
    }
    for (node, backend) in [(0, 1), (0, 2), (1, 1), (1, 2)] {
        let seen = || cluster.nodes[node].backend_stats(backend);
        eventually("all closed", || seen().closed == 10 && cluster.nodes[node].live(backend) == 0);
        assert_eq!(seen().answered, 10, "answered on node {} for {backend}", node + 1);
        assert_eq!(seen().opened, 10, "opened on node {} for {backend}", node + 1);
        assert!(seen().request.packets >= 40 && seen().reply.packets >= 30, "traffic: {:?}", seen());
    }
    assert_eq!(cluster.drops(), [vec![], vec![]], "nothing dropped");
}

fn bulk_arrives_intact(cluster: &Cluster) {
    for _ in 0..2 {
        let mut stream = cluster.connect(1, 0).expect("connection");
        let task = greet(&mut stream).task;
        let sent: Vec<u8> = (0..4_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut writer = stream.try_clone().expect("second handle");
        let copy = sent.clone();
        let writing =
            thread::spawn(move || writer.write_all(&copy).and_then(|()| writer.shutdown(Shutdown::Write)));
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).expect("echo");
        writing.join().expect("writer").expect("all written");
        assert!(seen == sent, "{} of {} bytes echoed by task {task}, or changed", seen.len(), sent.len());
    }
}

/// The ingress node's own VXLAN device sees no packet in either direction, except replies that
/// stand for several packets (GRO), which exist at TC only.
fn the_tunnel_is_whose_it_should_be(cluster: &mut Cluster, datapath: Datapath) {
    cluster.nodes[0].publish(&[2], Policy::RoundRobin);
    let before = cluster.nodes[0].tunnel_packets();
    assert_eq!(cluster.ask(1).task, 2);
    assert_eq!(before, cluster.nodes[0].tunnel_packets(), "sent and received by the VXLAN device");
    bulk_arrives_intact(cluster);
    let after = cluster.nodes[0].tunnel_packets();
    match datapath {
        Datapath::Xdp => assert_eq!(before, after, "sent and received by the VXLAN device, in bulk"),
        Datapath::Tc => assert!(before[0] == after[0] && before[1] < after[1], "{before:?} then {after:?}"),
    }
}

/// One source port towards both nodes, one task behind both.
fn clashing_ports_are_kept_apart(cluster: &mut Cluster) {
    for node in &mut cluster.nodes {
        node.publish(&[2], Policy::RoundRobin);
    }
    let mut first = cluster.connect(1, 50_000).expect("first connection");
    let mut second = cluster.connect(2, 50_000).expect("second connection");
    let (one, other) = (greet(&mut first), greet(&mut second));
    assert_eq!((one.task, other.task), (2, 2));
    assert_eq!(one.peer.port(), 50_000, "the first keeps the port");
    assert_ne!(other.peer.port(), 50_000, "the second gets another");
    assert_eq!(other.peer.ip(), &CLIENT, "but keeps the address");
    for (stream, word) in [(&mut first, b"one"), (&mut second, b"two")] {
        stream.write_all(word).expect("write");
        let mut back = [0; 3];
        stream.read_exact(&mut back).expect("echo");
        assert_eq!(&back, word, "each connection hears its own echo");
    }
}

/// More connections end than the task's node has room for, while one is idle.
fn ended_connections_push_no_idle_one_out(cluster: &mut Cluster) {
    for node in &mut cluster.nodes {
        node.publish(&[2], Policy::RoundRobin);
    }
    let mut idle = cluster.connect(1, 51_000).expect("the idle connection");
    assert_eq!(greet(&mut idle).task, 2);
    for _ in 0..TRANSLATIONS / 2 + TRANSLATIONS / 10 {
        cluster.converse(1);
        cluster.converse(2);
    }
    let mut other = cluster.connect(2, 51_000).expect("a connection by the other node");
    assert_ne!(greet(&mut other).peer.port(), 51_000, "the task's node remembers whose port it is");
    idle.write_all(b"on").expect("write");
    let mut back = [0; 2];
    idle.read_exact(&mut back).expect("the idle connection goes on");
}

fn without_backend_a_connection_is_refused_at_once(cluster: &mut Cluster) {
    cluster.nodes[0].publish(&[], Policy::RoundRobin);
    let start = Instant::now();
    let error = cluster.connect(1, 0).expect_err("no backend");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert!(start.elapsed() < Duration::from_millis(500), "refused after {:?}", start.elapsed());
}

/// A live flow stays when the table changes, and gets a RST when its backend is gone.
fn a_flow_lives_as_long_as_its_backend(cluster: &mut Cluster) {
    for task in [1, 2] {
        cluster.nodes[0].publish(&[task], Policy::LeastConnections);
        let mut stream = cluster.connect(1, 0).expect("connection");
        assert_eq!(greet(&mut stream).task, task);
        cluster.nodes[0].publish(&[3 - task], Policy::RoundRobin);
        cluster.nodes[0].set_backend(task, BackendState::Draining);
        assert_eq!(cluster.ask(1).task, 3 - task, "new flows go to the other");
        stream.write_all(b"on").expect("write");
        let mut back = [0; 2];
        stream.read_exact(&mut back).expect("the live flow goes on");
        cluster.nodes[0].set_backend(task, BackendState::Down);
        stream.write_all(b"off").expect("write");
        let error = stream.read_exact(&mut back).expect_err("the backend is gone");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "task {task}");
        cluster.nodes[0].set_backend(task, BackendState::Active);
    }
}

/// The client's second SYN finds a backend that answers.
fn a_silent_task_costs_one_repeated_syn(cluster: &mut Cluster) {
    let seen = |cluster: &Cluster| cluster.nodes[0].backend_stats(2);
    let before = seen(cluster);
    cluster.nodes[1].silence_task(true);
    cluster.nodes[0].publish(&[2], Policy::RoundRobin);
    let start = Instant::now();
    let connecting = {
        let socket = cluster.client.within(|| Socket::new(Domain::IPV4, Type::STREAM, None)).expect("socket");
        let to = SocketAddr::from((Node::address_of(1), PUBLISHED));
        thread::spawn(move || socket.connect_timeout(&to.into(), PATIENCE).map(|()| TcpStream::from(socket)))
    };
    eventually("the first SYN was sent to the silent one", || seen(cluster).opened > before.opened);
    cluster.nodes[0].publish(&[1], Policy::RoundRobin);
    let mut stream = connecting.join().expect("thread").expect("connection");
    assert_eq!(greet(&mut stream).task, 1);
    assert!(start.elapsed() < Duration::from_secs(2), "connected after {:?}", start.elapsed());
    assert_eq!(seen(cluster).unanswered, before.unanswered + 1, "counted as unanswered");
    cluster.nodes[1].silence_task(false);
}

/// A connection that the node's own listener accepted before the port was published is left to it.
fn an_older_connection_goes_on(cluster: &mut Cluster) {
    cluster.nodes[0].unpublish();
    let mut stream = cluster.connect(1, 0).expect("connection");
    assert_eq!(greet(&mut stream).task, NOT_A_TASK);
    cluster.nodes[0].publish(&[2], Policy::RoundRobin);
    assert_eq!(cluster.ask(1).task, 2, "new connections go to the task");
    stream.write_all(b"on").expect("write");
    let mut back = [0; 2];
    stream.read_exact(&mut back).expect("the older connection goes on");
}

/// The task's node answers packets for a backend that node 1 does not know.
fn the_tasks_node_refuses_for_a_dead_backend(cluster: &mut Cluster) {
    cluster.nodes[0].publish(&[2], Policy::RoundRobin);
    let mut stream = cluster.connect(1, 0).expect("connection");
    assert_eq!(greet(&mut stream).task, 2);
    cluster.nodes[1].set_backend(2, BackendState::Down);
    stream.write_all(b"off").expect("write");
    let error = stream.read_exact(&mut [0; 3]).expect_err("the backend is gone");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let error = cluster.connect(1, 0).expect_err("the task's node refuses");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    cluster.nodes[1].set_backend(2, BackendState::Active);
}

/// Requests arrive through node 1, replies don't go back through it.
fn the_tasks_node_answers_directly(cluster: &mut Cluster) {
    cluster.nodes[0].publish_direct(&[2]);
    let seen = |cluster: &Cluster| cluster.nodes[0].backend_stats(2);
    let before = seen(cluster);
    for _ in 0..3 {
        assert_eq!(cluster.ask(1).task, 2);
    }
    bulk_arrives_intact(cluster);
    let after = seen(cluster);
    assert_eq!(after.answered, before.answered + 5, "confirmed by the client");
    let replies = after.reply.packets - before.reply.packets;
    assert!(
        replies <= 2,
        "{replies} replies came back to the ingress node, more than the last of earlier connections"
    );
    assert!(after.request.packets > before.request.packets + 15, "requests: {before:?} then {after:?}");
    eventually("all are over for counting", || cluster.nodes[0].live(2) == 0);
    cluster.nodes[0].set_backend(1, BackendState::Active);
    cluster.nodes[0].publish_direct(&[1]);
    assert_eq!(cluster.ask(1).task, 1, "a task of the ingress node");
}

fn walk(datapath: Datapath) {
    if !is_privileged() {
        return;
    }
    let mut cluster = Cluster::new(datapath);
    round_robin_spreads_exactly(&cluster);
    bulk_arrives_intact(&cluster);
    the_tunnel_is_whose_it_should_be(&mut cluster, datapath);
    clashing_ports_are_kept_apart(&mut cluster);
    ended_connections_push_no_idle_one_out(&mut cluster);
    without_backend_a_connection_is_refused_at_once(&mut cluster);
    a_flow_lives_as_long_as_its_backend(&mut cluster);
    the_tasks_node_refuses_for_a_dead_backend(&mut cluster);
    a_silent_task_costs_one_repeated_syn(&mut cluster);
    an_older_connection_goes_on(&mut cluster);
    the_tasks_node_answers_directly(&mut cluster);
}

#[test]
fn walk_over_tc() {
    walk(Datapath::Tc);
}

#[test]
fn walk_over_xdp() {
    walk(Datapath::Xdp);
}
