//! gRPC connections to managers: deadlines, keep-alives, and verification of the manager.
//!
//! Invariant: a manager that vanishes without closing its connections is noticed within three
//! seconds, whatever the stream does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as ClientIdentity};

use super::identity::Identity;
use super::pinned_ca::PinnedCa;
use super::token::JoinToken;

/// The DNS name in every manager's certificate.
const MANAGER_NAME: &str = "mesh-manager";
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_DEADLINE: Duration = Duration::from_secs(2);

/// Connects as a member, with mutual TLS by the cluster's CA.
pub(super) async fn connect_member(
    manager: SocketAddr,
    identity: &Identity,
) -> Result<Channel, tonic::transport::Error> {
    let certificate = ClientIdentity::from_pem(&identity.certificate_pem, &identity.key_pem);
    let tls = trusting(identity).identity(certificate);
    endpoint(manager)?.tls_config(tls)?.connect().await
}

/// Connects as a member whose certificate has expired, and which therefore sends none.
pub(super) async fn connect_expired(
    manager: SocketAddr,
    identity: &Identity,
) -> Result<Channel, tonic::transport::Error> {
    endpoint(manager)?.tls_config(trusting(identity))?.connect().await
}

/// TLS to a manager that the cluster's CA vouches for, without a certificate of this node.
fn trusting(identity: &Identity) -> ClientTlsConfig {
    ClientTlsConfig::new()
        .domain_name(MANAGER_NAME)
        .ca_certificate(Certificate::from_pem(&identity.ca_pem))
        .timeout(CONNECT_DEADLINE)
}

/// Connects before this node is a member: the manager must prove that it has the CA that the token
/// names.
pub(super) async fn connect_stranger(
    manager: SocketAddr,
    token: &JoinToken,
) -> Result<Channel, tonic::transport::Error> {
    let tls = ClientTlsConfig::new().domain_name(MANAGER_NAME).timeout(CONNECT_DEADLINE);
    let verifier = Arc::new(PinnedCa::new(token.ca_digest()));
    endpoint(manager)?.tls_config_with_verifier(tls, verifier)?.connect().await
}

fn endpoint(manager: SocketAddr) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("https://{manager}"))?
        .connect_timeout(CONNECT_DEADLINE)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(KEEP_ALIVE_INTERVAL))
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_DEADLINE)
        .keep_alive_while_idle(true))
}
