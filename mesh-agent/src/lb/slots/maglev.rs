//! Weighted Maglev tables: slots by which a client's hash finds the same backend on every node, and
//! mostly the same one when backends come and go.
//!
//! Pure. Each backend visits the slots in an order that follows from its id alone. The backends
//! take turns in proportion to their weights, and in each turn a backend takes its next free slot.
//!
//! Invariants: every backend has a slot; shares differ from weights by a few slots; the size of a
//! table is one of a few primes far apart, so that it seldom changes, as another size moves nearly
//! all clients.

/// Sizes of tables: primes, so that every stride visits every slot.
const SIZES: [u32; 3] = [1021, 16_381, 65_537];

/// The least number of slots per backend that a table should have.
const SLOTS_EACH: usize = 100;

/// The backend id of each slot, for (id, weight) pairs; empty without backends.
pub(super) fn table(weighted: &[(u32, u64)]) -> Vec<u32> {
    let Some(heaviest) = weighted.iter().map(|(_, weight)| *weight).max() else { return Vec::new() };
    let [.., largest] = SIZES;
    let wanted = weighted.len().saturating_mul(SLOTS_EACH);
    let size = SIZES.into_iter().find(|size| *size as usize >= wanted).unwrap_or(largest);
    let mut walks: Vec<Walk> =
        weighted.iter().map(|(id, weight)| Walk::new(*id, *weight, heaviest, size)).collect();
    walks.sort_unstable_by_key(|walk| walk.id);
    let mut slots = vec![0_u32; size as usize];
    let mut free = slots.len();
    while free > 0 {
        for walk in &mut walks {
            walk.credit += walk.weight;
            if walk.credit < heaviest {
                continue;
            }
            walk.credit -= heaviest;
            walk.take(&mut slots);
            free -= 1;
            if free == 0 {
                break;
            }
        }
    }
    slots
}

/// A backend's walk through the slots.
struct Walk {
    id: u32,
    weight: u64,
    /// Turns that the backend has earned, in units of the heaviest weight.
    credit: u64,
    at: u32,
    stride: u32,
    size: u32,
}

impl Walk {
    fn new(id: u32, weight: u64, heaviest: u64, size: u32) -> Self {
        let hash = mix(u64::from(id));
        let start = reduce(hash, size);
        let stride = 1 + reduce(mix(hash), size - 1);
        // The first turn comes at once, so that no backend is left without a slot.
        Self { id, weight, credit: heaviest - weight, at: start, stride, size }
    }

    /// Takes the next free slot in the backend's order; there must be one.
    fn take(&mut self, slots: &mut [u32]) {
        loop {
            let slot = &mut slots[self.at as usize];
            self.at = reduce(u64::from(self.at) + u64::from(self.stride), self.size);
            if *slot == 0 {
                *slot = self.id;
                return;
            }
        }
    }
}

fn reduce(number: u64, size: u32) -> u32 {
    u32::try_from(number % u64::from(size)).unwrap_or_default()
}

/// A fixed hash (the finalizer of splitmix64): every node and every version of mesh must compute
/// the same tables.
const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn shares(slots: &[u32]) -> BTreeMap<u32, usize> {
        let mut counts = BTreeMap::new();
        for id in slots {
            *counts.entry(*id).or_default() += 1;
        }
        counts
    }

    #[test]
    fn tables_are_the_same_for_ever() {
        assert_eq!(table(&[]), [0_u32; 0]);
        let slots = table(&[(1, 1), (2, 1), (3, 2)]);
        assert_eq!(slots.len(), 1021);
        let sum = slots
            .iter()
            .zip(1_u64..)
            .fold(0_u64, |sum, (id, place)| sum.wrapping_mul(31).wrapping_add(u64::from(*id) * place));
        assert_eq!(sum, 16_638_767_790_528_388_112, "nodes of another version would disagree");
    }

    /// Slots that move between backends that stay, when another one goes: few, except for rare
    /// pairs of backends with similar walks.
    #[test]
    fn a_backend_that_goes_moves_hardly_any_others() {
        for count in [3_u32, 9, 20, 160] {
            let (mut moved, mut all) = (0, 0);
            for set in 0..6 {
                let weighted: Vec<(u32, u64)> = (0..count)
                    .map(|number| (1 + set * 1000 + number * 7, u64::from(1 + number % 3)))
                    .collect();
                let mut rest = weighted.clone();
                let (gone, _) = rest.remove(set as usize % rest.len());
                let (before, after) = (table(&weighted), table(&rest));
                assert_eq!(before.len(), after.len(), "sizes for {count} backends");
                assert!(!after.contains(&gone));
                moved += before.iter().zip(&after).filter(|(a, b)| **a != gone && a != b).count();
                all += before.len();
            }
            assert!(
                moved * 20 <= all,
                "{count} backends: {moved} of {all} slots moved, at most 5 % expected"
            );
        }
    }

    fn backends() -> impl Strategy<Value = Vec<(u32, u64)>> {
        prop::collection::btree_map(1..=65_535_u32, 1..8_u64, 1..60)
            .prop_map(|backends| backends.into_iter().collect())
    }

    proptest! {
        #[test]
        fn shares_follow_weights(backends in backends()) {
            let slots = table(&backends);
            let counts = shares(&slots);
            let total: u64 = backends.iter().map(|(_, weight)| weight).sum();
            for (id, weight) in &backends {
                let exact = slots.len() as u64 * weight / total;
                let seen = counts.get(id).copied().unwrap_or_default() as u64;
                let tolerance = 2 + exact / 20;
                prop_assert!(seen.abs_diff(exact) <= tolerance, "slots of {id}: {exact} expected, {seen} seen");
            }
        }

        #[test]
        fn order_does_not_matter(backends in backends()) {
            let mut reversed = backends.clone();
            reversed.reverse();
            prop_assert_eq!(table(&backends), table(&reversed));
        }
    }
}
