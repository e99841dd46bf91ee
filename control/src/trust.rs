//! What a manager signs with and trusts: the cluster's CA, and while it is replaced, others.
//!
//! Invariants: it follows from the cluster's record alone; keys are decrypted in memory only.
//!
//! Left to others: the steps of a rotation (`planners::ca_rotation`), and serving with new
//! certificates (`node_service::renewing_server`).

use std::sync::Arc;
use std::time::Duration;

use mesh_runtime::error_chain;
use mesh_state::ca::{CaStage, ManagerCas};
use mesh_state::cluster::{Cluster, Sealed};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::ca::root::TrustedRoot;
use crate::ca::{Authority, CaError};
use crate::context::CA_KEY;
use crate::feed::snapshot::ClusterSnapshot;
use crate::seal::{SealError, Sealer};

/// The pause after a record that can't be used.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Why a record's CAs can't be used.
#[derive(Debug, Error)]
pub enum TrustError {
    /// A CA's key doesn't open.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A CA can't be loaded.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The certificate of a CA can't be parsed.
    #[error("read the certificate of a trusted CA")]
    Certificate(#[source] rustls_pki_types::pem::Error),
}

/// The CAs of one record.
#[derive(Debug)]
pub struct Trust {
    /// Signs nodes' certificates.
    pub signer: Arc<Authority>,
    /// Signs the certificates of managers' servers: the cluster's CA, which join tokens name.
    pub server: Arc<Authority>,
    /// Those whose certificates are accepted, the cluster's first.
    pub roots: Vec<TrustedRoot>,
    /// The same in PEM, one after the other.
    pub roots_pem: String,
}

impl Trust {
    /// The CAs of a cluster's record.
    ///
    /// # Errors
    /// [`TrustError`]
    pub fn of(cluster: &Cluster, sealer: &Sealer) -> Result<Self, TrustError> {
        let load = |certificate_pem: &str, sealed: &Sealed| -> Result<Arc<Authority>, TrustError> {
            let opened = sealer.open(CA_KEY, sealed)?;
            let key_pem = Zeroizing::new(String::from_utf8_lossy(&opened).into_owned());
            Ok(Arc::new(Authority::load(certificate_pem, &key_pem)?))
        };
        let server = load(&cluster.ca_certificate_pem, &cluster.ca_key)?;
        let signer = match &cluster.ca_rotation {
            Some(rotation) if rotation.stage == CaStage::Issue => {
                load(&rotation.target.certificate_pem, &rotation.target_key)?
            }
            _ => Arc::clone(&server),
        };
        let pems = cluster.trusted_pems();
        let roots = pems.iter().map(|pem| TrustedRoot::read(pem)).collect::<Result<_, _>>();
        Ok(Self { signer, server, roots: roots.map_err(TrustError::Certificate)?, roots_pem: pems.concat() })
    }

    /// What the manager's record says once its server follows this.
    pub fn said(&self) -> ManagerCas {
        let trusts = self.roots.iter().map(|root| root.digest.clone()).collect();
        ManagerCas { trusts, issuer: self.server.digest(), signer: self.signer.digest() }
    }
}

/// Publishes the CAs of each record that changes them, until `shutdown`.
pub async fn follow(
    mut snapshots: watch::Receiver<Arc<ClusterSnapshot>>,
    sealer: Arc<Sealer>,
    trust: watch::Sender<Arc<Trust>>,
    shutdown: CancellationToken,
) {
    // The record that the published CAs are of isn't known, so the first snapshot counts as new.
    let mut followed = None;
    loop {
        let cluster = snapshots.borrow_and_update().cluster.clone();
        let mut failed = false;
        if let Some(cluster) = cluster
            && followed.as_ref() != Some(&cas_of(&cluster.value))
        {
            match Trust::of(&cluster.value, &sealer) {
                Ok(fresh) => {
                    if followed.is_some() {
                        info!(said = ?fresh.said(), "the cluster's CAs changed");
                    }
                    trust.send_if_modified(|present| {
                        let changed = present.said() != fresh.said();
                        *present = Arc::new(fresh);
                        changed
                    });
                    followed = Some(cas_of(&cluster.value));
                }
                Err(error) => {
                    warn!(error = error_chain(&error), "can't follow the change of the cluster's CA");
                    failed = true;
                }
            }
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY_PAUSE), if failed => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// The part of a record that decides the CAs.
fn cas_of(cluster: &Cluster) -> Cas {
    let stage = cluster.ca_rotation.as_ref().map(|rotation| (rotation.stage, rotation.target_key.clone()));
    let pems = cluster.trusted_pems().into_iter().map(str::to_owned).collect();
    (pems, cluster.ca_key.clone(), stage)
}

/// Trusted certificates, the key of the cluster's CA, and the rotation's stage and key.
type Cas = (Vec<String>, Sealed, Option<(CaStage, Sealed)>);
