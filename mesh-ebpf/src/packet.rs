//! What the packet logic asks of a packet: the seam between the pipeline and a kernel context or a host buffer.
//!
//! Offsets count from the start of the Ethernet header. Every access is checked; `None` means "not that long", or
//! that the kernel refused. A checksum over the transport header of a forwarded packet is never written by the
//! pipeline: in TC it may be one that the device has yet to finish, and only the implementation knows.

use crate::abi::Address;

/// A packet at the hook of a program.
pub trait Packet {
    /// The `N` bytes at `offset`.
    fn read_bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Overwrites the `N` bytes at `offset`, in a way that leaves the sum over the packet as it was: checksums over
    /// them are the caller's concern.
    fn write_bytes<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()>;

    /// Overwrites the `N` bytes at `offset`, an even one, whatever that does to the sum over the packet.
    fn write_and_resum<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()>;

    /// Accounts in a transport checksum for the bytes `old`, at an even offset of what it covers, becoming `new`.
    fn patch_transport_checksum(
        &mut self,
        checksum: Checksum,
        old: [u8; 4],
        new: [u8; 4],
        part: Covered,
    ) -> Option<()>;

    /// The same for an IPv6 address of the pseudo header.
    fn patch_pseudo_header(&mut self, checksum: Checksum, old: &Address, new: &Address) -> Option<()>;

    /// Whether the device has yet to finish the transport checksum at `offset`. The field is undefined afterwards.
    fn is_checksum_pending(&mut self, offset: usize) -> Option<bool>;

    /// Has the device forget the transport checksum that it has yet to finish, at the price of the first bytes after the Ethernet
    /// header, which are lost, and of as many in all. The packet must have a thousand bytes.
    fn drop_pending_checksum(&mut self) -> Option<()>;

    /// Cuts the packet, or lengthens it with undefined bytes, to this length from the Ethernet header on.
    fn resize(&mut self, len: usize) -> Option<()>;

    /// ifindex of the interface it came in by.
    fn ifindex(&self) -> u32;

    /// Marks a tunnel packet on its way into or out of the VXLAN device as one that mesh has let through.
    fn mark(&mut self);

    /// Whether it is marked; takes the mark off, which means nothing to the rest of the host.
    fn take_mark(&mut self) -> bool;

    /// How many packets of the wire this one stands for (segmentation offload).
    fn segments(&self) -> u32;

    /// Bytes of payload in each of them; 0 if it stands for itself.
    fn segment_size(&self) -> u32;

    /// What the kernel's own tunnels take a flow's outer source port from; `None` where the kernel knows of no flow yet.
    fn flow_hash(&self) -> Option<u32>;

    /// Makes room for [`crate::parse::vxlan::OVERHEAD`] bytes in front; their content is undefined.
    /// If it can't, the packet is as before; not for one that stands for several.
    fn push_outer(&mut self) -> Option<()>;

    /// Takes the first [`crate::parse::vxlan::OVERHEAD`] bytes away. If it can't, the packet is as before.
    fn pull_outer(&mut self) -> Option<()>;
}

/// A transport checksum in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Where it is.
    pub offset: usize,
    /// Whether 0 means that there is none: UDP's, which writes a 0 that was computed as 0xffff.
    pub is_optional: bool,
}

/// Which part of what a transport checksum covers has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered {
    /// An address of the pseudo header.
    PseudoHeader,
    /// The transport header or its data.
    Segment,
}
