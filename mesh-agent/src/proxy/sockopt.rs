//! Socket options that no library offers.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Boolean socket options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Switch {
    /// `IP_BIND_ADDRESS_NO_PORT`: bind the address, and choose the port at connect(2).
    BindAddressNoPort,
    /// `IP_PKTINFO`: report the destination of each IPv4 datagram.
    PacketInfo4,
    /// `IPV6_RECVPKTINFO`: report the destination of each datagram of an IPv6 socket.
    PacketInfo6,
}

/// Switches an option on.
///
/// # Errors
/// The kernel's error.
pub(super) fn switch_on(socket: &impl AsFd, switch: Switch) -> io::Result<()> {
    let (level, name) = match switch {
        Switch::BindAddressNoPort => (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
        Switch::PacketInfo4 => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        Switch::PacketInfo6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, and the kernel reads `length` bytes of `on`,
    // which lives until it returns.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const on).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
