//! For tests: gives a packet the metadata of one that the kernel's VXLAN device has decapsulated,
//! and tail-calls the program of that hook. A test run (`BPF_PROG_TEST_RUN`) can't set them by
//! itself.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::bindings::{TC_ACT_SHOT, bpf_tunnel_key};
    use aya_ebpf::btf_maps::{Array, ProgramArray};
    use aya_ebpf::helpers::generated::bpf_skb_set_tunnel_key;
    use aya_ebpf::macros::{btf_map, classifier};
    use aya_ebpf::programs::TcContext;

    mesh_ebpf::object!();

    /// The other node's IPv4 address and the VNI, both in host order, and the packet's mark.
    #[btf_map]
    static ORIGIN: Array<u32, 3> = Array::new();
    /// The program under test.
    #[btf_map]
    static NEXT: ProgramArray<1> = ProgramArray::new();

    #[classifier]
    fn mesh_from_tunnel(context: TcContext) -> i32 {
        let (Some(peer), Some(vni), Some(mark)) = (ORIGIN.get(0), ORIGIN.get(1), ORIGIN.get(2)) else {
            return TC_ACT_SHOT;
        };
        // SAFETY: all zeros is a valid key, and it has the size given.
        unsafe {
            let mut key: bpf_tunnel_key = core::mem::zeroed();
            key.tunnel_id = *vni;
            // A tunnel key is written for a packet on its way out: its local address is what the
            // program reads as the remote one.
            key.__bindgen_anon_3.local_ipv4 = *peer;
            (*context.skb.skb).mark = *mark;
            let len = size_of::<bpf_tunnel_key>() as u32;
            if bpf_skb_set_tunnel_key(context.skb.skb, &raw mut key, len, 0) == 0 {
                NEXT.tail_call(&context, 0);
            }
        }
        TC_ACT_SHOT
    }
}

/// The program runs in the kernel only.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
