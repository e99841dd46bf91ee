//! Selects the backend of a new flow. Never touches packets; does constant work, whatever the
//! number of backends.
//!
//! The kernel's programs and the userspace proxy share this function, each over its own tables: see
//! [`Candidates`].

use crate::abi::{Address, Policy, Service};

/// The number of slots tried when the selected backend is gone, but the slots still name it.
const ATTEMPTS: u32 = 6;
/// For hashed clients, how many of these are selected by rehashing.
const REHASHES: u32 = 3;

/// The tables that selection reads.
pub trait Candidates {
    /// A random number.
    fn random(&self) -> u32;
    /// How many times the published port has taken a turn before this one (round robin).
    fn next_turn(&self, service_index: u32) -> u64;
    /// The id of the backend in this slot.
    fn slot(&self, index: u32) -> Option<u32>;
    /// Whether the backend is active or draining.
    fn is_alive(&self, id: u32) -> bool;
    /// The backend's weight, at least 1.
    fn weight(&self, id: u32) -> u32;
    /// The number of live connections of the backend.
    fn live(&self, id: u32) -> u64;
    /// The load that the backend's node measures, from 1 (idle) to 127 (saturated); `None` if it is
    /// unknown or outdated.
    fn load(&self, id: u32) -> Option<u32>;
}

/// Selects a live backend by the service's policy; returns its id, or `None` if the service has no
/// backend. `client` is the client's address. `avoided` is the backend that has just left the
/// flow's first SYN unanswered (0: none did): another one is selected if there is one close by.
#[inline(always)]
pub fn select<C: Candidates>(
    candidates: &C,
    service: &Service,
    client: &Address,
    avoided: u32,
) -> Option<u32> {
    select_by(candidates, service, Selection::ByPolicy, client, avoided)
}

/// How a new flow's backend is selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// By the service's policy.
    ByPolicy,
    /// By this hash of the flow's key: all packets of the flow get the same backend as long as the
    /// slots are the same, without a flow table. If the policy is [`Policy::SourceHash`], by the
    /// client's address all the same.
    ByFlowHash(u32),
}

/// [`select`] with the way of selecting given.
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
            // The first one is drawn from all slots, so keeping it on a tie favours no backend.
            match probe(candidates, service, candidates.random(), false, [avoided, first]) {
                (Some(second), _) if is_better(candidates, policy, second, first) => Some(second),
                _ => Some(first),
            }
        }
    }
}

/// Searches a few slots, from slot `start` modulo their count on, for a live backend that is none
/// of `others`; also returns the last live one that it skipped. It continues at the next slot, but
/// for hashed clients it first rehashes a few times: otherwise all clients of a backend that is
/// gone would go to its neighbour.
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

/// Whether `one` is a better backend for a new flow than `other`.
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
    // Compares connections per unit of weight, the new one included. Counts are capped so that the
    // products fit their type.
    let with_one = |live: u64| live.min(u32::MAX.into()) + 1;
    with_one(mine) * u64::from(candidates.weight(other)) < with_one(its) * u64::from(candidates.weight(one))
}

/// The hash of a client's address, the same on all nodes: [`Policy::SourceHash`] selects the slot
/// with this number modulo the slot count.
#[inline(always)]
pub const fn hash(client: &Address) -> u32 {
    let hash = mix(word(client, 0));
    let hash = mix(hash ^ word(client, 4));
    let hash = mix(hash ^ word(client, 8));
    mix(hash ^ word(client, 12))
}

/// Four octets of an address as a big-endian number.
#[inline(always)]
const fn word(address: &Address, at: usize) -> u32 {
    u32::from_be_bytes([address.0[at], address.0[at + 1], address.0[at + 2], address.0[at + 3]])
}

/// A permutation of the 32-bit numbers in which every bit depends on every bit: alternating shifts
/// and multiplications.
#[inline(always)]
const fn mix(number: u32) -> u32 {
    let number = (number ^ number >> 16).wrapping_mul(0x7feb_352d);
    let number = (number ^ number >> 15).wrapping_mul(0x846c_a68b);
    number ^ number >> 16
}

#[cfg(test)]
mod tests;
