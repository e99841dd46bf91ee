//! Tests of GSO packets on networks, and of packets that only the VXLAN device can handle.

use crate::abi::{Direction, DropReason, flow_event};
use crate::parse::{eth, ipv4};
use crate::testing::{Fixture, Frame, Hook, HostTables, fixtures};
use crate::verdict::Verdict;

/// The fixture of this name, and its tables.
fn named(name: &str) -> (Fixture, HostTables) {
    let mut all = fixtures::all().into_iter();
    let fixture = all.find(|fixture| fixture.name == name).expect("a fixture of that name");
    let tables = HostTables::new(fixture.setup.clone());
    (fixture, tables)
}

fn frame(fixture: &Fixture, segment_size: u32) -> Frame {
    Frame { segment_size, ..Frame::new(fixture.input.clone()) }
}

#[test]
fn tcp_that_stands_for_several_goes_through_whole() {
    for name in [
        "network: data to another node, by the program",
        "virtual IP: data of a connection stays with its task, by the program",
        "network: data from another node, with its headers",
        "virtual IP: a reply, with its headers",
    ] {
        let (fixture, tables) = named(name);
        let mut several = frame(&fixture, 1398);
        assert_eq!(fixture.hook.run(&mut several, &tables), fixture.verdict, "{name}");
        assert_eq!(several.bytes, fixture.output, "{name}");
    }
}

#[test]
fn datagrams_that_stand_for_several_are_for_the_device() {
    let (fixture, tables) = named("network: a datagram from another node, with its headers");
    assert_eq!(Hook::Uplink.run(&mut frame(&fixture, 1000), &tables), Verdict::Pass);
}

#[test]
fn congestion_marks_of_networks_are_for_the_device() {
    for name in ["network: data from another node, with its headers", "virtual IP: a reply, with its headers"]
    {
        let (fixture, tables) = named(name);
        let mut marked = frame(&fixture, 0);
        marked.bytes[eth::LEN + ipv4::TOS] |= 0b11;
        let before = marked.bytes.clone();
        assert_eq!(Hook::Uplink.run(&mut marked, &tables), Verdict::Pass, "{name}");
        assert_eq!(marked.bytes, before, "{name}");
    }
}

#[test]
fn a_flow_to_a_virtual_ip_is_counted_at_the_clients_node() {
    let (request, tables) =
        named("virtual IP: a SYN for a task of another node, its MSS clamped, by the device");
    let (reply, _) = named("virtual IP: a reply");
    request.hook.run(&mut frame(&request, 0), &tables);
    // The reply has data; the test needs the first reply of the flow.
    reply.hook.run(&mut frame(&reply, 0), &tables);
    let counted = tables.counted.borrow();
    assert_eq!(counted.opened.get(&4), Some(&1), "opened");
    for direction in [Direction::Request, Direction::Reply] {
        assert_eq!(counted.packets.get(&(4, direction)), Some(&1), "{direction:?}");
    }
}

#[test]
fn connections_outlive_their_virtual_ip_and_new_ones_need_it() {
    let without = |name| {
        let (fixture, _) = named(name);
        let mut setup = fixture.setup.clone();
        setup.virtual_ips.clear();
        (fixture, HostTables::new(setup))
    };
    let (known, tables) = without("virtual IP: data of a connection stays with its task, by the program");
    let mut data = frame(&known, 0);
    assert_eq!(known.hook.run(&mut data, &tables), known.verdict, "a known connection");
    assert_eq!(data.bytes, known.output);
    let (syn, tables) =
        without("virtual IP: a SYN for a task of another node, its MSS clamped, by the device");
    let verdict = syn.hook.run(&mut frame(&syn, 0), &tables);
    assert_eq!(verdict, Verdict::Drop(DropReason::UnknownEndpoint), "a new one");
}

#[test]
fn a_refused_datagram_is_the_last_one_for_that_task() {
    let (error, tables) = named("virtual IP: an error of a backend");
    error.hook.run(&mut frame(&error, 0), &tables);
    let ended = |flow: &crate::abi::Flow| flow.events & flow_event::RESET != 0;
    assert!(tables.flows.all().iter().all(ended), "the flow is over");
    let (request, _) = named("virtual IP: a datagram for a task of another node, by the device");
    let verdict = request.hook.run(&mut frame(&request, 0), &tables);
    assert!(matches!(verdict, Verdict::Deliver { .. }), "the next one goes to the other: {verdict:?}");
}
