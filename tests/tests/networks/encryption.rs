//! An encrypted network: its tasks reach each other on all nodes, and nothing of what they send
//! crosses the nodes' network in clear.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::cluster::{Cluster, eventually};
use mesh_lab::netns::Netns;
use mesh_tests::{PATIENCE, Service, cluster};

use crate::shop::{self, Network};
use crate::task::{self, Task, Way};

/// The port of encrypted tunnels, and that of the tunnel.
const WIREGUARD: [u8; 2] = 4801_u16.to_be_bytes();
const VXLAN: [u8; 2] = 4799_u16.to_be_bytes();
/// Bit 19 of a VNI, in its first byte: a packet of an encrypted network.
const ENCRYPTED: u8 = 0x08;
/// Bit 20 of a VNI likewise: a packet of a network.
const OF_NETWORK: u8 = 0x10;

/// The frames on a node's uplink from now on, both ways.
struct Capture(OwnedFd);

impl Capture {
    /// Starts to capture on `eth0` of a node.
    fn start(cluster: &Cluster, node: &str) -> Result<Self> {
        let netns = Netns::named(cluster.node(node)?.netns.clone());
        netns.run(|| Self::open().with_context(|| format!("capture on {node}")))
    }

    fn open() -> Result<Self> {
        let every = u16::try_from(libc::ETH_P_ALL)?.to_be();
        // Protocol 0: until it is bound, the socket would get the frames of all devices, also
        // those that the encryption device has yet to encrypt.
        // SAFETY: no pointers; the descriptor is this function's own.
        let socket = unsafe {
            let number = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0);
            ensure!(number >= 0, "make a packet socket: {}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(number)
        };
        let room: libc::c_int = 32 << 20;
        // SAFETY: the name ends with a zero, and the value lives as long as the call.
        let index = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const room).cast(),
                libc::socklen_t::try_from(size_of_val(&room))?,
            );
            libc::if_nametoindex(c"eth0".as_ptr())
        };
        ensure!(index != 0, "find eth0: {}", io::Error::last_os_error());
        // SAFETY: all zeros is a valid address, and it lives as long as the call.
        let bound = unsafe {
            let mut at: libc::sockaddr_ll = std::mem::zeroed();
            at.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET)?;
            at.sll_protocol = every;
            at.sll_ifindex = i32::try_from(index)?;
            let room = libc::socklen_t::try_from(size_of_val(&at))?;
            libc::bind(socket.as_raw_fd(), (&raw const at).cast(), room)
        };
        ensure!(bound == 0, "bind to eth0: {}", io::Error::last_os_error());
        Ok(Self(socket))
    }

    /// The frames that have passed since the last call.
    fn frames(&self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut frame = vec![0; 1 << 16];
        loop {
            match rustix::io::read(&self.0, &mut frame) {
                Ok(len) => frames.push(frame[..len].to_vec()),
                Err(rustix::io::Errno::AGAIN) => return Ok(frames),
                Err(error) => return Err(error).context("read the captured frames"),
            }
        }
    }
}

/// The UDP destination port of a frame, and what follows the UDP header.
fn datagram(frame: &[u8]) -> Option<([u8; 2], &[u8])> {
    let is_udp = frame.get(12..14)? == [8, 0] && frame.get(23)? == &17;
    let port = frame.get(36..38)?.try_into().ok()?;
    is_udp.then_some((port, frame.get(42..)?))
}

fn contains(frame: &[u8], marker: &str) -> bool {
    frame.windows(marker.len()).any(|part| part == marker.as_bytes())
}

fn is_vxlan_with(frame: &[u8], bit: u8) -> bool {
    let vni = datagram(frame).filter(|(port, _)| *port == VXLAN).and_then(|(_, vxlan)| vxlan.get(4).copied());
    vni.is_some_and(|first| first & bit != 0)
}

/// Each of two tasks on two nodes fetches the other's page, which has the other's hostname in it,
/// over an encrypted network and over one that is not: the hostname crosses the nodes' network in
/// clear on the latter only.
#[test]
fn an_encrypted_network_shows_nothing() -> Result<()> {
    let cluster = cluster()?;
    if cluster.record.datapath == "userspace" {
        return Ok(());
    }
    let (sealed, plain) = (
        Network::create(&cluster, "sealed", &["--opt", "encrypted"])?,
        Network::create(&cluster, "plain", &[])?,
    );
    let run = |name: &'static str, node: &str| {
        let place = format!("--constraint=node.hostname=={node}");
        let words = ["--detach", &place, "--network", sealed.name(), "--network", plain.name(), "whoami"];
        Service::create(&cluster, name, &words)
    };
    let services = [run("vault", "node-2")?, run("visitor", "node-3")?];
    let mut tasks = Vec::new();
    for (service, node) in services.iter().zip(["node-2", "node-3"]) {
        cluster.wait_running(service.name(), 1, PATIENCE)?;
        let found = task::of_service(&cluster, service.name())?.remove(node);
        tasks.push(found.with_context(|| format!("no {} on {node}", service.name()))?);
    }
    let ways = [(&tasks[0], &tasks[1]), (&tasks[1], &tasks[0])];
    for (from, to) in ways {
        let capture = Capture::start(&cluster, &to.node)?;
        let address = to.address(plain.name())?;
        eventually("a page over the plain network", PATIENCE, || from.whoami(address).map(drop))?;
        let frames = capture.frames()?;
        let seen =
            frames.iter().any(|frame| is_vxlan_with(frame, OF_NETWORK) && contains(frame, &to.hostname));
        ensure!(seen, "the capture on {} must see {} in clear: {} frames", to.node, to.name, frames.len());
    }
    for (from, to) in ways {
        crosses_unseen(&cluster, from, to, sealed.name())?;
        let (service, _) = to.name.split_once('.').context("a task's name begins with its service's")?;
        let (name, _) = from.whoami(shop::virtual_ip(&cluster.docker()?, service, sealed.name())?)?;
        ensure!(name == to.hostname, "the virtual IP of {service} led to {name}");
    }
    Ok(())
}

/// Packets of every kind from one task to another on the encrypted network, and back.
fn crosses_unseen(cluster: &Cluster, from: &Task, to: &Task, network: &str) -> Result<()> {
    let captures = [Capture::start(cluster, &from.node)?, Capture::start(cluster, &to.node)?];
    let address = to.address(network)?;
    eventually("a page over the encrypted network", PATIENCE, || {
        let (name, client) = from.whoami(address)?;
        let own = from.address(network)?.to_string();
        ensure!(name == to.hostname && client.starts_with(&own), "{name} saw {client}, expected {own}");
        Ok(())
    })?;
    for way in Way::ALL {
        ensure!(from.reaches(way, address)?, "{} doesn't reach {} over {way:?}", from.name, to.name);
    }
    // The last frames may still be on their way to the sockets.
    std::thread::sleep(Duration::from_millis(100));
    for capture in captures {
        let frames = capture.frames()?;
        let sealed = frames.iter().filter(|frame| datagram(frame).is_some_and(|(port, _)| port == WIREGUARD));
        ensure!(sealed.count() > 6, "no encrypted datagrams among {} frames", frames.len());
        for frame in &frames {
            ensure!(!is_vxlan_with(frame, ENCRYPTED), "a packet of the network in clear: {frame:02x?}");
            ensure!(!contains(frame, &to.hostname), "the task's hostname in clear: {frame:02x?}");
        }
    }
    Ok(())
}
