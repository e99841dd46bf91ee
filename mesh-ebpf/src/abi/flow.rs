//! Flows: the choice of a backend at the ingress node, and the address translation (NAT) at the
//! task's node.
//!
//! Flows stand in the cells of one table ([`crate::flow_table`]), translations in two LRU maps,
//! half-open and established. In neither does a SYN flood evict an established connection.

use super::layout::abi_struct;
use super::{Address, Be16, Mac, protocol};

abi_struct! {
    /// Key of a flow at the ingress node, the same for both directions.
    pub struct FlowKey [24] {
        /// The client's address; of a flow to a virtual IP, an address that no client has, see
        /// [`FlowKey::to_virtual_ip`].
        pub client: Address,
        /// The client's own port.
        pub client_port_be: Be16,
        /// Padding; always zero.
        pub reserved: [u8; 2],
        /// The published port and address that the client connects to.
        pub vip: VipId,
    }
}

impl Flow {
    /// The backend's id, of 16 bits, as a map key.
    #[inline(always)]
    pub const fn backend_id(&self) -> u32 {
        self.backend as u32
    }
}

impl FlowKey {
    /// The first two octets of [`client`](Self::client) in the key of a flow to a virtual IP: those
    /// of an IPv6 multicast address, which no client has.
    const VIRTUAL: [u8; 2] = [0xff, 0xfe];

    /// The key of a flow of a task on a network to a port (host order) of a virtual IP there. The
    /// network's number and the virtual IP lie in the octets that an IPv4 client leaves free.
    #[inline(always)]
    pub const fn to_virtual_ip(
        network: u32,
        virtual_ip: [u8; 4],
        (client, client_port_be): ([u8; 4], Be16),
        (ip_protocol, port): (u8, u16),
    ) -> Self {
        let ([_, n, n0, n1], [v0, v1, v2, v3]) = (network.to_be_bytes(), virtual_ip);
        let [c0, c1, c2, c3] = client;
        let [tag0, tag1] = Self::VIRTUAL;
        Self {
            client: Address([tag0, tag1, n0, n1, v0, v1, v2, v3, n, 0, 0, 0, c0, c1, c2, c3]),
            client_port_be,
            reserved: [0; 2],
            vip: VipId::new(0, ip_protocol, port),
        }
    }

    /// Network number, virtual IP and client of a flow to a virtual IP; `None` for a flow to a
    /// published port.
    pub const fn virtual_ip(&self) -> Option<(u32, [u8; 4], [u8; 4])> {
        let [tag0, tag1, n0, n1, v0, v1, v2, v3, n, _, _, _, c0, c1, c2, c3] = self.client.0;
        if tag0 != Self::VIRTUAL[0] || tag1 != Self::VIRTUAL[1] {
            return None;
        }
        Some((u32::from_be_bytes([0, n, n0, n1]), [v0, v1, v2, v3], [c0, c1, c2, c3]))
    }

    /// The key's 24 bytes as three words, as they lie in memory.
    #[inline(always)]
    pub(crate) const fn words(&self) -> [u64; 3] {
        // SAFETY: both are 24 bytes, aligned alike, and any bit pattern is valid for either.
        unsafe { core::mem::transmute(*self) }
    }
}

/// A published port on one address of this node: address index (15 bits), UDP (1 bit), port (16
/// bits). It is computed, so that no map lookup is needed for it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VipId(pub u32);

impl VipId {
    /// Address indexes are below this.
    pub const ADDRESSES_MAX: u32 = 1 << 15;

    /// The id of a port (host order) of the address with this index.
    #[inline(always)]
    pub const fn new(address_index: u32, ip_protocol: u8, port: u16) -> Self {
        let udp = (ip_protocol == protocol::UDP) as u32;
        Self((address_index & (Self::ADDRESSES_MAX - 1)) << 17 | udp << 16 | port as u32)
    }

    /// Index of the address in [`super::names::ADDRESSES`].
    pub const fn address_index(self) -> u32 {
        self.0 >> 17
    }

    /// IP protocol number: TCP or UDP.
    pub const fn protocol(self) -> u8 {
        if self.0 >> 16 & 1 == 1 { protocol::UDP } else { protocol::TCP }
    }

    /// Published port, host order.
    pub const fn port(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}

abi_struct! {
    /// A flow as the ingress node knows it.
    pub struct Flow [40] {
        /// When the last packet was seen, ns of the monotonic clock as of its last tick
        /// (`bpf_ktime_get_coarse_ns`).
        pub seen_ns: u64,
        /// When the flow began, ns of the same clock, but precise between its ticks: a coarse
        /// reading taken later may be earlier than this.
        pub opened_ns: u64,
        /// The backend's id; 0 for a connection that this node began itself, see
        /// [`flow_event::OUTGOING`].
        pub backend: u16,
        /// TCP only: the upper half of the client's current sequence number. See
        /// [`crate::conntrack`].
        pub sequence: u16,
        /// The TCP events seen so far: bits of [`flow_event`]. In a cell of the flow table, the
        /// table uses the other bits.
        pub events: u32,
        /// ifindex of the uplink over which the client is reached.
        pub uplink: u32,
        /// Source MAC address of the client's frames: replies go to it.
        pub client_mac: Mac,
        /// Destination MAC address of the client's frames: replies come from it.
        pub node_mac: Mac,
    }
}

abi_struct! {
    /// Entry of [`super::names::FLOWS`]: a cache line that holds at most one flow. See
    /// [`crate::flow_table`].
    pub struct FlowCell [64] {
        /// The flow's key.
        pub key: FlowKey,
        /// The flow. Its [`events`](Flow::events) field is the cell's word.
        pub flow: Flow,
    }
}

/// Flow state as a bit set of TCP events: bits of [`Flow::events`] and [`Nat::events`]. UDP flows
/// map datagrams to the same bits, see [`crate::conntrack::datagram_events`]. A flow is closed once
/// it has [`RESET`](flow_event::RESET) or both FINs.
pub mod flow_event {
    /// The client's SYN. Every TCP flow that began while mesh was running has it.
    pub const SYN: u32 = 1;
    /// The task's SYN-ACK.
    pub const SYN_ACK: u32 = 1 << 1;
    /// A packet of the client after the SYN-ACK: the flow is established.
    pub const ACK: u32 = 1 << 2;
    /// The client's FIN.
    pub const CLIENT_FIN: u32 = 1 << 3;
    /// The task's FIN.
    pub const TASK_FIN: u32 = 1 << 4;
    /// A RST of either side.
    pub const RESET: u32 = 1 << 5;
    /// The RST was the task's. Set together with [`RESET`].
    pub const TASK_RESET: u32 = 1 << 6;
    /// Direct server return: the task's node answers the client directly, so the ingress node sees
    /// no replies. Set when the flow begins.
    pub const DSR: u32 = 1 << 8;
    /// A reply came in a packet that stands for several (segmentation offload), which only the
    /// kernel's VXLAN device can decapsulate. All later replies go through the device too, as they
    /// must not overtake it.
    pub const SEGMENTED: u32 = 1 << 9;
    /// The flow began with another packet than a SYN, and its task has not sent a segment of it
    /// since: whether the connection exists is not known yet. The bit stays set afterwards.
    pub const UNPROVEN: u32 = 1 << 10;
    /// This node began the connection, not a client: a container behind the node's address, from a
    /// port that is published. The flow's "client" is the remote end, its "task" is the node.
    pub const OUTGOING: u32 = 1 << 11;
    /// All bits that are reserved for events, now and in future.
    pub const ALL: u32 = 0x7fff;
}

abi_struct! {
    /// Key of [`super::names::NAT_HALF_OPEN`] and [`super::names::NAT_ESTABLISHED`]: a connection
    /// as the task sees it.
    pub struct NatKey [24] {
        /// The client's address.
        pub client: Address,
        /// The client's port as the task sees it; it differs from the client's own after a port
        /// clash.
        pub client_port_be: Be16,
        /// The port that the task listens on.
        pub task_port_be: Be16,
        /// The task: ifindex of its host-side veth, with the top bit set for UDP. See
        /// [`NatKey::task`].
        pub task: u32,
    }
}

impl NatKey {
    /// The bit of [`NatKey::task`] that is set for UDP.
    const UDP: u32 = 1 << 31;

    /// The [`task`](Self::task) field of a key, from the IP protocol and the ifindex of the task's
    /// host-side veth.
    #[inline(always)]
    pub const fn task(ip_protocol: u8, ifindex: u32) -> u32 {
        if ip_protocol == protocol::UDP { ifindex | Self::UDP } else { ifindex }
    }

    /// IP protocol number: TCP or UDP.
    pub const fn protocol(&self) -> u8 {
        if self.task & Self::UDP != 0 { protocol::UDP } else { protocol::TCP }
    }
}

abi_struct! {
    /// A translation: value of the NAT tables at the task's node.
    pub struct Nat [80] {
        /// When the last packet was seen, ns of the monotonic clock.
        pub seen_ns: u64,
        /// When this node created the translation, ns of the same clock.
        pub opened_ns: u64,
        /// The address that the client connects to.
        pub vip: Address,
        /// Address of the ingress node that replies go back to; [`Address::NONE`]: this node is the
        /// ingress node.
        pub via: Address,
        /// The published port that the client connects to.
        pub vip_port_be: Be16,
        /// The client's own port.
        pub client_port_be: Be16,
        /// The backend's id, of 16 bits, as a map key.
        pub backend: u32,
        /// The TCP events seen so far: bits of [`flow_event`].
        pub events: u32,
        /// ifindex of the uplink over which the client is reached, if this node is the ingress
        /// node; else that of the VXLAN device.
        pub uplink: u32,
        /// MAC address that replies go to, if this node is the ingress node.
        pub client_mac: Mac,
        /// MAC address that replies come from, if this node is the ingress node.
        pub node_mac: Mac,
        /// TCP only: the upper half of the client's current sequence number.
        pub sequence: u16,
        /// Padding; always zero.
        pub reserved: u16,
    }
}

abi_struct! {
    /// Key of [`super::names::FRAGMENTS`]: what all fragments of one packet have in common.
    pub struct FragmentKey [40] {
        /// Source address of the packet.
        pub source: Address,
        /// Destination address of the packet.
        pub destination: Address,
        /// The packet's identification: 32 bits for IPv6, 16 for IPv4.
        pub id_be: [u8; 4],
        /// IP protocol number: TCP or UDP.
        pub protocol: u8,
        /// Padding; always zero.
        pub reserved: [u8; 3],
    }
}

abi_struct! {
    /// Value of [`super::names::FRAGMENTS`]: the ports of a fragmented packet, which only its first
    /// fragment carries.
    pub struct FragmentPorts [16] {
        /// When the first fragment was seen, ns of the monotonic clock.
        pub seen_ns: u64,
        /// Source port of the packet.
        pub source_port_be: Be16,
        /// Destination port of the packet.
        pub destination_port_be: Be16,
        /// Padding; always zero.
        pub reserved: u32,
    }
}

/// How long after its first fragment a packet's later fragments are accepted, in nanoseconds: as
/// long as Linux does (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_MAX_AGE_NS: u64 = 30_000_000_000;

impl FragmentPorts {
    /// Whether the ports may belong to the packet of a fragment seen at `now_ns`. After that time
    /// another packet may have the same identification.
    #[inline(always)]
    pub const fn is_fresh(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.seen_ns) <= FRAGMENT_MAX_AGE_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vip_id_keeps_its_parts() {
        for (index, ip_protocol, port) in
            [(0, protocol::TCP, 80), (1, protocol::UDP, 65535), (32767, protocol::TCP, 0)]
        {
            let vip = VipId::new(index, ip_protocol, port);
            assert_eq!((vip.address_index(), vip.protocol(), vip.port()), (index, ip_protocol, port));
        }
    }

    #[test]
    fn a_flow_to_a_virtual_ip_keeps_its_parts_and_meets_no_other() {
        let (vip, client) = ([10, 0, 5, 2], [10, 0, 5, 7]);
        let key_on =
            |network| FlowKey::to_virtual_ip(network, vip, (client, Be16::new(40000)), (protocol::UDP, 53));
        let key = key_on(0x1234);
        assert_eq!(key.virtual_ip(), Some((0x1234, vip, client)));
        assert_eq!(key_on(0x8_1234).virtual_ip(), Some((0x8_1234, vip, client)));
        assert_eq!((key.vip.protocol(), key.vip.port()), (protocol::UDP, 53));
        assert!(!key.client.is_host(), "no client of a published port has this address");
        let published = FlowKey { client: Address::v4(client), ..key };
        assert_eq!(published.virtual_ip(), None);
    }
}
