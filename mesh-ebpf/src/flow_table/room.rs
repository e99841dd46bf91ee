//! Finds a cell for a new flow: a free one, or that of the neighbour that is least worth keeping.

use super::word::{CLAIMED, EVENTS, Word};
use super::{Cells, NEIGHBOURS, NOWHERE, Place, note_hop, read};
use crate::abi::{Flow, flow_event, protocol};

/// How long an established flow must have been idle before a new flow may evict it, if there is no
/// other room: a minute.
pub const CROWDED_IDLE_NS: u64 = 60_000_000_000;

/// Claims a free cell near `home`; if there is none, evicts a flow. Returns the cell's index, or
/// [`NOWHERE`] if no flow may be evicted.
#[inline(always)]
pub fn vacate(cells: &impl Cells, home: u32, now_ns: u64) -> u32 {
    let index = vacancy(cells, home);
    if index == NOWHERE { crowd_out(cells, home, now_ns) } else { index }
}

/// Claims a free cell near `home`; returns its index, or [`NOWHERE`].
#[inline(always)]
fn vacancy(cells: &impl Cells, home: u32) -> u32 {
    for distance in 0..NEIGHBOURS {
        let Some(cell) = cells.cell(home + distance) else { return NOWHERE };
        let word = Word::of(cell);
        if word.get() & (EVENTS | CLAIMED) != 0 {
            continue;
        }
        let before = word.set(CLAIMED);
        if before & (EVENTS | CLAIMED) == 0 {
            return home + distance;
        }
        if before & CLAIMED == 0 {
            word.clear(CLAIMED);
        }
    }
    NOWHERE
}

/// Claims the cell near `home` whose flow is least worth keeping, and removes that flow; returns
/// the cell's index, or [`NOWHERE`].
#[inline(always)]
fn crowd_out(cells: &impl Cells, home: u32, now_ns: u64) -> u32 {
    let mut least = u64::MAX >> 1;
    for distance in 0..NEIGHBOURS {
        let Some(cell) = cells.cell(home + distance) else { return NOWHERE };
        least = less(least, worth(&read(cell), now_ns) | u64::from(distance));
    }
    if least >> KIND == BUSY {
        return NOWHERE;
    }
    let index = home + (least as u32 & (NEIGHBOURS - 1));
    let Some(cell) = cells.cell(index) else { return NOWHERE };
    let word = Word::of(cell);
    if word.set(CLAIMED) & CLAIMED != 0 {
        return NOWHERE;
    }
    // The client may have confirmed the flow meanwhile.
    if worth(&read(cell), now_ns) >> KIND > least >> KIND {
        word.clear(CLAIMED);
        return NOWHERE;
    }
    // SAFETY: a live cell, whose key nobody writes while it is claimed.
    let key = unsafe { (&raw const (*cell.as_ptr()).key).read() };
    note_hop(cells, &Place { cell, index, home: super::home(cells, &key) }, false);
    word.clear(EVENTS);
    if least >> KIND == HALF_OPEN && key.vip.protocol() == protocol::TCP {
        cells.evicted_half_open(now_ns);
    }
    index
}

/// The number of bits of [`worth`] below the flow's kind: its time in microseconds, and room for a
/// distance.
pub(super) const KIND: u32 = 60;
/// The kind of flow that its endpoints have not confirmed.
const HALF_OPEN: u64 = 1;
/// The kind of flow that is never evicted.
pub(super) const BUSY: u64 = 3;

/// How much a flow is worth keeping, compared with its neighbours: its kind (0 closed, 1 half-open,
/// 2 idle, 3 busy), and within a kind the time of its last packet. The lowest four bits are 0.
///
/// It has no branch, and neither has [`less`]: the verifier would follow each, in each of sixteen
/// cells, to the end of the program.
#[inline(always)]
pub(super) const fn worth(flow: &Flow, now_ns: u64) -> u64 {
    let events = flow.events as u64;
    let is_open = 1
        ^ (bit(events, flow_event::RESET)
            | bit(events, flow_event::CLIENT_FIN) & bit(events, flow_event::TASK_FIN));
    let is_busy = now_ns.saturating_sub(flow.seen_ns).wrapping_sub(CROWDED_IDLE_NS) >> 63;
    let is_established = bit(events, flow_event::ACK);
    let kind = (1 + is_established + (is_established & is_busy)) & is_open.wrapping_neg();
    // Units of a little more than a microsecond: 2^56 of them exceed all uptimes.
    kind << KIND | flow.seen_ns >> 10 << 4
}

/// 1 if the bit of this event is set, else 0.
#[inline(always)]
const fn bit(events: u64, event: u32) -> u64 {
    events >> event.trailing_zeros() & 1
}

/// The smaller of two numbers below 2^63.
#[inline(always)]
const fn less(a: u64, b: u64) -> u64 {
    let is_less = (b.wrapping_sub(a) >> 63).wrapping_neg();
    a ^ (a ^ b) & is_less
}
