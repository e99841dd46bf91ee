//! Joining a cluster and leaving it while the agent runs, as `docker swarm join` and `docker swarm
//! leave` ask for it.
//!
//! Purpose: [`Enrolment`] is the clients' side: the node's state, and calls that change it.
//! [`Desk`] is the other side, which the agent's life cycle serves, one call at a time.
//!
//! Invariants: a call that fails leaves the node as it was; every error has Swarm's own text where
//! Swarm has one.
//!
//! Left to others: starting and ending what a member runs ([`crate::app`]).

pub mod address;
pub mod attempt;
mod error;
pub mod init;
pub mod order;

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

pub use error::EnrolmentError;
pub use order::JoinOrder;

/// How long a client waits for the node to be a member, as in Swarm.
pub const JOIN_LIMIT: Duration = Duration::from_secs(20);
/// Calls that may wait for the one under way.
const QUEUE: usize = 8;

/// The node's place in a cluster, as `docker info` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalState {
    /// It is in no cluster.
    Inactive,
    /// It is about to join one.
    Pending,
    /// It is a member.
    Active,
}

impl LocalState {
    /// The word in Docker's API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending => "pending",
            Self::Active => "active",
        }
    }
}

/// Where a call's outcome goes.
pub type Reply = oneshot::Sender<Result<(), EnrolmentError>>;

/// A call that changes the node's membership.
#[derive(Debug)]
pub enum Call {
    /// Join a cluster.
    Join(JoinOrder, Reply),
    /// Leave the cluster.
    Leave {
        /// Whether to leave though the engine doesn't answer, so that containers may stay.
        force: bool,
        /// Takes the outcome.
        reply: Reply,
    },
}

/// The node's state, and the way to change it. Clones share it.
#[derive(Debug, Clone)]
pub struct Enrolment {
    calls: mpsc::Sender<Call>,
    state: watch::Receiver<LocalState>,
}

/// Serves an [`Enrolment`].
#[derive(Debug)]
pub struct Desk {
    /// The calls, in the order in which they came.
    pub calls: mpsc::Receiver<Call>,
    /// The node's state, which only the server of the desk writes.
    pub state: watch::Sender<LocalState>,
}

impl Desk {
    /// A desk, and the side of its clients.
    pub fn new(state: LocalState) -> (Self, Enrolment) {
        let (sender, calls) = mpsc::channel(QUEUE);
        let (publisher, state) = watch::channel(state);
        (Self { calls, state: publisher }, Enrolment { calls: sender, state })
    }

    /// The next call; waits for ever once no client is left.
    pub async fn next(&mut self) -> Call {
        match self.calls.recv().await {
            Some(call) => call,
            None => std::future::pending().await,
        }
    }
}

impl Enrolment {
    /// The node's state now.
    pub fn state(&self) -> LocalState {
        *self.state.borrow()
    }

    /// Joins a cluster.
    ///
    /// # Errors
    /// The node is a member already, can't join, or hasn't joined within Swarm's 20 s.
    pub async fn join(&self, order: JoinOrder) -> Result<(), EnrolmentError> {
        self.call(|reply| Call::Join(order, reply)).await
    }

    /// Leaves the cluster.
    ///
    /// # Errors
    /// The node is in none, or something of mesh remains on it.
    pub async fn leave(&self, force: bool) -> Result<(), EnrolmentError> {
        self.call(|reply| Call::Leave { force, reply }).await
    }

    async fn call(&self, call: impl FnOnce(Reply) -> Call) -> Result<(), EnrolmentError> {
        let (reply, outcome) = oneshot::channel();
        self.calls.send(call(reply)).await.map_err(|_| EnrolmentError::Stopping)?;
        outcome.await.unwrap_or(Err(EnrolmentError::Stopping))
    }
}
