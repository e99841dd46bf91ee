//! The SYN guard: how many flows a CPU may still create.

use super::layout::abi_struct;

abi_struct! {
    /// A token bucket; its arithmetic is in [`crate::guard`].
    pub struct TokenBucket [16] {
        /// The time up to which tokens were added, ns of the monotonic clock as of its last tick.
        pub filled_ns: u64,
        /// Tokens that are left.
        pub left: u32,
        /// Padding; always zero.
        pub reserved: u32,
    }
}

abi_struct! {
    /// Per-CPU entry 0 of [`super::names::SYN_GUARD`].
    pub struct SynGuard [32] {
        /// Each flow that a SYN creates takes one of these tokens.
        pub syns: TokenBucket,
        /// Each flow that a later packet creates, as its SYN created none, takes one of these
        /// tokens. They are separate from those of SYNs, so that a SYN flood doesn't keep its
        /// clients' ACKs from creating flows.
        pub late: TokenBucket,
    }
}
