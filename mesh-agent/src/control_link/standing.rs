//! Decides whether the cluster still knows this node.
//!
//! A manager that has proved itself by its certificate may refuse this node as no member: somebody
//! removed it by force. Its tasks are then replaced elsewhere, so after a grace time the node gives
//! up its tasks and its table. Losing every manager is different: a node that nobody refuses goes
//! on for ever.
//!
//! Invariants: pure; a node is expelled by two refusals that are at least the grace time apart,
//! with no welcome between them.

use std::time::Duration;

use tokio::time::Instant;

/// The refusals of this node since its last welcome.
#[derive(Debug, Default)]
pub(super) struct Standing {
    refused_since: Option<Instant>,
}

impl Standing {
    /// Records that a manager welcomed this node.
    pub(super) fn welcomed(&mut self) {
        self.refused_since = None;
    }

    /// Records that a manager refused this node as no member; returns whether the node must give up
    /// its tasks and table.
    pub(super) fn refused(&mut self, now: Instant, grace: Duration) -> bool {
        now.duration_since(*self.refused_since.get_or_insert(now)) >= grace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_expelled_when_it_is_still_refused_after_the_grace_time() {
        const GRACE: Duration = Duration::from_secs(30);
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut standing = Standing::default();
        assert!(!standing.refused(at(0), GRACE));
        assert!(!standing.refused(at(29), GRACE));
        standing.welcomed();
        assert!(!standing.refused(at(31), GRACE), "it was a member in between");
        assert!(!standing.refused(at(60), GRACE));
        assert!(standing.refused(at(61), GRACE));
        assert!(standing.refused(at(62), GRACE), "and so it stays");
    }
}
