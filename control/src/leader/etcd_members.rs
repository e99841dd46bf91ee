//! Keeps the members of the etcd that managers run in step with the managers: the leader promotes
//! learners and removes who is no manager any more; every manager notes its own place.
//!
//! Invariant: what is done next is decided by [`crate::managed_etcd::plan`]; a failure is logged
//! and tried again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_runtime::error_chain;
use mesh_state::cluster::EtcdPlace;
use mesh_state::codec::{self, CodecError};
use mesh_state::ids::NodeId;
use mesh_state::keys;
use mesh_state::node::NodeRole;
use mesh_state::store::{Compare, EtcdMember, EtcdStore, Joined, Op, Store, StoreError};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::election::Leadership;
use crate::feed::snapshot::ClusterSnapshot;
use crate::feed::watch::Feed;
use crate::managed_etcd::peer_url;
use crate::managed_etcd::plan::{Seat, Step, next_step};

/// How often members are compared with managers.
const PERIOD: Duration = Duration::from_secs(1);

/// Why a pass failed.
#[derive(Debug, Error)]
enum MembersError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Keeps the members of etcd.
pub struct Members {
    /// The client of the etcd whose members are kept.
    pub etcd: Arc<EtcdStore>,
    /// The cluster's state in it.
    pub store: Arc<dyn Store>,
    /// The newest snapshot of that.
    pub feed: Feed,
    /// Whether this manager leads.
    pub leadership: watch::Receiver<Option<Leadership>>,
    /// The node that this manager runs on.
    pub own_node: watch::Receiver<Option<NodeId>>,
    /// This manager's own place.
    pub own: EtcdPlace,
}

/// What a member is, and since when this leader has seen it so.
type Known = BTreeMap<u64, ((bool, bool), Instant)>;

impl Members {
    /// Keeps the members until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = Known::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            let leads = *self.leadership.borrow();
            let passed = async {
                self.note_own_place().await?;
                if let Some(leadership) = leads {
                    return self.pass(leadership, &mut known).await;
                }
                known.clear();
                Ok(())
            };
            if let Err(error) = passed.await {
                warn!(error = %error_chain(&error), "can't keep etcd's members; will try again");
            }
        }
    }

    /// Writes this manager's place, once its node is known.
    async fn note_own_place(&self) -> Result<(), MembersError> {
        let snapshot = self.feed.snapshot();
        let own = self.own_node.borrow().clone();
        let Some(node) = own.as_ref().and_then(|id| snapshot.nodes.get(id)) else { return Ok(()) };
        let noted = snapshot.etcd_places.get(&node.id).map(|place| &place.value);
        if node.spec.role != NodeRole::Manager || noted == Some(&self.own) {
            return Ok(());
        }
        let compares = vec![Compare::ModRevision(keys::node(&node.id), node.mod_revision)];
        let put = Op::put(keys::etcd_place(&node.id), codec::encode(&self.own)?);
        self.store.txn(compares, vec![put]).await?;
        Ok(())
    }

    async fn pass(&self, leadership: Leadership, known: &mut Known) -> Result<(), MembersError> {
        // In this order: a member is added before its place is noted, so no place of the snapshot
        // lacks a member that is only newer.
        let snapshot = self.feed.snapshot();
        let members = self.etcd.members().await?;
        for place in forgotten(&snapshot, &members) {
            self.store.txn(vec![leadership.fence()], vec![Op::delete(keys::etcd_place(&place))]).await?;
        }
        let seats = seats(&snapshot, &members, &self.own.peer_url, known, Instant::now());
        match next_step(&seats) {
            Some(Step::Promote(id)) => {
                let joined = self.etcd.promote_member(id).await?;
                if joined == Joined::Votes {
                    info!(member = format!("{id:x}"), "a manager's etcd has caught up and got its vote");
                }
            }
            Some(Step::Remove(id)) => {
                self.etcd.remove_member(id).await?;
                info!(
                    member = format!("{id:x}"),
                    "removed from etcd: its node is no manager, or did not come"
                );
            }
            None => {}
        }
        Ok(())
    }
}

/// The members, with what the snapshot says of their managers. A member without a place counts as
/// wanted: its manager is of an earlier version, or is about to note it.
fn seats(
    snapshot: &ClusterSnapshot,
    members: &[EtcdMember],
    own_url: &str,
    known: &mut Known,
    now: Instant,
) -> Vec<Seat> {
    known.retain(|id, _| members.iter().any(|member| member.id == *id));
    let seat = |member: &EtcdMember| {
        let mut places = snapshot.etcd_places.iter().filter(|(_, place)| place.peer_url == member.peer_url);
        let has_place = places.clone().next().is_some();
        let wanted = !has_place || places.any(|(node, _)| is_manager(snapshot, node));
        let entry = known.entry(member.id).or_insert(((member.is_learner, wanted), now));
        if entry.0 != (member.is_learner, wanted) {
            *entry = ((member.is_learner, wanted), now);
        }
        Seat {
            member: member.clone(),
            wanted,
            alive: lives(snapshot, &member.peer_url),
            own: member.peer_url == own_url,
            since: now.saturating_duration_since(entry.1),
        }
    };
    members.iter().map(seat).collect()
}

/// Whether a manager at the address of this URL is alive.
fn lives(snapshot: &ClusterSnapshot, url: &str) -> bool {
    let mut addresses = snapshot.managers.values().filter_map(|manager| manager.address.parse().ok());
    addresses.any(|address: SocketAddr| peer_url(address.ip()) == url)
}

fn is_manager(snapshot: &ClusterSnapshot, node: &NodeId) -> bool {
    snapshot.nodes.get(node).is_some_and(|node| node.spec.role == NodeRole::Manager)
}

/// The places whose members are gone, and those of nodes that are no managers whose member is
/// another node's by now.
fn forgotten(snapshot: &ClusterSnapshot, members: &[EtcdMember]) -> Vec<NodeId> {
    let stays = |url: &str| members.iter().any(|member| member.peer_url == url);
    let of_another = |url: &str| {
        let mut places = snapshot.etcd_places.iter();
        places.any(|(node, place)| place.peer_url == url && is_manager(snapshot, node))
    };
    let gone = snapshot.etcd_places.iter().filter(|(node, place)| {
        !stays(&place.peer_url) || (!is_manager(snapshot, node) && of_another(&place.peer_url))
    });
    gone.map(|(node, _)| node.clone()).collect()
}

#[cfg(test)]
mod tests {
    use mesh_state::cluster::Manager;

    use super::*;
    use crate::fixtures::World;

    fn member(id: u64) -> EtcdMember {
        EtcdMember {
            id,
            name: format!("m{id}"),
            peer_url: format!("https://10.0.0.{id}:4803"),
            is_learner: false,
        }
    }

    /// Nodes a and b with members 1 and 2; a is a manager that lives, b is none any more.
    fn world() -> World {
        let mut world = World::with_nodes(["a", "b"]);
        world.update_node("a", |node| node.spec.role = NodeRole::Manager);
        for (node, id) in [("a", 1_u64), ("b", 2)] {
            let place = EtcdPlace {
                name: format!("m{id}"),
                peer_url: member(id).peer_url,
                address: format!("10.0.0.{id}:2377"),
            };
            world.put(keys::etcd_place(&node.into()), &place);
        }
        let manager =
            Manager { name: "m1".to_owned(), address: "10.0.0.1:2377".to_owned(), ..Manager::default() };
        world.put(keys::manager("m1"), &manager);
        world
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_is_wanted_as_long_as_its_node_is_a_manager() {
        let (world, mut known, begun) = (world(), Known::new(), Instant::now());
        let members = [member(1), member(2), member(3)];
        let url = member(1).peer_url;
        let seen = |known: &mut Known, now| seats(&world.snapshot, &members, &url, known, now);
        let first = seen(&mut known, begun);
        let said: Vec<_> = first.iter().map(|seat| (seat.wanted, seat.alive, seat.own)).collect();
        assert_eq!(said, [(true, true, true), (false, false, false), (true, false, false)]);
        let later = seen(&mut known, begun + PERIOD);
        assert_eq!(later[1].since, PERIOD, "how long it has been so");
    }

    #[test]
    fn a_place_is_forgotten_once_its_member_is_gone() {
        let world = world();
        assert_eq!(forgotten(&world.snapshot, &[member(1), member(2)]), Vec::<NodeId>::new());
        assert_eq!(forgotten(&world.snapshot, &[member(1)]), vec![NodeId::from("b")]);
        assert_eq!(forgotten(&world.snapshot, &[member(2)]), vec![NodeId::from("a")], "lost by force");
    }
}
