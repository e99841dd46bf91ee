//! The guard against floods of SYNs: how many flows a CPU may still begin to remember.

use super::layout::abi_struct;

abi_struct! {
    /// A token bucket; its arithmetic is in [`crate::guard`].
    pub struct TokenBucket [16] {
        /// Up to when it was filled, ns of the monotonic clock as of its last tick.
        pub filled_ns: u64,
        /// Tokens left.
        pub left: u32,
        /// Zero.
        pub reserved: u32,
    }
}

abi_struct! {
    /// Per-CPU entry 0 of [`super::names::SYN_GUARD`].
    pub struct SynGuard [32] {
        /// A token for each SYN whose flow is remembered.
        pub syns: TokenBucket,
        /// A token for each flow that is remembered by a later packet, as its SYN was not. Apart from those of SYNs, so that a flood of
        /// SYNs doesn't keep its clients' ACKs from being remembered.
        pub late: TokenBucket,
    }
}
