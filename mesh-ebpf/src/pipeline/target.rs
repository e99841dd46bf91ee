//! The backend role: requests reach the task with their destination translated, its replies leave with their source
//! translated back. This is the only place with translation state, one entry a flow.
//!
//! A request carries all that its entry is made of, so a lost entry is made again from any packet of the client: a half-open one, until the
//! task has sent something that confirms that there is such a connection.
//! Requests for a backend that is not here: a new connection is dropped, as this node's table may be a moment behind
//! that of the ingress node and the client tries again; anything else, and whatever is for a backend that is down,
//! gets a RST by the way it came.

use super::track::{self, Tracked};
use super::{drop, is_too_big, macs, reply};
use crate::abi::{
    Address, Backend, BackendState, Be16, Config, Direction, DropReason, FlowKey, Nat, NatKey, VipId,
    backend_flag, flow_event,
};
use crate::conntrack;
use crate::lookups::{FlowTable, Lookups, Opened};
use crate::packet::Packet;
use crate::parse::tcp::Flags;
use crate::parse::vxlan::Vni;
use crate::parse::{Segment, ipv4, ipv6, transport};
use crate::rewrite::{self, End, Translation};
use crate::verdict::Fate;

/// Ports tried for a client whose own port is taken at the task.
const PORT_ATTEMPTS: u32 = 4;

/// How a request came to the task's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// By this node's own uplink.
    Uplink,
    /// Through the tunnel.
    Node {
        /// From this node.
        peer: [u8; 4],
        /// Which asks to answer the client directly.
        is_dsr: bool,
    },
}

/// A request for a task of this node.
#[inline(always)]
pub(super) fn deliver<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    segment: &Segment,
    id: u32,
    source: &Source,
) -> Fate {
    // Not by `backend_for`: the verifier loses an address that is chosen by the packet's version twice.
    let backend = match lookups.backend(id) {
        Some(backend) if backend.is_alive() && backend.is_local() => backend,
        other => return turn_away(lookups, segment, other),
    };
    let address = if segment.ip.is_v6 { backend.task_address6 } else { backend.task_address };
    if address.is_none() {
        return Fate::refuse(DropReason::NoBackend);
    }
    if segment.ip.ttl <= 1 {
        return drop(lookups, DropReason::TtlExpired, Direction::Request);
    }
    let Some(mut fresh) = fresh_entry(packet, lookups, config, segment, id, source) else {
        return drop(lookups, DropReason::Malformed, Direction::Request);
    };
    let client = port_at_task(lookups, backend, segment, &mut fresh);
    if let Some(reason) = client.refused {
        return drop(lookups, reason, Direction::Request);
    }
    let to = Translation {
        end: End::Destination,
        address,
        port_be: backend.task_port_be,
        client_port_be: client.port_be,
    };
    match rewrite_request(packet, config, segment, backend, &to, answers_by_tunnel(config, &fresh)) {
        Some(()) => Fate::deliver(backend.ifindex),
        None => drop(lookups, DropReason::Malformed, Direction::Request),
    }
}

/// The backend with this id, if it is here, alive, and has an address of the packet's version.
#[inline(always)]
pub(super) fn backend_for<'a, L: Lookups>(lookups: &'a L, segment: &Segment, id: u32) -> Option<&'a Backend> {
    let backend = lookups.backend(id)?;
    let address = if segment.ip.is_v6 { &backend.task_address6 } else { &backend.task_address };
    if backend.is_alive() && backend.is_local() && !address.is_none() { Some(backend) } else { None }
}

/// Whether the backend's service has this client.
#[inline(always)]
pub(super) fn is_allowed<L: Lookups>(lookups: &L, backend: &Backend, client: &Address) -> bool {
    backend.flags & backend_flag::ALLOW_LIST == 0 || lookups.is_allowed(backend.service_index, client)
}

/// A request whose backend is not here, or not any more.
#[inline(always)]
fn turn_away<L: Lookups>(lookups: &L, segment: &Segment, backend: Option<&Backend>) -> Fate {
    let is_down = backend.is_some_and(|backend| backend.state == BackendState::Down as u8);
    if segment.transport.flags.is_opening() && !is_down {
        return drop(lookups, DropReason::UnknownBackend, Direction::Request);
    }
    Fate::refuse(DropReason::BackendGone)
}

/// The entry that this packet would make.
#[inline(always)]
fn fresh_entry<P: Packet, L: Lookups>(
    packet: &P,
    lookups: &L,
    config: &Config,
    segment: &Segment,
    id: u32,
    source: &Source,
) -> Option<Nat> {
    let now_ns = lookups.now_ns();
    let (client_mac, node_mac) = macs(packet)?;
    Some(Nat {
        seen_ns: now_ns,
        opened_ns: now_ns,
        vip: segment.ip.destination,
        via: match source {
            Source::Uplink => Address::NONE,
            Source::Node { peer, .. } => Address::v4(*peer),
        },
        vip_port_be: segment.transport.destination_port_be,
        client_port_be: segment.transport.source_port_be,
        backend: id,
        events: conntrack::beginning(conntrack::packet_events(Direction::Request, &segment.transport, 0))
            | if matches!(source, Source::Node { is_dsr: true, .. }) { flow_event::DSR } else { 0 },
        uplink: match source {
            Source::Uplink => packet.ifindex(),
            // Whether or not it came by that: the way may change from packet to packet.
            Source::Node { .. } => config.tunnel_ifindex,
        },
        client_mac,
        node_mac,
        reserved: 0,
    })
}

/// The client's port as the task sees it. Both fields are always written: see [`Fate`].
struct ClientPort {
    port_be: Be16,
    /// Why there is none.
    refused: Option<DropReason>,
}

/// The client's port as the task sees it, its entry found or made: the client's own, unless that is taken by another
/// connection of the same client (to another address or published port of the same task).
#[inline(always)]
fn port_at_task<L: Lookups>(
    lookups: &L,
    backend: &Backend,
    segment: &Segment,
    fresh: &mut Nat,
) -> ClientPort {
    let nats = lookups.nats();
    let flags = segment.transport.flags;
    let mut key = NatKey {
        client: segment.ip.source,
        client_port_be: segment.transport.source_port_be,
        task_port_be: backend.task_port_be,
        task: NatKey::task(segment.ip.protocol, backend.ifindex),
    };
    // Not an `Option`, whose port would be undefined as long as there is none: see `Fate`.
    let (mut is_free, mut free) = (false, fresh.client_port_be);
    let mut attempt = 0;
    while attempt < PORT_ATTEMPTS {
        key.client_port_be = candidate_port(&Called::of(fresh), attempt);
        match track::find(nats, &key) {
            Some(found) if Called::of(&found.value()) == Called::of(fresh) => {
                if flags.is_opening() && conntrack::may_be_replaced(found.value().events) {
                    nats.forget(&key);
                    (is_free, free) = (true, key.client_port_be);
                    break;
                }
                go_on(lookups, &key, &found, fresh, &segment.transport);
                return ClientPort { port_be: key.client_port_be, refused: None };
            }
            Some(other) => {
                if !is_free && conntrack::is_closed(other.value().events) {
                    nats.forget(&key);
                    (is_free, free) = (true, key.client_port_be);
                }
            }
            None => {
                if !is_free {
                    (is_free, free) = (true, key.client_port_be);
                }
                // A new connection has no entry further on, as long as its own port is free.
                if flags.is_opening() {
                    break;
                }
            }
        }
        attempt += 1;
    }
    if !is_free {
        return ClientPort { port_be: free, refused: Some(DropReason::PortClash) };
    }
    // Its own ingress node has looked; another node's word is not enough.
    if !fresh.via.is_none() && !is_allowed(lookups, backend, &segment.ip.source) {
        return ClientPort { port_be: free, refused: Some(DropReason::NotAllowed) };
    }
    key.client_port_be = free;
    let refused = match nats.open(&key, fresh) {
        Opened::Added | Opened::Exists => None,
        Opened::Refused => Some(DropReason::TableFull),
    };
    ClientPort { port_be: free, refused }
}

/// Notes a packet of a known connection; follows it if it now comes by another way.
#[inline(always)]
fn go_on<L: Lookups>(
    lookups: &L,
    key: &NatKey,
    found: &Tracked<Nat, <L::Nats as FlowTable<NatKey, Nat>>::Entry>,
    fresh: &mut Nat,
    header: &transport::Header,
) {
    track::note(lookups.nats(), key, found, Direction::Request, header, fresh.seen_ns);
    if !found.is_established {
        return;
    }
    let known = &found.value();
    let has_moved =
        known.via != fresh.via || known.client_mac != fresh.client_mac || known.uplink != fresh.uplink;
    if has_moved {
        fresh.events |= known.events;
        fresh.opened_ns = known.opened_ns;
        lookups.nats().renew(key, &found.entry, fresh);
    }
}

/// A connection as its client sees it, beside the client's address and the protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Called {
    pub(super) vip: Address,
    pub(super) vip_port_be: Be16,
    pub(super) client_port_be: Be16,
}

impl Called {
    #[inline(always)]
    const fn of(nat: &Nat) -> Self {
        Self { vip: nat.vip, vip_port_be: nat.vip_port_be, client_port_be: nat.client_port_be }
    }
}

/// The client's port to try at the task: its own first, then some that depend on the connection only.
#[inline(always)]
fn candidate_port(connection: &Called, attempt: u32) -> Be16 {
    const UPPER_HALF: u16 = 0x8000;
    if attempt == 0 {
        return connection.client_port_be;
    }
    let ports = u32::from(connection.client_port_be.get()) << 16 | u32::from(connection.vip_port_be.get());
    let seed = ports ^ connection.vip.word() ^ attempt.rotate_right(8);
    Be16::new(UPPER_HALF | (seed.wrapping_mul(0x9e37_79b1) >> 17) as u16)
}

/// Puts the client's port as the task sees it into `key`, which is that of the connection otherwise; `false` if the connection
/// has no entry.
#[inline(always)]
pub(super) fn find_port<L: Lookups>(lookups: &L, key: &mut NatKey, connection: &Called) -> bool {
    let mut attempt = 0;
    while attempt < PORT_ATTEMPTS {
        key.client_port_be = candidate_port(connection, attempt);
        if track::find(lookups.nats(), key).is_some_and(|found| Called::of(&found.value()) == *connection) {
            return true;
        }
        attempt += 1;
    }
    false
}

/// Whether replies go back to the ingress node.
#[inline(always)]
fn answers_by_tunnel(config: &Config, nat: &Nat) -> bool {
    !nat.via.is_none() && !answers_directly(config, nat)
}

/// Whether replies go to the client by an uplink of this node, though its requests come through the tunnel.
#[inline(always)]
fn answers_directly(config: &Config, nat: &Nat) -> bool {
    nat.events & flow_event::DSR != 0 && config.uplink_ifindex != 0
}

/// Addresses the request to the task.
#[inline(always)]
fn rewrite_request<P: Packet>(
    packet: &mut P,
    config: &Config,
    segment: &Segment,
    backend: &Backend,
    to: &Translation,
    answers_by_tunnel: bool,
) -> Option<()> {
    if answers_by_tunnel {
        clamp_mss(packet, config, segment)?;
    }
    rewrite::translate(packet, segment, to)?;
    let (_, node_mac) = macs(packet)?;
    rewrite::set_macs(packet, backend.task_mac, node_mac)
}

/// Lowers the MSS that a SYN or SYN-ACK announces to what fits the tunnel.
#[inline(always)]
fn clamp_mss<P: Packet>(packet: &mut P, config: &Config, segment: &Segment) -> Option<()> {
    if !segment.transport.flags.has(Flags::SYN) || config.tunnel_mss == 0 {
        return Some(());
    }
    let longer = if segment.ip.is_v6 { (ipv6::LEN - ipv4::LEN) as u16 } else { 0 };
    rewrite::clamp_mss(packet, &segment.transport, config.tunnel_mss.saturating_sub(longer))
}

/// What a task of this node sends: a reply, if there is an entry for it; its own business otherwise.
#[inline(always)]
pub(super) fn answer<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    segment: &Segment,
) -> Fate {
    let key = NatKey {
        client: segment.ip.destination,
        client_port_be: segment.transport.destination_port_be,
        task_port_be: segment.transport.source_port_be,
        task: NatKey::task(segment.ip.protocol, packet.ifindex()),
    };
    let Some(found) = track::find(lookups.nats(), &key) else {
        return Fate::PASS;
    };
    if segment.ip.ttl <= 1 {
        return drop(lookups, DropReason::TtlExpired, Direction::Reply);
    }
    let nat = &found.value();
    if answers_by_tunnel(config, nat) && is_too_big(packet, config, segment) {
        return Fate::refuse(DropReason::TooBig);
    }
    track::note(lookups.nats(), &key, &found, Direction::Reply, &segment.transport, lookups.now_ns());
    if nat.via.is_none() && !account(packet, lookups, segment, nat) {
        return drop(lookups, DropReason::NoFlow, Direction::Reply);
    }
    match send_back(packet, config, segment, nat) {
        Some(()) => way_back(lookups, config, nat),
        None => drop(lookups, DropReason::Malformed, Direction::Reply),
    }
}

/// Notes and counts a reply for a client of this node's; `false` if the client's connection has left this task.
#[inline(always)]
fn account<P: Packet, L: Lookups>(packet: &P, lookups: &L, segment: &Segment, nat: &Nat) -> bool {
    let Some(address_index) = lookups.address_index(&nat.vip) else {
        return true;
    };
    let key = FlowKey {
        client: segment.ip.destination,
        client_port_be: nat.client_port_be,
        reserved: [0; 2],
        vip: VipId::new(address_index, segment.ip.protocol, nat.vip_port_be.get()),
    };
    reply::account_local(packet, lookups, segment, &key, nat.backend)
}

/// Translates a reply, and does all else that its way back to the client asks for.
#[inline(always)]
fn send_back<P: Packet>(packet: &mut P, config: &Config, segment: &Segment, nat: &Nat) -> Option<()> {
    let to = Translation {
        end: End::Source,
        address: nat.vip,
        port_be: nat.vip_port_be,
        client_port_be: nat.client_port_be,
    };
    if !nat.via.is_none() {
        // The client's packets come through the tunnel, whichever way these go.
        clamp_mss(packet, config, segment)?;
        return rewrite::translate(packet, segment, &to);
    }
    rewrite::translate(packet, segment, &to)?;
    rewrite::set_macs(packet, nat.client_mac, nat.node_mac)
}

/// Where what a task sends to the client goes.
#[inline(always)]
pub(super) fn way_back<L: Lookups>(lookups: &L, config: &Config, nat: &Nat) -> Fate {
    if nat.via.is_none() {
        return Fate::emit(nat.uplink);
    }
    if answers_directly(config, nat) {
        return Fate::route(config.uplink_ifindex);
    }
    let load = lookups.load(nat.backend).unwrap_or(0);
    Fate::tunnel(nat.via.v4_octets(), Vni::reply(load).of(nat.backend))
}
