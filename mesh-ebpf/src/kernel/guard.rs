//! The SYN guard's state: this CPU's token buckets, and one word that all CPUs share.

use super::maps;
use crate::guard::{FIRED_STEP_NS, take};

/// Which bucket a token is taken from.
#[derive(Clone, Copy)]
pub(super) enum BucketKind {
    /// For a flow that a SYN creates.
    Syn,
    /// For a flow that a later packet creates, as its SYN created none.
    Late,
}

/// Takes a token from this CPU's bucket; `false` if it is empty. A `rate` of 0 means no limit.
#[inline(always)]
pub(super) fn may_remember(kind: BucketKind, rate: u32, now_ns: u64) -> bool {
    if rate == 0 {
        return true;
    }
    let Some(guard) = maps::SYN_GUARD.get_ptr_mut(0) else { return true };
    // SAFETY: a live per-CPU map value; nothing else on this CPU runs between load and store that
    // uses it.
    let guard = unsafe { &mut *guard };
    let bucket = match kind {
        BucketKind::Syn => &mut guard.syns,
        BucketKind::Late => &mut guard.late,
    };
    take(bucket, rate, now_ns)
}

/// Records that a SYN has no flow: it was forwarded without one, or its flow was evicted. The
/// word's cache line is written only some times a second, as all CPUs read it.
#[inline(always)]
pub(super) fn fire(now_ns: u64) {
    if let Some(fired_ns) = maps::SYN_GUARD_FIRED.get_ptr_mut(0) {
        // SAFETY: a live map value; of two CPUs' times any will do.
        unsafe {
            if now_ns.saturating_sub(*fired_ns) >= FIRED_STEP_NS {
                *fired_ns = now_ns;
            }
        }
    }
}

/// Whether the guard has fired within this time.
#[inline(always)]
pub(super) fn has_fired(within_ns: u64, now_ns: u64) -> bool {
    // 0 means that it never happened.
    maps::SYN_GUARD_FIRED
        .get(0)
        .is_some_and(|fired_ns| *fired_ns != 0 && now_ns.saturating_sub(*fired_ns) < within_ns)
}
