//! A packet in a buffer of the host, with finished checksums, like XDP sees it.

use std::vec;
use std::vec::Vec;

use crate::csum;
use crate::packet::{Covered, Packet, Resizable};
use crate::parse::vxlan::OVERHEAD;
use crate::rewrite::{ANSWER, ANSWER_LEN, Answer};

/// ifindex that frames come in by, unless said otherwise: the loopback's, which a kernel test run uses too.
pub const IFINDEX: u32 = 1;

/// A packet in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its bytes, from the Ethernet header on.
    pub bytes: Vec<u8>,
    /// Interface it came in by.
    pub ifindex: u32,
}

impl Frame {
    /// A frame that came in by [`IFINDEX`].
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, ifindex: IFINDEX }
    }
}

impl Packet for Frame {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }

    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        self.bytes.get_mut(offset..offset.checked_add(N)?)?.copy_from_slice(bytes);
        Some(())
    }

    fn patch_transport_checksum(
        &mut self,
        offset: usize,
        old: [u8; 4],
        new: [u8; 4],
        _: Covered,
    ) -> Option<()> {
        let patched = csum::replace(self.load::<2>(offset)?, &old, &new);
        self.store(offset, &patched)
    }

    fn become_answer(&mut self, answer: &Answer) -> Option<()> {
        self.bytes.resize(ANSWER + ANSWER_LEN, 0);
        self.store(ANSWER, &answer.headers)
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn segments(&self) -> u32 {
        1
    }
}

impl Resizable for Frame {
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
