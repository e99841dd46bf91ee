//! Tests of the ingress node in a SYN flood: which packets create flows, and that all packets of a
//! client reach one backend.

use std::vec::Vec;

use super::{Origin, tunnel, uplink};
use crate::abi::{
    Address, Backend, BackendState, Be16, Config, FlowKey, Mode, Node, Policy, Service, ServiceKey, VipId,
    flow_event, protocol,
};
use crate::conntrack;
use crate::guard::HONOURED_NS;
use crate::lookups::FlowTable;
use crate::parse::tcp::Flags;
use crate::parse::vxlan::Vni;
use crate::testing::{Frame, HostTables, Setup, TcpBuilder, v4};
use crate::verdict::Verdict;

const NODE: &str = "10.77.0.11";
const PEER: &str = "10.77.0.12";
const UPLINK: u32 = 7;
const RATE: u32 = 4;

/// A node whose four backends are on another node; the guard lets one SYN create a flow at a time.
fn node(policy: Policy, mode: Mode) -> HostTables {
    let backend = Backend { node: 1, state: BackendState::Active as u8, ..Backend::default() };
    let service = Service { slot_count: 4, policy: policy as u8, mode: mode as u8, ..Service::default() };
    HostTables::new(Setup {
        config: Config {
            address: Address::v4(v4(NODE)),
            tunnel_mtu: 1450,
            uplink_ifindex: UPLINK,
            syn_guard_rate: RATE,
            ..Config::default()
        },
        addresses: Vec::from([Address::v4(v4(NODE))]),
        nodes: Vec::from([Node::default(), Node { address: Address::v4(v4(PEER)), ..Node::default() }]),
        backends: (1..=4).map(|id| (id, backend)).collect(),
        slots: Vec::from([1, 2, 3, 4]),
        services: Vec::from([(ServiceKey::tcp(80), service)]),
        ..Setup::default()
    })
}

fn key(client: u16) -> FlowKey {
    FlowKey {
        client: Address::v4(v4("10.77.0.1")),
        client_port_be: Be16::new(client),
        reserved: [0; 2],
        vip: VipId::new(0, protocol::TCP, 80),
    }
}

/// The backend that a packet of this client is sent to; 0: none.
fn request(tables: &HostTables, client: u16, flags: u8) -> u32 {
    let packet = TcpBuilder::new(&std::format!("10.77.0.1:{client}"), "10.77.0.11:80").flags(flags).build();
    match uplink(&mut Frame::new(packet), tables).verdict() {
        Verdict::ViaDevice(tunnel) => tunnel.vni.backend(),
        _ => 0,
    }
}

fn reply(tables: &HostTables, client: u16, backend: u32, flags: u8) -> Verdict {
    let packet = TcpBuilder::new("10.77.0.11:80", &std::format!("10.77.0.1:{client}")).flags(flags).build();
    let origin = Origin::checked(v4(PEER), Vni::reply(0).of(backend));
    tunnel(&mut Frame::new(packet), tables, origin).verdict()
}

fn events(tables: &HostTables, client: u16) -> Option<u32> {
    tables.flows.find(&key(client)).map(|(flow, _)| flow.get().events)
}

/// Sends SYNs until they create no flows any more.
fn flood(tables: &HostTables) {
    for client in 1..100 {
        request(tables, client, Flags::SYN);
    }
    assert_eq!(tables.counted.borrow().opened.values().sum::<u64>(), 1, "one of them is remembered");
}

const SYN_ACK: u8 = Flags::SYN | Flags::ACK;

#[test]
fn a_client_gets_in_and_is_remembered_once_its_task_speaks() {
    for policy in Policy::ALL {
        let tables = node(policy, Mode::Tunnel);
        flood(&tables);
        let backend = request(&tables, 40000, Flags::SYN);
        assert!(backend != 0 && events(&tables, 40000).is_none(), "{policy:?}: forwarded, not remembered");
        assert_eq!(reply(&tables, 40000, backend, SYN_ACK), Verdict::Route { ifindex: UPLINK }, "{policy:?}");
        assert_eq!(request(&tables, 40000, Flags::ACK), backend, "{policy:?}: the ACK goes to the same");
        let unproven = events(&tables, 40000).expect("remembered by its ACK");
        assert!(!conntrack::is_established(unproven), "{policy:?}: anybody can send an ACK");
        assert_eq!(request(&tables, 40000, Flags::ACK), backend);
        assert!(!conntrack::is_established(events(&tables, 40000).expect("a flow")), "{policy:?}: or two");
        assert!(matches!(reply(&tables, 40000, backend, Flags::ACK), Verdict::Emit { .. }), "{policy:?}");
        assert!(conntrack::is_established(events(&tables, 40000).expect("a flow")), "{policy:?}: proven");
        assert!(tables.flows.established.borrow().contains_key(&key(40000)), "{policy:?}");
        assert!(matches!(reply(&tables, 40000, backend, Flags::ACK), Verdict::Emit { .. }));
        assert_eq!(tables.counted.borrow().answered.values().sum::<u64>(), 1, "{policy:?}: counted once");
    }
}

#[test]
fn all_of_a_clients_packets_reach_one_backend_and_clients_are_spread() {
    for policy in Policy::ALL {
        let tables = node(policy, Mode::Tunnel);
        flood(&tables);
        let mut shares = [0; 5];
        for client in 1000..5000 {
            let backend = request(&tables, client, Flags::SYN);
            shares[backend as usize] += 1;
            for flags in [Flags::SYN, Flags::ACK, Flags::FIN | Flags::ACK, Flags::RST] {
                assert_eq!(request(&tables, client, flags), backend, "{policy:?}, flags {flags}");
            }
        }
        if policy != Policy::SourceHash {
            let is_fair = shares[1..].iter().all(|share| (850..1150).contains(share));
            assert!(shares[0] == 0 && is_fair, "{policy:?}: {shares:?}");
        }
    }
}

#[test]
fn a_repeated_syn_that_is_remembered_goes_where_the_first_went() {
    let tables = node(Policy::RoundRobin, Mode::Tunnel);
    flood(&tables);
    for client in 1000..1010 {
        let backend = request(&tables, client, Flags::SYN);
        tables.now_ns.set(tables.now_ns.get() + 1_000_000_000);
        assert_eq!(request(&tables, client, Flags::SYN), backend, "its answer may be on its way");
        assert!(events(&tables, client).is_some(), "the second one is remembered");
        flood_again(&tables);
    }
}

fn flood_again(tables: &HostTables) {
    for client in 100..200 {
        request(tables, client, Flags::SYN);
    }
}

#[test]
fn acks_of_nobody_establish_nothing_and_blame_no_backend() {
    let tables = node(Policy::RoundRobin, Mode::Tunnel);
    flood(&tables);
    for client in 1000..1100 {
        tables.now_ns.set(tables.now_ns.get() + 10_000_000);
        let backend = request(&tables, client, Flags::ACK);
        request(&tables, client, Flags::ACK);
        reply(&tables, client, backend, SYN_ACK);
        request(&tables, client, Flags::ACK);
        reply(&tables, client, backend, Flags::RST);
    }
    assert_eq!(tables.flows.established.borrow().len(), 0, "established flows");
    let open = |flows: &HostTables| {
        let half_open = flows.flows.half_open.borrow();
        half_open.values().filter(|flow| !conntrack::is_closed(flow.get().events)).count()
    };
    assert_eq!(open(&tables), 1, "all but the one SYN that was remembered are over");
    let counted = tables.counted.borrow();
    assert_eq!(counted.refused.values().sum::<u64>(), 0, "no task refused a SYN");
    assert_eq!(counted.answered.values().sum::<u64>(), 0);
}

#[test]
fn of_directly_answered_flows_the_client_tells() {
    let tables = node(Policy::RoundRobin, Mode::Dsr);
    flood(&tables);
    let backend = request(&tables, 40000, Flags::SYN);
    assert_eq!(request(&tables, 40000, Flags::ACK), backend);
    let first = events(&tables, 40000).expect("remembered by its ACK");
    assert_eq!(first, flow_event::SYN | flow_event::DSR, "as if by its SYN");
    assert_eq!(request(&tables, 40000, Flags::ACK), backend);
    assert!(conntrack::is_established(events(&tables, 40000).expect("a flow")));
}

#[test]
fn when_the_flood_is_over_strangers_are_refused_again() {
    let tables = node(Policy::RoundRobin, Mode::Tunnel);
    flood(&tables);
    tables.now_ns.set(tables.now_ns.get() + HONOURED_NS - 1);
    assert_ne!(request(&tables, 40000, Flags::ACK), 0, "its SYN may be that old");
    tables.now_ns.set(tables.now_ns.get() + 1);
    assert_eq!(request(&tables, 40001, Flags::ACK), 0, "nobody's");
    let drops = |tables: &HostTables| tables.counted.borrow().drops.values().sum::<u64>();
    let before = drops(&tables);
    assert!(matches!(reply(&tables, 40001, 1, Flags::ACK), Verdict::Drop(_)), "nor is its reply forwarded");
    assert_eq!(drops(&tables), before + 1);
    assert_ne!(request(&tables, 40002, Flags::SYN), 0);
    assert!(events(&tables, 40002).is_some(), "SYNs are remembered");
}
