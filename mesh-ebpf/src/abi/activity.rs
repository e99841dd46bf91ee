//! What a flow and a translation both record of their packets.

use super::{Flow, Nat};

/// The fields that [`Flow`] and [`Nat`] have in common.
pub trait Activity: Copy {
    /// When the flow began, ns of the monotonic clock.
    fn opened_ns(&self) -> u64;
    /// When its last packet was seen, ns of the same clock.
    fn seen_ns(&self) -> u64;
    /// The TCP events seen so far: bits of [`super::flow_event`].
    fn events(&self) -> u32;
    /// The upper half of the client's current sequence number.
    fn sequence(&self) -> u16;
}

macro_rules! impl_activity {
    ($($value:ident),+) => {$(
        impl Activity for $value {
            #[inline(always)]
            fn opened_ns(&self) -> u64 {
                self.opened_ns
            }

            #[inline(always)]
            fn seen_ns(&self) -> u64 {
                self.seen_ns
            }

            #[inline(always)]
            fn events(&self) -> u32 {
                self.events
            }

            #[inline(always)]
            fn sequence(&self) -> u16 {
                self.sequence
            }
        }
    )+};
}

impl_activity!(Flow, Nat);
