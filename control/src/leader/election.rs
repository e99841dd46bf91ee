//! This manager's lease: it shows that the manager is alive and on which node it runs, and makes
//! one manager at a time the leader.
//!
//! Invariants: no two living managers have one name; a leader steps down by its own clock before
//! its lease can expire in etcd, and as soon as it sees that it was deposed
//! ([`super::deposition`]); every write of a leader compares [`Leadership::fence`], so even a
//! leader that was suspended beyond its lease writes nothing.
//!
//! Left to others: what a leader does.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use mesh_state::Timestamp;
use mesh_state::ca::ManagerCas;
use mesh_state::cluster::Manager;
use mesh_state::codec::{self, CodecError};
use mesh_state::ids::NodeId;
use mesh_state::keys;
use mesh_state::store::{Compare, Op, Store, StoreError, TxnOutcome};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::feed::clocks::Clocks;
use crate::feed::snapshot::ClusterSnapshot;
use crate::feed::watch::Feed;
use mesh_runtime::backoff::Backoff;

/// The lease's time to live: a manager that is not heard for this long counts as gone.
const LEASE_TTL: Duration = Duration::from_secs(5);
/// How often the lease is renewed, and an empty leader's seat tried for.
const KEEP_ALIVE_PERIOD: Duration = Duration::from_millis(1500);
/// How often a manager rewrites its record.
const RECORD_PERIOD: Duration = Duration::from_secs(30);
/// How long before the lease can expire in etcd a leader steps down.
const SAFETY_MARGIN: Duration = Duration::from_millis(700);
/// A manager that lives under this one's name for longer than this is no earlier run of this one:
/// the lease of that would have expired.
const NAME_WAIT: Duration = Duration::from_secs(10);
/// The shortest pause between attempts to get a lease.
const PAUSE_SHORTEST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(2);

/// One term as the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    create_revision: i64,
}

impl Leadership {
    /// The condition that every write of this term must compare.
    pub fn fence(self) -> Compare {
        Compare::CreateRevision(keys::LEADER.to_owned(), self.create_revision)
    }
}

/// Why the lease was lost or not granted.
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
    #[error("the record of this manager's name was written meanwhile")]
    Overtaken,
    #[error(transparent)]
    NameTaken(#[from] NameTaken),
}

/// Another living manager has this one's name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("another manager, at {address}, is called {name}: give each a --name of its own")]
pub struct NameTaken {
    name: String,
    address: String,
}

/// Keeps this manager's lease and stands for election.
pub struct Candidate {
    store: Arc<dyn Store>,
    feed: Feed,
    manager: Manager,
    own_node: watch::Receiver<Option<NodeId>>,
    cas: watch::Receiver<ManagerCas>,
    clocks: Arc<Clocks>,
    leadership: watch::Sender<Option<Leadership>>,
}

/// A lease of this manager, and until when it is certain to be valid.
struct Lease {
    id: i64,
    certain_until: Instant,
    /// The revision at which this manager's record was written last.
    said_at: i64,
}

impl Candidate {
    /// A candidate with this record that runs on `own_node` and serves with `cas`, and the channel
    /// that shows its leadership.
    pub fn new(
        store: Arc<dyn Store>,
        feed: Feed,
        manager: Manager,
        own_node: watch::Receiver<Option<NodeId>>,
        cas: watch::Receiver<ManagerCas>,
        clocks: Arc<Clocks>,
    ) -> (Self, watch::Receiver<Option<Leadership>>) {
        let (leadership, seen) = watch::channel(None);
        (Self { store, feed, manager, own_node, cas, clocks, leadership }, seen)
    }

    /// Keeps the lease, and leads when it can, until `shutdown`; then revokes the lease at once.
    ///
    /// # Errors
    /// [`NameTaken`], once it is certain that the other manager of this name is alive.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), NameTaken> {
        let mut backoff = Backoff::new(PAUSE_SHORTEST, PAUSE_LONGEST);
        let (mut taken_since, mut held) = (None, None);
        loop {
            let end = tokio::select! {
                end = self.live(&mut held, &mut backoff) => end,
                () = shutdown.cancelled() => {
                    self.resign(&mut held).await;
                    return Ok(());
                }
            };
            let Err(error) = end;
            if let LeaseError::NameTaken(taken) = &error {
                let since = *taken_since.get_or_insert_with(Instant::now);
                if since.elapsed() > NAME_WAIT {
                    self.resign(&mut held).await;
                    return Err(taken.clone());
                }
            } else {
                taken_since = None;
            }
            warn!(
                error = mesh_runtime::error_chain(&error),
                "no lease: this manager counts as gone until it has one"
            );
            self.resign(&mut held).await;
            let pause = backoff.pause(&mut rand::rng());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// Gives up the lease in `held`, which stays there if etcd doesn't answer.
    async fn resign(&self, held: &mut Option<i64>) {
        self.step_down();
        if let Some(lease) = *held {
            match self.store.revoke_lease(lease).await {
                Ok(()) => *held = None,
                Err(error) => warn!(
                    error = mesh_runtime::error_chain(&error),
                    "give up this manager's lease; will try again before there is another"
                ),
            }
        }
    }

    fn step_down(&self) {
        if self.leadership.send_replace(None).is_some() {
            info!("no longer the leader");
        }
    }

    /// This manager's record, which exists while `lease` does.
    fn presence(&mut self, since: Timestamp, lease: i64) -> Result<Op, CodecError> {
        let node = self.own_node.borrow_and_update().clone();
        let nodes_off = self.clocks.nodes_off(&self.feed.snapshot());
        let written_at = Some(Utc::now());
        let cas = Some(self.cas.borrow_and_update().clone());
        let manager = Manager { since, node, written_at, nodes_off, cas, ..self.manager.clone() };
        let record = codec::encode(&manager)?;
        Ok(Op::put_leased(keys::manager(&self.manager.name), record, lease))
    }

    /// Writes this manager's record, unless another manager of its name is alive. One at the same
    /// address is this one before its restart. Returns the revision of the record.
    async fn appear(&mut self, since: Timestamp, lease: i64) -> Result<i64, LeaseError> {
        let (name, address) = (&self.manager.name, &self.manager.address);
        let key = keys::manager(name);
        let unchanged = match self.feed.snapshot().managers.get(name) {
            None => Compare::Absent(key),
            Some(known) if known.address == *address => Compare::ModRevision(key, known.mod_revision),
            Some(other) => {
                let (name, address) = (name.clone(), other.address.clone());
                return Err(NameTaken { name, address }.into());
            }
        };
        let presence = self.presence(since, lease)?;
        match self.store.txn(vec![unchanged], vec![presence]).await? {
            TxnOutcome::Committed(revision) => Ok(revision),
            TxnOutcome::Conflict => Err(LeaseError::Overtaken),
        }
    }

    /// Rewrites this manager's record: its node, the time by its clock, the nodes whose clocks are
    /// off.
    async fn say_again(&mut self, since: Timestamp, lease: &mut Lease) -> Result<(), LeaseError> {
        let presence = self.presence(since, lease.id)?;
        let written = self.store.txn(vec![], vec![presence]);
        match tokio::time::timeout_at(lease.certain_until, written).await {
            Ok(Ok(TxnOutcome::Committed(revision))) => lease.said_at = revision,
            Ok(Ok(TxnOutcome::Conflict)) => {}
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(LeaseError::Late),
        }
        Ok(())
    }

    /// Whether another manager deleted this one's record, as it took this machine for dead.
    fn was_deposed(&self, snapshot: &ClusterSnapshot, lease: &Lease) -> bool {
        snapshot.revision >= lease.said_at && !snapshot.managers.contains_key(&self.manager.name)
    }

    /// Keeps one lease, from its grant to its loss. One that could not be given up before is given
    /// up first: after an election, etcd gives it its full life again, and the seat with it.
    async fn live(
        &mut self,
        held: &mut Option<i64>,
        backoff: &mut Backoff,
    ) -> Result<Infallible, LeaseError> {
        if let Some(before) = *held {
            self.store.revoke_lease(before).await?;
            *held = None;
        }
        let asked_at = Instant::now();
        let id = self.store.grant_lease(LEASE_TTL).await?;
        *held = Some(id);
        let since = Utc::now();
        let said_at = self.appear(since, id).await?;
        let mut lease = Lease { id, certain_until: asked_at + LEASE_TTL - SAFETY_MARGIN, said_at };
        backoff.reset();

        let mut snapshots = self.feed.snapshots.clone();
        let mut prolong = tokio::time::interval_at(asked_at + KEEP_ALIVE_PERIOD, KEEP_ALIVE_PERIOD);
        prolong.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut say_again = tokio::time::interval_at(asked_at + RECORD_PERIOD, RECORD_PERIOD);
        say_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            let seat = snapshot.leader.as_ref().map(|leader| leader.create_revision);
            if self.was_deposed(&snapshot, &lease) {
                self.say_again(since, &mut lease).await?;
            }
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
                Ok(()) = self.own_node.changed() => self.say_again(since, &mut lease).await?,
                Ok(()) = self.cas.changed() => self.say_again(since, &mut lease).await?,
                _ = say_again.tick() => self.say_again(since, &mut lease).await?,
            }
        }
    }

    /// The leader's record.
    fn seat(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(&Manager { since: Utc::now(), ..self.manager.clone() })
    }

    /// Takes the leader's seat if it is empty.
    async fn take_seat(&self, lease: &Lease) -> Result<(), LeaseError> {
        let free = Compare::Absent(keys::LEADER.to_owned());
        let sit = Op::put_leased(keys::LEADER, self.seat()?, lease.id);
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

    /// Renews the lease, and retries while the lease is certain to be valid.
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
                Ok(Err(error)) => {
                    warn!(error = mesh_runtime::error_chain(&error), "prolong this manager's lease");
                }
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
mod tests;
