//! Which backend a new flow gets. Never touches packets; constant work, whatever the number of backends.
//!
//! The kernel's programs and the userspace proxy select by this one function, each over its own tables: see
//! [`Candidates`].

use crate::abi::{Policy, Service};

/// Slots tried when the first choice has just gone and the table does not know yet.
const ATTEMPTS: u32 = 4;

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
    /// What its node measures, 1 (idle) to 127 (saturated); `None` if nothing young enough is known.
    fn load(&self, id: u32) -> Option<u32>;
}

/// The id of a living backend for a new flow of `service`, another one than `avoided` if there is one close by; `None` if it
/// has none. `source` is the client's address, 4 octets or the last 4 of a hash over 16 of them; `avoided` is the backend
/// that has just left the flow's first SYN unanswered, 0 for a flow that had none.
#[inline(always)]
pub fn select<C: Candidates>(candidates: &C, service: &Service, source: u32, avoided: u32) -> Option<u32> {
    if service.slot_count == 0 {
        return None;
    }
    let first = match Policy::from_byte(service.policy) {
        Policy::RoundRobin => (candidates.next_turn(service.index) % u64::from(service.slot_count)) as u32,
        Policy::Random => candidates.random() % service.slot_count,
        Policy::SourceHash => source % service.slot_count,
        Policy::LeastConnections | Policy::LeastLoad => less_loaded_of_two(candidates, service)?,
    };
    let (mut attempt, mut spare) = (0, None);
    while attempt < ATTEMPTS {
        let id = backend_at(candidates, service, (first + attempt) % service.slot_count)?;
        if candidates.is_alive(id) {
            if id != avoided {
                return Some(id);
            }
            spare = Some(id);
        }
        attempt += 1;
    }
    spare
}

/// Draws two distinct slots at random and takes that with fewer live connections. As every ordered pair is equally
/// likely, keeping the first of a tie favours neither.
#[inline(always)]
fn less_loaded_of_two<C: Candidates>(candidates: &C, service: &Service) -> Option<u32> {
    let count = service.slot_count;
    let first = candidates.random() % count;
    if count == 1 {
        return Some(first);
    }
    let second = (first + 1 + candidates.random() % (count - 1)) % count;
    let load = |slot| backend_at(candidates, service, slot).map(|id| candidates.live(id));
    Some(if load(second)? < load(first)? { second } else { first })
}

/// The backend id in the slot of `service` with this number.
#[inline(always)]
fn backend_at<C: Candidates>(candidates: &C, service: &Service, slot: u32) -> Option<u32> {
    candidates.slot(service.slot_base.wrapping_add(slot))
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::abi::{Backend, BackendState, Live};
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

    /// How often each of the backends was chosen in `rounds`; index 0 is "none".
    fn choices(tables: &HostTables, service: &Service, rounds: usize) -> Vec<usize> {
        let mut counts = vec![0; tables.setup.backends.len() + 1];
        for _ in 0..rounds {
            counts[select(tables, service, 0, 0).unwrap_or(0) as usize] += 1;
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
            assert_eq!(select(&tables, &service(policy, 0), 0, 0), None, "{policy:?} without slots");
        }
        for (_, backend) in &mut tables.setup.backends {
            backend.state = BackendState::Down as u8;
        }
        for policy in Policy::ALL {
            assert_eq!(
                select(&tables, &service(policy, 2), 0, 0),
                None,
                "{policy:?} with dead backends only"
            );
        }
    }

    #[test]
    fn a_silent_backend_is_avoided_while_there_is_another() {
        for policy in Policy::ALL {
            for _ in 0..100 {
                let chosen = select(&tables(&[0, 0, 0]), &service(policy, 3), 0, 2);
                assert!(
                    matches!(chosen, Some(1 | 3)),
                    "{policy:?} chose {chosen:?}, expected another than 2"
                );
            }
            assert_eq!(select(&tables(&[0]), &service(policy, 1), 0, 1), Some(1), "{policy:?} has no other");
        }
    }

    #[test]
    fn a_dead_slot_is_skipped() {
        let mut tables = tables(&[0, 0, 0]);
        tables.setup.backends[1].1.state = BackendState::Down as u8;
        let counts = choices(&tables, &service(Policy::RoundRobin, 3), 30);
        assert_eq!(counts, [0, 10, 0, 20], "the next one takes its turn");
    }
}
