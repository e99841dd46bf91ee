//! A DNS resolver for tests: gives every question for an IPv4 address the same answer, and records
//! the names.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_lab::netns::Netns;

const PORT: u16 = 53;
/// The address of every name.
pub const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
/// The length of a message's header.
const HEADER_BYTES: usize = 12;
/// The length of a question's type and class.
const QUESTION_TAIL_BYTES: usize = 4;
/// Type `A` and class `IN`.
const ASKS_FOR_IPV4: [u8; QUESTION_TAIL_BYTES] = [0, 1, 0, 1];
/// How often the thread checks whether it has to end.
const LOOK: Duration = Duration::from_millis(100);

/// A running resolver; dropping it ends it.
#[derive(Debug)]
pub struct Resolver {
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Resolver {
    /// Starts a resolver at `address` in `netns`.
    ///
    /// # Errors
    /// The address can't be bound.
    pub fn start(netns: &Netns, address: Ipv4Addr) -> Result<Self> {
        let bind = || {
            let socket = UdpSocket::bind(SocketAddrV4::new(address, PORT))
                .with_context(|| format!("listen on {address}:{PORT}"))?;
            socket.set_read_timeout(Some(LOOK))?;
            Ok(socket)
        };
        let socket = netns.run(bind)?;
        let (asked, stop) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let (names, stopped) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut question = [0; 1500];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
                let Some((name, reply)) = reply(&question[..length]) else { continue };
                names.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                if let Err(error) = socket.send_to(&reply, from) {
                    println!("the resolver can't answer {from}: {error}");
                }
            }
        });
        Ok(Self { asked, stop, thread: Some(thread) })
    }

    /// The names that were asked for so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            println!("the resolver's thread panicked");
        }
    }
}

/// The name in a query, and the answer to it (RFC 1035, section 4). `None` for messages other than
/// a single question.
fn reply(message: &[u8]) -> Option<(String, Vec<u8>)> {
    let (header, mut rest) = message.split_at_checked(HEADER_BYTES)?;
    if header[4..6] != [0, 1] {
        return None;
    }
    let mut labels = Vec::new();
    loop {
        let (length, after) = rest.split_first()?;
        let (label, after) = after.split_at_checked(usize::from(*length))?;
        rest = after;
        if label.is_empty() {
            break;
        }
        labels.push(String::from_utf8_lossy(label).into_owned());
    }
    let asks_for = rest.get(..QUESTION_TAIL_BYTES)?;
    let question = &message[HEADER_BYTES..message.len() - rest.len() + QUESTION_TAIL_BYTES];
    let has_answer = asks_for == ASKS_FOR_IPV4;
    let mut reply = header[..2].to_vec();
    // An answer, recursion desired and available; one question, one answer or none.
    reply.extend([0x81, 0x80, 0, 1, 0, u8::from(has_answer), 0, 0, 0, 0]);
    reply.extend(question);
    if has_answer {
        // A pointer to the question's name, type and class, a TTL of a minute, four bytes.
        reply.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(ANSWER.octets());
    }
    Some((labels.join("."), reply))
}
