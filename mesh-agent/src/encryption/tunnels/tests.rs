//! Two nodes' tunnels, whose datagrams a test carries.

use std::collections::VecDeque;

use mesh_state::proto;

use super::*;

const A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const B: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 12);
const C: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 13);
const PORT: u16 = 4801;

/// A node with its key, and what its device received.
struct Node {
    address: Ipv4Addr,
    key: PrivateKey,
    tunnels: Tunnels,
    received: Vec<Vec<u8>>,
}

/// Datagrams on their way: from, to, bytes.
type Wire = VecDeque<(Ipv4Addr, Ipv4Addr, Vec<u8>)>;

impl Node {
    fn new(address: Ipv4Addr, key: u8) -> Self {
        let key = PrivateKey::of(&[key; 32]);
        Self { address, tunnels: Tunnels::new(address, key.clone()), key, received: Vec::new() }
    }

    fn peer(&self) -> Peer {
        Peer { public_key: self.key.public(), port: PORT }
    }

    fn follow(&mut self, peers: &[(Ipv4Addr, Peer)], wire: &mut Wire) {
        let (address, received) = (self.address, &mut self.received);
        let peers = peers.iter().copied().collect();
        self.tunnels.follow(&peers, |step| note(address, step, wire, received));
    }

    fn encrypt(&mut self, frame: &[u8], wire: &mut Wire) {
        let (address, received) = (self.address, &mut self.received);
        self.tunnels.encrypt(frame, |step| note(address, step, wire, received));
    }

    fn decrypt(&mut self, from: Ipv4Addr, datagram: &[u8], wire: &mut Wire) {
        let (address, received) = (self.address, &mut self.received);
        let from = SocketAddr::new(from.into(), PORT);
        self.tunnels.decrypt(from, datagram, |step| note(address, step, wire, received));
    }
}

fn note(from: Ipv4Addr, step: Step<'_>, wire: &mut Wire, received: &mut Vec<Vec<u8>>) {
    match step {
        Step::Send(to, datagram) => {
            assert_eq!(to.port(), PORT, "the peer's port");
            wire.push_back((from, *to.ip(), datagram.to_vec()));
        }
        Step::Receive(frame) => received.push(frame.to_vec()),
    }
}

/// Delivers everything on the wire, and what that brings about. Returns all of it.
fn deliver(nodes: &mut [&mut Node], wire: &mut Wire) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    while let Some((from, to, datagram)) = wire.pop_front() {
        assert!(seen.len() < 100, "the nodes never stop");
        if let Some(node) = nodes.iter_mut().find(|node| node.address == to) {
            node.decrypt(from, &datagram, wire);
        }
        seen.push(datagram);
    }
    seen
}

/// A frame as programs send it, with this text in it.
fn frame(from: Ipv4Addr, to: Ipv4Addr, text: &str) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + IPV4];
    frame[..6].copy_from_slice(&MESH_MAC.0);
    frame[6..12].copy_from_slice(&MESH_MAC.0);
    frame[12] = 8;
    frame[ETHERNET] = 0x45;
    let len = u16::try_from(IPV4 + text.len()).expect("a short text");
    frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&len.to_be_bytes());
    frame[ETHERNET + 12..ETHERNET + 16].copy_from_slice(&from.octets());
    frame[ETHERNET + 16..ETHERNET + 20].copy_from_slice(&to.octets());
    frame.extend(text.bytes());
    frame
}

fn contains(datagrams: &[Vec<u8>], text: &str) -> bool {
    datagrams.iter().any(|datagram| datagram.windows(text.len()).any(|part| part == text.as_bytes()))
}

/// Nodes A and B as each other's peers, after their handshake.
fn pair() -> (Node, Node, Wire) {
    let (mut a, mut b, mut wire) = (Node::new(A, 1), Node::new(B, 2), Wire::new());
    a.follow(&[(B, b.peer())], &mut wire);
    b.follow(&[(A, a.peer())], &mut wire);
    deliver(&mut [&mut a, &mut b], &mut wire);
    (a, b, wire)
}

#[test]
fn frames_arrive_and_nothing_of_them_is_on_the_wire() {
    let (mut a, mut b, mut wire) = pair();
    let (there, back) = (frame(A, B, "a marker from A"), frame(B, A, "a marker from B"));
    a.encrypt(&there, &mut wire);
    b.encrypt(&back, &mut wire);
    let seen = deliver(&mut [&mut a, &mut b], &mut wire);
    assert_eq!((&a.received, &b.received), (&vec![back], &vec![there]));
    assert!(!seen.is_empty() && !contains(&seen, "marker"), "in clear: {seen:?}");
}

#[test]
fn the_first_frame_waits_for_the_handshake() {
    let (mut a, mut b, mut wire) = (Node::new(A, 1), Node::new(B, 2), Wire::new());
    a.follow(&[(B, b.peer())], &mut wire);
    let first = frame(A, B, "first");
    a.encrypt(&first, &mut wire);
    b.follow(&[(A, a.peer())], &mut Wire::new());
    let seen = deliver(&mut [&mut a, &mut b], &mut wire);
    assert_eq!(b.received, [first]);
    assert!(!contains(&seen, "first"));
}

#[test]
fn a_node_that_starts_again_goes_on_at_once() {
    let (mut a, b, mut wire) = pair();
    let peer = b.peer();
    let mut again = Node::new(B, 2);
    assert_eq!(again.peer(), peer, "the key is on its disk");
    // WireGuard's initiations carry the time, and repeated ones are refused.
    std::thread::sleep(std::time::Duration::from_millis(20));
    again.follow(&[(A, a.peer())], &mut wire);
    deliver(&mut [&mut a, &mut again], &mut wire);
    let text = frame(A, B, "after the restart");
    a.encrypt(&text, &mut wire);
    deliver(&mut [&mut a, &mut again], &mut wire);
    assert_eq!(again.received, [text]);
}

#[test]
fn a_node_without_a_tunnel_gets_nothing() {
    let (mut a, mut b, mut wire) = pair();
    for other in [frame(A, C, "to no peer"), frame(C, B, "as another node"), frame(A, A, "to itself")] {
        a.encrypt(&other, &mut wire);
        assert_eq!(wire.pop_front(), None);
    }
    let mut arp = frame(A, B, "no IPv4");
    arp[13] = 6;
    for odd in [arp, frame(A, B, "")[..30].to_vec(), Vec::new()] {
        a.encrypt(&odd, &mut wire);
        assert_eq!(wire.pop_front(), None);
    }
    a.follow(&[], &mut wire);
    assert!(a.tunnels.is_empty());
    a.encrypt(&frame(A, B, "to a node that left"), &mut wire);
    b.encrypt(&frame(B, A, "from a node that left"), &mut wire);
    assert!(!contains(&deliver(&mut [&mut a, &mut b], &mut wire), "that left"));
    assert_eq!((a.received.len(), b.received.len()), (0, 0));
}

#[test]
fn a_peer_speaks_for_its_own_address_only() {
    let (mut a, mut b, mut wire) = pair();
    // B's agent is changed: it sends as C.
    b.tunnels.own = C;
    b.encrypt(&frame(C, A, "as C"), &mut wire);
    assert_eq!(wire.len(), 1, "B has sent it");
    deliver(&mut [&mut a, &mut b], &mut wire);
    assert_eq!(a.received.len(), 0);
    // A datagram of B's from another address.
    b.tunnels.own = B;
    b.encrypt(&frame(B, A, "from elsewhere"), &mut wire);
    let (_, _, datagram) = wire.pop_front().expect("B has sent it");
    a.decrypt(C, &datagram, &mut wire);
    assert_eq!(a.received.len(), 0);
    a.decrypt(B, &datagram, &mut wire);
    assert_eq!(a.received.len(), 1, "the datagram itself is good");
    a.decrypt(B, &datagram, &mut wire);
    assert_eq!(a.received.len(), 1, "once");
}

#[test]
fn a_node_with_another_key_is_another_node() {
    let (mut a, mut b, mut wire) = (Node::new(A, 1), Node::new(B, 2), Wire::new());
    let forged = Peer { public_key: PrivateKey::of(&[9; 32]).public(), port: PORT };
    a.follow(&[(B, forged)], &mut wire);
    b.follow(&[(A, a.peer())], &mut wire);
    a.encrypt(&frame(A, B, "for the other key"), &mut wire);
    b.encrypt(&frame(B, A, "of the other key"), &mut wire);
    deliver(&mut [&mut a, &mut b], &mut wire);
    assert_eq!((a.received.len(), b.received.len()), (0, 0));
    // The table brings the right one. B's handshake was refused, and it begins another one.
    std::thread::sleep(std::time::Duration::from_millis(20));
    a.follow(&[(B, b.peer())], &mut wire);
    deliver(&mut [&mut a, &mut b], &mut wire);
    assert!(b.received.iter().all(|frame| !frame.is_empty()));
    a.encrypt(&frame(A, B, "now"), &mut wire);
    deliver(&mut [&mut a, &mut b], &mut wire);
    assert!(contains(&b.received, "now"));
}

#[test]
fn noise_breaks_nothing() {
    let (mut a, _, mut wire) = pair();
    for len in [0_usize, 1, 4, 31, 32, 64, 92, 148, 1500] {
        for kind in 0..6 {
            let mut noise: Vec<u8> = (0..len).map(|at| (at * 31 + len).to_le_bytes()[0]).collect();
            if let Some(first) = noise.get_mut(..4) {
                first.copy_from_slice(&[kind, 0, 0, 0]);
            }
            a.decrypt(B, &noise, &mut wire);
        }
    }
    assert_eq!(a.received.len(), 0);
}

#[test]
fn mtus_fit_the_uplink_and_are_swarms_multiples() {
    assert_eq!(device_mtu(1500), 1440);
    assert_eq!(overlay_mtu(1450), 1388);
    for uplink in [1280, 1400, 1450, 1492, 1500, 9000] {
        let mtu = overlay_mtu(uplink - OVERLAY);
        let padded = (mtu + OVERLAY).div_ceil(PADDING) * PADDING;
        assert!(padded + WIREGUARD <= uplink && mtu.is_multiple_of(4), "{uplink}: {mtu}");
    }
    assert_eq!(overlay_mtu(0), 0, "no uplink is that narrow, and nothing breaks");
}

/// The view of node `a` with these networks, and members as network and node.
fn view(numbers: &[(&str, u32)], members: &[(&str, &str)]) -> NodeView {
    let node = |id: &str, last: u8| proto::MeshNode {
        id: id.to_owned(),
        address: format!("10.77.0.{last}"),
        public_key: if id == "c" { Vec::new() } else { vec![last; 32] },
        encryption_port: 4801,
        ..proto::MeshNode::default()
    };
    let network = |(id, number): &(&str, u32)| proto::MeshNetwork {
        id: (*id).to_owned(),
        number: *number,
        subnet: format!("10.0.{}.0/24", number & 0xff),
        ..proto::MeshNetwork::default()
    };
    let member = |(at, (network, node)): (usize, &(&str, &str))| proto::MeshMember {
        id: format!("m{at}"),
        node_id: (*node).to_owned(),
        weight: 1,
        attachments: vec![proto::MeshAttachment {
            network_id: (*network).to_owned(),
            address: format!("10.0.5.{at}"),
            ..proto::MeshAttachment::default()
        }],
        ..proto::MeshMember::default()
    };
    let table = proto::MeshTable {
        generation: 1,
        nodes: vec![node("a", 11), node("b", 12), node("c", 13), node("d", 14)],
        encrypted_networks: numbers.iter().map(network).collect(),
        members: members.iter().enumerate().map(member).collect(),
        ..proto::MeshTable::default()
    };
    NodeView::new("a".into(), A).apply(&table).expect("a good table")
}

#[test]
fn peers_are_the_nodes_that_share_an_encrypted_network() {
    let numbers = [("sealed", 5 | ENCRYPTED), ("other", 6 | ENCRYPTED), ("plain", 7)];
    let peers = |members: &[(&str, &str)]| {
        let wanted = wanted(&view(&numbers, members));
        wanted.keys().map(|address| address.octets()[3].to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(peers(&[("sealed", "a"), ("sealed", "b"), ("sealed", "c"), ("other", "d")]), "12");
    assert_eq!(peers(&[("plain", "a"), ("plain", "b")]), "", "not encrypted");
    assert_eq!(peers(&[("sealed", "b"), ("sealed", "d")]), "", "without a member here");
    let b = wanted(&view(&numbers, &[("sealed", "a"), ("sealed", "b")]))[&B];
    assert_eq!(b, Peer { public_key: [12; 32], port: 4801 });
}
