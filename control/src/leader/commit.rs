//! Turns a plan into transactions and commits them under the leader's fence.
//!
//! Invariants: each action is one group of writes with the compares that it stands on, never cut
//! apart; each transaction holds the fence, so nothing that a former leader decided is applied; the
//! first conflict discards the rest of the plan.
//!
//! Left to others: deciding ([`crate::plan`]), and planning again.

use mesh_state::codec::{self, CodecError};
use mesh_state::keys;
use mesh_state::store::{Compare, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Store, StoreError, TxnOutcome};
use thiserror::Error;

use crate::feed::snapshot::ClusterSnapshot;
use crate::plan::Action;
use crate::slots::references;

/// Why a plan was not committed.
#[derive(Debug, Error)]
pub enum CommitError {
    /// An object can't be encoded.
    #[error("store what was planned")]
    Encode(#[from] CodecError),
    /// The store failed. Transactions committed before stay; the next pass sees them.
    #[error("commit what was planned")]
    Store(#[from] StoreError),
}

/// How a plan's commit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitOutcome {
    /// All transactions are committed, the last one at this revision.
    Committed(i64),
    /// The store had newer writes, or another manager leads: the rest was discarded.
    Conflict,
}

/// Writes applied together if all compares hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Transaction {
    /// Conditions; if one fails, nothing is written.
    pub compares: Vec<Compare>,
    /// What is written if all conditions hold.
    pub ops: Vec<Op>,
}

impl Transaction {
    fn size(&self) -> usize {
        self.compares.iter().map(Compare::size).chain(self.ops.iter().map(Op::size)).sum()
    }

    /// Adds `more`, unless the two together exceed etcd's limit for a transaction.
    fn absorb(&mut self, more: &Self) -> bool {
        let new: Vec<_> = more.compares.iter().filter(|compare| !self.compares.contains(compare)).collect();
        let fits = self.compares.len() + new.len() <= MAX_TXN_OPS
            && self.ops.len() + more.ops.len() <= MAX_TXN_OPS
            && self.size() + more.size() <= MAX_TXN_BYTES;
        if fits {
            self.compares.extend(new.into_iter().cloned());
            self.ops.extend(more.ops.iter().cloned());
        }
        fits
    }
}

/// Groups `actions`, in order, into transactions, each with `fence`.
///
/// # Errors
/// [`CodecError`] if an object can't be encoded.
pub fn transactions(
    actions: &[Action],
    snapshot: &ClusterSnapshot,
    fence: &Compare,
) -> Result<Vec<Transaction>, CodecError> {
    let empty = || Transaction { compares: vec![fence.clone()], ops: Vec::new() };
    let mut cut = Vec::new();
    let mut current = empty();
    for action in actions {
        let group = group(action, snapshot)?;
        if !current.absorb(&group) {
            cut.push(std::mem::replace(&mut current, empty()));
            // A single action never exceeds a transaction: it writes a few keys, each below etcd's
            // limit by the API's checks.
            current.compares.extend(group.compares);
            current.ops.extend(group.ops);
        }
    }
    if !current.ops.is_empty() {
        cut.push(current);
    }
    cut.retain(|transaction| !transaction.ops.is_empty());
    Ok(cut)
}

/// Commits `transactions` in order, up to the first conflict.
///
/// # Errors
/// [`StoreError`] when the store fails; the transaction that failed may or may not be committed.
pub async fn commit(store: &dyn Store, transactions: Vec<Transaction>) -> Result<CommitOutcome, StoreError> {
    let mut last = 0;
    for transaction in transactions {
        match store.txn(transaction.compares, transaction.ops).await? {
            TxnOutcome::Committed(revision) => last = revision,
            TxnOutcome::Conflict => return Ok(CommitOutcome::Conflict),
        }
    }
    Ok(CommitOutcome::Committed(last))
}

/// The condition that a key is at revision `expected`, or doesn't exist if that is `None`.
fn stands_at(key: &str, expected: Option<i64>) -> Compare {
    match expected {
        Some(revision) => Compare::ModRevision(key.to_owned(), revision),
        None => Compare::Absent(key.to_owned()),
    }
}

fn write<T: serde::Serialize>(
    key: String,
    value: &T,
    compares: Vec<Compare>,
) -> Result<Transaction, CodecError> {
    Ok(Transaction { compares, ops: vec![Op::put(key, codec::encode(value)?)] })
}

/// A value written over the one at revision `expected`.
fn rewrite<T: serde::Serialize>(key: String, value: &T, expected: i64) -> Result<Transaction, CodecError> {
    let stands = stands_at(&key, Some(expected));
    write(key, value, vec![stands])
}

fn delete(key: String, expected: i64) -> Transaction {
    Transaction { compares: vec![stands_at(&key, Some(expected))], ops: vec![Op::delete(key)] }
}

/// One action as a transaction: its writes, and the conditions for them.
fn group(action: &Action, snapshot: &ClusterSnapshot) -> Result<Transaction, CodecError> {
    match action {
        Action::CreateTask(task) => {
            let key = keys::task(&task.id);
            // A service that was removed in the meantime gets no more tasks.
            let service = Compare::Exists(keys::service(&task.service_id));
            write(key.clone(), task, vec![Compare::Absent(key), service])
        }
        Action::UpdateTask { task, expected } => rewrite(keys::task(&task.id), task, *expected),
        Action::DeleteTask { id, expected } => Ok(Transaction {
            compares: vec![stands_at(&keys::task(id), Some(*expected))],
            ops: vec![Op::delete(keys::task(id)), Op::delete(keys::status(id))],
        }),
        Action::UpdateService { service, expected } => {
            let key = keys::service(&service.id);
            let mut group = write(key.clone(), service, vec![stands_at(&key, Some(*expected))])?;
            if !snapshot.specs.contains_key(&(service.id.clone(), service.spec_version)) {
                let spec = keys::spec(&service.id, service.spec_version);
                group.compares.push(Compare::Absent(spec.clone()));
                group.ops.push(Op::put(spec, codec::encode(&service.spec)?));
            }
            let (compares, ops) = references::settle(snapshot, &service.id, Some(&service.spec))?;
            group.compares.extend(compares);
            group.ops.extend(ops);
            Ok(group)
        }
        Action::DeleteSpec { service, version } => {
            let key = keys::spec(service, *version);
            Ok(Transaction { compares: vec![Compare::Exists(key.clone())], ops: vec![Op::delete(key)] })
        }
        Action::UpdateNode { node, expected } => rewrite(keys::node(&node.id), node, *expected),
        Action::UpdateNetwork { network, expected } => {
            rewrite(keys::network(&network.id), network, *expected)
        }
        Action::UpdateAttachment { container, expected } => {
            rewrite(keys::attachment(&container.id), container, *expected)
        }
        Action::DeleteAttachment { id, expected } => Ok(delete(keys::attachment(id), *expected)),
        Action::SetLiveness { node, liveness, expected } => {
            let key = keys::liveness(node);
            let known = Compare::Exists(keys::node(node));
            write(key.clone(), liveness, vec![stands_at(&key, *expected), known])
        }
        Action::SetStatus { task, status, expected } => {
            let key = keys::status(task);
            let known = Compare::Exists(keys::task(task));
            write(key.clone(), status, vec![stands_at(&key, *expected), known])
        }
        Action::SetBackendCursor { last, expected } => {
            let key = keys::BACKEND_CURSOR.to_owned();
            write(key.clone(), last, vec![stands_at(&key, *expected)])
        }
        Action::SetNetworkCursor { cursor, expected } => {
            let key = keys::NETWORK_CURSOR.to_owned();
            write(key.clone(), cursor, vec![stands_at(&key, *expected)])
        }
        Action::SetMemberKeys { keys: record, expected } => {
            let key = keys::MEMBER_KEYS.to_owned();
            write(key.clone(), record, vec![stands_at(&key, *expected)])
        }
        Action::UpdateCluster { cluster, expected } => rewrite(keys::CLUSTER.to_owned(), cluster, *expected),
        Action::ClaimPort { protocol, port, service } => {
            let key = keys::port(*protocol, *port);
            write(key.clone(), service, vec![Compare::Absent(key)])
        }
        Action::ReleasePort { protocol, port, expected } => {
            Ok(delete(keys::port(*protocol, *port), *expected))
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::store::MemoryStore;
    use mesh_state::task::Task;

    use super::*;

    fn task(id: &str) -> Task {
        crate::fixtures::task(id, "s", 1)
    }

    fn fence(revision: i64) -> Compare {
        Compare::CreateRevision(keys::LEADER.to_owned(), revision)
    }

    fn cut(actions: &[Action]) -> Vec<Transaction> {
        transactions(actions, &ClusterSnapshot::default(), &fence(7)).unwrap()
    }

    #[test]
    fn every_transaction_is_within_limits_and_fenced() {
        let actions: Vec<_> =
            (0..1000).map(|number| Action::CreateTask(task(&format!("t{number}")))).collect();
        let cut = cut(&actions);
        for transaction in &cut {
            assert!(transaction.compares.len() <= MAX_TXN_OPS, "{} compares", transaction.compares.len());
            assert!(transaction.ops.len() <= MAX_TXN_OPS, "{} writes", transaction.ops.len());
            assert!(transaction.size() <= MAX_TXN_BYTES, "{} bytes", transaction.size());
            assert!(transaction.compares.contains(&fence(7)), "a transaction without the fence");
        }
        let writes: Vec<_> = cut.iter().flat_map(|transaction| &transaction.ops).collect();
        assert_eq!(writes.len(), actions.len(), "writes of all transactions");
        assert!(cut.len() <= 1000 / (MAX_TXN_OPS - 4) + 1, "cut into {} transactions", cut.len());
    }

    #[test]
    fn an_actions_writes_stay_together_when_bytes_run_out() {
        let mut large = task("a");
        large.leader_status.message = "x".repeat(MAX_TXN_BYTES / 2);
        let second = Task { id: "b".into(), ..large.clone() };
        let update = |task: &Task| Action::UpdateTask { task: task.clone(), expected: 3 };
        let delete = Action::DeleteTask { id: "c".into(), expected: 4 };
        let cut = cut(&[update(&large), update(&second), delete]);
        let shape: Vec<_> = cut.iter().map(|one| (one.compares.len(), one.ops.len())).collect();
        assert_eq!(shape, [(2, 1), (3, 3)], "compares and writes of each transaction");
    }

    #[test]
    fn without_actions_there_is_no_transaction() {
        assert_eq!(cut(&[]), vec![]);
    }

    #[tokio::test]
    async fn a_former_leaders_plan_writes_nothing() {
        let store = MemoryStore::new();
        let put = |key: String| vec![Op::put(key, codec::encode(&1).unwrap())];
        let TxnOutcome::Committed(first) = store.txn(vec![], put(keys::LEADER.into())).await.unwrap() else {
            panic!("no leader")
        };
        store.txn(vec![], put(keys::service(&"s".into()))).await.unwrap();
        let plan = |id: &str| {
            transactions(&[Action::CreateTask(task(id))], &ClusterSnapshot::default(), &fence(first)).unwrap()
        };
        let outcome = commit(&store, plan("t1")).await.unwrap();
        assert!(matches!(outcome, CommitOutcome::Committed(_)), "the leader's own plan: {outcome:?}");

        store.txn(vec![], vec![Op::delete(keys::LEADER)]).await.unwrap();
        store.txn(vec![], put(keys::LEADER.into())).await.unwrap();
        assert_eq!(commit(&store, plan("t2")).await.unwrap(), CommitOutcome::Conflict);
        assert_eq!(store.get(&keys::task(&"t2".into())).await.unwrap(), None);
    }
}
