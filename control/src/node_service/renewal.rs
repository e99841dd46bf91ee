//! Renewing a member's certificate.
//!
//! Invariants: only a member of the cluster gets one, and in the role that the cluster gives it
//! now; a renewed certificate says nothing that its request asked for but the key.

use chrono::Utc;
use mesh_state::ids::NodeId;
use mesh_state::node::Node;
use mesh_state::proto::{RenewExpiredRequest, RenewResponse};
use mesh_state::{codec, keys};
use tonic::{Response, Status};
use tracing::info;

use super::end::not_a_member;
use super::membership::Admission;

/// Longest certificate or request taken, bytes: far more than one of a P-256 key has.
const PEM_BYTES: usize = 8 << 10;

impl Admission {
    /// A new certificate for `id`, which proved itself by one that is good.
    ///
    /// # Errors
    /// It is no member any more, its request is none, or the store is away.
    pub(super) async fn renew(&self, id: &NodeId, csr_pem: &str) -> Result<Response<RenewResponse>, Status> {
        check_length(csr_pem)?;
        let key = keys::node(id);
        let stored = self.context.store.get(&key).await;
        let item = stored.map_err(|error| Status::unavailable(error.to_string()))?;
        let item = item.ok_or_else(|| not_a_member(id))?;
        let node: Node =
            codec::decode(&item.value).map_err(|error| Status::internal(format!("read {key}: {error}")))?;
        let certificate_pem = self
            .authority
            .sign_member(csr_pem, id, node.spec.role, self.context.certificate_life(), Utc::now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        info!(node = %id, "a member's certificate was renewed");
        Ok(Response::new(RenewResponse { certificate_pem }))
    }

    /// A new certificate for a member whose certificate has expired.
    ///
    /// # Errors
    /// As for [`Admission::renew`], and when the request doesn't come from the certificate's
    /// holder, or too late.
    pub(super) async fn renew_expired(
        &self,
        request: RenewExpiredRequest,
    ) -> Result<Response<RenewResponse>, Status> {
        check_length(&request.certificate_pem)?;
        check_length(&request.csr_pem)?;
        let holder = self.authority.holder_of(&request.certificate_pem, &request.csr_pem, Utc::now());
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
