//! What is to become of a packet. The pipeline decides; the hook's program carries it out.

use crate::abi::DropReason;
use crate::parse::vxlan::Vni;

/// The fate of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next program, then the host stack.
    Pass,
    /// Nowhere; already counted.
    Drop(DropReason),
    /// Back to its sender as a RST or ICMP error. A step on the way: the pipeline's last one makes a drop or an answer of it.
    Refuse(DropReason),
    /// Out of the interface it came in by; the frame is complete.
    Bounce,
    /// Out of another interface; the frame is complete.
    Emit {
        /// The interface.
        ifindex: u32,
    },
    /// Out of an interface, the destination looked up there by the kernel, which puts the Ethernet header on.
    Route {
        /// The interface.
        ifindex: u32,
    },
    /// Into the network namespace of a task of this node; the frame is complete.
    Deliver {
        /// The task's host-side veth.
        ifindex: u32,
    },
    /// Through the kernel's VXLAN device, which puts the outer headers on.
    Tunnel(Tunnel),
}

/// What the VXLAN device needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The VXLAN device.
    pub ifindex: u32,
    /// This node's IPv4 address.
    pub local: [u8; 4],
    /// The other node's.
    pub peer: [u8; 4],
    /// What the other node is told.
    pub vni: Vni,
}
