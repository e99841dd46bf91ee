//! A packet at an XDP hook. Checksums are finished here, and updated by hand.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};

use crate::csum;
use crate::packet::{Covered, Packet, Resizable};
use crate::parse::vxlan::OVERHEAD;
use crate::rewrite::{ANSWER, ANSWER_LEN, Answer};

/// A packet at an XDP hook.
pub struct Xdp {
    context: *mut xdp_md,
}

impl Xdp {
    /// The packet of this context.
    #[inline(always)]
    pub fn new(context: *mut xdp_md) -> Self {
        Self { context }
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the context is valid for the program's run.
        unsafe { ((*self.context).data as usize, (*self.context).data_end as usize) }
    }
}

/// The bytes at `offset` of a packet with these bounds.
#[inline(always)]
pub(super) fn load_between<const N: usize>(
    (data, data_end): (usize, usize),
    offset: usize,
) -> Option<[u8; N]> {
    let at = data + offset;
    if at + N > data_end {
        return None;
    }
    // SAFETY: the bytes are within the packet.
    Some(unsafe { *(at as *const [u8; N]) })
}

/// Overwrites the bytes at `offset` of a packet with these bounds.
#[inline(always)]
pub(super) fn store_between<const N: usize>(
    (data, data_end): (usize, usize),
    offset: usize,
    bytes: &[u8; N],
) -> Option<()> {
    let at = data + offset;
    if at + N > data_end {
        return None;
    }
    // SAFETY: the bytes are within the packet.
    unsafe { *(at as *mut [u8; N]) = *bytes };
    Some(())
}

impl Packet for Xdp {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        load_between(self.bounds(), offset)
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        store_between(self.bounds(), offset, bytes)
    }

    #[inline(always)]
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

    #[inline(always)]
    fn become_answer(&mut self, answer: &Answer) -> Option<()> {
        // SAFETY: the context is valid for the program's run.
        let len = unsafe { bpf_xdp_get_buff_len(self.context) };
        let delta = (ANSWER + ANSWER_LEN) as i32 - len as i32;
        // SAFETY: as above.
        if unsafe { bpf_xdp_adjust_tail(self.context, delta) } != 0 {
            return None;
        }
        self.store(ANSWER, &answer.headers)
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the program's run.
        unsafe { (*self.context).ingress_ifindex }
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        1
    }
}

impl Resizable for Xdp {
    #[inline(always)]
    fn push_outer(&mut self) -> Option<()> {
        // SAFETY: the context is valid for the program's run.
        (unsafe { bpf_xdp_adjust_head(self.context, -(OVERHEAD as i32)) } == 0).then_some(())
    }

    #[inline(always)]
    fn pull_outer(&mut self) -> Option<()> {
        // SAFETY: the context is valid for the program's run.
        (unsafe { bpf_xdp_adjust_head(self.context, OVERHEAD as i32) } == 0).then_some(())
    }
}
