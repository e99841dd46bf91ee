//! Forwards questions for foreign names to the host's resolvers.
//!
//! Invariants: a question goes out with an id and a spelling (upper and lower case) of its own, by
//! a socket of its own that is connected to one resolver; an answer with another id, name or type
//! is discarded. The budget ends before the engine's resolver stops waiting. The number of
//! questions in flight is bounded, in total and for each task.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::Name;
use mesh_admission::figures::names::{ANSWER_BYTES, QUESTION_BYTES, UNDER_WAY, UNDER_WAY_PER_TASK};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

use super::upstream::Resolvers;
use super::wire::{HEADER, Question, Transport};

/// The time for one question, for all resolvers together. The client that gives up first is the
/// engine's resolver, after 4 s.
const BUDGET: Duration = Duration::from_millis(3_500);
/// The time for one try of one resolver.
const TRY: Duration = Duration::from_millis(1_100);
/// The minimum of tries: a single resolver is asked again after a lost datagram.
const TRIES: usize = 3;

/// Why a foreign question got no answer.
#[derive(Debug, Error)]
pub(super) enum ForwardError {
    /// Too many questions are in flight.
    #[error("too many questions are under way")]
    Full,
    /// No resolver answered.
    #[error("no resolver of the host answered")]
    Unanswered,
    /// The question can't be encoded.
    #[error("write the question")]
    Unwritable {
        /// The encoder's error.
        #[source]
        source: hickory_proto::ProtoError,
    },
}

/// Forwards questions.
#[derive(Debug)]
pub(super) struct Forwarder {
    resolvers: Arc<Resolvers>,
    under_way: Arc<UnderWay>,
}

impl Forwarder {
    pub(super) fn new(resolvers: Arc<Resolvers>) -> Self {
        Self { resolvers, under_way: Arc::default() }
    }

    /// The answer of a resolver to `question` of the task at `asker`, as the client expects it.
    ///
    /// # Errors
    /// Too many questions are in flight, or no resolver answered.
    pub(super) async fn ask(&self, asker: Ipv4Addr, question: &Question) -> Result<Vec<u8>, ForwardError> {
        let _place = self.under_way.enter(asker).ok_or(ForwardError::Full)?;
        let resolvers = self.resolvers.now();
        let end = Instant::now() + BUDGET;
        let mut refusal = None;
        let mut refused_by = HashSet::new();
        for resolver in resolvers.iter().cycle().take(resolvers.len().max(TRIES)) {
            if refused_by.contains(resolver) {
                continue;
            }
            let by = (Instant::now() + TRY).min(end);
            let outgoing = Asked::new(question).map_err(|source| ForwardError::Unwritable { source })?;
            match timeout_at(by, outgoing.try_one(*resolver, question.transport)).await {
                Ok(Ok(answer)) if is_refusal(&answer) => {
                    refused_by.insert(*resolver);
                    refusal = Some(outgoing.as_expected(answer, question));
                }
                Ok(Ok(answer)) => return Ok(outgoing.as_expected(answer, question)),
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "ask a resolver"),
                Err(_) => tracing::debug!(%resolver, "a resolver doesn't answer in time"),
            }
            if Instant::now() >= end {
                break;
            }
        }
        refusal.ok_or(ForwardError::Unanswered)
    }
}

/// Whether another resolver may answer better.
fn is_refusal(answer: &[u8]) -> bool {
    let code = ResponseCode::from_low(answer.get(3).copied().unwrap_or_default() & 0x0f);
    !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// An encoded question, as it goes to a resolver.
struct Asked {
    bytes: Vec<u8>,
    /// Length of the header and the question, which an answer repeats.
    repeated: usize,
}

/// How an answer matches the question.
#[derive(Debug, PartialEq, Eq)]
enum Repeats {
    Exactly,
    /// Only the case of the name differs: the resolver doesn't preserve it, or the answer is
    /// forged.
    InOtherCase,
    No,
}

impl Asked {
    /// The question with a new id and a new spelling.
    fn new(question: &Question) -> Result<Self, hickory_proto::ProtoError> {
        let query = Query::query(respelled(&question.name, rand::random::<u128>())?, question.record_type());
        let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = question.message.metadata.recursion_desired;
        message.metadata.checking_disabled = question.message.metadata.checking_disabled;
        message.metadata.authentic_data = question.message.metadata.authentic_data;
        message.queries.push(query);
        let repeated = message.to_vec()?.len();
        message.edns.clone_from(&question.message.edns);
        if let Some(edns) = &mut message.edns {
            // The answer must fit into one datagram to the client as well.
            let most = u16::try_from(ANSWER_BYTES).unwrap_or(u16::MAX);
            edns.set_max_payload(edns.max_payload().min(most));
        }
        Ok(Self { bytes: message.to_vec()?, repeated })
    }

    /// Asks one resolver until it answers. The transport is that of the client: an answer that is
    /// truncated over UDP makes the client ask again over TCP.
    async fn try_one(&self, resolver: SocketAddr, transport: Transport) -> io::Result<Vec<u8>> {
        if transport == Transport::Udp
            && let Some(answer) = self.by_udp(resolver).await?
        {
            return Ok(answer);
        }
        self.by_tcp(resolver).await
    }

    /// `None` if the answer repeats the question in another case; asking again over TCP tells
    /// whether it was forged.
    async fn by_udp(&self, resolver: SocketAddr) -> io::Result<Option<Vec<u8>>> {
        let any: SocketAddr = match resolver {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(resolver).await?;
        socket.send(&self.bytes).await?;
        let mut buffer = vec![0; QUESTION_BYTES];
        loop {
            let length = socket.recv(&mut buffer).await?;
            match self.is_repeated_by(&buffer[..length]) {
                Repeats::Exactly => {
                    buffer.truncate(length);
                    return Ok(Some(buffer));
                }
                Repeats::InOtherCase => return Ok(None),
                Repeats::No => {}
            }
        }
    }

    async fn by_tcp(&self, resolver: SocketAddr) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(resolver).await?;
        let length = u16::try_from(self.bytes.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &self.bytes].concat()).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        match self.is_repeated_by(&answer) {
            // On a TCP connection only the resolver can answer.
            Repeats::Exactly | Repeats::InOtherCase => Ok(answer),
            Repeats::No => Err(io::Error::new(io::ErrorKind::InvalidData, "it answers another question")),
        }
    }

    fn is_repeated_by(&self, answer: &[u8]) -> Repeats {
        let (Some(ours), Some(theirs)) =
            (self.bytes.get(HEADER..self.repeated), answer.get(HEADER..self.repeated))
        else {
            return Repeats::No;
        };
        let is_answer = answer[2] & 0x80 != 0 && answer[..2] == self.bytes[..2];
        let is_single = answer[4..6] == [0, 1];
        if !is_answer || !is_single {
            Repeats::No
        } else if ours == theirs {
            Repeats::Exactly
        } else if ours.eq_ignore_ascii_case(theirs) {
            Repeats::InOtherCase
        } else {
            Repeats::No
        }
    }

    /// The answer with the client's id and spelling, and without AA. One that exceeds the client's
    /// limit has no records but the bit TC.
    fn as_expected(&self, mut answer: Vec<u8>, question: &Question) -> Vec<u8> {
        answer[..2].copy_from_slice(&question.message.metadata.id.to_be_bytes());
        answer[2] &= !0x04;
        answer[3] |= 0x80;
        let spelled = question.name.iter().flat_map(|label| [0].into_iter().chain(label.iter().copied()));
        for (byte, spelled) in answer[HEADER..self.repeated].iter_mut().zip(spelled) {
            if byte.is_ascii_alphabetic() && byte.eq_ignore_ascii_case(&spelled) {
                *byte = spelled;
            }
        }
        if answer.len() > question.room() {
            answer.truncate(self.repeated);
            answer[2] |= 0x02;
            answer[6..HEADER].fill(0);
        }
        answer
    }
}

/// The same name, where each bit of `bits` decides the case of one letter.
fn respelled(name: &Name, mut bits: u128) -> Result<Name, hickory_proto::ProtoError> {
    let mut respell = |byte: &u8| {
        bits = bits.rotate_right(1);
        if byte.is_ascii_alphabetic() && bits & 1 == 1 { byte ^ 0x20 } else { *byte }
    };
    let labels: Vec<Vec<u8>> = name.iter().map(|label| label.iter().map(&mut respell).collect()).collect();
    Name::from_labels(labels.iter().map(Vec::as_slice))
}

/// The questions in flight, by asking task.
#[derive(Debug, Default)]
struct UnderWay {
    by_task: Mutex<(usize, HashMap<Ipv4Addr, usize>)>,
}

impl UnderWay {
    /// A place for one more question, which is freed when it is dropped; `None` if there is none.
    fn enter(self: &Arc<Self>, asker: Ipv4Addr) -> Option<Place> {
        let mut state = self.by_task.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_task) = &mut *state;
        let own = by_task.get(&asker).copied().unwrap_or_default();
        if *all >= UNDER_WAY || own >= UNDER_WAY_PER_TASK {
            return None;
        }
        *all += 1;
        by_task.insert(asker, own + 1);
        Some(Place { under_way: Arc::clone(self), asker })
    }
}

struct Place {
    under_way: Arc<UnderWay>,
    asker: Ipv4Addr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.under_way.by_task.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_task) = &mut *state;
        *all = all.saturating_sub(1);
        if let Some(own) = by_task.get_mut(&self.asker) {
            *own -= 1;
            if *own == 0 {
                by_task.remove(&self.asker);
            }
        }
    }
}

#[cfg(test)]
mod tests;
