//! Packet logic of mesh, shared by kernel programs and host tests.
//!
//! The crate compiles for two targets. For `bpfel-unknown-none` it is the kernel side: thin programs in `bin/`
//! over [`pipeline`]. For the host it is the very same pipeline over hash maps, so that every rule is tested
//! without a kernel, plus [`abi`]: the layouts through which `mesh-agent` speaks to the programs.
//!
//! Invariants: parsing never touches maps, selection never touches packets, nothing loops over backends, and
//! every dropped packet has a reason from [`abi::DropReason`].

#![no_std]
#![expect(
    clippy::inline_always,
    reason = "the verifier follows one straight program better than calls, and calls cost registers and stack"
)]

pub mod abi;
