//! What the packet logic asks of the world: the seam between the pipeline and the kernel's maps and sockets, or the
//! hash maps of a host test.

use crate::abi::{
    Address, Backend, Be16, Config, Direction, DropReason, Flow, FlowKey, FragmentKey, FragmentPorts, Member,
    Nat, NatKey, Node, Service, ServiceKey, Timed,
};
use crate::select::Candidates;

/// Tables, clock, dice and counters of one program run.
pub trait Lookups: Candidates {
    /// Flows of the ingress role.
    type Flows: FlowTable<FlowKey, Flow>;
    /// Translations of the backend role.
    type Nats: FlowTable<NatKey, Nat>;

    /// Nanoseconds of the monotonic clock.
    fn now_ns(&self) -> u64;

    /// The same clock between its ticks, for what is measured. It costs ten times as much.
    fn precise_ns(&self) -> u64;

    /// What this node is; `None` until userspace has said so.
    fn config(&self) -> Option<&Config>;
    /// Index of an address of this node; `None` for any other address.
    fn address_index(&self, address: &Address) -> Option<u32>;
    /// The published port.
    fn service(&self, key: &ServiceKey) -> Option<&Service>;
    /// Whether the allow-list of the published port `service_index` has the client.
    fn is_allowed(&self, service_index: u32, client: &Address) -> bool;
    /// The backend with this id.
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// The node with this index.
    fn node(&self, index: u32) -> Option<&Node>;
    /// Index of the member node with this address; `None`: no member has it.
    fn peer(&self, address: &Address) -> Option<u32>;
    /// What is demanded of the node with this index; 0 is this node.
    fn member(&self, index: u32) -> Option<&Member>;
    /// Whether a socket of this node owns the connection: not a listening one, nor an unconnected one of UDP.
    fn socket_owns(&self, connection: &Connection) -> bool;

    /// Flows of the ingress role.
    fn flows(&self) -> &Self::Flows;
    /// Translations of the backend role.
    fn nats(&self) -> &Self::Nats;

    /// The ports of the packet that a later fragment belongs to.
    fn fragment_ports(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    /// Keeps the ports of a packet that comes in fragments.
    fn keep_fragment_ports(&self, key: &FragmentKey, ports: &FragmentPorts);

    /// Whether the flow of one more SYN is to be remembered: see [`crate::guard`].
    fn may_remember_syn(&self) -> bool;
    /// Whether one more flow is to be remembered by a later packet.
    fn may_remember_late(&self) -> bool;
    /// A number that this flow has on this node, and that nobody else can tell.
    fn keyed_hash(&self, key: &FlowKey) -> u32;
    /// Whether a SYN was not remembered within this time.
    fn has_guarded(&self, within_ns: u64) -> bool;
    /// Counts a SYN of the published port `service_index` that was forwarded but not remembered.
    fn count_unremembered(&self, service_index: u32);

    /// Keeps what a reply told of the load of `backend`.
    fn keep_load(&self, backend: u32, load: u32);

    /// Counts a flow assigned to `backend`, of the published port `service_index`.
    fn count_opened(&self, service_index: u32, backend: u32);
    /// Counts a flow of `backend` that ended.
    fn count_closed(&self, backend: u32);
    /// Counts a flow of `backend` that had been counted as ended and goes on.
    fn count_revived(&self, backend: u32);
    /// Counts a handshake that the task answered.
    fn count_answered(&self, backend: u32);
    /// Counts a handshake that the task refused.
    fn count_refused(&self, backend: u32);
    /// Counts a handshake that the task left unanswered until the client tried again.
    fn count_unanswered(&self, backend: u32);
    /// Counts a flow for which the published port had no backend.
    fn count_no_backend(&self, service_index: u32);
    /// Keeps how long something of the published port `service_index` took.
    fn keep_duration(&self, timed: Timed, service_index: u32, duration_ns: u64);
    /// Counts traffic that is forwarded.
    fn count_traffic(&self, service_index: u32, backend: u32, direction: Direction, count: PacketCount);
    /// Counts a packet that is not.
    fn count_drop(&self, reason: DropReason, direction: Direction);
}

/// One packet's share of the traffic counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketCount {
    /// Packets.
    pub packets: u32,
    /// Bytes from the IP header on.
    pub bytes: u32,
}

/// The two ends of a TCP connection, or of a connected UDP socket, as its socket on this node would see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// IP protocol number.
    pub protocol: u8,
    /// The other end's address.
    pub remote: Address,
    /// The other end's port.
    pub remote_port_be: Be16,
    /// This end's address.
    pub local: Address,
    /// This end's port.
    pub local_port_be: Be16,
}

/// The flows of one kind: half-open ones, and those that their clients have confirmed.
pub trait FlowTable<K, V> {
    /// A live entry, see [`Entry`].
    type Entry: Entry<V>;

    /// The flow with this key, and whether it is established.
    fn find(&self, key: &K) -> Option<(Self::Entry, bool)>;
    /// Adds a half-open flow, unless there is one.
    fn open(&self, key: &K, value: &V) -> Opened;
    /// Puts the flow where one with these events belongs: one that its client has confirmed is kept however
    /// long it is idle; one that has ended must not push such a one out, but is still found until it is swept
    /// or its memory is needed.
    fn reclassify(&self, key: &K, entry: &Self::Entry, is_established: bool, events: u32);
    /// Puts what is known of an established flow anew.
    fn replace(&self, key: &K, entry: &Self::Entry, value: &V);
    /// Removes the flow.
    fn forget(&self, key: &K);
}

/// What became of an attempt to add a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It is there now.
    Added,
    /// Another CPU was faster.
    Exists,
    /// The table refused it.
    Refused,
}

/// A flow in its table, which other CPUs may be changing at the same time.
pub trait Entry<V> {
    /// A copy of it.
    fn get(&self) -> V;
    /// Notes that a packet of it was seen.
    fn touch(&self, now_ns: u64);
    /// Adds events, atomically; returns those it had before.
    fn add_events(&self, events: u32) -> u32;
    /// Takes events away, atomically; returns those it had before.
    fn clear_events(&self, events: u32) -> u32;
    /// Notes where its client is in its sequence numbers.
    fn set_sequence(&self, sequence: u16);
}
