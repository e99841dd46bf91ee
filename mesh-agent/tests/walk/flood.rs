//! A SYN flood through real programs and network stacks: SYNs above the rate get no flow entry, and
//! yet clients connect, keep their connections, and get an entry once their tasks have answered.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mesh_ebpf::abi::Policy;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};

use crate::node::{Datapath, Node, PUBLISHED};
use crate::{CLIENT, Cluster, eventually, greet, is_privileged};

/// Connections that live when the flood begins, and connections that clients open during it.
const LIVE: usize = 1000;
const NEW: usize = 100;
/// SYNs per second for which a CPU makes a flow entry: hardly any.
const RATE: u32 = 4;
/// Time for a connection whose SYN, or SYN-ACK, is retransmitted once (RFC 6298), on a busy
/// machine.
const ONE_REPETITION: Duration = Duration::from_millis(2500);
/// SYNs in one burst, and the pause after it.
const BURST: u32 = 64;
const PAUSE: Duration = Duration::from_millis(2);

/// Sends SYNs until it is dropped.
struct Flood {
    is_over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: Option<thread::JoinHandle<()>>,
}

impl Flood {
    fn begin(cluster: &Cluster) -> Self {
        let (is_over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (is_over.clone(), sent.clone());
        let sender = cluster.client.spawn(move || {
            let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).expect("raw socket");
            let to = SocketAddrV4::new(Node::address_of(1), PUBLISHED);
            let mut number = 0_u32;
            while !ends.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    number = number.wrapping_add(1);
                    // A full send queue refuses some of them: more are to come.
                    sendto(&raw, &syn(number, to), SendFlags::empty(), &to).ok();
                }
                counts.fetch_add(u64::from(BURST), Ordering::Relaxed);
                thread::sleep(PAUSE);
            }
        });
        Self { is_over, sent, sender: Some(sender) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            sender.join().expect("the flood ends");
        }
    }
}

/// The SYN with this number, from one of the hosts of 198.18.0.0/15. The kernel fills in length and
/// checksum of the IP header.
fn syn(number: u32, to: SocketAddrV4) -> [u8; 40] {
    let mixed = number.wrapping_mul(0x9e37_79b1);
    let mut packet = [0; 40];
    packet[0] = 0x45;
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&(0xc612_0000 | mixed >> 15).to_be_bytes());
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet[20..22].copy_from_slice(&(1024 | (mixed & 0x7fff) as u16).to_be_bytes());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[24..28].copy_from_slice(&number.to_be_bytes());
    packet[32] = 5 << 4;
    packet[33] = 2;
    packet[34..36].copy_from_slice(&64240_u16.to_be_bytes());
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair[1]);
    let mut sum: u32 = packet[12..].chunks(2).map(word).sum::<u32>() + 6 + 20;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let folded = u16::try_from(sum).expect("the carries are folded in");
    packet[36..38].copy_from_slice(&(!folded).to_be_bytes());
    packet
}

/// Sends a number and reads it back.
fn say(stream: &mut TcpStream, number: usize, when: &str) {
    stream
        .write_all(&number.to_le_bytes())
        .unwrap_or_else(|error| panic!("{when}, {number}: write: {error}"));
    let mut back = [0; size_of::<usize>()];
    stream.read_exact(&mut back).unwrap_or_else(|error| panic!("{when}, {number}: read: {error}"));
    assert_eq!(back, number.to_le_bytes(), "{when}, {number}");
}

fn flood(datapath: Datapath) {
    if !is_privileged() {
        return;
    }
    let mut cluster = Cluster::new(datapath);
    for node in &mut cluster.nodes {
        // The route of answers to hosts that don't exist.
        node.netns.ip(&format!("route add default via {CLIENT}"));
        node.publish(&[1, 2], Policy::RoundRobin);
    }
    let connect = |cluster: &Cluster| {
        let mut stream = cluster.connect(1, 0)?;
        let task = greet(&mut stream).task;
        Ok::<_, std::io::Error>((stream, task))
    };
    let mut live: Vec<TcpStream> =
        (0..LIVE).map(|_| connect(&cluster).expect("a connection before the flood").0).collect();
    for (number, stream) in live.iter_mut().enumerate() {
        say(stream, number, "before");
    }
    cluster.nodes[0].guard(RATE);
    let opened = cluster.nodes[0].opened();
    let flood = Flood::begin(&cluster);
    eventually("the guard fires", || cluster.nodes[0].unremembered() > 0);

    let mut tasks = [0; 3];
    let mut late = 0;
    let mut new: Vec<TcpStream> = (0..NEW)
        .map(|number| {
            let begun = Instant::now();
            let (stream, task) =
                connect(&cluster).unwrap_or_else(|error| panic!("connection {number} in the flood: {error}"));
            late += usize::from(begun.elapsed() > ONE_REPETITION);
            tasks[usize::from(task)] += 1;
            stream
        })
        .collect();
    assert!(
        late * 100 <= NEW,
        "{late} of {NEW} took longer than one repetition; drops {:?}",
        cluster.drops()
    );
    assert!(tasks[1] > NEW / 5 && tasks[2] > NEW / 5, "both tasks are used: {tasks:?}");
    for (number, stream) in live.iter_mut().chain(&mut new).enumerate() {
        say(stream, number, "in the flood");
    }
    let (sent, unremembered) = (flood.sent.load(Ordering::Relaxed), cluster.nodes[0].unremembered());
    drop(flood);
    let opened = cluster.nodes[0].opened() - opened;
    assert!(opened < unremembered / 2, "{opened} flows were remembered beside {unremembered} that were not");
    assert!(unremembered > sent / 4, "{unremembered} of {sent} SYNs were not remembered");

    // With tokens for all SYNs, each connection's next packet makes its entry, and from then on the
    // table decides.
    cluster.nodes[0].guard(0);
    for (number, stream) in new.iter_mut().enumerate() {
        say(stream, number, "after the flood");
    }
    cluster.nodes[0].publish(&[1], Policy::RoundRobin);
    for (number, stream) in live.iter_mut().chain(&mut new).enumerate() {
        say(stream, number, "with another table");
    }
}

#[test]
fn flood_over_tc() {
    flood(Datapath::Tc);
}

#[test]
fn flood_over_xdp() {
    flood(Datapath::Xdp);
}
