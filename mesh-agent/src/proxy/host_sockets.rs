//! Lists the ports of this node that sockets hold, by `sock_diag`: TCP sockets that listen, UDP
//! sockets that are bound and not connected.
//!
//! The kernel lists only those, so the cost doesn't depend on how many connections the node has.
//! Pure functions decide which of the sockets can receive a client's packet, and from whom.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use mesh_state::spec::Protocol;

use crate::sock_diag::{SockDiag, states};

/// A socket that receives what arrives at its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostSocket {
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) address: IpAddr,
    /// The inode of the socket, which identifies it.
    pub(super) inode: u64,
}

/// Lists the listening sockets and unconnected UDP sockets of the thread's network namespace.
///
/// # Errors
/// The kernel has no `sock_diag` for TCP or UDP.
pub(super) fn bound() -> io::Result<Vec<HostSocket>> {
    let mut diag = SockDiag::open()?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (protocol, number, state) in [
            (Protocol::Tcp, libc::IPPROTO_TCP, states::LISTEN),
            (Protocol::Udp, libc::IPPROTO_UDP, states::CLOSED),
        ] {
            diag.list(family, number, state, |socket| {
                let (address, port) = (socket.local.ip(), socket.local.port());
                if port != 0 {
                    found.push(HostSocket { protocol, port, address, inode: socket.inode });
                }
            })?;
        }
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener, UdpSocket};

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
