//! Managers that stand for election, over a store in memory.

use mesh_state::store::MemoryStore;
use tokio::task::JoinHandle;

use crate::feed::clocks::Peer;
use crate::feed::snapshot::ClusterSnapshot;

use super::*;
use crate::feed::watch::feed;

struct Running {
    leadership: watch::Receiver<Option<Leadership>>,
    feed: Feed,
    shutdown: CancellationToken,
    node: watch::Sender<Option<NodeId>>,
    clocks: Arc<Clocks>,
    end: JoinHandle<Result<(), NameTaken>>,
}

fn manager(name: &str, store: &MemoryStore) -> Running {
    manager_at("10.0.0.1", name, store)
}

fn manager_at(address: &str, name: &str, store: &MemoryStore) -> Running {
    let (follower, feed) = feed();
    let shutdown = CancellationToken::new();
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    tokio::spawn(follower.follow(Arc::clone(&shared), shutdown.clone()));
    let manager = Manager { name: name.to_owned(), address: address.to_owned(), ..Manager::default() };
    let (node, clocks) = (watch::Sender::new(None), Arc::<Clocks>::default());
    let (candidate, leadership) = Candidate::new(
        shared,
        feed.clone(),
        manager,
        node.subscribe(),
        watch::channel(ManagerCas::default()).1,
        Arc::clone(&clocks),
    );
    let end = tokio::spawn(candidate.run(shutdown.clone()));
    Running { leadership, feed, shutdown, node, clocks, end }
}

impl Running {
    async fn leads(&mut self) -> Leadership {
        let leads = self.leadership.wait_for(Option::is_some);
        let leads = tokio::time::timeout(Duration::from_secs(30), leads).await;
        leads.expect("no leadership within 30 s").unwrap().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_managers_record_names_its_node_as_soon_as_it_is_known() {
    let store = MemoryStore::new();
    let mut only = manager("a", &store);
    only.leads().await;
    assert_eq!(only.feed.snapshot().managers["a"].node, None);
    let since = only.feed.snapshot().managers["a"].since;
    only.node.send_replace(Some("n1".into()));
    let mut snapshots = only.feed.snapshots.clone();
    let told = snapshots.wait_for(|snapshot| snapshot.manager_on(&"n1".into()).is_some()).await.unwrap();
    assert_eq!(told.managers["a"].since, since, "the record keeps its start");
    drop(told);
    let hour = chrono::TimeDelta::hours(1);
    only.clocks.tell(&Peer::Node("n2".into()), since + hour, since);
    let off = |snapshot: &Arc<ClusterSnapshot>| snapshot.clock_ahead_ms(&"n2".into()).is_some();
    let told = snapshots.wait_for(off).await.unwrap();
    assert_eq!(told.clock_ahead_ms(&"n2".into()), Some(3_600_000), "with its next record");
    assert!(told.managers["a"].written_at.unwrap() >= since, "the record has the time of its write");
}

#[tokio::test(start_paused = true)]
async fn no_two_managers_live_under_one_name() {
    let store = MemoryStore::new();
    let mut first = manager("a", &store);
    let term = first.leads().await;
    let second = manager_at("10.0.0.2", "a", &store);
    let refused = second.end.await.unwrap().unwrap_err();
    assert_eq!(
        refused.to_string(),
        "another manager, at 10.0.0.1, is called a: give each a --name of its own"
    );
    assert_eq!(*first.leadership.borrow(), Some(term), "the first manager still leads");
    assert_eq!(first.feed.snapshot().managers["a"].address, "10.0.0.1");
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_restarts_takes_its_name_back() {
    let store = MemoryStore::new();
    for address in ["10.0.0.1", "10.0.0.1", "10.0.0.2"] {
        let mut next = manager_at(address, "a", &store);
        next.leads().await;
        // Its lease is not revoked.
        next.end.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_the_next_takes_over_when_it_goes() {
    let store = MemoryStore::new();
    let mut first = manager("a", &store);
    let term = first.leads().await;
    let mut second = manager("b", &store);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(*second.leadership.borrow(), None, "two managers lead");
    assert_eq!(second.feed.snapshot().managers.len(), 2, "both managers are alive");

    first.shutdown.cancel();
    let next = second.leads().await;
    assert_ne!(next.fence(), term.fence(), "both terms have the same fence");
    let fenced = store.txn(vec![term.fence()], vec![Op::put("/x", vec![])]).await.unwrap();
    assert_eq!(fenced, TxnOutcome::Conflict, "the former leader's write");
    assert_eq!(second.feed.snapshot().managers.len(), 1, "the record of the manager that left remains");
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
    assert_eq!(only.feed.snapshot().managers.len(), 1, "its record is back");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_deposed_and_lives_counts_as_alive_at_once() {
    let store = MemoryStore::new();
    let mut only = manager("a", &store);
    let term = only.leads().await;
    let records = vec![Op::delete(keys::LEADER), Op::delete(keys::manager("a"))];
    store.txn(vec![term.fence()], records).await.unwrap();
    only.leadership.wait_for(|now| *now != Some(term)).await.unwrap();
    let mut snapshots = only.feed.snapshots.clone();
    let lives = snapshots.wait_for(|snapshot| snapshot.managers.contains_key("a"));
    let lives = tokio::time::timeout(KEEP_ALIVE_PERIOD, lives).await;
    assert!(lives.is_ok(), "its record is not back");
    assert_ne!(only.leads().await, term, "a new term");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_an_election_of_etcd_prolongs_keeps_the_seat_from_nobody() {
    let store = MemoryStore::new();
    let mut only = manager("a", &store);
    let term = only.leads().await;
    store.set_reachable(false);
    only.leadership.wait_for(Option::is_none).await.unwrap();
    store.restart_leases();
    store.set_reachable(true);
    let back = Instant::now();
    assert_ne!(only.leads().await, term, "a new term");
    assert!(back.elapsed() <= PAUSE_LONGEST * 2, "the seat was taken for {:?}", back.elapsed());
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
