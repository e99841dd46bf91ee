//! A packet in the host's memory, with finished checksums, as at XDP.

use std::vec;
use std::vec::Vec;

use crate::abi::Address;
use crate::csum;
use crate::packet::{Checksum, Covered, Packet};
use crate::parse::vxlan::OVERHEAD;

/// The default ifindex that frames come in by: the loopback's, which a kernel test run uses too.
pub const IFINDEX: u32 = 1;

/// A packet in the host's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The packet's bytes, from the Ethernet header on.
    pub bytes: Vec<u8>,
    /// ifindex of the interface that it came in by.
    pub ifindex: u32,
    /// Bytes of payload in each of the packets that it stands for; 0 if it stands for itself only.
    pub segment_size: u32,
    /// Whether mesh has marked it, see [`Packet::mark`].
    pub is_marked: bool,
    /// What one program has handed over to the next, see [`Packet::hand_over`].
    pub handed_over: [u32; 5],
}

impl Frame {
    /// A frame that came in by [`IFINDEX`].
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, ifindex: IFINDEX, segment_size: 0, is_marked: false, handed_over: [0; 5] }
    }
}

impl Packet for Frame {
    fn read_bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }

    fn write_bytes<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        self.bytes.get_mut(offset..offset.checked_add(N)?)?.copy_from_slice(bytes);
        Some(())
    }

    fn write_and_resum<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        self.write_bytes(offset, bytes)
    }

    fn patch_transport_checksum(
        &mut self,
        checksum: Checksum,
        old: [u8; 4],
        new: [u8; 4],
        _: Covered,
    ) -> Option<()> {
        let before = self.read_bytes::<2>(checksum.offset)?;
        let patched = csum::replace_optional(before, checksum.is_optional, &old, &new);
        self.write_bytes(checksum.offset, &patched)
    }

    fn patch_pseudo_header(&mut self, checksum: Checksum, old: &Address, new: &Address) -> Option<()> {
        let before = self.read_bytes::<2>(checksum.offset)?;
        let patched = csum::replace_optional(before, checksum.is_optional, &old.0, &new.0);
        self.write_bytes(checksum.offset, &patched)
    }

    fn is_checksum_pending(&mut self, _: usize) -> Option<bool> {
        Some(false)
    }

    fn drop_pending_checksum(&mut self) -> Option<()> {
        None
    }

    fn resize(&mut self, len: usize) -> Option<()> {
        self.bytes.resize(len, 0);
        Some(())
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn mark(&mut self) {
        self.is_marked = true;
    }

    fn take_mark(&mut self) -> bool {
        core::mem::take(&mut self.is_marked)
    }

    fn hand_over(&mut self, words: [u32; 5]) {
        self.handed_over = words;
    }

    fn handed_over(&self) -> [u32; 5] {
        self.handed_over
    }

    fn segments(&self) -> u32 {
        1
    }

    fn segment_size(&self) -> u32 {
        self.segment_size
    }

    fn flow_hash(&self) -> Option<u32> {
        None
    }

    fn push_outer(&mut self) -> Option<()> {
        let mut grown = vec![0xee; OVERHEAD];
        grown.append(&mut self.bytes);
        self.bytes = grown;
        Some(())
    }

    fn pull_outer(&mut self) -> Option<()> {
        self.bytes = self.bytes.get(OVERHEAD..)?.to_vec();
        Some(())
    }
}
