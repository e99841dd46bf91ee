//! Answers a question's bytes, as far as that needs no waiting.
//!
//! Invariant: pure, except for the random order of addresses.

use hickory_proto::op::ResponseCode;
use rand::seq::SliceRandom as _;

use super::wire::{self, Question, Transport, Unreadable};
use super::zone::{Resolution, Zone};
use crate::task::local::Asker;

/// How a question was answered; the label of its counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The name is the cluster's and has an answer.
    Answered,
    /// The name is the cluster's and has no records of the requested type.
    NoData,
    /// The name could only be the cluster's and does not exist.
    NoName,
    /// A resolver of the host answered.
    Forwarded,
    /// Refused: the asker is unknown or exceeds a limit, or its own servers are to answer.
    Refused,
    /// The message can't be parsed, or no resolver answered.
    Failed,
}

impl Outcome {
    /// Every outcome, in the order of the counters.
    pub const ALL: [Self; 6] =
        [Self::Answered, Self::NoData, Self::NoName, Self::Forwarded, Self::Refused, Self::Failed];

    /// The outcome's label in metrics.
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
    /// Send this answer.
    Reply(Vec<u8>, Outcome),
    /// Send no answer.
    Silence,
    /// Wait until the asker is known.
    Wait(Question),
    /// Forward the question to the host's resolvers.
    Forward(Question),
}

/// Answers the question in `bytes`. `asker` is `None` if the source address is not known yet.
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
    if let Resolution::Addresses6 { addresses, .. } = &mut resolution {
        addresses.shuffle(&mut rand::rng());
    }
    let outcome = match resolution {
        Resolution::Addresses { .. }
        | Resolution::Addresses6 { .. }
        | Resolution::Pointer { .. }
        | Resolution::Port { .. } => Outcome::Answered,
        Resolution::NoData => Outcome::NoData,
        Resolution::NoName => Outcome::NoName,
        Resolution::Foreign if asker.has_own_servers => {
            return Step::Reply(question.refuse(ResponseCode::Refused), Outcome::Refused);
        }
        Resolution::Foreign => return Step::Forward(question),
    };
    Step::Reply(question.answer(&resolution), outcome)
}
