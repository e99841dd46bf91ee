//! Joining: a token for a certificate.
//!
//! Invariants: a wrong token tells nothing but that it is wrong; the node's record exists before its certificate is sent; the node's
//! key never leaves the node.
//!
//! Left to others: the node's address and description, which its first session brings.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use mesh_state::codec;
use mesh_state::ids::NodeId;
use mesh_state::keys;
use mesh_state::node::{Availability, Node, NodeDescription, NodeRole, NodeSpec};
use mesh_state::proto::membership_server::Membership;
use mesh_state::proto::{JoinRequest, JoinResponse};
use mesh_state::store::{Compare, Op, TxnOutcome};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::ca::Authority;
use crate::context::ApiContext;

/// How long the new node may take to show in the snapshot.
const SEEN_DEADLINE: Duration = Duration::from_secs(3);
/// Longest hostname taken (Linux knows up to 64 characters, names in DNS up to 253).
const HOSTNAME_LENGTH: usize = 253;

/// Admits nodes.
pub struct Admission {
    /// The cluster.
    pub context: ApiContext,
    /// Signs members' certificates.
    pub authority: Arc<Authority>,
}

#[tonic::async_trait]
impl Membership for Admission {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let tokens = self.context.join_tokens().map_err(|error| Status::unavailable(error.to_string()))?;
        let Some(role) = tokens.role_of(&request.token) else {
            warn!(?peer, hostname = request.hostname, "refused a wrong join token");
            return Err(Status::permission_denied(
                "the join token is not this cluster's: get one with `docker swarm join-token worker`",
            ));
        };
        if request.hostname.is_empty() || request.hostname.len() > HOSTNAME_LENGTH {
            return Err(Status::invalid_argument(format!(
                "a hostname has 1 to {HOSTNAME_LENGTH} characters"
            )));
        }
        let id = NodeId::random(&mut rand::rng());
        let certificate_pem = self
            .authority
            .sign_member(&request.csr_pem, &id, role, Utc::now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.record(&id, role, &request.hostname).await?;
        info!(node = %id, hostname = request.hostname, role = role.as_str(), ?peer, "a node joined");
        Ok(Response::new(JoinResponse {
            node_id: id.to_string(),
            certificate_pem,
            ca_pem: self.authority.certificate_pem().to_owned(),
        }))
    }
}

impl Admission {
    async fn record(&self, id: &NodeId, role: NodeRole, hostname: &str) -> Result<(), Status> {
        let now = Utc::now();
        let node = Node {
            id: id.clone(),
            spec: NodeSpec { role, availability: Availability::Active, ..NodeSpec::default() },
            description: NodeDescription { hostname: hostname.to_owned(), ..NodeDescription::default() },
            address: None,
            subnet: None,
            created_at: now,
            updated_at: now,
        };
        let value = codec::encode(&node).map_err(|error| Status::internal(error.to_string()))?;
        let key = keys::node(id);
        let outcome =
            self.context.store.txn(vec![Compare::Absent(key.clone())], vec![Op::put(key, value)]).await;
        match outcome {
            Ok(TxnOutcome::Committed(revision)) => {
                // So that the session that follows finds it here; another manager catches up by itself.
                if let Err(late) = self.context.wait_for_revision(revision, SEEN_DEADLINE).await {
                    warn!(node = %id, %late, "the new node doesn't show yet");
                }
                Ok(())
            }
            Ok(TxnOutcome::Conflict) => Err(Status::already_exists(format!("node {id} exists: join again"))),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }
}
