//! Which backend a new flow gets. Never touches packets; constant work, whatever the number of backends.

use crate::abi::{Policy, Service};
use crate::lookups::Lookups;

/// Slots tried when the first choice has just gone and the table does not know yet.
const ATTEMPTS: u32 = 4;

/// The id of a living backend for a new flow of `service`; `None` if it has none.
#[inline(always)]
pub fn select<L: Lookups>(lookups: &L, service: &Service) -> Option<u32> {
    if service.slot_count == 0 {
        return None;
    }
    let first = match Policy::from_byte(service.policy) {
        Policy::RoundRobin => (lookups.next_turn(service.index) % u64::from(service.slot_count)) as u32,
        Policy::LeastConnections => less_loaded_of_two(lookups, service)?,
    };
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let id = backend_at(lookups, service, (first + attempt) % service.slot_count)?;
        if lookups.backend(id)?.is_alive() {
            return Some(id);
        }
        attempt += 1;
    }
    None
}

/// Draws two distinct slots at random and takes that with fewer live connections. As every ordered pair is equally
/// likely, keeping the first of a tie favours neither.
#[inline(always)]
fn less_loaded_of_two<L: Lookups>(lookups: &L, service: &Service) -> Option<u32> {
    let count = service.slot_count;
    let first = lookups.random() % count;
    if count == 1 {
        return Some(first);
    }
    let second = (first + 1 + lookups.random() % (count - 1)) % count;
    let load = |slot| backend_at(lookups, service, slot).map(|id| lookups.live(id));
    Some(if load(second)? < load(first)? { second } else { first })
}

/// The backend id in the slot of `service` with this number.
#[inline(always)]
fn backend_at<L: Lookups>(lookups: &L, service: &Service, slot: u32) -> Option<u32> {
    lookups.slot(service.slot_base.wrapping_add(slot))
}
