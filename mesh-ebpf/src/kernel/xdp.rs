//! A packet at an XDP hook. Its checksums are finished, so the program updates them by itself.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};

use crate::abi::Address;
use crate::csum;
use crate::packet::{Checksum, Covered, Packet};
use crate::parse::vxlan::OVERHEAD;

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
pub(super) fn read_between<const N: usize>(
    (data, data_end): (usize, usize),
    offset: usize,
) -> Option<[u8; N]> {
    let at = data + offset;
    if at + N > data_end {
        return None;
    }
    let mut bytes = [0; N];
    let mut done = 0;
    macro_rules! read_words {
        ($word:ty) => {
            while done + size_of::<$word>() <= N {
                // SAFETY: within the packet. Packets are seldom aligned. The instruction doesn't
                // require it, but for an unaligned read the compiler would emit one instruction a
                // byte.
                let word = unsafe { *((at + done) as *const $word) };
                bytes[done..done + size_of::<$word>()].copy_from_slice(&word.to_ne_bytes());
                done += size_of::<$word>();
            }
        };
    }
    read_words!(u64);
    read_words!(u32);
    read_words!(u16);
    read_words!(u8);
    Some(bytes)
}

/// Overwrites the bytes at `offset` of a packet with these bounds.
#[inline(always)]
pub(super) fn write_between<const N: usize>(
    (data, data_end): (usize, usize),
    offset: usize,
    bytes: &[u8; N],
) -> Option<()> {
    let at = data + offset;
    if at + N > data_end {
        return None;
    }
    let mut done = 0;
    macro_rules! write_words {
        ($word:ty) => {
            while done + size_of::<$word>() <= N {
                let mut word = [0; size_of::<$word>()];
                word.copy_from_slice(&bytes[done..done + size_of::<$word>()]);
                // SAFETY: within the packet; for alignment see `read_between`.
                unsafe { *((at + done) as *mut $word) = <$word>::from_ne_bytes(word) };
                done += size_of::<$word>();
            }
        };
    }
    write_words!(u64);
    write_words!(u32);
    write_words!(u16);
    write_words!(u8);
    Some(())
}

impl Packet for Xdp {
    #[inline(always)]
    fn read_bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        read_between(self.bounds(), offset)
    }

    #[inline(always)]
    fn write_bytes<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        write_between(self.bounds(), offset, bytes)
    }

    #[inline(always)]
    fn write_and_resum<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        self.write_bytes(offset, bytes)
    }

    #[inline(always)]
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

    #[inline(always)]
    fn patch_pseudo_header(&mut self, checksum: Checksum, old: &Address, new: &Address) -> Option<()> {
        let before = self.read_bytes::<2>(checksum.offset)?;
        let patched = csum::replace_optional(before, checksum.is_optional, &old.0, &new.0);
        self.write_bytes(checksum.offset, &patched)
    }

    #[inline(always)]
    fn is_checksum_pending(&mut self, _: usize) -> Option<bool> {
        Some(false)
    }

    #[inline(always)]
    fn drop_pending_checksum(&mut self) -> Option<()> {
        None
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) -> Option<()> {
        // SAFETY: the context is valid for the program's run.
        unsafe {
            let delta = len as i32 - bpf_xdp_get_buff_len(self.context) as i32;
            (bpf_xdp_adjust_tail(self.context, delta) == 0).then_some(())
        }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the program's run.
        unsafe { (*self.context).ingress_ifindex }
    }

    /// What XDP passes meets the uplink's TC program, which sets the mark.
    #[inline(always)]
    fn mark(&mut self) {}

    #[inline(always)]
    fn take_mark(&mut self) -> bool {
        false
    }

    #[inline(always)]
    fn hand_over(&mut self, _: [u32; 5]) {}

    #[inline(always)]
    fn handed_over(&self) -> [u32; 5] {
        [0; 5]
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        1
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn flow_hash(&self) -> Option<u32> {
        None
    }

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
