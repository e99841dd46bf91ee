//! What the packet logic asks of a packet: the seam between the pipeline and a kernel context or a host buffer.
//!
//! Offsets count from the start of the Ethernet header. Every access is checked; `None` means "not that long", or
//! that the kernel refused. A checksum over the transport header is never written by the pipeline: in TC it may be
//! one that the device has yet to finish, and only the implementation knows.

use crate::rewrite::Answer;

/// A packet at the hook of a program.
pub trait Packet {
    /// The `N` bytes at `offset`.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Overwrites the `N` bytes at `offset`. Checksums are the caller's concern.
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()>;

    /// Accounts in the transport checksum at `offset` for the bytes `old`, at an even offset of what it covers,
    /// becoming `new`.
    fn patch_transport_checksum(
        &mut self,
        offset: usize,
        old: [u8; 4],
        new: [u8; 4],
        part: Covered,
    ) -> Option<()>;

    /// Turns the packet after its Ethernet header into `answer`.
    fn become_answer(&mut self, answer: &Answer) -> Option<()>;

    /// ifindex of the interface it came in by.
    fn ifindex(&self) -> u32;

    /// How many packets of the wire this one stands for (segmentation offload).
    fn segments(&self) -> u32;
}

/// A packet that headers can be put in front of, and taken from: XDP's.
pub trait Resizable: Packet {
    /// Makes room for [`crate::parse::vxlan::OVERHEAD`] bytes in front; their content is undefined.
    fn push_outer(&mut self) -> Option<()>;

    /// Takes the first [`crate::parse::vxlan::OVERHEAD`] bytes away.
    fn pull_outer(&mut self) -> Option<()>;
}

/// Which part of what a transport checksum covers has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered {
    /// An address of the pseudo header.
    PseudoHeader,
    /// The transport header or its data.
    Segment,
}
