//! Notices when links, addresses, routes or filters of the node change. The caller then queries
//! what changed, except for links, whose notifications say it.

use std::io;

use rtnetlink::constants::{
    RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_LINK, RTMGRP_TC,
};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::netlink::{Link, read_link};

/// A subscription to the kernel's notifications.
pub(crate) struct Monitor {
    socket: AsyncFd<Socket>,
}

/// A change of one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkChange {
    /// The link is new, or one of its attributes has changed.
    Present(Link),
    /// The link with this index is gone.
    Gone(u32),
}

/// Changes of links since the last call of [`Monitor::link_changes`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LinkChanges {
    /// The changes, in order.
    pub(crate) changes: Vec<LinkChange>,
    /// Whether there were more, which are lost: only a query of all links shows what they were.
    pub(crate) is_incomplete: bool,
}

impl LinkChanges {
    /// As if every link had changed.
    pub(crate) fn everything() -> Self {
        Self { is_incomplete: true, ..Self::default() }
    }
}

impl Monitor {
    /// Subscribes to changes of links, addresses and routes, and if `with_filters` of qdiscs and
    /// their filters, in the network namespace of the calling thread. Call it within a runtime.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub(crate) fn open(with_filters: bool) -> io::Result<Self> {
        let filters = if with_filters { RTMGRP_TC } else { 0 };
        Self::of(RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | filters)
    }

    /// Subscribes to changes of links alone; see [`Monitor::open`].
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub(crate) fn of_links() -> io::Result<Self> {
        Self::of(RTMGRP_LINK)
    }

    fn of(groups: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
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
        self.take(|_| ()).await
    }

    /// Waits for the next changes of links and takes all that are there.
    ///
    /// # Errors
    /// The socket failed. Lost notifications are no error, see [`LinkChanges::is_incomplete`].
    pub(crate) async fn link_changes(&self) -> io::Result<LinkChanges> {
        let mut found = LinkChanges::default();
        self.take(|datagram| match datagram.map(read_changes) {
            Some(Ok(changes)) => found.changes.extend(changes),
            Some(Err(_)) | None => found.is_incomplete = true,
        })
        .await?;
        Ok(found)
    }

    /// Waits for datagrams and hands over all that are there; `None` stands for lost ones.
    async fn take(&self, mut visit: impl FnMut(Option<&[u8]>)) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut buffer = Vec::with_capacity(1 << 16);
            let mut notices = 0_usize;
            let drained = loop {
                buffer.clear();
                match self.socket.get_ref().recv(&mut buffer, libc::MSG_TRUNC) {
                    Ok(length) => {
                        notices += 1;
                        visit((length <= buffer.len()).then_some(&buffer[..]));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        notices += 1;
                        visit(None);
                    }
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

/// The changes of links that a datagram reports. Those of another family than "unspecified" are a
/// bridge's reports about its ports: they don't say whether the link itself exists.
fn read_changes(datagram: &[u8]) -> io::Result<Vec<LinkChange>> {
    let (mut changes, mut rest) = (Vec::new(), datagram);
    while !rest.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
        let length = usize::try_from(message.header.length).unwrap_or_default().next_multiple_of(4).max(16);
        rest = rest.get(length..).unwrap_or_default();
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
                if link.header.interface_family == AddressFamily::Unspec =>
            {
                changes.push(LinkChange::Present(read_link(link)));
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
                if link.header.interface_family == AddressFamily::Unspec =>
            {
                changes.push(LinkChange::Gone(link.header.index));
            }
            _ => {}
        }
    }
    Ok(changes)
}
