//! The interface between the pipeline and a packet: a kernel context or a host buffer.
//!
//! Offsets count from the start of the Ethernet header. Every access is checked; `None` means that
//! the packet is too short, or that the kernel refused. The pipeline never writes a checksum over
//! the transport header of a forwarded packet: in TC the device may still have to finish it, and
//! only the implementation knows.

use crate::abi::Address;

/// A packet at the hook of a program.
pub trait Packet {
    /// The `N` bytes at `offset`.
    fn read_bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Overwrites the `N` bytes at `offset`, and leaves the kernel's sum over the packet
    /// (`skb->csum`) alone. So the caller must change other bytes, such as a checksum, that make up
    /// for the difference.
    fn write_bytes<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()>;

    /// Overwrites the `N` bytes at `offset`, which must be even, and updates the kernel's sum over
    /// the packet (`skb->csum`).
    fn write_and_resum<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()>;

    /// Updates a transport checksum after the bytes `old`, at an even offset of what it covers,
    /// became `new`.
    fn patch_transport_checksum(
        &mut self,
        checksum: Checksum,
        old: [u8; 4],
        new: [u8; 4],
        part: Covered,
    ) -> Option<()>;

    /// Updates a transport checksum after an IPv6 address of the pseudo header changed from `old`
    /// to `new`.
    fn patch_pseudo_header(&mut self, checksum: Checksum, old: &Address, new: &Address) -> Option<()>;

    /// Whether the device still has to finish the transport checksum at `offset`. The field is
    /// undefined after this call.
    fn is_checksum_pending(&mut self, offset: usize) -> Option<bool>;

    /// Makes the device forget the transport checksum that it still has to finish. This destroys
    /// the first bytes after the Ethernet header, and shortens the packet by as many. The packet
    /// must have a thousand bytes.
    fn drop_pending_checksum(&mut self) -> Option<()>;

    /// Cuts the packet, or lengthens it with undefined bytes, to this length, counted from the
    /// Ethernet header on.
    fn resize(&mut self, len: usize) -> Option<()>;

    /// ifindex of the interface that the packet came in by.
    fn ifindex(&self) -> u32;

    /// Marks a tunnel packet on its way into or out of the VXLAN device as one that mesh has
    /// checked: see [`crate::abi::TUNNEL_MARK`].
    fn mark(&mut self);

    /// Whether the packet has that mark. Clears it, as it means nothing to the rest of the host.
    fn take_mark(&mut self) -> bool;

    /// Hands words over to the program that continues in a tail call, which reads them with
    /// [`Self::handed_over`]. At XDP there is no such program, and nothing is kept.
    fn hand_over(&mut self, words: [u32; 5]);

    /// The words that the program before the tail call has handed over.
    fn handed_over(&self) -> [u32; 5];

    /// How many packets on the wire this one stands for (segmentation offload).
    fn segments(&self) -> u32;

    /// Bytes of payload in each of those packets; 0 if the packet stands for itself only.
    fn segment_size(&self) -> u32;

    /// The hash from which the kernel's own tunnels derive a flow's outer source port; `None` at
    /// XDP, where the kernel knows of no flow yet.
    fn flow_hash(&self) -> Option<u32>;

    /// Adds [`crate::parse::vxlan::OVERHEAD`] undefined bytes in front of the packet. If the kernel
    /// refuses, the packet is unchanged. Must not be called on a packet that stands for several.
    fn push_outer(&mut self) -> Option<()>;

    /// Removes the first [`crate::parse::vxlan::OVERHEAD`] bytes. If the kernel refuses, the packet
    /// is unchanged.
    fn pull_outer(&mut self) -> Option<()>;
}

/// Where a transport checksum is, and its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Offset of the checksum in the frame.
    pub offset: usize,
    /// Whether 0 means "no checksum", as in UDP, where a computed 0 is written as 0xffff.
    pub is_optional: bool,
}

/// Which of the bytes that a transport checksum covers have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered {
    /// An address of the pseudo header.
    PseudoHeader,
    /// The transport header or its data.
    Segment,
}
