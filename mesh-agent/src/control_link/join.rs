//! Joins the cluster: makes a key and a certificate request, which a manager signs.
//!
//! Invariants: the key is made here and never sent; only the CA digest in the token proves the
//! manager.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_state::proto;
use mesh_state::proto::membership_client::MembershipClient;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;

use super::channel::connect_stranger;
use super::identity::Identity;
use super::pinned_ca;
use super::token::{JoinToken, certificate_digest};

const JOIN_DEADLINE: Duration = Duration::from_secs(10);

/// What a node says of itself as it joins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Newcomer {
    /// Its name in the cluster, as it says it itself.
    pub hostname: String,
    /// The availability that it begins with: `active`, `pause` or `drain`; empty: `active`.
    pub availability: String,
}

impl From<&str> for Newcomer {
    /// A node that begins as an active one.
    fn from(hostname: &str) -> Self {
        Self { hostname: hostname.to_owned(), availability: String::new() }
    }
}

/// Why a manager did not make this node a member.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The key or the request could not be made.
    #[error("make a key and a certificate request")]
    Request(#[from] rcgen::Error),
    /// The manager could not be reached, or is not of the cluster that the token names.
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
    #[error("manager {manager} did not answer within {JOIN_DEADLINE:?}")]
    Deadline {
        /// The manager's address.
        manager: SocketAddr,
    },
    /// The answer holds another CA than the one that the token pins.
    #[error("manager {manager} sent another CA than it proved itself with")]
    OtherCa {
        /// The manager's address.
        manager: SocketAddr,
    },
}

impl JoinError {
    /// Whether the manager is of another cluster than the token.
    pub fn is_other_ca(&self) -> bool {
        matches!(self, Self::OtherCa { .. }) || has_cause(self, pinned_ca::is_unknown_ca)
    }

    /// Whether nobody listens at the manager's address.
    pub fn is_connection_refused(&self) -> bool {
        has_cause(self, |cause| {
            let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
            cause.downcast_ref::<io::Error>().is_some_and(refused)
        })
    }
}

/// Whether `wanted` holds for an error or one of its causes. An `io::Error` may wrap another error,
/// which isn't among its causes.
fn has_cause(error: &(dyn Error + 'static), wanted: fn(&(dyn Error + 'static)) -> bool) -> bool {
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    wanted(error)
        || wrapped.is_some_and(|inner| has_cause(inner, wanted))
        || error.source().is_some_and(|cause| has_cause(cause, wanted))
}

/// Asks one manager to admit this node.
///
/// # Errors
/// See [`JoinError`]; another manager, or a later attempt, may succeed unless the token was
/// refused.
pub async fn join(
    manager: SocketAddr,
    token: &JoinToken,
    newcomer: impl Into<Newcomer>,
) -> Result<Identity, JoinError> {
    let newcomer = newcomer.into();
    let key = KeyPair::generate()?;
    let csr_pem = CertificateParams::new(vec![newcomer.hostname.clone()])?.serialize_request(&key)?.pem()?;
    let request = proto::JoinRequest {
        token: token.as_str().to_owned(),
        csr_pem,
        hostname: newcomer.hostname,
        availability: newcomer.availability,
    };
    let exchange = async {
        let channel = connect_stranger(manager, token)
            .await
            .map_err(|source| JoinError::Connect { manager, source })?;
        MembershipClient::new(channel)
            .join(request)
            .await
            .map_err(|status| JoinError::Refused { manager, status: Box::new(status) })
    };
    let response = tokio::time::timeout(JOIN_DEADLINE, exchange)
        .await
        .map_err(|_| JoinError::Deadline { manager })??
        .into_inner();
    let pinned = CertificateDer::from_pem_slice(response.ca_pem.as_bytes())
        .is_ok_and(|ca| certificate_digest(&ca) == token.ca_digest());
    if !pinned {
        return Err(JoinError::OtherCa { manager });
    }
    Ok(Identity {
        node_id: response.node_id.into(),
        key_pem: key.serialize_pem(),
        certificate_pem: response.certificate_pem,
        ca_pem: response.ca_pem,
    })
}
