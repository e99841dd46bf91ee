//! Metrics of the store: whether the watch is up, at which revision, and failed requests.

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use mesh_state::store::{Compare, KeyValue, Listing, Op, Store, StoreError, TxnOutcome, WatchEvent};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

use crate::feed::watch::Feed;

/// A store that counts its failures by operation.
pub struct CountedStore<S> {
    inner: S,
    errors: IntCounterVec,
}

impl<S: Store> CountedStore<S> {
    /// Counts the failures of `inner`.
    ///
    /// # Errors
    /// A family of the same name is already registered.
    pub fn register(inner: S, registry: &Registry) -> Result<Self, prometheus::Error> {
        let options = Opts::new(
            "mesh_store_request_errors_total",
            "Requests to etcd that failed, conflicts not counted.",
        );
        let errors = IntCounterVec::new(options, &["operation"])?;
        for operation in ["get", "list", "txn", "watch", "lease", "compact"] {
            errors.with_label_values(&[operation]);
        }
        registry.register(Box::new(errors.clone()))?;
        Ok(Self { inner, errors })
    }

    fn count<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.inspect_err(|error| self.errors.with_label_values(&[error.operation()]).inc())
    }
}

#[async_trait]
impl<S: Store> Store for CountedStore<S> {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.count(self.inner.get(key).await)
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.count(self.inner.list(prefix).await)
    }

    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<TxnOutcome, StoreError> {
        self.count(self.inner.txn(compares, ops).await)
    }

    async fn watch(
        &self,
        prefix: &str,
        from_revision: i64,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError> {
        self.count(self.inner.watch(prefix, from_revision).await)
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<i64, StoreError> {
        self.count(self.inner.grant_lease(ttl).await)
    }

    async fn keep_alive(&self, lease: i64) -> Result<bool, StoreError> {
        self.count(self.inner.keep_alive(lease).await)
    }

    async fn revoke_lease(&self, lease: i64) -> Result<(), StoreError> {
        self.count(self.inner.revoke_lease(lease).await)
    }

    async fn compact(&self, revision: i64) -> Result<(), StoreError> {
        self.count(self.inner.compact(revision).await)
    }
}

/// Reads the feed at each scrape.
struct FeedCollector {
    feed: Feed,
    connected: IntGauge,
    revision: IntGauge,
}

/// Registers `mesh_store_connected` and `mesh_store_revision`.
///
/// # Errors
/// A family of the same name is already registered.
pub fn register_feed(feed: Feed, registry: &Registry) -> Result<(), prometheus::Error> {
    let connected = IntGauge::new("mesh_store_connected", "Whether the watch on etcd is up.")?;
    let revision = IntGauge::new("mesh_store_revision", "The newest revision of etcd heard of.")?;
    registry.register(Box::new(FeedCollector { feed, connected, revision }))
}

impl Collector for FeedCollector {
    fn desc(&self) -> Vec<&Desc> {
        [self.connected.desc(), self.revision.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.connected.set(i64::from(*self.feed.connected.borrow()));
        self.revision.set(self.feed.snapshots.borrow().revision);
        [self.connected.collect(), self.revision.collect()].concat()
    }
}
