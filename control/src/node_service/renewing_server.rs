//! The gRPC server for nodes, whose certificate is renewed and whose CAs change while it serves.
//!
//! A TLS server keeps the certificate and the CAs that it began with, so each has a server of its
//! own on the same socket: the new one accepts all further connections, and the one before serves
//! its connections to their end. No session is cut.
//!
//! Invariant: at any time one server accepts.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::Utc;
use mesh_state::ca::ManagerCas;
use mesh_state::{Timestamp, renewal};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use super::issued::Issued;
use super::membership::Admission;
use super::sessions::Sessions;
use crate::ca::CaError;

/// How often the clock is checked: it may be set, so a long sleep would miss the moment.
const CLOCK_INTERVAL: Duration = Duration::from_secs(5);

/// Why the server ended.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The certificate can't be made.
    #[error("make the server's certificate")]
    Certificate(#[from] CaError),
    /// The servers of two certificates can't share the socket.
    #[error("share the nodes' socket")]
    Socket(#[from] std::io::Error),
    /// The server failed.
    #[error("serve nodes")]
    Server(#[from] tonic::transport::Error),
    /// The server panicked.
    #[error("the nodes' server panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

/// When the server's certificate expires, for metrics: seconds since 1970, 0 before there is one.
pub type ServerExpiry = Arc<AtomicI64>;

/// The server for nodes.
pub struct RenewingServer {
    /// The socket that nodes connect to.
    pub listener: TcpListener,
    /// The address in the certificate.
    pub advertise: IpAddr,
    /// Admits nodes; its CAs sign the server's certificates and are those of nodes.
    pub admission: Arc<Admission>,
    /// Says which CAs the server has.
    pub cas: watch::Sender<ManagerCas>,
    /// The nodes' sessions.
    pub sessions: Arc<Sessions>,
    /// Set at each new certificate.
    pub expiry: ServerExpiry,
    /// Counts the certificates that this manager issues.
    pub issued: Issued,
    /// Tracks servers that still have connections.
    pub tracker: TaskTracker,
}

impl RenewingServer {
    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let socket = self.listener.into_std()?;
        let mut trust = self.admission.trust.clone();
        loop {
            let now = Utc::now();
            let newest = Arc::clone(&trust.borrow_and_update());
            let life = self.admission.context.certificate_life();
            let identity = newest.server.issue_server(self.advertise, life, now)?;
            self.expiry.store(identity.until.timestamp(), Ordering::Relaxed);
            self.issued.server.inc();
            let renewed_at = renewal::moment(identity.since, identity.until, &mut rand::rng());
            info!(until = %identity.until, %renewed_at, "the nodes' server has a new certificate");
            let accepting = shutdown.child_token();
            let listener = TcpListener::from_std(socket.try_clone()?)?;
            let (admission, sessions) = (Arc::clone(&self.admission), Arc::clone(&self.sessions));
            let (said, accepts) = (newest.said(), accepting.clone());
            let mut server = self.tracker.spawn(async move {
                let tls = (identity, newest.roots_pem.as_str());
                super::serve(listener, tls, admission, sessions, accepts).await
            });
            self.cas.send_replace(said);
            tokio::select! {
                ended = &mut server => return Ok(ended.map_err(ServeError::Panicked)??),
                Ok(()) = trust.changed() => accepting.cancel(),
                () = reached(renewed_at) => accepting.cancel(),
            }
        }
    }
}

/// Waits until the clock shows `moment`, also if the clock is set in the meantime.
async fn reached(moment: Timestamp) {
    while Utc::now() < moment {
        tokio::time::sleep(CLOCK_INTERVAL).await;
    }
}
