//! Programs for `cargo xtask bench packet`: a source of frames; the bare XDP_TX that everything is
//! compared with; the same with one access to a cache line; what a receiver of tunnel packets does
//! without and with the check of their cookie; and a sink.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::EbpfContext;
    use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX};
    use aya_ebpf::btf_maps::{Array, PerCpuArray};
    use aya_ebpf::helpers::generated::bpf_redirect;
    use aya_ebpf::macros::{btf_map, xdp};
    use aya_ebpf::programs::XdpContext;
    use mesh_ebpf::abi::Address;
    use mesh_ebpf::generator::{self, HEADERS_LEN, LINES_MAX, Recipe};
    use mesh_ebpf::kernel::{Kernel, Xdp};
    use mesh_ebpf::lookups::Lookups;
    use mesh_ebpf::packet::Packet;
    use mesh_ebpf::parse::{eth, ipv4, vxlan};

    mesh_ebpf::object!();

    #[btf_map]
    static RECIPE: PerCpuArray<Recipe, 1> = PerCpuArray::new();
    /// The number of frames that this CPU has sent so far.
    #[btf_map]
    static SENT: PerCpuArray<u64, 1> = PerCpuArray::new();

    /// Overwrites the frame and sends it out of the recipe's interface.
    #[xdp]
    fn bench_generate(context: XdpContext) -> u32 {
        let (Some(recipe), Some(sent)) = (RECIPE.get(0), SENT.get_ptr_mut(0)) else {
            return XDP_ABORTED;
        };
        let at = context.data();
        if at + HEADERS_LEN > context.data_end() {
            return XDP_ABORTED;
        }
        // SAFETY: a live map value that only this CPU writes, and bytes within the frame.
        unsafe {
            let number = *sent;
            *sent = number + 1;
            *(at as *mut [u8; HEADERS_LEN]) = generator::headers(recipe, number);
            bpf_redirect(recipe.ifindex, 0) as u32
        }
    }

    /// The least that an XDP program can do to send a frame on: XDP_TX.
    #[xdp(frags)]
    fn bench_bounce(_: XdpContext) -> u32 {
        XDP_TX
    }

    /// An array of cache lines, as many as the flow table has cells.
    #[btf_map]
    static LINES: Array<[u64; 8], { LINES_MAX as usize }> = Array::new();

    /// The least that a program with a state for each flow can do: read one cache line, then
    /// XDP_TX.
    #[xdp(frags)]
    fn bench_line(context: XdpContext) -> u32 {
        let at = context.data();
        if at + HEADERS_LEN > context.data_end() {
            return XDP_ABORTED;
        }
        let Some(recipe) = RECIPE.get(0) else { return XDP_ABORTED };
        // SAFETY: bytes within the frame, in which the generator has put its headers.
        let (client, port) = unsafe {
            (
                (at as *const u8).add(26).cast::<u32>().read_unaligned(),
                (at as *const u8).add(34).cast::<u16>().read_unaligned(),
            )
        };
        match LINES.get(generator::line(u32::from_be(client), u16::from_be(port), recipe.lines)) {
            // Never true, but the compiler must not drop the read.
            Some(line) if line[0] == u64::MAX => XDP_DROP,
            Some(_) => XDP_TX,
            None => XDP_ABORTED,
        }
    }

    /// Finds the sender of a tunnel packet among the members, as its receiver does, then XDP_TX.
    /// The sender is the frame's destination, the one address that all frames have in common.
    #[xdp(frags)]
    fn bench_sender(context: XdpContext) -> u32 {
        let kernel = Kernel::new(context.as_ptr());
        match sender(&Xdp::new(context.ctx), &kernel) {
            Some(_) => XDP_TX,
            None => XDP_ABORTED,
        }
    }

    /// The same, and checks the cookie of the packet: the bytes that lie where a tunnel packet has
    /// it.
    #[xdp(frags)]
    fn bench_cookie(context: XdpContext) -> u32 {
        const VXLAN: usize = vxlan::OVERHEAD - vxlan::LEN;
        let kernel = Kernel::new(context.as_ptr());
        let packet = Xdp::new(context.ctx);
        match sender(&packet, &kernel).and_then(|index| kernel.member(index)) {
            Some(member) if member.admits(vxlan::cookie(&packet, VXLAN)) => XDP_TX,
            _ => XDP_ABORTED,
        }
    }

    #[inline(always)]
    fn sender<P: Packet>(packet: &P, kernel: &Kernel) -> Option<u32> {
        let address = packet.read_bytes::<4>(eth::LEN + ipv4::DESTINATION)?;
        kernel.peer(&Address::v4(address))
    }

    /// Drops the frames that come back.
    #[xdp(frags)]
    fn bench_sink(_: XdpContext) -> u32 {
        XDP_DROP
    }
}

/// The programs run in the kernel only.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
