//! What the programs know of the node they run on; one live-updatable array entry.

use super::layout::abi_struct;
use super::{Address, Be16};

abi_struct! {
    /// Key 0 of [`super::names::CONFIG`]. All zeros (as after loading) makes every program pass everything.
    pub struct Config [48] {
        /// This node's address towards other nodes: source and only accepted destination of the tunnel; address index 0.
        pub address: Address,
        /// ifindex of the VXLAN device.
        pub tunnel_ifindex: u32,
        /// UDP destination port of the tunnel.
        pub tunnel_port_be: Be16,
        /// Largest TCP segment (MSS) whose packet still fits the tunnel: uplink MTU − 50 − 40. 0: no clamping.
        pub tunnel_mss: u16,
        /// Largest IP packet, in bytes, that XDP may encapsulate: uplink MTU − 50. Larger ones are left to TC.
        pub tunnel_mtu: u32,
        /// Uplink by which clients are answered directly ([`super::Mode::Dsr`]). 0: they are answered through the tunnel.
        pub uplink_ifindex: u32,
        /// ifindex of the bridge that this node's tasks are on: where tasks of other nodes reach them by their addresses. 0: not yet.
        pub tasks_ifindex: u32,
        /// Generation (its low 32 bits) of the newest table that changed a map. For the agent: the programs ignore it.
        pub generation: u32,
        /// SYNs a second for which each CPU remembers a flow; what comes beyond is balanced without: see [`crate::guard`]. 0: no limit.
        pub syn_guard_rate: u32,
        /// Zero.
        pub reserved: u32,
    }
}
