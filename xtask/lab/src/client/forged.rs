//! Forged tunnel packets, as an outsider can make them who sees none of the members' traffic: from
//! a member's address, to a member.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};

/// UDP port of the tunnel.
const TUNNEL_PORT: u16 = 4799;
/// VNI of packets between tasks, by their own addresses.
pub const VNI_TASKS: u32 = 1 << 21;
/// VNI that asks the task's node to reply to the client directly.
pub const VNI_DIRECT: u32 = 1 << 22;
/// VNI of packets on the way back to a client.
pub const VNI_REPLY: u32 = 1 << 23;

/// A forged packet: a SYN inside the tunnel's headers.
#[derive(Debug, Clone, Copy)]
pub struct Forged {
    /// The member whose address is the source.
    pub member: Ipv4Addr,
    /// The member that gets it.
    pub node: Ipv4Addr,
    /// The VNI of the tunnel's header.
    pub vni: u32,
    /// The guessed cookie; 0: none.
    pub cookie: u32,
    /// The source of the SYN.
    pub source: SocketAddrV4,
    /// The destination of the SYN.
    pub destination: SocketAddrV4,
}

impl Forged {
    /// The packet, from the outer IPv4 header on.
    pub fn bytes(&self) -> Vec<u8> {
        let inner = self.inner();
        let udp_length = 8 + 8 + inner.len();
        let mut packet = ip_header(udp_length, 17, self.member, self.node);
        let [c0, c1, c2, c3] = self.cookie.to_be_bytes();
        let [_, v0, v1, v2] = self.vni.to_be_bytes();
        packet.extend(50_000_u16.to_be_bytes());
        packet.extend(TUNNEL_PORT.to_be_bytes());
        packet.extend(u16::try_from(udp_length).unwrap_or(u16::MAX).to_be_bytes());
        packet.extend([0, 0, 0x08, c0, c1, c2, v0, v1, v2, c3]);
        packet.extend(inner);
        packet
    }

    /// The inner frame.
    fn inner(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend(ip_header(20, 6, *self.source.ip(), *self.destination.ip()));
        let mut tcp = Vec::with_capacity(20);
        tcp.extend(self.source.port().to_be_bytes());
        tcp.extend(self.destination.port().to_be_bytes());
        tcp.extend([0, 0, 3, 232, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
        let pseudo = [self.source.ip().octets(), self.destination.ip().octets()].concat();
        let checksum = checksum([&pseudo[..], &[0, 6, 0, 20], &tcp].concat().as_slice());
        tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(tcp);
        frame
    }
}

/// A raw socket that sends packets with any source address.
#[derive(Debug)]
pub struct Forger {
    socket: OwnedFd,
}

impl Forger {
    /// Opens a raw socket in the namespace of the calling thread. Needs root.
    ///
    /// # Errors
    /// The system refuses it.
    pub fn open() -> Result<Self> {
        let socket =
            socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).context("a raw socket")?;
        Ok(Self { socket })
    }

    /// Sends one packet.
    ///
    /// # Errors
    /// The system refuses it.
    pub fn send(&self, forged: &Forged) -> Result<()> {
        let to = SocketAddr::new(forged.node.into(), 0);
        sendto(&self.socket, &forged.bytes(), SendFlags::empty(), &to)
            .context("send a forged packet")
            .map(drop)
    }
}

fn ip_header(payload: usize, protocol: u8, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let [l0, l1] = u16::try_from(20 + payload).unwrap_or(u16::MAX).to_be_bytes();
    let mut header = vec![0x45, 0, l0, l1, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    header.extend(source.octets());
    header.extend(destination.octets());
    let checksum = checksum(&header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default());
    let sum: u32 = bytes.chunks(2).map(word).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forged_packet_is_well_formed() {
        let forged = Forged {
            member: Ipv4Addr::new(10, 77, 0, 12),
            node: Ipv4Addr::new(10, 77, 0, 11),
            vni: VNI_TASKS,
            cookie: 0x0102_0304,
            source: "203.0.113.5:40000".parse().expect("an address"),
            destination: "10.128.0.2:80".parse().expect("an address"),
        };
        let bytes = forged.bytes();
        assert_eq!(checksum(&bytes[..20]), 0, "outer header");
        assert_eq!(checksum(&bytes[50..70]), 0, "inner header");
        assert_eq!(bytes[28..36], [8, 1, 2, 3, 0x20, 0, 0, 4]);
        assert_eq!(bytes.len(), usize::from(u16::from_be_bytes([bytes[2], bytes[3]])));
    }
}
