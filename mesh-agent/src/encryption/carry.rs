//! Moves packets between the device, the tunnels and the socket.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::device::Device;
use super::tunnels::{ROOM, Step, Tunnels, wanted};
use crate::view::NodeView;

/// How often tunnels look at their timers.
const TICK: Duration = Duration::from_millis(250);
/// The most frames or datagrams that are handled before the other side gets its turn.
const BATCH: usize = 64;
/// Bytes that may wait in the socket, each way, as far as the kernel grants them.
const SOCKET_BUFFER: usize = 4 << 20;

/// Binds the socket of all tunnels.
///
/// # Errors
/// The kernel refuses the address or the port.
pub(super) fn bind(address: SocketAddrV4) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    may_be_fragmented(&socket)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Lets the kernel fragment datagrams: of a network whose user set a larger MTU than fits.
fn may_be_fragmented(socket: &Socket) -> io::Result<()> {
    let never: libc::c_int = libc::IP_PMTUDISC_DONT;
    let len = libc::socklen_t::try_from(size_of_val(&never)).map_err(io::Error::other)?;
    // SAFETY: the socket is open, and the value lives as long as the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const never).cast(),
            len,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Carries packets until `stop`.
///
/// # Errors
/// The device or the socket can't be read any more.
pub(super) async fn run(
    device: Device,
    socket: UdpSocket,
    mut tunnels: Tunnels,
    mut views: watch::Receiver<Arc<NodeView>>,
    stop: CancellationToken,
) -> io::Result<()> {
    // SAFETY: the device owns its descriptor, which nothing closes or replaces before the `AsyncFd`
    // that holds it is dropped.
    let device = unsafe { AsyncFd::register_with_interest(device, Interest::READABLE) };
    let device = device.map_err(|error| error.into_parts().1)?;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = vec![0; ROOM];
    views.mark_changed();
    loop {
        let out = |step: Step<'_>| carry_out(&step, &device, &socket);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = views.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let wanted = wanted(&views.borrow_and_update());
                tunnels.follow(&wanted, out);
            }
            _ = ticks.tick(), if !tunnels.is_empty() => tunnels.tick(out),
            ready = device.readable() => {
                let mut ready = ready?;
                for _ in 0..BATCH {
                    match ready.try_io(|device| device.get_ref().read(&mut buffer)) {
                        Ok(read) => tunnels.encrypt(&buffer[..read?], out),
                        Err(_) => break,
                    }
                }
            }
            ready = socket.readable() => {
                ready?;
                for _ in 0..BATCH {
                    match socket.try_recv_from(&mut buffer) {
                        Ok((len, from)) => tunnels.decrypt(from, &buffer[..len], out),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        // An ICMP error about an earlier datagram: its node may be restarting.
                        Err(error) => tracing::debug!(%error, "a node did not take a datagram of a tunnel"),
                    }
                }
            }
        }
    }
}

/// Carries a step out. What the kernel has no room for is lost, as on any wire: the senders' TCP
/// sends it again.
fn carry_out(step: &Step<'_>, device: &AsyncFd<Device>, socket: &UdpSocket) {
    let done = match step {
        Step::Send(to, datagram) => socket.try_send_to(datagram, (*to).into()),
        Step::Receive(frame) => device.get_ref().write(frame),
    };
    if let Err(error) = done {
        tracing::debug!(%error, "a packet of an encrypted network is lost");
    }
}
