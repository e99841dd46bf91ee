//! Deposes a leader whose machine fell silent, before its lease ends.
//!
//! A lease alone is slow: if the machine that died also led etcd, the new leader of etcd gives
//! every lease its full life again, so the seat would stay taken for eight seconds. So each manager
//! that doesn't lead opens a TCP connection to the leader's address again and again, and closes it.
//! The kernel of a living machine answers, however busy the leader is. If no answer comes for
//! [`SILENCE`], the manager deletes the leader's records in etcd, and whoever is first takes the
//! seat.
//!
//! Invariants: a wrong verdict costs one election and nothing else, as every write of a leader
//! compares its own term ([`super::election`]); a leader is deposed at most once for each time that
//! it was heard in its term, so managers that can't reach one another don't depose each other in
//! turn; a manager that can't reach etcd deposes nobody.
//!
//! Left to others: taking the seat ([`super::election`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_runtime::error_chain;
use mesh_state::cluster::Manager;
use mesh_state::keys;
use mesh_state::store::{Compare, Op, Store, StoreError, TxnOutcome};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::feed::snapshot::Stored;
use crate::feed::watch::Feed;

/// The pause between the beginnings of two probes.
const PERIOD: Duration = Duration::from_millis(400);
/// The deadline of one probe. A manager that is farther away than this is judged by its lease.
const PROBE_DEADLINE: Duration = Duration::from_millis(400);
/// How long a leader must be silent: five probes, so that lost packets depose nobody.
const SILENCE: Duration = Duration::from_secs(2);

/// What a manager has heard of the leader in its present term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hearing {
    /// The revision that names the term.
    term: i64,
    /// When the leader was heard last; `None` before the first time.
    heard: Option<Instant>,
}

impl Hearing {
    /// What is known after a probe of the leader of `term`.
    fn after(known: Option<Self>, term: i64, answered: bool, now: Instant) -> Self {
        let before = known.filter(|known| known.term == term).and_then(|known| known.heard);
        Self { term, heard: if answered { Some(now) } else { before } }
    }

    /// Whether the leader was heard, and is silent since.
    fn fell_silent(self, now: Instant) -> bool {
        self.heard.is_some_and(|heard| now.saturating_duration_since(heard) >= SILENCE)
    }
}

/// Watches whichever manager leads.
pub struct Deposition {
    /// The store with the leader's records.
    pub store: Arc<dyn Store>,
    /// Says who leads.
    pub feed: Feed,
    /// This manager's own name.
    pub own_name: String,
}

impl Deposition {
    /// Probes the leader until `shutdown`, and deposes it when it fell silent.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut known = None;
        loop {
            let begun = Instant::now();
            let passed = self.pass(&mut known);
            if shutdown.run_until_cancelled(passed).await.is_none() {
                return;
            }
            if shutdown.run_until_cancelled(sleep_until(begun + PERIOD)).await.is_none() {
                return;
            }
        }
    }

    async fn pass(&self, known: &mut Option<Hearing>) {
        let snapshot = self.feed.snapshot();
        let leader = snapshot.leader.as_ref().filter(|leader| leader.name != self.own_name);
        let Some(leader) = leader else {
            *known = None;
            return;
        };
        // A record without an address can't be judged.
        let Ok(address) = leader.address.parse::<SocketAddr>() else { return };
        let answered = matches!(timeout(PROBE_DEADLINE, TcpStream::connect(address)).await, Ok(Ok(_)));
        let hearing = Hearing::after(*known, leader.create_revision, answered, Instant::now());
        *known = Some(hearing);
        if !hearing.fell_silent(Instant::now()) {
            return;
        }
        match self.depose(leader).await {
            Ok(TxnOutcome::Committed(_)) => {
                info!(leader = leader.name, %address, "deposed the leader: its machine is silent");
                *known = None;
            }
            Ok(TxnOutcome::Conflict) => debug!(leader = leader.name, "the silent leader leads no more"),
            Err(error) => warn!(
                error = error_chain(&error),
                leader = leader.name,
                "can't depose a leader that is silent; will try again"
            ),
        }
    }

    /// Deletes the leader's records: its seat, and that it is alive, so that its node gets no new
    /// tasks.
    async fn depose(&self, leader: &Stored<Manager>) -> Result<TxnOutcome, StoreError> {
        let in_its_term = Compare::CreateRevision(keys::LEADER.to_owned(), leader.create_revision);
        let records = vec![Op::delete(keys::LEADER), Op::delete(keys::manager(&leader.name))];
        self.store.txn(vec![in_its_term], records).await
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::codec;
    use mesh_state::store::MemoryStore;
    use tokio::net::TcpListener;

    use super::*;
    use crate::feed::watch::feed;

    #[tokio::test(start_paused = true)]
    async fn only_a_leader_that_was_heard_in_its_term_falls_silent() {
        let now = Instant::now();
        let never = Hearing::after(None, 7, false, now);
        assert!(!never.fell_silent(now + SILENCE * 9), "never heard: its lease decides");
        let heard = Hearing::after(Some(never), 7, true, now);
        let missed = Hearing::after(Some(heard), 7, false, now + PERIOD);
        assert!(!missed.fell_silent(now + SILENCE / 2), "one lost packet");
        assert!(missed.fell_silent(now + SILENCE));
        let next = Hearing::after(Some(missed), 8, false, now + SILENCE);
        assert!(!next.fell_silent(now + SILENCE * 9), "a new term begins unheard");
        let again = Hearing::after(Some(missed), 7, true, now + SILENCE);
        assert!(!again.fell_silent(now + SILENCE + PERIOD), "it was heard again");
    }

    /// A leader at a real socket, whose records are in the store.
    async fn led_from(store: &MemoryStore, address: String) -> i64 {
        let record = codec::encode(&Manager { name: "a".to_owned(), address, ..Manager::default() }).unwrap();
        let records = vec![Op::put(keys::LEADER, record.clone()), Op::put(keys::manager("a"), record)];
        match store.txn(vec![], records).await.unwrap() {
            TxnOutcome::Committed(revision) => revision,
            TxnOutcome::Conflict => unreachable!("nothing is compared"),
        }
    }

    #[tokio::test]
    async fn a_leader_that_stops_answering_is_deposed_and_one_that_answers_is_not() {
        let store = MemoryStore::new();
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        led_from(&store, socket.local_addr().unwrap().to_string()).await;
        let (follower, feed) = feed();
        let stop = CancellationToken::new();
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        tokio::spawn(follower.follow(Arc::clone(&shared), stop.clone()));
        let watcher = |name: &str| Deposition {
            store: Arc::clone(&shared),
            feed: feed.clone(),
            own_name: name.to_owned(),
        };
        tokio::spawn(watcher("a").run(stop.clone()));
        tokio::spawn(watcher("b").run(stop.clone()));
        let mut snapshots = feed.snapshots.clone();
        snapshots.wait_for(|snapshot| snapshot.leader.is_some()).await.unwrap();
        let stays = timeout(SILENCE + PERIOD * 2, snapshots.wait_for(|snapshot| snapshot.leader.is_none()));
        assert!(stays.await.is_err(), "a leader that answers was deposed");

        drop(socket);
        let begun = Instant::now();
        let gone = timeout(SILENCE * 3, snapshots.wait_for(|snapshot| snapshot.leader.is_none())).await;
        let managers = gone.expect("the silent leader was not deposed").unwrap().managers.len();
        assert!(begun.elapsed() + PERIOD * 2 >= SILENCE, "deposed after {:?}", begun.elapsed());
        assert_eq!(managers, 0, "it still counts as alive");
        stop.cancel();
    }
}
