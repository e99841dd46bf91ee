//! The API's errors: one HTTP status each, in Docker's form `{"message": …}`.
//!
//! Invariants: [`ApiError::status`] is the only place where an error gets its HTTP status; an error
//! of Swarm's manager reads as Swarm's engine passes it on, with the gRPC code in front
//! ([`ApiError::code`]): some clients match whole messages.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mesh_state::codec::CodecError;
use mesh_state::dependency::DependencyKind;
use mesh_state::store::StoreError;
use serde::Serialize;
use thiserror::Error;

use super::validate::SpecError;
use crate::seal::SealError;
use crate::slots::network_space::SpaceError;
use crate::slots::ports::PortError;
use crate::slots::references::ReferenceError;
use crate::vault::VaultError;

/// The kinds of objects in paths, by the names in Docker's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    /// A service of the cluster.
    Service,
    /// A task of a service.
    Task,
    /// A member node.
    Node,
    /// An overlay network of the cluster.
    Network,
    /// A secret of the cluster.
    Secret,
    /// A config of the cluster.
    Config,
}

impl std::fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Service => "service",
            Self::Task => "task",
            Self::Node => "node",
            Self::Network => "network",
            Self::Secret => "secret",
            Self::Config => "config",
        })
    }
}

/// Swarm's words for a cluster without a quorum of managers; scripts look for them.
const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than \
                         half of the managers are online.";

/// The gRPC codes in front of messages of Swarm's manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The request is invalid, whatever the cluster's state.
    InvalidArgument,
    /// The object exists.
    AlreadyExists,
    /// The object is in another state than the request needs.
    FailedPrecondition,
    /// Not implemented.
    Unimplemented,
    /// An error without a code.
    Unknown,
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::InvalidArgument => "InvalidArgument",
            Self::AlreadyExists => "AlreadyExists",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::Unimplemented => "Unimplemented",
            Self::Unknown => "Unknown",
        })
    }
}

/// Why a request was refused or failed.
#[derive(Debug, Error)]
pub(crate) enum ApiError {
    /// No object has this id, name or id prefix.
    #[error("{kind} {query} not found")]
    NotFound {
        /// The kind of object.
        kind: ObjectKind,
        /// The reference as the client sent it.
        query: String,
    },
    /// The name or id prefix is not unique.
    #[error("{kind} {query} is ambiguous ({matches} matches found{})", basis(*.kind, *.by_name))]
    Ambiguous {
        /// The kind of object.
        kind: ObjectKind,
        /// The reference as the client sent it.
        query: String,
        /// The number of matching objects.
        matches: usize,
        /// Whether the matches share the name; otherwise an id prefix.
        by_name: bool,
    },
    /// The name belongs to another object.
    #[error("name conflicts with an existing object: {kind} {name} already exists")]
    NameTaken {
        /// The kind of object.
        kind: ObjectKind,
        /// The name that another object has.
        name: String,
    },
    /// The name of a secret or config belongs to another one.
    #[error("{kind} {name} already exists")]
    Exists {
        /// The kind of object.
        kind: ObjectKind,
        /// The name that another object has.
        name: String,
    },
    /// The spec can't be accepted.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The spec refers to secrets or configs that don't exist.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A published port belongs to another service.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A network can't have its subnet.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// What it names doesn't exist.
    #[error("{0}")]
    Missing(String),
    /// The request can't be parsed.
    #[error("{0}")]
    BadRequest(String),
    /// Swarm's manager would refuse it.
    #[error("{0}")]
    Invalid(String),
    /// It is never allowed.
    #[error("{0}")]
    Forbidden(String),
    /// It exists, and there can be only one.
    #[error("{0}")]
    AlreadyExists(String),
    /// The operation doesn't fit the object's present state.
    #[error("{0}")]
    Precondition(String),
    /// This manager can't do it in its state, or not now.
    #[error("{0}")]
    Unavailable(String),
    /// It conflicts with the state of the cluster.
    #[error("{0}")]
    Conflict(String),
    /// The body exceeds its limit.
    #[error("request body is larger than {limit} bytes")]
    BodyTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The object was written since the client read it.
    #[error("update out of sequence")]
    OutOfSequence,
    /// Swarm doesn't support it either.
    #[error("{0}")]
    Unimplemented(&'static str),
    /// mesh doesn't support it, or not yet.
    #[error("{0}")]
    NotImplemented(String),
    /// No such path.
    #[error("page not found")]
    PageNotFound,
    /// The path exists, the method on it doesn't.
    #[error("method not allowed")]
    MethodNotAllowed,
    /// Conflicting writes won on every attempt.
    #[error("the cluster changed while the request was carried out: run the command again")]
    Contended,
    /// The watch on etcd is down, so this manager's snapshot may be old.
    #[error(
        "{NO_LEADER} (this manager can't reach etcd, or its etcd has no quorum, so the cluster can't be changed now; tasks and \
         published ports go on as they are)"
    )]
    Disconnected,
    /// etcd did not answer a read or a write: it has no quorum, or can't be reached.
    #[error(
        "{NO_LEADER} ({0}; look whether the change was made before you repeat it; tasks and published ports go on as they are)"
    )]
    Unanswered(#[source] StoreError),
    /// etcd refused a read or a write.
    #[error(
        "{0}; look whether the change was made before you repeat it; tasks and published ports go on as they are"
    )]
    Store(#[source] StoreError),
    /// There is no cluster record yet.
    #[error("this manager has not read the cluster's record yet: try again in a moment")]
    NoCluster,
    /// The object can't be encoded.
    #[error("{0}")]
    Encode(#[from] CodecError),
    /// A secret can't be sealed, so nothing is written.
    #[error("{0}")]
    Seal(#[from] SealError),
    /// A secret of the cluster can't be opened on this manager.
    #[error("{0}")]
    Unseal(String),
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooLarge { .. } => Self::BadRequest(error.to_string()),
            StoreError::Unavailable { .. } | StoreError::Deadline { .. } => Self::Unanswered(error),
            other => Self::Store(other),
        }
    }
}

impl From<DependencyKind> for ObjectKind {
    fn from(kind: DependencyKind) -> Self {
        match kind {
            DependencyKind::Secret => Self::Secret,
            DependencyKind::Config => Self::Config,
        }
    }
}

impl From<VaultError> for ApiError {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Store(error) => error.into(),
            VaultError::Seal(_) | VaultError::Newer { .. } => Self::Unseal(error.to_string()),
        }
    }
}

impl ApiError {
    /// The HTTP status of the error.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NotFound { .. } | Self::Missing(_) | Self::PageNotFound => StatusCode::NOT_FOUND,
            Self::Ambiguous { .. }
            | Self::Port(_)
            | Self::Reference(_)
            | Self::BadRequest(_)
            | Self::Invalid(_)
            | Self::Precondition(_) => StatusCode::BAD_REQUEST,
            Self::Forbidden(_) | Self::Space(_) => StatusCode::FORBIDDEN,
            Self::NameTaken { .. }
            | Self::Exists { .. }
            | Self::AlreadyExists(_)
            | Self::Contended
            | Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Spec(error) => match error {
                SpecError::Constraint(_) => StatusCode::INTERNAL_SERVER_ERROR,
                SpecError::NotServed { .. } => StatusCode::NOT_IMPLEMENTED,
                _ => StatusCode::BAD_REQUEST,
            },
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::OutOfSequence | Self::Encode(_) | Self::Seal(_) | Self::Unseal(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::Unimplemented(_) | Self::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Disconnected
            | Self::Unanswered(_)
            | Self::Store(_)
            | Self::NoCluster
            | Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl ApiError {
    /// The gRPC code of an error of Swarm's manager; `None` for errors of the engine and for mesh's
    /// own.
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::NameTaken { .. } | Self::Exists { .. } | Self::AlreadyExists(_) => {
                Some(Code::AlreadyExists)
            }
            Self::Invalid(_) | Self::Reference(_) | Self::Port(_) => Some(Code::InvalidArgument),
            Self::Spec(error) => code_of_spec(error),
            Self::Precondition(_) => Some(Code::FailedPrecondition),
            Self::Unimplemented(_) => Some(Code::Unimplemented),
            Self::OutOfSequence | Self::Disconnected | Self::Unanswered(_) => Some(Code::Unknown),
            _ => None,
        }
    }

    /// The message that the client gets.
    pub(crate) fn message(&self) -> String {
        match self.code() {
            Some(code) => format!("rpc error: code = {code} desc = {self}"),
            None => self.to_string(),
        }
    }
}

fn code_of_spec(error: &SpecError) -> Option<Code> {
    match error {
        SpecError::Constraint(_) => Some(Code::Unknown),
        // Errors that the engine finds before it asks its manager, and mesh's own.
        SpecError::RuntimeMissing
        | SpecError::Modes
        | SpecError::Mode
        | SpecError::EndpointMode(_)
        | SpecError::Label(_)
        | SpecError::ProxiedUdp(_)
        | SpecError::SlotOfGlobal(_)
        | SpecError::NotServed { .. } => None,
        _ => Some(Code::InvalidArgument),
    }
}

/// For networks, the message names what the matches have in common.
fn basis(kind: ObjectKind, by_name: bool) -> &'static str {
    match (kind, by_name) {
        (ObjectKind::Network, true) => " based on name",
        (ObjectKind::Network, false) => " based on ID prefix",
        _ => "",
    }
}

#[derive(Serialize)]
struct Message {
    message: String,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            tracing::warn!(%status, error = %self, "a request failed");
        }
        (status, Json(Message { message: self.message() })).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_swarms_manager_carry_their_code() {
        let taken = ApiError::Exists { kind: ObjectKind::Secret, name: "s1".to_owned() };
        assert_eq!(taken.message(), "rpc error: code = AlreadyExists desc = secret s1 already exists");
        assert_eq!(
            ApiError::OutOfSequence.message(),
            "rpc error: code = Unknown desc = update out of sequence"
        );
        let spec = |error: SpecError| ApiError::Spec(error).message();
        assert_eq!(
            spec(SpecError::NameNotDns),
            "rpc error: code = InvalidArgument desc = name must be valid as a DNS name component"
        );
        assert_eq!(spec(SpecError::RuntimeMissing), "mismatched Runtime and *Spec fields");
        let missing = ApiError::NotFound { kind: ObjectKind::Service, query: "x".to_owned() };
        assert_eq!(missing.message(), "service x not found", "the engine's own words");
    }

    #[test]
    fn a_cluster_without_a_quorum_says_so_in_swarms_words() {
        let deadline = StoreError::Deadline { operation: "txn", deadline: std::time::Duration::from_secs(3) };
        for error in [ApiError::Disconnected, deadline.into()] {
            let message = error.message();
            assert!(
                message.starts_with(&format!("rpc error: code = Unknown desc = {NO_LEADER}")),
                "{message}"
            );
            assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
        let refused = StoreError::Refused { operation: "txn", message: "no space".to_owned() };
        let message = ApiError::from(refused).message();
        assert!(!message.contains("leader") && message.contains("no space"), "{message}");
    }

    #[test]
    fn an_ambiguous_network_names_what_the_matches_share() {
        let ambiguous = |kind, by_name| {
            ApiError::Ambiguous { kind, query: "x".to_owned(), matches: 2, by_name }.to_string()
        };
        assert_eq!(
            ambiguous(ObjectKind::Network, true),
            "network x is ambiguous (2 matches found based on name)"
        );
        assert_eq!(
            ambiguous(ObjectKind::Network, false),
            "network x is ambiguous (2 matches found based on ID prefix)"
        );
        assert_eq!(ambiguous(ObjectKind::Node, true), "node x is ambiguous (2 matches found)");
    }
}
