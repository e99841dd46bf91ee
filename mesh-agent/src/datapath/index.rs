//! Assigns small numbers: indexes of addresses, nodes and published ports, and ranges of slots.
//!
//! Pure. Invariants: what has a number keeps it; a number in use, even by something about to go, is
//! given to nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Assigns numbers to `wanted`: the present ones where there are any, else the lowest that is in
/// `range` and neither in use nor `held`.
///
/// Returns the numbers, and the keys for which none was left.
pub fn assign<K: Copy + Ord>(
    present: &BTreeMap<K, u32>,
    wanted: impl IntoIterator<Item = K>,
    held: &BTreeSet<u32>,
    range: Range<u32>,
) -> (BTreeMap<K, u32>, Vec<K>) {
    let taken: BTreeSet<u32> = present.values().chain(held).copied().collect();
    let mut free = range.clone().filter(|number| !taken.contains(number));
    let mut given: BTreeSet<u32> = BTreeSet::new();
    let (mut numbers, mut refused) = (BTreeMap::new(), Vec::new());
    for key in wanted {
        let kept =
            present.get(&key).copied().filter(|number| range.contains(number) && given.insert(*number));
        match kept.or_else(|| free.next()) {
            Some(number) => {
                numbers.insert(key, number);
            }
            None => refused.push(key),
        }
    }
    (numbers, refused)
}

/// Ranges of slots that nothing uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreeSlots {
    gaps: Vec<Range<u32>>,
}

impl FreeSlots {
    /// The slots below `limit` that are not in the `used` ranges, which may overlap and come in any
    /// order.
    pub fn new(limit: u32, used: impl IntoIterator<Item = Range<u32>>) -> Self {
        let mut used: Vec<Range<u32>> = used.into_iter().filter(|range| !range.is_empty()).collect();
        used.sort_unstable_by_key(|range| range.start);
        let (mut gaps, mut at) = (Vec::new(), 0);
        for range in used {
            if at < range.start.min(limit) {
                gaps.push(at..range.start.min(limit));
            }
            at = at.max(range.end);
        }
        if at < limit {
            gaps.push(at..limit);
        }
        Self { gaps }
    }

    /// Takes the first range of `length` slots; `None` if none is long enough.
    pub fn take(&mut self, length: u32) -> Option<Range<u32>> {
        let gap = self.gaps.iter_mut().find(|gap| gap.end - gap.start >= length)?;
        let taken = gap.start..gap.start + length;
        gap.start = taken.end;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn present_numbers_stay_and_held_ones_wait() {
        let present = BTreeMap::from([('a', 1), ('b', 2)]);
        let (numbers, refused) = assign(&present, ['b', 'c', 'd'], &BTreeSet::from([3]), 1..5);
        assert_eq!(numbers, BTreeMap::from([('b', 2), ('c', 4)]), "1 is a's until it has gone, 3 is held");
        assert_eq!(refused, ['d']);
    }

    #[test]
    fn twins_of_a_damaged_map_are_told_apart() {
        let present = BTreeMap::from([('a', 1), ('b', 1)]);
        let (numbers, _) = assign(&present, ['a', 'b'], &BTreeSet::new(), 1..5);
        assert_eq!(numbers, BTreeMap::from([('a', 1), ('b', 2)]));
    }

    proptest! {
        #[test]
        fn taken_slots_overlap_nothing(
            used in prop::collection::vec((0..200_u32, 0..20_u32), 0..20),
            lengths in prop::collection::vec(1..20_u32, 0..20),
        ) {
            let limit = 160;
            let mut owned: Vec<Range<u32>> = used.iter().map(|(start, length)| *start..start + length).collect();
            let mut free = FreeSlots::new(limit, owned.clone());
            for length in lengths {
                let fits = (0..=limit - length).any(|start| {
                    owned.iter().all(|other| other.is_empty() || other.end <= start || start + length <= other.start)
                });
                match free.take(length) {
                    Some(taken) => {
                        prop_assert_eq!(taken.end - taken.start, length);
                        prop_assert!(taken.end <= limit, "{taken:?} reaches beyond {limit}");
                        for other in owned.iter().filter(|other| !other.is_empty()) {
                            prop_assert!(taken.end <= other.start || other.end <= taken.start, "{taken:?} overlaps {other:?}");
                        }
                        owned.push(taken);
                    }
                    None => prop_assert!(!fits, "{length} slots would have fitted, none were given"),
                }
            }
        }
    }
}
