//! Serves the Docker API to clients on other machines, over mutual TLS.
//!
//! Purpose: `docker -H tcp://MANAGER:2376 --tlsverify …` with a certificate of `mesh client
//! create`.
//!
//! Invariants: a client is known before the first byte of a request is read: its certificate is of
//! a CA that the cluster trusts now, is a client's and not a node's, and the cluster's record of
//! the client names it; a connection ends as soon as one of these no longer holds; sessions are
//! never resumed, as that would skip the check; a client that isn't admitted gets a TLS alert or a
//! closed connection, never an answer in clear.
//!
//! Left to others: what is served (`api`), and issuing and revoking certificates (`api::clients`).

mod certificate;
mod standing;
mod verifier;

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use mesh_admission::accept;
use mesh_admission::door::{Door, Place};
use mesh_admission::http::{self, Classify};
use mesh_admission::refusals::Reason;
use mesh_admission::stream::Admitted;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use crate::feed::snapshot::ClusterSnapshot;
use crate::trust::Trust;
pub use certificate::{Certificate, CertificateError};
use standing::Standing;

/// How long a connection may be idle before the kernel probes it.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long open connections may go on after shutdown.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// How long a refused client may take to read why.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);
/// The most bytes of a refused client that are read and dropped.
const FAREWELL_BYTES: u64 = 64 << 10;

/// The name of the client that sent a request, in the request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteCaller(pub Arc<str>);

/// The listener for remote clients.
pub struct RemoteApi {
    /// The socket that they connect to.
    pub listener: TcpListener,
    /// Admits connections, and counts those that are refused.
    pub door: Arc<Door>,
    /// The newest TLS configuration, which [`Certificate::renew`] keeps.
    pub tls: watch::Receiver<Arc<ServerConfig>>,
    /// Who may connect.
    pub snapshots: watch::Receiver<Arc<ClusterSnapshot>>,
    /// The CAs that are trusted.
    pub trust: watch::Receiver<Arc<Trust>>,
}

impl RemoteApi {
    /// Serves clients with `service` until `shutdown`, then gives open connections a moment to
    /// finish.
    pub async fn serve<S, B>(self, classify: Classify, service: S, shutdown: CancellationToken)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let api = Arc::new(self);
        let connections = TaskTracker::new();
        loop {
            let taken = shutdown.run_until_cancelled(accept::next(&api.listener, &api.door)).await;
            let Some((stream, peer)) = taken else { break };
            // Whoever finds no room is closed without an answer: it has shown nothing yet.
            let Ok(place) = api.door.admit(peer) else { continue };
            let (api, service, shutdown) = (Arc::clone(&api), service.clone(), shutdown.clone());
            connections.spawn(async move {
                let place = Arc::new(place);
                let shaken = shutdown.run_until_cancelled(api.shake(stream, &place, peer)).await;
                let Some(Some((stream, standing))) = shaken else { return };
                api.serve_client((stream, standing), place, classify, service, shutdown).await;
            });
        }
        connections.close();
        if tokio::time::timeout(DRAIN_LIMIT, connections.wait()).await.is_err() {
            debug!(open = connections.len(), "closing remote clients' connections that are still open");
        }
    }

    /// The TLS handshake, within the time that a client may wait. A failure is counted and logged.
    async fn shake(
        &self,
        stream: TcpStream,
        place: &Arc<Place>,
        peer: Option<SocketAddr>,
    ) -> Option<(TlsStream<Admitted<TcpStream>>, Standing)> {
        let of = peer.map_or_else(|| "an unknown address".to_owned(), |peer| peer.to_string());
        if let Err(error) = accept::keep_alive(&stream, KEEPALIVE) {
            debug!(%error, "watch a remote client's connection");
        }
        let acceptor = TlsAcceptor::from(Arc::clone(&self.tls.borrow()));
        let stream = Admitted::new(stream, Arc::clone(place), false);
        let limit = self.door.figures().wait;
        match tokio::time::timeout(limit, acceptor.accept(stream).into_fallible()).await {
            Ok(Ok(stream)) => {
                let standing = self.standing(&stream);
                if standing.is_none() {
                    self.door.refuse(Reason::Stranger, &format_args!("{of}: it was revoked meanwhile"));
                }
                standing.map(|standing| (stream, standing))
            }
            // Its eviction was counted.
            Ok(Err(_)) if place.evicted().is_cancelled() => None,
            Ok(Err((error, stream))) => {
                self.door.refuse(Reason::Stranger, &format_args!("{of}: {error}"));
                let left = tokio::time::timeout(FAREWELL_LIMIT, farewell(stream)).await;
                if let Ok(Err(error)) = left {
                    debug!(%error, "close the connection of a refused client");
                }
                None
            }
            Err(_) => {
                self.door.refuse(Reason::WaitedTooLong, &format_args!("the TLS handshake of {of}"));
                None
            }
        }
    }

    /// What the client's right depends on; `None` if it has been revoked since the handshake
    /// checked it.
    fn standing(&self, stream: &TlsStream<Admitted<TcpStream>>) -> Option<Standing> {
        let certificate = stream.get_ref().1.peer_certificates()?.first()?;
        Standing::of(&self.snapshots.borrow(), certificate)
    }

    /// Serves a client until it leaves or loses its right.
    async fn serve_client<S, B>(
        &self,
        (stream, standing): (TlsStream<Admitted<TcpStream>>, Standing),
        place: Arc<Place>,
        classify: Classify,
        service: S,
        shutdown: CancellationToken,
    ) where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + Sync + 'static,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let caller = RemoteCaller(Arc::from(standing.name()));
        let named = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(caller.clone());
            service.call(request)
        });
        tokio::select! {
            () = http::serve_one(stream, place, classify, named, shutdown) => {}
            lost = standing.lost(self.snapshots.clone(), self.trust.clone()) => {
                info!(client = standing.name(), reason = %lost, "closed a remote client's connection");
            }
        }
    }
}

/// Closes a refused client's connection after the alert that says why. What the client has sent is
/// read first: closing with unread bytes would reset the connection, and the alert would be lost.
async fn farewell(mut stream: Admitted<TcpStream>) -> io::Result<()> {
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(FAREWELL_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

#[cfg(test)]
mod tests;
