//! Lays out the selectable backends of a published port in slots, by weight.
//!
//! Pure. Invariants: only the best state that occurs is selectable; every selectable backend has at
//! least one slot; equal input gives equal slots on every node. Kernel maps and userspace are
//! filled by the same [`compose`].
//!
//! Left to others: weights in slow start ([`super::ramp`]), and ejecting backends that fail
//! ([`super::health`]).

mod maglev;

use mesh_state::lb::Policy;

use crate::view::BackendState;

/// The most slots that weights may add for one published port, beyond one for each backend.
const WEIGHT_SLOTS_MAX: u64 = 1 << 14;

/// One backend of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The backend's id.
    pub id: u32,
    /// Decides whether the backend gets new flows.
    pub state: BackendState,
    /// The backend's share, in any unit that is the same for all candidates.
    pub weight: u32,
    /// Whether its task runs on this node.
    pub is_local: bool,
}

/// The backend ids of a port's slots: the active backends (with `prefer_local` this node's active
/// ones, if it has any), else the draining ones, else the silent ones, else none; retired ones
/// never. They are interleaved by weight, or form a Maglev table if the policy needs one.
pub fn compose(policy: Policy, prefer_local: bool, candidates: &[Candidate]) -> Vec<u32> {
    let states = candidates.iter().map(|candidate| candidate.state);
    let Some(best) = states.filter(|state| *state != BackendState::Retired).min() else {
        return Vec::new();
    };
    let is_here = |candidate: &Candidate| candidate.is_local && candidate.state == BackendState::Active;
    let only_local = prefer_local && candidates.iter().any(is_here);
    let selectable: Vec<(u32, u64)> = candidates
        .iter()
        .filter(|candidate| candidate.state == best && (!only_local || is_here(candidate)))
        .map(|candidate| (candidate.id, u64::from(candidate.weight.max(1))))
        .collect();
    let selectable = scaled(&selectable);
    // All other policies need the slots in proportion to the weights, and nothing else.
    if policy == Policy::SourceHash { maglev::table(&selectable) } else { interleave(&selectable) }
}

/// Weights in lowest terms, scaled down if they would take too many slots.
fn scaled(weighted: &[(u32, u64)]) -> Vec<(u32, u64)> {
    let divisor = weighted.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
    let sum: u64 = weighted.iter().map(|(_, weight)| weight / divisor).sum();
    weighted
        .iter()
        .map(|(id, weight)| {
            let weight = weight / divisor;
            (*id, if sum > WEIGHT_SLOTS_MAX { (weight * WEIGHT_SLOTS_MAX / sum).max(1) } else { weight })
        })
        .collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Repeats each id by its weight, evenly spread: the k-th of w stands at (2k + 1) / 2w of the way.
fn interleave(weighted: &[(u32, u64)]) -> Vec<u32> {
    let mut placed: Vec<(u64, u32)> = weighted
        .iter()
        .flat_map(|(id, weight)| (0..*weight).map(move |k| (((2 * k + 1) << 40) / (2 * weight), *id)))
        .collect();
    placed.sort_unstable();
    placed.into_iter().map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn candidate(id: u32, state: BackendState, weight: u32) -> Candidate {
        Candidate { id, state, weight, is_local: false }
    }

    fn members(candidates: &[Candidate]) -> Vec<u32> {
        compose(Policy::RoundRobin, false, candidates)
    }

    #[track_caller]
    fn check(candidates: &[Candidate], expected: &[u32]) {
        assert_eq!(members(candidates), expected, "members of {candidates:?}");
    }

    #[test]
    fn the_best_state_alone_is_selectable() {
        use BackendState::{Active, Draining, Retired, Silent};
        check(&[], &[]);
        check(&[candidate(1, Retired, 1)], &[]);
        check(&[candidate(1, Retired, 1), candidate(2, Silent, 1)], &[2]);
        check(&[candidate(1, Draining, 1), candidate(2, Active, 1), candidate(3, Silent, 1)], &[2]);
        check(&[candidate(1, Draining, 1), candidate(3, Silent, 1)], &[1]);
        check(&[candidate(3, Silent, 1), candidate(4, Silent, 1)], &[3, 4]);
    }

    #[test]
    fn local_ones_alone_are_preferred_while_one_is_active() {
        use BackendState::{Active, Draining};
        let local = |id, state| Candidate { is_local: true, ..candidate(id, state, 1) };
        let prefer = |candidates: &[Candidate]| compose(Policy::Random, true, candidates);
        assert_eq!(prefer(&[candidate(1, Active, 1), local(2, Active), local(3, Active)]), [2, 3]);
        assert_eq!(prefer(&[candidate(1, Active, 1), local(2, Draining)]), [1]);
        assert_eq!(prefer(&[candidate(1, Draining, 1), local(2, Draining)]), [1, 2]);
    }

    #[test]
    fn repeats_are_interleaved() {
        use BackendState::Active;
        check(&[candidate(1, Active, 2), candidate(2, Active, 1)], &[1, 2, 1]);
        check(&[candidate(1, Active, 20), candidate(2, Active, 10)], &[1, 2, 1]);
        check(&[candidate(1, Active, 7), candidate(2, Active, 7)], &[1, 2]);
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let state = prop::sample::select(BackendState::ALL.to_vec());
        let weight = prop_oneof![4 => 1..8_u32, 1 => any::<u32>()];
        prop::collection::btree_map(1..=65_535_u32, (state, weight), 0..40).prop_map(|drawn| {
            drawn.into_iter().map(|(id, (state, weight))| candidate(id, state, weight)).collect()
        })
    }

    proptest! {
        #[test]
        fn shares_follow_weights(candidates in candidates()) {
            let members = members(&candidates);
            let states = candidates.iter().map(|candidate| candidate.state);
            let best = states.filter(|state| *state != BackendState::Retired).min();
            let selectable: Vec<_> = candidates.iter().filter(|c| Some(c.state) == best).collect();
            let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
            for id in &members {
                *counts.entry(*id).or_default() += 1;
            }
            prop_assert_eq!(counts.len(), selectable.len(), "every selectable backend, and no other, has a slot");
            let limit = WEIGHT_SLOTS_MAX + selectable.len() as u64;
            prop_assert!(members.len() as u64 <= limit, "{} slots, at most {limit} expected", members.len());
            let total: f64 = selectable.iter().map(|c| f64::from(c.weight.max(1))).sum();
            for chosen in &selectable {
                let expected = f64::from(chosen.weight.max(1)) / total;
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                let seen = counts[&chosen.id] as f64 / members.len() as f64;
                prop_assert!((seen - expected).abs() < 0.005, "share of {}: {expected} expected, {seen} seen", chosen.id);
            }
        }
    }
}
