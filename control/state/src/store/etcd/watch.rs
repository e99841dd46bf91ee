//! A watch through one etcd member, until that member is abandoned.
//!
//! Invariant: an event holds whole revisions, in order; the stream ends after an error and after
//! [`WatchEvent::Compacted`].

use etcd_client::{EventType, WatchResponse, WatchStream};
use tokio::sync::watch;

use super::failures::store_error;
use super::{key_value, told};
use crate::store::{Change, StoreError, WatchEvent};

/// An event, or the error that ended the watch.
type WatchItem = Result<WatchEvent, StoreError>;

/// A watch with the index of its member.
pub(super) struct Watch {
    pub(super) stream: WatchStream,
    /// The member in use now.
    pub(super) current: watch::Receiver<usize>,
    pub(super) through: usize,
}

impl Watch {
    /// The next event, with the watch unless it has ended.
    pub(super) async fn next(mut self) -> Option<(WatchItem, Option<Self>)> {
        let lost = |message| StoreError::Unavailable { operation: "watch", message };
        loop {
            let answer = tokio::select! {
                answer = self.stream.message() => answer,
                Ok(_) = self.current.wait_for(|current| *current != self.through) => {
                    return Some((Err(lost("its etcd member is away".to_owned())), None));
                }
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => return Some((Err(lost("the watch ended".to_owned())), None)),
                Err(error) => return Some((Err(store_error("watch", &error)), None)),
            };
            if answer.canceled() {
                let item = if answer.compact_revision() > 0 {
                    Ok(WatchEvent::Compacted)
                } else {
                    Err(lost(format!("the watch was cancelled: {}", answer.cancel_reason())))
                };
                return Some((item, None));
            }
            match changes(&answer) {
                Some(Ok(event)) => return Some((Ok(event), Some(self))),
                Some(Err(error)) => return Some((Err(error), None)),
                None => {}
            }
        }
    }
}

/// The changes in an answer, if there are any. The answer's header may have a later revision whose
/// events are still to come, so the revision reached is the last event's.
fn changes(answer: &WatchResponse) -> Option<Result<WatchEvent, StoreError>> {
    let changes: Vec<Change> = answer
        .events()
        .iter()
        .filter_map(|event| {
            let item = key_value(event.kv()?);
            Some(match event.event_type() {
                EventType::Put => Change::Put(item),
                EventType::Delete => Change::Deleted { key: item.key, mod_revision: item.mod_revision },
            })
        })
        .collect();
    let revisions = changes.iter().map(Change::mod_revision);
    let (oldest, revision) = (revisions.clone().min()?, revisions.max()?);
    Some(told("watch", Some(oldest)).map(|_| WatchEvent::Changes { revision, changes }))
}
