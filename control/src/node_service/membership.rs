//! Joining: exchanges a token for a certificate.
//!
//! Invariants: anybody may call, so sizes are checked first, calls and log lines are rate limited,
//! and logged text is escaped and cut; the answer to a wrong token says nothing but that it is
//! wrong; the node's record exists before its certificate is sent; the node's private key never
//! leaves the node.
//!
//! Left to others: the node's address and description, which its first session brings.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::Utc;
use mesh_admission::door::Door;
use mesh_admission::figures::{join, report};
use mesh_admission::rate::Rates;
use mesh_admission::refusals::Reason;
use mesh_admission::register::Peer;
use mesh_admission::text::Outside;
use mesh_state::codec;
use mesh_state::ids::NodeId;
use mesh_state::keys;
use mesh_state::node::{Availability, Node, NodeDescription, NodeSpec};
use mesh_state::proto::membership_server::Membership;
use mesh_state::proto::{JoinRequest, JoinResponse, RenewExpiredRequest, RenewResponse};
use mesh_state::store::{Compare, Op, TxnOutcome};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::issued::Issued;
use super::own_etcd::OwnEtcd;
use crate::context::ApiContext;
use crate::trust::Trust;

/// The deadline for the new node to show in the snapshot.
const SEEN_DEADLINE: Duration = Duration::from_secs(3);

/// Admits nodes to the cluster.
pub struct Admission {
    /// The store and the snapshot of the cluster that nodes join.
    pub context: ApiContext,
    /// Signs members' certificates.
    pub trust: watch::Receiver<Arc<Trust>>,
    /// The limits of the node service's clients.
    pub door: Arc<Door>,
    /// Counts the calls of each address.
    pub rates: JoinRates,
    /// The etcd that this manager runs; `None` with an etcd of the operator's.
    pub own_etcd: Option<OwnEtcd>,
    /// Counts the certificates that this manager issues.
    pub issued: Issued,
}

/// The rate limit of join calls for each address.
#[derive(Debug)]
pub struct JoinRates(Mutex<Rates<Peer>>);

impl Default for JoinRates {
    fn default() -> Self {
        Self(Mutex::new(Rates::new(join::A_SECOND, join::AT_ONCE, join::PEERS)))
    }
}

impl JoinRates {
    fn take(&self, address: IpAddr) -> bool {
        let mut rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rates.take(&Peer::of(address), Instant::now())
    }
}

#[tonic::async_trait]
impl Membership for Admission {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let peer = request.remote_addr();
        if peer.is_some_and(|peer| !self.rates.take(peer.ip())) {
            self.door.refuse(Reason::Rate, &format_args!("calls to join of {peer:?}"));
            return Err(Status::resource_exhausted(
                "this address asks to join too often: wait a few seconds, then try again",
            ));
        }
        let request = request.into_inner();
        if let Err(error) = check_lengths(&request) {
            self.door.refuse(Reason::TooLarge, &format_args!("a call to join of {peer:?}"));
            return Err(error);
        }
        let tokens = self.context.join_tokens().map_err(|error| Status::unavailable(error.to_string()))?;
        let Some(role) = tokens.role_of(&request.token) else {
            let what = format!("a wrong join token of {peer:?}, hostname {}", request.hostname);
            self.door.refuse(Reason::Stranger, &what);
            return Err(Status::permission_denied(
                "the join token is not this cluster's: get one with `docker swarm join-token worker`",
            ));
        };
        let availability = availability(&request.availability)?;
        let id = NodeId::random(&mut rand::rng());
        let trust = self.trust();
        let certificate_pem = trust
            .signer
            .sign_member(&request.csr_pem, &id, role, self.context.certificate_life(), Utc::now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let description = NodeDescription {
            hostname: request.hostname.clone(),
            certificate_issuer: trust.signer.digest(),
            trusts: trust.roots.iter().map(|root| root.digest.clone()).collect(),
            ..NodeDescription::default()
        };
        self.record(&id, NodeSpec { role, availability, ..NodeSpec::default() }, description).await?;
        self.issued.joined.inc();
        info!(node = %id, hostname = %Outside(&request.hostname), role = role.as_str(), ?peer, "a node joined");
        Ok(Response::new(JoinResponse {
            node_id: id.to_string(),
            certificate_pem,
            ca_pem: trust.roots_pem.clone(),
        }))
    }

    async fn renew_expired(
        &self,
        request: Request<RenewExpiredRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        Admission::renew_expired(self, request.into_inner()).await
    }
}

/// Refuses oversized fields before anything of them is used or logged.
fn check_lengths(request: &JoinRequest) -> Result<(), Status> {
    let figures = [
        ("the join token", request.token.len(), join::TOKEN_BYTES),
        ("the certificate request", request.csr_pem.len(), join::REQUEST_BYTES),
        ("the hostname", request.hostname.len(), report::HOSTNAME_BYTES),
    ];
    for (what, length, most) in figures {
        if length == 0 || length > most {
            return Err(Status::invalid_argument(format!("{what} has {length} bytes, not 1 to {most}")));
        }
    }
    Ok(())
}

/// The availability that a node asks for as it joins; an agent that asks for none takes tasks.
fn availability(asked: &str) -> Result<Availability, Status> {
    match asked {
        "" | "active" => Ok(Availability::Active),
        "pause" => Ok(Availability::Pause),
        "drain" => Ok(Availability::Drain),
        _ => Err(Status::invalid_argument(
            "the availability of a node that joins is active, pause or drain".to_owned(),
        )),
    }
}

impl Admission {
    /// The CAs as they are now.
    pub(super) fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust.borrow())
    }

    async fn record(&self, id: &NodeId, spec: NodeSpec, description: NodeDescription) -> Result<(), Status> {
        let now = Utc::now();
        let node = Node {
            id: id.clone(),
            spec,
            description,
            address: None,
            subnet: None,
            created_at: now,
            updated_at: now,
            spec_written_after: Some(0),
        };
        let value = codec::encode(&node).map_err(|error| Status::internal(error.to_string()))?;
        let key = keys::node(id);
        let outcome =
            self.context.store.txn(vec![Compare::Absent(key.clone())], vec![Op::put(key, value)]).await;
        match outcome {
            Ok(TxnOutcome::Committed(revision)) => {
                // So that this manager knows the node when its session comes; other managers catch
                // up by their own watch.
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
