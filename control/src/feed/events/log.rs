//! The newest events, and the listeners for further ones.
//!
//! Invariant: a listener gets the kept events and all that follow, without a gap or a duplicate,
//! unless it falls more than [`WAITING`] events behind.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use super::SwarmEvent;

/// Events kept for clients that ask for past ones.
pub const KEPT: usize = 256;
/// Events queued for a slow listener before it misses some.
const WAITING: usize = 1024;

/// The newest events. Clones share them.
#[derive(Debug, Clone)]
pub struct EventLog {
    kept: Arc<Mutex<VecDeque<Arc<SwarmEvent>>>>,
    listeners: broadcast::Sender<Arc<SwarmEvent>>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { kept: Arc::default(), listeners: broadcast::channel(WAITING).0 }
    }
}

impl EventLog {
    /// Keeps `event` and sends it to the listeners.
    pub(crate) fn add(&self, event: SwarmEvent) {
        let event = Arc::new(event);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&event));
        // Sent under the lock, so that a new listener doesn't miss it. Without listeners, sending
        // fails and the event is only kept.
        drop(self.listeners.send(event));
    }

    /// The kept events, oldest first, and the channel of further ones.
    pub(crate) fn listen(&self) -> (Vec<Arc<SwarmEvent>>, broadcast::Receiver<Arc<SwarmEvent>>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.listeners.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::feed::events::{Action, EventKind};

    fn event(id: usize) -> SwarmEvent {
        let (kind, action) = (EventKind::Service, Action::Create);
        let (attributes, at) = (BTreeMap::new(), mesh_state::Timestamp::default());
        SwarmEvent { kind, action, id: id.to_string(), attributes, at }
    }

    #[test]
    fn a_listener_gets_the_kept_events_and_the_next_ones() {
        let log = EventLog::default();
        (0..KEPT + 10).for_each(|id| log.add(event(id)));
        let (kept, mut coming) = log.listen();
        assert_eq!((kept.len(), kept[0].id.as_str()), (KEPT, "10"));
        log.add(event(7));
        assert_eq!(coming.try_recv().unwrap().id, "7");
        assert!(coming.try_recv().is_err(), "an event was sent twice");
    }
}
