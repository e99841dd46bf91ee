//! How many connections the limit of open files leaves room for: the proxy's, and those of the agent's own listeners.
//!
//! Invariant: connections never take the last descriptors; the rest of the agent needs some.

use mesh_admission::descriptors::{self, Want};
use mesh_admission::figures::{Figures, Listener};

/// For all that is no connection of a client's.
const OTHERS: usize = 512;
/// The agent's own listeners: a client of docker.sock takes a connection to the engine and one to mesh-control beside its own.
const WANTS: [Want; 2] = [(Listener::DockerSocket, 3), (Listener::AgentMetrics, 1)];
/// A proxied connection takes two; clients and other nodes have as many connections each, and as many between nodes may wait for use.
const OF_ONE_CONNECTION: usize = 5;

/// How the descriptors are shared out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Room {
    /// Proxied connections.
    pub(super) connections: usize,
    /// What docker.sock admits.
    pub(super) docker: Figures,
    /// What the metrics' listener admits.
    pub(super) metrics: Figures,
}

/// Raises the limit of open files as far as `connections_max` needs and the system allows; tells how many connections fit.
pub(super) fn make_room(connections_max: usize) -> Room {
    let wanted = reserved() + OF_ONE_CONNECTION * connections_max;
    let files = usize::try_from(descriptors::raise(wanted as u64)).unwrap_or(usize::MAX);
    let room = fitting(files, connections_max);
    if room.connections < connections_max {
        tracing::warn!(
            files,
            connections = room.connections,
            wanted = connections_max,
            "the limit of open files leaves room for fewer connections: raise it (LimitNOFILE= of the unit)"
        );
    }
    room
}

fn reserved() -> usize {
    OTHERS + descriptors::needed(&WANTS)
}

fn fitting(files: usize, connections_max: usize) -> Room {
    let reserve = reserved().min(files / 2);
    let listeners = reserve - OTHERS.min(reserve / 2);
    let share = descriptors::share_out(listeners, &WANTS);
    let connections = ((files - reserve) / OF_ONE_CONNECTION).clamp(1, connections_max);
    Room { connections, docker: share[0], metrics: share[1] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_what_is_not_reserved() {
        let whole = fitting(reserved() + 5 * 65_536, 65_536);
        assert_eq!(whole.connections, 65_536);
        assert_eq!(whole.docker, Listener::DockerSocket.figures(), "all that it may have");
        assert_eq!(fitting(usize::MAX / 16, 65_536), whole, "no more than wanted");
        for files in [64, 1024, 4096, 65_536] {
            let room = fitting(files, 65_536);
            let taken =
                OF_ONE_CONNECTION * room.connections + 3 * room.docker.connections + room.metrics.connections;
            assert!(room.connections >= 1 && taken <= files, "{taken} of {files}: {room:?}");
        }
        assert!(fitting(1024, 65_536).docker.connections >= 64, "commands still go through");
    }
}
