//! The interface between the pipeline and its tables: the kernel's maps and sockets, or the hash
//! maps of a host test.

use crate::abi::{
    Address, Backend, Be16, Config, Direction, DropReason, Endpoint, EndpointKey, Flow, FlowKey, FragmentKey,
    FragmentPorts, Link, Member, Nat, NatKey, Node, Service, ServiceKey, Subnet6, Timed,
};
use crate::select::Candidates;

/// Tables, clock, random numbers and counters that one program run uses.
pub trait Lookups: Candidates {
    /// The flow table of the ingress role.
    type Flows: FlowTable<FlowKey, Flow>;
    /// The translations of the owner's role.
    type Nats: FlowTable<NatKey, Nat>;

    /// The monotonic clock as of its last tick, in nanoseconds.
    fn now_ns(&self) -> u64;

    /// The monotonic clock between its ticks, for measuring durations. Reading it costs ten times
    /// as much as [`Self::now_ns`].
    fn precise_ns(&self) -> u64;

    /// The settings of this node; `None` until userspace has written them.
    fn config(&self) -> Option<&Config>;
    /// The index of an address of this node; `None` for any other address.
    fn address_index(&self, address: &Address) -> Option<u32>;
    /// The published port with this key.
    fn service(&self, key: &ServiceKey) -> Option<&Service>;
    /// Whether the client is on the allow-list of the published port `service_index`.
    fn is_allowed(&self, service_index: u32, client: &Address) -> bool;
    /// The backend with this id.
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// The node with this index.
    fn node(&self, index: u32) -> Option<&Node>;
    /// The index of the member node with this address; `None` if no member has it.
    fn peer(&self, address: &Address) -> Option<u32>;
    /// What tunnel packets of the node with this index must bear; 0 is this node.
    fn member(&self, index: u32) -> Option<&Member>;
    /// As whom the task behind this veth may send on a network; `None` if it isn't known.
    fn link(&self, ifindex: u32) -> Option<&Link>;
    /// Who has this address of a network; `None` if nobody is known to have it.
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint>;
    /// The service whose virtual IP on a network this is.
    fn virtual_ip(&self, key: &EndpointKey) -> Option<&Service>;
    /// The IPv6 addresses of the network with this number; `None` if it has none.
    fn subnet6(&self, network: u32) -> Option<&Subnet6>;
    /// Whether tasks must not send to this address by their veth on `mesh`.
    fn is_isolated(&self, address: &Address) -> bool;
    /// Whether a connected socket of this node owns the connection. Listening TCP sockets and
    /// unconnected UDP sockets don't count.
    fn socket_owns(&self, connection: &Connection) -> bool;

    /// The flow table of the ingress role.
    fn flows(&self) -> &Self::Flows;
    /// The translations of the owner's role.
    fn nats(&self) -> &Self::Nats;

    /// The ports of the packet that a later fragment belongs to.
    fn fragment_ports(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    /// Stores the ports of a fragmented packet.
    fn keep_fragment_ports(&self, key: &FragmentKey, ports: &FragmentPorts);

    /// Whether one more SYN may create a flow: see [`crate::guard`].
    fn may_remember_syn(&self) -> bool;
    /// Whether a later packet may create a flow whose SYN created none.
    fn may_remember_late(&self) -> bool;
    /// A hash of the flow's key under this node's secret, so that nobody else can predict it.
    fn keyed_hash(&self, key: &FlowKey) -> u32;
    /// Whether the SYN guard has fired within this time: see [`crate::guard`].
    fn has_guarded(&self, within_ns: u64) -> bool;
    /// Counts a SYN of the published port `service_index` that was forwarded without a flow.
    fn count_unremembered(&self, service_index: u32);

    /// Stores the load of `backend` that a reply carried.
    fn keep_load(&self, backend: u32, load: u32);

    /// Counts a flow assigned to `backend`, of the published port `service_index`.
    fn count_opened(&self, service_index: u32, backend: u32);
    /// Counts a flow of `backend` that ended.
    fn count_closed(&self, backend: u32);
    /// Counts a flow of `backend` that was counted as ended, but goes on.
    fn count_revived(&self, backend: u32);
    /// Counts a handshake that the task answered.
    fn count_answered(&self, backend: u32);
    /// Counts a handshake that the task refused.
    fn count_refused(&self, backend: u32);
    /// Counts a handshake that the task left unanswered until the client retransmitted its SYN.
    fn count_unanswered(&self, backend: u32);
    /// Counts a flow for which the published port had no backend.
    fn count_no_backend(&self, service_index: u32);
    /// Adds a duration to the histogram of the published port `service_index`.
    fn keep_duration(&self, timed: Timed, service_index: u32, duration_ns: u64);
    /// Counts a forwarded packet.
    fn count_traffic(&self, service_index: u32, backend: u32, direction: Direction, count: PacketCount);
    /// Counts a packet that is not forwarded.
    fn count_drop(&self, reason: DropReason, direction: Direction);
}

/// What one packet adds to the traffic counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketCount {
    /// Packets on the wire: more than one for a packet that stands for several (segmentation
    /// offload).
    pub packets: u32,
    /// Bytes, from the IP header on.
    pub bytes: u32,
}

/// The addresses and ports of a TCP connection or connected UDP socket, as seen by its socket on
/// this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// IP protocol number.
    pub protocol: u8,
    /// The remote address.
    pub remote: Address,
    /// The remote port.
    pub remote_port_be: Be16,
    /// The local address.
    pub local: Address,
    /// The local port.
    pub local_port_be: Be16,
}

/// A table of flows or translations: half-open ones, and established ones that their clients have
/// confirmed.
pub trait FlowTable<K, V> {
    /// A handle on an entry of the table, see [`FlowEntry`].
    type Entry: FlowEntry<V>;

    /// The entry with this key, and whether it is established.
    fn find(&self, key: &K) -> Option<(Self::Entry, bool)>;
    /// Adds a half-open entry, unless the key has one.
    fn open(&self, key: &K, value: &V) -> Opened;
    /// Moves the entry to the table that its events call for: an established one is kept however
    /// long it is idle; a closed one must not evict such an entry, but can be found until it is
    /// swept or its memory is needed.
    fn reclassify(&self, key: &K, entry: &Self::Entry, is_established: bool, events: u32);
    /// Overwrites an established entry.
    fn replace(&self, key: &K, entry: &Self::Entry, value: &V);
    /// Removes the entry.
    fn forget(&self, key: &K);
}

/// The result of adding an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The table holds the entry now.
    Added,
    /// The key had an entry already, or another CPU added one at the same moment.
    Exists,
    /// The table had no room for the entry.
    Refused,
}

/// An entry of a table, which other CPUs may be changing at the same time.
pub trait FlowEntry<V> {
    /// A copy of the entry.
    fn get(&self) -> V;
    /// Sets the time of the last packet.
    fn touch(&self, now_ns: u64);
    /// Adds events atomically; returns the events before.
    fn add_events(&self, events: u32) -> u32;
    /// Removes events atomically; returns the events before.
    fn clear_events(&self, events: u32) -> u32;
    /// Sets the upper half of the client's current sequence number.
    fn set_sequence(&self, sequence: u16);
}
