//! One listener's admission: the register behind a lock, the counter and the log of refusals.
//!
//! Invariants: a place is released when its connection ends, however it ends; the lock is never
//! held across I/O.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::figures::{Figures, LOGGED_EVERY, Listener};
use crate::log::Throttle;
use crate::refusals::{Reason, Refusals};
use crate::register::{Call, Decision, Id, Register};
use crate::text::Outside;

/// Admission to one listener.
#[derive(Debug)]
pub struct Door {
    listener: Listener,
    figures: Figures,
    refusals: Refusals,
    state: Mutex<State>,
    throttles: Mutex<HashMap<Reason, Throttle>>,
}

#[derive(Debug)]
struct State {
    register: Register,
    handles: HashMap<Id, Handle>,
}

#[derive(Debug, Clone)]
struct Handle {
    evicted: CancellationToken,
    waits: Arc<AtomicBool>,
}

impl Door {
    /// Admission to `listener` by `figures`, which may be lower than the listener's own.
    pub fn new(listener: Listener, figures: Figures, refusals: Refusals) -> Arc<Self> {
        refusals.show(listener);
        let state = State { register: Register::new(figures), handles: HashMap::new() };
        Arc::new(Self { listener, figures, refusals, state: Mutex::new(state), throttles: Mutex::default() })
    }

    /// The limits of this door.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.state().register.len()
    }

    /// Admits a new connection of `address`. It counts as waiting until [`Place::begin`] or
    /// [`Door::prove`].
    ///
    /// # Errors
    /// There is no room; the refusal is counted and logged.
    pub fn admit(self: &Arc<Self>, address: Option<SocketAddr>) -> Result<Place, Reason> {
        let mut state = self.state();
        match state.register.admit(address, Instant::now()) {
            Decision::Admitted { id, evicted } => {
                let handle =
                    Handle { evicted: CancellationToken::new(), waits: Arc::new(AtomicBool::new(true)) };
                let closed = evicted.and_then(|evicted| state.handles.remove(&evicted));
                state.handles.insert(id, handle.clone());
                drop(state);
                if let Some(closed) = closed {
                    closed.evicted.cancel();
                    self.refuse(Reason::Evicted, &"it waited longest");
                }
                Ok(Place { door: Arc::clone(self), id, handle, served: AtomicBool::new(false) })
            }
            Decision::Refused(reason) => {
                drop(state);
                match address {
                    Some(address) => self.refuse(reason, &address),
                    None => self.refuse(reason, &"a local client"),
                }
                Err(reason)
            }
        }
    }

    /// Notes that the client at `address` has proven its membership: its connection is neither
    /// timed out nor evicted any more.
    pub fn prove(&self, address: SocketAddr) {
        let mut state = self.state();
        if let Some(id) = state.register.busy_at(address)
            && let Some(handle) = state.handles.get(&id)
        {
            handle.waits.store(false, Ordering::Relaxed);
        }
    }

    /// Counts a refusal, and logs it at a bounded rate; `what` is escaped and cut.
    pub fn refuse(&self, reason: Reason, what: &dyn Display) {
        self.count(reason);
        let mut throttles = self.throttles.lock().unwrap_or_else(PoisonError::into_inner);
        let throttle = throttles.entry(reason).or_insert_with(|| Throttle::new(LOGGED_EVERY));
        if let Some(unsaid) = throttle.happened(Instant::now()) {
            let (listener, reason) = (self.listener.as_str(), reason.as_str());
            let what = what.to_string();
            warn!(listener, reason, what = %Outside(&what), since_last_line = unsaid, "refused");
        }
    }

    /// Counts a refusal without logging it.
    pub fn count(&self, reason: Reason) {
        self.refusals.count(self.listener, reason);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open connection's place; dropping it releases it.
#[derive(Debug)]
pub struct Place {
    door: Arc<Door>,
    id: Id,
    handle: Handle,
    served: AtomicBool,
}

impl Place {
    /// The door that admitted the connection.
    pub fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// Cancelled when the connection is to be closed for another one.
    pub fn evicted(&self) -> &CancellationToken {
        &self.handle.evicted
    }

    /// Whether the client has neither a request in service nor proven its membership.
    pub fn waits(&self) -> bool {
        self.handle.waits.load(Ordering::Relaxed)
    }

    /// Whether a request was ever in service.
    pub fn has_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    /// Takes a call of this connection into service, until the result is dropped.
    ///
    /// # Errors
    /// Too many calls of its kind are in service; the refusal is counted and logged.
    pub fn begin(self: &Arc<Self>, call: Call) -> Result<InService, Reason> {
        let mut state = self.door.state();
        if let Err(reason) = state.register.begin(call) {
            drop(state);
            self.door.refuse(reason, &"a call");
            return Err(reason);
        }
        state.register.busy(self.id);
        self.handle.waits.store(false, Ordering::Relaxed);
        self.served.store(true, Ordering::Relaxed);
        Ok(InService { place: Arc::clone(self), call })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.door.state();
        state.register.leave(self.id);
        state.handles.remove(&self.id);
    }
}

/// A call in service. The code that answers it holds this, also beyond the HTTP exchange, as for a
/// hijacked stream.
#[derive(Debug)]
pub struct InService {
    place: Arc<Place>,
    call: Call,
}

impl Drop for InService {
    fn drop(&mut self) {
        let mut state = self.place.door.state();
        state.register.end(self.call);
        state.register.wait(self.place.id, Instant::now());
        self.place.handle.waits.store(true, Ordering::Relaxed);
    }
}
