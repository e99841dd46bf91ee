//! Any bytes, sent by a task on its veth on an overlay network, with any such fixture's tables:
//! nothing panics, only the task's own frames pass, exactly the ARP requests that are the program's
//! to answer are answered, and each answer is right to the byte.
//!
//! The first byte chooses the fixture, the second what the rest is: the packet itself, the packet
//! with the task's own addresses put in, or changes of the fixture's packet.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mesh_ebpf::abi::{Address, EndpointKey, Link, MESH_MAC};
use mesh_ebpf::parse::ndp;
use mesh_ebpf::testing::fixtures::{self, Fixture};
use mesh_ebpf::testing::{Frame, Hook, HostTables, IFINDEX, Setup};
use mesh_ebpf::verdict::Verdict;

const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Hardware and protocol type, and the lengths of their addresses, of ARP for IPv4 over Ethernet.
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_FRAME: usize = 42;
const ICMPV6: u8 = 58;
const ADVERTISEMENT: u8 = 136;

static FIXTURES: LazyLock<Vec<Fixture>> =
    LazyLock::new(|| fixtures::all().into_iter().filter(|fixture| fixture.hook == Hook::Overlay).collect());

fuzz_target!(|data: &[u8]| {
    let [number, kind, rest @ ..] = data else { return };
    let fixture = &FIXTURES[usize::from(*number) % FIXTURES.len()];
    let link = fixture.setup.links.iter().find(|(ifindex, _)| *ifindex == IFINDEX).map(|(_, link)| link);
    let sent = match (kind % 3, link) {
        (0, _) | (1, None) => rest.to_vec(),
        (1, Some(link)) => as_the_task(rest, link),
        _ => laid_over(&fixture.input, rest),
    };
    let mut packet = Frame::new(sent.clone());
    let verdict = Hook::Overlay.run(&mut packet, &HostTables::new(fixture.setup.clone()));
    check(&fixture.setup, link, &sent, verdict, &packet.bytes);
});

fn check(setup: &Setup, link: Option<&Link>, sent: &[u8], verdict: Verdict, got: &[u8]) {
    if matches!(verdict, Verdict::Drop(_)) {
        let is_due = link.is_some_and(|link| link.network != 0 && answer_to(setup, link, sent).is_some());
        assert!(!is_due, "a request that is the program's to answer was dropped");
        return;
    }
    let link = link.filter(|link| link.network != 0).expect("a veth without a link is closed");
    assert_eq!(sent[6..12], link.mac.0, "another MAC than the task's");
    if verdict == Verdict::Pass {
        assert_eq!(got, sent, "passed but changed");
    }
    match [sent[12], sent[13]] {
        ARP => match (answer_to(setup, link, sent), verdict) {
            (Some(answer), Verdict::Bounce) => assert_eq!(got, answer, "another answer"),
            (None, Verdict::Pass) => assert!(is_own_arp(sent, link), "ARP of another"),
            (expected, verdict) => panic!("{verdict:?}, though the answer is {expected:?}"),
        },
        IPV4 => assert_eq!(sent[26..30], link.address.to_ne_bytes(), "another source than the task"),
        IPV6 => check_ipv6(setup, link, sent, verdict, got),
        other => panic!("EtherType {other:?}: {verdict:?}"),
    }
}

/// Only the task itself may send: as its address on the network; what stays on the bridge, as its
/// link-local address too, and without one. An advertisement that the program sends must be one
/// that a host accepts (RFC 4861, 7.1.2).
fn check_ipv6(setup: &Setup, link: &Link, sent: &[u8], verdict: Verdict, got: &[u8]) {
    let source: [u8; 16] = sent[22..38].try_into().expect("16 bytes");
    let (_, subnet) = setup.subnets6.iter().find(|(number, _)| *number == link.network).expect("IPv6");
    let is_own = subnet.has(&Address(source)) && source[12..] == link.address.to_ne_bytes();
    let is_link_local = Address(source) == ndp::link_local(link.mac);
    let stays = matches!(verdict, Verdict::Pass | Verdict::Bounce);
    assert!(is_own || stays && (is_link_local || source == [0; 16]), "another source than the task");
    if verdict == Verdict::Pass && sent[20] == ICMPV6 && sent.get(54) == Some(&ADVERTISEMENT) {
        let target = Address(sent[62..78].try_into().expect("16 bytes"));
        let is_own = subnet.has(&target) && target.0[12..] == link.address.to_ne_bytes();
        assert!(is_own || target == ndp::link_local(link.mac), "an advertisement of another");
    }
    if verdict == Verdict::Pass && sent[20] == ICMPV6 {
        assert!(!matches!(sent.get(54), Some(134 | 137)), "a router advertisement or a redirect");
    }
    if verdict == Verdict::Bounce && got.get(20) == Some(&ICMPV6) && got.get(54) == Some(&ADVERTISEMENT) {
        let to = if source == [0; 16] { ndp::ALL_NODES_MAC } else { link.mac };
        assert_eq!(got[..12], [to.0, MESH_MAC.0].concat(), "MACs of the answer");
        assert_eq!(got[21], 255, "hop limit");
        let length = usize::from(u16::from_be_bytes([got[18], got[19]]));
        let message = got.get(54..54 + length).expect("the whole message");
        assert!(length >= 24 && message[1] == 0, "length and code");
        let pseudo = [&got[22..54], &[0, 0, got[18], got[19], 0, 0, 0, ICMPV6], message].concat();
        assert_eq!(sum(&pseudo), 0xffff, "checksum of {message:?}");
        assert_eq!(message[8..24], sent[62..78], "another target than was asked for");
        assert_eq!(message[8..24], got[22..38], "it answers as the target");
    }
}

/// The ones' complement sum of `bytes`, whose length may be odd.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let total: u32 = words.sum();
    let folded = (total & 0xffff) + (total >> 16);
    (folded & 0xffff) + (folded >> 16)
}

fn is_own_arp(sent: &[u8], link: &Link) -> bool {
    let is_request = sent.get(20..22) == Some(&[0, 1]);
    sent.len() >= ARP_FRAME
        && sent[14..20] == ARP_HEAD
        && sent[22..28] == link.mac.0
        && (sent[28..32] == link.address.to_ne_bytes() || is_request && sent[28..32] == [0; 4])
}

/// The answer that is due to `sent`, if the program is to answer it: a request of the task itself
/// for an address of its network that is on another node, or a virtual IP.
fn answer_to(setup: &Setup, link: &Link, sent: &[u8]) -> Option<Vec<u8>> {
    let is_request = sent.get(12..14) == Some(&ARP) && sent.get(20..22) == Some(&[0, 1]);
    if !is_request || sent[6..12] != link.mac.0 || !is_own_arp(sent, link) {
        return None;
    }
    let target: [u8; 4] = sent[38..42].try_into().ok()?;
    let key = EndpointKey::new(link.network, target);
    // As in a map, the last one counts.
    let endpoint = setup.endpoints.iter().rev().find(|(known, _)| *known == key);
    let is_elsewhere = match endpoint {
        Some((_, endpoint)) => endpoint.node != 0,
        None => setup.virtual_ips.iter().any(|(known, _)| *known == key),
    };
    is_elsewhere.then(|| {
        let head = [link.mac.0, MESH_MAC.0].concat();
        let sides = [&MESH_MAC.0[..], &target, &link.mac.0, &sent[28..32]].concat();
        [&head[..], &sent[12..20], &[0, 2], &sides, &sent[ARP_FRAME..]].concat()
    })
}

/// A packet of another host, as this task would have sent it.
fn as_the_task(packet: &[u8], link: &Link) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    let kind = bytes.get(12..14).map(<[u8]>::to_vec);
    let mut put = |at: usize, value: &[u8]| {
        if let Some(place) = bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    };
    put(6, &link.mac.0);
    match kind.as_deref() {
        Some(kind) if kind == ARP => {
            put(22, &link.mac.0);
            if packet.get(28..32) != Some(&[0; 4]) {
                put(28, &link.address.to_ne_bytes());
            }
        }
        Some(kind) if kind == IPV4 => put(26, &link.address.to_ne_bytes()),
        _ => {}
    }
    bytes
}

/// The fixture's packet with `changes` xored onto it; what is longer is added.
fn laid_over(packet: &[u8], changes: &[u8]) -> Vec<u8> {
    let length = packet.len().max(changes.len());
    let at = |bytes: &[u8], index: usize| bytes.get(index).copied().unwrap_or(0);
    (0..length).map(|index| at(packet, index) ^ at(changes, index)).collect()
}
