//! The flow table of the ingress node: an array of cells, each a cache line that holds at most one
//! flow. The same code works on the kernel's map, on userspace's memory mapping of it, and on a
//! test's table.
//!
//! It uses hopscotch hashing (Herlihy, Shavit and Tzafrir, 2008) in its simplest form: a key hashes
//! to a home cell, and its flow stands there or in one of the [`NEIGHBOURS`] − 1 cells after it;
//! the home's word says in which of them. So looking up a flow, whether it exists or not, nearly
//! always reads one cache line. The kernel's hash maps read three, each address depending on the
//! line before.
//!
//! If all neighbours are taken, a new flow evicts one of them, see [`vacate`]: a closed flow, else
//! one that its client has not confirmed, else one that has been idle for long; of one kind, the
//! least recently seen. If none of them may go, the new flow is refused.
//!
//! Invariants:
//! * Nobody waits: only the CPU that has claimed a cell changes it; the others leave it alone.
//! * A cell's key and flow are written before its events say that a flow stands there, and only
//!   while its events say that none does.
//! * A key stands in one cell at most. Of two CPUs that add it at the same moment at most one
//!   succeeds.
//! * While one CPU removes a flow, another may still write a packet's events or time to its cell.
//!   They are lost, or, if the cell was taken again at that moment, they go to the next flow. The
//!   kernel's LRU maps behave the same.

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

/// The number of cells in which a flow may stand: its home and those after it.
pub const NEIGHBOURS: u32 = 16;

/// How far a flow's time of its last packet may lag behind: an eighth of a second. Timeouts are of
/// seconds, and a cache line that each packet only reads costs less than one that has to be written
/// back.
pub const SEEN_NS: u64 = 1 << 27;

/// The number of homes of a table with room for so many flows: twice as many, so that hardly any is
/// without a free neighbour.
pub const fn homes_for(flows: u32) -> u32 {
    flows.saturating_mul(2)
}

/// The number of flows that a table with so many cells has room for.
pub const fn room_of(cells: u32) -> u32 {
    homes_of(cells) / 2
}

/// The number of cells of a table with so many homes: the last home has neighbours too, and after
/// them comes one cell that only userspace uses, see [`header_index`].
pub const fn cell_count(homes: u32) -> u32 {
    homes.saturating_add(NEIGHBOURS)
}

/// The number of homes of a table with so many cells.
pub const fn homes_of(cells: u32) -> u32 {
    cells.saturating_sub(NEIGHBOURS)
}

/// The index of the header cell, in which no flow ever stands: userspace stores the table's seed
/// there, as [`Flow::opened_ns`].
pub const fn header_index(homes: u32) -> u32 {
    cell_count(homes) - 1
}

/// The cells of a flow table, in whatever memory they are.
pub trait Cells {
    /// The cell with this index, valid as long as `self`; `None` beyond the table.
    fn cell(&self, index: u32) -> Option<NonNull<FlowCell>>;
    /// The number of cells that are homes.
    fn homes(&self) -> u32;
    /// The secret of the hash, see [`factors`]. Nobody without it can choose keys that share a
    /// home.
    fn factors(&self) -> [u64; 3];

    /// [`search`] over these cells. In the kernel it is a function of its own, which the verifier
    /// checks once.
    #[inline(always)]
    fn search(&self, key: [u64; 3], home: u32, hops: u32) -> u32
    where
        Self: Sized,
    {
        search(self, key, home, hops)
    }

    /// [`vacate`] over these cells; in the kernel a function of its own, too.
    #[inline(always)]
    fn vacate(&self, home: u32, now_ns: u64) -> u32
    where
        Self: Sized,
    {
        vacate(self, home, now_ns)
    }

    /// Called after a half-open TCP flow was evicted: its client may still confirm the connection.
    fn evicted_half_open(&self, now_ns: u64);
}

/// The index that stands for "no cell".
pub const NOWHERE: u32 = u32::MAX;

/// The place of a flow in the table.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The cell that the flow stands in.
    pub cell: NonNull<FlowCell>,
    index: u32,
    home: u32,
}

/// Finds the flow with this key.
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

/// Searches the cells after `home` that `hops` names (bit n for the cell n + 1 after it) for the
/// flow with this key; returns the cell's index, or [`NOWHERE`].
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

/// Adds a flow that the table doesn't hold yet, `now_ns` being the time.
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

/// Publishes the flow in a cell that is claimed and written, and ends the claim: the word's events
/// become `events`, whatever events a late packet of the cell's previous flow has left there
/// meanwhile (see [`add_events`]).
#[inline(always)]
fn publish(cell: NonNull<FlowCell>, events: u32) {
    let word = Word::of(cell);
    word.set(events & EVENTS);
    word.clear(CLAIMED | EVENTS & !events);
}

/// Removes the flow from this place, unless another flow stands there by now, or another CPU has
/// claimed the cell.
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

/// Overwrites a flow; events are added. The time when it began stays.
#[inline(always)]
pub fn replace(place: &Place, flow: &Flow) {
    // SAFETY: a live cell; of two CPUs that write at once, either's values may remain in each
    // field.
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
    // SAFETY: a live cell; a field that is being written reads as the old or the new value. The
    // read is not volatile: a volatile one would read every field wherever one of them is needed.
    let mut flow = unsafe { (*cell.as_ptr()).flow };
    flow.events &= EVENTS;
    flow
}

/// Sets the time of the last packet, if it has changed enough to be worth the write: see
/// [`SEEN_NS`].
#[inline(always)]
pub fn touch(cell: NonNull<FlowCell>, now_ns: u64) {
    // SAFETY: a live cell; of two writers' timestamps either will do.
    let seen_ns = unsafe { &raw mut (*cell.as_ptr()).flow.seen_ns };
    // SAFETY: as above.
    unsafe {
        if now_ns.saturating_sub(seen_ns.read()) >= SEEN_NS {
            seen_ns.write(now_ns);
        }
    }
}

/// Adds events to the flow in this cell; returns the events before. If the flow was removed
/// meanwhile, the cell stays free.
#[inline(always)]
pub fn add_events(cell: NonNull<FlowCell>, events: u32) -> u32 {
    let word = Word::of(cell);
    let before = word.set(events & EVENTS);
    if before & (EVENTS | CLAIMED) == 0 {
        word.clear(events & EVENTS);
    }
    before & EVENTS
}

/// Removes events, which its packets contradict, from the flow in this cell; returns the events
/// before.
#[inline(always)]
pub fn clear_events(cell: NonNull<FlowCell>, events: u32) -> u32 {
    Word::of(cell).clear(events & EVENTS) & EVENTS
}

/// Sets the upper half of the client's current sequence number.
#[inline(always)]
pub fn set_sequence(cell: NonNull<FlowCell>, sequence: u16) {
    // SAFETY: a live cell; of two writers' numbers, which are close to each other, either will do.
    unsafe { (&raw mut (*cell.as_ptr()).flow.sequence).write_volatile(sequence) };
}

/// The key and the flow in the cell with this index, if it holds one.
pub fn at(cells: &impl Cells, index: u32) -> Option<(FlowKey, Flow)> {
    let cell = cells.cell(index)?;
    if !is_taken(Word::of(cell).get()) {
        return None;
    }
    // SAFETY: a live cell.
    let key = unsafe { (&raw const (*cell.as_ptr()).key).read_volatile() };
    let flow = read(cell);
    // Checked again: the flow may have been removed while it was read.
    is_taken(flow.events).then_some((key, flow))
}

/// Removes the flow in the cell with this index if it has this key and `is_over` agrees; returns
/// the flow as it was.
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

/// The key in the cell with this index, if the cell is claimed.
pub fn claimed(cells: &impl Cells, index: u32) -> Option<[u64; 3]> {
    let cell = cells.cell(index)?;
    // SAFETY: a live cell, whose key is as large and as aligned as three words.
    (Word::of(cell).get() & CLAIMED != 0)
        .then(|| unsafe { (&raw const (*cell.as_ptr()).key).cast::<[u64; 3]>().read_volatile() })
}

/// Frees a cell whose claimant died, and with it the flow that was being removed. Only time can
/// tell that the claimant died, see [`claimed`]: a live one holds a claim for less than a
/// microsecond.
pub fn free_abandoned(cells: &impl Cells, index: u32) {
    let Some(cell) = cells.cell(index).filter(|_| claimed(cells, index).is_some()) else { return };
    // SAFETY: a live cell, whose key nobody writes while it is claimed.
    let key = unsafe { (&raw const (*cell.as_ptr()).key).read_volatile() };
    note_hop(cells, &Place { cell, index, home: home(cells, &key) }, false);
    Word::of(cell).clear(CLAIMED | EVENTS);
}

/// The index of a key's home cell.
#[inline(always)]
fn home(cells: &impl Cells, key: &FlowKey) -> u32 {
    (((hash(key, cells.factors()) >> 32) * u64::from(cells.homes())) >> 32) as u32
}

/// Whether the cell holds this key.
#[inline(always)]
fn holds(cell: NonNull<FlowCell>, words: [u64; 3]) -> bool {
    // SAFETY: a live cell, whose key is as large and as aligned as three words.
    let own = unsafe { (&raw const (*cell.as_ptr()).key).cast::<[u64; 3]>().read() };
    (own[0] ^ words[0]) | (own[1] ^ words[1]) | (own[2] ^ words[2]) == 0
}

/// Writes all but the word of a cell, which is claimed and free.
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

/// Records in the home's word whether a flow stands in this place.
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

/// Whether the key also stands in another place, as another CPU added it at the same moment.
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
