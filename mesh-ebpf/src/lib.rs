//! Packet logic of mesh, shared by the kernel programs and by host tests.
//!
//! The crate compiles for two targets. For `bpfel-unknown-none` it is the kernel side: thin
//! programs in `bin/` over [`pipeline`]. For the host it is the same pipeline over hash maps, so
//! that every rule is tested without a kernel, plus [`abi`]: the layouts through which `mesh-agent`
//! and the programs share maps.
//!
//! Invariants: parsing never touches maps; selection never touches packets; nothing loops over
//! backends; every dropped packet has a reason from [`abi::DropReason`].

#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(
    clippy::inline_always,
    reason = "the verifier follows one straight program better than calls, and calls cost registers and stack"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "packet fields are cut to their width on purpose; checked conversions would cost branches per packet"
)]

#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod abi;
pub mod conntrack;
pub mod csum;
pub mod flow_table;
pub mod generator;
pub mod guard;
#[cfg(target_arch = "bpf")]
pub mod kernel;
pub mod lookups;
pub mod packet;
pub mod parse;
pub mod pipeline;
pub mod rewrite;
pub mod select;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod verdict;

/// What every object of kernel programs needs besides its programs: the licence, which the kernel
/// reads before it lets a program call helpers that are for GPL programs only, and a panic handler,
/// which the compiler demands. Nothing panics, or the verifier would refuse the handler's loop.
#[cfg(target_arch = "bpf")]
#[macro_export]
macro_rules! object {
    () => {
        #[panic_handler]
        fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
            loop {}
        }

        #[unsafe(no_mangle)]
        #[unsafe(link_section = "license")]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
    };
}
