//! Computes how many connections the limit of open files (`RLIMIT_NOFILE`) allows: the proxy's, and
//! those of the agent's own listeners.
//!
//! Invariant: connections never use up the file descriptors; the rest of the agent needs some.

use mesh_admission::descriptors::{self, Want};
use mesh_admission::figures::{Figures, Listener, names};

use crate::proxy::pipes_beside;

/// Reserved for everything that is no client's connection, a socket for each question that the name
/// server passes on included.
const OTHERS: usize = 512 + names::UNDER_WAY;
/// The agent's own listeners: a client of docker.sock takes a connection to the engine and one to
/// mesh-control beside its own.
const WANTS: [Want; 3] = [(Listener::DockerSocket, 3), (Listener::AgentMetrics, 1), (Listener::Names, 1)];
/// A proxied connection takes two; clients and other nodes have as many connections each, and as
/// many between nodes may wait in the pools.
const OF_ONE_CONNECTION: usize = 5;
/// A pipe has two ends.
const OF_ONE_PIPE: usize = 2;

/// How the file descriptors are divided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Room {
    /// The most proxied connections.
    pub(super) connections: usize,
    /// The limits of docker.sock.
    pub(super) docker: Figures,
    /// The limits of the metrics listener.
    pub(super) metrics: Figures,
    /// The limits of the name server, by TCP.
    pub(super) names: Figures,
}

/// Raises the limit of open files as far as `connections_max` needs and the system allows; returns
/// how many connections fit.
pub(super) fn make_room(connections_max: usize) -> Room {
    let wanted = reserved() + taken_by(connections_max);
    let files = usize::try_from(descriptors::raise(wanted as u64)).unwrap_or(usize::MAX);
    let room = fitting(files, connections_max);
    if room.connections < connections_max {
        tracing::warn!(
            files,
            connections = room.connections,
            connections_max,
            "the limit of open files leaves room for fewer connections: set LimitNOFILE={wanted} in the unit"
        );
    }
    room
}

/// File descriptors of that many connections and the pipes beside them.
fn taken_by(connections: usize) -> usize {
    OF_ONE_CONNECTION.saturating_mul(connections) + OF_ONE_PIPE * pipes_beside(connections)
}

/// The most connections for which `files` descriptors are enough.
fn connections_within(files: usize) -> usize {
    // One pipe for each eight connections; beyond the most pipes, connections alone.
    let with_pipes = files.saturating_mul(4) / (4 * OF_ONE_CONNECTION + OF_ONE_PIPE / 2);
    let beyond = files.saturating_sub(OF_ONE_PIPE * pipes_beside(usize::MAX)) / OF_ONE_CONNECTION;
    with_pipes.max(beyond)
}

fn reserved() -> usize {
    OTHERS + descriptors::needed(&WANTS)
}

fn fitting(files: usize, connections_max: usize) -> Room {
    let reserve = reserved().min(files / 2);
    let listeners = reserve - OTHERS.min(reserve / 2);
    let share = descriptors::share_out(listeners, &WANTS);
    let connections = connections_within(files - reserve).clamp(1, connections_max);
    Room { connections, docker: share[0], metrics: share[1], names: share[2] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_what_is_not_reserved() {
        let whole = fitting(reserved() + taken_by(65_536), 65_536);
        assert_eq!(whole.connections, 65_536);
        assert_eq!(whole.docker, Listener::DockerSocket.figures(), "all that it may have");
        assert_eq!(fitting(usize::MAX / 16, 65_536), whole, "no more than wanted");
        for files in [64, 1024, 4096, 20_000, 65_536, 200_000] {
            let room = fitting(files, 65_536);
            let taken = taken_by(room.connections)
                + 3 * room.docker.connections
                + room.metrics.connections
                + room.names.connections;
            assert!(room.connections >= 1 && taken <= files, "{taken} of {files}: {room:?}");
        }
        assert!(fitting(1024, 65_536).docker.connections >= 64, "commands still go through");
    }

    #[test]
    fn the_limit_is_as_the_readme_says() {
        assert_eq!(reserved() + taken_by(65_536), 339_904);
        let rooms = [20_000, 65_536].map(|files| fitting(files, 65_536).connections);
        assert_eq!(rooms, [3041, 11_715]);
    }
}
