//! The gRPC service for nodes, over mutual TLS.
//!
//! Purpose: admit nodes that hold a token, and keep one session with each member: assignments,
//! secrets and configs, and the mesh table go down, statuses and acknowledgements come up, and the
//! session shows whether the node is heard.
//!
//! Invariants: a session reads snapshots and never waits for the store, so it goes on while etcd is
//! unreachable; one [`recorder`] per manager writes everything that nodes report; a node that was
//! removed is refused at once, and its session is cut.
//!
//! Left to others: what nodes are to run, and when a silent one is down.

mod address;
pub mod assignments;
mod attachments;
mod deliveries;
mod end;
mod ends;
pub mod issued;
mod leaving;
pub mod loads;
mod logs;
pub mod mailbox;
pub mod membership;
pub mod mesh_table;
pub mod new_manager;
pub mod own_etcd;
pub mod recorder;
mod renewal;
pub mod renewing_server;
pub mod session;
pub mod session_context;
pub mod sessions;
pub mod tables;

use std::sync::Arc;
use std::time::Duration;

use mesh_admission::accept;
use mesh_admission::figures::{join, report};
use mesh_state::proto::membership_server::MembershipServer;
use mesh_state::proto::node_service_server::NodeServiceServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::ca::ServerIdentity;
use membership::Admission;
use sessions::{SessionService, Sessions};

/// A peer that doesn't answer a ping within this is disconnected.
const PING_DEADLINE: Duration = Duration::from_secs(2);
/// How often idle connections are pinged.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// The deadline of a TLS handshake and of a join.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// The most streams of one connection.
const STREAMS_PER_CONNECTION: u32 = 16;

/// Serves nodes with certificates of the CAs `roots_pem` on `listener`: accepts until `shutdown`,
/// then serves what it accepted to its end.
///
/// # Errors
/// The TLS identity can't be used, or the server failed.
pub async fn serve(
    listener: TcpListener,
    (identity, roots_pem): (ServerIdentity, &str),
    admission: Arc<Admission>,
    sessions: Arc<Sessions>,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(&identity.chain_pem, identity.key_pem.as_bytes()))
        .client_ca_root(Certificate::from_pem(roots_pem))
        // A node that joins has no certificate yet; sessions check for one themselves.
        .client_auth_optional(true)
        .timeout(REQUEST_DEADLINE);
    let incoming = accept::proven(listener, Arc::clone(&sessions.context.door), PING_INTERVAL);
    Server::builder()
        .tls_config(tls)?
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_DEADLINE))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .add_service(
            MembershipServer::from_arc(Arc::clone(&admission)).max_decoding_message_size(join::MESSAGE_BYTES),
        )
        .add_service(
            NodeServiceServer::new(SessionService(sessions, admission))
                .max_decoding_message_size(report::WIRE_BYTES),
        )
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
        .await
}
