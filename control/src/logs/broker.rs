//! Connects the readers of logs with the nodes that hold them: which node is asked for what, and
//! which reader gets the answer.
//!
//! Invariants: a request goes to one node and lives as long as its [`Ask`]; a node sees its own
//! requests only; the readers bound the requests, and [`READERS_MAX`] bounds the readers.
//!
//! Left to others: deciding what to ask for (`reader`), sending requests to nodes (their sessions),
//! taking what they send (`node_service`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_state::ids::{self, NodeId};
use mesh_state::proto::{LogBatch, LogsWanted, WantedLog};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// The most clients that read logs at a time.
pub const READERS_MAX: usize = 128;

/// What a node did about a request.
#[derive(Debug)]
pub enum News {
    /// It begins to send.
    Opened,
    /// It sent this batch.
    Batch(LogBatch),
    /// It sends no more: its logs are complete, or its stream broke.
    Closed {
        /// Whether its logs are complete.
        whole: bool,
    },
}

/// The id of a request with its news, for the reader.
pub type NewsOfAsk = (String, News);

/// The options that apply to all tasks of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogSelection {
    /// Include stdout.
    pub(crate) stdout: bool,
    /// Include stderr.
    pub(crate) stderr: bool,
    /// Include future lines.
    pub(crate) follow: bool,
}

#[derive(Debug)]
struct OpenLogRequest {
    node: NodeId,
    wanted: LogSelection,
    logs: Vec<WantedLog>,
    reader: mpsc::Sender<NewsOfAsk>,
    dropped: CancellationToken,
    opened: bool,
}

/// The requests of one manager to nodes.
#[derive(Debug)]
pub struct LogBroker {
    asks: Mutex<BTreeMap<String, OpenLogRequest>>,
    changed: watch::Sender<()>,
    places: Arc<Semaphore>,
}

impl Default for LogBroker {
    fn default() -> Self {
        let places = Arc::new(Semaphore::new(READERS_MAX));
        Self { asks: Mutex::default(), changed: watch::channel(()).0, places }
    }
}

impl LogBroker {
    /// A permit for one reader; `None` if there are [`READERS_MAX`] already.
    pub(crate) fn enter(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Asks `node`; its news goes to `reader`.
    pub(crate) fn ask(
        self: &Arc<Self>,
        node: NodeId,
        wanted: LogSelection,
        logs: Vec<WantedLog>,
        reader: mpsc::Sender<NewsOfAsk>,
    ) -> Ask {
        let id = ids::random_text(&mut rand::rng());
        let dropped = CancellationToken::new();
        let entry = OpenLogRequest { node, wanted, logs, reader, dropped, opened: false };
        self.asks().insert(id.clone(), entry);
        self.changed.send_replace(());
        Ask { id, broker: Arc::clone(self) }
    }

    /// A receiver that changes whenever the requests do.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The requests to `node` that its session has not sent yet; notes them in `told` as sent.
    pub fn untold(&self, node: &NodeId, told: &mut SentLogRequests) -> Vec<LogsWanted> {
        let asks = self.asks();
        told.0.retain(|id, _| asks.contains_key(id));
        let mut untold = Vec::new();
        for (id, entry) in asks.iter().filter(|(_, entry)| &entry.node == node) {
            let known = told.0.get(id).copied().unwrap_or_default();
            if known < entry.logs.len() {
                told.0.insert(id.clone(), entry.logs.len());
                untold.push(entry.message(id, known));
            }
        }
        untold
    }

    /// The channel for the node's answer to a request, and the token that ends it; `None` if the
    /// node wasn't asked, or answers twice.
    pub fn open(&self, id: &str, node: &NodeId) -> Option<(mpsc::Sender<NewsOfAsk>, CancellationToken)> {
        let mut asks = self.asks();
        let entry = asks.get_mut(id).filter(|entry| &entry.node == node && !entry.opened)?;
        entry.opened = true;
        Some((entry.reader.clone(), entry.dropped.clone()))
    }

    fn asks(&self) -> MutexGuard<'_, BTreeMap<String, OpenLogRequest>> {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenLogRequest {
    fn message(&self, id: &str, known: usize) -> LogsWanted {
        LogsWanted {
            ask_id: id.to_owned(),
            logs: self.logs[known..].to_vec(),
            stdout: self.wanted.stdout,
            stderr: self.wanted.stderr,
            follow: self.wanted.follow,
            manager: String::new(),
        }
    }
}

/// The requests that a session has sent to its node, with the number of logs in each.
#[derive(Debug, Default)]
pub struct SentLogRequests(BTreeMap<String, usize>);

/// A request; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Ask {
    id: String,
    broker: Arc<LogBroker>,
}

impl Ask {
    /// The request's id, which its news carries.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Asks for more logs of the same node.
    pub(crate) fn extend(&self, more: Vec<WantedLog>) {
        if let Some(entry) = self.broker.asks().get_mut(&self.id) {
            entry.logs.extend(more);
        }
        self.broker.changed.send_replace(());
    }
}

impl Drop for Ask {
    fn drop(&mut self) {
        if let Some(entry) = self.broker.asks().remove(&self.id) {
            entry.dropped.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: LogSelection = LogSelection { stdout: true, stderr: false, follow: true };

    fn logs<const N: usize>(tasks: [&str; N]) -> Vec<WantedLog> {
        let log = |task: &str| WantedLog { task_id: task.to_owned(), since: String::new(), tail: -1 };
        tasks.map(log).to_vec()
    }

    fn names(messages: &[LogsWanted]) -> Vec<&str> {
        messages.iter().flat_map(|wanted| wanted.logs.iter().map(|log| log.task_id.as_str())).collect()
    }

    #[test]
    fn a_session_gets_its_nodes_requests_once_and_what_is_added() {
        let broker = Arc::new(LogBroker::default());
        let (reader, _news) = mpsc::channel(1);
        let changes = broker.changes();
        let (a, b) = (NodeId::from("a"), NodeId::from("b"));
        let ask = broker.ask(a.clone(), WANTED, logs(["t1", "t2"]), reader);
        assert!(changes.has_changed().unwrap(), "sessions are not woken");
        let mut told = SentLogRequests::default();
        assert_eq!(names(&broker.untold(&a, &mut told)), ["t1", "t2"]);
        assert!(broker.untold(&a, &mut told).is_empty(), "sent twice");
        assert!(broker.untold(&b, &mut SentLogRequests::default()).is_empty(), "sent to another node");
        ask.extend(logs(["t3"]));
        assert_eq!(names(&broker.untold(&a, &mut told)), ["t3"]);
        assert_eq!(
            names(&broker.untold(&a, &mut SentLogRequests::default())),
            ["t1", "t2", "t3"],
            "to a new session"
        );
        drop(ask);
        assert!(broker.untold(&a, &mut SentLogRequests::default()).is_empty(), "sent after its end");
    }

    #[test]
    fn only_the_asked_node_answers_and_only_once() {
        let broker = Arc::new(LogBroker::default());
        let (reader, _news) = mpsc::channel(1);
        let ask = broker.ask("a".into(), WANTED, logs(["t1"]), reader);
        assert!(broker.open(ask.id(), &"b".into()).is_none(), "another node's answer was taken");
        assert!(broker.open("unknown", &"a".into()).is_none());
        let (_, dropped) = broker.open(ask.id(), &"a".into()).expect("the asked node's answer");
        assert!(broker.open(ask.id(), &"a".into()).is_none(), "a second answer was taken");
        drop(ask);
        assert!(dropped.is_cancelled(), "the node's stream is still open");
    }

    #[test]
    fn readers_are_bounded() {
        let broker = LogBroker::default();
        let all: Vec<_> = std::iter::from_fn(|| broker.enter()).collect();
        assert_eq!(all.len(), READERS_MAX);
        drop(all);
        assert!(broker.enter().is_some());
    }
}
