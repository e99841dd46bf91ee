//! This manager's lease: it says that the manager lives, and, for one manager at a time, that it leads.
//!
//! Invariants: leadership is given up on our own clock before the lease can have ended in etcd; whoever writes as the leader
//! compares [`Leadership::fence`], so even a leader that was asleep through its end writes nothing.
//!
//! Left to others: what a leader does.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use mesh_state::cluster::Manager;
use mesh_state::codec::{self, CodecError};
use mesh_state::keys;
use mesh_state::store::{Compare, Op, Store, StoreError, TxnOutcome};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::watch::Feed;

/// A manager that is not heard for so long is gone.
const LEASE_TTL: Duration = Duration::from_secs(5);
/// How often the lease is prolonged, and an empty leader's seat tried for.
const KEEP_ALIVE_PERIOD: Duration = Duration::from_millis(1500);
/// Leadership is given up so long before the lease can end in etcd.
const SAFETY_MARGIN: Duration = Duration::from_millis(700);
/// Pauses between attempts to get a lease.
const PAUSE_SHORTEST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(2);

/// One term as the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    create_revision: i64,
}

impl Leadership {
    /// What every write of this term must compare.
    pub fn fence(self) -> Compare {
        Compare::CreateRevision(keys::LEADER.to_owned(), self.create_revision)
    }
}

/// Why a lease was lost or not had.
#[derive(Debug, Error)]
enum LeaseError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("the lease ended in etcd")]
    Ended,
    #[error("the lease could not be prolonged in time")]
    Late,
}

/// Keeps this manager's lease and stands for election.
pub struct Candidate {
    store: Arc<dyn Store>,
    feed: Feed,
    manager: Manager,
    leadership: watch::Sender<Option<Leadership>>,
}

/// A lease that we hold, and until when that is certain.
struct Lease {
    id: i64,
    certain_until: Instant,
}

impl Candidate {
    /// A candidate with this record, and where its leadership shows.
    pub fn new(
        store: Arc<dyn Store>,
        feed: Feed,
        manager: Manager,
    ) -> (Self, watch::Receiver<Option<Leadership>>) {
        let (leadership, seen) = watch::channel(None);
        (Self { store, feed, manager, leadership }, seen)
    }

    /// Lives, and leads when it can, until `shutdown`; then gives its keys up at once.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(PAUSE_SHORTEST, PAUSE_LONGEST);
        loop {
            let mut held = None;
            let end = tokio::select! {
                end = self.live(&mut held, &mut backoff) => end,
                () = shutdown.cancelled() => {
                    self.resign(held).await;
                    return;
                }
            };
            let Err(error) = end;
            warn!(%error, "no lease: this manager counts as gone until it has one");
            self.resign(held).await;
            let pause = backoff.pause(&mut rand::rng());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn resign(&self, held: Option<i64>) {
        self.step_down();
        if let Some(lease) = held
            && let Err(error) = self.store.revoke_lease(lease).await
        {
            warn!(%error, "give up this manager's lease; it ends by itself within {LEASE_TTL:?}");
        }
    }

    fn step_down(&self) {
        if self.leadership.send_replace(None).is_some() {
            info!("leads no more");
        }
    }

    /// What others read of this manager, as of now.
    fn record(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(&Manager { since: Utc::now(), ..self.manager.clone() })
    }

    /// One lease, from its grant to its loss.
    async fn live(&self, held: &mut Option<i64>, backoff: &mut Backoff) -> Result<Infallible, LeaseError> {
        let asked_at = Instant::now();
        let id = self.store.grant_lease(LEASE_TTL).await?;
        *held = Some(id);
        let mut lease = Lease { id, certain_until: asked_at + LEASE_TTL - SAFETY_MARGIN };
        let presence = Op::put_leased(keys::manager(&self.manager.name), self.record()?, id);
        self.store.txn(vec![], vec![presence]).await?;
        backoff.reset();

        let mut snapshots = self.feed.snapshots.clone();
        let mut prolong = tokio::time::interval_at(asked_at + KEEP_ALIVE_PERIOD, KEEP_ALIVE_PERIOD);
        prolong.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            let seat = snapshot.leader.as_ref().map(|leader| leader.create_revision);
            let leads = *self.leadership.borrow();
            match leads {
                None if seat.is_none() => self.take_seat(&lease).await?,
                Some(ours)
                    if snapshot.revision >= ours.create_revision && seat != Some(ours.create_revision) =>
                {
                    self.step_down();
                }
                _ => {}
            }
            tokio::select! {
                _ = prolong.tick() => self.prolong(&mut lease).await?,
                Ok(()) = snapshots.changed() => {}
            }
        }
    }

    /// Tries for the empty leader's seat.
    async fn take_seat(&self, lease: &Lease) -> Result<(), LeaseError> {
        let free = Compare::Absent(keys::LEADER.to_owned());
        let sit = Op::put_leased(keys::LEADER, self.record()?, lease.id);
        match tokio::time::timeout_at(lease.certain_until, self.store.txn(vec![free], vec![sit])).await {
            Ok(Ok(TxnOutcome::Committed(create_revision))) => {
                info!(create_revision, "leads");
                self.leadership.send_replace(Some(Leadership { create_revision }));
                Ok(())
            }
            Ok(Ok(TxnOutcome::Conflict)) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(LeaseError::Late),
        }
    }

    /// Prolongs the lease, as often as it takes while it is certain.
    async fn prolong(&self, lease: &mut Lease) -> Result<(), LeaseError> {
        let mut backoff = Backoff::new(PAUSE_SHORTEST, PAUSE_LONGEST);
        loop {
            let asked_at = Instant::now();
            match tokio::time::timeout_at(lease.certain_until, self.store.keep_alive(lease.id)).await {
                Ok(Ok(true)) => {
                    lease.certain_until = asked_at + LEASE_TTL - SAFETY_MARGIN;
                    return Ok(());
                }
                Ok(Ok(false)) => return Err(LeaseError::Ended),
                Ok(Err(error)) => warn!(%error, "prolong this manager's lease"),
                Err(_) => return Err(LeaseError::Late),
            }
            let again_at = Instant::now() + backoff.pause(&mut rand::rng());
            if again_at >= lease.certain_until {
                tokio::time::sleep_until(lease.certain_until).await;
                return Err(LeaseError::Late);
            }
            tokio::time::sleep_until(again_at).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::store::MemoryStore;

    use super::*;
    use crate::watch::feed;

    struct Running {
        leadership: watch::Receiver<Option<Leadership>>,
        feed: Feed,
        shutdown: CancellationToken,
    }

    fn manager(name: &str, store: &MemoryStore) -> Running {
        let (follower, feed) = feed();
        let shutdown = CancellationToken::new();
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        tokio::spawn(follower.follow(Arc::clone(&shared), shutdown.clone()));
        let manager = Manager {
            name: name.to_owned(),
            address: "10.0.0.1".to_owned(),
            since: Utc::now(),
            own_ports: Vec::new(),
            tells_member_keys: true,
        };
        let (candidate, leadership) = Candidate::new(shared, feed.clone(), manager);
        tokio::spawn(candidate.run(shutdown.clone()));
        Running { leadership, feed, shutdown }
    }

    impl Running {
        async fn leads(&mut self) -> Leadership {
            let leads = self.leadership.wait_for(Option::is_some);
            let leads = tokio::time::timeout(Duration::from_secs(30), leads).await;
            leads.expect("no leadership within 30 s").unwrap().unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_the_next_takes_over_when_it_goes() {
        let store = MemoryStore::new();
        let mut first = manager("a", &store);
        let term = first.leads().await;
        let mut second = manager("b", &store);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(*second.leadership.borrow(), None, "two lead");
        assert_eq!(second.feed.snapshot().managers.len(), 2, "both live");

        first.shutdown.cancel();
        let next = second.leads().await;
        assert_ne!(next.fence(), term.fence(), "each term has a fence of its own");
        let fenced = store.txn(vec![term.fence()], vec![Op::put("/x", vec![])]).await.unwrap();
        assert_eq!(fenced, TxnOutcome::Conflict, "the former leader's write");
        assert_eq!(second.feed.snapshot().managers.len(), 1, "the one that left is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_cut_off_steps_down_before_its_lease_ends_and_leads_again() {
        let store = MemoryStore::new();
        let mut only = manager("a", &store);
        let term = only.leads().await;
        store.set_reachable(false);
        let cut_at = Instant::now();
        only.leadership.wait_for(Option::is_none).await.unwrap();
        assert!(cut_at.elapsed() < LEASE_TTL, "stepped down after {:?}", cut_at.elapsed());
        store.set_reachable(true);
        assert_ne!(only.leads().await, term, "a new term");
        assert_eq!(only.feed.snapshot().managers.len(), 1, "it lives again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_whose_seat_was_taken_steps_down() {
        let store = MemoryStore::new();
        let mut only = manager("a", &store);
        let term = only.leads().await;
        store.txn(vec![], vec![Op::delete(keys::LEADER)]).await.unwrap();
        only.leadership.wait_for(|now| *now != Some(term)).await.unwrap();
        assert_ne!(only.leads().await, term, "a new term");
    }
}
