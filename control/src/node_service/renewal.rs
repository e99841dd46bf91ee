//! Renews a member's certificate.
//!
//! Invariants: only a member of the cluster gets one, with the role that the cluster gives it now;
//! the new certificate takes nothing but the key from its request.

use chrono::Utc;
use mesh_state::ids::NodeId;
use mesh_state::node::Node;
use mesh_state::proto::{RenewExpiredRequest, RenewResponse};
use mesh_state::{codec, keys};
use tonic::{Response, Status};
use tracing::info;

use super::end::not_a_member;
use super::membership::Admission;
use crate::ca::expired::holder_of;

/// The longest certificate or request that is accepted, bytes: far more than one of a P-256 key
/// has.
const PEM_BYTES: usize = 8 << 10;

impl Admission {
    /// A new certificate for the member `id`, whose present one is valid.
    ///
    /// # Errors
    /// It is no member any more, its request is invalid, or the store is unreachable.
    pub(super) async fn renew(&self, id: &NodeId, csr_pem: &str) -> Result<Response<RenewResponse>, Status> {
        check_length(csr_pem)?;
        let key = keys::node(id);
        let stored = self.context.store.get(&key).await;
        let item = stored.map_err(|error| Status::unavailable(error.to_string()))?;
        let item = item.ok_or_else(|| not_a_member(id))?;
        let node: Node =
            codec::decode(&item.value).map_err(|error| Status::internal(format!("read {key}: {error}")))?;
        let trust = self.trust();
        let certificate_pem = trust
            .signer
            .sign_member(csr_pem, id, node.spec.role, self.context.certificate_life(), Utc::now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.issued.renewed.inc();
        info!(node = %id, "a member's certificate was renewed");
        Ok(Response::new(RenewResponse { certificate_pem, ca_pem: trust.roots_pem.clone() }))
    }

    /// A new certificate for a member whose certificate has expired.
    ///
    /// # Errors
    /// As for [`Admission::renew`], and if the request doesn't come from the certificate's holder,
    /// or comes too late.
    pub(super) async fn renew_expired(
        &self,
        request: RenewExpiredRequest,
    ) -> Result<Response<RenewResponse>, Status> {
        check_length(&request.certificate_pem)?;
        check_length(&request.csr_pem)?;
        let roots = &self.trust().roots;
        let holder = holder_of(roots, &request.certificate_pem, &request.csr_pem, Utc::now());
        let id = holder.map_err(|error| Status::permission_denied(error.to_string()))?;
        self.renew(&id, &request.csr_pem).await
    }
}

fn check_length(pem: &str) -> Result<(), Status> {
    if pem.len() > PEM_BYTES {
        return Err(Status::invalid_argument(format!(
            "a certificate or request has at most {PEM_BYTES} bytes"
        )));
    }
    Ok(())
}
