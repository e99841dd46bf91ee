//! Which backend a new flow gets. Never touches packets; constant work, whatever the number of
//! backends.
//!
//! The kernel's programs and the userspace proxy select by this one function, each over its own
//! tables: see [`Candidates`].

use crate::abi::{Address, Policy, Service};

/// Slots tried when the first choice has just gone and the table does not know yet.
const ATTEMPTS: u32 = 6;
/// How many of them are drawn by rehashing, where slots are hashed to.
const REHASHES: u32 = 3;

/// What selection asks of the tables.
pub trait Candidates {
    /// A random number.
    fn random(&self) -> u32;
    /// How many turns the published port has had before this one.
    fn next_turn(&self, service_index: u32) -> u64;
    /// The backend id in a slot.
    fn slot(&self, index: u32) -> Option<u32>;
    /// Whether the backend may have flows.
    fn is_alive(&self, id: u32) -> bool;
    /// Its share of new flows against others', at least 1.
    fn weight(&self, id: u32) -> u32;
    /// Live connections of the backend.
    fn live(&self, id: u32) -> u64;
    /// What its node measures, 1 (idle) to 127 (saturated); `None` if nothing young enough is
    /// known.
    fn load(&self, id: u32) -> Option<u32>;
}

/// The id of a living backend for a new flow of `service`, another one than `avoided` if there is
/// one close by; `None` if it has none. `client` is the client's address; `avoided` is the backend
/// that has just left the flow's first SYN unanswered, 0 for a flow that had none.
#[inline(always)]
pub fn select<C: Candidates>(
    candidates: &C,
    service: &Service,
    client: &Address,
    avoided: u32,
) -> Option<u32> {
    select_by(candidates, service, Selection::ByPolicy, client, avoided)
}

/// What a new flow's backend is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The service's policy.
    ByPolicy,
    /// This number, which all packets of the flow have, so that they get the same backend as long
    /// as the slots are the same, with nothing remembered; or, if that is the policy, the client's
    /// address.
    ByFlowHash(u32),
}

/// [`select`], by the policy or so that it can be chosen again.
#[inline(always)]
pub fn select_by<C: Candidates>(
    candidates: &C,
    service: &Service,
    by: Selection,
    client: &Address,
    avoided: u32,
) -> Option<u32> {
    let count = service.slot_count;
    if count == 0 {
        return None;
    }
    let own = Policy::from_byte(service.policy);
    let (policy, flow_hash) = match by {
        Selection::ByFlowHash(flow_hash) if !matches!(own, Policy::SourceHash) => {
            (Policy::SourceHash, Some(flow_hash))
        }
        Selection::ByPolicy | Selection::ByFlowHash(_) => (own, None),
    };
    let start = match (policy, flow_hash) {
        (Policy::SourceHash, Some(flow_hash)) => flow_hash,
        (Policy::SourceHash, None) => hash(client),
        (Policy::RoundRobin, _) => (candidates.next_turn(service.index) % u64::from(count)) as u32,
        (Policy::Random | Policy::LeastConnections | Policy::LeastLoad, _) => candidates.random(),
    };
    let is_hashed = matches!(policy, Policy::SourceHash);
    let (first, spare) = probe(candidates, service, start, is_hashed, [avoided, 0]);
    let Some(first) = first else {
        return spare;
    };
    match policy {
        Policy::RoundRobin | Policy::Random | Policy::SourceHash => Some(first),
        Policy::LeastConnections | Policy::LeastLoad => {
            // As the first is drawn from all slots alike, keeping it on a tie favours none.
            match probe(candidates, service, candidates.random(), false, [avoided, first]) {
                (Some(second), _) if is_better(candidates, policy, second, first) => Some(second),
                _ => Some(first),
            }
        }
    }
}

/// Looks through a few slots, from number `start` modulo their count on, for a living backend that
/// is none of `others`; also tells the last living one passed over. The next look is at the slot
/// beside, but for hashed clients first where another hash points: else all clients of a backend
/// that is gone would go to its neighbour.
#[inline(always)]
fn probe<C: Candidates>(
    candidates: &C,
    service: &Service,
    start: u32,
    is_hashed: bool,
    others: [u32; 2],
) -> (Option<u32>, Option<u32>) {
    let (mut at, mut attempt, mut spare) = (start, 0, None);
    while attempt < ATTEMPTS {
        let slot = service.slot_base.wrapping_add(at % service.slot_count);
        let Some(id) = candidates.slot(slot) else {
            break;
        };
        if candidates.is_alive(id) {
            if id != others[0] && id != others[1] {
                return (Some(id), spare);
            }
            spare = Some(id);
        }
        at = if is_hashed && attempt < REHASHES {
            mix(at.wrapping_add(1))
        } else {
            at % service.slot_count + 1
        };
        attempt += 1;
    }
    (None, spare)
}

/// Whether a new flow is better off with `one` than with `other`.
#[inline(always)]
fn is_better<C: Candidates>(candidates: &C, policy: Policy, one: u32, other: u32) -> bool {
    if matches!(policy, Policy::LeastLoad)
        && let (Some(mine), Some(its)) = (candidates.load(one), candidates.load(other))
        && mine != its
    {
        return mine < its;
    }
    let (mine, its) = (candidates.live(one), candidates.live(other));
    if mine | its == 0 {
        return false; // Else the heavier of two idle ones would get all of the traffic.
    }
    // Connections for each unit of weight, the new one included; counts are cut, so that products
    // fit their type.
    let with_one = |live: u64| live.min(u32::MAX.into()) + 1;
    with_one(mine) * u64::from(candidates.weight(other)) < with_one(its) * u64::from(candidates.weight(one))
}

/// The client's number, alike on all nodes: [`Policy::SourceHash`] takes the slot of this number
/// modulo their count.
#[inline(always)]
pub const fn hash(client: &Address) -> u32 {
    let hash = mix(word(client, 0));
    let hash = mix(hash ^ word(client, 4));
    let hash = mix(hash ^ word(client, 8));
    mix(hash ^ word(client, 12))
}

/// Four octets of an address, the first one the highest.
#[inline(always)]
const fn word(address: &Address, at: usize) -> u32 {
    u32::from_be_bytes([address.0[at], address.0[at + 1], address.0[at + 2], address.0[at + 3]])
}

/// A permutation of the 32-bit numbers in which every bit depends on every bit, by turns of shift
/// and multiplication.
#[inline(always)]
const fn mix(number: u32) -> u32 {
    let number = (number ^ number >> 16).wrapping_mul(0x7feb_352d);
    let number = (number ^ number >> 15).wrapping_mul(0x846c_a68b);
    number ^ number >> 16
}

#[cfg(test)]
mod tests;
