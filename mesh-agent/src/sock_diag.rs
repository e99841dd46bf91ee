//! Lists the sockets of a network namespace, by the kernel's `sock_diag`.
//!
//! Synchronous, as the kernel answers at once. The kernel lists only sockets in the states that are
//! asked for, so the cost doesn't depend on how many others there are.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rtnetlink::sys::Socket;
use rtnetlink::sys::SocketAddr as NetlinkAddr;
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;

/// States of `net/tcp_states.h`, as bits of a request.
pub(crate) mod states {
    pub(crate) const ESTABLISHED: u32 = 1 << 1;
    /// A handshake that a listening socket has answered.
    pub(crate) const SYN_RECV: u32 = 1 << 3;
    pub(crate) const FIN_WAIT1: u32 = 1 << 4;
    pub(crate) const FIN_WAIT2: u32 = 1 << 5;
    /// The state of a UDP socket that is not connected.
    pub(crate) const CLOSED: u32 = 1 << 7;
    pub(crate) const CLOSE_WAIT: u32 = 1 << 8;
    pub(crate) const LAST_ACK: u32 = 1 << 9;
    pub(crate) const LISTEN: u32 = 1 << 10;
    pub(crate) const CLOSING: u32 = 1 << 11;
}

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
/// Length of a netlink header in bytes.
const HEADER: usize = 16;
/// Length of `inet_diag_req_v2` in bytes.
const REQUEST: usize = 56;
/// Length of `inet_diag_msg` in bytes.
const ANSWER: usize = 72;

/// A socket, as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListedSocket {
    /// Its state, as a bit of [`states`].
    pub(crate) state: u32,
    /// The address and port that it is bound to. An IPv4 address is never written as IPv6.
    pub(crate) local: SocketAddr,
    /// The other end's address and port.
    pub(crate) peer: SocketAddr,
    /// The kernel's number for this socket, which no other one gets. A connection keeps it from the
    /// SYN on.
    pub(crate) cookie: u64,
    /// Its inode; 0 if no process has the socket.
    pub(crate) inode: u64,
}

/// A netlink socket to list the sockets of one network namespace.
pub(crate) struct SockDiag(Socket);

impl SockDiag {
    /// Opens it for the namespace that the calling thread is in; any thread may use it.
    ///
    /// # Errors
    /// The kernel has no `sock_diag`.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Calls `each` for every socket of a family (`AF_INET`, `AF_INET6`) and protocol
    /// (`IPPROTO_TCP`, `IPPROTO_UDP`) that is in one of the states.
    ///
    /// # Errors
    /// The kernel has no `sock_diag` for the protocol.
    pub(crate) fn list(
        &mut self,
        family: i32,
        protocol: i32,
        states: u32,
        mut each: impl FnMut(ListedSocket),
    ) -> io::Result<()> {
        self.0.send(&request(family, protocol, states), 0)?;
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            if read(&datagram, &mut each)? {
                return Ok(());
            }
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

/// Calls `each` for the sockets that a netlink datagram lists; returns `true` at the end of the
/// dump.
fn read(datagram: &[u8], each: &mut impl FnMut(ListedSocket)) -> io::Result<bool> {
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
            _ => {
                if let Some(socket) = message.get(HEADER..HEADER + ANSWER).and_then(listed) {
                    each(socket);
                }
            }
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Parses one `inet_diag_msg`.
fn listed(message: &[u8]) -> Option<ListedSocket> {
    let is_v6 = i32::from(*message.first()?) == libc::AF_INET6;
    let address = |at: usize| {
        Some(if is_v6 {
            IpAddr::V6(Ipv6Addr::from(bytes::<16>(message, at)?)).to_canonical()
        } else {
            IpAddr::V4(Ipv4Addr::from(bytes::<4>(message, at)?))
        })
    };
    let port = |at: usize| Some(u16::from_be_bytes(bytes(message, at)?));
    Some(ListedSocket {
        state: 1_u32.checked_shl(u32::from(*message.get(1)?))?,
        local: SocketAddr::new(address(8)?, port(4)?),
        peer: SocketAddr::new(address(24)?, port(6)?),
        cookie: u64::from_ne_bytes(bytes(message, 44)?),
        inode: u64::from(u32::from_ne_bytes(bytes(message, 68)?)),
    })
}

fn bytes<const N: usize>(message: &[u8], at: usize) -> Option<[u8; N]> {
    message.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn both_ends_of_a_connection_are_listed_with_cookies_of_their_own() {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let (server, _) = listener.accept().unwrap();
        let (ours, theirs) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let find = |wanted: u32| {
            let mut found = Vec::new();
            let mut diag = SockDiag::open().unwrap();
            for family in [libc::AF_INET, libc::AF_INET6] {
                diag.list(family, libc::IPPROTO_TCP, wanted, |socket| found.push(socket)).unwrap();
            }
            found
        };
        let open = find(states::ESTABLISHED);
        let end = |local, peer| *open.iter().find(|s| s.local == local && s.peer == peer).unwrap();
        let (near, far) = (end(ours, theirs), end(theirs, ours));
        assert_ne!(near.cookie, far.cookie);
        assert!(open.iter().all(|socket| socket.state == states::ESTABLISHED));
        let again = find(states::ESTABLISHED);
        assert!(again.contains(&near) && again.contains(&far), "cookies stay");
        assert!(find(states::LISTEN).iter().any(|socket| socket.local.port() == port));

        drop(server);
        let left = find(states::ESTABLISHED);
        assert!(!left.iter().any(|socket| [near.cookie, far.cookie].contains(&socket.cookie)));
        let closing = find(states::CLOSE_WAIT);
        assert!(closing.iter().any(|socket| socket.cookie == near.cookie), "the client has not closed");
    }
}
