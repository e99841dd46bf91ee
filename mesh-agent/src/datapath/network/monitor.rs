//! Notices when links, addresses or routes of the node change; the caller then queries what
//! changed.

use std::io;

use rtnetlink::constants::{RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_LINK};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A subscription to the kernel's notifications.
pub(crate) struct Monitor {
    socket: AsyncFd<Socket>,
}

impl Monitor {
    /// Subscribes, in the network namespace of the calling thread. Call it within a runtime.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR;
        socket.bind(&SocketAddr::new(0, groups))?;
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor, which nothing closes or replaces before the
        // `AsyncFd` that holds it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self { socket: socket.map_err(|error| error.into_parts().1)? })
    }

    /// Waits for the next notifications and takes all that are there.
    ///
    /// # Errors
    /// The socket failed. Lost notifications are no error: they only say that something changed.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut buffer = Vec::with_capacity(1 << 16);
            let mut notices = 0_usize;
            let drained = loop {
                buffer.clear();
                match self.socket.get_ref().recv(&mut buffer, libc::MSG_TRUNC) {
                    Ok(_) => notices += 1,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => notices += 1,
                    Err(error) => break Err(error),
                }
            };
            ready.clear_ready();
            drained?;
            if notices > 0 {
                return Ok(());
            }
        }
    }
}
