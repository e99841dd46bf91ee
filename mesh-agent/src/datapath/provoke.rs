//! Sends a bare ACK to clients whose flow entry was evicted, so that they get a RST instead of
//! waiting for data in silence.
//!
//! A client accepts a RST only with the right sequence number, which nobody here knows. But it
//! answers any segment outside of its window with an ACK (RFC 9293, 3.10.7.4), and the programs
//! answer that one with a RST, as they have no flow entry for it.
//!
//! Invariants: best effort: a client that is not reached gets the RST at its next packet. Nothing
//! is sent but bare ACKs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mesh_ebpf::abi::protocol::TCP;
use socket2::{Domain, Protocol, Socket, Type};
use tracing::debug;

/// The most ACKs of one sweep, so that a great loss makes no storm; the other clients get the RST
/// at their next packets.
const AT_ONCE: usize = 16_384;

const TCP_HEADER: usize = 20;
const ACK: u8 = 1 << 4;

/// A connection whose flow entry was evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forgotten {
    /// The client's address.
    pub(super) client: SocketAddr,
    /// The published address to which the client connected.
    pub(super) vip: SocketAddr,
}

/// Sends each client an ACK outside of its window.
pub(super) fn provoke(forgotten: &[Forgotten]) {
    let (mut ipv4, mut ipv6) = (None, None);
    for connection in forgotten.iter().take(AT_ONCE) {
        let sent = match (connection.client.ip(), connection.vip.ip()) {
            (IpAddr::V4(client), IpAddr::V4(vip)) => {
                send(&mut ipv4, Domain::IPV4, connection.client, &packet4(connection, client, vip))
            }
            (IpAddr::V6(client), IpAddr::V6(vip)) => {
                send(&mut ipv6, Domain::IPV6, connection.client, &packet6(connection, client, vip))
            }
            _ => continue,
        };
        if let Err(error) = sent {
            debug!(client = %connection.client, error = mesh_runtime::error_chain(&error), "can't send a client the ACK that shows it that its connection is lost");
        }
    }
}

/// Sends a whole IP packet; the socket is opened on first use.
fn send(socket: &mut Option<Socket>, domain: Domain, client: SocketAddr, packet: &[u8]) -> io::Result<()> {
    let open = if let Some(open) = socket {
        open
    } else {
        // A raw socket of this protocol takes packets with their IP headers.
        let opened =
            Socket::new(domain, Type::from(libc::SOCK_RAW), Some(Protocol::from(libc::IPPROTO_RAW)))?;
        opened.set_nonblocking(true)?;
        socket.insert(opened)
    };
    // Raw sockets require port 0.
    open.send_to(packet, &SocketAddr::new(client.ip(), 0).into()).map(drop)
}

/// An IPv4 packet; the kernel fills in length, identification and checksum of the header.
fn packet4(connection: &Forgotten, client: Ipv4Addr, vip: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, TCP, 0, 0];
    packet.extend(vip.octets());
    packet.extend(client.octets());
    let pseudo = [&vip.octets()[..], &client.octets()].concat();
    packet.extend(segment(connection, &pseudo));
    packet
}

fn packet6(connection: &Forgotten, client: Ipv6Addr, vip: Ipv6Addr) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 20, TCP, 64];
    packet.extend(vip.octets());
    packet.extend(client.octets());
    let pseudo = [&vip.octets()[..], &client.octets()].concat();
    packet.extend(segment(connection, &pseudo));
    packet
}

/// A bare ACK with random numbers; `addresses` are those of the pseudo-header.
fn segment(connection: &Forgotten, addresses: &[u8]) -> [u8; TCP_HEADER] {
    let mut segment = [0; TCP_HEADER];
    segment[0..2].copy_from_slice(&connection.vip.port().to_be_bytes());
    segment[2..4].copy_from_slice(&connection.client.port().to_be_bytes());
    segment[4..8].copy_from_slice(&rand::random::<[u8; 4]>());
    segment[8..12].copy_from_slice(&rand::random::<[u8; 4]>());
    segment[12] = 5 << 4;
    segment[13] = ACK;
    let pseudo = [0, TCP, 0, 20];
    let words = addresses.chunks_exact(2).chain(pseudo.chunks_exact(2)).chain(segment.chunks_exact(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let check = !u16::try_from(sum).unwrap_or_default();
    segment[16..18].copy_from_slice(&check.to_be_bytes());
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_add_up() {
        let client: SocketAddr = "192.0.2.7:5000".parse().unwrap();
        let vip: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let packet =
            packet4(&Forgotten { client, vip }, Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(packet.len(), 40);
        assert_eq!(packet[33], ACK, "nothing but ACK");
        let covered = [&packet[12..], &[0, TCP, 0, 20]].concat();
        let mut sum: u32 = covered.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff, "the checksum makes all ones");
    }
}
