//! Programs for `cargo xtask bench packet`: a source of frames, the bare XDP_TX that everything is held against, and a sink.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX};
    use aya_ebpf::btf_maps::Array;
    use aya_ebpf::helpers::generated::bpf_redirect;
    use aya_ebpf::macros::{btf_map, xdp};
    use aya_ebpf::programs::XdpContext;
    use mesh_ebpf::generator::{self, HEADERS_LEN, Recipe};

    #[btf_map]
    static RECIPE: Array<Recipe, 1> = Array::new();
    /// Frames sent so far. One CPU generates at a time.
    #[btf_map]
    static SENT: Array<u64, 1> = Array::new();

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

    /// The least that an XDP program can do to send a frame on.
    #[xdp(frags)]
    fn bench_bounce(_: XdpContext) -> u32 {
        XDP_TX
    }

    /// Takes what comes back.
    #[xdp(frags)]
    fn bench_sink(_: XdpContext) -> u32 {
        XDP_DROP
    }

    /// Unreachable: there is nothing here that could panic.
    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

/// The programs run in the kernel only.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
