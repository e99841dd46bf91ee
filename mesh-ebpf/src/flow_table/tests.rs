//! Tests of the flow table: against a model, and with several threads.

use std::collections::HashMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::room::{BUSY, KIND, worth};
use super::*;
use crate::abi::{Address, Be16, VipId, flow_event, protocol};
use crate::conntrack;
use crate::testing::HostCells;

const SEED: u64 = 0x1234_5678_9abc_def1;

fn key(number: u32) -> FlowKey {
    let [_, a, b, c] = (number / 1000).to_be_bytes();
    FlowKey {
        client: Address::v4([10, a, b, c]),
        client_port_be: Be16::new(30_000 + (number % 1000) as u16),
        reserved: [0; 2],
        vip: VipId::new(0, protocol::TCP, 80),
    }
}

fn flow(backend: u32, events: u32, seen_ns: u64) -> Flow {
    let backend = u16::try_from(backend).expect("an id of a test");
    Flow { seen_ns, opened_ns: seen_ns, backend, events, ..Flow::default() }
}

/// What must hold whenever no operation is under way: no cell is claimed, no key stands twice, and
/// homes' words say where flows stand.
#[track_caller]
fn check(cells: &HostCells) {
    let mut keys = HashMap::new();
    let mut expected: HashMap<u32, u32> = HashMap::new();
    for index in 0..cell_count(cells.homes()) {
        let word = Word::of(cells.cell(index).expect("a cell")).get();
        assert_eq!(word & CLAIMED, 0, "cell {index} is claimed by nobody");
        let Some((key, _)) = at(cells, index) else { continue };
        let home = home(cells, &key);
        assert!((home..home + NEIGHBOURS).contains(&index), "{key:?} of {home} stands in {index}");
        if let Some(other) = keys.insert(key, index) {
            panic!("{key:?} stands in {other} and in {index}");
        }
        *expected.entry(home).or_default() |= if index == home { 0 } else { hop(index - home) };
    }
    for home in 0..cells.homes() {
        let word = Word::of(cells.cell(home).expect("a cell")).get();
        let said = hops(word) << 17;
        assert_eq!(said, expected.get(&home).copied().unwrap_or(0), "where flows of {home} stand");
    }
}

#[derive(Clone, Debug)]
enum TableStep {
    Insert { number: u32 },
    Remove { number: u32 },
    Confirm { number: u32 },
    Close { number: u32 },
}

fn steps() -> impl Strategy<Value = Vec<TableStep>> {
    let number = 0..60_u32;
    let step = prop_oneof![
        5 => number.clone().prop_map(|number| TableStep::Insert { number }),
        2 => number.clone().prop_map(|number| TableStep::Remove { number }),
        1 => number.clone().prop_map(|number| TableStep::Confirm { number }),
        1 => number.prop_map(|number| TableStep::Close { number }),
    ];
    prop::collection::vec(step, 0..300)
}

proptest! {
    /// After any steps the table finds what was added last, and only flows that may be evicted are
    /// missing.
    #[test]
    fn finds_what_was_put_there(steps in steps(), seed in any::<u64>(), homes in 1..80_u32) {
        let cells = HostCells::new(homes, seed);
        let mut model: HashMap<u32, Flow> = HashMap::new();
        for (now, step) in (1_u64..).map(|tick| tick << 10).zip(steps) {
            match step {
                TableStep::Insert { number } => {
                    let fresh = flow(number + 1, flow_event::SYN, now);
                    match insert(&cells, &key(number), &fresh, now) {
                        // If there is no room, the flow that has to go may be this one.
                        Opened::Added => {
                            let known = model.insert(number, fresh);
                            prop_assert!(
                                known.is_none() || model.len() >= NEIGHBOURS as usize,
                                "added twice: {known:?}"
                            );
                        }
                        Opened::Exists => prop_assert!(model.contains_key(&number), "{} isn't there", number),
                        Opened::Refused => prop_assert!(model.len() >= NEIGHBOURS as usize, "there is room"),
                    }
                }
                TableStep::Remove { number } => {
                    if let Some(place) = find(&cells, &key(number)) {
                        remove(&cells, &key(number), &place);
                    }
                    model.remove(&number);
                    prop_assert!(find(&cells, &key(number)).is_none(), "{} is still there", number);
                }
                TableStep::Confirm { number } => tell(&cells, &mut model, number, flow_event::ACK),
                TableStep::Close { number } => tell(&cells, &mut model, number, flow_event::RESET),
            }
            // Evicted flows were half-open or had ended.
            model.retain(|number, flow| {
                let found = find(&cells, &key(*number)).map(|place| read(place.cell));
                let may_go = !conntrack::is_established(flow.events) || conntrack::is_closed(flow.events);
                assert!(found == Some(*flow) || found.is_none() && may_go, "{number}: {found:?} for {flow:?}");
                found.is_some()
            });
            check(&cells);
        }
    }
}

fn tell(cells: &HostCells, model: &mut HashMap<u32, Flow>, number: u32, events: u32) {
    let Some(place) = find(cells, &key(number)) else { return };
    let known = model.get_mut(&number).expect("what is found was put there");
    assert_eq!(add_events(place.cell, events), known.events, "events before");
    known.events |= events;
}

#[test]
fn as_many_as_there_is_room_for_find_a_place_by_themselves() {
    let homes = homes_for(50_000);
    let cells = HostCells::new(homes, SEED);
    let mut crowded = 0;
    for number in 0..50_000 {
        let home = home(&cells, &key(number));
        let is_full = (home..home + NEIGHBOURS).all(|index| at(&cells, index).is_some());
        crowded += u32::from(is_full);
        insert(&cells, &key(number), &flow(1, flow_event::SYN, 1), 1);
    }
    assert!(crowded <= 250, "of 50 000 flows {crowded} found all neighbours taken, 250 expected at most");
    let far = (0..homes).map(|home| hops(Word::of(cells.cell(home).expect("a cell")).get()).count_ones());
    let far: u32 = far.sum();
    assert!(far <= 20_000, "{far} of 50 000 flows stand away from home, 20 000 expected at most");
    check(&cells);
}

#[test]
fn keys_that_differ_little_have_different_homes() {
    let cells = HostCells::new(1 << 16, SEED);
    for bit in 0..192 {
        let mut words = key(0).words();
        words[bit / 64] ^= 1 << (bit % 64);
        // SAFETY: any bit pattern is a key.
        let other: FlowKey = unsafe { core::mem::transmute(words) };
        let (a, b) = (home(&cells, &key(0)), home(&cells, &other));
        assert_ne!(a, b, "bit {bit}");
    }
}

#[test]
fn keys_that_make_up_for_a_shift_of_the_seed_dont_crowd_together() {
    let distinct = |seed: u64| {
        let cells = HostCells::new(1 << 16, seed);
        let homes = (0..256_u64).map(|step| {
            let [_, client, rest] = key(0).words();
            // The end of an IPv6 address and a port: a client chooses both.
            let words = [1, client.wrapping_sub(step << 22), rest.wrapping_add(step)];
            // SAFETY: any bit pattern is a key.
            home(&cells, &unsafe { core::mem::transmute::<[u64; 3], FlowKey>(words) })
        });
        homes.collect::<std::collections::HashSet<_>>().len()
    };
    for seed in [0, 1, SEED, u64::MAX] {
        assert!(distinct(seed) > 200, "256 keys share {} homes under the seed {seed:#x}", distinct(seed));
    }
}

#[test]
fn a_flood_takes_nothing_from_established_flows() {
    let cells = HostCells::new(64, SEED);
    let established = flow_event::SYN | flow_event::ACK;
    let old: Vec<u32> = (0..40)
        .filter(|number| insert(&cells, &key(*number), &flow(1, established, 1), 1) == Opened::Added)
        .collect();
    for number in 1000..3000 {
        insert(
            &cells,
            &key(number),
            &flow(2, flow_event::SYN, u64::from(number) << 10),
            u64::from(number) << 10,
        );
    }
    for number in &old {
        let found = find(&cells, &key(*number)).map(|place| read(place.cell));
        assert_eq!(found, Some(flow(1, established, 1)), "established flow {number}");
    }
    // The last SYN has evicted an earlier one.
    assert!(find(&cells, &key(2999)).is_some(), "the last SYN is remembered");
    check(&cells);
}

#[test]
fn who_goes_first() {
    let (syn, ack, reset) = (flow_event::SYN, flow_event::ACK, flow_event::RESET);
    let now = 2 * CROWDED_IDLE_NS;
    let closed = worth(&flow(1, syn | ack | reset, now), now);
    let older = worth(&flow(1, syn, 5000), now);
    let newer = worth(&flow(1, syn, now), now);
    let idle = worth(&flow(1, syn | ack, now - CROWDED_IDLE_NS), now);
    let busy = worth(&flow(1, syn | ack, now - CROWDED_IDLE_NS + 1), now);
    assert!(
        closed < older && older < newer && newer < idle && idle < busy && busy < u64::MAX >> 1,
        "closed, unconfirmed, idle, busy"
    );
    assert_eq!(busy >> KIND, BUSY, "a busy one stays");
}

#[test]
fn only_the_eviction_of_a_half_open_tcp_flow_is_reported() {
    let (syn, ack, reset) = (flow_event::SYN, flow_event::ACK, flow_event::RESET);
    let evicts = |number: u32, events: u32| {
        let cells = HostCells::new(1, SEED);
        for number in number..number + NEIGHBOURS {
            assert_eq!(insert(&cells, &key(number), &flow(1, events, 9), 9), Opened::Added, "{number}");
        }
        assert_eq!(cells.half_open_evicted_ns(), 0, "there is room");
        let later = 9 + CROWDED_IDLE_NS;
        let fresh = flow(2, syn, later);
        assert_eq!(insert(&cells, &key(number + NEIGHBOURS), &fresh, later), Opened::Added, "evicts one");
        cells.half_open_evicted_ns() == later
    };
    assert!(evicts(0, syn), "a SYN");
    assert!(evicts(0, syn | flow_event::UNPROVEN), "an ACK that the task has not confirmed");
    assert!(!evicts(0, syn | ack | reset), "a closed flow");
    assert!(!evicts(0, syn | ack), "an idle flow");
    let cells = HostCells::new(1, SEED);
    for number in 0..=NEIGHBOURS {
        let vip = VipId::new(1, protocol::UDP, 53);
        insert(&cells, &FlowKey { vip, ..key(number) }, &flow(1, syn, 9), 9);
    }
    assert_eq!(cells.half_open_evicted_ns(), 0, "a datagram that begins again loses nothing");
}

#[test]
fn where_all_neighbours_are_busy_a_new_flow_is_refused() {
    let cells = HostCells::new(1, SEED);
    let established = flow_event::SYN | flow_event::ACK;
    for number in 0..NEIGHBOURS {
        assert_eq!(insert(&cells, &key(number), &flow(1, established, 9), 9), Opened::Added, "{number}");
    }
    let fresh = flow(2, flow_event::SYN, 10);
    assert_eq!(insert(&cells, &key(77), &fresh, 10), Opened::Refused);
    let later = 9 + CROWDED_IDLE_NS;
    assert_eq!(insert(&cells, &key(77), &flow(2, flow_event::SYN, later), later), Opened::Added, "idle ones");
    check(&cells);
}

#[test]
fn threads_leave_the_table_whole() {
    let cells = HostCells::new(48, SEED);
    let events = flow_event::SYN;
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let cells = &cells;
            scope.spawn(move || {
                let mut dice = 0x9e37_79b9_u32.wrapping_mul(thread + 1);
                for now in 1..60_000_u64 {
                    dice ^= dice << 13;
                    dice ^= dice >> 17;
                    dice ^= dice << 5;
                    // More flows than cells, so that they evict each other.
                    let key = key(dice >> 8 & 127);
                    match dice & 3 {
                        0 | 1 => _ = insert(cells, &key, &flow(thread, events, now), now),
                        2 => {
                            if let Some(place) = find(cells, &key) {
                                remove(cells, &key, &place);
                            }
                        }
                        _ => _ = remove_if(cells, dice >> 16 & 63, &key, |_| true),
                    }
                }
            });
        }
    });
    check(&cells);
}

#[test]
fn a_cell_whose_claimant_died_is_freed_with_what_stands_in_it() {
    let cells = HostCells::new(1, SEED);
    for number in 0..4 {
        insert(&cells, &key(number), &flow(1, flow_event::SYN, 1), 1);
    }
    for number in 0..4 {
        let place = find(&cells, &key(number)).expect("it is there");
        assert_eq!(claimed(&cells, place.index), None, "{number} is nobody's");
        free_abandoned(&cells, place.index);
        assert!(find(&cells, &key(number)).is_some(), "{number} stays, as nobody has claimed it");
        Word::of(place.cell).set(CLAIMED);
        remove(&cells, &key(number), &place);
        assert!(find(&cells, &key(number)).is_some(), "{number} is somebody else's to remove");
        assert_eq!(claimed(&cells, place.index), Some(key(number).words()));
        // The state that an interrupted removal may leave.
        if number == 2 {
            note_hop(&cells, &place, false);
        }
        free_abandoned(&cells, place.index);
        assert!(find(&cells, &key(number)).is_none(), "{number} is gone");
    }
    check(&cells);
    for number in 10..10 + NEIGHBOURS {
        assert_eq!(insert(&cells, &key(number), &flow(1, flow_event::SYN, 1), 1), Opened::Added, "{number}");
    }
    check(&cells);
}

#[test]
fn events_of_a_flow_that_has_gone_bring_nothing_back() {
    let cells = HostCells::new(8, SEED);
    insert(&cells, &key(1), &flow(1, flow_event::SYN, 1), 1);
    let place = find(&cells, &key(1)).expect("it is there");
    remove(&cells, &key(1), &place);
    assert_eq!(add_events(place.cell, flow_event::CLIENT_FIN), 0, "events before");
    assert!(find(&cells, &key(1)).is_none(), "it is gone");
    check(&cells);
}

#[test]
fn a_new_flow_has_none_of_the_events_that_came_too_late_for_the_one_before_it() {
    for late in [flow_event::SYN, flow_event::SYN | flow_event::ACK, flow_event::RESET] {
        let cells = HostCells::new(8, SEED);
        let home = home(&cells, &key(1));
        let index = vacate(&cells, home, 1);
        let cell = cells.cell(index).expect("a cell");
        write(cell, &key(1), &flow(7, flow_event::SYN, 1));
        // A late packet, on another CPU, of the flow that stood there before.
        add_events(cell, late);
        publish(cell, flow_event::SYN);
        let found = find(&cells, &key(1)).map(|place| read(place.cell));
        assert_eq!(found, Some(flow(7, flow_event::SYN, 1)), "after a late {late:#b}");
        check(&cells);
    }
}
