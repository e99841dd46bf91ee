//! How far the clocks of nodes and of other managers are ahead of this manager's.
//!
//! Nodes send their time with each heartbeat, managers with their records. Delay in delivery makes
//! a clock look slow but never fast, so of the last few samples the one that looks fastest counts.
//!
//! Invariant: no decision depends on these figures. Planners compare moments of one clock
//! ([`super::snapshot::ClusterSnapshot::ended_at`] and its neighbours); the figures are for
//! operators, as certificates and logs depend on every clock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::TimeDelta;
use mesh_state::Timestamp;
use mesh_state::ids::NodeId;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::snapshot::ClusterSnapshot;
use super::watch::Feed;

/// Samples kept of each clock; the fastest of them counts.
const TIMES_KEPT: usize = 4;
/// A difference beyond this is logged as a warning.
pub const WARNED_BEYOND: TimeDelta = TimeDelta::seconds(5);
/// A difference beyond this is shown, and written for other managers.
const SHOWN_BEYOND: TimeDelta = TimeDelta::seconds(1);

/// Whose clock it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// The clock of a node that has its session with this manager.
    Node(NodeId),
    /// The clock of another manager, by its name.
    Manager(String),
}

/// The samples of one clock.
#[derive(Debug, Default)]
struct Clock {
    /// How far the clock was ahead, at each sample.
    ahead: VecDeque<TimeDelta>,
    is_off: bool,
}

impl Clock {
    /// Adds a sample. Returns `Some` if the clock has become wrong, or right again.
    fn tell(&mut self, told: Timestamp, heard: Timestamp) -> Option<bool> {
        if self.ahead.len() == TIMES_KEPT {
            self.ahead.pop_front();
        }
        self.ahead.push_back(told.signed_duration_since(heard));
        // A single slow sample may be one message that was delayed.
        let is_known = self.ahead.len() == TIMES_KEPT || self.ahead() > WARNED_BEYOND;
        let is_off = is_known && self.ahead().abs() > WARNED_BEYOND;
        (std::mem::replace(&mut self.is_off, is_off) != is_off).then_some(is_off)
    }

    fn ahead(&self) -> TimeDelta {
        self.ahead.iter().max().copied().unwrap_or_default()
    }
}

/// The clocks of the peers that this manager hears from.
#[derive(Debug, Default)]
pub struct Clocks(Mutex<BTreeMap<Peer, Clock>>);

impl Clocks {
    /// Adds a sample: the peer's time `told`, received at `heard`.
    pub fn tell(&self, peer: &Peer, told: Timestamp, heard: Timestamp) {
        let (changed, ahead) = {
            let mut known = self.known();
            let clock = known.entry(peer.clone()).or_default();
            (clock.tell(told, heard), clock.ahead())
        };
        let ahead_seconds = seconds(ahead);
        match changed {
            Some(true) => warn!(
                ?peer,
                ahead_seconds,
                "its clock differs from this manager's by more than {} s: set both by NTP",
                WARNED_BEYOND.num_seconds()
            ),
            Some(false) => info!(?peer, ahead_seconds, "its clock agrees with this manager's again"),
            None => {}
        }
    }

    /// Forgets the clock of a peer that is gone.
    pub fn forget(&self, peer: &Peer) {
        self.known().remove(peer);
    }

    /// How far each clock is ahead of this manager's.
    pub fn ahead(&self) -> Vec<(Peer, TimeDelta)> {
        self.known().iter().map(|(peer, clock)| (peer.clone(), clock.ahead())).collect()
    }

    /// Nodes whose clocks are more than a second ahead of this manager's or behind it, in
    /// milliseconds, for this manager's record.
    pub fn nodes_off(&self, snapshot: &ClusterSnapshot) -> BTreeMap<NodeId, i64> {
        let off = self.ahead().into_iter().filter(|(_, ahead)| ahead.abs() > SHOWN_BEYOND);
        let of_node = |(peer, ahead): (Peer, TimeDelta)| {
            let node = match peer {
                Peer::Node(node) => node,
                Peer::Manager(name) => snapshot.node_of_manager(&name)?.clone(),
            };
            Some((node, ahead.num_milliseconds()))
        };
        off.filter_map(of_node).collect()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Peer, Clock>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A time span in seconds, for metrics and logs.
#[expect(clippy::cast_precision_loss, reason = "milliseconds of a skew are far below 2^52")]
pub fn seconds(span: TimeDelta) -> f64 {
    span.num_milliseconds() as f64 / 1000.0
}

/// Adds the times in other managers' records as they are written, until `shutdown`.
pub async fn follow_managers(feed: Feed, own: String, clocks: Arc<Clocks>, shutdown: CancellationToken) {
    let mut snapshots = feed.snapshots;
    let mut taken = BTreeMap::new();
    loop {
        take(&snapshots.borrow_and_update(), &own, &mut taken, &clocks);
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

/// Adds each record's time once. Records of a listing don't count: when they were written is
/// unknown.
fn take(snapshot: &ClusterSnapshot, own: &str, taken: &mut BTreeMap<String, i64>, clocks: &Clocks) {
    for (name, manager) in snapshot.managers.iter().filter(|(name, _)| *name != own) {
        let (Some(told), Some(seen)) = (manager.written_at, snapshot.managers_seen.get(name)) else {
            continue;
        };
        if taken.insert(name.clone(), manager.mod_revision) != Some(manager.mod_revision) {
            clocks.tell(&Peer::Manager(name.clone()), told, *seen);
        }
    }
    taken.retain(|name, _| {
        let lives = snapshot.managers.contains_key(name);
        if !lives {
            clocks.forget(&Peer::Manager(name.clone()));
        }
        lives
    });
}

#[cfg(test)]
mod tests {
    use mesh_state::cluster::Manager;
    use mesh_state::keys;

    use super::*;
    use crate::fixtures::World;

    fn moment(ms: i64) -> Timestamp {
        Timestamp::from_timestamp_millis(1_000_000_000 + ms).unwrap()
    }

    fn ahead_ms(clocks: &Clocks, peer: &Peer) -> Option<i64> {
        let known = clocks.ahead();
        known.iter().find(|(known, _)| known == peer).map(|(_, ahead)| ahead.num_milliseconds())
    }

    #[test]
    fn a_late_message_makes_no_clock_slow() {
        let (clocks, node) = (Clocks::default(), Peer::Node("n".into()));
        for (told, heard) in [(0, 2), (500, 9_500), (1_000, 1_040), (1_500, 1_501)] {
            clocks.tell(&node, moment(told), moment(heard));
        }
        assert_eq!(ahead_ms(&clocks, &node), Some(-1), "the message with the least delay counts");
        for step in 0..4 {
            clocks.tell(&node, moment(step - 7_000), moment(step));
        }
        assert_eq!(ahead_ms(&clocks, &node), Some(-7_000), "the clock was put back");
        clocks.forget(&node);
        assert_eq!(ahead_ms(&clocks, &node), None);
    }

    #[test]
    fn a_clock_that_is_off_is_reported_once_and_again_when_it_is_right() {
        let mut clock = Clock::default();
        let mut tell = |ahead: i64| clock.tell(moment(ahead), moment(0));
        assert_eq!(tell(5_000), None, "five seconds are tolerated");
        assert_eq!(tell(5_001), Some(true));
        assert_eq!(tell(6_000), None, "it was reported already");
        assert_eq!([tell(0), tell(0), tell(0)], [None, None, None], "the last samples still count");
        assert_eq!(tell(0), Some(false));
        assert_eq!(
            [tell(-6_000), tell(-6_000), tell(-6_000)],
            [None, None, None],
            "the messages may be delayed"
        );
        assert_eq!(tell(-6_000), Some(true));
    }

    #[test]
    fn each_record_that_is_seen_written_is_a_sample_of_its_managers_clock() {
        let mut world = World::new();
        let (clocks, mut taken) = (Clocks::default(), BTreeMap::new());
        let mut write = |world: &mut World, name: &str, ahead: i64| {
            let written_at = Some(world.now + TimeDelta::seconds(ahead));
            let record = Manager {
                name: name.to_owned(),
                node: Some(format!("node{name}").into()),
                written_at,
                ..Manager::default()
            };
            world.put(keys::manager(name), &record);
            take(&world.snapshot, "own", &mut taken, &clocks);
        };
        write(&mut world, "own", 99);
        write(&mut world, "other", 12);
        world.pass(1);
        assert_eq!(clocks.ahead(), [(Peer::Manager("other".into()), TimeDelta::seconds(12))]);
        assert_eq!(clocks.nodes_off(&world.snapshot), [("nodeother".into(), 12_000)].into());

        let fresh = Clocks::default();
        let mut listed = world.snapshot.clone();
        listed.see_listing(&ClusterSnapshot::default(), world.now);
        take(&listed, "own", &mut BTreeMap::new(), &fresh);
        assert_eq!(fresh.ahead(), [], "these records come from a listing");
        world.delete(keys::manager("other"));
        take(&world.snapshot, "own", &mut taken, &clocks);
        assert_eq!(clocks.ahead(), [], "a manager that is gone leaves no clock");
    }
}
