//! Runs a hook's program, and those that it tail-calls, over a frame in memory.

use super::{Frame, HostTables};
use crate::abi::Edge;
use crate::parse::fragment::FragmentHeader;
use crate::parse::icmp::Error;
use crate::pipeline::{self, Origin};
use crate::verdict::{Fate, Verdict};

/// The hook at which a packet comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP on the uplink.
    Xdp,
    /// TC ingress of the uplink.
    Uplink,
    /// TC ingress of the VXLAN device.
    Tunnel(Origin),
    /// TC ingress of a task's veth.
    Task,
    /// TC ingress of a task's veth on an overlay network.
    Overlay,
    /// TC ingress of the encryption device.
    Decrypted,
    /// TC egress of the uplink.
    Egress {
        /// Whether the VXLAN device has sent the packet.
        is_devices: bool,
    },
    /// TC egress of the uplink, for a packet that came in by another interface.
    Forwarded,
}

impl Hook {
    /// Runs `packet` at this hook; returns the verdict.
    pub fn run(self, packet: &mut Frame, tables: &HostTables) -> Verdict {
        let outer = pipeline::outer_origin(packet);
        let mut fate = match self {
            Self::Xdp => pipeline::xdp(packet, tables),
            Self::Uplink => pipeline::uplink(packet, tables),
            Self::Tunnel(origin) => pipeline::tunnel(packet, tables, origin),
            Self::Task => pipeline::task(packet, tables),
            Self::Overlay => pipeline::overlay(packet, tables),
            Self::Decrypted => pipeline::decrypted(packet, tables, outer),
            Self::Forwarded => {
                pipeline::forwarded(packet, tables);
                Fate::PASS
            }
            Self::Egress { is_devices } => {
                packet.is_marked = is_devices;
                pipeline::egress(packet, tables);
                Fate::PASS
            }
        };
        loop {
            fate = match fate.verdict() {
                Verdict::Continue(edge) => self.run_edge(edge, packet, tables, outer),
                Verdict::Answer(answer) => {
                    pipeline::refuse(packet, tables, &answer, &mut FragmentHeader::default())
                }
                verdict => return verdict,
            };
        }
    }

    /// Runs a program that another one has tail-called; `outer` is where the packet came from by
    /// its outer headers, which may be gone.
    fn run_edge(self, edge: Edge, packet: &mut Frame, tables: &HostTables, outer: Origin) -> Fate {
        let (error, fragment) = (&mut Error::default(), &mut FragmentHeader::default());
        match (edge, self) {
            (Edge::UplinkError, Self::Uplink) => pipeline::uplink_error(packet, tables, error),
            (Edge::TunnelError, Self::Tunnel(origin)) => {
                pipeline::tunnel_error(packet, tables, origin, error)
            }
            (Edge::TaskError, Self::Task) => pipeline::task_error(packet, tables, error),
            (Edge::Decapsulate, Self::Uplink) => {
                let origin = pipeline::outer_origin(packet);
                pipeline::decapsulate(packet, tables, origin)
            }
            (Edge::NetworkDecapsulate, Self::Uplink) => {
                let origin = pipeline::outer_origin(packet);
                pipeline::network_decapsulate(packet, tables, origin)
            }
            (Edge::Encrypt, Self::Overlay) => pipeline::encrypt(packet, tables),
            (Edge::DecryptedError, Self::Decrypted) => {
                pipeline::virtual_tunnel_error(packet, tables, outer, error)
            }
            (Edge::DecryptedFragment, Self::Decrypted) => {
                pipeline::virtual_tunnel_fragment(packet, tables, outer, fragment)
            }
            (Edge::Overlay6, Self::Overlay) => pipeline::overlay6(packet, tables),
            (Edge::NetworkTunnel6, Self::Tunnel(origin)) => pipeline::network_tunnel6(packet, tables, origin),
            (Edge::VirtualIp, Self::Overlay) => pipeline::virtual_ip(packet, tables),
            (Edge::VirtualReply, Self::Overlay) => pipeline::virtual_reply(packet, tables),
            (Edge::VirtualReplyError, Self::Overlay) => pipeline::virtual_reply_error(packet, tables, error),
            (Edge::VirtualTunnelError, Self::Tunnel(origin)) => {
                pipeline::virtual_tunnel_error(packet, tables, origin, error)
            }
            (Edge::VirtualError, Self::Overlay) => pipeline::virtual_error(packet, tables, error),
            (Edge::VirtualFragment, Self::Overlay) => pipeline::virtual_fragment(packet, tables, fragment),
            (Edge::VirtualReplyFragment, Self::Overlay) => {
                pipeline::virtual_reply_fragment(packet, tables, fragment)
            }
            (Edge::VirtualTunnelFragment, Self::Tunnel(origin)) => {
                pipeline::virtual_tunnel_fragment(packet, tables, origin, fragment)
            }
            (Edge::VirtualTunnel, Self::Tunnel(origin)) => pipeline::virtual_tunnel(packet, tables, origin),
            (Edge::UplinkFragment, Self::Uplink) => pipeline::uplink_fragment(packet, tables, fragment),
            (Edge::TunnelFragment, Self::Tunnel(origin)) => {
                pipeline::tunnel_fragment(packet, tables, origin, fragment)
            }
            (Edge::TaskFragment, Self::Task) => pipeline::task_fragment(packet, tables, fragment),
            _ => panic!("{self:?} does not go on in {edge:?}"),
        }
    }
}
