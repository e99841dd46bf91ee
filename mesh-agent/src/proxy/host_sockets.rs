//! Lists the ports of this node that sockets hold, by `sock_diag`: TCP sockets that listen, UDP
//! sockets that are bound and not connected.
//!
//! The kernel lists only those, so the cost doesn't depend on how many connections the node has.
//! Pure functions decide which of the sockets can receive a client's packet, and from whom.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_state::spec::Protocol;
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;
use rtnetlink::sys::{Socket, SocketAddr};

/// A socket that receives what arrives at its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostSocket {
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) address: IpAddr,
    /// The inode of the socket, which identifies it.
    pub(super) inode: u64,
}

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
/// States of `net/tcp_states.h`; a UDP socket that is not connected is in state "closed".
const CLOSED: u32 = 7;
const LISTENS: u32 = 10;
/// Length of a netlink header in bytes.
const HEADER: usize = 16;
/// Length of `inet_diag_req_v2` in bytes.
const REQUEST: usize = 56;
/// Length of `inet_diag_msg` in bytes.
const ANSWER: usize = 72;

/// Lists the listening sockets and unconnected UDP sockets of the thread's network namespace.
///
/// # Errors
/// The kernel has no `sock_diag` for TCP or UDP.
pub(super) fn bound() -> io::Result<Vec<HostSocket>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        found.extend(list(family, Protocol::Tcp)?);
        found.extend(list(family, Protocol::Udp)?);
    }
    Ok(found)
}

/// The ports that sockets other than `own` (by inode) hold at an address that other hosts can
/// reach. They don't reach `inner`, where tasks alone ask this node.
pub(super) fn held_by_others(
    sockets: &[HostSocket],
    own: &BTreeSet<u64>,
    inner: &BTreeSet<Ipv4Addr>,
) -> BTreeSet<(Protocol, u16)> {
    let is_inner = |address: IpAddr| matches!(address, IpAddr::V4(address) if inner.contains(&address));
    let others = sockets.iter().filter(|socket| {
        !own.contains(&socket.inode) && is_reached(socket.address) && !is_inner(socket.address)
    });
    others.map(|socket| (socket.protocol, socket.port)).collect()
}

/// Whether a socket bound to `address` may receive packets that other hosts send to this node.
fn is_reached(address: IpAddr) -> bool {
    let address = address.to_canonical();
    !address.is_loopback() && !address.is_multicast()
}

fn list(family: i32, protocol: Protocol) -> io::Result<Vec<HostSocket>> {
    let (number, state) = match protocol {
        Protocol::Udp => (libc::IPPROTO_UDP, CLOSED),
        Protocol::Tcp | Protocol::Sctp => (libc::IPPROTO_TCP, LISTENS),
    };
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(family, number, 1 << state), 0)?;
    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if read(&datagram, protocol, &mut found)? {
            return Ok(found);
        }
    }
}

fn request(family: i32, protocol: i32, states: u32) -> Vec<u8> {
    #[expect(clippy::cast_possible_truncation, reason = "flags of 16 bits")]
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    #[expect(clippy::cast_possible_truncation, reason = "less than a hundred")]
    let length = (HEADER + REQUEST) as u32;
    let mut request = Vec::with_capacity(HEADER + REQUEST);
    request.extend(length.to_ne_bytes());
    request.extend(BY_FAMILY.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family.to_le_bytes()[0], protocol.to_le_bytes()[0], 0, 0]);
    request.extend(states.to_ne_bytes());
    request.resize(HEADER + REQUEST, 0);
    request
}

/// Adds the sockets that a netlink datagram lists; returns `true` at the end of the dump.
fn read(datagram: &[u8], protocol: Protocol, found: &mut Vec<HostSocket>) -> io::Result<bool> {
    let malformed = || io::Error::other("sock_diag's answer is cut short");
    let mut rest = datagram;
    while !rest.is_empty() {
        let length = u32::from_ne_bytes(bytes(rest, 0).ok_or_else(malformed)?) as usize;
        let kind = i32::from(u16::from_ne_bytes(bytes(rest, 4).ok_or_else(malformed)?));
        let message = rest.get(..length).filter(|_| length >= HEADER).ok_or_else(malformed)?;
        match kind {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let code = i32::from_ne_bytes(bytes(message, HEADER).ok_or_else(malformed)?);
                return Err(io::Error::from_raw_os_error(-code));
            }
            _ => found.extend(message.get(HEADER..HEADER + ANSWER).and_then(|body| socket(body, protocol))),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Parses one `inet_diag_msg`.
fn socket(message: &[u8], protocol: Protocol) -> Option<HostSocket> {
    let address = if i32::from(*message.first()?) == libc::AF_INET6 {
        IpAddr::V6(Ipv6Addr::from(bytes::<16>(message, 8)?))
    } else {
        IpAddr::V4(Ipv4Addr::from(bytes::<4>(message, 8)?))
    };
    let port = u16::from_be_bytes(bytes(message, 4)?);
    let inode = u64::from(u32::from_ne_bytes(bytes(message, 68)?));
    (port != 0).then_some(HostSocket { protocol, port, address, inode })
}

fn bytes<const N: usize>(message: &[u8], at: usize) -> Option<[u8; N]> {
    message.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use rustix::fs::fstat;

    use super::*;

    #[test]
    fn a_port_at_an_address_for_tasks_is_no_port_of_the_host() {
        let gateway = Ipv4Addr::new(10, 128, 1, 1);
        let at = |address: Ipv4Addr, inode| HostSocket {
            protocol: Protocol::Udp,
            port: 53,
            address: address.into(),
            inode,
        };
        let held = |sockets: &[HostSocket]| held_by_others(sockets, &BTreeSet::new(), &[gateway].into());
        assert_eq!(held(&[at(gateway, 1)]), BTreeSet::new(), "the name server's");
        let others = [at(gateway, 1), at(Ipv4Addr::UNSPECIFIED, 2)];
        assert_eq!(held(&others), [(Protocol::Udp, 53)].into(), "and another one's");
    }

    #[test]
    fn the_kernel_tells_of_every_socket_that_takes_what_comes() {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let local = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let datagrams = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let connected = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        connected.connect((Ipv4Addr::LOCALHOST, 9)).unwrap();
        let sockets = bound().unwrap();
        let tcp = (Protocol::Tcp, listener.local_addr().unwrap().port());
        let udp = (Protocol::Udp, datagrams.local_addr().unwrap().port());
        let inode = fstat(&listener).unwrap().st_ino;
        let seen = sockets.iter().find(|socket| (socket.protocol, socket.port) == tcp).unwrap();
        assert_eq!((seen.address, seen.inode), (Ipv4Addr::UNSPECIFIED.into(), inode));

        let held = held_by_others(&sockets, &BTreeSet::new(), &BTreeSet::new());
        assert!(held.contains(&tcp) && held.contains(&udp), "held: {held:?}");
        let local = (Protocol::Tcp, local.local_addr().unwrap().port());
        assert!(!held.contains(&local), "no other host reaches a listener on loopback");
        let connected = (Protocol::Udp, connected.local_addr().unwrap().port());
        assert!(!held.contains(&connected), "a connected socket takes its peer's datagrams only");
        assert!(
            !held_by_others(&sockets, &[inode].into(), &BTreeSet::new()).contains(&tcp),
            "one's own is no other's"
        );
    }
}
