//! Calls about this node's own membership of a cluster.

use hyper::Method;

/// A call about this node's own membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Membership {
    /// `POST /swarm/init`.
    Init,
    /// `POST /swarm/join`.
    Join,
    /// `POST /swarm/leave`.
    Leave,
}

impl Membership {
    /// The membership call that this is, if it is one.
    pub(super) fn of(method: &Method, parts: &[&str]) -> Option<Self> {
        match (method.as_str(), parts) {
            ("POST", ["swarm", "init"]) => Some(Self::Init),
            ("POST", ["swarm", "join"]) => Some(Self::Join),
            ("POST", ["swarm", "leave"]) => Some(Self::Leave),
            _ => None,
        }
    }
}
