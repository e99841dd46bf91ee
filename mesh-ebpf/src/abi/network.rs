//! Overlay networks: the identity of each veth, the holders of addresses, and the addresses that
//! tasks must not reach through `mesh`.
//!
//! A network has a number of 16 bits, at least 1, which is in the VNI of its tunnel packets. The
//! maps, and the VNI, have the number of an encrypted network with
//! [`Vni::ENCRYPTED`](crate::parse::vxlan::Vni::ENCRYPTED) added. IPv4
//! addresses are integers whose bytes in memory are the octets ([`u32::from_ne_bytes`]).

use super::layout::abi_struct;
use super::{Address, Mac};

/// The MAC address that tasks see for every address on a network that is not on this node: those of
/// tasks on other nodes, and virtual IPs. Programs answer ARP requests for such addresses with it,
/// and set it as the source of frames that leave the tunnel. Locally administered.
pub const MESH_MAC: Mac = Mac([0x02, 0x6d, 0x65, 0x73, 0x68, 0x00]);

abi_struct! {
    /// Value of [`super::names::LINKS`]: as whom a task may send on a network. The key is the
    /// ifindex of the host-side veth that connects the task to the network. All packets from a veth
    /// without an entry are dropped.
    pub struct Link [32] {
        /// The network's number; 0: nothing may be sent.
        pub network: u32,
        /// The task's own IPv4 address on the network.
        pub address: u32,
        /// The network's subnet.
        pub subnet: u32,
        /// The mask of that subnet.
        pub mask: u32,
        /// The task's own MAC address on the network.
        pub mac: Mac,
        /// No flag is defined yet: always zero.
        pub flags: u16,
        /// The task's id as a backend of its service's virtual IP there; 0: it is no backend. The
        /// same as [`Endpoint::backend`] of its address.
        pub backend: u32,
        /// Padding; always zero.
        pub reserved: u32,
    }
}

impl Link {
    /// Whether a packet to this address stays on the network's bridge of this node: a multicast or
    /// broadcast address.
    #[inline(always)]
    pub const fn is_broadcast(&self, destination: u32) -> bool {
        const MULTICAST: u8 = 0xe0;
        let [first, ..] = destination.to_ne_bytes();
        destination == u32::MAX || first & 0xf0 == MULTICAST || destination == self.subnet | !self.mask
    }

    /// What the program of [`super::Edge::VirtualIp`] needs of the sender, so that it does not look
    /// it up again: network, backend, address and MAC address.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 5] {
        let [m0, m1] = mac_words(self.mac);
        [self.network, self.backend, self.address, m0, m1]
    }

    /// The sender of [`Self::words`], without its subnet.
    #[inline(always)]
    pub const fn from_words([network, backend, address, m0, m1]: [u32; 5]) -> Self {
        let mac = mac_of([m0, m1]);
        Self { network, address, subnet: 0, mask: 0, mac, flags: 0, backend, reserved: 0 }
    }

    /// What the program of [`super::Edge::VirtualReply`] needs: network and backend id of the
    /// sender, and the receiver, a task of this node.
    #[inline(always)]
    pub const fn reply_words(&self, receiver: &Endpoint) -> [u32; 5] {
        let [m0, m1] = mac_words(receiver.mac);
        [self.network, self.backend, receiver.ifindex, m0, m1]
    }
}

#[inline(always)]
const fn mac_words(Mac([m0, m1, m2, m3, m4, m5]): Mac) -> [u32; 2] {
    [u32::from_ne_bytes([m0, m1, m2, m3]), u32::from_ne_bytes([m4, m5, 0, 0])]
}

#[inline(always)]
const fn mac_of([first, second]: [u32; 2]) -> Mac {
    let ([m0, m1, m2, m3], [m4, m5, ..]) = (first.to_ne_bytes(), second.to_ne_bytes());
    Mac([m0, m1, m2, m3, m4, m5])
}

abi_struct! {
    /// Key of [`super::names::ENDPOINTS`] and [`super::names::VIRTUAL_IPS`]: an address on a
    /// network.
    pub struct EndpointKey [8] {
        /// The network's number.
        pub network: u32,
        /// The IPv4 address.
        pub address: u32,
    }
}

impl EndpointKey {
    /// The key of an address given by its octets.
    #[inline(always)]
    pub const fn new(network: u32, octets: [u8; 4]) -> Self {
        Self { network, address: u32::from_ne_bytes(octets) }
    }
}

abi_struct! {
    /// Value of [`super::names::ENDPOINTS`]: the holder of an address on a network. A virtual IP
    /// has no entry here, but in [`super::names::VIRTUAL_IPS`].
    pub struct Endpoint [24] {
        /// Index in [`super::names::NODES`] of the node that has the address; 0: this node.
        pub node: u32,
        /// ifindex of the task's host-side veth on the network, for a task of this node; 0: the
        /// task is not connected yet, or the address is the node's own.
        pub ifindex: u32,
        /// MAC address of the task's interface on the network, for a task of this node.
        pub mac: Mac,
        /// Bits of [`endpoint_flag`].
        pub flags: u16,
        /// The task's id as a backend of its service's virtual IP there; 0: it is no backend.
        pub backend: u32,
        /// Padding; always zero.
        pub reserved: u32,
    }
}

abi_struct! {
    /// Value of [`super::names::SUBNETS6`], by the network's number: the IPv6 addresses of a
    /// network. They follow from the IPv4 addresses: the first twelve octets are the network's, the
    /// last four the IPv4 address. So [`super::names::ENDPOINTS`] has the holders of both. A
    /// network without an entry carries no IPv6.
    pub struct Subnet6 [16] {
        /// The first twelve octets, as they lie in memory.
        pub prefix: [u32; 3],
        /// Padding; always zero.
        pub reserved: u32,
    }
}

impl Subnet6 {
    /// The subnet that this address is in.
    #[inline(always)]
    pub const fn of(address: &Address) -> Self {
        let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, ..] = address.0;
        Self {
            prefix: [
                u32::from_ne_bytes([a0, a1, a2, a3]),
                u32::from_ne_bytes([b0, b1, b2, b3]),
                u32::from_ne_bytes([c0, c1, c2, c3]),
            ],
            reserved: 0,
        }
    }

    /// Whether the address is in the subnet.
    #[inline(always)]
    pub const fn has(&self, address: &Address) -> bool {
        let [own, other] = [self.prefix, Self::of(address).prefix];
        own[0] == other[0] && own[1] == other[1] && own[2] == other[2]
    }
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flag {
    /// The address is that of the network's bridge on this node and no task's. Tasks here may send
    /// to it.
    pub const BRIDGE: u16 = 1;
}

impl Endpoint {
    /// Network and backend id of the sender, and the receiver, of [`Link::reply_words`].
    #[inline(always)]
    pub const fn from_reply_words([network, id, ifindex, m0, m1]: [u32; 5]) -> ((u32, u32), Self) {
        let mac = mac_of([m0, m1]);
        ((network, id), Self { node: 0, ifindex, mac, flags: 0, backend: 0, reserved: 0 })
    }

    /// Whether the address is on this node: a task's, or that of the network's bridge.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.node == 0
    }

    /// Whether a task of this node has the address and its veth is known.
    #[inline(always)]
    pub const fn is_connected(&self) -> bool {
        self.node == 0 && self.ifindex != 0
    }
}

abi_struct! {
    /// Key of [`super::names::ISOLATED`] after its prefix length, which includes the 96 bits of the
    /// v4-mapped prefix for IPv4: addresses to which tasks must not send by their veth on `mesh`,
    /// or an exception to a wider prefix.
    pub struct IsolatedKey [16] {
        /// The prefix, as in [`super::Address`].
        pub network: [u8; 16],
    }
}

impl IsolatedKey {
    /// Prefix length of a single address.
    pub const BITS: u32 = 8 * size_of::<Self>() as u32;
}

/// Value of [`super::names::ISOLATED`] for addresses to which tasks may send although they are in a
/// wider prefix of isolated addresses.
pub const REACHABLE: u32 = 0;
/// Value of [`super::names::ISOLATED`] for addresses to which tasks must not send.
pub const ISOLATED: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_over_comes_back() {
        let mac = Mac([2, 66, 10, 0, 5, 7]);
        let link = Link { network: 7, address: 0x0a00_0507, mac, backend: 19, ..Link::default() };
        assert_eq!(Link::from_words(link.words()), link);
        let receiver = Endpoint { ifindex: 12, mac: Mac([2, 66, 10, 0, 5, 8]), ..Endpoint::default() };
        assert_eq!(Endpoint::from_reply_words(link.reply_words(&receiver)), ((7, 19), receiver));
    }

    #[test]
    fn a_subnet_has_the_addresses_that_begin_as_it_does() {
        let of = |text: &str| Address::from(text.parse::<core::net::IpAddr>().expect("an address"));
        let subnet = Subnet6::of(&of("fd00:55::"));
        assert!(subnet.has(&of("fd00:55::a00:507")) && subnet.has(&of("fd00:55::")));
        for foreign in ["fd00:55::1:a00:507", "fd00:55:0:1::a00:507", "fc00:55::a00:507", "10.0.5.7"] {
            assert!(!subnet.has(&of(foreign)), "{foreign}");
        }
    }

    #[test]
    fn broadcasts_and_multicasts_stay_on_the_bridge() {
        let word = u32::from_ne_bytes;
        let link = Link { subnet: word([10, 0, 5, 0]), mask: word([255, 255, 255, 0]), ..Link::default() };
        for octets in [[255; 4], [10, 0, 5, 255], [224, 0, 0, 251], [239, 1, 2, 3]] {
            assert!(link.is_broadcast(word(octets)), "{octets:?}");
        }
        for octets in [[10, 0, 5, 254], [10, 0, 6, 255], [240, 0, 0, 1], [223, 255, 255, 255]] {
            assert!(!link.is_broadcast(word(octets)), "{octets:?}");
        }
    }
}
