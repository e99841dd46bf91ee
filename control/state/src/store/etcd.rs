//! The store on etcd v3: the only module that uses etcd's client.
//!
//! Invariants: every call has a deadline; reads are linearizable; a watch goes through a member
//! that has a leader, so a member that is cut off from its peers ends the watch instead of falling
//! silent. If a member is unreachable, the next one is used; a write is retried there only if it
//! was never sent, as otherwise it may have been committed.
//!
//! Left to others: retries (each caller knows how long to try), and running etcd.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Client, CompareOp, Error as EtcdError, GetOptions, PutOptions, Txn, TxnOp, WatchOptions};
use futures::StreamExt as _;
use futures::stream::BoxStream;

use failures::{store_error, was_never_sent};
use member::Member;
use watch::Watch;

pub use access::{EtcdAccess, EtcdAccessError, EtcdIdentity, EtcdUser};
pub use members::{EtcdMember, Joined};
pub use upkeep::MemberStatus;

use super::{Compare, KeyValue, Listing, Op, Store, StoreError, TxnOutcome, WatchEvent, check_size};

/// The deadline of reads and writes of few keys.
const REQUEST_DEADLINE: Duration = Duration::from_secs(3);
/// The deadline of requests on leases: short, so that a lease of a few seconds outlives one
/// member's silence.
const LEASE_DEADLINE: Duration = Duration::from_millis(1500);
/// The deadline of each page of a listing.
const PAGE_DEADLINE: Duration = Duration::from_secs(10);
/// The deadline of a new connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// The interval of HTTP/2 pings while a stream is open. etcd disconnects clients that ping more
/// often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(6);
/// The deadline of the answer to a ping; a connection that misses it is closed.
const PING_DEADLINE: Duration = Duration::from_secs(3);
/// Keys per page of a listing.
const PAGE_KEYS: i64 = 1000;
/// The largest answer that is accepted: a page of large values, or a large revision in a watch.
const MAX_MESSAGE_BYTES: usize = 256 << 20;

mod access;
#[cfg(test)]
mod admission_tests;
mod failures;
mod member;
mod members;
mod upkeep;
mod watch;

/// The revision in an answer.
fn told(operation: &'static str, revision: Option<i64>) -> Result<i64, StoreError> {
    revision.filter(|revision| *revision >= 0).ok_or(StoreError::NoRevision { operation })
}

/// The port in a URL like `http://10.0.0.1:2379`, if it names one.
pub fn port_of(url: &str) -> Option<u16> {
    url.trim_end_matches('/').rsplit_once(':')?.1.parse().ok()
}

/// etcd, reached through one of its members, and through the next if that one is unreachable.
#[derive(Clone)]
pub struct EtcdStore {
    /// The members; at least one.
    members: Arc<[Member]>,
    /// The index of the member in use. A change ends the watches through other members, whose
    /// connections may be dead unnoticed.
    current: Arc<tokio::sync::watch::Sender<usize>>,
}

/// Whether a failed request may be sent again to another member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// It changes nothing, or is idempotent.
    Always,
    /// Only if it was never sent.
    Unsent,
}

impl EtcdStore {
    /// Opens a store on the members in `access`. Connects at first use.
    ///
    /// # Errors
    /// [`EtcdAccessError`] for addresses that may not be used, and files that can't be read.
    pub async fn open(access: EtcdAccess) -> Result<Self, EtcdAccessError> {
        access.check()?;
        let access = Arc::new(access);
        let member = |address: &String| Member::new(address.clone(), Arc::clone(&access));
        let members: Arc<[Member]> = access.addresses.iter().map(member).collect();
        for (member, address) in members.iter().zip(&access.addresses) {
            access.options(address).await?;
            // With a user, the client must authenticate first, so it can't be made here.
            if access.user.is_none() {
                let made = member.client().await;
                made.map_err(|error| EtcdAccessError::client(address, &error))?;
            }
        }
        Ok(Self { members, current: Arc::new(tokio::sync::watch::Sender::new(0)) })
    }

    /// Reads certificates, keys and password again, and uses them for later requests. A watch goes
    /// on with its connection until that ends.
    ///
    /// # Errors
    /// They can't be used with a member; requests to that one go on with the connection of before.
    pub async fn reconnect(&self) -> Result<(), EtcdAccessError> {
        for member in self.members.iter() {
            let again = member.reconnect().await;
            again.map_err(|error| EtcdAccessError::client(member.address(), &error))?;
        }
        Ok(())
    }

    /// The ports of this etcd's members, for clients and for peers.
    ///
    /// # Errors
    /// [`StoreError`] if no member answers.
    pub async fn member_ports(&self) -> Result<BTreeSet<u16>, StoreError> {
        let list = async |mut client: Client| client.member_list().await;
        let members = self.request("list members", REQUEST_DEADLINE, Repeat::Always, list).await?;
        let urls =
            members.members().iter().flat_map(|member| member.client_urls().iter().chain(member.peer_urls()));
        Ok(urls.filter_map(|url| port_of(url)).collect())
    }

    /// Sends a request to the member in use, and to the others while members are unreachable and
    /// `repeat` allows it.
    async fn request<T, F>(
        &self,
        operation: &'static str,
        deadline: Duration,
        repeat: Repeat,
        send: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, EtcdError>>,
    {
        let mut left = self.members.len();
        loop {
            let used = *self.current.borrow();
            let request = async { send(self.members[used].client().await?).await };
            let (failure, again) = match tokio::time::timeout(deadline, request).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => {
                    let failure = store_error(operation, &error);
                    let away = matches!(failure, StoreError::Unavailable { .. });
                    if !away {
                        return Err(failure);
                    }
                    (failure, repeat == Repeat::Always || was_never_sent(&error))
                }
                Err(_) => (StoreError::Deadline { operation, deadline }, repeat == Repeat::Always),
            };
            self.members[used].forget();
            self.pass_over(used);
            left -= 1;
            if left == 0 || !again {
                return Err(failure);
            }
        }
    }

    /// Switches to the next member, unless another task has already done so.
    fn pass_over(&self, used: usize) {
        let next = (used + 1) % self.members.len();
        self.current.send_if_modified(|current| {
            let turns = *current == used && next != used;
            if turns {
                tracing::warn!(member = used, next, "an etcd member is unreachable: switching to the next");
                *current = next;
            }
            turns
        });
    }

    async fn page(
        &self,
        from: &[u8],
        end: &[u8],
        revision: i64,
    ) -> Result<etcd_client::GetResponse, StoreError> {
        let options = GetOptions::new().with_range(end).with_limit(PAGE_KEYS).with_revision(revision);
        let send = |client: Client| {
            let (from, options) = (from.to_vec(), options.clone());
            async move {
                client.kv_client().max_decoding_message_size(MAX_MESSAGE_BYTES).get(from, Some(options)).await
            }
        };
        self.request("list", PAGE_DEADLINE, Repeat::Always, send).await
    }
}

fn key_value(item: &etcd_client::KeyValue) -> KeyValue {
    KeyValue {
        key: String::from_utf8_lossy(item.key()).into_owned(),
        value: item.value().to_vec(),
        create_revision: item.create_revision(),
        mod_revision: item.mod_revision(),
    }
}

/// The end of the range of keys that begin with `prefix`.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // etcd's form of "to the end of all keys".
    vec![0]
}

fn compare(compare: Compare) -> etcd_client::Compare {
    match compare {
        Compare::Absent(key) => etcd_client::Compare::create_revision(key, CompareOp::Equal, 0),
        Compare::Exists(key) => etcd_client::Compare::create_revision(key, CompareOp::Greater, 0),
        Compare::ModRevision(key, revision) => {
            etcd_client::Compare::mod_revision(key, CompareOp::Equal, revision)
        }
        Compare::CreateRevision(key, revision) => {
            etcd_client::Compare::create_revision(key, CompareOp::Equal, revision)
        }
        // A compare over a range holds for every key in it; an empty range counts as one key that
        // doesn't exist.
        Compare::NoneBelow(prefix) => {
            etcd_client::Compare::create_revision(prefix, CompareOp::Equal, 0).with_prefix()
        }
    }
}

fn operation(op: Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            TxnOp::put(key, value, lease.map(|lease| PutOptions::new().with_lease(lease)))
        }
        Op::Delete { key } => TxnOp::delete(key, None),
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let send = |client: Client| async move {
            client.kv_client().max_decoding_message_size(MAX_MESSAGE_BYTES).get(key, None).await
        };
        let answer = self.request("get", REQUEST_DEADLINE, Repeat::Always, send).await?;
        Ok(answer.kvs().first().map(key_value))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let end = prefix_end(prefix);
        let mut items: Vec<KeyValue> = Vec::new();
        let (mut from, mut revision) = (prefix.as_bytes().to_vec(), 0);
        loop {
            let answer = self.page(&from, &end, revision).await?;
            if revision == 0 {
                revision = told("list", answer.header().map(etcd_client::ResponseHeader::revision))?;
            }
            items.extend(answer.kvs().iter().map(key_value));
            let Some(last) = answer.kvs().last().filter(|_| answer.more()) else {
                return Ok(Listing { revision, items });
            };
            from = last.key().to_vec();
            from.push(0);
        }
    }

    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<TxnOutcome, StoreError> {
        check_size(&compares, &ops)?;
        let compares: Vec<_> = compares.into_iter().map(compare).collect();
        let ops: Vec<_> = ops.into_iter().map(operation).collect();
        let request = Txn::new().when(compares).and_then(ops);
        let send = |client: Client| {
            let request = request.clone();
            async move { client.kv_client().txn(request).await }
        };
        let answer = self.request("txn", REQUEST_DEADLINE, Repeat::Unsent, send).await?;
        let revision = told("txn", answer.header().map(etcd_client::ResponseHeader::revision))?;
        Ok(if answer.succeeded() { TxnOutcome::Committed(revision) } else { TxnOutcome::Conflict })
    }

    async fn watch(
        &self,
        prefix: &str,
        from_revision: i64,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError> {
        let options = WatchOptions::new().with_prefix().with_start_revision(from_revision);
        let send = |client: Client| {
            let options = options.clone();
            async move {
                let mut watches = client.watch_client().max_decoding_message_size(MAX_MESSAGE_BYTES);
                watches.watch(prefix, Some(options)).await
            }
        };
        let mut current = self.current.subscribe();
        let through = *current.borrow_and_update();
        let stream = self.request("watch", REQUEST_DEADLINE, Repeat::Always, send).await?;
        let watch = Watch { stream, current, through };
        Ok(futures::stream::unfold(Some(watch), |watch| async move { watch?.next().await }).boxed())
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<i64, StoreError> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000).max(1)).unwrap_or(i64::MAX);
        let send = |client: Client| async move { client.lease_client().grant(seconds, None).await };
        self.request("lease", LEASE_DEADLINE, Repeat::Always, send).await.map(|answer| answer.id())
    }

    async fn keep_alive(&self, lease: i64) -> Result<bool, StoreError> {
        let send = |client: Client| async move {
            match client.lease_client().keep_alive(lease).await {
                Ok(_) => Ok(true),
                // The client reports an answer without remaining time by this text.
                Err(EtcdError::LeaseKeepAliveError(message)) if message.contains("not found") => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.request("lease", LEASE_DEADLINE, Repeat::Always, send).await
    }

    async fn revoke_lease(&self, lease: i64) -> Result<(), StoreError> {
        let send = |client: Client| async move { client.lease_client().revoke(lease).await };
        match self.request("lease", LEASE_DEADLINE, Repeat::Always, send).await {
            Err(StoreError::Refused { message, .. }) if message.contains("lease not found") => Ok(()),
            other => other.map(drop),
        }
    }

    async fn compact(&self, revision: i64) -> Result<(), StoreError> {
        let send = |client: Client| async move { client.kv_client().compact(revision, None).await };
        match self.request("compact", REQUEST_DEADLINE, Repeat::Always, send).await {
            Err(StoreError::Refused { message, .. }) if message.contains("has been compacted") => Ok(()),
            other => other.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_a_revision_is_an_error_and_not_revision_0() {
        assert_eq!(told("list", Some(7)).unwrap(), 7);
        for none in [None, Some(-1)] {
            let error = told("list", none).unwrap_err();
            assert_eq!(error.to_string(), "etcd's answer to list has no revision", "{none:?}");
            assert_eq!(error.operation(), "list");
        }
    }
}
