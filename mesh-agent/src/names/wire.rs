//! DNS messages: parses questions and encodes answers.
//!
//! Invariants: pure. Any bytes give a question, a refusal, or nothing. An answer repeats the
//! question in the client's spelling, so that a client that mixes upper and lower case (0x20)
//! accepts it, and is no longer than the client allows.

use std::net::Ipv4Addr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use mesh_admission::figures::names::{ANSWER_BYTES, QUESTION_BYTES};

use super::index::TASK_TTL;
use super::zone::{Kind, Resolution};

/// Length of a message's header in bytes.
pub(super) const HEADER: usize = 12;
/// The most bytes of an answer over UDP to a client that names no other limit.
const PLAIN_BYTES: usize = 512;
/// Length of one address record in an answer: the name as a pointer, type, class, TTL, length,
/// address.
const ADDRESS_BYTES: usize = 16;
/// The same for an IPv6 address.
const ADDRESS6_BYTES: usize = 28;

/// The transport of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// UDP, which limits the size of answers.
    Udp,
    /// TCP, without such a limit.
    Tcp,
}

/// A question that can be answered.
#[derive(Debug, Clone)]
pub struct Question {
    pub(super) message: Message,
    pub(super) name: Name,
    pub(super) transport: Transport,
}

/// Why bytes are no question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// They are too short to be answered, or are an answer themselves, which is never answered.
    Silent,
    /// They are answered with these bytes, which say what is wrong.
    Refused(Vec<u8>),
}

/// Parses a question.
///
/// # Errors
/// The bytes are no question.
pub fn read(bytes: &[u8], transport: Transport) -> Result<Question, Unreadable> {
    let header = bytes.first_chunk::<HEADER>().ok_or(Unreadable::Silent)?;
    let is_answer = header[2] & 0x80 != 0;
    if is_answer {
        return Err(Unreadable::Silent);
    }
    let refused = |code| Err(Unreadable::Refused(bare(header, code)));
    if header[2] >> 3 != u8::from(OpCode::Query) {
        return refused(ResponseCode::NotImp);
    }
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // The counts are checked first, as the decoder reserves memory for as many questions as they
    // claim.
    if count(4) != 1 || count(6) != 0 || count(8) != 0 || bytes.len() > QUESTION_BYTES {
        return refused(ResponseCode::FormErr);
    }
    let Ok(message) = Message::from_vec(bytes) else { return refused(ResponseCode::FormErr) };
    let Some(query) = message.queries.first() else { return refused(ResponseCode::FormErr) };
    let name = query.name().clone();
    let question = Question { message, name, transport };
    if question.message.version() > 0 {
        return Err(Unreadable::Refused(question.refuse(ResponseCode::BADVERS)));
    }
    if question.class() != DNSClass::IN {
        return Err(Unreadable::Refused(question.refuse(ResponseCode::Refused)));
    }
    Ok(question)
}

impl Question {
    /// The name in lower case, without the dot at its end. Bytes that occur in no name of the
    /// cluster are escaped, including a dot within a label.
    pub fn key(&self) -> String {
        let mut key = self.name.to_ascii();
        key.make_ascii_lowercase();
        key.truncate(key.trim_end_matches('.').len());
        key
    }

    /// The kind of records that it requests.
    pub fn kind(&self) -> Kind {
        match self.record_type() {
            RecordType::A | RecordType::ANY => Kind::Address,
            RecordType::AAAA => Kind::Address6,
            RecordType::PTR => Kind::Pointer,
            RecordType::SRV => Kind::Service,
            RecordType::NS | RecordType::SOA | RecordType::DS | RecordType::DNSKEY => Kind::Delegation,
            _ => Kind::Other,
        }
    }

    /// The most bytes that its client accepts.
    pub fn room(&self) -> usize {
        match (self.transport, &self.message.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, Some(edns)) => usize::from(edns.max_payload()).clamp(PLAIN_BYTES, ANSWER_BYTES),
            (Transport::Udp, None) => PLAIN_BYTES,
        }
    }

    /// The answer with `resolution`, with AA. If not all addresses fit, it has the first ones.
    pub fn answer(&self, resolution: &Resolution) -> Vec<u8> {
        let mut message = self.response(ResponseCode::NoError);
        message.metadata.authoritative = true;
        match resolution {
            Resolution::Addresses { addresses, ttl } => {
                message.answers = records(&self.name, addresses, *ttl);
            }
            Resolution::Addresses6 { addresses, ttl } => {
                let data = addresses.iter().map(|address| RData::AAAA(AAAA(*address)));
                let record = |data| Record::from_rdata(self.name.clone(), *ttl, data);
                message.answers = data.map(record).collect();
            }
            Resolution::Pointer { name } => message.answers.extend(self.pointer(name)),
            Resolution::Port { port, addresses, ttl } => {
                let host = self.name.trim_to(usize::from(self.name.num_labels()).saturating_sub(2));
                let place = RData::SRV(SRV::new(0, 0, *port, host.clone()));
                message.answers.push(Record::from_rdata(self.name.clone(), *ttl, place));
                message.additionals = records(&host, addresses, *ttl);
            }
            Resolution::NoData => {}
            Resolution::NoName => message.metadata.response_code = ResponseCode::NXDomain,
            Resolution::Foreign => return self.refuse(ResponseCode::Refused),
        }
        self.fitted(message)
    }

    /// An answer that has only the response code `code`.
    pub fn refuse(&self, code: ResponseCode) -> Vec<u8> {
        self.fitted(self.response(code))
    }

    fn pointer(&self, name: &str) -> Option<Record> {
        let target = Name::from_labels(name.split('.').map(str::as_bytes)).ok()?;
        Some(Record::from_rdata(self.name.clone(), TASK_TTL, RData::PTR(PTR(target))))
    }

    fn response(&self, code: ResponseCode) -> Message {
        let asked = &self.message.metadata;
        let mut message = Message::new(asked.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = asked.recursion_desired;
        message.metadata.checking_disabled = asked.checking_disabled;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.queries.clone_from(&self.message.queries);
        message.edns = self.message.edns.as_ref().map(|_| own_edns());
        message
    }

    /// Encodes `message`, without the records that do not fit.
    fn fitted(&self, mut message: Message) -> Vec<u8> {
        let is_ipv6 = self.record_type() == RecordType::AAAA;
        let record_bytes = if is_ipv6 { ADDRESS6_BYTES } else { ADDRESS_BYTES };
        let most = self.room() / record_bytes;
        if message.answers.len() > most {
            message.answers.truncate(most);
            message.metadata.truncation = true;
        }
        loop {
            let Ok(bytes) = message.to_vec() else {
                return bare(&self.message.metadata.id.to_be_bytes(), ResponseCode::ServFail);
            };
            let over = bytes.len().saturating_sub(self.room());
            if over == 0 || (message.answers.is_empty() && message.additionals.is_empty()) {
                return bytes;
            }
            // Additional addresses are optional; a client that needs them asks again.
            if message.additionals.is_empty() {
                let left = message.answers.len().saturating_sub(over.div_ceil(record_bytes));
                message.answers.truncate(left);
                message.metadata.truncation = true;
            } else {
                message.additionals.clear();
            }
        }
    }

    pub(super) fn record_type(&self) -> RecordType {
        self.message.queries.first().map_or(RecordType::ZERO, Query::query_type)
    }

    fn class(&self) -> DNSClass {
        self.message.queries.first().map_or(DNSClass::NONE, Query::query_class)
    }
}

fn records(name: &Name, addresses: &[Ipv4Addr], ttl: u32) -> Vec<Record> {
    addresses.iter().map(|address| Record::from_rdata(name.clone(), ttl, RData::A(A(*address)))).collect()
}

/// The EDNS record for clients that use EDNS.
fn own_edns() -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(u16::try_from(QUESTION_BYTES).unwrap_or(u16::MAX)).set_version(0);
    edns
}

/// A message that is a header alone, for one that could not be parsed further. `asked` begins with
/// the id.
fn bare(asked: &[u8], code: ResponseCode) -> Vec<u8> {
    let flags = asked.get(2).map_or(0, |flags| flags & 0b0111_1001);
    let mut bytes = vec![0; HEADER];
    for (byte, id) in bytes.iter_mut().zip(asked.iter().take(2)) {
        *byte = *id;
    }
    bytes[2] = 0x80 | flags;
    bytes[3] = 0x80 | code.low();
    bytes
}

#[cfg(test)]
mod tests;
