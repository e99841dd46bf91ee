//! Tests of selection over the host's tables: shares, avoidance, stability.

use core::net::Ipv4Addr;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::abi::{Backend, BackendLoad, BackendState, LOAD_MAX_AGE_NS, Live};
use crate::lookups::Lookups;
use crate::testing::{HostTables, Setup};

/// Backends 1..=n, all active, in slots that start at 5; `live` connections each.
fn tables(live: &[u64]) -> HostTables {
    let ids = || (1u32..).take(live.len());
    let active = Backend { state: BackendState::Active as u8, ..Backend::default() };
    HostTables::new(Setup {
        slots: [0; 5].into_iter().chain(ids()).collect(),
        backends: ids().map(|id| (id, active)).collect(),
        live: ids().zip(live.iter().map(|count| Live { opened: *count, closed: 0 })).collect(),
        ..Setup::default()
    })
}

fn service(policy: Policy, slot_count: u32) -> Service {
    Service { slot_base: 5, slot_count, policy: policy as u8, ..Service::default() }
}

/// The address of the client with this number.
fn client(number: u32) -> Address {
    Ipv4Addr::from_bits(0x0a00_0000 + number).into()
}

/// Backends 1..=n with these weights, each with as many slots, spread evenly; and their service.
fn weighted(policy: Policy, weights: &[u16]) -> (HostTables, Service) {
    let mut tables = tables(&vec![0; weights.len()]);
    let mut slots = Vec::new();
    for ((id, backend), weight) in tables.setup.backends.iter_mut().zip(weights) {
        backend.weight = *weight;
        slots.extend((0..*weight).map(|turn| (u32::from(2 * turn + 1) * 1000 / u32::from(*weight), *id)));
    }
    slots.sort_unstable();
    tables.setup.slots.truncate(5);
    tables.setup.slots.extend(slots.iter().map(|(_, id)| *id));
    let slot_count = u32::try_from(slots.len()).expect("few slots");
    (tables, service(policy, slot_count))
}

/// Sets the backends' loads as measured at this moment; 0: not known.
fn set_loads(tables: &mut HostTables, loads: &[u32]) {
    let seen_ns = tables.now_ns();
    let entry = |load: &u32| BackendLoad { seen_ns, load: *load, reserved: 0 };
    tables.setup.loads = (1..).zip(loads.iter().map(entry)).collect();
}

/// How often each backend was selected in `rounds`; index 0 counts "none".
fn choices(tables: &HostTables, service: &Service, rounds: usize) -> Vec<usize> {
    let mut counts = vec![0; tables.setup.backends.len() + 1];
    for _ in 0..rounds {
        counts[select(tables, service, &client(0), 0).unwrap_or(0) as usize] += 1;
    }
    counts
}

#[test]
fn round_robin_is_exact() {
    let counts = choices(&tables(&[0; 3]), &service(Policy::RoundRobin, 3), 300);
    assert_eq!(counts, [0, 100, 100, 100]);
}

#[test]
fn least_connections_avoids_the_busy_one() {
    let counts = choices(&tables(&[0, 50, 0, 0]), &service(Policy::LeastConnections, 4), 1000);
    assert_eq!(counts[2], 0, "never the busy one of two distinct candidates: {counts:?}");
}

#[test]
fn ties_favour_nobody() {
    for backends in [2, 3, 5] {
        let rounds = 1000 * backends;
        let slot_count = u32::try_from(backends).expect("few backends");
        let counts =
            choices(&tables(&vec![7; backends]), &service(Policy::LeastConnections, slot_count), rounds);
        for (id, count) in counts.iter().enumerate().skip(1) {
            assert!((850..1150).contains(count), "backend {id} of {backends}: {counts:?}");
        }
    }
}

#[test]
fn one_backend_is_always_chosen() {
    for policy in Policy::ALL {
        assert_eq!(choices(&tables(&[9]), &service(policy, 1), 10), [0, 10], "{policy:?}");
    }
}

#[test]
fn nobody_is_chosen_of_none() {
    let mut tables = tables(&[0, 0]);
    for policy in Policy::ALL {
        assert_eq!(select(&tables, &service(policy, 0), &client(0), 0), None, "{policy:?} without slots");
    }
    for (_, backend) in &mut tables.setup.backends {
        backend.state = BackendState::Down as u8;
    }
    for policy in Policy::ALL {
        assert_eq!(
            select(&tables, &service(policy, 2), &client(0), 0),
            None,
            "{policy:?} with dead backends only"
        );
    }
}

#[test]
fn a_silent_backend_is_avoided_while_there_is_another() {
    for policy in Policy::ALL {
        for number in 0..100 {
            let chosen = select(&tables(&[0, 0, 0]), &service(policy, 3), &client(number), 2);
            assert!(matches!(chosen, Some(1 | 3)), "{policy:?} chose {chosen:?}, expected another than 2");
        }
        assert_eq!(
            select(&tables(&[0]), &service(policy, 1), &client(0), 1),
            Some(1),
            "{policy:?} has no other"
        );
    }
}

#[test]
fn a_dead_slot_is_skipped() {
    let mut tables = tables(&[0, 0, 0]);
    tables.setup.backends[1].1.state = BackendState::Down as u8;
    let counts = choices(&tables, &service(Policy::RoundRobin, 3), 30);
    assert_eq!(counts, [0, 10, 0, 20], "the next one takes its turn");
}

#[test]
fn idle_backends_share_by_weight() {
    // Connections that end before the next begins leave nothing to compare.
    let (tables, service) = weighted(Policy::LeastConnections, &[1, 3]);
    let counts = choices(&tables, &service, 4000);
    assert!((850..1150).contains(&counts[1]), "a quarter of 4000: {counts:?}");
}

#[test]
fn equal_or_unknown_loads_are_decided_by_connections() {
    for loads in [[60, 60], [0, 5], [5, 0], [0, 0]] {
        let mut tables = tables(&[9, 2]);
        set_loads(&mut tables, &loads);
        let counts = choices(&tables, &service(Policy::LeastLoad, 2), 100);
        assert_eq!(counts, [0, 0, 100], "loads {loads:?}");
    }
}

#[test]
fn an_old_load_is_not_used() {
    let mut tables = tables(&[9, 2]);
    set_loads(&mut tables, &[1, 127]);
    assert_eq!(choices(&tables, &service(Policy::LeastLoad, 2), 10), [0, 10, 0], "while it is young");
    tables.now_ns.set(tables.now_ns() + LOAD_MAX_AGE_NS + 1);
    assert_eq!(choices(&tables, &service(Policy::LeastLoad, 2), 10), [0, 0, 10], "by connections");
}

/// A changed hash would move every client to another backend, and make nodes of two versions
/// differ.
#[test]
fn the_hash_stays_what_it_is() {
    assert_eq!(hash(&client(1)), 0x8a73_7f06);
    assert_eq!(hash(&Address([0; 16])), 0);
}

#[test]
fn hashed_clients_spread_and_stay() {
    let tables = tables(&[0; 4]);
    let service = service(Policy::SourceHash, 4);
    let mut counts = [0; 5];
    for number in 0..4000 {
        let chosen = select(&tables, &service, &client(number), 0);
        assert_eq!(chosen, select(&tables, &service, &client(number), 0), "client {number} stays");
        counts[chosen.expect("all alive") as usize] += 1;
    }
    assert!(counts[1..].iter().all(|count| (870..1130).contains(count)), "a quarter each: {counts:?}");
}

#[test]
fn clients_of_a_dead_backend_spread_and_others_stay() {
    let (before, mut after) = (tables(&[0; 4]), tables(&[0; 4]));
    after.setup.backends[1].1.state = BackendState::Down as u8;
    let service = service(Policy::SourceHash, 4);
    let mut moved = [0; 5];
    for number in 0..4000 {
        let was = select(&before, &service, &client(number), 0);
        let is = select(&after, &service, &client(number), 0).expect("three are alive");
        if was == Some(2) {
            moved[is as usize] += 1;
        } else {
            assert_eq!(was, Some(is), "client {number} has no reason to move");
        }
    }
    assert_eq!(moved[2], 0);
    assert!([1, 3, 4].iter().all(|id| (270..400).contains(&moved[*id])), "a third each: {moved:?}");
}

proptest! {
    /// If connections last, each backend gets its share of them.
    #[test]
    fn shares_follow_weights(
        weights in prop::collection::vec(1u16..6, 1..6),
        policy in prop::sample::select(&[Policy::RoundRobin, Policy::Random, Policy::LeastConnections, Policy::LeastLoad]),
    ) {
        let (tables, service) = weighted(policy, &weights);
        let total: u32 = weights.iter().copied().map(u32::from).sum();
        let rounds = 300 * total;
        let mut counts = vec![0u32; weights.len() + 1];
        for _ in 0..rounds {
            let id = select(&tables, &service, &client(0), 0).expect("all alive");
            tables.count_opened(service.index, id);
            counts[id as usize] += 1;
        }
        for (id, weight) in weights.iter().enumerate() {
            let (count, due) = (counts[id + 1], 300 * u32::from(*weight));
            // Random shares vary by the square root of their size, others by a few.
            let apart = count.abs_diff(due);
            let allowed = match policy {
                Policy::RoundRobin => 0,
                Policy::Random => 5 * due.isqrt(),
                _ => 10 * u32::from(*weight),
            };
            prop_assert!(apart <= allowed, "{policy:?}, weights {weights:?}: {counts:?}");
        }
    }

    /// The saturated one of two backends gets no new flow, whatever their weights and connections.
    #[test]
    fn the_saturated_of_two_gets_nothing(weights in prop::collection::vec(1u16..5, 2..3), live in 0u64..100, other in 1u32..127) {
        let (mut tables, service) = weighted(Policy::LeastLoad, &weights);
        tables.setup.live.iter_mut().for_each(|(id, count)| count.opened = if *id == 2 { live } else { 0 });
        set_loads(&mut tables, &[127, other]);
        for _ in 0..50 {
            prop_assert_eq!(select(&tables, &service, &client(0), 0), Some(2));
        }
    }

    /// The hash of a client depends on every byte of its address.
    #[test]
    fn other_addresses_hash_otherwise(bytes: [u8; 16], at in 0usize..16, change in 1u8..) {
        let mut other = bytes;
        other[at] ^= change;
        prop_assert_ne!(hash(&Address(bytes)), hash(&Address(other)));
    }
}
