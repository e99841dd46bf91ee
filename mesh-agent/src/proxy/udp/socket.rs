//! A published UDP port: receives datagrams with their destination address, and sends answers from
//! that address.
//!
//! Invariant: an answer's source is the address that the client sent to, however many addresses the
//! node has.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{MaybeUninitSlice, MsgHdr, MsgHdrMut, SockAddr, Socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::proxy::sockopt::{Switch, switch_on};

/// Room for one control message with an IPv6 address and one with an IPv4 address.
const CONTROL_BYTES: usize = 96;
/// A control message's length (8), level (4) and type (4) precede its data, which is padded to 8.
const CONTROL_HEADER: usize = 16;

/// The bytes of control messages, aligned as the kernel requires.
#[repr(align(8))]
struct Control<T>([T; CONTROL_BYTES]);

/// A bound UDP port.
#[derive(Debug)]
pub(super) struct UdpPort {
    socket: AsyncFd<Socket>,
    is_v6: bool,
}

/// The two addresses of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct DatagramAddresses {
    /// The client's address.
    pub(super) client: SocketAddr,
    /// The address of this node that the client sent to.
    pub(super) to: IpAddr,
}

impl UdpPort {
    /// Registers a bound socket with the calling thread's event loop.
    ///
    /// # Errors
    /// The kernel doesn't report destinations, or the event queue is full.
    pub(super) fn new(socket: Socket) -> io::Result<Self> {
        let is_v6 = socket.local_addr()?.is_ipv6();
        switch_on(&socket, if is_v6 { Switch::PacketInfo6 } else { Switch::PacketInfo4 })?;
        // SAFETY: the socket owns its descriptor, and nothing closes it before the port is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket, is_v6 })
    }

    /// Receives the next datagram: its length and addresses.
    ///
    /// # Errors
    /// The kernel's error; errors of earlier answers are reported here too.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, DatagramAddresses)> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| receive_one(socket.get_ref(), buffer)) {
                Ok(received) => return received,
                Err(_nothing_waits) => {}
            }
        }
    }

    /// Sends an answer to a client from the address that it sent to. Never waits: it fails if the
    /// socket's send queue is full.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn answer(&self, bytes: &[u8], addresses: DatagramAddresses) -> io::Result<()> {
        let client = SockAddr::from(if self.is_v6 { mapped(addresses.client) } else { addresses.client });
        let mut control = Control([0; CONTROL_BYTES]);
        let length = self.source(addresses.to, &mut control.0);
        let buffers = [IoSlice::new(bytes)];
        let message =
            MsgHdr::new().with_addr(&client).with_buffers(&buffers).with_control(&control.0[..length]);
        self.socket.get_ref().sendmsg(&message, 0).map(|_| ())
    }

    /// Writes the control message with the source address of an answer; returns its length.
    fn source(&self, address: IpAddr, control: &mut [u8; CONTROL_BYTES]) -> usize {
        match (self.is_v6, address) {
            (true, address) => {
                let mut data = [0; 20];
                data[..16].copy_from_slice(&octets(address));
                write_control(control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &data)
            }
            (false, IpAddr::V4(address)) => {
                let mut data = [0; 12];
                data[4..8].copy_from_slice(&address.octets());
                write_control(control, libc::IPPROTO_IP, libc::IP_PKTINFO, &data)
            }
            (false, IpAddr::V6(_)) => 0,
        }
    }
}

fn receive_one(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, DatagramAddresses)> {
    let mut peer = SockAddr::from(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
    let mut control = Control([MaybeUninit::new(0_u8); CONTROL_BYTES]);
    // SAFETY: `u8` and `MaybeUninit<u8>` have one layout, and the kernel only ever writes bytes
    // that are initialised.
    let bytes = unsafe { &mut *(std::ptr::from_mut(buffer) as *mut [MaybeUninit<u8>]) };
    let mut buffers = [MaybeUninitSlice::new(bytes)];
    let mut message =
        MsgHdrMut::new().with_addr(&mut peer).with_buffers(&mut buffers).with_control(&mut control.0);
    let length = socket.recvmsg(&mut message, 0)?;
    let control_length = message.control_len().min(CONTROL_BYTES);
    // SAFETY: every byte was initialised above.
    let control = control.0.map(|byte| unsafe { byte.assume_init() });
    let client = peer.as_socket().ok_or_else(|| io::Error::other("a datagram without a sender"))?;
    let to = read_destination(&control[..control_length])
        .ok_or_else(|| io::Error::other("a datagram without a destination"))?;
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    Ok((length, DatagramAddresses { client, to: to.to_canonical() }))
}

/// Reads the destination from the control messages.
fn read_destination(mut control: &[u8]) -> Option<IpAddr> {
    loop {
        let length = usize::from_ne_bytes(control.get(..8)?.try_into().ok()?);
        let level = i32::from_ne_bytes(control.get(8..12)?.try_into().ok()?);
        let kind = i32::from_ne_bytes(control.get(12..CONTROL_HEADER)?.try_into().ok()?);
        let data = control.get(CONTROL_HEADER..length)?;
        if (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) {
            return Some(Ipv6Addr::from(<[u8; 16]>::try_from(data.get(..16)?).ok()?).into());
        }
        if (level, kind) == (libc::IPPROTO_IP, libc::IP_PKTINFO) {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(data.get(8..12)?).ok()?).into());
        }
        control = control.get(length.next_multiple_of(8)..)?;
    }
}

/// Writes one control message; returns its length with padding.
fn write_control(control: &mut [u8; CONTROL_BYTES], level: i32, kind: i32, data: &[u8]) -> usize {
    let length = CONTROL_HEADER + data.len();
    control[..8].copy_from_slice(&length.to_ne_bytes());
    control[8..12].copy_from_slice(&level.to_ne_bytes());
    control[12..CONTROL_HEADER].copy_from_slice(&kind.to_ne_bytes());
    control[CONTROL_HEADER..length].copy_from_slice(data);
    length.next_multiple_of(8)
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(octets(address.ip())).into(), address.port())
}

#[cfg(test)]
mod tests {
    use socket2::Type;
    use tokio::net::UdpSocket;

    use super::*;
    use crate::proxy::accept::bind;

    #[tokio::test]
    async fn answers_come_from_the_address_that_was_spoken_to() {
        let any = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        let asked = ["127.0.0.7", "::1"].map(|text| text.parse::<IpAddr>().expect("an address"));
        for (listen, to) in any.into_iter().flat_map(|listen| asked.map(|to| (listen, to))) {
            if listen.is_ipv4() && to.is_ipv6() {
                continue;
            }
            let bound = bind(SocketAddr::new(listen, 0), Type::DGRAM).expect("a port");
            let port = bound.local_addr().expect("its address").as_socket().expect("an IP address").port();
            let published = UdpPort::new(bound).expect("a port that tells destinations");
            let client =
                UdpSocket::bind((if to.is_ipv4() { "127.0.0.1" } else { "::1" }, 0)).await.expect("a client");
            client.send_to(b"hello", (to, port)).await.expect("it is sent");
            let mut buffer = [0; 100];
            let (length, addresses) = published.receive(&mut buffer).await.expect("a datagram");
            let expected = DatagramAddresses { client: client.local_addr().expect("its address"), to };
            assert_eq!((&buffer[..length], addresses), (&b"hello"[..], expected), "{listen} from {to}");
            published.answer(b"hi", addresses).expect("it is answered");
            let (length, from) = client.recv_from(&mut buffer).await.expect("an answer");
            assert_eq!((length, from), (2, SocketAddr::new(to, port)), "{listen} from {to}");
        }
    }
}
