//! Sends SYNs from unused addresses, as fast as one thread can.

use std::net::SocketAddrV4;
use std::ops::Range;

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};

/// The source addresses are in 198.18.0.0/15, the network for benchmarks (RFC 2544).
const SOURCES: u32 = 0xc612_0000;

/// Sends the SYNs with these numbers to `server` from the thread's namespace, each from another
/// source.
///
/// # Errors
/// A raw socket can't be opened or written to.
pub(crate) fn send(server: SocketAddrV4, numbers: Range<u32>) -> Result<()> {
    let raw =
        socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).context("open a raw socket")?;
    for number in numbers {
        // A full period over 17 bits of address and 16 of port.
        let mixed = number.wrapping_mul(0x9e37_79b1);
        let source = (SOURCES | mixed >> 15).to_be_bytes();
        let port = u16::try_from(1024 + (mixed & 0x7fff)).unwrap_or(1024);
        let packet = syn(source, port, server, number);
        loop {
            match sendto(&raw, &packet, SendFlags::empty(), &server) {
                Ok(_) => break,
                // The device's queue is full, which limits the rate.
                Err(rustix::io::Errno::NOBUFS) => std::thread::yield_now(),
                Err(error) => return Err(error).context("send a SYN"),
            }
        }
    }
    Ok(())
}

/// An IPv4 SYN. The kernel fills in the length, the identification and the header checksum
/// (raw(7)).
fn syn(source: [u8; 4], port: u16, server: SocketAddrV4, sequence: u32) -> [u8; 40] {
    let mut packet = [0; 40];
    packet[0] = 0x45;
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&server.ip().octets());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&server.port().to_be_bytes());
    packet[24..28].copy_from_slice(&sequence.to_be_bytes());
    packet[32] = 5 << 4;
    packet[33] = 2;
    packet[34..36].copy_from_slice(&64240_u16.to_be_bytes());
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair[1]);
    let mut sum: u32 = packet[12..].chunks(2).map(word).sum::<u32>() + 6 + 20;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = u16::try_from(sum).map_or(0, |sum| !sum);
    packet[36..38].copy_from_slice(&checksum.to_be_bytes());
    packet
}
