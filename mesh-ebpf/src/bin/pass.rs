//! An XDP program that passes everything. A veth accepts frames from an XDP program on its other
//! end only if it runs an XDP program itself: this one is for the far ends of veth uplinks, as in
//! labs.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::bindings::xdp_action::XDP_PASS;
    use aya_ebpf::macros::xdp;
    use aya_ebpf::programs::XdpContext;

    mesh_ebpf::object!();

    #[xdp(frags)]
    fn mesh_pass(_: XdpContext) -> u32 {
        XDP_PASS
    }
}

/// The program runs in the kernel only.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
