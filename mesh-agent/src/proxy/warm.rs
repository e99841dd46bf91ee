//! A pool of connections to other nodes' relays: opened before they are needed, so that a remote
//! task costs no extra round trip, and given back after a session, so that the next one costs no
//! handshake.
//!
//! Invariants: one pool per thread; a connection carries one session at a time; the pool opens as
//! many as were lately missing, within a limit; the connection used last is used first, none waits
//! for longer than relays allow, and a semaphore bounds the file descriptors of all pools together.
//!
//! Left to others: what is sent over them ([`super::dial`]).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use super::connect::connect;
use super::dial_error::DialError;
use super::preamble::{CHALLENGE_LENGTH, Challenge};

/// Connections to one relay that the pool opens in advance, at first and at most.
const WANTED_MIN: usize = 1;
const WANTED_MAX: usize = 32;
/// How long a connection waits in the pool at most; relays allow more.
const WAIT_LIMIT: Duration = Duration::from_secs(20);
/// How often the pool closes connections that waited too long.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(5);
/// The deadline of a relay's challenge, which it sends at once.
const CHALLENGE_DEADLINE: Duration = Duration::from_secs(1);

/// A connection to a relay that has sent its challenge. If it already carried a session, the
/// challenge is the next one after that session's.
#[derive(Debug)]
pub(super) struct Greeted {
    /// The connection to the relay.
    pub(super) stream: TcpStream,
    /// The challenge that the preamble must answer.
    pub(super) challenge: Challenge,
}

/// The idle connections of one thread, by relay.
#[derive(Debug)]
pub(super) struct Warm {
    room: Arc<Semaphore>,
    pools: Mutex<HashMap<SocketAddr, Pool>>,
}

#[derive(Debug)]
struct Waiting {
    greeted: Greeted,
    since: Instant,
    _room: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Pool {
    /// Idle connections; the one used last is at the end.
    ready: Vec<Waiting>,
    wanted: usize,
    opening: usize,
    is_watched: bool,
}

impl Default for Pool {
    fn default() -> Self {
        Self { ready: Vec::new(), wanted: WANTED_MIN, opening: 0, is_watched: false }
    }
}

impl Warm {
    /// An empty pool; the pools of all threads share the permits of `room`.
    pub(super) fn new(room: Arc<Semaphore>) -> Self {
        Self { room, pools: Mutex::default() }
    }

    /// Takes an idle connection to `relay`, if there is one, and opens others from `source` in its
    /// place.
    pub(super) fn take(self: &Arc<Self>, relay: SocketAddr, source: Option<IpAddr>) -> Option<Greeted> {
        let (taken, missing) = self.lock().entry(relay).or_default().take();
        for _ in 0..missing {
            let warm = Arc::clone(self);
            tokio::spawn(async move { warm.refill(relay, source).await });
        }
        taken
    }

    /// Puts a connection into the pool, for its first session or the next one, if there is room.
    pub(super) fn give(self: &Arc<Self>, relay: SocketAddr, greeted: Greeted) {
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else { return };
        let is_watched = {
            let mut pools = self.lock();
            let pool = pools.entry(relay).or_default();
            pool.ready.push(Waiting { greeted, since: Instant::now(), _room: room });
            std::mem::replace(&mut pool.is_watched, true)
        };
        if !is_watched {
            let warm = Arc::clone(self);
            tokio::spawn(async move { warm.watch(relay).await });
        }
    }

    async fn refill(self: &Arc<Self>, relay: SocketAddr, source: Option<IpAddr>) {
        let opened = open(relay, source).await;
        if let Some(pool) = self.lock().get_mut(&relay) {
            pool.opening -= 1;
        }
        if let Ok(greeted) = opened {
            self.give(relay, greeted);
        }
    }

    /// Closes connections that wait for too long, until none is left.
    async fn watch(&self, relay: SocketAddr) {
        loop {
            sleep(EXPIRY_INTERVAL).await;
            let mut pools = self.lock();
            let Some(pool) = pools.get_mut(&relay) else { return };
            pool.expire();
            if pool.ready.is_empty() && pool.opening == 0 {
                pools.remove(&relay);
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Pool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Takes a connection; also returns how many are to be opened.
    fn take(&mut self) -> (Option<Greeted>, usize) {
        let mut taken = None;
        while taken.is_none()
            && let Some(next) = self.ready.pop()
        {
            taken = Some(next).filter(Waiting::is_good).map(|waiting| waiting.greeted);
        }
        if taken.is_none() {
            self.wanted = (2 * self.wanted).min(WANTED_MAX);
        }
        let missing = self.wanted.saturating_sub(self.ready.len() + self.opening);
        self.opening += missing;
        (taken, missing)
    }

    fn expire(&mut self) {
        let before = self.ready.len();
        self.ready.retain(|waiting| waiting.since.elapsed() < WAIT_LIMIT);
        if self.ready.len() < before {
            self.wanted = (self.wanted / 2).max(WANTED_MIN);
        }
    }
}

impl Waiting {
    /// Whether it is young enough and the relay hasn't closed it.
    fn is_good(&self) -> bool {
        let hears = self.greeted.stream.try_read(&mut [0]);
        self.since.elapsed() < WAIT_LIMIT
            && hears.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Connects to a relay and reads its challenge.
///
/// # Errors
/// The relay can't be reached, or sends no challenge in time.
pub(super) async fn open(relay: SocketAddr, source: Option<IpAddr>) -> Result<Greeted, DialError> {
    let mut stream = connect(relay, source).await?;
    let mut challenge = [0; CHALLENGE_LENGTH];
    timeout(CHALLENGE_DEADLINE, stream.read_exact(&mut challenge))
        .await
        .map_err(|_| DialError::Deadline { address: relay })?
        .map_err(|source| DialError::Connect { address: relay, source })?;
    Ok(Greeted { stream, challenge })
}
