//! Streams tasks' logs to the managers that ask for them, each on a connection of its own.
//!
//! Invariants: a reader that stops reading blocks its own stream and nothing else: the session has
//! another connection, and queues are bounded, so backpressure reaches the engine; a stream ends
//! when its manager wants no more or can't be reached; streams outlive sessions, as a session
//! begins anew whenever the node's description changes.
//!
//! Left to others: reading a task's log ([`LogSource`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _};
use mesh_state::ids::TaskId;
use mesh_state::proto::node_service_client::NodeServiceClient;
use mesh_state::proto::{self, LogBatch, LogEnd, LogsWanted, WantedLog};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::channel;
use super::identity::Identity;
use crate::task::logs::{LogRequest, LogSource, LogStream};
use crate::task::runtime::RuntimeError;
use mesh_runtime::error_chain;

/// The most streams at one time, over all managers.
const STREAMS_MAX: usize = 256;
/// Added tasks that may wait in a stream's queue.
const ADDITIONS_WAITING: usize = 64;
/// Batches that may wait for the connection.
const BATCHES_WAITING: usize = 4;
/// The most lines of one batch.
const BATCH_LINES: usize = 512;
/// The size in bytes at which a batch is sent.
const BATCH_BYTES: usize = 128 << 10;

/// The log streams of this node.
pub(super) struct LogStreams {
    source: Arc<dyn LogSource>,
    /// The queue of tasks that are added to a stream, by the stream's id.
    additions: BTreeMap<String, mpsc::Sender<Vec<WantedLog>>>,
    /// The streams' tasks; dropping the link aborts them.
    running: JoinSet<()>,
}

impl LogStreams {
    pub(super) fn new(source: Arc<dyn LogSource>) -> Self {
        Self { source, additions: BTreeMap::new(), running: JoinSet::new() }
    }

    /// Sends the `wanted` logs to the manager that wants them: the one that says so, unless it
    /// names another.
    pub(super) fn want(&mut self, mut wanted: LogsWanted, said_by: SocketAddr, identity: &Identity) {
        while self.running.try_join_next().is_some() {}
        self.additions.retain(|_, stream| !stream.is_closed());
        let manager = match wanted.manager.as_str() {
            "" => Ok(said_by),
            named => named.parse(),
        };
        let Ok(manager) = manager else {
            tracing::warn!(manager = wanted.manager, "can't parse the address of a manager that wants logs");
            return;
        };
        let logs = std::mem::take(&mut wanted.logs);
        if let Some(stream) = self.additions.get(&wanted.ask_id) {
            if let Err(error) = stream.try_send(logs) {
                tracing::warn!(
                    error = error_chain(&error),
                    "can't add tasks to a log stream: their logs are not sent"
                );
            }
            return;
        }
        if self.additions.len() >= STREAMS_MAX {
            tracing::warn!(STREAMS_MAX, "too many log streams: these logs are not sent");
            return;
        }
        let (sender, additions) = mpsc::channel(ADDITIONS_WAITING);
        self.additions.insert(wanted.ask_id.clone(), sender);
        let (source, identity) = (Arc::clone(&self.source), identity.clone());
        self.running.spawn(async move {
            let connected = channel::connect_member(manager, &identity).await;
            let result = match connected {
                Ok(channel) => Publication::new(source, wanted).run(channel, logs, additions).await,
                Err(error) => Err(error_chain(&error)),
            };
            match result {
                Ok(()) => tracing::debug!(%manager, "sent logs"),
                Err(error) => tracing::debug!(%manager, error, "send logs"),
            }
        });
    }
}

/// One stream that is being sent.
struct Publication {
    source: Arc<dyn LogSource>,
    wanted: LogsWanted,
    /// Tasks whose logs are read; others ended. A task that is named twice is read once.
    tasks: BTreeSet<TaskId>,
    readers: JoinSet<Result<TaskId, TaskId>>,
}

impl Publication {
    fn new(source: Arc<dyn LogSource>, wanted: LogsWanted) -> Self {
        Self { source, wanted, tasks: BTreeSet::new(), readers: JoinSet::new() }
    }

    /// Sends until all logs have ended or the manager wants no more.
    async fn run(
        mut self,
        channel: Channel,
        first: Vec<WantedLog>,
        mut additions: mpsc::Receiver<Vec<WantedLog>>,
    ) -> Result<(), String> {
        let (sender, batches) = mpsc::channel(BATCHES_WAITING);
        let greeting = LogBatch { ask_id: self.wanted.ask_id.clone(), ..LogBatch::default() };
        // The first message always has room.
        sender.send(greeting).await.map_err(|error| error.to_string())?;
        self.read(first, &sender);
        let mut sender = Some(sender);
        let mut client = NodeServiceClient::new(channel);
        let mut call = std::pin::pin!(client.publish_logs(ReceiverStream::new(batches)));
        loop {
            if self.readers.is_empty() && !self.wanted.follow {
                // All logs have ended: the node closes its half of the stream.
                sender = None;
            }
            tokio::select! {
                answer = &mut call => {
                    return answer.map(drop).map_err(|status| format!("manager: {}", status.message()));
                }
                Some(more) = additions.recv(), if sender.is_some() => {
                    if let Some(sender) = &sender {
                        self.read(more, sender);
                    }
                }
                Some(ended) = self.readers.join_next() => {
                    // A task whose reading failed may be asked for again.
                    if let Ok(Err(broken)) = ended {
                        self.tasks.remove(&broken);
                    }
                }
            }
        }
    }

    fn read(&mut self, logs: Vec<WantedLog>, sender: &mpsc::Sender<LogBatch>) {
        for log in logs {
            let task = TaskId::from(log.task_id);
            if !self.tasks.insert(task.clone()) {
                continue;
            }
            let request = LogRequest {
                stdout: self.wanted.stdout,
                stderr: self.wanted.stderr,
                follow: self.wanted.follow,
                since: log.since,
                tail: u64::try_from(log.tail).ok(),
            };
            let (source, sender) = (Arc::clone(&self.source), sender.clone());
            self.readers.spawn(async move {
                let result = send_task_log(source.as_ref(), &task, &request, &sender).await;
                let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
                let again = matches!(result, Err(RuntimeError::Unavailable(_)));
                let end = LogEnd { task_id: task.to_string(), error, again };
                // If the send fails, the manager has closed the stream, and doesn't need this end.
                drop(sender.send(LogBatch { ends: vec![end], ..LogBatch::default() }).await);
                if again { Err(task) } else { Ok(task) }
            });
        }
    }
}

/// Sends one task's log to its end. A task without a container has no lines.
async fn send_task_log(
    source: &dyn LogSource,
    task: &TaskId,
    request: &LogRequest,
    sender: &mpsc::Sender<LogBatch>,
) -> Result<(), RuntimeError> {
    let Some(mut lines) = source.task_log(task, request).await? else { return Ok(()) };
    while let Some(batch) = next_batch(task, &mut lines).await {
        let (lines, error) = batch;
        let sent = lines.is_empty() || sender.send(LogBatch { lines, ..LogBatch::default() }).await.is_ok();
        match error {
            Some(error) => return Err(error),
            None if sent => {}
            None => return Ok(()),
        }
    }
    Ok(())
}

/// Reads the lines that are available, at least one, and the error that ended them. `None` at the
/// end.
async fn next_batch(
    task: &TaskId,
    lines: &mut LogStream,
) -> Option<(Vec<proto::LogLine>, Option<RuntimeError>)> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let mut next = lines.next().await;
    loop {
        match next {
            Some(Ok(line)) => {
                bytes += line.data.len();
                batch.push(proto::LogLine {
                    task_id: task.to_string(),
                    stderr: line.stderr,
                    unix_ns: line.unix_ns,
                    details: line.details,
                    data: line.data.to_vec(),
                });
            }
            Some(Err(error)) => return Some((batch, Some(error))),
            None => return (!batch.is_empty()).then_some((batch, None)),
        }
        if batch.len() >= BATCH_LINES || bytes >= BATCH_BYTES {
            return Some((batch, None));
        }
        next = match lines.next().now_or_never() {
            Some(next) => next,
            None => return Some((batch, None)),
        };
    }
}
