//! A fluent builder of TCP and UDP packets of either IP version, complete and with correct
//! checksums.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::vec::Vec;

use crate::abi::Address;
use crate::csum;
use crate::parse::tcp::Flags;
use crate::parse::vxlan::{self, OVERHEAD, Vni};
use crate::parse::{eth, ipv4};

/// The octets of an IPv4 address in dotted form.
///
/// # Panics
/// If it is no IPv4 address: test data is wrong.
pub fn v4(address: &str) -> [u8; 4] {
    address.parse::<Ipv4Addr>().expect("IPv4 address in test data").octets()
}

/// Builds a TCP packet, or a UDP packet, see [`TcpBuilder::udp`].
#[must_use]
#[derive(Clone, Debug)]
pub struct TcpBuilder {
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    source: SocketAddr,
    destination: SocketAddr,
    ttl: u8,
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
    is_udp: bool,
    has_checksum: bool,
    may_fragment: bool,
}

impl TcpBuilder {
    /// A packet from `source` to `destination`, both `address:port`.
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
            is_udp: false,
            has_checksum: true,
            may_fragment: false,
        }
    }

    /// Makes it a UDP datagram; TCP's own fields are ignored.
    pub const fn udp(mut self) -> Self {
        self.is_udp = true;
        self
    }

    /// Leaves the UDP checksum 0, which means "none".
    pub const fn without_checksum(mut self) -> Self {
        self.has_checksum = false;
        self
    }

    /// Clears IPv4's don't-fragment flag.
    pub const fn may_fragment(mut self) -> Self {
        self.may_fragment = true;
        self
    }

    /// Makes it a client's first SYN.
    pub fn syn(mut self) -> Self {
        self.acknowledged = 0;
        self.flags(Flags::SYN)
    }

    /// Sets the control bits to these.
    pub const fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// Sets sequence and acknowledgement number.
    pub const fn numbers(mut self, sequence: u32, acknowledged: u32) -> Self {
        self.sequence = sequence;
        self.acknowledged = acknowledged;
        self
    }

    /// Makes it a RST that answers a packet of the connection, with these numbers.
    pub const fn answer(mut self, flags: u8, sequence: u32, acknowledged: u32) -> Self {
        self.window = 0;
        self.flags(flags).numbers(sequence, acknowledged)
    }

    /// Sets source and destination MAC address.
    pub const fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        self.source_mac = source;
        self.destination_mac = destination;
        self
    }

    /// Sets the TTL or hop limit.
    pub const fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Adds the MSS option.
    pub fn mss(self, mss: u16) -> Self {
        let [high, low] = mss.to_be_bytes();
        self.options(&[2, 4, high, low])
    }

    /// Adds options; they are padded to four bytes when the packet is built.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options.extend_from_slice(options);
        self
    }

    /// Adds payload.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload.extend_from_slice(payload);
        self
    }

    /// Builds the frame.
    ///
    /// # Panics
    /// If it is longer than IP allows: test data is wrong.
    pub fn build(&self) -> Vec<u8> {
        let (mut transport, checksum_at) = if self.is_udp { self.datagram() } else { self.segment() };
        let protocol = if self.is_udp { 17 } else { 6 };
        let len = u16::try_from(transport.len()).expect("payload in test data");
        let ends = (Address::from(self.source.ip()), Address::from(self.destination.ip()));
        if self.has_checksum {
            let pseudo = csum::pseudo_header(&ends.0, &ends.1, protocol, u32::from(len));
            let checksum = match checksum_of(&transport, pseudo) {
                [0, 0] if self.is_udp => [0xff; 2],
                checksum => checksum,
            };
            transport[checksum_at..checksum_at + 2].copy_from_slice(&checksum);
        }
        let mut frame = Vec::new();
        frame.extend_from_slice(&self.destination_mac);
        frame.extend_from_slice(&self.source_mac);
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend_from_slice(&eth::IPV4_BE);
                let flags = if self.may_fragment { 0 } else { 0x40 };
                let ends = (source.octets(), destination.octets());
                frame.extend_from_slice(&ipv4_header(20 + len, flags, protocol, self.ttl, ends.0, ends.1));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend_from_slice(&eth::IPV6_BE);
                frame.extend_from_slice(&ipv6_header(len, protocol, self.ttl, source, destination));
            }
            _ => panic!("two IP versions in one packet of test data"),
        }
        frame.extend_from_slice(&transport);
        frame
    }

    /// TCP header and payload, and the offset of the checksum.
    fn segment(&self) -> (Vec<u8>, usize) {
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
        (tcp, 16)
    }

    /// UDP header and payload, and the offset of the checksum.
    fn datagram(&self) -> (Vec<u8>, usize) {
        let len = u16::try_from(8 + self.payload.len()).expect("payload in test data");
        let mut udp = Vec::new();
        udp.extend_from_slice(&self.source.port().to_be_bytes());
        udp.extend_from_slice(&self.destination.port().to_be_bytes());
        udp.extend_from_slice(&len.to_be_bytes());
        udp.extend_from_slice(&[0; 2]);
        udp.extend_from_slice(&self.payload);
        (udp, 6)
    }
}

/// The ICMP error of this type and code that answers `frame`, from the address that it was sent to;
/// `rest` are the four bytes after the checksum.
pub fn icmp_error(frame: &[u8], kind: u8, code: u8, rest: [u8; 4]) -> Vec<u8> {
    IcmpBuilder::new(frame, kind, code).rest(rest).build()
}

/// Builds an ICMP error.
#[must_use]
#[derive(Clone, Debug)]
pub struct IcmpBuilder {
    frame: Vec<u8>,
    head: [u8; 8],
    source: Option<IpAddr>,
    ttl: u8,
    quoted: usize,
}

impl IcmpBuilder {
    /// An error about `frame`, of this type and code, from the frame's destination to its source.
    pub fn new(frame: &[u8], kind: u8, code: u8) -> Self {
        Self { frame: frame.to_vec(), head: [kind, code, 0, 0, 0, 0, 0, 0], source: None, ttl: 64, quoted: 8 }
    }

    /// Sets the four bytes after the checksum.
    pub fn rest(mut self, rest: [u8; 4]) -> Self {
        self.head[4..].copy_from_slice(&rest);
        self
    }

    /// Sets the error's source address.
    ///
    /// # Panics
    /// If it is no address: test data is wrong.
    pub fn from(mut self, source: &str) -> Self {
        self.source = Some(source.parse().expect("address in test data"));
        self
    }

    /// Sets the TTL or hop limit.
    pub const fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets how many bytes are quoted after the IP header, if the frame has as many.
    pub const fn quoting(mut self, bytes: usize) -> Self {
        self.quoted = bytes;
        self
    }

    /// Builds the frame, between the same MAC addresses as the one that it is about.
    ///
    /// # Panics
    /// If that one is no IP packet: test data is wrong.
    pub fn build(&self) -> Vec<u8> {
        let frame = &self.frame;
        let is_v6 = frame[12..14] == eth::IPV6_BE;
        let end = (14 + if is_v6 { 40 } else { 20 } + self.quoted).min(frame.len());
        let mut icmp = self.head.to_vec();
        icmp.extend_from_slice(&frame[14..end]);
        let len = u16::try_from(icmp.len()).expect("short");
        let (source, destination) = if is_v6 {
            let at = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).expect("16 bytes"));
            (at(38), at(22))
        } else {
            let at = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).expect("4 bytes"));
            (at(30), at(26))
        };
        let ends = (self.source.unwrap_or(source), destination);
        let mut answer = Vec::new();
        answer.extend_from_slice(&frame[6..12]);
        answer.extend_from_slice(&frame[..6]);
        answer.extend_from_slice(&frame[12..14]);
        let pseudo = match ends {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                answer.extend_from_slice(&ipv6_header(len, 58, self.ttl, source, destination));
                csum::pseudo_header(&source.into(), &destination.into(), 58, u32::from(len))
            }
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let ends = (source.octets(), destination.octets());
                answer.extend_from_slice(&ipv4_header(20 + len, 0x40, 1, self.ttl, ends.0, ends.1));
                0
            }
            _ => panic!("two IP versions in one packet of test data"),
        };
        let checksum = checksum_of(&icmp, pseudo);
        icmp[2..4].copy_from_slice(&checksum);
        answer.extend_from_slice(&icmp);
        answer
    }
}

/// Builds an IPv6 header.
fn ipv6_header(payload_len: u16, protocol: u8, ttl: u8, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let mut header = Vec::from([0x60, 0, 0, 0]);
    header.extend_from_slice(&payload_len.to_be_bytes());
    header.extend_from_slice(&[protocol, ttl]);
    header.extend_from_slice(&source.octets());
    header.extend_from_slice(&destination.octets());
    header
}

/// Builds an IPv4 header with its checksum.
fn ipv4_header(
    total_len: u16,
    flags: u8,
    protocol: u8,
    ttl: u8,
    source: [u8; 4],
    destination: [u8; 4],
) -> Vec<u8> {
    let mut header = Vec::from([0x45, 0]);
    header.extend_from_slice(&total_len.to_be_bytes());
    header.extend_from_slice(&[0, 0, flags, 0, ttl, protocol, 0, 0]);
    header.extend_from_slice(&source);
    header.extend_from_slice(&destination);
    let checksum = checksum_of(&header, 0);
    header[ipv4::CHECKSUM..ipv4::CHECKSUM + 2].copy_from_slice(&checksum);
    header
}

/// The checksum over bytes, added to the sum `start`.
fn checksum_of(bytes: &[u8], start: u32) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let total = bytes.chunks(2).fold(start, |total, pair| total + word(pair));
    (!csum::fold(total)).to_be_bytes()
}

/// `frame`, a VXLAN packet, with this cookie.
#[must_use]
pub fn bearing(mut frame: Vec<u8>, cookie: u32) -> Vec<u8> {
    const HEADER: usize = OVERHEAD - vxlan::LEN;
    let [c0, c1, c2, c3] = cookie.to_be_bytes();
    frame[HEADER + 1..HEADER + 4].copy_from_slice(&[c0, c1, c2]);
    frame[HEADER + 7] = c3;
    frame
}

/// `frame` without the bytes of a cookie, which may change in a VXLAN packet that is left to the
/// device or comes from it.
pub fn without_cookie(frame: &[u8]) -> Vec<u8> {
    const HEADER: usize = OVERHEAD - vxlan::LEN;
    let is_cookie = |at: usize| (HEADER..HEADER + 4).contains(&at) || at == HEADER + 7;
    frame.iter().enumerate().filter(|(at, _)| !is_cookie(*at)).map(|(_, byte)| *byte).collect()
}

/// `inner` in a VXLAN packet to UDP port 4799, from the outer port `source_port`.
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
    frame.extend_from_slice(&ipv4_header(20 + udp_len, 0x40, 17, 64, v4(source), v4(destination)));
    frame.extend_from_slice(&source_port.to_be_bytes());
    frame.extend_from_slice(&4799u16.to_be_bytes());
    frame.extend_from_slice(&udp_len.to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(&vxlan::header(vni, 0));
    frame.extend_from_slice(inner);
    frame
}
