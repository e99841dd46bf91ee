//! The guarantees of every store, tested on the store in memory and on a real etcd.
//!
//! Each check uses a prefix of its own, so that all of them share one store.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;

use super::{
    Change, Compare, EtcdAccess, EtcdStore, KeyValue, MAX_TXN_OPS, MemoryStore, Op, Store, StoreError,
    TxnOutcome, WatchEvent,
};
use crate::fixtures::EtcdProcess;

#[tokio::test]
async fn the_store_in_memory_keeps_the_contract() {
    keeps_the_contract(&MemoryStore::new()).await;
}

#[tokio::test]
async fn etcd_keeps_the_contract() {
    let etcd = EtcdProcess::start().await.unwrap();
    keeps_the_contract(&etcd.store().await.unwrap()).await;
}

/// An outage is a named error, not an endless wait.
#[tokio::test]
async fn an_etcd_that_is_gone_is_unavailable() {
    let etcd = EtcdProcess::start().await.unwrap();
    let store = etcd.store().await.unwrap();
    store.get("/down/a").await.unwrap();
    drop(etcd);
    let error = store.get("/down/a").await.unwrap_err();
    let expected = matches!(error, StoreError::Unavailable { .. } | StoreError::Deadline { .. });
    assert!(expected, "expected unavailable, saw {error:?}");
}

/// A member that hangs, such as one whose machine lost its power, ends its watches once that is
/// noticed.
#[tokio::test]
async fn a_watch_through_a_hung_member_ends() {
    let (mut hung, living) = (EtcdProcess::start().await.unwrap(), EtcdProcess::start().await.unwrap());
    let access = EtcdAccess { addresses: vec![hung.url(), living.url()], ..living.access() };
    let store = EtcdStore::open(access).await.unwrap();
    let mut stream = store.watch("/hung/", 1).await.unwrap();
    hung.suspend().unwrap();
    store.grant_lease(Duration::from_secs(5)).await.expect("the living member answers");
    let end = tokio::time::timeout(Duration::from_secs(3), stream.next()).await.expect("the watch stayed");
    assert!(matches!(end, Some(Err(StoreError::Unavailable { .. }))), "expected an end, saw {end:?}");
    hung.stop();
}

/// One dead member of several costs nothing but the attempt to reach it.
#[tokio::test]
async fn a_dead_member_is_passed_over() {
    let (etcd, dead) = (EtcdProcess::start().await.unwrap(), EtcdProcess::start().await.unwrap());
    let access = EtcdAccess { addresses: vec![dead.url(), etcd.url()], ..etcd.access() };
    drop(dead);
    let store = EtcdStore::open(access).await.unwrap();
    for number in 0..50 {
        let key = format!("/dead/{number}");
        committed(&store, vec![Compare::Absent(key.clone())], vec![Op::put(key.clone(), vec![])]).await;
        assert!(store.get(&key).await.unwrap().is_some(), "{key} was written");
    }
    let mut stream = store.watch("/dead/", 1).await.unwrap();
    assert_eq!(next_changes(&mut stream, 50).await.len(), 50, "changes seen through the living member");
    let lease = store.grant_lease(Duration::from_secs(5)).await.unwrap();
    assert!(store.keep_alive(lease).await.unwrap(), "the lease is prolonged");
}

async fn keeps_the_contract(store: &dyn Store) {
    writes_are_read_back_with_their_revisions(store).await;
    compares_guard_writes(store).await;
    a_conflict_writes_nothing(store).await;
    listings_are_whole_and_ordered(store).await;
    oversized_transactions_are_refused(store).await;
    a_watch_misses_nothing(store).await;
    a_watch_yields_whole_revisions(store).await;
    a_lease_ends_with_its_keys(store).await;
    a_compacted_watch_says_so(store).await;
}

async fn committed(store: &dyn Store, compares: Vec<Compare>, ops: Vec<Op>) -> i64 {
    match store.txn(compares, ops).await.unwrap() {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::Conflict => panic!("expected a commit, saw a conflict"),
    }
}

async fn writes_are_read_back_with_their_revisions(store: &dyn Store) {
    assert_eq!(store.get("/rw/a").await.unwrap(), None);
    let created = committed(store, vec![], vec![Op::put("/rw/a", b"1".to_vec())]).await;
    let written = committed(store, vec![], vec![Op::put("/rw/a", b"2".to_vec())]).await;
    assert!(written > created, "revisions must rise: {created}, then {written}");
    let expected = KeyValue {
        key: "/rw/a".to_owned(),
        value: b"2".to_vec(),
        create_revision: created,
        mod_revision: written,
    };
    assert_eq!(store.get("/rw/a").await.unwrap(), Some(expected));
    committed(store, vec![], vec![Op::delete("/rw/a")]).await;
    assert_eq!(store.get("/rw/a").await.unwrap(), None);
}

async fn compares_guard_writes(store: &dyn Store) {
    let created = committed(store, vec![], vec![Op::put("/cmp/a", vec![])]).await;
    let written = committed(store, vec![], vec![Op::put("/cmp/a", vec![])]).await;
    let key = || "/cmp/a".to_owned();
    let none = || "/cmp/none".to_owned();
    let cases = [
        (Compare::Absent(none()), true),
        (Compare::Absent(key()), false),
        (Compare::Exists(key()), true),
        (Compare::Exists(none()), false),
        (Compare::ModRevision(key(), written), true),
        (Compare::ModRevision(key(), created), false),
        (Compare::ModRevision(none(), written), false),
        (Compare::CreateRevision(key(), created), true),
        (Compare::CreateRevision(key(), written), false),
        (Compare::NoneBelow("/cmp/".to_owned()), false),
        (Compare::NoneBelow("/cmp/a".to_owned()), false),
        (Compare::NoneBelow("/cmp/a/".to_owned()), true),
        (Compare::NoneBelow("/cm0".to_owned()), true),
    ];
    for (compare, holds) in cases {
        let outcome = store.txn(vec![compare.clone()], vec![Op::put("/cmp/b", vec![])]).await.unwrap();
        let seen = matches!(outcome, TxnOutcome::Committed(_));
        assert_eq!(seen, holds, "whether {compare:?} holds");
    }
}

async fn a_conflict_writes_nothing(store: &dyn Store) {
    let ops = vec![Op::put("/all/a", vec![]), Op::put("/all/b", vec![])];
    let compares = vec![Compare::Absent("/all/c".into()), Compare::Exists("/all/d".into())];
    assert_eq!(store.txn(compares, ops).await.unwrap(), TxnOutcome::Conflict);
    assert_eq!(store.list("/all/").await.unwrap().items, vec![]);
}

async fn listings_are_whole_and_ordered(store: &dyn Store) {
    // More than a page of the etcd store, and a neighbour that a careless range would include.
    let keys: Vec<String> = (0..2300).map(|number| format!("/list/{number:05}")).collect();
    let mut last = 0;
    for chunk in keys.chunks(MAX_TXN_OPS) {
        let ops = chunk.iter().map(|key| Op::put(key.clone(), key.clone().into_bytes())).collect();
        last = committed(store, vec![], ops).await;
    }
    let after = committed(store, vec![], vec![Op::put("/list0", vec![])]).await;
    let listing = store.list("/list/").await.unwrap();
    let seen: Vec<String> = listing.items.iter().map(|item| item.key.clone()).collect();
    assert_eq!(seen.len(), keys.len(), "number of keys listed");
    assert_eq!(seen, keys);
    assert!(listing.revision >= after && after > last, "listing at {}, written at {after}", listing.revision);
    assert_eq!(store.list("/list/none/").await.unwrap().items, vec![]);
}

async fn oversized_transactions_are_refused(store: &dyn Store) {
    let many = (0..=MAX_TXN_OPS).map(|number| Op::put(format!("/big/{number}"), vec![])).collect();
    let large = vec![Op::put("/big/large", vec![0; super::MAX_TXN_BYTES])];
    for ops in [many, large] {
        let error = store.txn(vec![], ops).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { .. }), "expected too large, saw {error:?}");
    }
    let most_compares = (0..MAX_TXN_OPS).map(|number| Compare::Absent(format!("/big/{number}"))).collect();
    let most = (0..MAX_TXN_OPS).map(|number| Op::put(format!("/big/{number}"), vec![])).collect();
    committed(store, most_compares, most).await;
}

/// Changes as (key, whether it was written), until there are `count` of them.
async fn next_changes(
    stream: &mut BoxStream<'static, Result<WatchEvent, StoreError>>,
    count: usize,
) -> Vec<(String, bool)> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
        let event = next.unwrap_or_else(|_| panic!("expected {count} changes, saw {seen:?}"));
        match event.expect("the watch ended").expect("the watch failed") {
            WatchEvent::Changes { revision, changes } => {
                let last = changes.iter().map(Change::mod_revision).max();
                assert!(Some(revision) >= last, "revision {revision} is behind its changes: {last:?}");
                seen.extend(
                    changes
                        .into_iter()
                        .map(|change| (change.key().to_owned(), matches!(change, Change::Put(_)))),
                );
            }
            WatchEvent::Compacted => panic!("compacted, after {seen:?}"),
        }
    }
    seen
}

async fn a_watch_misses_nothing(store: &dyn Store) {
    let from = committed(store, vec![], vec![Op::put("/watch/a", vec![])]).await;
    committed(store, vec![], vec![Op::put("/watch/b", vec![])]).await;
    let mut stream = store.watch("/watch/", from).await.unwrap();
    committed(store, vec![], vec![Op::put("/watching", vec![])]).await;
    committed(store, vec![], vec![Op::delete("/watch/a")]).await;
    let expected =
        [("/watch/a", true), ("/watch/b", true), ("/watch/a", false)].map(|(key, put)| (key.to_owned(), put));
    assert_eq!(
        next_changes(&mut stream, 3).await,
        expected,
        "from the revision asked for, that one included"
    );

    let mut later = store.watch("/watch/", from + 1).await.unwrap();
    assert_eq!(next_changes(&mut later, 2).await, expected[1..]);
}

async fn a_watch_yields_whole_revisions(store: &dyn Store) {
    let start = committed(store, vec![], vec![Op::put("/whole/a", vec![])]).await;
    let mut stream = store.watch("/whole/", start + 1).await.unwrap();
    let ops = (0..100).map(|number| Op::put(format!("/whole/{number}"), vec![7; 1000])).collect();
    let revision = committed(store, vec![], ops).await;
    match stream.next().await {
        Some(Ok(WatchEvent::Changes { revision: seen, changes })) => {
            assert_eq!((seen, changes.len()), (revision, 100), "revision and number of changes in one event");
        }
        other => panic!("expected one event with 100 changes, saw {other:?}"),
    }
}

async fn a_lease_ends_with_its_keys(store: &dyn Store) {
    let lease = store.grant_lease(Duration::from_secs(2)).await.unwrap();
    let put = committed(store, vec![], vec![Op::put_leased("/lease/a", vec![], lease)]).await;
    assert!(store.keep_alive(lease).await.unwrap(), "a living lease is prolonged");
    let mut stream = store.watch("/lease/", put + 1).await.unwrap();
    assert_eq!(
        next_changes(&mut stream, 1).await,
        [("/lease/a".to_owned(), false)],
        "the expired lease deletes its key"
    );
    assert!(!store.keep_alive(lease).await.unwrap(), "an ended lease is not prolonged");

    let revoked = store.grant_lease(Duration::from_mins(1)).await.unwrap();
    committed(store, vec![], vec![Op::put_leased("/lease/b", vec![], revoked)]).await;
    store.revoke_lease(revoked).await.unwrap();
    assert_eq!(store.get("/lease/b").await.unwrap(), None, "a revoked lease deletes its keys");
    store.revoke_lease(revoked).await.unwrap();

    let error = store.txn(vec![], vec![Op::put_leased("/lease/c", vec![], revoked)]).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "expected a refusal, saw {error:?}");
}

async fn a_compacted_watch_says_so(store: &dyn Store) {
    let old = committed(store, vec![], vec![Op::put("/compact/a", vec![])]).await;
    let new = committed(store, vec![], vec![Op::put("/compact/a", vec![])]).await;
    store.compact(new).await.unwrap();
    store.compact(new).await.unwrap();
    let mut stream = store.watch("/compact/", old).await.unwrap();
    assert_eq!(stream.next().await.map(Result::ok), Some(Some(WatchEvent::Compacted)));
    assert!(stream.next().await.is_none(), "nothing follows the compaction");
    let mut kept = store.watch("/compact/", new).await.unwrap();
    assert_eq!(next_changes(&mut kept, 1).await, [("/compact/a".to_owned(), true)]);
}
