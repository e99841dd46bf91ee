//! Whether the session's node is heard: it speaks, and it has its engine.

use chrono::Utc;
use mesh_state::node::NodeState;
use tokio::time::Instant;
use tracing::info;

use super::super::mailbox::Heard;
use super::{SILENCE, Session};

impl Session {
    /// The node speaks.
    pub(super) fn note_heard(&mut self) {
        self.last_heard = Instant::now();
        if self.welcomed && self.heard_since.is_none() && !self.engine_away {
            self.heard_since = Some(Utc::now());
            self.report_heard();
        }
    }

    /// Whether the node has its engine. Without, it is as good as silent: its tasks are replaced if
    /// the engine stays away, and what still runs of them is selected last.
    pub(super) fn note_engine(&mut self, away: bool) {
        if std::mem::replace(&mut self.engine_away, away) == away {
            return;
        }
        info!(node = %self.node, away, "its engine");
        if away && self.heard_since.is_some() {
            self.fall_silent();
        } else {
            self.note_heard();
        }
    }

    /// The node said nothing for too long.
    pub(super) fn note_silence(&mut self) {
        info!(node = %self.node, "is silent: nothing was heard for {SILENCE:?}");
        self.fall_silent();
    }

    fn fall_silent(&mut self) {
        self.heard_since = None;
        self.report(Heard { state: NodeState::Silent, since: Utc::now() });
    }

    /// Says that the node is heard, if it is.
    pub(super) fn report_heard(&self) {
        if let Some(since) = self.heard_since {
            self.report(Heard { state: NodeState::Ready, since });
        }
    }

    fn report(&self, heard: Heard) {
        let node = self.node.clone();
        self.reports.leave(|mailbox| mailbox.put_heard(node, heard));
    }
}
