//! Flows: the choice of a backend at the ingress node, and the address translation at the task's node.
//!
//! Flows stand in cells of one table ([`crate::flow_table`]), translations in two LRU tables, half-open and established. In neither does
//! a flood of SYNs evict anything established.

use super::layout::abi_struct;
use super::{Address, Be16, Mac, protocol};

abi_struct! {
    /// What names a flow of the ingress node, in both directions.
    pub struct FlowKey [24] {
        /// The client's address.
        pub client: Address,
        /// The client's port.
        pub client_port_be: Be16,
        /// Zero.
        pub reserved: [u8; 2],
        /// What the client spoke to.
        pub vip: VipId,
    }
}

impl Flow {
    /// The backend's id.
    #[inline(always)]
    pub const fn backend_id(&self) -> u32 {
        self.backend as u32
    }
}

impl FlowKey {
    /// Its 24 bytes as they lie in memory, a word at a time.
    #[inline(always)]
    pub(crate) const fn words(&self) -> [u64; 3] {
        // SAFETY: both are 24 bytes, aligned alike, and any bit pattern is valid for either.
        unsafe { core::mem::transmute(*self) }
    }
}

/// A published port on one address of this node: address index (15 bits), UDP (1 bit), port (16 bits). Computed,
/// so that no lookup is needed for it.
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

    /// IP protocol number.
    pub const fn protocol(self) -> u8 {
        if self.0 >> 16 & 1 == 1 { protocol::UDP } else { protocol::TCP }
    }

    /// Published port, host order.
    pub const fn port(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}

abi_struct! {
    /// What the ingress node remembers of a flow.
    pub struct Flow [40] {
        /// When the last packet was seen, ns of the monotonic clock as of its last tick (`bpf_ktime_get_coarse_ns`).
        pub seen_ns: u64,
        /// When the flow began, same clock, but between its ticks too: what is read from the last tick may be before it.
        pub opened_ns: u64,
        /// The backend's id; 0: a connection of this node's own, see [`flow_event::OUTGOING`].
        pub backend: u16,
        /// TCP: where the client is in its sequence numbers, their upper half. See [`crate::conntrack`].
        pub sequence: u16,
        /// What has been seen of it: bits of [`flow_event`]. In a cell the table has the other bits.
        pub events: u32,
        /// ifindex of the uplink over which the client is reached.
        pub uplink: u32,
        /// Source MAC of the client's frames: where replies go.
        pub client_mac: Mac,
        /// Destination MAC of the client's frames: where replies come from.
        pub node_mac: Mac,
    }
}

abi_struct! {
    /// Entry of [`super::names::FLOWS`]: a cache line, in which a flow may stand. See [`crate::flow_table`].
    pub struct FlowCell [64] {
        /// The flow's key.
        pub key: FlowKey,
        /// The flow. Its [`events`](Flow::events) are the cell's word.
        pub flow: Flow,
    }
}

/// What has been seen of a flow, in words of TCP (a UDP flow's datagrams stand for them): bits of [`Flow::events`] and [`Nat::events`]. A flow is closed once
/// it has [`RESET`](flow_event::RESET) or both FINs.
pub mod flow_event {
    /// The client's SYN. Set on every TCP flow that began while mesh was looking.
    pub const SYN: u32 = 1;
    /// The task's SYN-ACK.
    pub const SYN_ACK: u32 = 1 << 1;
    /// A later packet of the client: the flow is established.
    pub const ACK: u32 = 1 << 2;
    /// FIN of the client.
    pub const CLIENT_FIN: u32 = 1 << 3;
    /// FIN of the task.
    pub const TASK_FIN: u32 = 1 << 4;
    /// RST of either side.
    pub const RESET: u32 = 1 << 5;
    /// With [`RESET`]: it was the task's.
    pub const TASK_RESET: u32 = 1 << 6;
    /// The task's node answers the client directly: the ingress node sees no replies. Set when the flow begins.
    pub const DSR: u32 = 1 << 8;
    /// Replies came in packets that stand for several (segmentation offload), which only the kernel's VXLAN device can take out of the
    /// tunnel: all that follow go by it too, for they must not overtake.
    pub const SEGMENTED: u32 = 1 << 9;
    /// It was not the SYN that began it, and its task has said nothing since: whether there is such a connection is not known yet. Stays set.
    pub const UNPROVEN: u32 = 1 << 10;
    /// No client began it, but this node: a container behind the node's address, from a port that is published. Its "client" is who it
    /// speaks to, its "task" is the node.
    pub const OUTGOING: u32 = 1 << 11;
    /// All bits that are events, now or in time to come.
    pub const ALL: u32 = 0x7fff;
}

abi_struct! {
    /// Key of [`super::names::NAT_HALF_OPEN`] and [`super::names::NAT_ESTABLISHED`]: a connection as the task sees it.
    pub struct NatKey [24] {
        /// The client's address.
        pub client: Address,
        /// The client's port as the task sees it; another than the client's own after a port clash.
        pub client_port_be: Be16,
        /// Port in the task.
        pub task_port_be: Be16,
        /// The task: ifindex of its host-side veth, with the top bit set for UDP. See [`NatKey::task`].
        pub task: u32,
    }
}

impl NatKey {
    /// Set in [`NatKey::task`] for UDP.
    const UDP: u32 = 1 << 31;

    /// What stands for a task in keys of this protocol, by the ifindex of its host-side veth.
    #[inline(always)]
    pub const fn task(ip_protocol: u8, ifindex: u32) -> u32 {
        if ip_protocol == protocol::UDP { ifindex | Self::UDP } else { ifindex }
    }

    /// IP protocol number.
    pub const fn protocol(&self) -> u8 {
        if self.task & Self::UDP != 0 { protocol::UDP } else { protocol::TCP }
    }
}

abi_struct! {
    /// Value of the NAT tables of the task's node.
    pub struct Nat [80] {
        /// When the last packet was seen, ns of the monotonic clock.
        pub seen_ns: u64,
        /// When the flow began here, same clock.
        pub opened_ns: u64,
        /// Address that the client spoke to.
        pub vip: Address,
        /// Ingress node that the replies go back to; [`Address::NONE`]: this node is the ingress node itself.
        pub via: Address,
        /// Port that the client spoke to.
        pub vip_port_be: Be16,
        /// The client's own port.
        pub client_port_be: Be16,
        /// The backend's id.
        pub backend: u32,
        /// What has been seen of it: bits of [`flow_event`].
        pub events: u32,
        /// Local ones: ifindex of the uplink over which the client is reached.
        pub uplink: u32,
        /// Local ones: where replies go.
        pub client_mac: Mac,
        /// Local ones: where replies come from.
        pub node_mac: Mac,
        /// TCP: where the client is in its sequence numbers, their upper half.
        pub sequence: u16,
        /// Zero.
        pub reserved: u16,
    }
}

abi_struct! {
    /// Key of [`super::names::FRAGMENTS`]: the fragments of one packet, as they come in.
    pub struct FragmentKey [40] {
        /// Source address.
        pub source: Address,
        /// Destination address.
        pub destination: Address,
        /// Identification: 32 bits of IPv6, 16 of IPv4.
        pub id_be: [u8; 4],
        /// IP protocol number.
        pub protocol: u8,
        /// Zero.
        pub reserved: [u8; 3],
    }
}

abi_struct! {
    /// Value of [`super::names::FRAGMENTS`]: what only the first fragment tells.
    pub struct FragmentPorts [16] {
        /// When it was seen, ns of the monotonic clock.
        pub seen_ns: u64,
        /// Source port.
        pub source_port_be: Be16,
        /// Destination port.
        pub destination_port_be: Be16,
        /// Zero.
        pub reserved: u32,
    }
}

/// How long a packet's later fragments are waited for, in nanoseconds: as long as Linux does (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_MAX_AGE_NS: u64 = 30_000_000_000;

impl FragmentPorts {
    /// Whether it may still be that of the packet of a fragment seen at `now_ns`: identifications come again.
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
}
