//! The data plane on real kernel parts: two nodes in namespaces of their own, a task on the second,
//! a client that connects to both.
//!
//! Needs root. Without it the tests print so and pass on a developer's machine, and fail in CI.

mod abandoned;
mod capacity;
mod clsact;
mod figures;
mod netlab;
mod networks;
mod node;
mod pins;
mod settings;
mod traffic;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use mesh_agent::datapath::{self, DatapathConfig, DatapathMode, Evictions, TaskLink, TcHooks};
use mesh_agent::view::BackendState;
use mesh_ebpf::abi::{Evicted, names, protocol};
use mesh_state::ids::TaskId;
use netlab::{CLIENT, NODES, Netlab, TASK, run};
use node::{Node, Traces, configs, view};
use traffic::{connect, echo, serve};

const DEADLINE: Duration = Duration::from_secs(30);

/// Whether privileged tests can run here.
fn can_run() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "CI must run the privileged tests as root");
    if !root {
        eprintln!("skipped: this test needs root");
    }
    root
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn check_client_address(lab: &Netlab, node: usize) {
    let seen = lab.client.call(move || connect(NODES[node]).map(|(_, seen)| seen));
    let seen = seen.unwrap_or_else(|error| panic!("connection through node {}: {error}", node + 1));
    assert_eq!(seen, CLIENT.to_string(), "client's address at the task, through node {}", node + 1);
}

fn opened(node: &Node) -> u64 {
    let stats = node.datapath.stats().expect("figures");
    stats.frontends.iter().map(|frontend| frontend.stats.opened).sum()
}

/// Both nodes up, the task connected and in the table.
fn start(lab: &Netlab, configs: &[DatapathConfig; 2]) -> ([Node; 2], TaskLink) {
    serve(lab);
    let nodes = [0, 1].map(|node| Node::start(lab, node, &configs[node]));
    let task = TaskLink {
        task_id: TaskId::from("task1"),
        pid: lab.task_process.id(),
        address: TASK,
        address6: None,
    };
    attach(lab, &nodes[1], &task);
    for (number, node) in nodes.iter().enumerate() {
        node.apply(view(number, 1, &[BackendState::Active]));
    }
    (nodes, task)
}

/// The whole test on one data path.
fn story(name: &str, mode: DatapathMode, tc_hooks: TcHooks) {
    if !can_run() {
        return;
    }
    let configs = configs(name, mode).map(|config| DatapathConfig { tc_hooks, ..config });
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new(name, mode == DatapathMode::Xdp);
    let (nodes, task) = start(&lab, &configs);
    for _ in 0..20 {
        check_client_address(&lab, 0);
        check_client_address(&lab, 1);
    }
    assert_eq!(opened(&nodes[0]), 20, "connections counted at the first node");
    assert_eq!(opened(&nodes[1]), 20, "connections counted at the second node");
    check_hooks(&nodes[0], mode, tc_mode(tc_hooks));
    let rules = run(&format!("ip netns exec {} nft list table ip mesh", lab.node_namespace(0)));
    assert_eq!(rules.matches("udp dport 4799 notrack").count(), 2, "rules of the firewall: {rules}");
    // The programs leave packets to the kernel's device until they know the other node's MAC.
    eventually("programs make the tunnel's packets by themselves", || {
        let before = by_device(&lab);
        check_client_address(&lab, 0);
        by_device(&lab) == before
    });

    let mut live = lab.client.call(|| connect(NODES[0])).expect("a long connection").0;
    let before = by_device(&lab);
    echo(&mut live, 1 << 20);
    let after = by_device(&lab);
    assert_eq!(
        after.sent, before.sent,
        "packets that stand for several go into the tunnel by the programs too"
    );
    let has_segments = mode != DatapathMode::Xdp;
    let is_received = after.received > before.received;
    assert_eq!(
        is_received, has_segments,
        "the device takes packets that stand for several out of the tunnel"
    );
    let nodes = restart(&lab, nodes, &configs, &task);
    echo(&mut live, 1 << 20);
    check_live(&nodes[0], 1);

    goes_away(&lab, &nodes, live);
    nodes.into_iter().for_each(Node::stop);
    uninstall(&lab, &configs);
    drop(lab);
    drop(traces);
}

fn attach(lab: &Netlab, node: &Node, task: &TaskLink) {
    let (datapath, task) = (node.datapath.clone(), task.clone());
    lab.nodes[1].call(move || datapath.attach_task(&task)).expect("the task is plugged in");
}

/// Packets of the tunnel that the first node's VXLAN device has handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ByDevice {
    received: u64,
    sent: u64,
}

fn by_device(lab: &Netlab) -> ByDevice {
    let namespace = lab.node_namespace(0);
    let links = run(&format!("ip -n {namespace} -s -j link show mesh-vxlan0"));
    let links: serde_json::Value = serde_json::from_str(&links).expect("ip speaks JSON");
    let packets = |way: &str| links[0]["stats64"][way]["packets"].as_u64().expect("a count of packets");
    ByDevice { received: packets("rx"), sent: packets("tx") }
}

/// Whether this kernel has tcx links.
fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// How TC programs are attached, as figures name it.
fn tc_mode(tc_hooks: TcHooks) -> &'static str {
    match tc_hooks {
        TcHooks::Tcx => "tcx",
        TcHooks::Auto if has_tcx() => "tcx",
        TcHooks::Auto | TcHooks::Clsact => "clsact",
    }
}

fn check_hooks(node: &Node, mode: DatapathMode, tc: &str) {
    let hooks = node.datapath.stats().expect("figures").hooks;
    let mut seen: Vec<String> =
        hooks.iter().map(|hook| format!("{} {} {}", hook.interface, hook.hook, hook.mode)).collect();
    seen.sort_unstable();
    let mut expected: Vec<String> = ["eth0 tc", "eth0 tc-egress", "mesh-vxlan0 tc", "mesh-vxlan0 tc-egress"]
        .map(|hook| format!("{hook} {tc}"))
        .into();
    if mode == DatapathMode::Xdp {
        expected.insert(2, "eth0 xdp native".to_owned());
    }
    assert_eq!(seen, expected, "attached programs");
}

/// Both agents stop and start while the client keeps connecting; nothing may fail, before a view
/// comes and after.
fn restart(lab: &Netlab, nodes: [Node; 2], configs: &[DatapathConfig; 2], task: &TaskLink) -> [Node; 2] {
    let (running, connections) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let knocking = {
        let (running, connections) = (running.clone(), connections.clone());
        lab.client.call(move || {
            std::thread::spawn(move || -> Result<(), String> {
                while running.load(Ordering::Relaxed) {
                    for node in NODES {
                        connect(node).map_err(|error| format!("through {node}: {error}"))?;
                        connections.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(())
            })
        })
    };
    let counted = opened(&nodes[0]);
    nodes.into_iter().for_each(Node::stop);
    let nodes = [0, 1].map(|node| Node::start(lab, node, &configs[node]));
    let adopted = connections.load(Ordering::Relaxed);
    eventually("connections without a view", || connections.load(Ordering::Relaxed) > adopted + 10);
    attach(lab, &nodes[1], task);
    for (number, node) in nodes.iter().enumerate() {
        node.apply(view(number, 2, &[BackendState::Active]));
    }
    running.store(false, Ordering::Relaxed);
    let knocked = knocking.join().expect("the client's thread ends");
    assert_eq!(knocked, Ok(()), "after {} good connections", connections.load(Ordering::Relaxed));
    assert!(opened(&nodes[0]) > counted, "counters went on from {counted}");
    nodes
}

fn check_live(node: &Node, expected: u64) {
    let live = || {
        let stats = node.datapath.stats().expect("figures");
        stats.backends.iter().map(|backend| (backend.id, backend.live)).collect::<BTreeMap<_, _>>()
    };
    let start = Instant::now();
    while live() != BTreeMap::from([(7, expected)]) {
        assert!(start.elapsed() < DEADLINE, "live connections: {expected} expected, {:?} seen", live());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The backend drains, then leaves the table.
fn goes_away(lab: &Netlab, nodes: &[Node; 2], mut live: TcpStream) {
    for (number, node) in nodes.iter().enumerate() {
        node.apply(view(number, 3, &[BackendState::Draining]));
    }
    echo(&mut live, 1000);
    check_client_address(lab, 0);
    for (number, node) in nodes.iter().enumerate() {
        node.apply(view(number, 4, &[]));
    }
    for node in NODES {
        let refused = lab.client.call(move || connect(node)).map(drop).map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::ConnectionRefused), "no backend is left at {node}");
    }
    let cut = live.write_all(b"x").and_then(|()| live.read_exact(&mut [0]));
    let cut = cut.map_err(|error| error.kind());
    assert_eq!(cut, Err(ErrorKind::ConnectionReset), "the flow of a backend that is gone");
}

/// How many TC programs run on the ingress of an interface: by links, and by filters of mesh.
fn programs(lab: &Netlab, node: usize, interface: &'static str) -> usize {
    let query = move || SchedClassifier::query_tcx(interface, TcAttachType::Ingress);
    let links = if has_tcx() { lab.nodes[node].call(query).expect("the kernel tells").1.len() } else { 0 };
    links + clsact::own_filters(lab, node, interface)
}

fn uninstall(lab: &Netlab, configs: &[DatapathConfig; 2]) {
    for (node, config) in configs.iter().enumerate() {
        let (removed, namespace) = (config.clone(), lab.node_namespace(node));
        lab.nodes[node].call(move || datapath::uninstall(&removed)).expect("all goes");
        assert!(!config.bpffs.exists(), "{} is still there", config.bpffs.display());
        let links = run(&format!("ip -n {namespace} -d link"));
        assert!(!links.contains("mesh-vxlan0") && !links.contains("prog/xdp"), "left behind: {links}");
        let tables = run(&format!("ip netns exec {namespace} nft list tables"));
        assert!(!tables.contains("mesh"), "left behind: {tables}");
        assert_eq!(programs(lab, node, "eth0"), 0, "programs left on node {}", node + 1);
    }
}

#[test]
fn tc_carries_restarts_and_leaves_nothing() {
    story("tc", DatapathMode::Tc, TcHooks::Auto);
}

#[test]
fn xdp_carries_restarts_and_leaves_nothing() {
    story("xdp", DatapathMode::Xdp, TcHooks::Auto);
}

/// The node's network changes under the agent: address, MTU, tunnel device, and the uplink itself.
#[test]
fn follows_its_network() {
    if !can_run() {
        return;
    }
    let configs = configs("net", DatapathMode::Tc);
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new("net", false);
    let (nodes, _) = start(&lab, &configs);
    check_client_address(&lab, 0);

    let node = lab.node_namespace(0);
    let second = Ipv4Addr::new(10, 77, 0, 51);
    let through = |address: Ipv4Addr| lab.client.call(move || connect(address)).is_ok();
    run(&format!("ip -n {node} addr add {second}/24 dev eth0; ip -n {node} link set eth0 mtu 1400"));
    eventually("a new address answers", || through(second));
    eventually("the tunnel's MTU follows", || {
        run(&format!("ip -n {node} -o link show mesh-vxlan0")).contains("mtu 1350")
    });
    run(&format!("ip -n {node} link del mesh-vxlan0"));
    eventually("the tunnel device is back", || {
        run(&format!("ip -n {node} -o link")).contains("mesh-vxlan0") && through(NODES[0])
    });
    lab.replace_uplink(0);
    eventually("the new uplink has its programs", || through(NODES[0]));
    check_client_address(&lab, 0);

    nodes.into_iter().for_each(Node::stop);
    drop(lab);
    drop(traces);
}

/// A new version of mesh with other layouts finds the links of the old one: it replaces their
/// programs, and the old one's maps are removed.
#[test]
fn takes_over_from_another_version() {
    if !can_run() {
        return;
    }
    let configs = configs("abi", DatapathMode::Tc);
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new("abi", false);
    let (nodes, task) = start(&lab, &configs);
    let mut live = lab.client.call(|| connect(NODES[0])).expect("a long connection").0;
    echo(&mut live, 1000);
    nodes.into_iter().for_each(Node::stop);
    let other = "0123456789abcdef";
    for config in &configs {
        let directory = std::fs::read_dir(&config.bpffs).expect("the pins are there");
        let mut versions =
            directory.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir());
        let version = versions.next().expect("a version's directory");
        std::fs::rename(version, config.bpffs.join(other)).expect("it becomes another's");
    }
    let counts = configs[0].bpffs.join(other).join("maps").join(names::EVICTIONS);
    let counts = MapData::from_pin(counts).expect("the other's counts");
    let mut counts: Array<_, u64> = Array::try_from(Map::Array(counts)).expect("an array");
    counts.set(Evicted::Timeout.index(protocol::TCP), 7, 0).expect("a count");
    let nodes = [0, 1].map(|node| Node::start(&lab, node, &configs[node]));
    echo(&mut live, 1000);
    attach(&lab, &nodes[1], &task);
    for (number, node) in nodes.iter().enumerate() {
        node.apply(view(number, 1, &[BackendState::Active]));
    }
    check_client_address(&lab, 0);
    check_client_address(&lab, 1);
    echo(&mut live, 1000);
    check_live(&nodes[0], 1);
    let evictions = nodes[0].datapath.stats().expect("figures").evictions.tcp;
    assert_eq!(evictions, Evictions { timeout: 7, ..Evictions::default() }, "what the other version counted");
    for (node, interface) in [(0, "eth0"), (0, "mesh-vxlan0"), (1, "eth0"), (1, "mesh-vxlan0"), (1, "host1")]
    {
        assert_eq!(programs(&lab, node, interface), 1, "programs on {interface} of node {}", node + 1);
    }
    eventually("what the other version left is gone", || {
        configs.iter().all(|config| !config.bpffs.join(other).exists())
    });
    nodes.into_iter().for_each(Node::stop);
    drop(lab);
    drop(traces);
}

/// An agent that starts finds its tasks connected, before anyone connects them again, and can
/// disconnect them all the same.
#[test]
fn adopts_and_unplugs_tasks() {
    if !can_run() {
        return;
    }
    let configs = configs("task", DatapathMode::Tc);
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new("task", false);
    let ([first, second], task) = start(&lab, &configs);
    second.stop();
    let second = Node::start(&lab, 1, &configs[1]);
    second.apply(view(1, 2, &[BackendState::Active]));
    for node in [0, 1] {
        check_client_address(&lab, node);
    }
    let datapath = second.datapath.clone();
    lab.nodes[1].call(move || datapath.detach_task(&task.task_id)).expect("the task is unplugged");
    // The kernel frees a link a little after its pin is removed.
    eventually("no program is left on the task's cable", || programs(&lab, 1, "host1") == 0);
    for node in NODES {
        let refused = lab.client.call(move || connect(node)).map(drop).map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::ConnectionRefused), "a task that has gone, through {node}");
    }
    first.stop();
    second.stop();
    drop(lab);
    drop(traces);
}
