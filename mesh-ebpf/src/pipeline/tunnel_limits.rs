//! The size of packets that fit the tunnel to other nodes.

use crate::abi::Config;
use crate::packet::Packet;
use crate::parse::Segment;
use crate::parse::vxlan::{OVERHEAD, Vni};

/// The largest packets that fit the tunnel to other nodes.
#[derive(Clone, Copy)]
pub(super) struct TunnelLimits {
    /// Largest IP packet in bytes.
    pub(super) mtu: u32,
    /// Largest TCP segment (MSS) over IPv4, in bytes; 0: MSS clamping is off.
    pub(super) mss: u16,
}

impl TunnelLimits {
    /// Of packets to and from published ports.
    #[inline(always)]
    pub(super) fn of_ports(config: &Config) -> Self {
        Self { mtu: config.tunnel_mtu, mss: config.tunnel_mss }
    }

    /// Of packets between tasks on a network.
    #[inline(always)]
    pub(super) fn of_network(config: &Config, network: u32) -> Self {
        if !Vni::network(network).is_encrypted() || config.encrypted_mtu == 0 {
            return Self::of_ports(config);
        }
        let longer = config.tunnel_mtu.saturating_sub(config.encrypted_mtu);
        Self { mtu: config.encrypted_mtu, mss: config.tunnel_mss.saturating_sub(longer as u16) }
    }
}

/// Whether the packet exceeds the tunnel's MTU and must not be fragmented. If it may be fragmented,
/// the VXLAN device fragments its outer packets.
#[inline(always)]
pub(super) fn is_too_big<P: Packet>(packet: &P, limits: TunnelLimits, segment: &Segment) -> bool {
    segment.ip.total_len > limits.mtu && segment.ip.dont_fragment && exceeds(packet, limits, segment)
}

/// Whether the packet exceeds the tunnel's MTU. For a packet that stands for several (segmentation
/// offload) the size of those counts.
#[inline(always)]
pub(super) fn exceeds<P: Packet>(packet: &P, limits: TunnelLimits, segment: &Segment) -> bool {
    match packet.segment_size() {
        0 => segment.ip.total_len > limits.mtu,
        size => segment.headers_len() + size > limits.mtu,
    }
}

const _: () = assert!(OVERHEAD == 50, "Config::tunnel_mtu and the MTU of tasks assume 50 bytes");
