//! The dependencies of one manager's Docker API and node service.
//!
//! Invariant: cheap to clone; holds no state of its own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_state::cluster::{Cluster, Sealed};
use mesh_state::store::Store;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ca::MEMBER_LIFE;
use crate::ca::token::{JoinTokens, certificate_digest};
use crate::feed::clocks::Clocks;
use crate::feed::snapshot::ClusterSnapshot;
use crate::feed::watch::{Feed, RevisionTimeout};
use crate::logs::broker::LogBroker;
use crate::orders::Orders;
use crate::own_node::OwnNode;
use crate::seal::unlock_key::UnlockKey;
use crate::seal::{SealError, Sealer};

/// The purpose that worker token secrets are sealed for.
pub const WORKER_TOKEN: &str = "worker token";
/// The purpose that manager token secrets are sealed for.
pub const MANAGER_TOKEN: &str = "manager token";
/// The purpose that the CA's key is sealed for.
pub const CA_KEY: &str = "CA key";
/// The purpose that the relay key is sealed for.
pub const RELAY_KEY: &str = "relay key";
/// The purpose that the key that locks managers is sealed for.
pub const UNLOCK_KEY: &str = "unlock key";

/// The purpose that registry credentials are sealed for.
pub const REGISTRY_AUTH: &str = "registry credentials";

/// One manager's access to the cluster's state.
#[derive(Clone)]
pub struct ApiContext {
    /// The store to write to.
    pub store: Arc<dyn Store>,
    /// The feed to read from.
    pub feed: Feed,
    /// This manager's name, unique among managers.
    pub manager_name: String,
    /// The node that it runs on.
    pub own_node: OwnNode,
    /// The address at which agents and clients reach this manager.
    pub advertise: IpAddr,
    /// The node service's port at that address.
    pub node_port: u16,
    /// Seals and opens with the cluster's key.
    pub sealer: Arc<Sealer>,
    /// The clocks of nodes and other managers.
    pub clocks: Arc<Clocks>,
    /// The requests for nodes' logs.
    pub logs: Arc<LogBroker>,
    /// The revision of the cluster's record that this manager's files follow: its key file, which
    /// autolock wraps, and its token files.
    pub at_rest: watch::Receiver<i64>,
    /// The shortest life that a client may give nodes' certificates.
    pub certificate_life_min: Duration,
    /// Cancelled when the manager stops: endless responses end then.
    pub stopping: CancellationToken,
    /// The way to order what this process is to be; `None` with an etcd of the operator's.
    pub orders: Option<Orders>,
}

/// Why the join tokens can't be made.
#[derive(Debug, Error)]
pub enum TokenError {
    /// No snapshot has the cluster's record yet.
    #[error("the cluster's record was not read yet: is etcd up?")]
    NoCluster,
    /// The record's CA certificate can't be parsed.
    #[error("read the cluster's CA certificate")]
    Certificate(#[source] rustls_pki_types::pem::Error),
    /// The record's secrets don't open with this key.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl ApiContext {
    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<ClusterSnapshot> {
        self.feed.snapshot()
    }

    /// Whether the watch on etcd is up; if not, the newest snapshot may be old.
    pub fn is_store_connected(&self) -> bool {
        *self.feed.connected.borrow()
    }

    /// The first snapshot that holds the write at `revision`.
    ///
    /// # Errors
    /// [`RevisionTimeout`] when it doesn't come within `deadline`.
    pub async fn wait_for_revision(
        &self,
        revision: i64,
        deadline: Duration,
    ) -> Result<Arc<ClusterSnapshot>, RevisionTimeout> {
        self.feed.wait_for_revision(revision, deadline).await
    }

    /// The address at which agents reach this manager's node service.
    pub fn node_address(&self) -> SocketAddr {
        SocketAddr::new(self.advertise, self.node_port)
    }

    /// The validity of nodes' and managers' certificates.
    pub fn certificate_life(&self) -> Duration {
        self.snapshot()
            .cluster
            .as_ref()
            .map_or(MEMBER_LIFE, |cluster| Duration::from_nanos(cluster.node_cert_expiry_ns))
    }

    /// The unlock key of the managers' key files; `None` without autolock.
    pub fn unlock_key(&self) -> Option<UnlockKey> {
        let snapshot = self.snapshot();
        unlock_key(snapshot.cluster.as_ref()?, &self.sealer).ok().flatten()
    }

    /// The tokens that let nodes join.
    ///
    /// # Errors
    /// [`TokenError`] when there is no cluster yet, or the key file isn't the cluster's.
    pub fn join_tokens(&self) -> Result<JoinTokens, TokenError> {
        let snapshot = self.snapshot();
        join_tokens(snapshot.cluster.as_ref().ok_or(TokenError::NoCluster)?, &self.sealer)
    }
}

/// The join tokens of a cluster's record.
///
/// # Errors
/// [`TokenError::Certificate`] and [`TokenError::Seal`].
pub fn join_tokens(cluster: &Cluster, sealer: &Sealer) -> Result<JoinTokens, TokenError> {
    let ca = CertificateDer::from_pem_slice(cluster.ca_certificate_pem.as_bytes())
        .map_err(TokenError::Certificate)?;
    let secret = |purpose: &'static str, sealed: &Sealed| -> Result<String, SealError> {
        let opened = sealer.open(purpose, sealed)?;
        Ok(String::from_utf8_lossy(&opened).into_owned())
    };
    Ok(JoinTokens::new(
        &certificate_digest(&ca),
        &secret(WORKER_TOKEN, &cluster.worker_token)?,
        &secret(MANAGER_TOKEN, &cluster.manager_token)?,
    ))
}

/// The key that locks a cluster's managers; `None` without autolock.
///
/// # Errors
/// [`SealError::Open`] if this manager's key is not the cluster's, or the record is damaged.
pub fn unlock_key(cluster: &Cluster, sealer: &Sealer) -> Result<Option<UnlockKey>, SealError> {
    let Some(stored) = &cluster.unlock_key else { return Ok(None) };
    let opened = sealer.open(UNLOCK_KEY, stored)?;
    let damaged = || SealError::Open { purpose: UNLOCK_KEY.to_owned() };
    UnlockKey::from_bytes(&opened).ok_or_else(damaged).map(Some)
}
