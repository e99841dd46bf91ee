//! Calls about this node's own membership of the cluster.

use hyper::Method;

/// A call about this node's own membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Membership {
    /// `POST /swarm/init`, `POST /swarm/join`.
    Enter,
    /// `POST /swarm/leave`.
    Leave,
}

impl Membership {
    /// The membership call that this is, if it is one.
    pub(super) fn of(method: &Method, parts: &[&str]) -> Option<Self> {
        match (method.as_str(), parts) {
            ("POST", ["swarm", "init" | "join"]) => Some(Self::Enter),
            ("POST", ["swarm", "leave"]) => Some(Self::Leave),
            _ => None,
        }
    }
}
