//! The encryption device: an Ethernet interface whose cable ends in this process (TAP).
//!
//! It outlives the agent, so that the programs that an earlier agent attached send to it and take
//! from it as soon as the next agent reads it, before that one has loaded its own. Without an agent
//! the kernel drops what is sent to it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::datapath::bring_up;

/// The device's name.
pub(crate) const DEVICE: &str = "meshw0";

/// What the device is asked for: Ethernet frames, and nothing before them.
#[expect(clippy::cast_possible_truncation, reason = "flags of 16 bits, as the request has them")]
const FLAGS: libc::c_short = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;

/// The kind of link (`IFLA_INFO_KIND`) that the device is.
const KIND: &str = "tun";

/// Whether a link with this name and of this kind is the encryption device, and not one that
/// somebody else has given its name.
pub(crate) fn is_device(name: &str, kind: Option<&str>) -> bool {
    name == DEVICE && kind == Some(KIND)
}

/// The device's end in this process. Non-blocking; each read or write is one frame.
pub(super) struct Device(File);

impl Device {
    /// Makes the device, or takes the one of an earlier agent, and brings it up.
    ///
    /// # Errors
    /// There is no `/dev/net/tun`, the agent may not use it, or another process has the device.
    pub(super) fn make(mtu: u32) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // SAFETY: all zeros is a valid request.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = FLAGS;
        // SAFETY: the descriptor is open, and the request lives as long as the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open; the argument is a number.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1) } != 0 {
            return Err(io::Error::last_os_error());
        }
        bring_up(DEVICE, mtu)?;
        Ok(Self(file))
    }

    /// Reads the next frame that the host sends by the device.
    ///
    /// # Errors
    /// There is none at the moment, or the device is gone.
    pub(super) fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(frame)
    }

    /// Makes the device receive a frame.
    ///
    /// # Errors
    /// The kernel has no memory for it, or the device is gone.
    pub(super) fn write(&self, frame: &[u8]) -> io::Result<usize> {
        (&self.0).write(frame)
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_of_that_kind_is_ours() {
        assert!(is_device("meshw0", Some("tun")));
        for (name, kind) in [("meshw0", None), ("meshw0", Some("bridge")), ("meshw1", Some("tun"))] {
            assert!(!is_device(name, kind), "{name} {kind:?}");
        }
    }
}
