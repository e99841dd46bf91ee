//! Tests of the durations that the ingress node measures: handshakes from SYN to SYN-ACK, flows
//! from SYN to the packet that ends them.

use std::vec::Vec;

use super::{Origin, tunnel, uplink};
use crate::abi::{Address, Backend, BackendState, Config, Histogram, Mode, Node, Service, ServiceKey, Timed};
use crate::parse::tcp::Flags;
use crate::parse::vxlan::Vni;
use crate::testing::{Frame, HostTables, Setup, TcpBuilder, v4};

const INDEX: u32 = 3;
const MILLISECOND_NS: u64 = 1_000_000;
const ACK: u8 = Flags::ACK;
const FIN: u8 = Flags::FIN | Flags::ACK;

/// A node with port 80 in `mode`, whose one backend is on another node.
fn node(mode: Mode) -> HostTables {
    let state = BackendState::Active as u8;
    let backend = Backend { node: 1, state, service_index: INDEX, ..Backend::default() };
    let service = Service { index: INDEX, slot_count: 1, mode: mode as u8, ..Service::default() };
    HostTables::new(Setup {
        config: Config { address: Address::v4(v4("10.77.0.11")), tunnel_mtu: 1450, ..Config::default() },
        addresses: Vec::from([Address::v4(v4("10.77.0.11"))]),
        nodes: Vec::from([
            Node::default(),
            Node { address: Address::v4(v4("10.77.0.12")), ..Node::default() },
        ]),
        services: Vec::from([(ServiceKey::tcp(80), service)]),
        slots: Vec::from([1]),
        backends: Vec::from([(1, backend)]),
        ..Setup::default()
    })
}

fn request(tables: &HostTables, flags: u8) {
    let packet = TcpBuilder::new("10.77.0.1:40000", "10.77.0.11:80").flags(flags).build();
    uplink(&mut Frame::new(packet), tables);
}

fn reply(tables: &HostTables, flags: u8) {
    let packet = TcpBuilder::new("10.77.0.11:80", "10.77.0.1:40000").flags(flags).build();
    tunnel(&mut Frame::new(packet), tables, Origin::checked(v4("10.77.0.12"), Vni::reply(0)));
}

fn wait(tables: &HostTables, milliseconds: u64) {
    tables.now_ns.set(tables.now_ns.get() + milliseconds * MILLISECOND_NS);
}

/// Checks the histogram, as (count, sum in milliseconds).
#[track_caller]
fn check(tables: &HostTables, timed: Timed, expected: (u64, u64), when: &str) {
    let kept = tables.counted.borrow().durations.get(&(timed, INDEX)).copied().unwrap_or_default();
    let Histogram { sum_ns, .. } = kept;
    assert_eq!((kept.count(), sum_ns / MILLISECOND_NS), expected, "{timed:?} {when}");
}

#[test]
fn a_handshake_and_the_life_of_its_flow_are_timed_once() {
    let tables = node(Mode::Tunnel);
    request(&tables, Flags::SYN);
    wait(&tables, 3);
    reply(&tables, Flags::SYN | Flags::ACK);
    check(&tables, Timed::Connect, (1, 3), "with the SYN-ACK");
    wait(&tables, 1);
    reply(&tables, Flags::SYN | Flags::ACK);
    for flags in [ACK, ACK] {
        request(&tables, flags);
        reply(&tables, ACK);
    }
    check(&tables, Timed::Connect, (1, 3), "whatever comes after");
    wait(&tables, 100);
    request(&tables, FIN);
    check(&tables, Timed::Flow, (0, 0), "while the task may still send");
    wait(&tables, 6);
    reply(&tables, FIN);
    request(&tables, ACK);
    reply(&tables, FIN);
    check(&tables, Timed::Flow, (1, 110), "with the second FIN, and once");
}

#[test]
fn a_reset_of_either_side_ends_a_flow() {
    for resets in [request as fn(&HostTables, u8), reply] {
        let tables = node(Mode::Tunnel);
        request(&tables, Flags::SYN);
        wait(&tables, 2);
        resets(&tables, Flags::RST);
        check(&tables, Timed::Flow, (1, 2), "with the RST");
        check(&tables, Timed::Connect, (0, 0), "without an answer");
    }
}

#[test]
fn a_flow_whose_backend_is_gone_ends_with_its_next_packet() {
    let mut tables = node(Mode::Tunnel);
    request(&tables, Flags::SYN);
    reply(&tables, Flags::SYN | Flags::ACK);
    request(&tables, ACK);
    tables.setup.backends[0].1.state = BackendState::Down as u8;
    wait(&tables, 7);
    request(&tables, ACK);
    request(&tables, ACK);
    check(&tables, Timed::Flow, (1, 7), "with the refusal, and once");
}

#[test]
fn of_a_directly_answered_flow_only_the_life_is_known() {
    let tables = node(Mode::Dsr);
    request(&tables, Flags::SYN);
    wait(&tables, 5);
    request(&tables, ACK);
    check(&tables, Timed::Connect, (0, 0), "though the client has an answer");
    request(&tables, FIN);
    check(&tables, Timed::Flow, (1, 5), "with the client's FIN");
}
