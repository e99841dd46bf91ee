//! How many connections the limit of open files leaves room for.
//!
//! Invariant: connections never take the last descriptors; the rest of the agent needs some.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For all that isn't a proxied connection.
const RESERVED: u64 = 1024;
/// A connection takes two; clients and other nodes have as many connections each, and as many between nodes may wait for use.
const OF_ONE_CONNECTION: u64 = 5;

/// Raises the limit of open files as far as `connections_max` needs and the system allows; tells how many connections fit.
pub(super) fn make_room(connections_max: usize) -> usize {
    let wanted = needed(connections_max);
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.map_or(wanted, |maximum| maximum.max(wanted));
    // Beyond the hard limit needs a privilege; up to it doesn't.
    let raised = [hard, limit.maximum.unwrap_or(hard)].into_iter().find(|files| {
        let maximum = limit.maximum.map(|maximum| maximum.max(*files));
        setrlimit(Resource::Nofile, Rlimit { current: Some(*files), maximum }).is_ok()
    });
    let files = raised.or(limit.current).unwrap_or(wanted);
    let connections = fitting(files, connections_max);
    if connections < connections_max {
        tracing::warn!(
            files,
            connections,
            wanted = connections_max,
            "the limit of open files leaves room for fewer connections: raise it (LimitNOFILE= of the unit)"
        );
    }
    connections
}

fn needed(connections_max: usize) -> u64 {
    RESERVED + OF_ONE_CONNECTION * connections_max as u64
}

fn fitting(files: u64, connections_max: usize) -> usize {
    let fit = files.saturating_sub(RESERVED) / OF_ONE_CONNECTION;
    usize::try_from(fit).unwrap_or(usize::MAX).clamp(1, connections_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_what_is_not_reserved() {
        assert_eq!(fitting(needed(65_536), 65_536), 65_536);
        assert_eq!(fitting(needed(65_536) + 5, 65_536), 65_536, "no more than wanted");
        assert_eq!(fitting(4096, 65_536), 614);
        assert_eq!(fitting(1024, 65_536), 1, "one at least");
    }
}
