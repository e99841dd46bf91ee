//! From a question's bytes to its answer, as far as that takes no waiting.
//!
//! Invariant: pure but for the order of addresses, which is random.

use hickory_proto::op::ResponseCode;
use rand::seq::SliceRandom as _;

use super::wire::{self, Question, Transport, Unreadable};
use super::zone::{Resolution, Zone};
use crate::task::local::Asker;

/// What a question came to; the label of its counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Ours, with an answer.
    Answered,
    /// Ours, and there is nothing of the kind that was asked for.
    NoData,
    /// Ours, and no such name.
    NoName,
    /// Answered by a resolver of the host.
    Forwarded,
    /// Refused: of a stranger, beyond a limit, or for the task's own servers to answer.
    Refused,
    /// Not understood, or nobody answered.
    Failed,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Answered, Self::NoData, Self::NoName, Self::Forwarded, Self::Refused, Self::Failed];

    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NoData => "nodata",
            Self::NoName => "nxdomain",
            Self::Forwarded => "forwarded",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// The next step for a question.
#[derive(Debug)]
pub enum Step {
    /// Send this.
    Reply(Vec<u8>, Outcome),
    /// Send nothing.
    Silence,
    /// Wait until it is known who asks.
    Wait(Question),
    /// Ask the host's resolvers.
    Forward(Question),
}

/// Answers the question in `bytes` of `asker`; `None` if it is not known yet who asks.
pub fn respond(zone: &Zone, asker: Option<&Asker>, bytes: &[u8], transport: Transport) -> Step {
    let question = match wire::read(bytes, transport) {
        Ok(question) => question,
        Err(Unreadable::Silent) => return Step::Silence,
        Err(Unreadable::Refused(reply)) => return Step::Reply(reply, Outcome::Failed),
    };
    match asker {
        Some(asker) => answer(zone, asker, question),
        None => Step::Wait(question),
    }
}

/// Answers a question of `asker`.
pub(super) fn answer(zone: &Zone, asker: &Asker, question: Question) -> Step {
    let mut resolution =
        zone.resolve(&asker.networks, asker.has_own_servers, &question.key(), question.kind());
    if let Resolution::Addresses { addresses, .. } | Resolution::Port { addresses, .. } = &mut resolution {
        addresses.shuffle(&mut rand::rng());
    }
    let outcome = match resolution {
        Resolution::Addresses { .. } | Resolution::Pointer { .. } | Resolution::Port { .. } => {
            Outcome::Answered
        }
        Resolution::NoData => Outcome::NoData,
        Resolution::NoName => Outcome::NoName,
        Resolution::Foreign if asker.has_own_servers => {
            return Step::Reply(question.refuse(ResponseCode::Refused), Outcome::Refused);
        }
        Resolution::Foreign => return Step::Forward(question),
    };
    Step::Reply(question.answer(&resolution), outcome)
}
