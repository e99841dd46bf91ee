//! The kernel programs: one for each hook, and those that they continue in. All of them share the maps of this one object.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::EbpfContext;
    use aya_ebpf::bindings::TC_ACT_UNSPEC;
    use aya_ebpf::macros::{classifier, xdp};
    use aya_ebpf::programs::{TcContext, XdpContext};
    use mesh_ebpf::abi::Direction;
    use mesh_ebpf::kernel::{
        Kernel, Skb, Xdp, act_skb, act_xdp, error, fragment, handed_over, is_forwarded, origin,
    };
    use mesh_ebpf::pipeline;
    use mesh_ebpf::verdict::Fate;

    #[xdp(frags)]
    fn mesh_xdp(context: XdpContext) -> u32 {
        let kernel = Kernel::new(context.as_ptr());
        act_xdp(pipeline::xdp(&mut Xdp::new(context.ctx), &kernel))
    }

    #[classifier]
    fn mesh_uplink(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let fate = match Skb::of_flow(context.skb.skb) {
            Some(mut packet) => pipeline::uplink(&mut packet, &kernel),
            None => Fate::PASS,
        };
        act_skb(&context, &kernel, Direction::Request, fate)
    }

    /// On the way out: changes packets, and stops none. Connections of this host's own sockets are not remembered, as the ingress hooks ask
    /// for those.
    #[classifier]
    fn mesh_egress(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        if is_forwarded(context.skb.skb) {
            if let Some(packet) = Skb::of_flow(context.skb.skb) {
                pipeline::forwarded(&packet, &kernel);
            }
            return TC_ACT_UNSPEC;
        }
        pipeline::egress(&mut Skb::outgoing(context.skb.skb), &kernel);
        TC_ACT_UNSPEC
    }

    #[classifier]
    fn mesh_device(context: TcContext) -> i32 {
        pipeline::device(&mut Skb::outgoing(context.skb.skb));
        TC_ACT_UNSPEC
    }

    #[classifier]
    fn mesh_tunnel(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let origin = origin(context.skb.skb);
        let fate = match Skb::of_flow(context.skb.skb) {
            Some(mut packet) => pipeline::tunnel(&mut packet, &kernel, origin),
            None => Fate::PASS,
        };
        act_skb(&context, &kernel, origin.direction(), fate)
    }

    #[classifier]
    fn mesh_task(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let fate = match Skb::of_flow(context.skb.skb) {
            Some(mut packet) => pipeline::task(&mut packet, &kernel),
            None => Fate::PASS,
        };
        act_skb(&context, &kernel, Direction::Reply, fate)
    }

    /// Continues the others: [`mesh_ebpf::abi::Edge::Refuse`].
    #[classifier]
    fn mesh_refuse(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let answer = handed_over(context.skb.skb);
        let fate = match (Skb::new(context.skb.skb), fragment()) {
            (Some(mut packet), Some(fragment)) => pipeline::refuse(&mut packet, &kernel, &answer, fragment),
            _ => Fate::dropped(answer.reason),
        };
        act_skb(&context, &kernel, Direction::Request, fate)
    }

    /// [`mesh_ebpf::abi::Edge::UplinkError`].
    #[classifier]
    fn mesh_uplink_err(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let fate = match (Skb::new(context.skb.skb), error()) {
            (Some(mut packet), Some(error)) => pipeline::uplink_error(&mut packet, &kernel, error),
            _ => Fate::PASS,
        };
        act_skb(&context, &kernel, Direction::Request, fate)
    }

    /// [`mesh_ebpf::abi::Edge::TunnelError`].
    #[classifier]
    fn mesh_tunnel_err(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let origin = origin(context.skb.skb);
        let fate = match (Skb::new(context.skb.skb), error()) {
            (Some(mut packet), Some(error)) => pipeline::tunnel_error(&mut packet, &kernel, origin, error),
            _ => Fate::PASS,
        };
        act_skb(&context, &kernel, origin.direction(), fate)
    }

    /// [`mesh_ebpf::abi::Edge::TaskError`].
    #[classifier]
    fn mesh_task_err(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let fate = match (Skb::new(context.skb.skb), error()) {
            (Some(mut packet), Some(error)) => pipeline::task_error(&mut packet, &kernel, error),
            _ => Fate::PASS,
        };
        act_skb(&context, &kernel, Direction::Reply, fate)
    }

    /// [`mesh_ebpf::abi::Edge::UplinkFragment`].
    #[classifier]
    fn mesh_uplink_fra(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let fate = match (Skb::new(context.skb.skb), fragment()) {
            (Some(mut packet), Some(fragment)) => pipeline::uplink_fragment(&mut packet, &kernel, fragment),
            _ => Fate::PASS,
        };
        act_skb(&context, &kernel, Direction::Request, fate)
    }

    /// [`mesh_ebpf::abi::Edge::TaskFragment`].
    #[classifier]
    fn mesh_task_fra(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let fate = match (Skb::new(context.skb.skb), fragment()) {
            (Some(mut packet), Some(fragment)) => pipeline::task_fragment(&mut packet, &kernel, fragment),
            _ => Fate::PASS,
        };
        act_skb(&context, &kernel, Direction::Reply, fate)
    }

    /// [`mesh_ebpf::abi::Edge::TunnelFragment`].
    #[classifier]
    fn mesh_tunnel_fra(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let origin = origin(context.skb.skb);
        let fate = match (Skb::new(context.skb.skb), fragment()) {
            (Some(mut packet), Some(fragment)) => {
                pipeline::tunnel_fragment(&mut packet, &kernel, origin, fragment)
            }
            _ => Fate::PASS,
        };
        act_skb(&context, &kernel, origin.direction(), fate)
    }

    /// [`mesh_ebpf::abi::Edge::Decapsulate`].
    #[classifier]
    fn mesh_decap(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let Some(mut packet) = Skb::in_tunnel(context.skb.skb) else {
            return act_skb(&context, &kernel, Direction::Request, Fate::PASS);
        };
        let origin = pipeline::outer_origin(&packet);
        let fate = pipeline::decapsulate(&mut packet, &kernel, origin);
        act_skb(&context, &kernel, origin.direction(), fate)
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
