//! Renews this node's certificate before it expires, or shortly after, and when its role changes.
//!
//! Invariants: the new certificate is on disk before it is used, and the old one stays until then;
//! the renewal's time is random within the rest of the validity, so that nodes that joined together
//! don't renew together; managers that don't answer are asked again.
//!
//! Left to others: the session, whose next connection uses the new certificate.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use chrono::Utc;
use mesh_state::Timestamp;
use mesh_state::proto::membership_client::MembershipClient;
use mesh_state::proto::node_service_client::NodeServiceClient;
use mesh_state::proto::{RenewExpiredRequest, RenewRequest, RenewResponse, TrustedCas};
use mesh_state::renewal;
use rand::seq::SliceRandom;
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::channel;
use super::identity::{Identity, IdentityError};
use super::managers::Managers;
use super::trusted_cas::ToldCas;
use mesh_runtime::backoff::Backoff;
use mesh_runtime::error_chain;

/// The deadline of a manager's answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often the clock is read: it may be set, and one long sleep would miss the renewal's time.
const CLOCK_INTERVAL: Duration = Duration::from_secs(5);
/// The pause between the news of another role and the renewal.
const ROLE_PAUSE: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_mins(1);

/// Why a manager did not renew this node's certificate.
#[derive(Debug, Error)]
enum RenewalError {
    /// The key or the request could not be made.
    #[error("make a key and a certificate request")]
    Request(#[from] rcgen::Error),
    /// The current certificate, or the new one, can't be read or stored.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The manager could not be reached.
    #[error("connect to manager {manager}")]
    Connect {
        /// The manager's address.
        manager: SocketAddr,
        /// The transport's error.
        #[source]
        source: tonic::transport::Error,
    },
    /// The manager refused the request.
    #[error("manager {manager} refused: {}", status.message())]
    Refused {
        /// The manager's address.
        manager: SocketAddr,
        /// The manager's answer.
        status: Box<tonic::Status>,
    },
    /// The manager did not answer in time.
    #[error("manager {manager} did not answer within {DEADLINE:?}")]
    Deadline {
        /// The manager's address.
        manager: SocketAddr,
    },
    /// The answer isn't a certificate of this node for its key, of a CA that it trusts.
    #[error("manager {manager} sent a certificate that is not for this node's key, or not of a trusted CA")]
    OtherKey {
        /// The manager's address.
        manager: SocketAddr,
    },
}

/// Renews this node's certificate again and again.
pub struct Renewal {
    /// The managers that can renew it.
    pub managers: Managers,
    /// The directory of the identity's file.
    pub data_dir: PathBuf,
    /// The current identity, which only this component writes.
    pub identity: watch::Sender<Identity>,
    /// What managers told of their CAs last.
    pub told: watch::Receiver<Option<ToldCas>>,
}

impl Renewal {
    /// Renews the certificate whenever it is due or a manager says so, and trusts the CAs that
    /// managers tell, until `shutdown`.
    ///
    /// # Errors
    /// The current certificate can't be parsed.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), IdentityError> {
        let mut told = self.told.clone();
        loop {
            let (since, until) = self.identity.borrow().validity()?;
            let due = renewal::moment(since, until, &mut rand::rng());
            tracing::debug!(%until, %due, "this node's certificate");
            let told = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = reached(due) => None,
                () = self.other_role() => {
                    tracing::info!("this node's role has changed: its certificate follows");
                    None
                }
                told = next_told(&mut told) => Some(told),
            };
            match told {
                Some(ToldCas { ca_pem, renew: false }) => self.trust(ca_pem),
                _ => {
                    if shutdown.run_until_cancelled(self.renew()).await.is_none() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Trusts these CAs from now on. If they can't be stored, the next session tells them again.
    fn trust(&self, ca_pem: String) {
        let present = self.identity.borrow().clone();
        if present.ca_pem == ca_pem {
            return;
        }
        let fresh = Identity { ca_pem, ..present };
        let trusts = fresh.trusts();
        // Managers let nodes renew first, so these would shut the node out.
        if !matches!(fresh.issuer(), Ok(Some(_))) {
            tracing::warn!(?trusts, "a manager told CAs of which none signed this node's certificate");
            return;
        }
        match self.keep(fresh) {
            Ok(_) => tracing::info!(?trusts, "the cluster's CAs changed"),
            Err(error) => {
                tracing::error!(error = %error_chain(&error), "can't store the cluster's CAs on disk");
            }
        }
    }

    /// Waits until managers tell another role than the certificate has.
    async fn other_role(&self) {
        let role = self.identity.borrow().role().ok();
        let mut told = self.managers.roles();
        let differs = |told: &Option<String>| told.is_some() && role.is_some() && *told != role;
        if told.wait_for(differs).await.is_err() {
            // The managers are gone with this component.
            std::future::pending::<()>().await;
        }
        // The manager that renewed it last may not have known the new role.
        tokio::time::sleep(ROLE_PAUSE).await;
    }

    /// Asks one manager after the other until one renews the certificate.
    async fn renew(&self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
        loop {
            let mut managers = self.managers.all();
            managers.shuffle(&mut rand::rng());
            for manager in managers {
                let identity = self.identity.borrow().clone();
                match ask(manager, &identity).await.and_then(|fresh| self.keep(fresh)) {
                    Ok(until) => {
                        tracing::info!(%manager, %until, "this node's certificate was renewed");
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(error = %error_chain(&error), "can't renew the certificate; will try again");
                    }
                }
            }
            let wait = backoff.pause(&mut rand::rng());
            tokio::time::sleep(wait).await;
        }
    }

    fn keep(&self, fresh: Identity) -> Result<Timestamp, RenewalError> {
        let (_, until) = fresh.validity()?;
        fresh.store(&self.data_dir)?;
        self.identity.send_replace(fresh);
        Ok(until)
    }
}

/// The next CAs that a manager tells; waits for ever once none can.
async fn next_told(told: &mut watch::Receiver<Option<ToldCas>>) -> ToldCas {
    loop {
        if told.changed().await.is_err() {
            return std::future::pending().await;
        }
        if let Some(told) = told.borrow_and_update().clone() {
            return told;
        }
    }
}

/// Waits until the clock shows `moment`, even if the clock is set meanwhile.
async fn reached(moment: Timestamp) {
    while Utc::now() < moment {
        tokio::time::sleep(CLOCK_INTERVAL).await;
    }
}

/// Asks one manager for a new certificate.
async fn ask(manager: SocketAddr, identity: &Identity) -> Result<Identity, RenewalError> {
    let (_, until) = identity.validity()?;
    let expired = until <= Utc::now();
    // A client can't authenticate with an expired certificate, so its key signs the request.
    let key = if expired { KeyPair::from_pem(&identity.key_pem)? } else { KeyPair::generate()? };
    let csr_pem = CertificateParams::default().serialize_request(&key)?.pem()?;
    let exchange = async {
        let connect = |source| RenewalError::Connect { manager, source };
        let answer = if expired {
            let channel = channel::connect_expired(manager, identity).await.map_err(connect)?;
            let request = RenewExpiredRequest { certificate_pem: identity.certificate_pem.clone(), csr_pem };
            MembershipClient::new(channel).renew_expired(request).await
        } else {
            let channel = channel::connect_member(manager, identity).await.map_err(connect)?;
            NodeServiceClient::new(channel).renew(RenewRequest { csr_pem }).await
        };
        answer.map_err(|status| RenewalError::Refused { manager, status: Box::new(status) })
    };
    let answer = tokio::time::timeout(DEADLINE, exchange).await;
    let RenewResponse { certificate_pem, ca_pem } =
        answer.map_err(|_| RenewalError::Deadline { manager })??.into_inner();
    let fresh = Identity { key_pem: key.serialize_pem(), certificate_pem, ..identity.clone() };
    let told = ToldCas::read(TrustedCas { ca_pem, renew: false });
    let fresh = told.map_or_else(|| fresh.clone(), |told| Identity { ca_pem: told.ca_pem, ..fresh.clone() });
    if !fresh.is_for(&key.subject_public_key_info())? || fresh.issuer()?.is_none() {
        return Err(RenewalError::OtherKey { manager });
    }
    Ok(fresh)
}
