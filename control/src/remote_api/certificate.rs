//! The certificate that managers show to remote clients: renewed before it expires, and whenever
//! the CAs change.
//!
//! Invariant: connections that are open keep what they began with; every new one gets the newest.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use mesh_state::{Timestamp, renewal};
use rustls::crypto::ring;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::verifier::ClientVerifier;
use crate::ca::{CaError, ServerIdentity};
use crate::context::ApiContext;
use crate::feed::snapshot::ClusterSnapshot;
use crate::trust::Trust;

/// How often the clock is checked: it may be set, so a long sleep would miss the moment.
const CLOCK_INTERVAL: Duration = Duration::from_secs(5);

/// Why there is no certificate to serve with.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// The certificate can't be made.
    #[error("make the certificate of the remote Docker API")]
    Sign(#[from] CaError),
    /// A certificate or key that was just made can't be parsed.
    #[error("read the certificate of the remote Docker API")]
    Parse(#[from] rustls_pki_types::pem::Error),
    /// TLS can't use the certificate, or a trusted CA.
    #[error("use the certificate of the remote Docker API")]
    Use(#[from] rustls::Error),
    /// Clients can't be verified by the trusted CAs.
    #[error("verify remote clients by the cluster's CAs")]
    Verifier(#[from] VerifierBuilderError),
}

/// Makes the certificates of this manager's remote API.
pub struct Certificate {
    context: ApiContext,
    trust: watch::Receiver<Arc<Trust>>,
    hosts: Vec<String>,
    newest: watch::Sender<Arc<ServerConfig>>,
    renewed_at: Timestamp,
}

impl Certificate {
    /// Makes the first certificate, which names `hosts`. The receiver follows its renewals.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn new(
        context: ApiContext,
        mut trust: watch::Receiver<Arc<Trust>>,
        hosts: Vec<String>,
    ) -> Result<(Self, watch::Receiver<Arc<ServerConfig>>), CertificateError> {
        let present = Arc::clone(&trust.borrow_and_update());
        let (config, renewed_at) = make(&context, &present, &hosts)?;
        let (newest, follows) = watch::channel(config);
        Ok((Self { context, trust, hosts, newest, renewed_at }, follows))
    }

    /// Renews the certificate until `shutdown`.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub async fn renew(mut self, shutdown: CancellationToken) -> Result<(), CertificateError> {
        loop {
            tokio::select! {
                Ok(()) = self.trust.changed() => {}
                () = reached(self.renewed_at) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            let present = Arc::clone(&self.trust.borrow_and_update());
            let (config, renewed_at) = make(&self.context, &present, &self.hosts)?;
            self.renewed_at = renewed_at;
            self.newest.send_replace(config);
        }
    }
}

/// A TLS configuration with a new certificate, and when that is to be renewed.
fn make(
    context: &ApiContext,
    trust: &Trust,
    hosts: &[String],
) -> Result<(Arc<ServerConfig>, Timestamp), CertificateError> {
    let identity = trust.server.issue_server_for(hosts, context.certificate_life(), Utc::now())?;
    let renewed_at = renewal::moment(identity.since, identity.until, &mut rand::rng());
    info!(until = %identity.until, %renewed_at, ?hosts, "the remote Docker API has a new certificate");
    let config = server_config(&identity, &trust.roots_pem, context.feed.snapshots.clone())?;
    Ok((Arc::new(config), renewed_at))
}

/// A server with this identity, for clients that the cluster knows by certificates of the CAs in
/// `roots_pem`.
fn server_config(
    identity: &ServerIdentity,
    roots_pem: &str,
    snapshots: watch::Receiver<Arc<ClusterSnapshot>>,
) -> Result<ServerConfig, CertificateError> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots_pem.as_bytes()) {
        roots.add(root?)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = ClientVerifier { chain: verifier.build()?, snapshots };
    let chain = CertificateDer::pem_slice_iter(identity.chain_pem.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain, key)?;
    // A resumed session would skip the check of the client's certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Waits until the clock shows `moment`, also if the clock is set in the meantime.
async fn reached(moment: Timestamp) {
    while Utc::now() < moment {
        tokio::time::sleep(CLOCK_INTERVAL).await;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use mesh_state::cluster::Cluster;
    use mesh_state::keys;
    use mesh_state::store::MemoryStore;
    use zeroize::Zeroizing;

    use super::*;
    use crate::ca::root::TrustedRoot;
    use crate::ca::{Authority, MEMBER_LIFE_MIN, create_authority};
    use crate::fixtures::{World, cluster};
    use crate::own_node::OwnNode;
    use crate::seal::Sealer;

    /// A validity of which half passes within a test.
    const LIFE: Duration = Duration::from_secs(4);

    pub(in crate::remote_api) fn trust(cluster: &str) -> Arc<Trust> {
        let new = create_authority(&cluster.into(), Utc::now()).unwrap();
        let authority = Arc::new(Authority::load(&new.certificate_pem, &new.key_pem).unwrap());
        Arc::new(Trust {
            signer: Arc::clone(&authority),
            server: authority,
            roots: vec![TrustedRoot::read(&new.certificate_pem).unwrap()],
            roots_pem: new.certificate_pem,
        })
    }

    pub(in crate::remote_api) fn context() -> ApiContext {
        let mut world = World::with_nodes([]);
        let life = u64::try_from(LIFE.as_nanos()).unwrap();
        world.put(keys::CLUSTER.to_owned(), &Cluster { node_cert_expiry_ns: life, ..cluster() });
        let (_, mut feed) = crate::feed::watch::feed();
        feed.snapshots = watch::channel(Arc::new(world.snapshot)).1;
        let directory = tempfile::tempdir().unwrap();
        ApiContext {
            store: Arc::new(MemoryStore::new()),
            feed,
            manager_name: "m1".to_owned(),
            own_node: OwnNode::load(directory.path()).unwrap(),
            advertise: [127, 0, 0, 1].into(),
            node_port: 0,
            sealer: Arc::new(Sealer::new(&Zeroizing::new([7; 32]))),
            clocks: Arc::default(),
            logs: Arc::default(),
            at_rest: watch::channel(i64::MAX).1,
            certificate_life_min: MEMBER_LIFE_MIN,
            stopping: CancellationToken::new(),
            orders: None,
        }
    }

    #[tokio::test]
    async fn a_certificate_follows_its_ca_and_is_renewed_by_itself() {
        let (cas, trusted) = watch::channel(trust("first"));
        let (certificate, mut newest) =
            Certificate::new(context(), trusted, vec!["127.0.0.1".to_owned()]).unwrap();
        let shutdown = CancellationToken::new();
        let renewing = tokio::spawn(certificate.renew(shutdown.clone()));
        cas.send_replace(trust("second"));
        // At once: far before the first certificate is due.
        let followed = tokio::time::timeout(LIFE / 4, newest.changed()).await;
        followed.expect("a certificate of the new CA").unwrap();
        let renewed = tokio::time::timeout(CLOCK_INTERVAL + LIFE, newest.changed()).await;
        renewed.expect("a certificate in time").unwrap();
        shutdown.cancel();
        renewing.await.unwrap().unwrap();
    }
}
