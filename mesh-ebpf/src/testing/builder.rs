//! A fluent builder of TCP packets, whole and with right checksums.

use core::net::{Ipv4Addr, SocketAddrV4};
use std::vec::Vec;

use crate::csum;
use crate::parse::tcp::Flags;
use crate::parse::vxlan::Vni;
use crate::parse::{eth, ipv4};

/// The octets of an address in dotted form.
///
/// # Panics
/// If it is none: test data is wrong.
pub fn v4(address: &str) -> [u8; 4] {
    address.parse::<Ipv4Addr>().expect("IPv4 address in test data").octets()
}

/// A TCP packet to be.
#[must_use]
#[derive(Clone, Debug)]
pub struct TcpBuilder {
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    source: SocketAddrV4,
    destination: SocketAddrV4,
    ttl: u8,
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl TcpBuilder {
    /// From `source` to `destination`, both `address:port`.
    ///
    /// # Panics
    /// If one is malformed: test data is wrong.
    pub fn new(source: &str, destination: &str) -> Self {
        Self {
            source_mac: [2, 0, 0, 0, 0, 0xc1],
            destination_mac: [2, 0, 0, 0, 0, 0x0a],
            source: source.parse().expect("source in test data"),
            destination: destination.parse().expect("destination in test data"),
            ttl: 64,
            flags: Flags::ACK,
            sequence: 1000,
            acknowledged: 5000,
            window: 64240,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// A first SYN.
    pub fn syn(mut self) -> Self {
        self.acknowledged = 0;
        self.flags(Flags::SYN)
    }

    /// These control bits, and no others.
    pub const fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// Sequence and acknowledgement number.
    pub const fn numbers(mut self, sequence: u32, acknowledged: u32) -> Self {
        self.sequence = sequence;
        self.acknowledged = acknowledged;
        self
    }

    /// The RST that answers a packet of the connection, with these numbers.
    pub const fn answer(mut self, flags: u8, sequence: u32, acknowledged: u32) -> Self {
        self.window = 0;
        self.flags(flags).numbers(sequence, acknowledged)
    }

    /// Source and destination MAC.
    pub const fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        self.source_mac = source;
        self.destination_mac = destination;
        self
    }

    /// Time to live.
    pub const fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// The MSS option.
    pub fn mss(self, mss: u16) -> Self {
        let [high, low] = mss.to_be_bytes();
        self.options(&[2, 4, high, low])
    }

    /// More options, padded to four bytes when built.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options.extend_from_slice(options);
        self
    }

    /// Data.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload.extend_from_slice(payload);
        self
    }

    /// The frame.
    ///
    /// # Panics
    /// If it is longer than IPv4 allows: test data is wrong.
    pub fn build(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let mut tcp = Vec::new();
        tcp.extend_from_slice(&self.source.port().to_be_bytes());
        tcp.extend_from_slice(&self.destination.port().to_be_bytes());
        tcp.extend_from_slice(&self.sequence.to_be_bytes());
        tcp.extend_from_slice(&self.acknowledged.to_be_bytes());
        let words = u8::try_from(5 + options.len() / 4).expect("TCP options in test data");
        tcp.extend_from_slice(&[words << 4, self.flags]);
        tcp.extend_from_slice(&self.window.to_be_bytes());
        tcp.extend_from_slice(&[0; 4]);
        tcp.extend_from_slice(&options);
        tcp.extend_from_slice(&self.payload);

        let (source, destination) = (self.source.ip().octets(), self.destination.ip().octets());
        let tcp_len = u16::try_from(tcp.len()).expect("payload in test data");
        let pseudo = csum::pseudo_header(&source, &destination, 6, tcp_len);
        let checksum = checksum_of(&tcp, pseudo);
        tcp[16..18].copy_from_slice(&checksum);

        let mut frame = Vec::new();
        frame.extend_from_slice(&self.destination_mac);
        frame.extend_from_slice(&self.source_mac);
        frame.extend_from_slice(&eth::IPV4_BE);
        frame.extend_from_slice(&ipv4_header(20 + tcp_len, 6, self.ttl, source, destination));
        frame.extend_from_slice(&tcp);
        frame
    }
}

/// An IPv4 header with its checksum.
fn ipv4_header(total_len: u16, protocol: u8, ttl: u8, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut header = Vec::from([0x45, 0]);
    header.extend_from_slice(&total_len.to_be_bytes());
    header.extend_from_slice(&[0, 0, 0x40, 0, ttl, protocol, 0, 0]);
    header.extend_from_slice(&source);
    header.extend_from_slice(&destination);
    let checksum = checksum_of(&header, 0);
    header[ipv4::CHECKSUM..ipv4::CHECKSUM + 2].copy_from_slice(&checksum);
    header
}

/// The checksum of bytes, from scratch, added to `start`.
fn checksum_of(bytes: &[u8], start: u32) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let total = bytes.chunks(2).fold(start, |total, pair| total + word(pair));
    (!csum::fold(total)).to_be_bytes()
}

/// `inner` in a VXLAN packet to UDP port 4799, from outer `source_port`.
///
/// # Panics
/// If it is longer than IPv4 allows: test data is wrong.
pub fn in_tunnel(
    macs: ([u8; 6], [u8; 6]),
    source: &str,
    destination: &str,
    source_port: u16,
    vni: Vni,
    inner: &[u8],
) -> Vec<u8> {
    let udp_len = u16::try_from(inner.len() + 16).expect("inner frame in test data");
    let mut frame = Vec::new();
    frame.extend_from_slice(&macs.1);
    frame.extend_from_slice(&macs.0);
    frame.extend_from_slice(&eth::IPV4_BE);
    frame.extend_from_slice(&ipv4_header(20 + udp_len, 17, 64, v4(source), v4(destination)));
    frame.extend_from_slice(&source_port.to_be_bytes());
    frame.extend_from_slice(&4799u16.to_be_bytes());
    frame.extend_from_slice(&udp_len.to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0x08, 0, 0, 0]);
    frame.extend_from_slice(&vni.to_bytes());
    frame.extend_from_slice(inner);
    frame
}
