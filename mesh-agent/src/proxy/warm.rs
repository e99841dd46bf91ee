//! Connections to other nodes' relays that are open before they are needed, so that a remote task costs no extra round trip.
//!
//! Invariants: one pool a thread; a connection is taken once; as many wait as were lately missing, within a limit, and none waits
//! for longer than relays allow.
//!
//! Left to others: what is said over them (`dial`).

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::dial::{DialError, connect};
use super::preamble::{CHALLENGE_LENGTH, Challenge};

/// Connections to one relay that wait at first, and at most.
const WANTED_MIN: usize = 1;
const WANTED_MAX: usize = 32;
/// A connection waits for this long at most; relays give it longer.
const WAIT_LIMIT: Duration = Duration::from_secs(20);
/// A relay greets at once.
const CHALLENGE_DEADLINE: Duration = Duration::from_secs(1);

/// A connection to a relay that has sent its challenge.
#[derive(Debug)]
pub(super) struct Greeted {
    /// The connection.
    pub(super) stream: TcpStream,
    /// What a preamble must answer to.
    pub(super) challenge: Challenge,
    since: Instant,
}

/// The connections that wait, by relay.
#[derive(Debug, Default)]
pub(super) struct Warm {
    pools: Mutex<HashMap<SocketAddr, Pool>>,
}

#[derive(Debug)]
struct Pool {
    ready: VecDeque<Greeted>,
    wanted: usize,
    opening: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self { ready: VecDeque::new(), wanted: WANTED_MIN, opening: 0 }
    }
}

impl Warm {
    /// A waiting connection to `relay`, if there is one; others are opened from `source` in its place.
    pub(super) fn take(self: &Arc<Self>, relay: SocketAddr, source: Option<IpAddr>) -> Option<Greeted> {
        let (taken, missing) = self.lock().entry(relay).or_default().take();
        for _ in 0..missing {
            let warm = Arc::clone(self);
            tokio::spawn(async move { warm.refill(relay, source).await });
        }
        taken
    }

    async fn refill(&self, relay: SocketAddr, source: Option<IpAddr>) {
        let opened = open(relay, source).await;
        let is_open = opened.is_ok();
        if let Some(pool) = self.lock().get_mut(&relay) {
            pool.opening -= 1;
            pool.ready.extend(opened.ok());
        }
        if is_open {
            sleep(WAIT_LIMIT).await;
            self.expire(relay);
        }
    }

    fn expire(&self, relay: SocketAddr) {
        let mut pools = self.lock();
        let Some(pool) = pools.get_mut(&relay) else { return };
        let before = pool.ready.len();
        pool.ready.retain(|greeted| greeted.since.elapsed() < WAIT_LIMIT);
        if pool.ready.len() < before {
            pool.wanted = (pool.wanted / 2).max(WANTED_MIN);
        }
        if pool.ready.is_empty() && pool.opening == 0 {
            pools.remove(&relay);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Pool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// A connection, and how many are to be opened.
    fn take(&mut self) -> (Option<Greeted>, usize) {
        let mut taken = None;
        while taken.is_none()
            && let Some(next) = self.ready.pop_front()
        {
            taken = Some(next).filter(Greeted::is_good);
        }
        if taken.is_none() {
            self.wanted = (2 * self.wanted).min(WANTED_MAX);
        }
        let missing = self.wanted.saturating_sub(self.ready.len() + self.opening);
        self.opening += missing;
        (taken, missing)
    }
}

impl Greeted {
    /// Whether it is young, and the relay hasn't hung up.
    fn is_good(&self) -> bool {
        let waits = self.stream.try_read(&mut [0]);
        self.since.elapsed() < WAIT_LIMIT
            && waits.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Connects to a relay and hears its challenge.
///
/// # Errors
/// It can't be reached, or says nothing.
pub(super) async fn open(relay: SocketAddr, source: Option<IpAddr>) -> Result<Greeted, DialError> {
    let mut stream = connect(relay, source).await?;
    let mut challenge = [0; CHALLENGE_LENGTH];
    timeout(CHALLENGE_DEADLINE, stream.read_exact(&mut challenge))
        .await
        .map_err(|_| DialError::Deadline { address: relay })?
        .map_err(|source| DialError::Connect { address: relay, source })?;
    Ok(Greeted { stream, challenge, since: Instant::now() })
}
