//! ICMP errors about a flow: delivers them to the end that the error concerns, by the packet that
//! it quotes.
//!
//! * An error from the network (a router, the client) to a published port goes to the task, like
//!   the client's packets.
//! * An error from a task goes to the client, like the task's replies.
//!
//! An error uses its flow and its translation, but creates none. An error without a flow is left to
//! the host stack. Callers provide the memory into which the error is parsed.

use super::client_port::{self, OriginalTuple};
use super::flow_ref::{self, FlowRef};
use super::owner;
use super::{Origin, dropped, isolated, macs};
use crate::abi::{
    Address, Backend, Direction, DropReason, Flow, FlowKey, NatKey, Timed, VipId, flow_event, protocol,
};
use crate::conntrack;
use crate::lookups::{FlowTable, Lookups, PacketCount};
use crate::packet::Packet;
use crate::parse::icmp::{self, Error};
use crate::parse::vxlan::Vni;
use crate::rewrite::{self, Side, Translation};
use crate::verdict::Fate;

/// Tail call of [`super::uplink`]: an error from the network about a packet that a task sent.
#[inline(always)]
pub fn uplink_error<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, error: &mut Error) -> Fate {
    if !icmp::parse(packet, error) {
        return Fate::PASS;
    }
    let quote = &error.quote;
    if error.destination != quote.source {
        return Fate::PASS;
    }
    let Some(address_index) = lookups.address_index(&quote.source) else {
        return Fate::PASS;
    };
    let key = FlowKey {
        client: quote.destination,
        client_port_be: quote.destination_port_be,
        reserved: [0; 2],
        vip: VipId::new(address_index, quote.protocol, quote.source_port_be.get()),
    };
    let Some(flow) = flow_ref::find_client_flow(lookups, &key) else {
        return Fate::PASS;
    };
    let (id, events) = (flow.value().backend_id(), flow.value().events);
    let Some(backend) = lookups.backend(id).filter(|backend| backend.is_alive()) else {
        return Fate::PASS;
    };
    let fate = if backend.is_local() {
        deliver(packet, lookups, error, backend)
    } else {
        match lookups.node(backend.node).filter(|node| !node.address.is_none()) {
            Some(node) => {
                let is_dsr = events & flow_event::DSR != 0;
                Fate::via_device(node.address.v4_octets(), Vni::request(id, is_dsr))
            }
            None => dropped(lookups, DropReason::UnknownNode, Direction::Request),
        }
    };
    if fate.is_forwarded() {
        count(lookups, id, backend, Direction::Request, error);
    }
    fate
}

/// Tail call of [`super::tunnel`]: an error for a task of this node, or from a task for a client of
/// this node.
#[inline(always)]
pub fn tunnel_error<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    origin: Origin,
    error: &mut Error,
) -> Fate {
    let is_reply = origin.vni.is_reply();
    let direction = if is_reply { Direction::Reply } else { Direction::Request };
    if !icmp::parse(packet, error) {
        return dropped(lookups, DropReason::Malformed, direction);
    }
    if is_reply {
        return to_client(packet, lookups, error);
    }
    if error.destination != error.quote.source {
        return dropped(lookups, DropReason::Malformed, direction);
    }
    match lookups.backend(origin.vni.backend()).filter(|backend| backend.is_alive() && backend.is_local()) {
        Some(backend) => deliver(packet, lookups, error, backend),
        // The sender retransmits lost packets, so the next error may find the backend known.
        None => dropped(lookups, DropReason::UnknownBackend, direction),
    }
}

/// Tail call of [`super::task`]: an error of the task about a packet that a client sent.
#[inline(always)]
pub fn task_error<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, error: &mut Error) -> Fate {
    let fate = from_task(packet, lookups, error);
    isolated(packet, lookups, fate)
}

/// Forwards a task's error along the flow that it quotes; [`Fate::PASS`] if there is none.
#[inline(always)]
fn from_task<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, error: &mut Error) -> Fate {
    let Some(config) = lookups.config() else {
        return Fate::PASS;
    };
    if !icmp::parse(packet, error) {
        return Fate::PASS;
    }
    let quote = &error.quote;
    let key = NatKey {
        client: quote.source,
        client_port_be: quote.source_port_be,
        task_port_be: quote.destination_port_be,
        task: NatKey::task(quote.protocol, packet.ifindex()),
    };
    if error.destination != quote.source {
        return Fate::PASS;
    }
    let Some(found) = flow_ref::find(lookups.nats(), &key) else {
        return Fate::PASS;
    };
    if error.ttl <= 1 {
        return dropped(lookups, DropReason::TtlExpired, Direction::Reply);
    }
    let nat = &found.value();
    let to = Translation {
        side: Side::Source,
        address: nat.vip,
        port_be: nat.vip_port_be,
        client_port_be: nat.client_port_be,
    };
    if rewrite::translate_error(packet, error, &to).is_none() {
        return dropped(lookups, DropReason::Malformed, Direction::Reply);
    }
    if nat.via.is_none() {
        if let Some(address_index) = lookups.address_index(&nat.vip) {
            let key = FlowKey {
                client: quote.source,
                client_port_be: nat.client_port_be,
                reserved: [0; 2],
                vip: VipId::new(address_index, quote.protocol, nat.vip_port_be.get()),
            };
            if let Some(flow) = flow_ref::find_client_flow(lookups, &key) {
                account(lookups, error, &flow);
            }
        }
        if rewrite::set_macs(packet, nat.client_mac, nat.node_mac).is_none() {
            return dropped(lookups, DropReason::Malformed, Direction::Reply);
        }
    }
    owner::way_back(lookups, config, nat).by_device()
}

/// Translates an error for a task of this node and delivers it.
#[inline(always)]
fn deliver<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, error: &Error, backend: &Backend) -> Fate {
    let quote = &error.quote;
    let address = if error.is_v6 { backend.task_address6 } else { backend.task_address };
    if error.ttl <= 1 {
        return dropped(lookups, DropReason::TtlExpired, Direction::Request);
    }
    let mut key = NatKey {
        client: quote.destination,
        client_port_be: quote.destination_port_be,
        task_port_be: backend.task_port_be,
        task: NatKey::task(quote.protocol, backend.ifindex),
    };
    let connection = OriginalTuple {
        vip: quote.source,
        vip_port_be: quote.source_port_be,
        client_port_be: quote.destination_port_be,
    };
    if !client_port::find_port(lookups, &mut key, &connection) {
        return dropped(lookups, DropReason::NoFlow, Direction::Request);
    }
    let to = Translation {
        side: Side::Destination,
        address,
        port_be: backend.task_port_be,
        client_port_be: key.client_port_be,
    };
    match into_task(packet, error, backend, &to) {
        Some(()) => Fate::deliver(backend.ifindex),
        None => dropped(lookups, DropReason::Malformed, Direction::Request),
    }
}

#[inline(always)]
fn into_task<P: Packet>(packet: &mut P, error: &Error, backend: &Backend, to: &Translation) -> Option<()> {
    rewrite::translate_error(packet, error, to)?;
    let (_, node_mac) = macs(packet)?;
    rewrite::set_macs(packet, backend.task_mac, node_mac)
}

/// Forwards a task's error, which came out of the tunnel, to a client of this node.
#[inline(always)]
fn to_client<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, error: &Error) -> Fate {
    let quote = &error.quote;
    let is_whole = error.source == quote.destination && error.destination == quote.source;
    let Some(address_index) = vip_index(lookups, &quote.destination, is_whole) else {
        return dropped(lookups, DropReason::Malformed, Direction::Reply);
    };
    let key = FlowKey {
        client: quote.source,
        client_port_be: quote.source_port_be,
        reserved: [0; 2],
        vip: VipId::new(address_index, quote.protocol, quote.destination_port_be.get()),
    };
    let Some(flow) = flow_ref::find_client_flow(lookups, &key) else {
        return dropped(lookups, DropReason::NoFlow, Direction::Reply);
    };
    account(lookups, error, &flow);
    match rewrite::set_macs(packet, flow.value().client_mac, flow.value().node_mac) {
        Some(()) => Fate::emit(flow.value().uplink),
        None => dropped(lookups, DropReason::Malformed, Direction::Reply),
    }
}

/// The index of an address of this node, if `holds` is true.
#[inline(always)]
fn vip_index<L: Lookups>(lookups: &L, address: &Address, holds: bool) -> Option<u32> {
    if holds { lookups.address_index(address) } else { None }
}

/// Counts a task's error and updates its flow: "port unreachable" is to UDP what a RST is to TCP,
/// so the client's next datagram selects another backend.
#[inline(always)]
pub(super) fn account<L: Lookups>(
    lookups: &L,
    error: &Error,
    flow: &FlowRef<Flow, <L::Flows as FlowTable<FlowKey, Flow>>::Entry>,
) {
    let id = flow.value().backend_id();
    let Some(backend) = lookups.backend(id) else {
        return;
    };
    count(lookups, id, backend, Direction::Reply, error);
    if !error.is_refusal || error.quote.protocol != protocol::UDP {
        return;
    }
    let before = flow_ref::mark_reset(&flow.entry);
    if !conntrack::is_closed(before) {
        lookups.count_closed(id);
        flow_ref::record_duration(lookups, Timed::Flow, backend.service_index, &flow.entry);
    }
    if conntrack::is_refusal(before) {
        lookups.count_refused(id);
    }
}

#[inline(always)]
pub(super) fn count<L: Lookups>(
    lookups: &L,
    id: u32,
    backend: &Backend,
    direction: Direction,
    error: &Error,
) {
    let packet = PacketCount { packets: 1, bytes: error.total_len };
    lookups.count_traffic(backend.service_index, id, direction, packet);
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use crate::abi::{
        Address, Backend, BackendState, Be16, Config, DropReason, Node, Service, ServiceKey, protocol,
    };
    use crate::parse::vxlan::Vni;
    use crate::pipeline::Origin;
    use crate::testing::{Frame, Hook, HostTables, Setup, TcpBuilder, icmp_error, v4};
    use crate::verdict::Verdict;

    const PEER: [u8; 4] = [10, 77, 0, 12];

    /// A node with a UDP port whose two backends are on another node.
    fn node() -> HostTables {
        let backend = Backend { node: 1, state: BackendState::Active as u8, ..Backend::default() };
        let key = ServiceKey { port_be: Be16::new(53), protocol: protocol::UDP, reserved: 0 };
        HostTables::new(Setup {
            config: Config { address: Address::v4(v4("10.77.0.11")), tunnel_mtu: 1450, ..Config::default() },
            addresses: Vec::from([Address::v4(v4("10.77.0.11"))]),
            nodes: Vec::from([Node::default(), Node { address: Address::v4(PEER), ..Node::default() }]),
            backends: Vec::from([(1, backend), (2, backend)]),
            slots: Vec::from([1, 2]),
            services: Vec::from([(key, Service { slot_count: 2, ..Service::default() })]),
            ..Setup::default()
        })
    }

    /// The backend that a datagram of the client is sent to.
    fn ask(tables: &HostTables, datagram: &[u8]) -> u32 {
        match Hook::Uplink.run(&mut Frame::new(datagram.to_vec()), tables) {
            Verdict::ViaDevice(tunnel) => tunnel.vni.backend(),
            other => panic!("a datagram met {other:?}"),
        }
    }

    #[test]
    fn a_refused_datagram_is_the_last_one_for_that_backend() {
        let tables = node();
        let datagram = TcpBuilder::new("10.77.0.1:4000", "10.77.0.11:53").udp().payload(b"?").build();
        let first = ask(&tables, &datagram);
        assert_eq!(ask(&tables, &datagram), first, "a flow stays where it is");
        let from_task = Hook::Tunnel(Origin::checked(PEER, Vni::reply(0)));
        let refusal = icmp_error(&datagram, 3, 3, [0; 4]);
        assert_eq!(from_task.run(&mut Frame::new(refusal.clone()), &tables), Verdict::Emit { ifindex: 1 });
        assert_eq!(tables.counted.borrow().refused.get(&first), Some(&1), "counted as refused");
        assert_eq!(ask(&tables, &datagram), 3 - first, "the next datagram finds the other backend");
        let late = from_task.run(&mut Frame::new(icmp_error(&datagram, 11, 0, [0; 4])), &tables);
        assert_eq!(late, Verdict::Emit { ifindex: 1 }, "another error ends nothing");
        assert_eq!(ask(&tables, &datagram), 3 - first, "the new flow stays where it is");
        assert_eq!(tables.counted.borrow().drops.get(&(DropReason::NoFlow, super::Direction::Reply)), None);
    }
}
