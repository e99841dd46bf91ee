//! Errors of the Docker API: clients get Docker's `{"message": …}`.
//!
//! Invariant: one explicit map from error to status ([`ApiError::status`]); the message names the
//! socket and the next step.

use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use thiserror::Error;
use tonic::Code;

use super::Body;
use super::promotion::Promotion;
use crate::control_link::attach::AttachError;
use crate::enrolment::{EnrolmentError, LocalState};
use crate::task::networks::keeper::NetworkError;

/// Swarm's answer to a swarm call on a node that is no manager.
pub(super) const NOT_A_MANAGER: &str = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. \
                                        Please run this command on a manager node or promote the current node to a manager.";

/// Swarm's answer to a swarm call on a node that is in no cluster.
const NO_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to \
                        swarm and try again.";

/// The answer to a swarm call on a manager whose mesh-control doesn't run. A worker's answer would
/// send an operator to promote a node that is a manager already.
const MANAGER_AWAY: &str = "This node is a swarm manager, but its mesh-control doesn't run, or has only begun to start. Ask another \
                            manager meanwhile; systemctl status mesh-control and its journal on this node say why.";

/// The upstreams of the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// The local Docker engine.
    Engine,
    /// mesh-control on this node.
    Control,
}

/// Why a call was not answered by its upstream.
#[derive(Debug, Error)]
pub(super) enum ApiError {
    /// No manager runs on this node.
    #[error("{NOT_A_MANAGER}")]
    NotAManager,
    /// The node is a manager, and its mesh-control doesn't answer.
    #[error("{MANAGER_AWAY}")]
    ManagerAway,
    /// The node is in no cluster.
    #[error("{NO_SWARM}")]
    NoSwarm,
    /// No manager on this node can make a cluster.
    #[error(
        "no manager waits for docker swarm init on this node: install the package mesh-control, or start it with: systemctl start \
         mesh-control"
    )]
    NoInit,
    /// The manager on this node refused to make a cluster.
    #[error("{message}")]
    Founding {
        /// Its answer's status.
        status: StatusCode,
        /// Its reason, for the client.
        message: String,
    },
    /// The node can't join or leave.
    #[error(transparent)]
    Enrolment(#[from] EnrolmentError),
    /// A cluster network is to be created where no manager runs.
    #[error(
        "Cannot create a multi-host network from a worker node. Please create the network from a manager node."
    )]
    NetworkOnWorker,
    /// The other of engine and cluster already has a network of this name.
    #[error("network with name {0} already exists")]
    NetworkExists(String),
    /// The engine and the cluster each have a network that matches.
    #[error("network {query} is ambiguous (2 matches found based on {basis})")]
    AmbiguousNetwork {
        /// The network as the client named it.
        query: String,
        /// What matches: id, name or the beginning of an id.
        basis: &'static str,
    },
    /// Neither the engine nor the cluster has such a network.
    #[error("network {0} not found")]
    NoSuchNetwork(String),
    /// Only members of a cluster get addresses on its networks.
    #[error("network {0} not manually attachable here: this node's agent has not joined its cluster yet")]
    NotJoined(String),
    /// No manager gave an address on a network.
    #[error("Could not attach to network {network}: {source}")]
    Attach {
        /// The network as the client named it.
        network: String,
        /// Why not.
        source: AttachError,
    },
    /// The network's bridge can't be made on this node.
    #[error("Could not attach to network {network}: {source}")]
    NoBridge {
        /// The network as the client named it.
        network: String,
        /// What is in the way.
        source: NetworkError,
    },
    /// The client chose an IPv6 address; it follows from the IPv4 address.
    #[error(
        "Could not attach to network {network} at {address}: an IPv6 address ends with the IPv4 address, choose that by --ip and leave --ip6 out"
    )]
    ChosenIpv6 {
        /// The network as the client named it.
        network: String,
        /// The address that the client chose.
        address: String,
    },
    /// The manager gave another address than the client chose: it is too old to be asked for one.
    #[error("Could not attach to network {network} at {address}: upgrade the managers, or leave --ip out")]
    OtherAddress {
        /// The network as the client named it.
        network: String,
        /// The address that the client chose.
        address: String,
    },
    /// A task's container is to be connected to a cluster network.
    #[error(
        "a task's container is on the networks of its service: use docker service update --network-add on a manager"
    )]
    TasksNetworks,
    /// The socket can't be connected to.
    #[error("cannot reach {} at unix://{}: {source}; {}", .peer.title(), .socket.display(), .peer.advice())]
    Unreachable {
        /// The upstream that was called.
        peer: Peer,
        /// The socket of the daemon that was called.
        socket: PathBuf,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// The upstream closed the connection before it answered.
    #[error("{} at unix://{} broke off: {source}; {}", .peer.title(), .socket.display(), .peer.advice())]
    Broken {
        /// The upstream that was called.
        peer: Peer,
        /// The socket of the daemon that was called.
        socket: PathBuf,
        /// The connection's error.
        source: hyper::Error,
    },
    /// The upstream did not answer in time.
    #[error("{} at unix://{} gave no answer within {seconds} s; {}", .peer.title(), .socket.display(), .peer.advice())]
    Late {
        /// The upstream that was called.
        peer: Peer,
        /// The socket of the daemon that was called.
        socket: PathBuf,
        /// How long the call waited.
        seconds: u64,
    },
    /// An answer that must be read here is too long or incomplete.
    #[error("cannot read the answer of {}: {reason}", .peer.title())]
    Unreadable {
        /// The upstream that answered.
        peer: Peer,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The path can be parsed in more than one way.
    #[error("the path of this call can be read in more than one way: {0}; spell it out")]
    Ambiguous(&'static str),
    /// The body is longer than the cluster accepts.
    #[error("the request's body is larger than {most} bytes")]
    TooLarge {
        /// The most bytes that are accepted.
        most: u64,
    },
    /// A request that must be read here is too long, incomplete, or not JSON.
    #[error("{0}")]
    BadRequest(String),
}

impl Peer {
    fn title(self) -> &'static str {
        match self {
            Self::Engine => "the Docker engine",
            Self::Control => "mesh-control",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Engine => "is dockerd running?",
            Self::Control => "see its log, or ask another manager",
        }
    }
}

impl ApiError {
    /// Replaces a worker's answer by that of a node in no cluster, if this node is in none, or by
    /// that of a manager that doesn't serve, if this node is one.
    pub(super) fn on_node(self, state: LocalState, promotion: &Promotion) -> Self {
        match self {
            Self::NotAManager | Self::NetworkOnWorker if state != LocalState::Active => Self::NoSwarm,
            Self::NotAManager | Self::NetworkOnWorker
                if matches!(promotion, Promotion::Manager | Promotion::Becoming) =>
            {
                Self::ManagerAway
            }
            error => error,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NotAManager | Self::ManagerAway | Self::NoSwarm | Self::NoInit | Self::NotJoined(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Founding { status, .. } => *status,
            Self::Enrolment(error) => status_of(error),
            Self::NetworkOnWorker | Self::TasksNetworks => StatusCode::FORBIDDEN,
            Self::Attach { source, .. } => refusal_status(source),
            Self::NoBridge { source, .. } if source.is_passing() => StatusCode::BAD_GATEWAY,
            Self::NoBridge { .. } | Self::NetworkExists(_) => StatusCode::CONFLICT,
            Self::NoSuchNetwork(_) => StatusCode::NOT_FOUND,
            Self::AmbiguousNetwork { .. }
            | Self::ChosenIpv6 { .. }
            | Self::OtherAddress { .. }
            | Self::BadRequest(_)
            | Self::Ambiguous(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unreachable { peer, .. }
            | Self::Broken { peer, .. }
            | Self::Late { peer, .. }
            | Self::Unreadable { peer, .. } => match peer {
                Peer::Engine => StatusCode::BAD_GATEWAY,
                Peer::Control => StatusCode::SERVICE_UNAVAILABLE,
            },
        }
    }

    /// The response for the client.
    pub(super) fn into_response(self) -> Response<Body> {
        let status = self.status();
        json_response(status, &serde_json::json!({ "message": self.to_string() }))
    }
}

/// The status of an error about the node's membership.
fn status_of(error: &EnrolmentError) -> StatusCode {
    if error.is_bad_request() { StatusCode::BAD_REQUEST } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// The status of a manager's refusal of an address.
fn refusal_status(error: &AttachError) -> StatusCode {
    match error {
        AttachError::Refused(status) => match status.code() {
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::ResourceExhausted => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        },
        AttachError::Away(_) => StatusCode::SERVICE_UNAVAILABLE,
        AttachError::Late | AttachError::Unreadable(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A response with a JSON body.
pub(super) fn json_response(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(full(format!("{value}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A body of known bytes.
pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_tell_whose_fault_it_is() {
        let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let at = |peer| ApiError::Unreachable { peer, socket: "/run/x.sock".into(), source: refused() };
        assert_eq!(at(Peer::Engine).status(), StatusCode::BAD_GATEWAY);
        assert_eq!(at(Peer::Control).status(), StatusCode::SERVICE_UNAVAILABLE);
        let text = at(Peer::Engine).to_string();
        assert!(text.contains("unix:///run/x.sock") && text.contains("dockerd"), "message is {text}");
        assert!(
            ApiError::NotAManager.to_string().starts_with("This node is not a swarm manager. Worker nodes")
        );
    }
    #[test]
    fn who_answers_for_the_swarm_depends_on_the_node() {
        let said = |state, promotion| ApiError::NotAManager.on_node(state, &promotion).to_string();
        let worker = said(LocalState::Active, Promotion::Settled);
        assert_eq!(worker, NOT_A_MANAGER);
        for promotion in [Promotion::Manager, Promotion::Becoming] {
            assert_eq!(said(LocalState::Active, promotion.clone()), MANAGER_AWAY, "{promotion:?}");
            assert_eq!(said(LocalState::Inactive, promotion), NO_SWARM);
        }
    }
}
