//! Answers questions: at once from the zone, or later if they must be forwarded or the asker is not
//! known yet.
//!
//! Invariants: a question that waits blocks no other. Questions of unknown addresses wait for a
//! moment, as a container may ask before its node knows of it, and are then refused. Their number
//! is bounded.

use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use mesh_admission::door::Door;
use mesh_admission::figures::names::{STRANGER_WAIT, STRANGERS};
use mesh_admission::refusals::Reason;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::counts::Counts;
use super::forward::{ForwardError, Forwarder};
use super::respond::{self, Outcome, Step};
use super::wire::{Question, Transport};
use super::zone::Zone;
use crate::task::local::{Asker, LocalTasks};

/// The state that every socket of the name server needs to answer.
pub(super) struct Server {
    pub(super) zone: watch::Receiver<Arc<Zone>>,
    pub(super) local: Arc<LocalTasks>,
    pub(super) forwarder: Forwarder,
    pub(super) door: Arc<Door>,
    pub(super) counts: Counts,
    strangers: Semaphore,
}

/// A question that can't be answered at once.
pub(super) struct Later {
    step: Step,
    source: Ipv4Addr,
    since: Instant,
}

/// What to do with a question.
pub(super) enum Answer {
    /// Send this answer.
    Now(Vec<u8>),
    /// Send no answer.
    Never,
    /// Call [`Server::finish`] and send its result.
    Later(Box<Later>),
}

impl Server {
    pub(super) fn new(
        zone: watch::Receiver<Arc<Zone>>,
        local: Arc<LocalTasks>,
        forwarder: Forwarder,
        door: Arc<Door>,
        counts: Counts,
    ) -> Self {
        Self { zone, local, forwarder, door, counts, strangers: Semaphore::new(STRANGERS) }
    }

    /// Answers the question in `bytes` if that needs no waiting.
    pub(super) fn begin(&self, source: Ipv4Addr, bytes: &[u8], transport: Transport) -> Answer {
        let since = Instant::now();
        let zone = Arc::clone(&self.zone.borrow());
        match respond::respond(&zone, self.find(&zone, source).as_ref(), bytes, transport) {
            Step::Silence => {
                self.counts.count(Outcome::Failed, since.elapsed());
                Answer::Never
            }
            Step::Reply(reply, outcome) => {
                self.counts.count(outcome, since.elapsed());
                Answer::Now(reply)
            }
            step => Answer::Later(Box::new(Later { step, source, since })),
        }
    }

    /// Answers a question that [`Self::begin`] could not answer at once.
    pub(super) async fn finish(&self, later: Box<Later>) -> Vec<u8> {
        let Later { step, source, since } = *later;
        let (reply, outcome) = match step {
            Step::Reply(reply, outcome) => (reply, outcome),
            Step::Forward(question) => self.forward(source, &question).await,
            Step::Wait(question) => self.introduce(source, question).await,
            Step::Silence => (Vec::new(), Outcome::Failed),
        };
        self.counts.count(outcome, since.elapsed());
        reply
    }

    /// Waits until the asker is known, then answers.
    async fn introduce(&self, source: Ipv4Addr, question: Question) -> (Vec<u8>, Outcome) {
        let asker = match self.strangers.try_acquire() {
            Ok(_place) => timeout(STRANGER_WAIT, self.meet(source)).await.ok().flatten(),
            Err(_) => None,
        };
        let Some(asker) = asker else {
            self.door.refuse(Reason::Stranger, &source);
            return (question.refuse(ResponseCode::Refused), Outcome::Refused);
        };
        let zone = Arc::clone(&self.zone.borrow());
        match respond::answer(&zone, &asker, question) {
            Step::Reply(reply, outcome) => (reply, outcome),
            Step::Forward(question) | Step::Wait(question) => self.forward(source, &question).await,
            Step::Silence => (Vec::new(), Outcome::Failed),
        }
    }

    /// The asker at `source`, as soon as it is known; `None` if it stays unknown or the agent
    /// stops.
    async fn meet(&self, source: Ipv4Addr) -> Option<Asker> {
        let (mut zone, mut known) = (self.zone.clone(), self.local.subscribe());
        loop {
            known.mark_unchanged();
            let newest = Arc::clone(&zone.borrow_and_update());
            let found = self.find(&newest, source);
            if found.is_some() {
                return found;
            }
            tokio::select! {
                changed = zone.changed() => changed.ok()?,
                changed = known.changed() => changed.ok()?,
            }
        }
    }

    /// The asker at `source`: a task of this node, or a network member that the table has on this
    /// node at that address. `None` if there is none, or its networks are not in the table yet.
    fn find(&self, zone: &Zone, source: Ipv4Addr) -> Option<Asker> {
        let asker = self.local.asker_at(source).or_else(|| {
            let networks = zone.scope_of(source)?.to_vec();
            Some(Asker { networks, has_own_servers: false })
        });
        asker.filter(|asker| zone.has_all(&asker.networks))
    }

    async fn forward(&self, source: Ipv4Addr, question: &Question) -> (Vec<u8>, Outcome) {
        match self.forwarder.ask(source, question).await {
            Ok(reply) => (reply, Outcome::Forwarded),
            Err(ForwardError::Full) => {
                self.door.refuse(Reason::SlowCalls, &source);
                (question.refuse(ResponseCode::Refused), Outcome::Refused)
            }
            Err(error) => {
                tracing::debug!(error = mesh_runtime::error_chain(&error), "forward a question");
                (question.refuse(ResponseCode::ServFail), Outcome::Failed)
            }
        }
    }
}
