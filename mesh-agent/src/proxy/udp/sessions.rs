//! The flows of one published UDP port: a task for each flow, which the port's task gives its
//! datagrams.
//!
//! Invariants: a flow keeps its backend until the flow is idle, the backend refuses, or the backend
//! is gone; idle means no datagram for 30 s, or for three minutes once the client has sent again
//! after an answer. A datagram for which a flow's queue has no room is dropped.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_state::ids::BackendId;
use mesh_state::spec::Protocol;
use socket2::Socket;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::link::{DATAGRAM_MAX, Receiver, Sender, to_node, to_task};
use super::socket::{DatagramAddresses, UdpPort};
use crate::proxy::addresses::ConnectionAddresses;
use crate::proxy::connection::ATTEMPTS_MAX;
use crate::proxy::dial::{RelayAccess, dial_relay};
use crate::proxy::dial_error::DialError;
use crate::proxy::routes::{Place, Route, Target};
use crate::proxy::warm::Warm;
use crate::proxy::{Proxy, UdpLimits};

/// Datagrams that may wait in a flow's queue.
const QUEUE: usize = 64;
/// The pause after an error that doesn't go away at once by itself.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Serves a bound UDP port on one of the proxy's threads until `close`.
///
/// # Errors
/// No thread runs.
pub(in crate::proxy) fn start(
    proxy: &Arc<Proxy>,
    socket: Socket,
    published: u16,
    close: CancellationToken,
) -> io::Result<()> {
    let worker = proxy.workers.next().ok_or_else(|| io::Error::other("the proxy has no threads"))?.clone();
    let (serving, warm) = (Arc::clone(proxy), worker.warm);
    let serve = async move {
        let port = match UdpPort::new(socket) {
            Ok(port) => port,
            Err(error) => {
                return tracing::error!(
                    published,
                    error = mesh_runtime::error_chain(&error),
                    "can't serve a published UDP port"
                );
            }
        };
        let flows = Arc::new(Flows { proxy: serving, warm, port, published, live: Mutex::default() });
        tokio::select! {
            () = flows.receive() => {}
            () = close.cancelled() => {}
        }
        // This closes the flows' queues, which ends the flows.
        flows.live().clear();
    };
    worker.handle.spawn(proxy.tracker.track_future(serve));
    Ok(())
}

/// One published port and its flows.
struct Flows {
    proxy: Arc<Proxy>,
    warm: Arc<Warm>,
    port: UdpPort,
    published: u16,
    live: Mutex<HashMap<DatagramAddresses, mpsc::Sender<Vec<u8>>>>,
}

/// Why a flow, or its link to one backend, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlowEnd {
    /// The flow was idle, its backend is gone, or the port is closed.
    Over,
    /// The task refused.
    Refused,
}

impl Flows {
    async fn receive(self: &Arc<Self>) {
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            match self.port.receive(&mut buffer).await {
                Ok((length, addresses)) => self.take(&buffer[..length], addresses),
                Err(error) => {
                    tracing::debug!(
                        published = self.published,
                        error = mesh_runtime::error_chain(&error),
                        "receive a datagram"
                    );
                    sleep(ERROR_PAUSE).await;
                }
            }
        }
    }

    /// Queues a datagram for its flow; a new flow is opened if there is none.
    fn take(self: &Arc<Self>, datagram: &[u8], addresses: DatagramAddresses) {
        let known = self.live().get(&addresses).cloned();
        let mut datagram = datagram.to_vec();
        if let Some(queue) = known {
            match queue.try_send(datagram) {
                Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => return,
                Err(mpsc::error::TrySendError::Closed(unsent)) => datagram = unsent,
            }
        }
        let Some(route) = self.proxy.routes().route(Protocol::Udp, self.published).cloned() else { return };
        if !route.admits(addresses.client.ip()) {
            return route.counters.count_denied();
        }
        let Ok(permit) = Arc::clone(&self.proxy.room).try_acquire_owned() else {
            return route.counters.count_no_room();
        };
        route.counters.count_opened();
        let (queue, waiting) = mpsc::channel(QUEUE);
        // A new queue always has room.
        if queue.try_send(datagram).is_ok() {
            self.live().insert(addresses, queue.clone());
            let flow = Flow { flows: Arc::clone(self), addresses, route, waiting };
            tokio::spawn(self.proxy.tracker.track_future(flow.run(queue.downgrade(), permit)));
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<DatagramAddresses, mpsc::Sender<Vec<u8>>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's flow.
struct Flow {
    flows: Arc<Flows>,
    addresses: DatagramAddresses,
    route: Arc<Route>,
    waiting: mpsc::Receiver<Vec<u8>>,
}

impl Flow {
    async fn run(mut self, own: mpsc::WeakSender<Vec<u8>>, permit: OwnedSemaphorePermit) {
        self.serve().await;
        self.waiting.close();
        let mut live = self.flows.live();
        if let Some(own) = own.upgrade()
            && live.get(&self.addresses).is_some_and(|queue| queue.same_channel(&own))
        {
            live.remove(&self.addresses);
        }
        drop(permit);
    }

    /// Tries backends until one serves the flow to its end.
    async fn serve(&mut self) {
        let proxy = Arc::clone(&self.flows.proxy);
        let turn = self.route.counters.next_turn();
        let mut refused: Vec<BackendId> = Vec::new();
        while refused.len() < ATTEMPTS_MAX {
            let client = self.addresses.client.ip();
            let selected = self.route.select(client, turn, &refused, &|id| proxy.load(id)).cloned();
            let Some(target) = selected else { break };
            let opened = target.entry.open_flow();
            let error = match self.link(&target).await {
                Ok((to, from)) => match self.carry(&target, to, from).await {
                    FlowEnd::Over => return,
                    FlowEnd::Refused => DialError::Refused { backend: target.id },
                },
                Err(error) => error,
            };
            drop(opened);
            target.note_failure(&error);
            refused.push(target.id);
        }
        self.route.counters.count_unassigned(!refused.is_empty());
    }

    async fn link(&self, target: &Target) -> Result<(Sender, Receiver), DialError> {
        let proxy = &self.flows.proxy;
        match &target.place {
            Place::Here(task) => {
                to_task(*task).await.map_err(|source| DialError::Connect { address: *task, source })
            }
            Place::Relay(relay) => {
                let destination = (self.addresses.to, self.flows.published).into();
                let addresses = ConnectionAddresses { client: self.addresses.client, destination };
                let (keys, source) = (proxy.relay_keys(), proxy.routes().address);
                let access = RelayAccess { source, keys: &keys, warm: &self.flows.warm };
                dial_relay(&access, *relay, target.id, addresses).await.map(|greeted| to_node(greeted.stream))
            }
            Place::Nowhere(node) => Err(DialError::UnknownNode(node.clone())),
        }
    }

    async fn carry(&mut self, target: &Target, mut to: Sender, mut from: Receiver) -> FlowEnd {
        let life = Life::new(self.flows.proxy.settings.udp_limits);
        let began = Instant::now();
        let (backend, frontend) = (&target.entry, &self.route.counters);
        let (flows, addresses, waiting) = (&self.flows, self.addresses, &mut self.waiting);
        let asks = async {
            while let Some(datagram) = waiting.recv().await {
                life.asked();
                if to.send(&datagram).await.is_err() {
                    return FlowEnd::Refused;
                }
                backend.bytes().count_request(datagram.len());
                frontend.bytes().count_request(datagram.len());
            }
            FlowEnd::Over
        };
        let answers = async {
            let mut datagram = Vec::new();
            while let Ok(true) = from.receive(&mut datagram).await {
                if life.answered() {
                    backend.count_answered();
                    frontend.time_connect(began.elapsed());
                }
                if let Err(error) = flows.port.answer(&datagram, addresses) {
                    tracing::debug!(client = %addresses.client, error = mesh_runtime::error_chain(&error), "drop a datagram to a client");
                    continue;
                }
                backend.bytes().count_reply(datagram.len());
                frontend.bytes().count_reply(datagram.len());
            }
            FlowEnd::Refused
        };
        let end = tokio::select! {
            end = asks => end,
            end = answers => end,
            () = life.ends() => FlowEnd::Over,
            () = backend.gone().signalled() => FlowEnd::Over,
        };
        if end == FlowEnd::Over {
            // The idle time at the end doesn't count.
            frontend.time_life(life.last().saturating_duration_since(began));
        }
        end
    }
}

/// Tracks when a flow becomes idle.
struct Life {
    limits: UdpLimits,
    heard: Mutex<FlowActivity>,
}

/// The datagrams of a flow so far.
#[derive(Debug, Clone, Copy)]
struct FlowActivity {
    last: Instant,
    is_answered: bool,
    is_established: bool,
}

impl Life {
    fn new(limits: UdpLimits) -> Self {
        let heard = FlowActivity { last: Instant::now(), is_answered: false, is_established: false };
        Self { limits, heard: Mutex::new(heard) }
    }

    fn asked(&self) {
        let mut heard = self.heard();
        heard.last = Instant::now();
        heard.is_established = heard.is_answered;
    }

    /// Records an answer; returns whether it was the first.
    fn answered(&self) -> bool {
        let mut heard = self.heard();
        heard.last = Instant::now();
        !std::mem::replace(&mut heard.is_answered, true)
    }

    /// When the last datagram was seen in either direction.
    fn last(&self) -> Instant {
        self.heard().last
    }

    fn heard(&self) -> MutexGuard<'_, FlowActivity> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ends(&self) {
        loop {
            let heard = *self.heard();
            let limit = if heard.is_established { self.limits.established } else { self.limits.new };
            let deadline = heard.last + limit;
            if deadline <= Instant::now() {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flow_lives_longer_once_the_client_spoke_after_an_answer() {
        let limits = UdpLimits { new: Duration::from_secs(30), established: Duration::from_mins(3) };
        for (talk, expected) in [("", 30), ("q", 30), ("qa", 30), ("qqa", 30), ("qaq", 180), ("qaqaq", 180)] {
            let life = Life::new(limits);
            for part in talk.chars() {
                if part == 'q' {
                    life.asked();
                } else {
                    life.answered();
                }
            }
            let began = Instant::now();
            life.ends().await;
            let seconds = began.elapsed().as_secs();
            assert!(
                (expected..=expected + 1).contains(&seconds),
                "{talk:?}: {seconds} s, expected {expected}"
            );
        }
    }
}
