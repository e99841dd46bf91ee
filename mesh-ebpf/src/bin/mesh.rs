//! The kernel programs: one for each hook, and those that they continue in by a tail call. All of
//! them share the maps of this one object.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::EbpfContext;
    use aya_ebpf::bindings::TC_ACT_UNSPEC;
    use aya_ebpf::macros::{classifier, xdp};
    use aya_ebpf::programs::{TcContext, XdpContext};
    use mesh_ebpf::abi::Direction;
    use mesh_ebpf::kernel::{
        Kernel, Skb, Xdp, act_skb, act_xdp, error, fragment, hand_over_origin, handed_over,
        handed_over_origin, is_forwarded, origin,
    };
    use mesh_ebpf::pipeline;
    use mesh_ebpf::verdict::Fate;

    mesh_ebpf::object!();

    #[xdp(frags)]
    fn mesh_xdp(context: XdpContext) -> u32 {
        let kernel = Kernel::new(context.as_ptr());
        act_xdp(pipeline::xdp(&mut Xdp::new(context.ctx), &kernel))
    }

    /// Declares TC programs, one a row: name, the direction that its drops are counted for, the
    /// constructor of its packet, the CPU's scratch space if the program needs one, and the
    /// pipeline's function.
    ///
    /// `tunnelled` in place of a direction means that the packet comes out of the VXLAN device,
    /// whose metadata say from which node and in which direction. A packet that the constructor
    /// refuses is left to the host stack.
    macro_rules! programs {
        ($($(#[$doc:meta])* $name:ident: $direction:ident, $packet:ident $(, $scratch:ident)? => $run:ident;)+) => {
            $(
                $(#[$doc])*
                #[classifier]
                fn $name(context: TcContext) -> i32 {
                    let kernel = Kernel::new(context.as_ptr());
                    program_body!(context, kernel, $direction, $packet, $run $(, $scratch)?)
                }
            )+
        };
    }

    macro_rules! program_body {
        ($context:ident, $kernel:ident, tunnelled, $packet:ident, $run:ident $(, $scratch:ident)?) => {{
            let origin = origin($context.skb.skb);
            let fate = program_body!(@fate $context, $kernel, $packet, $run, [origin,] $($scratch)?);
            act_skb(&$context, &$kernel, origin.direction(), fate)
        }};
        ($context:ident, $kernel:ident, $direction:ident, $packet:ident, $run:ident $(, $scratch:ident)?) => {{
            let fate = program_body!(@fate $context, $kernel, $packet, $run, [] $($scratch)?);
            act_skb(&$context, &$kernel, Direction::$direction, fate)
        }};
        (@fate $context:ident, $kernel:ident, $packet:ident, $run:ident, [$($origin:tt)*] $scratch:ident) => {
            match (Skb::$packet($context.skb.skb), $scratch()) {
                (Some(mut packet), Some(scratch)) => {
                    pipeline::$run(&mut packet, &$kernel, $($origin)* scratch)
                }
                _ => Fate::PASS,
            }
        };
        (@fate $context:ident, $kernel:ident, $packet:ident, $run:ident, [$($origin:tt)*]) => {
            match Skb::$packet($context.skb.skb) {
                Some(mut packet) => pipeline::$run(&mut packet, &$kernel, $($origin)*),
                None => Fate::PASS,
            }
        };
    }

    programs! {
        /// TC ingress of an uplink.
        mesh_uplink: Request, of_flow => uplink;
        /// TC ingress of the VXLAN device.
        mesh_tunnel: tunnelled, of_flow => tunnel;
        /// TC ingress of a task's host-side veth.
        mesh_task: Reply, of_flow => task;
        /// Tail call [`mesh_ebpf::abi::Edge::UplinkError`].
        mesh_uplink_err: Request, new, error => uplink_error;
        /// Tail call [`mesh_ebpf::abi::Edge::TunnelError`].
        mesh_tunnel_err: tunnelled, new, error => tunnel_error;
        /// Tail call [`mesh_ebpf::abi::Edge::TaskError`].
        mesh_task_err: Reply, new, error => task_error;
        /// Tail call [`mesh_ebpf::abi::Edge::UplinkFragment`].
        mesh_uplink_fra: Request, new, fragment => uplink_fragment;
        /// Tail call [`mesh_ebpf::abi::Edge::TunnelFragment`].
        mesh_tunnel_fra: tunnelled, new, fragment => tunnel_fragment;
        /// Tail call [`mesh_ebpf::abi::Edge::TaskFragment`].
        mesh_task_fra: Reply, new, fragment => task_fragment;
        /// Tail call [`mesh_ebpf::abi::Edge::NetworkTunnel6`].
        mesh_net_tun6: tunnelled, of_flow => network_tunnel6;
        /// Tail call [`mesh_ebpf::abi::Edge::VirtualIp`].
        mesh_vip: Request, of_flow => virtual_ip;
        /// Tail call [`mesh_ebpf::abi::Edge::VirtualReply`].
        mesh_vip_reply: Reply, of_flow => virtual_reply;
        /// Tail call [`mesh_ebpf::abi::Edge::VirtualTunnel`].
        mesh_vip_tunnel: tunnelled, of_flow => virtual_tunnel;
        /// Tail call [`mesh_ebpf::abi::Edge::VirtualReplyError`].
        mesh_vip_rerr: Reply, new, error => virtual_reply_error;
        /// Tail call [`mesh_ebpf::abi::Edge::VirtualTunnelError`].
        mesh_vip_terr: tunnelled, new, error => virtual_tunnel_error;
        /// Tail call [`mesh_ebpf::abi::Edge::VirtualError`].
        mesh_vip_err: Request, new, error => virtual_error;
        /// Tail call [`mesh_ebpf::abi::Edge::VirtualFragment`].
        mesh_vip_fra: Request, new, fragment => virtual_fragment;
        /// Tail call [`mesh_ebpf::abi::Edge::VirtualReplyFragment`].
        mesh_vip_rfra: Reply, new, fragment => virtual_reply_fragment;
        /// Tail call [`mesh_ebpf::abi::Edge::VirtualTunnelFragment`].
        mesh_vip_tfra: tunnelled, new, fragment => virtual_tunnel_fragment;
    }

    /// TC egress of an uplink: changes packets, and stops none. It doesn't remember connections of
    /// this host's own sockets, as the ingress hooks ask the kernel for those.
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

    /// TC egress of the VXLAN device.
    #[classifier]
    fn mesh_device(context: TcContext) -> i32 {
        pipeline::device(&mut Skb::outgoing(context.skb.skb));
        TC_ACT_UNSPEC
    }

    /// Tail call [`mesh_ebpf::abi::Edge::Refuse`]: answers a packet that another program refused.
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

    /// TC ingress of the host-side veth by which a task is connected to an overlay network: passes
    /// nothing that it can't read.
    #[classifier]
    fn mesh_overlay(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let fate = match Skb::of_flow(context.skb.skb) {
            Some(mut packet) => pipeline::overlay(&mut packet, &kernel),
            None => pipeline::overlay_tagged(&kernel),
        };
        act_skb(&context, &kernel, Direction::Request, fate)
    }

    /// Tail call [`mesh_ebpf::abi::Edge::Overlay6`].
    #[classifier]
    fn mesh_overlay6(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let fate = match Skb::of_flow(context.skb.skb) {
            Some(mut packet) => pipeline::overlay6(&mut packet, &kernel),
            None => pipeline::overlay_tagged(&kernel),
        };
        act_skb(&context, &kernel, Direction::Request, fate)
    }

    /// Tail call [`mesh_ebpf::abi::Edge::Encrypt`]: passes nothing that it can't read.
    #[classifier]
    fn mesh_encrypt(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let fate = match Skb::of_flow(context.skb.skb) {
            Some(mut packet) => pipeline::encrypt(&mut packet, &kernel),
            None => pipeline::overlay_tagged(&kernel),
        };
        act_skb(&context, &kernel, Direction::Request, fate)
    }

    /// TC ingress of the encryption device: passes nothing.
    #[classifier]
    fn mesh_decrypted(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let fate = match Skb::in_tunnel(context.skb.skb) {
            Some(mut packet) => {
                let origin = pipeline::outer_origin(&packet);
                hand_over_origin(context.skb.skb, origin);
                pipeline::decrypted(&mut packet, &kernel, origin)
            }
            None => pipeline::decrypted_tagged(&kernel),
        };
        act_skb(&context, &kernel, Direction::Request, fate)
    }

    /// Tail call [`mesh_ebpf::abi::Edge::DecryptedError`].
    #[classifier]
    fn mesh_dec_err(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let origin = handed_over_origin(context.skb.skb);
        let fate = match (Skb::new(context.skb.skb), error()) {
            (Some(mut packet), Some(error)) => {
                pipeline::virtual_tunnel_error(&mut packet, &kernel, origin, error)
            }
            _ => pipeline::decrypted_tagged(&kernel),
        };
        act_skb(&context, &kernel, Direction::Reply, fate)
    }

    /// Tail call [`mesh_ebpf::abi::Edge::DecryptedFragment`].
    #[classifier]
    fn mesh_dec_fra(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let origin = handed_over_origin(context.skb.skb);
        let fate = match (Skb::new(context.skb.skb), fragment()) {
            (Some(mut packet), Some(fragment)) => {
                pipeline::virtual_tunnel_fragment(&mut packet, &kernel, origin, fragment)
            }
            _ => pipeline::decrypted_tagged(&kernel),
        };
        act_skb(&context, &kernel, Direction::Reply, fate)
    }

    /// Tail call [`mesh_ebpf::abi::Edge::NetworkDecapsulate`].
    #[classifier]
    fn mesh_net_decap(context: TcContext) -> i32 {
        let kernel = Kernel::new(context.as_ptr());
        let Some(mut packet) = Skb::in_tunnel(context.skb.skb) else {
            return act_skb(&context, &kernel, Direction::Request, Fate::PASS);
        };
        let origin = pipeline::outer_origin(&packet);
        let fate = pipeline::network_decapsulate(&mut packet, &kernel, origin);
        act_skb(&context, &kernel, Direction::Request, fate)
    }

    /// Tail call [`mesh_ebpf::abi::Edge::Decapsulate`].
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
}

/// The programs run in the kernel only.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
