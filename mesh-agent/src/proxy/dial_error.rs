//! Why a backend could not be connected to, and how the counters classify it.

use std::io;
use std::net::SocketAddr;

use mesh_state::ids::{BackendId, NodeId};
use thiserror::Error;

use super::preamble::Answer;

/// Why a backend could not be connected to.
#[derive(Debug, Error)]
pub enum DialError {
    /// The connection to the task or the relay failed.
    #[error("connect to {address}")]
    Connect {
        /// The task's or the relay's address.
        address: SocketAddr,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The task or the relay did not answer in time.
    #[error("no answer from {address} in time")]
    Deadline {
        /// The task's or the relay's address.
        address: SocketAddr,
    },
    /// The backend's node is not in the view.
    #[error("node {0} is not in the mesh table")]
    UnknownNode(NodeId),
    /// No manager has sent a relay key yet.
    #[error("no relay key yet: a manager must be reached once")]
    NoKey,
    /// The task refused a datagram (ICMP port unreachable).
    #[error("backend {} refuses datagrams", backend.get())]
    Refused {
        /// The backend's id.
        backend: BackendId,
    },
    /// The relay answered, but did not connect.
    #[error("relay {relay} answered {answer:?}")]
    Relay {
        /// The relay's address.
        relay: SocketAddr,
        /// The relay's answer; `None` if this version doesn't know it.
        answer: Option<Answer>,
    },
}

/// Why an attempt failed, as a label of metrics.
#[repr(usize)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureReason {
    /// The peer did not answer in time.
    Timeout = 0,
    /// The task refused the connection.
    Reset = 1,
    /// There is no way to the task: no route, no key, or its relay does not connect.
    Unreachable = 2,
}

impl FailureReason {
    /// Every reason, in the order of the numbers.
    pub const ALL: [Self; 3] = [Self::Timeout, Self::Reset, Self::Unreachable];

    /// The value of the metrics' label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
        }
    }
}

impl DialError {
    /// Classifies the error for the counters.
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Deadline { .. } | Self::Relay { answer: Some(Answer::Timeout), .. } => {
                FailureReason::Timeout
            }
            Self::Relay { answer: Some(Answer::Refused), .. } | Self::Refused { .. } => FailureReason::Reset,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
                FailureReason::Reset
            }
            Self::Connect { .. } | Self::UnknownNode(_) | Self::NoKey | Self::Relay { .. } => {
                FailureReason::Unreachable
            }
        }
    }
}
