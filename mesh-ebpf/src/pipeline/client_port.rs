//! The client's port as the task sees it: this node changes the port if two connections would look
//! the same to the task.

use super::flow_ref::{self, FlowRef};
use super::owner::is_allowed;
use crate::abi::{Address, Backend, Be16, Direction, DropReason, Nat, NatKey};
use crate::conntrack;
use crate::lookups::{FlowTable, Lookups, Opened};
use crate::parse::{Segment, transport};

/// The number of ports tried for a client whose own port is taken at the task, by another
/// connection or by one that has ended and that the task still remembers (`TIME_WAIT`): the
/// client's clock and sequence numbers towards another address are unrelated, so the task would not
/// accept the SYN.
const PORT_ATTEMPTS: u32 = 4;

/// The client's port as the task sees it. Both fields are always written: see
/// [`Fate`](crate::verdict::Fate).
pub(super) struct ClientPort {
    pub(super) port_be: Be16,
    /// Why there is no port for the client; `None` if there is one.
    pub(super) refused: Option<DropReason>,
}

/// Finds or creates the translation of a connection, and returns the client's port as the task sees
/// it: the client's own, unless another connection of the same client (to another address or
/// published port of the same task) has it.
#[inline(always)]
pub(super) fn port_at_task<L: Lookups>(
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
    // Not an `Option`: its port would be undefined while it is `None`, see `Fate`.
    let (mut is_free, mut free) = (false, fresh.client_port_be);
    // The first port that no live connection has, in case the task may remember a connection on
    // each.
    let (mut is_unclaimed, mut is_stale) = (false, false);
    let mut attempt = 0;
    while attempt < PORT_ATTEMPTS {
        key.client_port_be = candidate_port(&OriginalTuple::of(fresh), attempt);
        match flow_ref::find(nats, &key) {
            Some(found) if OriginalTuple::of(&found.value()) == OriginalTuple::of(fresh) => {
                if flags.is_opening() && conntrack::is_closed(found.value().events) {
                    (is_unclaimed, is_stale, free) = (true, true, key.client_port_be);
                    break;
                }
                refresh_nat(lookups, &key, &found, fresh, &segment.transport);
                return ClientPort { port_be: key.client_port_be, refused: None };
            }
            Some(other) if !conntrack::is_closed(other.value().events) => {}
            _ if is_free => {}
            ended => {
                is_free = !ended.as_ref().is_some_and(|entry| {
                    let nat = entry.value();
                    conntrack::is_remembered(nat.events, fresh.seen_ns.saturating_sub(nat.seen_ns))
                });
                if is_free || !is_unclaimed {
                    (is_stale, free) = (ended.is_some(), key.client_port_be);
                }
                is_unclaimed = true;
                // A new connection has no entry at a further port if its own port is free.
                if is_free && flags.is_opening() {
                    break;
                }
            }
        }
        attempt += 1;
    }
    if !is_unclaimed {
        return ClientPort { port_be: free, refused: Some(DropReason::PortClash) };
    }
    // This node checked the allow-list if it is the ingress node; it doesn't trust another node's
    // check.
    if !fresh.via.is_none() && !is_allowed(lookups, backend, &segment.ip.source) {
        return ClientPort { port_be: free, refused: Some(DropReason::NotAllowed) };
    }
    key.client_port_be = free;
    if is_stale {
        nats.forget(&key);
    }
    let refused = match nats.open(&key, fresh) {
        Opened::Added | Opened::Exists => None,
        Opened::Refused => Some(DropReason::TableFull),
    };
    ClientPort { port_be: free, refused }
}

/// Records a packet of a connection that has a translation; updates the translation if the packet
/// came by another way.
#[inline(always)]
fn refresh_nat<L: Lookups>(
    lookups: &L,
    key: &NatKey,
    found: &FlowRef<Nat, <L::Nats as FlowTable<NatKey, Nat>>::Entry>,
    fresh: &mut Nat,
    header: &transport::Header,
) {
    flow_ref::record_segment(lookups.nats(), key, found, Direction::Request, header, fresh.seen_ns);
    if !found.is_established {
        return;
    }
    let known = &found.value();
    let has_moved =
        known.via != fresh.via || known.client_mac != fresh.client_mac || known.uplink != fresh.uplink;
    if has_moved && conntrack::is_clients(header, known.sequence) {
        fresh.events = known.events;
        fresh.sequence = known.sequence;
        fresh.opened_ns = known.opened_ns;
        lookups.nats().replace(key, &found.entry, fresh);
    }
}

/// The part of a connection's tuple that translation changes: VIP, VIP port and client port, as the
/// client sees them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct OriginalTuple {
    pub(super) vip: Address,
    pub(super) vip_port_be: Be16,
    pub(super) client_port_be: Be16,
}

impl OriginalTuple {
    #[inline(always)]
    pub(super) const fn of(nat: &Nat) -> Self {
        Self { vip: nat.vip, vip_port_be: nat.vip_port_be, client_port_be: nat.client_port_be }
    }
}

/// The client's port to try at the task: first its own, then ports that depend on the connection
/// only.
#[inline(always)]
fn candidate_port(connection: &OriginalTuple, attempt: u32) -> Be16 {
    const UPPER_HALF: u16 = 0x8000;
    if attempt == 0 {
        return connection.client_port_be;
    }
    let ports = u32::from(connection.client_port_be.get()) << 16 | u32::from(connection.vip_port_be.get());
    let seed = ports ^ connection.vip.word() ^ attempt.rotate_right(8);
    Be16::new(UPPER_HALF | (seed.wrapping_mul(0x9e37_79b1) >> 17) as u16)
}

/// Sets the client's port in `key`, whose other fields are set, to that of the connection's
/// translation; `false` if it has none.
#[inline(always)]
pub(super) fn find_port<L: Lookups>(lookups: &L, key: &mut NatKey, connection: &OriginalTuple) -> bool {
    let mut attempt = 0;
    while attempt < PORT_ATTEMPTS {
        key.client_port_be = candidate_port(connection, attempt);
        if flow_ref::find(lookups.nats(), key)
            .is_some_and(|found| OriginalTuple::of(&found.value()) == *connection)
        {
            return true;
        }
        attempt += 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::abi::{BackendState, Config, Node, backend_flag, flow_event};
    use crate::parse::tcp::Flags;
    use crate::parse::vxlan::Vni;
    use crate::pipeline::Origin;
    use crate::testing::{Frame, Hook, HostTables, IFINDEX, Setup, TcpBuilder, v4};
    use crate::verdict::Verdict;

    const CLIENT: &str = "10.77.0.1:40000";
    const TASK: Address = Address::v4([10, 128, 1, 2]);

    /// A node with one task.
    fn node() -> HostTables {
        let backend = Backend {
            task_address: TASK,
            task_port_be: Be16::new(8080),
            state: BackendState::Active as u8,
            flags: backend_flag::LOCAL,
            ifindex: IFINDEX,
            ..Backend::default()
        };
        HostTables::new(Setup {
            config: Config { address: Address::v4(v4("10.77.0.11")), tunnel_mtu: 1450, ..Config::default() },
            addresses: Vec::from([Address::v4(v4("10.77.0.11"))]),
            backends: Vec::from([(1, backend)]),
            nodes: Vec::from([
                Node::default(),
                Node { address: Address::v4(v4("10.77.0.12")), ..Node::default() },
            ]),
            ..Setup::default()
        })
    }

    /// The client's port that the task sees in the client's packet to port 80 of the node with this
    /// address.
    fn seen(tables: &HostTables, vip: &str, flags: u8) -> u16 {
        let packet = TcpBuilder::new(CLIENT, &std::format!("{vip}:80")).flags(flags).build();
        let hook =
            Hook::Tunnel(Origin { peer: v4("10.77.0.12"), vni: Vni::request(1, false), is_checked: true });
        let mut frame = Frame::new(packet);
        assert_eq!(hook.run(&mut frame, tables), Verdict::Deliver { ifindex: IFINDEX }, "{vip} {flags:#x}");
        u16::from_be_bytes([frame.bytes[34], frame.bytes[35]])
    }

    /// Adds these events to all translations.
    fn tell(tables: &HostTables, events: u32) {
        for nats in [&tables.nats.half_open, &tables.nats.established] {
            for nat in nats.borrow().values() {
                nat.set(Nat { events: nat.get().events | events, ..nat.get() });
            }
        }
    }

    fn wait(tables: &HostTables, ns: u64) {
        tables.now_ns.set(tables.now_ns.get() + ns);
    }

    const FINS: u32 = flow_event::CLIENT_FIN | flow_event::TASK_FIN;

    #[test]
    fn a_port_that_the_task_remembers_is_not_given_to_a_connection_by_another_node() {
        let tables = node();
        assert_eq!(seen(&tables, "10.77.0.12", Flags::SYN), 40000, "nobody has the port");
        tell(&tables, FINS);
        wait(&tables, conntrack::CLOSED_TIMEOUT_NS);
        assert_eq!(seen(&tables, "10.77.0.12", Flags::SYN), 40000, "by the same node it goes on");
        tell(&tables, FINS);
        wait(&tables, conntrack::TIME_WAIT_NS - 1);
        let other = seen(&tables, "10.77.0.13", Flags::SYN);
        assert_ne!(other, 40000, "by another node it would meet the task's memory");
        assert_eq!(seen(&tables, "10.77.0.13", Flags::SYN), other, "its repeated SYN goes the same way");
        assert_eq!(seen(&tables, "10.77.0.13", Flags::ACK), other, "and what follows");
        wait(&tables, 1);
        assert_eq!(seen(&tables, "10.77.0.14", Flags::SYN), 40000, "once the task has forgotten it");
    }

    #[test]
    fn of_a_connection_that_was_reset_the_task_remembers_nothing() {
        let tables = node();
        seen(&tables, "10.77.0.12", Flags::SYN);
        tell(&tables, FINS | flow_event::RESET);
        assert_eq!(seen(&tables, "10.77.0.13", Flags::SYN), 40000);
    }

    #[test]
    fn a_client_whose_ports_the_task_remembers_all_gets_its_own() {
        let tables = node();
        let called = |last| OriginalTuple {
            vip: Address::v4([10, 77, 0, last]),
            vip_port_be: Be16::new(80),
            client_port_be: Be16::new(40000),
        };
        seen(&tables, "10.77.0.12", Flags::SYN);
        let (key, nat) = {
            let nats = tables.nats.half_open.borrow();
            let (key, nat) = nats.iter().next().expect("an entry");
            (*key, nat.get())
        };
        for attempt in 0..PORT_ATTEMPTS {
            let key = NatKey { client_port_be: candidate_port(&called(13), attempt), ..key };
            let entry = std::rc::Rc::new(core::cell::Cell::new(Nat { events: nat.events | FINS, ..nat }));
            tables.nats.established.borrow_mut().insert(key, entry);
        }
        assert_eq!(seen(&tables, "10.77.0.13", Flags::SYN), 40000, "the task decides");
    }
}
