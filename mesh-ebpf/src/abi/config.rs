//! Settings of the node that the programs run on: one array entry, which may be rewritten at any
//! time.

use super::layout::abi_struct;
use super::{Address, Be16};

abi_struct! {
    /// Entry 0 of [`super::names::CONFIG`]. While it is all zeros, as after loading, every program
    /// passes every packet to the host stack.
    pub struct Config [48] {
        /// This node's address towards other nodes: source of the tunnel packets that it sends, and
        /// the only destination of those that it accepts. Its address index is 0.
        pub address: Address,
        /// ifindex of the kernel's VXLAN device.
        pub tunnel_ifindex: u32,
        /// UDP destination port of tunnel packets.
        pub tunnel_port_be: Be16,
        /// Largest TCP segment (MSS) whose packet still fits the tunnel: uplink MTU − 50 − 40. 0
        /// turns MSS clamping off.
        pub tunnel_mss: u16,
        /// Largest IP packet, in bytes, that fits the tunnel: uplink MTU − 50. XDP leaves larger
        /// ones to TC.
        pub tunnel_mtu: u32,
        /// ifindex of the uplink by which this node answers clients of other nodes directly
        /// ([`super::Mode::Dsr`]). 0: it answers them through the tunnel.
        pub uplink_ifindex: u32,
        /// The low 32 bits of the generation of the newest mesh table that changed a map. Only the
        /// agent reads it.
        pub generation: u32,
        /// SYNs a second for which each CPU creates flows. It balances SYNs beyond that rate
        /// without a flow: see [`crate::guard`]. 0: no limit.
        pub syn_guard_rate: u32,
        /// ifindex of the device that encrypts packets of encrypted networks. 0: there is none, and
        /// they are dropped.
        pub encryption_ifindex: u32,
        /// Largest IP packet, in bytes, of an encrypted network that fits the tunnel once it is
        /// encrypted. 0: as `tunnel_mtu`.
        pub encrypted_mtu: u32,
    }
}
