//! A small DNS client (RFC 1035) that sends one question to one server and parses the record types
//! that mesh serves.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// The time that an answer may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
const PORT: u16 = 53;
const ID: u16 = 0x6d65;
const HEADER_BYTES: usize = 12;
const MESSAGE_BYTES_MAX: usize = 4096;
/// The most compression pointers that a name can need.
const JUMPS_MAX: usize = 127;

pub(crate) const NOERROR: u8 = 0;
pub(crate) const NXDOMAIN: u8 = 3;

/// The name or address to ask for, by record type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question<'a> {
    /// IPv4 addresses of a name.
    A(&'a str),
    /// IPv6 addresses of a name.
    Aaaa(&'a str),
    /// Names of an address.
    Ptr(Ipv4Addr),
}

/// The transport of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// A server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    /// The response code: 0 is NOERROR, 3 NXDOMAIN.
    pub(crate) code: u8,
    /// Addresses in A records, in order.
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// Names in PTR records.
    pub(crate) names: Vec<String>,
    /// Number of records of any type in the answer section.
    pub(crate) records: u16,
}

impl Question<'_> {
    fn name(self) -> String {
        match self {
            Self::A(name) | Self::Aaaa(name) => name.to_owned(),
            Self::Ptr(address) => {
                let [a, b, c, d] = address.octets();
                format!("{d}.{c}.{b}.{a}.in-addr.arpa")
            }
        }
    }

    fn kind(self) -> u16 {
        match self {
            Self::A(_) => 1,
            Self::Ptr(_) => 12,
            Self::Aaaa(_) => 28,
        }
    }

    fn encode(self) -> Result<Vec<u8>> {
        let mut message = Vec::from(ID.to_be_bytes());
        // The bit RD (recursion desired), and one question.
        message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in self.name().split('.') {
            message.push(u8::try_from(label.len()).context("a label is too long")?);
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend(self.kind().to_be_bytes());
        message.extend(1_u16.to_be_bytes());
        Ok(message)
    }
}

/// Asks the server from the calling thread's network namespace.
pub(crate) fn ask(
    server: Ipv4Addr,
    question: Question<'_>,
    over: Transport,
    within: Duration,
) -> Result<Reply> {
    let server = SocketAddrV4::new(server, PORT);
    let asked = question.encode()?;
    let answer = match over {
        Transport::Udp => over_udp(server, &asked, within),
        Transport::Tcp => over_tcp(server, &asked, within),
    };
    let answer = answer.with_context(|| format!("ask {server} for {question:?} over {over:?}"))?;
    decode(&answer).with_context(|| format!("understand the answer to {question:?}: {answer:02x?}"))
}

fn over_udp(server: SocketAddrV4, asked: &[u8], within: Duration) -> Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("make a socket")?;
    socket.set_read_timeout(Some(within)).context("set the deadline")?;
    socket.connect(server)?;
    socket.send(asked)?;
    let mut answer = vec![0; MESSAGE_BYTES_MAX];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn over_tcp(server: SocketAddrV4, asked: &[u8], within: Duration) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server.into(), within)?;
    stream.set_read_timeout(Some(within)).context("set the deadline")?;
    let length = u16::try_from(asked.len()).context("the question is too long")?;
    stream.write_all(&[&length.to_be_bytes(), asked].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn decode(message: &[u8]) -> Result<Reply> {
    let header = message.get(..HEADER_BYTES).context("shorter than a header")?;
    ensure!(header[..2] == ID.to_be_bytes(), "another question's answer");
    ensure!(header[2] & 0x80 != 0, "a question, not an answer");
    ensure!(header[2] & 0x02 == 0, "truncated, though it would fit");
    let questions = u16_at(message, 4)?;
    let records = u16_at(message, 6)?;
    let mut reply = Reply { code: header[3] & 0x0f, addresses: Vec::new(), names: Vec::new(), records };
    let mut at = HEADER_BYTES;
    for _ in 0..questions {
        at = name_at(message, at)?.1 + 4;
    }
    for _ in 0..records {
        let (_, after) = name_at(message, at)?;
        let kind = u16_at(message, after)?;
        let data = after + 10;
        let length = usize::from(u16_at(message, after + 8)?);
        let bytes = message.get(data..data + length).context("a record is cut off")?;
        match kind {
            1 => reply.addresses.push(<[u8; 4]>::try_from(bytes).context("an A of four bytes")?.into()),
            12 => reply.names.push(name_at(message, data)?.0),
            _ => {}
        }
        at = data + length;
    }
    Ok(reply)
}

fn u16_at(message: &[u8], at: usize) -> Result<u16> {
    let bytes = message.get(at..at + 2).context("cut off")?;
    Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// The name at an offset, and the offset after it.
fn name_at(message: &[u8], begin: usize) -> Result<(String, usize)> {
    let (mut labels, mut at, mut end) = (Vec::new(), begin, None);
    for _ in 0..JUMPS_MAX {
        let length = *message.get(at).context("a name is cut off")?;
        match length {
            0 => return Ok((labels.join("."), end.unwrap_or(at + 1))),
            0xc0.. => {
                end.get_or_insert(at + 2);
                at = usize::from(u16_at(message, at)? & 0x3fff);
            }
            _ => {
                let label =
                    message.get(at + 1..at + 1 + usize::from(length)).context("a label is cut off")?;
                labels.push(String::from_utf8_lossy(label).into_owned());
                at += 1 + usize::from(length);
            }
        }
    }
    bail!("a name that doesn't end")
}
