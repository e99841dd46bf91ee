//! The table of limits: what each listener admits, and how large a report of a node may be.
//!
//! Invariant: every limit on what comes from outside stands here, so that one reading tells what a
//! client can take up.

use std::time::Duration;

/// A listener of a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Listener {
    /// The agent's `docker.sock`.
    DockerSocket,
    /// mesh-control's socket, which the agent of its node calls.
    ControlSocket,
    /// mesh-control's gRPC port for nodes (2377).
    Nodes,
    /// `/metrics` of the agent (9464).
    AgentMetrics,
    /// `/metrics` of mesh-control (9465).
    ControlMetrics,
    /// The relay between nodes (4800).
    Relay,
}

/// What one listener admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Connections open at once.
    pub connections: usize,
    /// Of those, connections that wait: without a request in service, or without a proof of
    /// membership.
    pub waiting: usize,
    /// Connections of one address open at once. Unix sockets know no addresses.
    pub per_peer: usize,
    /// Of those, connections that wait.
    pub waiting_per_peer: usize,
    /// How long a connection may wait: for a whole head, between two requests, or for a proof of
    /// membership.
    pub wait: Duration,
    /// A connection that has waited this long may be closed to make room for a new one: a client
    /// sends its request at once, and over a network within a round trip.
    pub evictable_after: Duration,
    /// How long a client may leave an answer unread. `None`: as long as it likes, as the reader of
    /// a log may.
    pub stall: Option<Duration>,
    /// Answers without an end (events, logs that are followed, attached containers) at once.
    pub streams: usize,
    /// Calls that others may hold up (the engine's, and those without an end) at once. What is left
    /// of `connections` is kept for short calls to the cluster.
    pub slow_calls: usize,
}

/// The pause after `accept` failed, for want of descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections beyond the cap that are told so at the same time; further ones are closed without a
/// word.
pub const TURNED_AWAY_AT_ONCE: usize = 64;
/// How long such a connection may take to send its request.
pub const TURNED_AWAY_WITHIN: Duration = Duration::from_secs(1);
/// How often refusals of one reason are logged by one listener.
pub const LOGGED_EVERY: Duration = Duration::from_secs(10);
/// Bytes of a log line; the rest of a longer one is cut off.
pub const LOG_LINE_BYTES: usize = 8 * 1024;
/// Characters of a text from outside in a log line.
pub const LOGGED_CHARACTERS: usize = 256;

impl Listener {
    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DockerSocket => "docker-socket",
            Self::ControlSocket => "control-socket",
            Self::Nodes => "nodes",
            Self::AgentMetrics => "agent-metrics",
            Self::ControlMetrics => "control-metrics",
            Self::Relay => "relay",
        }
    }

    /// What it admits.
    pub fn figures(self) -> Figures {
        match self {
            Self::DockerSocket => Figures {
                connections: 1024,
                waiting: 1024,
                per_peer: usize::MAX,
                waiting_per_peer: usize::MAX,
                wait: Duration::from_mins(1),
                // A client of a unix socket is on this machine and sends its request at
                // once. The one that waits longest goes first, so 1,024 newer ones must come
                // before it is closed.
                evictable_after: Duration::from_millis(10),
                stall: None,
                streams: 512,
                slow_calls: 896,
            },
            Self::ControlSocket => Figures { wait: Duration::from_secs(30), ..Self::DockerSocket.figures() },
            Self::Nodes => Figures {
                connections: 8192,
                waiting: 512,
                per_peer: 512,
                waiting_per_peer: 32,
                wait: Duration::from_secs(15),
                evictable_after: Duration::from_secs(1),
                stall: None,
                streams: usize::MAX,
                slow_calls: usize::MAX,
            },
            Self::AgentMetrics | Self::ControlMetrics => Figures {
                connections: 64,
                waiting: 64,
                per_peer: 16,
                waiting_per_peer: 16,
                wait: Duration::from_secs(20),
                evictable_after: Duration::from_secs(1),
                stall: Some(Duration::from_secs(10)),
                streams: 64,
                slow_calls: 64,
            },
            // The relay keeps to its own rooms (`--proxy-connections-max`); only its log is limited
            // here.
            Self::Relay => Figures {
                connections: usize::MAX,
                waiting: usize::MAX,
                per_peer: usize::MAX,
                waiting_per_peer: usize::MAX,
                wait: Duration::from_secs(30),
                evictable_after: Duration::from_secs(1),
                stall: None,
                streams: usize::MAX,
                slow_calls: usize::MAX,
            },
        }
    }
}

impl Figures {
    /// The same, with at most `connections`: what the limit of open files leaves room for. Shares
    /// shrink alike.
    #[must_use]
    pub fn scaled_to(self, connections: usize) -> Self {
        let connections = connections.clamp(1, self.connections);
        let part = |figure: usize| match figure {
            usize::MAX => usize::MAX,
            figure => (figure.saturating_mul(connections) / self.connections).max(1),
        };
        Self {
            connections,
            waiting: part(self.waiting),
            streams: part(self.streams),
            slow_calls: part(self.slow_calls),
            ..self
        }
    }
}

/// How large what a node says in its session may be.
pub mod report {
    /// Bytes of one message on the wire; lines of logs may be long.
    pub const WIRE_BYTES: usize = 16 << 20;
    /// Bytes of one message of a session.
    pub const MESSAGE_BYTES: usize = 4 << 20;
    /// Bytes of a node's description, as JSON.
    pub const DESCRIPTION_BYTES: usize = 64 * 1024;
    /// Bytes of a hostname (names in DNS have up to 253).
    pub const HOSTNAME_BYTES: usize = 253;
    /// Bytes of a task's id.
    pub const ID_BYTES: usize = 64;
    /// Bytes of a text of a task's status: its message, its error, an id.
    pub const TEXT_BYTES: usize = 4 * 1024;
    /// Bytes of a task's status, as JSON.
    pub const STATUS_BYTES: usize = 128 * 1024;
    /// Statuses in one message.
    pub const STATUSES: usize = 4096;
    /// Statuses of one node that wait for the store.
    pub const STATUSES_WAITING: usize = 65_536;
    /// Host-published ports of a container.
    pub const CONTAINER_PORTS: usize = 1024;
    /// Ports that a node says it can't listen on.
    pub const CLASHES: usize = 4096;
    /// Bytes of the reason of one.
    pub const CLASH_BYTES: usize = 256;
    /// Bytes of all clashes of a node together, as they are stored.
    pub const CLASHES_BYTES: usize = 512 * 1024;
    /// Loads in one heartbeat: as many as there are ids of backends.
    pub const LOADS: usize = 65_535;
    /// Lines and ends in one batch of logs.
    pub const LOG_LINES: usize = 16_384;
    /// Messages of one node in a second, and at once.
    pub const MESSAGES_A_SECOND: u32 = 500;
    /// See [`MESSAGES_A_SECOND`].
    pub const MESSAGES_AT_ONCE: u32 = 10_000;
    /// Sessions that one node opens in a second, and at once.
    pub const SESSIONS_A_SECOND: u32 = 1;
    /// See [`SESSIONS_A_SECOND`].
    pub const SESSIONS_AT_ONCE: u32 = 30;
}

/// How large and how frequent calls to join may be. Anybody may call.
pub mod join {
    /// Bytes of the whole call.
    pub const MESSAGE_BYTES: usize = 32 * 1024;
    /// Bytes of a token (real ones have about 110).
    pub const TOKEN_BYTES: usize = 256;
    /// Bytes of a certificate request.
    pub const REQUEST_BYTES: usize = 16 * 1024;
    /// Calls of one address in a second, and at once.
    pub const A_SECOND: u32 = 1;
    /// See [`A_SECOND`].
    pub const AT_ONCE: u32 = 30;
    /// Addresses whose calls are counted; a stranger to a full table takes the place of the one
    /// that was quiet longest.
    pub const PEERS: usize = 4096;
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Listener; 6] = [
        Listener::DockerSocket,
        Listener::ControlSocket,
        Listener::Nodes,
        Listener::AgentMetrics,
        Listener::ControlMetrics,
        Listener::Relay,
    ];

    #[test]
    fn shares_leave_a_reserve_and_shrink_with_the_whole() {
        for listener in ALL {
            let whole = listener.figures();
            assert!(whole.streams <= whole.slow_calls, "{listener:?}: streams are slow calls");
            for connections in [1, 7, 100, 1024, 100_000] {
                let scaled = whole.scaled_to(connections);
                assert!(
                    scaled.connections <= connections,
                    "{listener:?} scaled to {connections}: {scaled:?}"
                );
                assert!(scaled.streams >= 1 && scaled.waiting >= 1, "{listener:?} scaled to {connections}");
            }
        }
        for socket in [Listener::DockerSocket, Listener::ControlSocket] {
            let scaled = socket.figures().scaled_to(128);
            assert!(scaled.slow_calls < scaled.connections, "nothing is kept for short calls: {scaled:?}");
            assert!(scaled.streams < scaled.slow_calls, "streams take every slow call: {scaled:?}");
        }
    }
}
