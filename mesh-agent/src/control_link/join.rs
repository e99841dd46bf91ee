//! Joins the cluster: makes a key and a certificate request, which a manager signs.
//!
//! Invariants: the key is made here and never sent; only the CA digest in the token proves the
//! manager.

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
use super::token::{JoinToken, certificate_digest};

const JOIN_DEADLINE: Duration = Duration::from_secs(10);

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

/// Asks one manager to admit this node.
///
/// # Errors
/// See [`JoinError`]; another manager, or a later attempt, may succeed unless the token was
/// refused.
pub async fn join(manager: SocketAddr, token: &JoinToken, hostname: &str) -> Result<Identity, JoinError> {
    let key = KeyPair::generate()?;
    let csr_pem = CertificateParams::new(vec![hostname.to_owned()])?.serialize_request(&key)?.pem()?;
    let request =
        proto::JoinRequest { token: token.as_str().to_owned(), csr_pem, hostname: hostname.to_owned() };
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
