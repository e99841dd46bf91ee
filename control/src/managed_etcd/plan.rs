//! Who is to be a member of the etcd that managers run, and the next step towards that. Pure.
//!
//! Invariants: a step never costs the quorum: an etcd whose living members with a vote are enough
//! has enough of them after it; the last member with a vote stays; each step brings the members
//! nearer to the managers, so that repeated steps come to an end.

use std::time::Duration;

use mesh_state::store::EtcdMember;

/// How long a learner may take to start.
pub const START_LIMIT: Duration = Duration::from_secs(90);
/// How long a learner that has started may take to catch up.
pub const CATCH_UP_LIMIT: Duration = Duration::from_mins(10);
/// How long a member that is not wanted any more has to leave by itself.
pub const LEAVE_LIMIT: Duration = Duration::from_secs(40);

/// A member, and what is known of its manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// The member as etcd has it.
    pub member: EtcdMember,
    /// Whether its node is to be a manager.
    pub wanted: bool,
    /// Whether its manager is alive.
    pub alive: bool,
    /// Whether it is the planning manager's own.
    pub own: bool,
    /// How long it has been what it is: a learner, or not wanted.
    pub since: Duration,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Give a learner its vote, if it has caught up.
    Promote(u64),
    /// Remove a member.
    Remove(u64),
}

/// The members that must live for `voters` of them to decide.
pub fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// The next step; `None` if there is none to take now.
pub fn next_step(seats: &[Seat]) -> Option<Step> {
    seats.iter().find_map(of_learner(seats)).or_else(|| {
        // Dead members first: each of them counts against the quorum.
        let leaving = |alive: bool| {
            seats.iter().filter(move |seat| seat.alive == alive && may_remove_voter(seats, seat))
        };
        leaving(false).chain(leaving(true)).map(|seat| Step::Remove(seat.member.id)).next()
    })
}

fn of_learner(seats: &[Seat]) -> impl Fn(&Seat) -> Option<Step> {
    move |seat: &Seat| {
        let id = seat.member.id;
        let limit = if seat.member.name.is_empty() { START_LIMIT } else { CATCH_UP_LIMIT };
        match seat {
            _ if !seat.member.is_learner => None,
            _ if !seat.wanted || seat.since >= limit => Some(Step::Remove(id)),
            _ if seat.member.name.is_empty() => None,
            // It lives if it has caught up, which etcd checks.
            _ if living(seats, None) + 1 >= quorum(voters(seats) + 1) => Some(Step::Promote(id)),
            _ => None,
        }
    }
}

fn may_remove_voter(seats: &[Seat], seat: &Seat) -> bool {
    let others = voters(seats).saturating_sub(1);
    let time_is_up = seat.since >= LEAVE_LIMIT;
    !seat.member.is_learner
        && !seat.wanted
        && !seat.own
        && time_is_up
        && others > 0
        && living(seats, Some(seat.member.id)) >= quorum(others)
}

fn voters(seats: &[Seat]) -> usize {
    seats.iter().filter(|seat| !seat.member.is_learner).count()
}

/// The living members with a vote, but for `except`.
fn living(seats: &[Seat], except: Option<u64>) -> usize {
    let counts = |seat: &&Seat| !seat.member.is_learner && seat.alive && Some(seat.member.id) != except;
    seats.iter().filter(counts).count()
}

/// What a manager that wants to join finds at its URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// There is room: add it as a learner.
    Free,
    /// A learner that never started waits for it.
    Kept,
    /// A member that had data, which the manager has lost: remove that one first.
    Lost(u64),
    /// Another learner joins: wait.
    Busy,
    /// Another member has the manager's name.
    NameTaken,
}

/// What the manager `name` that is reached at `peer_url` finds among `members`.
pub fn opening(members: &[EtcdMember], name: &str, peer_url: &str) -> Opening {
    if members.iter().any(|member| member.name == name && member.peer_url != peer_url) {
        return Opening::NameTaken;
    }
    match members.iter().find(|member| member.peer_url == peer_url) {
        Some(member) if member.is_learner && member.name.is_empty() => Opening::Kept,
        Some(member) => Opening::Lost(member.id),
        None if members.iter().any(|member| member.is_learner) => Opening::Busy,
        None => Opening::Free,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(id: u64, is_learner: bool) -> EtcdMember {
        EtcdMember { id, name: format!("m{id}"), peer_url: format!("https://10.0.0.{id}:4803"), is_learner }
    }

    fn seat(id: u64, is_learner: bool, wanted: bool, alive: bool) -> Seat {
        Seat { member: member(id, is_learner), wanted, alive, own: id == 0, since: LEAVE_LIMIT }
    }

    fn has_quorum(seats: &[Seat]) -> bool {
        living(seats, None) >= quorum(voters(seats))
    }

    fn take(seats: &mut Vec<Seat>, step: Step) {
        match step {
            Step::Promote(id) => seats.iter_mut().filter(|seat| seat.member.id == id).for_each(|seat| {
                seat.member.is_learner = false;
                seat.alive = true;
            }),
            Step::Remove(id) => seats.retain(|seat| seat.member.id != id),
        }
    }

    proptest! {
        #[test]
        fn steps_keep_the_quorum_and_come_to_an_end(
            kinds in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 1..8)
        ) {
            let mut seats: Vec<Seat> = (0_u64..).zip(kinds).map(|(id, (is_learner, wanted, alive))| {
                seat(id, is_learner && id > 0, wanted || id == 0, alive || id == 0)
            }).collect();
            let begun_with = seats.len();
            let mut taken = 0;
            while let Some(step) = next_step(&seats) {
                let had = has_quorum(&seats);
                take(&mut seats, step);
                prop_assert!(!had || has_quorum(&seats), "{step:?} cost the quorum: {seats:?}");
                prop_assert!(voters(&seats) > 0, "{step:?} removed the last vote");
                taken += 1;
                prop_assert!(taken <= 2 * begun_with, "no end");
            }
            let all_live = seats.iter().all(|seat| seat.alive);
            if all_live {
                prop_assert!(seats.iter().all(|seat| seat.wanted && !seat.member.is_learner), "{seats:?}");
            }
        }
    }

    #[test]
    fn a_member_that_is_not_wanted_may_leave_by_itself_first() {
        let three = |since| {
            let mut seats =
                vec![seat(0, false, true, true), seat(1, false, true, true), seat(2, false, false, true)];
            seats[2].since = since;
            seats
        };
        assert_eq!(next_step(&three(Duration::ZERO)), None);
        assert_eq!(next_step(&three(LEAVE_LIMIT)), Some(Step::Remove(2)));
    }

    #[test]
    fn a_removal_that_would_cost_the_quorum_waits() {
        let seats = [
            seat(0, false, true, true),
            seat(1, false, true, false),
            seat(2, false, true, false),
            seat(3, false, false, true),
        ];
        assert_eq!(next_step(&seats), None, "one of three would live");
    }

    #[test]
    fn a_learner_that_does_not_come_is_removed() {
        let mut learner = seat(1, true, true, false);
        learner.member.name = String::new();
        learner.since = Duration::ZERO;
        let with = |learner: &Seat| next_step(&[seat(0, false, true, true), learner.clone()]);
        assert_eq!(with(&learner), None, "it may still start");
        learner.since = START_LIMIT;
        assert_eq!(with(&learner), Some(Step::Remove(1)));
        learner.member.name = "m1".to_owned();
        assert_eq!(with(&learner), Some(Step::Promote(1)), "it catches up");
        learner.since = CATCH_UP_LIMIT;
        assert_eq!(with(&learner), Some(Step::Remove(1)));
    }

    #[test]
    fn a_manager_finds_the_place_that_it_left() {
        let members = [member(1, false), member(2, false)];
        let at = |members: &[EtcdMember], name: &str, id: u8| {
            opening(members, name, &format!("https://10.0.0.{id}:4803"))
        };
        assert_eq!(at(&members, "m3", 3), Opening::Free);
        assert_eq!(at(&members, "m2", 3), Opening::NameTaken);
        assert_eq!(at(&members, "m2", 2), Opening::Lost(2));
        let waiting = EtcdMember { name: String::new(), ..member(3, true) };
        let members = [members.to_vec(), vec![waiting]].concat();
        assert_eq!(at(&members, "m3", 3), Opening::Kept);
        assert_eq!(at(&members, "m4", 4), Opening::Busy);
    }
}
