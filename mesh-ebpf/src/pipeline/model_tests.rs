//! Property test of the ingress node: clients, tasks and userspace act in random order, and
//! invariants hold after each step.

use std::vec::Vec;

use proptest::prelude::*;

use super::{Origin, tunnel, uplink};
use crate::abi::{
    Address, Backend, BackendState, Be16, Config, Direction, FlowKey, Mode, Node, Service, ServiceKey, VipId,
    flow_event, protocol,
};
use crate::conntrack;
use crate::lookups::{FlowTable, Lookups};
use crate::parse::tcp::Flags;
use crate::parse::vxlan::Vni;
use crate::select::Candidates;
use crate::testing::{Frame, HostTables, Setup, TcpBuilder, v4};
use crate::verdict::Verdict;

const NODE: &str = "10.77.0.11";
const PEER: &str = "10.77.0.12";
const BACKENDS: u32 = 3;
const CLIENTS: u16 = 4;

/// One step of a random run.
#[derive(Clone, Debug)]
enum Event {
    /// A client sends a packet.
    Request { client: u16, flags: u8 },
    /// A task sends a packet to a client.
    Reply { client: u16, flags: u8 },
    /// Userspace gives the published port these backends.
    Publish { backends: Vec<u32> },
    /// Time passes, longer than a task may take to answer.
    Wait,
    /// The user changes the service's mode.
    SetMode { mode: Mode },
    /// Userspace changes a backend's state.
    SetState { backend: u32, state: BackendState },
}

fn event() -> impl Strategy<Value = Event> {
    let flags = prop_oneof![
        3 => Just(Flags::SYN),
        4 => Just(Flags::ACK),
        2 => Just(Flags::FIN | Flags::ACK),
        1 => Just(Flags::RST),
        1 => any::<u8>(),
    ];
    let answers = prop_oneof![
        Just(Flags::SYN | Flags::ACK),
        Just(Flags::ACK),
        Just(Flags::FIN | Flags::ACK),
        Just(Flags::RST)
    ];
    let state = prop_oneof![
        2 => Just(BackendState::Active),
        1 => Just(BackendState::Draining),
        1 => Just(BackendState::Down),
    ];
    prop_oneof![
        6 => (0..CLIENTS, flags).prop_map(|(client, flags)| Event::Request { client, flags }),
        4 => (0..CLIENTS, answers).prop_map(|(client, flags)| Event::Reply { client, flags }),
        1 => prop::collection::vec(1..=BACKENDS, 0..4).prop_map(|backends| Event::Publish { backends }),
        1 => Just(Event::Wait),
        1 => prop::sample::select(&[Mode::Tunnel, Mode::Dsr, Mode::Proxy]).prop_map(|mode| Event::SetMode { mode }),
        1 => (1..=BACKENDS, state).prop_map(|(backend, state)| Event::SetState { backend, state }),
    ]
}

/// A node whose backends are all on another node.
fn node() -> HostTables {
    let backend = Backend { node: 1, state: BackendState::Active as u8, ..Backend::default() };
    HostTables::new(Setup {
        config: Config { address: Address::v4(v4(NODE)), tunnel_mtu: 1450, ..Config::default() },
        addresses: Vec::from([Address::v4(v4(NODE))]),
        nodes: Vec::from([Node::default(), Node { address: Address::v4(v4(PEER)), ..Node::default() }]),
        backends: (1..=BACKENDS).map(|id| (id, backend)).collect(),
        ..Setup::default()
    })
}

fn publish(tables: &mut HostTables, backends: &[u32]) {
    let slot_count = u32::try_from(backends.len()).expect("few backends");
    tables.setup.slots = backends.to_vec();
    let known = tables.setup.services.first().map(|(_, service)| *service).unwrap_or_default();
    tables.setup.services = Vec::from([(ServiceKey::tcp(80), Service { slot_count, ..known })]);
}

fn key(client: u16) -> FlowKey {
    FlowKey {
        client: Address::v4(v4("10.77.0.1")),
        client_port_be: Be16::new(40000 + client),
        reserved: [0; 2],
        vip: VipId::new(0, protocol::TCP, 80),
    }
}

/// Sends a client's packet and checks that it goes to a live backend, and to that of its live flow
/// if it has one.
fn request(tables: &HostTables, client: u16, flags: u8) -> Result<(), TestCaseError> {
    let before = tables.flows.established.borrow().get(&key(client)).map(|entry| entry.get());
    let packet =
        TcpBuilder::new(&std::format!("10.77.0.1:{}", 40000 + client), "10.77.0.11:80").flags(flags).build();
    let verdict = uplink(&mut Frame::new(packet), tables).verdict();
    let Verdict::ViaDevice(sent) = verdict else {
        return Ok(());
    };
    let alive = |id| tables.backend(id).is_some_and(Backend::is_alive);
    prop_assert!(alive(sent.vni.backend()), "{verdict:?} to a backend that is gone");
    let pinned = before.filter(|flow| alive(flow.backend_id()) && !conntrack::is_closed(flow.events));
    let known = tables.flows.find(&key(client));
    let asks = known.is_some_and(|(flow, _)| flow.get().events & flow_event::DSR != 0);
    prop_assert_eq!(sent.vni.is_dsr(), asks, "a flow keeps the mode it began with");
    if let Some(flow) = pinned {
        prop_assert_eq!(sent.vni.backend(), flow.backend_id(), "a live flow keeps its backend");
    }
    Ok(())
}

fn reply(tables: &HostTables, client: u16, flags: u8) {
    let packet =
        TcpBuilder::new("10.77.0.11:80", &std::format!("10.77.0.1:{}", 40000 + client)).flags(flags).build();
    tunnel(&mut Frame::new(packet), tables, Origin::checked(v4(PEER), Vni::reply(0)));
}

/// Checks the invariants that hold between any two packets.
fn check(tables: &HostTables) -> Result<(), TestCaseError> {
    let (half_open, established) = (tables.flows.half_open.borrow(), tables.flows.established.borrow());
    for key in half_open.keys() {
        prop_assert!(!established.contains_key(key), "{key:?} is in both tables");
    }
    for flow in established.values() {
        prop_assert!(flow.get().events & flow_event::ACK != 0, "established without ACK: {:?}", flow.get());
    }
    for id in 1..=BACKENDS {
        let flows = half_open.values().chain(established.values()).map(|flow| flow.get());
        let open = flows.filter(|flow| flow.backend_id() == id && !conntrack::is_closed(flow.events)).count();
        prop_assert_eq!(tables.live(id), open as u64, "live connections of {} against its flows", id);
    }
    let replies = tables.counted.borrow().drops.keys().filter(|(_, way)| *way == Direction::Reply).count();
    prop_assert!(replies <= 1, "replies are dropped for want of a flow only");
    Ok(())
}

#[test]
fn replies_follow_a_client_that_moved() {
    let mut tables = node();
    publish(&mut tables, &[1]);
    let from = |mac: u8, flags| {
        let packet = TcpBuilder::new("10.77.0.1:40000", "10.77.0.11:80").macs([mac; 6], [9; 6]).flags(flags);
        uplink(&mut Frame::new(packet.build()), &tables).verdict()
    };
    for (mac, flags) in [(2, Flags::SYN), (2, Flags::ACK), (4, Flags::ACK)] {
        assert!(matches!(from(mac, flags), Verdict::ViaDevice(_)), "forwarded from {mac}");
    }
    let mut answer = Frame::new(TcpBuilder::new("10.77.0.11:80", "10.77.0.1:40000").build());
    tunnel(&mut answer, &tables, Origin::checked(v4(PEER), Vni::reply(0)));
    assert_eq!(&answer.bytes[..12], &[4, 4, 4, 4, 4, 4, 9, 9, 9, 9, 9, 9], "MACs of the reply");
}

proptest! {
    #[test]
    fn invariants_hold_whatever_happens(events in prop::collection::vec(event(), 0..60)) {
        let mut tables = node();
        publish(&mut tables, &[1, 2, 3]);
        for event in events {
            match event {
                Event::Request { client, flags } => request(&tables, client, flags)?,
                Event::Reply { client, flags } => reply(&tables, client, flags),
                Event::Publish { backends } => publish(&mut tables, &backends),
                Event::Wait => tables.now_ns.set(tables.now_ns.get() + conntrack::ANSWER_TIMEOUT_NS),
                Event::SetMode { mode } => tables.setup.services[0].1.mode = mode as u8,
                Event::SetState { backend, state } => {
                    tables.setup.backends[backend as usize - 1].1.state = state as u8;
                }
            }
            check(&tables)?;
        }
    }
}
