//! The newest events, and those who wait for more.
//!
//! Invariant: whoever listens gets what is kept and what comes after it, without a gap and without
//! one twice, unless it is slower than [`WAITING`] events.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use super::SwarmEvent;

/// Events kept for those who ask for the past.
pub const KEPT: usize = 256;
/// Events that wait for a slow listener before it misses some.
const WAITING: usize = 1024;

/// What happened lately. Clones share it.
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
    /// Keeps `event` and tells it.
    pub(crate) fn add(&self, event: SwarmEvent) {
        let event = Arc::new(event);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&event));
        // Under the lock, so that nobody who begins to listen misses it. Without listeners it is
        // only kept.
        drop(self.listeners.send(event));
    }

    /// What is kept, oldest first, and what comes.
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
    fn the_newest_are_kept_and_the_next_are_told() {
        let log = EventLog::default();
        (0..KEPT + 10).for_each(|id| log.add(event(id)));
        let (kept, mut coming) = log.listen();
        assert_eq!((kept.len(), kept[0].id.as_str()), (KEPT, "10"));
        log.add(event(7));
        assert_eq!(coming.try_recv().unwrap().id, "7");
        assert!(coming.try_recv().is_err(), "an event was told twice");
    }
}
