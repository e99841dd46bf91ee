//! Users' networks on real kernel parts: containers' veths get their programs and entries as soon
//! as they are plugged, and whoever is on a network reaches its members and nobody else.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::process::Command;
use std::time::Duration;

use mesh_agent::datapath::{DatapathConfig, DatapathMode};
use mesh_agent::view::{
    AttachmentView, BackendState, MemberView, NetworkView, NodeView, ServiceNetwork, ServiceView,
};
use mesh_ebpf::abi::{DropReason, names};
use mesh_state::ids::{BackendId, NetworkId};
use mesh_state::lb::LbSettings;

use crate::netlab::{Inhabitant, Netlab, run};
use crate::node::{Node, Traces, configs, view};
use crate::{attach, can_run, eventually, programs, start};

const PORT: u16 = 5432;
/// How long a client waits for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(500);
const APP: u32 = 5;
const OTHER: u32 = 6;

fn address(network: u32, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, u8::try_from(network).expect("a small number"), last)
}

/// A container on a network, plugged as the engine does it.
struct Container {
    inside: Inhabitant,
    namespace: String,
    /// The host's end of its veth pair.
    veth: &'static str,
}

impl Container {
    fn plug(lab: &Netlab, node: usize, veth: &'static str, network: u32, last: u8) -> Self {
        let (host, namespace) = (lab.node_namespace(node), format!("{}{veth}", lab.node_namespace(node)));
        let address = address(network, last);
        run(&format!("ip netns add {namespace}; ip -n {namespace} link set lo up"));
        let inside = Inhabitant::of(&namespace);
        // First the bridge's port, then the other end, whose link comes up last.
        run(&format!(
            "ip -n {host} link add {veth} mtu 1450 type veth peer name p{veth} mtu 1450
             ip -n {host} link set {veth} master meshn{network} up
             ip -n {host} link set p{veth} netns {namespace} name eth0
             ip -n {namespace} link set eth0 address 02:42:0a:00:{network:02x}:{last:02x}
             ip -n {namespace} addr add {address}/24 dev eth0
             ip -n {namespace} link set eth0 up"
        ));
        Self { inside, namespace, veth }
    }

    /// Answers each connection with `name`, and then with what it gets.
    fn serve(&self, name: &'static str) {
        self.inside.call(move || {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("it listens");
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    std::thread::spawn(move || -> std::io::Result<()> {
                        writeln!(stream, "{name} {}", stream.peer_addr()?.ip())?;
                        let mut buffer = [0; 4096];
                        while let count @ 1.. = stream.read(&mut buffer)? {
                            stream.write_all(&buffer[..count])?;
                        }
                        Ok(())
                    });
                }
            });
        });
    }

    /// Connects from here, and reads who answers and whom it sees.
    fn ask(&self, to: Ipv4Addr) -> std::io::Result<(TcpStream, String)> {
        self.inside.call(move || {
            let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, PORT)), 4 * SILENCE)?;
            stream.set_read_timeout(Some(4 * SILENCE))?;
            let mut line = Vec::new();
            let mut byte = [0];
            while byte != *b"\n" {
                stream.read_exact(&mut byte)?;
                line.push(byte[0]);
            }
            Ok((stream, String::from_utf8_lossy(&line).trim().to_owned()))
        })
    }

    #[track_caller]
    fn check_answer(&self, to: Ipv4Addr, expected: &str) {
        eventually(&format!("{to} answers"), || self.ask(to).is_ok_and(|(_, line)| line == expected));
    }

    /// Nothing answers at that address within a while.
    #[track_caller]
    fn check_silence(&self, to: Ipv4Addr) {
        let found = self.inside.call(move || {
            TcpStream::connect_timeout(&SocketAddr::from((to, PORT)), SILENCE).map(drop).is_ok()
        });
        assert!(!found, "{to} answers");
    }

    fn exec(&self, command: &str) {
        run(&format!("ip -n {} {command}", self.namespace));
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Threads that serve there keep the namespace alive, and with it the veth.
        let host = self.namespace.trim_end_matches(self.veth);
        let unplugged = Command::new("ip").args(["-n", host, "link", "del", self.veth]).status();
        if !unplugged.is_ok_and(|status| status.success()) {
            eprintln!("veth {} stays behind", self.veth);
        }
        let deleted = Command::new("ip").args(["netns", "del", &self.namespace]).status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("namespace {} stays behind", self.namespace);
        }
    }
}

/// The bridges of networks 5 and 6 on both nodes, as the engine makes them.
fn bridges(lab: &Netlab) {
    for node in [0, 1] {
        let namespace = lab.node_namespace(node);
        for network in [APP, OTHER] {
            let own = address(network, u8::try_from(node + 2).expect("a small number"));
            run(&format!(
                "ip -n {namespace} link add meshn{network} type bridge
                 ip -n {namespace} addr add {own}/24 dev meshn{network}
                 ip -n {namespace} link set meshn{network} up"
            ));
        }
    }
}

fn member(node: usize, network: u32, last: u8) -> MemberView {
    let id = format!("t{network}{last}");
    MemberView {
        service_id: Some(format!("db{network}").into()),
        name: format!("db.{id}"),
        node_id: format!("node{node}").into(),
        container_id: String::new(),
        hostname: String::new(),
        state: Some(BackendState::Active),
        weight: NonZeroU32::MIN,
        attachments: vec![AttachmentView {
            network_id: network.to_string().into(),
            address: address(network, last),
            backend_id: BackendId::new(100 * network + u32::from(last)),
            aliases: Vec::new(),
        }],
        id,
    }
}

/// The mesh as a node sees it: on network 5 task .7 on the first node, .8 and .9 on the second; on
/// network 6 task .8 on the second.
fn networks(node: usize, generation: u64) -> NodeView {
    let mut view = view(node, generation, &[BackendState::Active]);
    for network in [APP, OTHER] {
        let id = NetworkId::from(network.to_string());
        let own = address(network, u8::try_from(node + 2).expect("a small number"));
        let made = NetworkView {
            id: id.clone(),
            name: format!("net{network}"),
            number: network,
            subnet: format!("10.0.{network}.0/24").parse().expect("a subnet"),
            subnet6: None,
            node_address: Some(own),
            internal: false,
            attachable: false,
        };
        view.networks.insert(id.clone(), made);
        let place =
            ServiceNetwork { network_id: id, virtual_ip: Some(address(network, 100)), aliases: Vec::new() };
        let service = ServiceView {
            id: format!("db{network}").into(),
            name: format!("db{network}"),
            lb: LbSettings::default(),
            ports: Vec::new(),
            networks: vec![place],
        };
        view.services.insert(service.id.clone(), service);
    }
    for member in [member(0, APP, 7), member(1, APP, 8), member(1, APP, 9), member(1, OTHER, 8)] {
        view.members.insert(member.id.clone(), member);
    }
    view
}

/// Packets that a node dropped for a reason.
fn dropped(node: &Node, reason: DropReason) -> u64 {
    let drops = node.datapath.stats().expect("figures").drops;
    drops.iter().filter(|(found, ..)| *found == reason).map(|(.., count)| count).sum()
}

/// Entries of a node's map.
fn entries(node: &Node, map: &str) -> u64 {
    let maps = node.datapath.stats().expect("figures").maps;
    maps.iter().find(|fill| fill.map == map).map(|fill| fill.entries).expect("the map")
}

fn begin(name: &str) -> Option<(Netlab, [Node; 2], [DatapathConfig; 2], Traces)> {
    if !can_run() {
        return None;
    }
    let configs = configs(name, DatapathMode::Tc);
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new(name, false);
    bridges(&lab);
    let (nodes, _) = start(&lab, &configs);
    for (number, node) in nodes.iter().enumerate() {
        node.apply(networks(number, 2));
    }
    Some((lab, nodes, configs, traces))
}

/// Members reach each other over nodes and on one; nobody else reaches them, and nobody sends as
/// another. An agent that starts anew takes all of it over.
#[test]
fn members_of_a_network_reach_each_other_and_nobody_else_does() {
    let Some((lab, nodes, configs, traces)) = begin("net5") else { return };
    let first = Container::plug(&lab, 0, "veth7", APP, 7);
    let second = Container::plug(&lab, 1, "veth8", APP, 8);
    let third = Container::plug(&lab, 1, "veth9", APP, 9);
    let foreign = Container::plug(&lab, 1, "veth68", OTHER, 8);
    for (container, name) in
        [(&first, "first"), (&second, "second"), (&third, "third"), (&foreign, "foreign")]
    {
        container.serve(name);
    }
    first.check_answer(address(APP, 8), "second 10.0.5.7");
    second.check_answer(address(APP, 7), "first 10.0.5.8");
    second.check_answer(address(APP, 9), "third 10.0.5.8");
    first.exec("route add 10.0.6.0/24 dev eth0");
    first.check_silence(address(OTHER, 8));
    first.exec("addr add 10.0.5.9/24 dev eth0");
    first.exec("route replace 10.0.5.8/32 dev eth0 src 10.0.5.9");
    first.check_silence(address(APP, 8));
    assert!(dropped(&nodes[0], DropReason::SpoofedSource) > 0, "sent as a member that it isn't");
    first.exec("route del 10.0.5.8/32");
    first.exec("addr del 10.0.5.9/24 dev eth0");

    let mut live = first.ask(address(APP, 8)).expect("a long connection").0;
    crate::echo(&mut live, 1000);
    nodes.into_iter().for_each(Node::stop);
    crate::echo(&mut live, 1000);
    let nodes = [0, 1].map(|node| Node::start(&lab, node, &configs[node]));
    crate::echo(&mut live, 1000);
    for (number, node) in nodes.iter().enumerate() {
        node.apply(networks(number, 3));
    }
    crate::echo(&mut live, 1000);
    first.check_answer(address(APP, 9), "third 10.0.5.7");
    assert_eq!(programs(&lab, 0, "veth7"), 1, "programs on a veth that was adopted");

    drop((first, second, third, foreign));
    eventually("what is gone has no entry", || {
        entries(&nodes[0], names::LINKS) == 0 && entries(&nodes[1], names::LINKS) == 0
    });
    nodes.into_iter().for_each(Node::stop);
    drop(lab);
    drop(traces);
}

/// A veth has its program before anybody says whose it is; whoever is no member sends nothing, and
/// a veth that was plugged while no agent ran is found.
#[test]
fn a_veth_has_its_program_at_once_and_no_right_before_its_member_is_known() {
    let Some((lab, [first, second], configs, traces)) = begin("net6") else { return };
    assert_eq!(programs(&lab, 1, "host1"), 1, "the task's veth on mesh0, connected");
    let stranger = Container::plug(&lab, 0, "veth50", APP, 50);
    eventually("the program is attached", || programs(&lab, 0, "veth50") == 1);
    stranger.check_silence(address(APP, 2));
    eventually("its packets are dropped", || dropped(&first, DropReason::UnknownLink) > 0);
    assert_eq!(entries(&first, names::LINKS), 0);

    let mut later = networks(0, 3);
    let new = member(0, APP, 50);
    later.members.insert(new.id.clone(), new);
    first.apply(later);
    eventually("it is a member", || entries(&first, names::LINKS) == 1);

    second.stop();
    let late = Container::plug(&lab, 1, "veth8", APP, 8);
    assert_eq!(programs(&lab, 1, late.veth), 0, "nobody watches");
    late.serve("late");
    let second = Node::start(&lab, 1, &configs[1]);
    assert_eq!(programs(&lab, 1, late.veth), 1, "it is found");
    let mut later = networks(1, 3);
    let new = member(0, APP, 50);
    later.members.insert(new.id.clone(), new);
    second.apply(later);
    stranger.check_answer(address(APP, 8), "late 10.0.5.50");
    first.stop();
    second.stop();
    drop((stranger, late));
    drop(lab);
    drop(traces);
}

/// A task's veth on `mesh0` has its program as soon as it is there, and the same one after the task
/// was reported started.
#[test]
fn a_tasks_veth_has_its_program_before_the_task_is_started() {
    if !can_run() {
        return;
    }
    let configs = configs("early", DatapathMode::Tc);
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new("early", false);
    let node = Node::start(&lab, 1, &configs[1]);
    assert_eq!(programs(&lab, 1, "host1"), 1, "before it is started");
    let shown = run(&format!("ip -n {} -d link show host1", lab.node_namespace(1)));
    assert!(shown.contains("isolated on"), "expected an isolated port of the bridge, saw {shown}");
    let task = mesh_agent::datapath::TaskLink {
        task_id: "task1".into(),
        pid: lab.task_process.id(),
        address: crate::netlab::TASK,
        address6: None,
    };
    attach(&lab, &node, &task);
    assert_eq!(programs(&lab, 1, "host1"), 1, "after");
    node.stop();
    let node = Node::start(&lab, 1, &configs[1]);
    assert_eq!(programs(&lab, 1, "host1"), 1, "after a restart");
    node.stop();
    drop(lab);
    drop(traces);
}

/// A virtual IP leads to every member in turn: to one on another node, on this one, and to the
/// client itself.
#[test]
fn a_virtual_ip_leads_to_each_member_in_turn() {
    let Some((lab, nodes, _, traces)) = begin("vip") else { return };
    let first = Container::plug(&lab, 0, "veth7", APP, 7);
    let second = Container::plug(&lab, 1, "veth8", APP, 8);
    let third = Container::plug(&lab, 1, "veth9", APP, 9);
    for (container, name) in [(&first, "first"), (&second, "second"), (&third, "third")] {
        container.serve(name);
    }
    third.check_answer(address(APP, 7), "first 10.0.5.9");
    third.check_answer(address(APP, 8), "second 10.0.5.9");
    let mut answers: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..6 {
        let line = third.ask(address(APP, 100)).map_or_else(|error| error.to_string(), |(_, line)| line);
        *answers.entry(line).or_default() += 1;
    }
    // A task that reaches itself sees the virtual IP.
    let expected: BTreeMap<String, u32> =
        ["first 10.0.5.9", "second 10.0.5.9", "third 10.0.5.100"].map(|line| (line.to_owned(), 2)).into();
    let drops = nodes.each_ref().map(|node| {
        let drops = node.datapath.stats().expect("figures").drops;
        drops.into_iter().filter(|(.., count)| *count > 0).collect::<Vec<_>>()
    });
    assert_eq!(answers, expected, "answers of the virtual IP; drops {drops:?}");
    drop((first, second, third));
    nodes.into_iter().for_each(Node::stop);
    drop(lab);
    drop(traces);
}
