//! The table of flows: cells of one cache line, and where in them a flow is. The same code works on the kernel's map, on the map as
//! userspace has it in its memory, and on a test's.
//!
//! Hopscotch hashing (Herlihy, Shavit and Tzafrir, 2008) in its simplest form: a key has a home, and its flow stands there or in one of the
//! [`NEIGHBOURS`] − 1 cells after it; the home's word says in which. So a flow that is there, and one that isn't, cost one line of memory
//! each, nearly always. The kernel's hash maps take three, and theirs depend on each other.
//!
//! Where all neighbours are taken one of them has to go, see [`vacate`]: a closed flow, or else one that its client has not confirmed,
//! or else one that was idle for long, the least recently seen of its kind. A new flow for which none of them may go is refused.
//!
//! Invariants:
//! * Nobody waits: a cell is changed by who has claimed it, and what somebody else has claimed is left alone.
//! * A cell's key and flow are written before its events say that a flow stands there, and only while none do.
//! * A key stands in one cell at most. Of two CPUs that add it at the same moment at most one succeeds.
//! * A flow that goes while another CPU is at it may get that packet's events or time too late. They are lost, or, if its cell was taken
//!   again in that same moment, are the next flow's. The kernel's LRU maps have it no other way.

mod hash;
mod room;
#[cfg(test)]
mod tests;
mod word;

pub use hash::{factors, keyed_hash};
pub use room::{CROWDED_IDLE_NS, vacate};

use core::ptr::NonNull;

use self::hash::hash;
use self::word::{CLAIMED, EVENTS, Word, hop, hops, is_taken};
use crate::abi::{Flow, FlowCell, FlowKey};
use crate::lookups::Opened;

/// Cells in which a flow may stand: its home, and those after it.
pub const NEIGHBOURS: u32 = 16;

/// How far a flow's time of its last packet may be behind: an eighth of a second. Timeouts are of seconds, and a line of memory that is only
/// read costs less than one that has to be written back, for each packet.
pub const SEEN_NS: u64 = 1 << 27;

/// Homes of a table that has room for so many flows: twice as many, so that hardly any is without a free neighbour.
pub const fn homes_for(flows: u32) -> u32 {
    flows.saturating_mul(2)
}

/// Flows that a table with so many cells has room for.
pub const fn room_of(cells: u32) -> u32 {
    homes_of(cells) / 2
}

/// Cells of a table with so many homes: the last home has neighbours too, and after them comes one that only userspace uses, see
/// [`header_index`].
pub const fn cell_count(homes: u32) -> u32 {
    homes.saturating_add(NEIGHBOURS)
}

/// Homes of a table with so many cells.
pub const fn homes_of(cells: u32) -> u32 {
    cells.saturating_sub(NEIGHBOURS)
}

/// The cell in which no flow ever stands: userspace keeps the table's seed there, as [`Flow::opened_ns`].
pub const fn header_index(homes: u32) -> u32 {
    cell_count(homes) - 1
}

/// The cells of a table.
pub trait Cells {
    /// The cell with this index, alive as long as `self`; `None` beyond the table.
    fn cell(&self, index: u32) -> Option<NonNull<FlowCell>>;
    /// How many of the cells are homes.
    fn homes(&self) -> u32;
    /// The secret of the hash, without which nobody can choose keys that crowd together: see [`factors`].
    fn factors(&self) -> [u64; 3];

    /// [`search`] over these cells. The kernel's are searched by a function of its own, which the verifier follows once.
    #[inline(always)]
    fn search(&self, key: [u64; 3], home: u32, hops: u32) -> u32
    where
        Self: Sized,
    {
        search(self, key, home, hops)
    }

    /// [`vacate`] over these cells; likewise.
    #[inline(always)]
    fn vacate(&self, home: u32, now_ns: u64) -> u32
    where
        Self: Sized,
    {
        vacate(self, home, now_ns)
    }
}

/// No cell.
pub const NOWHERE: u32 = u32::MAX;

/// Where a flow stands.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The cell.
    pub cell: NonNull<FlowCell>,
    index: u32,
    home: u32,
}

/// The flow with this key.
#[inline(always)]
pub fn find(cells: &impl Cells, key: &FlowKey) -> Option<Place> {
    let home = home(cells, key);
    let cell = cells.cell(home)?;
    let word = Word::of(cell).get();
    if is_taken(word) && holds(cell, key.words()) {
        return Some(Place { cell, index: home, home });
    }
    if hops(word) == 0 {
        return None;
    }
    let index = cells.search(key.words(), home, hops(word));
    Some(Place { cell: cells.cell(index)?, index, home })
}

/// The cell, of those after `home` that `hops` names (bit n for the cell n + 1 after it), in which the flow with this key stands;
/// [`NOWHERE`]: in none.
#[inline(always)]
pub fn search(cells: &impl Cells, key: [u64; 3], home: u32, hops: u32) -> u32 {
    let mut left = hops;
    for distance in 1..NEIGHBOURS {
        if left & 1 != 0 {
            let Some(cell) = cells.cell(home + distance) else { return NOWHERE };
            if is_taken(Word::of(cell).get()) && holds(cell, key) {
                return home + distance;
            }
        }
        left >>= 1;
    }
    NOWHERE
}

/// Adds a flow that isn't there, `now_ns` being the time.
#[inline(always)]
pub fn insert(cells: &impl Cells, key: &FlowKey, flow: &Flow, now_ns: u64) -> Opened {
    let home = home(cells, key);
    let index = cells.vacate(home, now_ns);
    let Some(cell) = cells.cell(index) else { return Opened::Refused };
    let place = Place { cell, index, home };
    write(cell, key, flow);
    note_hop(cells, &place, true);
    publish(cell, flow.events);
    if has_twin(cells, key, &place) {
        remove(cells, key, &place);
        return Opened::Exists;
    }
    Opened::Added
}

/// Says that a flow stands in a cell that is claimed and written, and gives the cell free: its events are these, whatever a packet of the flow
/// that stood there before has left in the word meanwhile (see [`add_events`]).
#[inline(always)]
fn publish(cell: NonNull<FlowCell>, events: u32) {
    let word = Word::of(cell);
    word.set(events & EVENTS);
    word.clear(CLAIMED | EVENTS & !events);
}

/// Removes the flow from this place, unless another stands there by now, or somebody else is about it.
#[inline(always)]
pub fn remove(cells: &impl Cells, key: &FlowKey, place: &Place) {
    let word = Word::of(place.cell);
    let before = word.set(CLAIMED);
    if before & CLAIMED != 0 {
        return;
    }
    if is_taken(before) && holds(place.cell, key.words()) {
        note_hop(cells, place, false);
        word.clear(CLAIMED | EVENTS);
    } else {
        word.clear(CLAIMED);
    }
}

/// Puts what is known of a flow in the place of what was; events are added. Its time of opening stays.
#[inline(always)]
pub fn replace(place: &Place, flow: &Flow) {
    // SAFETY: a live cell; a client whose packets come by two ways at once may get either's.
    unsafe {
        let own = &raw mut (*place.cell.as_ptr()).flow;
        (&raw mut (*own).seen_ns).write_volatile(flow.seen_ns);
        (&raw mut (*own).uplink).write_volatile(flow.uplink);
        (&raw mut (*own).client_mac).write_volatile(flow.client_mac);
        (&raw mut (*own).node_mac).write_volatile(flow.node_mac);
    }
    add_events(place.cell, flow.events);
}

/// A copy of the flow in this cell.
#[inline(always)]
pub fn read(cell: NonNull<FlowCell>) -> Flow {
    // SAFETY: a live cell; a field that is being written is the old or the new one. Not a volatile read, which would be one of every field
    // wherever one is asked for.
    let mut flow = unsafe { (*cell.as_ptr()).flow };
    flow.events &= EVENTS;
    flow
}

/// Notes that a packet of the flow in this cell was seen, if that is worth the write: see [`SEEN_NS`].
#[inline(always)]
pub fn touch(cell: NonNull<FlowCell>, now_ns: u64) {
    // SAFETY: a live cell; any of two writers' timestamps will do.
    let seen_ns = unsafe { &raw mut (*cell.as_ptr()).flow.seen_ns };
    // SAFETY: as above.
    unsafe {
        if now_ns.saturating_sub(seen_ns.read()) >= SEEN_NS {
            seen_ns.write(now_ns);
        }
    }
}

/// Adds events to the flow in this cell; returns those it had before. A flow that has gone meanwhile gets none.
#[inline(always)]
pub fn add_events(cell: NonNull<FlowCell>, events: u32) -> u32 {
    let word = Word::of(cell);
    let before = word.set(events & EVENTS);
    if before & (EVENTS | CLAIMED) == 0 {
        word.clear(events & EVENTS);
    }
    before & EVENTS
}

/// Takes events from the flow in this cell, which its packets belie; returns those it had before.
#[inline(always)]
pub fn clear_events(cell: NonNull<FlowCell>, events: u32) -> u32 {
    Word::of(cell).clear(events & EVENTS) & EVENTS
}

/// Notes where the client of the flow in this cell is in its sequence numbers.
#[inline(always)]
pub fn set_sequence(cell: NonNull<FlowCell>, sequence: u16) {
    // SAFETY: a live cell; of two writers' numbers, which are close to each other, any will do.
    unsafe { (&raw mut (*cell.as_ptr()).flow.sequence).write_volatile(sequence) };
}

/// The flow in the cell with this index, if there is one, and its key.
pub fn at(cells: &impl Cells, index: u32) -> Option<(FlowKey, Flow)> {
    let cell = cells.cell(index)?;
    if !is_taken(Word::of(cell).get()) {
        return None;
    }
    // SAFETY: a live cell.
    let key = unsafe { (&raw const (*cell.as_ptr()).key).read_volatile() };
    let flow = read(cell);
    // It went while it was read, or is one that has just come.
    is_taken(flow.events).then_some((key, flow))
}

/// Removes the flow in the cell with this index if it is the one with this key and `is_over` says so; returns it as it was.
pub fn remove_if(
    cells: &impl Cells,
    index: u32,
    key: &FlowKey,
    is_over: impl FnOnce(&Flow) -> bool,
) -> Option<Flow> {
    let cell = cells.cell(index)?;
    let word = Word::of(cell);
    let before = word.set(CLAIMED);
    if before & CLAIMED != 0 {
        return None;
    }
    let flow = read(cell);
    if !is_taken(before) || !holds(cell, key.words()) || !is_over(&flow) {
        word.clear(CLAIMED);
        return None;
    }
    note_hop(cells, &Place { cell, index, home: home(cells, key) }, false);
    word.clear(CLAIMED | EVENTS);
    Some(flow)
}

/// The key in the cell with this index, if somebody is changing what the cell holds.
pub fn claimed(cells: &impl Cells, index: u32) -> Option<[u64; 3]> {
    let cell = cells.cell(index)?;
    // SAFETY: a live cell, whose key is as large and as aligned as three words.
    (Word::of(cell).get() & CLAIMED != 0)
        .then(|| unsafe { (&raw const (*cell.as_ptr()).key).cast::<[u64; 3]>().read_volatile() })
}

/// Frees a cell that was claimed by somebody who died over it, with whatever stands in it: it was being removed. That it is so only time can
/// tell, see [`claimed`]: whoever lives has a cell for less than a microsecond.
pub fn free_abandoned(cells: &impl Cells, index: u32) {
    let Some(cell) = cells.cell(index).filter(|_| claimed(cells, index).is_some()) else { return };
    // SAFETY: a live cell, whose key nobody writes while it is claimed.
    let key = unsafe { (&raw const (*cell.as_ptr()).key).read_volatile() };
    note_hop(cells, &Place { cell, index, home: home(cells, &key) }, false);
    Word::of(cell).clear(CLAIMED | EVENTS);
}

/// The home of a key.
#[inline(always)]
fn home(cells: &impl Cells, key: &FlowKey) -> u32 {
    (((hash(key, cells.factors()) >> 32) * u64::from(cells.homes())) >> 32) as u32
}

/// Whether this key is the one in the cell.
#[inline(always)]
fn holds(cell: NonNull<FlowCell>, words: [u64; 3]) -> bool {
    // SAFETY: a live cell, whose key is as large and as aligned as three words.
    let own = unsafe { (&raw const (*cell.as_ptr()).key).cast::<[u64; 3]>().read() };
    (own[0] ^ words[0]) | (own[1] ^ words[1]) | (own[2] ^ words[2]) == 0
}

/// Writes all but the word of a cell that is claimed and free.
#[inline(always)]
fn write(cell: NonNull<FlowCell>, key: &FlowKey, flow: &Flow) {
    // SAFETY: a live cell, which nobody else writes while it is claimed.
    unsafe {
        let cell = cell.as_ptr();
        (&raw mut (*cell).key).write_volatile(*key);
        let own = &raw mut (*cell).flow;
        (&raw mut (*own).seen_ns).write_volatile(flow.seen_ns);
        (&raw mut (*own).opened_ns).write_volatile(flow.opened_ns);
        (&raw mut (*own).backend).write_volatile(flow.backend);
        (&raw mut (*own).sequence).write_volatile(flow.sequence);
        (&raw mut (*own).uplink).write_volatile(flow.uplink);
        (&raw mut (*own).client_mac).write_volatile(flow.client_mac);
        (&raw mut (*own).node_mac).write_volatile(flow.node_mac);
    }
}

/// Notes in its home's word that a flow stands, or doesn't stand any more, where it does.
#[inline(always)]
fn note_hop(cells: &impl Cells, place: &Place, is_there: bool) {
    let distance = place.index.wrapping_sub(place.home);
    if distance == 0 || distance >= NEIGHBOURS {
        return;
    }
    let Some(home) = cells.cell(place.home) else { return };
    if is_there {
        Word::of(home).set(hop(distance));
    } else {
        Word::of(home).clear(hop(distance));
    }
}

/// Whether the key stands in another place, too: another CPU had it at the same moment.
#[inline(always)]
fn has_twin(cells: &impl Cells, key: &FlowKey, own: &Place) -> bool {
    let Some(cell) = cells.cell(own.home) else { return false };
    let word = Word::of(cell).get();
    if own.index != own.home && is_taken(word) && holds(cell, key.words()) {
        return true;
    }
    let others = hops(word & !hop(own.index.wrapping_sub(own.home) & (NEIGHBOURS - 1)));
    others != 0 && cells.search(key.words(), own.home, others) != NOWHERE
}
