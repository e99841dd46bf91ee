//! Frames for benchmarks: the packet that a client of a published port, or of a virtual IP, would
//! send, made from a number.
//!
//! Purpose: `bin/bench_gen` sends the frames that [`headers`] makes, millions a second, towards the
//! attached programs. It writes every header of each frame, as the kernel returns a frame's memory
//! with whatever it contained last.
//!
//! [`line()`] serves to measure what the memory access alone costs: it says where in a table of so
//! many cache lines a frame's flow would stand.
//!
//! Left to others: TCP checksums, which nothing on the way to the task checks.

use crate::abi::{Be16, Mac, protocol};
use crate::csum;
use crate::flow_table::{cell_count, homes_for};
use crate::parse::{eth, ipv4, tcp, transport};

/// The number of bytes that [`headers`] makes: Ethernet, IPv4, TCP.
pub const HEADERS_LEN: usize = eth::LEN + ipv4::LEN + tcp::LEN;
/// Length of a frame: the shortest that Ethernet allows, without its checksum.
pub const FRAME_LEN: usize = 60;
/// The number of client addresses, all of 11.0.0.0/8, if the recipe names no client. Each flow has
/// its own; further flows differ in the port.
const CLIENTS: u32 = 1 << 24;
/// The network of the clients' addresses.
const NETWORK: u32 = 11 << 24;
/// The first client port.
const CLIENT_PORT: u16 = 40_000;

/// What the generator sends. The layout is the same in the kernel and in userspace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    /// The number of flows, which repeat; 0: every frame begins another flow.
    pub flows: u32,
    /// The step from one flow to the next, coprime with `flows`, so that flows that follow each
    /// other in time are not neighbours in tables.
    pub stride: u32,
    /// Added to every flow's number, so that each CPU that sends has flows of its own.
    pub offset: u32,
    /// The number of published ports that flows are spread over.
    pub services: u32,
    /// The number of cache lines of the table that [`line()`] addresses.
    pub lines: u32,
    /// ifindex of the interface that the frames leave by.
    pub ifindex: u32,
    /// Where the frames go: IPv4 address of the node under test, or a virtual IP.
    pub node: [u8; 4],
    /// IPv4 address of the only client, whose flows differ in the port, so that there are at most
    /// 65 536 of them; 0.0.0.0: each flow has a client of its own.
    pub client: [u8; 4],
    /// The first published port.
    pub port: u16,
    /// TCP flags of each frame: bits of [`tcp::Flags`].
    pub flags: u16,
    /// MAC address of the node.
    pub node_mac: Mac,
    /// MAC address of the clients: that of their gateway.
    pub client_mac: Mac,
}

// SAFETY: the struct is `repr(C)`, of integers and byte arrays only, and without padding (asserted
// below).
#[cfg(feature = "userspace")]
unsafe impl aya::Pod for Recipe {}

const _: () = assert!(size_of::<Recipe>() == 48, "the recipe has hidden padding");

/// The number of the flow that the frame with this number belongs to.
#[inline(always)]
pub fn flow(recipe: &Recipe, number: u64) -> u32 {
    let flow = if recipe.flows == 0 {
        number as u32
    } else {
        (number.wrapping_mul(u64::from(recipe.stride)) % u64::from(recipe.flows)) as u32
    };
    flow.wrapping_add(recipe.offset)
}

/// The headers of the frame with this number.
#[inline(always)]
pub fn headers(recipe: &Recipe, number: u64) -> [u8; HEADERS_LEN] {
    const TCP: usize = eth::LEN + ipv4::LEN;
    let flow = flow(recipe, number);
    let services = if recipe.services == 0 { 1 } else { recipe.services };
    let (client, nth_of_client) = match recipe.client {
        [0, 0, 0, 0] => ((NETWORK | (flow % CLIENTS)).to_be_bytes(), flow / CLIENTS),
        client => (client, flow),
    };
    let source = Be16::new(CLIENT_PORT.wrapping_add(nth_of_client as u16));
    let destination = Be16::new(recipe.port.wrapping_add((flow % services) as u16));
    let mut bytes = [0; HEADERS_LEN];
    bytes[eth::DESTINATION..eth::SOURCE].copy_from_slice(&recipe.node_mac.0);
    bytes[eth::SOURCE..eth::TYPE].copy_from_slice(&recipe.client_mac.0);
    bytes[eth::TYPE..eth::LEN].copy_from_slice(&eth::IPV4_BE);
    bytes[eth::LEN..TCP].copy_from_slice(&ip_header(&client, &recipe.node));
    bytes[TCP..TCP + 2].copy_from_slice(&source.0);
    bytes[TCP + transport::DESTINATION_PORT..TCP + tcp::SEQUENCE].copy_from_slice(&destination.0);
    bytes[TCP + tcp::DATA_OFFSET] = 0x50;
    bytes[TCP + tcp::FLAGS] = recipe.flags as u8;
    bytes[TCP + tcp::WINDOW] = 0xff;
    bytes
}

/// The most cache lines that [`line()`] is used with: as many as a flow table for 1.25 million
/// flows has.
pub const LINES_MAX: u32 = cell_count(homes_for(1_250_000));

/// The index of the cache line at which the flow of a client's address and port would stand in a
/// table of so many lines. It is spread evenly, and always the same.
#[inline(always)]
pub fn line(client: u32, port: u16, lines: u32) -> u32 {
    // The finalizer of MurmurHash3: inputs that differ in one bit are far apart.
    let mut mixed = u64::from(client) << 16 | u64::from(port);
    mixed = (mixed ^ mixed >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^= mixed >> 33;
    (((mixed >> 32) * u64::from(lines)) >> 32) as u32
}

#[inline(always)]
fn ip_header(source: &[u8; 4], destination: &[u8; 4]) -> [u8; ipv4::LEN] {
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (*source, *destination);
    let [l0, l1] = ((FRAME_LEN - eth::LEN) as u16).to_be_bytes();
    let mut header = [
        ipv4::VERSION_IHL,
        0,
        l0,
        l1,
        0,
        0,
        0x40,
        0,
        64,
        protocol::TCP,
        0,
        0,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ];
    let [c0, c1] = (!csum::fold(csum::sum(&header))).to_be_bytes();
    header[ipv4::CHECKSUM] = c0;
    header[ipv4::CHECKSUM + 1] = c1;
    header
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use super::*;
    use crate::parse::Segment;
    use crate::parse::tcp::Flags;
    use crate::testing::Frame;

    fn segment(recipe: &Recipe, number: u64) -> Segment {
        let mut bytes: Vec<u8> = headers(recipe, number).into();
        bytes.resize(FRAME_LEN, 0);
        Segment::parse(&Frame::new(bytes), 0).expect("a plain TCP packet")
    }

    #[test]
    fn frames_are_packets_of_as_many_flows_as_asked_for() {
        let recipe = Recipe { flows: 1000, stride: 613, services: 10, port: 80, ..Recipe::default() };
        let ends = |number| {
            let Segment { ip, transport } = segment(&recipe, number);
            (ip.source, transport.source_port_be, transport.destination_port_be.get())
        };
        let flows: BTreeSet<_> = (0..1000).map(ends).collect();
        assert_eq!(flows.len(), 1000, "a stride without common factor visits every flow once");
        let ports: BTreeSet<_> = flows.iter().map(|(.., port)| *port).collect();
        assert_eq!(ports, (80..90).collect(), "and every published port");
        assert_eq!(ends(7), ends(1007), "then begins anew");
        let beside = Recipe { offset: 1000, ..recipe };
        let others = (0..1000).map(|number| {
            let Segment { ip, transport } = segment(&beside, number);
            (ip.source, transport.source_port_be, transport.destination_port_be.get())
        });
        assert!(others.into_iter().all(|flow| !flows.contains(&flow)), "those of another CPU are others");
    }

    #[test]
    fn the_flows_of_one_client_differ_in_the_port() {
        let client = [10, 5, 0, 2];
        let recipe = Recipe { flows: 50_000, stride: 31_251, client, ..Recipe::default() };
        let segments = (0..50_000).map(|number| segment(&recipe, number));
        let ports: BTreeSet<_> = segments
            .map(|Segment { ip, transport }| {
                assert_eq!(ip.source.v4_octets(), client, "the client of a frame");
                transport.source_port_be.get()
            })
            .collect();
        assert_eq!(ports.len(), 50_000);
    }

    #[test]
    fn flows_stand_all_over_the_lines() {
        let lines: BTreeSet<_> = (0..1000).map(|flow| line(NETWORK | flow, CLIENT_PORT, 2500)).collect();
        // At random, 1000 flows would share some of 2500 lines: 824 lines are expected to be hit.
        assert!((700..=1000).contains(&lines.len()), "{} lines for 1000 flows", lines.len());
        let (least, most) = (lines.first().copied(), lines.last().copied());
        assert!(least < Some(250) && most > Some(2250) && most < Some(2500), "from {least:?} to {most:?}");
    }

    #[test]
    fn without_a_number_of_flows_all_are_new() {
        let recipe = Recipe { flags: u16::from(Flags::SYN), ..Recipe::default() };
        let first = segment(&recipe, 0);
        assert!(first.transport.flags.is_opening(), "flags are kept: {first:?}");
        let far = segment(&recipe, 1 << 24);
        assert_ne!(
            first.transport.source_port_be, far.transport.source_port_be,
            "beyond the clients' network"
        );
    }
}
