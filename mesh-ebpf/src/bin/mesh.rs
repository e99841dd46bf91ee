//! The kernel programs, one for each hook. All of them share the maps of this one object.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::EbpfContext;
    use aya_ebpf::macros::{classifier, xdp};
    use aya_ebpf::programs::{TcContext, XdpContext};
    use mesh_ebpf::abi::Direction;
    use mesh_ebpf::kernel::{Kernel, Skb, Xdp, act_skb, act_xdp, origin};
    use mesh_ebpf::pipeline;
    use mesh_ebpf::verdict::Verdict;

    #[xdp(frags)]
    fn mesh_xdp(context: XdpContext) -> u32 {
        let kernel = Kernel::new(context.as_ptr());
        act_xdp(pipeline::xdp(&mut Xdp::new(context.ctx), &kernel))
    }

    #[classifier]
    fn mesh_uplink(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let verdict = match Skb::new(context.skb.skb) {
            Some(mut packet) => pipeline::uplink(&mut packet, &kernel),
            None => Verdict::Pass,
        };
        act_skb(context.skb.skb, &kernel, Direction::Request, verdict)
    }

    #[classifier]
    fn mesh_tunnel(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let origin = origin(context.skb.skb);
        let direction = if origin.vni.is_reply() { Direction::Reply } else { Direction::Request };
        let verdict = match Skb::new(context.skb.skb) {
            Some(mut packet) => pipeline::tunnel(&mut packet, &kernel, origin),
            None => Verdict::Pass,
        };
        act_skb(context.skb.skb, &kernel, direction, verdict)
    }

    #[classifier]
    fn mesh_task(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let verdict = match Skb::new(context.skb.skb) {
            Some(mut packet) => pipeline::task(&mut packet, &kernel),
            None => Verdict::Pass,
        };
        act_skb(context.skb.skb, &kernel, Direction::Reply, verdict)
    }

    /// Unreachable: the programs have no panicking paths, and the verifier would refuse the loop.
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
