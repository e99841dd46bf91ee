//! Whether the session's node counts as heard: it sends messages, and its engine answers.

use chrono::Utc;
use mesh_state::node::NodeState;
use tokio::time::Instant;
use tracing::info;

use super::super::mailbox::Heard;
use super::{SILENCE, Session};

impl Session {
    /// Notes that the node has sent a message.
    pub(super) fn note_heard(&mut self) {
        self.last_heard = Instant::now();
        if self.welcomed && self.heard_since.is_none() && !self.engine_away {
            self.heard_since = Some(Utc::now());
            self.report_heard();
        }
    }

    /// Notes whether the node's engine answers. If it doesn't, the node counts as silent: its tasks
    /// are replaced if the engine stays away, and their backends are selected last.
    pub(super) fn note_engine(&mut self, away: bool) {
        if std::mem::replace(&mut self.engine_away, away) == away {
            return;
        }
        info!(node = %self.node, away, "the node's engine changed");
        if away && self.heard_since.is_some() {
            self.fall_silent();
        } else {
            self.note_heard();
        }
    }

    /// Notes that the node sent nothing for too long.
    pub(super) fn note_silence(&mut self) {
        info!(node = %self.node, "is silent: nothing was heard for {SILENCE:?}");
        self.fall_silent();
    }

    fn fall_silent(&mut self) {
        self.heard_since = None;
        self.report(Heard { state: NodeState::Silent, since: Utc::now() });
    }

    /// Reports the node as heard, if it is.
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
