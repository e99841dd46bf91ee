//! The table of limits: what each listener admits, and how large a node's reports may be.
//!
//! Invariant: every limit on input from outside is in this file, so that one reading shows what a
//! client can use up.

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
    /// mesh-control's Docker API for clients on other machines (2376).
    RemoteApi,
    /// `/metrics` of the agent (9464).
    AgentMetrics,
    /// `/metrics` of mesh-control (9465).
    ControlMetrics,
    /// The relay between nodes (4800).
    Relay,
    /// The agent's name server for the tasks of its node (53).
    Names,
}

/// The limits of one listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// The most open connections.
    pub connections: usize,
    /// The most of them that wait: without a request in service, or without a proof of membership.
    pub waiting: usize,
    /// The most open connections of one address. Unix sockets have no addresses.
    pub per_peer: usize,
    /// The most of them that wait.
    pub waiting_per_peer: usize,
    /// How long a connection may wait: for a whole request head, between two requests, or for a
    /// proof of membership.
    pub wait: Duration,
    /// How long a connection must have waited before it may be evicted for a new one: a client
    /// sends its request at once, and over a network within a round trip.
    pub evictable_after: Duration,
    /// How long a client may leave an answer unread. `None`: without limit, as the reader of a log
    /// may.
    pub stall: Option<Duration>,
    /// The most endless answers (events, followed logs, attached containers) at a time.
    pub streams: usize,
    /// The most calls at a time that wait for others (the engine's, and endless ones). The rest of
    /// `connections` is reserved for short calls to the cluster.
    pub slow_calls: usize,
}

/// The pause after `accept` failed for lack of descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The most connections beyond the cap that get an answer at the same time; further ones are closed
/// without one.
pub const TURNED_AWAY_AT_ONCE: usize = 64;
/// The deadline for the request on such a connection.
pub const TURNED_AWAY_WITHIN: Duration = Duration::from_secs(1);
/// How often one listener logs refusals of one reason.
pub const LOGGED_EVERY: Duration = Duration::from_secs(10);
/// The most bytes of a log line; the rest is cut off.
pub const LOG_LINE_BYTES: usize = 8 * 1024;
/// The most characters of a text from outside in a log line.
pub const LOGGED_CHARACTERS: usize = 256;

impl Listener {
    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DockerSocket => "docker-socket",
            Self::ControlSocket => "control-socket",
            Self::Nodes => "nodes",
            Self::RemoteApi => "remote-api",
            Self::AgentMetrics => "agent-metrics",
            Self::ControlMetrics => "control-metrics",
            Self::Relay => "relay",
            Self::Names => "names",
        }
    }

    /// The listener's limits.
    pub fn figures(self) -> Figures {
        match self {
            Self::DockerSocket => Figures {
                connections: 1024,
                waiting: 1024,
                per_peer: usize::MAX,
                waiting_per_peer: usize::MAX,
                wait: Duration::from_mins(1),
                // A client of a unix socket is on this machine and sends its request at once. The
                // connection that waits longest is evicted first, so 1,024 newer ones must come
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
            // Strangers wait at most this long for the end of the TLS handshake. Clients may share
            // an address.
            Self::RemoteApi => Figures {
                connections: 512,
                waiting: 128,
                per_peer: 256,
                waiting_per_peer: 32,
                wait: Duration::from_secs(15),
                evictable_after: Duration::from_secs(1),
                stall: None,
                streams: 256,
                slow_calls: 448,
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
            // The relay has limits of its own (`--proxy-connections-max`); only its log is limited
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
            // By TCP; datagrams have no connections.
            Self::Names => Figures {
                connections: 128,
                waiting: 128,
                per_peer: 16,
                waiting_per_peer: 16,
                wait: Duration::from_secs(10),
                evictable_after: Duration::from_secs(1),
                stall: Some(Duration::from_secs(5)),
                streams: usize::MAX,
                slow_calls: usize::MAX,
            },
        }
    }
}

impl Figures {
    /// These limits for at most `connections`, as many as the limit of open files allows. All
    /// shares shrink alike.
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

/// The limits of a node's messages in its session.
pub mod report {
    /// The most bytes of one message on the wire; batches of log lines may be long.
    pub const WIRE_BYTES: usize = 16 << 20;
    /// The most bytes of one message of a session.
    pub const MESSAGE_BYTES: usize = 4 << 20;
    /// The most bytes of a node's description, as JSON.
    pub const DESCRIPTION_BYTES: usize = 64 * 1024;
    /// The most bytes of a hostname (names in DNS have up to 253).
    pub const HOSTNAME_BYTES: usize = 253;
    /// The most bytes of a task's id.
    pub const ID_BYTES: usize = 64;
    /// The most bytes of a text in a task's status: its message, its error, an id.
    pub const TEXT_BYTES: usize = 4 * 1024;
    /// The most bytes of a task's status, as JSON.
    pub const STATUS_BYTES: usize = 128 * 1024;
    /// The most statuses in one message.
    pub const STATUSES: usize = 4096;
    /// The most statuses of one node that wait for the store.
    pub const STATUSES_WAITING: usize = 65_536;
    /// The most host-published ports of a container.
    pub const CONTAINER_PORTS: usize = 1024;
    /// The most ports that a node reports as clashes.
    pub const CLASHES: usize = 4096;
    /// The most bytes of the reason of one clash.
    pub const CLASH_BYTES: usize = 256;
    /// The most bytes of all clashes of a node together, as they are stored.
    pub const CLASHES_BYTES: usize = 512 * 1024;
    /// The most networks that a node reports of its host. What is beyond is not looked at.
    pub const HOST_NETWORKS: usize = 1024;
    /// The most loads in one heartbeat: as many as there are backend ids.
    pub const LOADS: usize = 65_535;
    /// The most lines and ends in one batch of logs.
    pub const LOG_LINES: usize = 16_384;
    /// The most messages of one node in a second, in the long run.
    pub const MESSAGES_A_SECOND: u32 = 500;
    /// The most messages of one node in a burst.
    pub const MESSAGES_AT_ONCE: u32 = 10_000;
    /// The most sessions that one node opens in a second, in the long run.
    pub const SESSIONS_A_SECOND: u32 = 1;
    /// The most sessions that one node opens in a burst.
    pub const SESSIONS_AT_ONCE: u32 = 30;
}

/// The limits of join calls. Anybody may call.
pub mod join {
    /// The most bytes of the whole call.
    pub const MESSAGE_BYTES: usize = 32 * 1024;
    /// The most bytes of a token (real ones have about 110).
    pub const TOKEN_BYTES: usize = 256;
    /// The most bytes of a certificate request.
    pub const REQUEST_BYTES: usize = 16 * 1024;
    /// The most calls of one address in a second, in the long run.
    pub const A_SECOND: u32 = 1;
    /// The most calls of one address in a burst.
    pub const AT_ONCE: u32 = 30;
    /// The most addresses whose calls are counted; a new one replaces the one that was quiet
    /// longest.
    pub const PEERS: usize = 4096;
}

/// How large and how many the questions for names may be that tasks ask of their node's agent.
pub mod names {
    use std::time::Duration;

    /// Bytes of a question. Real ones have less than 512.
    pub const QUESTION_BYTES: usize = 4096;
    /// Bytes of an answer by UDP: what goes over every link in one piece.
    pub const ANSWER_BYTES: usize = 1232;
    /// Resolvers of the host that are used, as by libc.
    pub const RESOLVERS: usize = 3;
    /// Questions for foreign names under way; each takes a socket.
    pub const UNDER_WAY: usize = 256;
    /// Of those, questions of one task.
    pub const UNDER_WAY_PER_TASK: usize = 128;
    /// How long a question of a task that is not known yet may wait for it to become so.
    pub const STRANGER_WAIT: Duration = Duration::from_secs(1);
    /// Questions that wait so.
    pub const STRANGERS: usize = 64;
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Listener; 8] = [
        Listener::DockerSocket,
        Listener::ControlSocket,
        Listener::Nodes,
        Listener::RemoteApi,
        Listener::AgentMetrics,
        Listener::ControlMetrics,
        Listener::Relay,
        Listener::Names,
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
        for socket in [Listener::DockerSocket, Listener::ControlSocket, Listener::RemoteApi] {
            let scaled = socket.figures().scaled_to(128);
            assert!(scaled.slow_calls < scaled.connections, "nothing is kept for short calls: {scaled:?}");
            assert!(scaled.streams < scaled.slow_calls, "streams take every slow call: {scaled:?}");
        }
    }
}
