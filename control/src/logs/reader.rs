//! One client that reads logs: asks the nodes that hold them, and passes their lines on.
//!
//! Invariants: a client that doesn't follow gets an end, whatever nodes do: each node sends
//! everything, breaks off, or isn't available, and the end of the stream names the nodes of the
//! last two kinds. A client that follows gets every task that appears, and a node that was away
//! continues after its last line, without a duplicate.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mesh_state::ids::{NodeId, ServiceId, TaskId};
use mesh_state::node::NodeState;
use mesh_state::proto::{LogBatch, WantedLog};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::broker::{Ask, LogBroker, LogSelection, News, NewsOfAsk};
use super::forward::Forwarder;
use super::frame::{Format, Origin};
use super::selection::{Selection, Subject, select};
use crate::feed::snapshot::ClusterSnapshot;

/// A node that doesn't begin to send within this isn't available.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// How long after its stream broke a node is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// How many finished logs a request may hold before the node is asked again without them.
const FORGOTTEN_PER_ASK: usize = 1000;
/// Batches queued for the client.
const NEWS_WAITING: usize = 4;

/// What a client reads.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    /// The service or task whose logs are read.
    pub(crate) subject: Subject,
    /// The service that the tasks belong to.
    pub(crate) service: ServiceId,
    /// Which outputs, and whether to follow.
    pub(crate) wanted: LogSelection,
    /// The moment to start at, Unix nanoseconds; `None`: the beginning.
    pub(crate) since: Option<i64>,
    /// How many of each task's newest lines; negative: all.
    pub(crate) tail: i64,
    /// The form of the lines.
    pub(crate) format: Format,
}

/// A node that was asked.
struct Asked {
    ask: Ask,
    logs: Vec<WantedLog>,
    tasks: BTreeSet<TaskId>,
    /// The deadline for its first batch; `None` once that came.
    open_by: Option<Instant>,
}

/// The reading of one client.
pub(crate) struct Reader {
    reading: Reading,
    broker: Arc<LogBroker>,
    forwarder: Forwarder,
    snapshots: watch::Receiver<Arc<ClusterSnapshot>>,
    news: mpsc::Receiver<NewsOfAsk>,
    news_sender: mpsc::Sender<NewsOfAsk>,
    asked: BTreeMap<NodeId, Asked>,
    /// Nodes that are not asked again before that moment.
    paused: BTreeMap<NodeId, Instant>,
    /// Tasks whose logs are complete.
    ended: BTreeSet<TaskId>,
    /// The time of each task's newest line, nanoseconds.
    newest: BTreeMap<TaskId, i64>,
    may_grow: bool,
    problems: Vec<String>,
}

impl Reader {
    /// A reader of the cluster that `snapshots` show.
    pub(crate) fn new(
        reading: Reading,
        broker: Arc<LogBroker>,
        forwarder: Forwarder,
        snapshots: watch::Receiver<Arc<ClusterSnapshot>>,
    ) -> Self {
        let (news_sender, news) = mpsc::channel(NEWS_WAITING);
        Self {
            reading,
            broker,
            forwarder,
            snapshots,
            news,
            news_sender,
            asked: BTreeMap::new(),
            paused: BTreeMap::new(),
            ended: BTreeSet::new(),
            newest: BTreeMap::new(),
            may_grow: false,
            problems: Vec::new(),
        }
    }

    /// Reads until all logs are complete, the client goes away (`out` is closed) or the manager
    /// stops.
    pub(crate) async fn run(self, out: mpsc::Sender<Bytes>, stopping: CancellationToken) {
        stopping.run_until_cancelled(self.read(out)).await;
    }

    async fn read(mut self, out: mpsc::Sender<Bytes>) {
        let follow = self.reading.wanted.follow;
        self.look(true);
        while !self.is_done() {
            let wake = self.wakes_at();
            tokio::select! {
                () = out.closed() => return,
                Some((ask, news)) = self.news.recv() => {
                    let bytes = self.take(&ask, news);
                    if !bytes.is_empty() && out.send(bytes).await.is_err() {
                        return;
                    }
                }
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.look(follow);
                }
                () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    self.give_up_late();
                    self.look(follow);
                }
            }
        }
        if !self.problems.is_empty() {
            let text = self.reading.format.incomplete(&self.problems);
            if out.send(text).await.is_err() {
                tracing::debug!("the client left before the list of missing logs was sent");
            }
        }
    }

    fn is_done(&self) -> bool {
        let told = self.asked.values().all(|asked| asked.tasks.iter().all(|task| self.ended.contains(task)));
        if self.reading.wanted.follow { told && !self.may_grow } else { self.asked.is_empty() }
    }

    /// The earliest deadline or end of a pause, if there is one.
    fn wakes_at(&self) -> Option<Instant> {
        let late = self.asked.values().filter_map(|asked| asked.open_by);
        late.chain(self.paused.values().copied()).min()
    }

    /// Compares the requests with the snapshot; if `more`, asks for logs of new tasks.
    fn look(&mut self, more: bool) {
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        let gone: Vec<NodeId> = self
            .asked
            .iter()
            .filter(|(node, asked)| asked.open_by.is_some() && !is_available(&snapshot, node))
            .map(|(node, _)| node.clone())
            .collect();
        for node in gone {
            self.lose(&node);
        }
        self.forget(&snapshot);
        if more {
            let selection = select(&snapshot, &self.reading.subject, self.reading.wanted.follow);
            self.ask(&snapshot, selection);
        }
    }

    /// Forgets tasks that no longer exist: a service that is followed for days has many.
    fn forget(&mut self, snapshot: &ClusterSnapshot) {
        let gone = self.ended.iter().filter(|task| !snapshot.tasks.contains_key(task));
        for task in gone.cloned().collect::<Vec<_>>() {
            self.ended.remove(&task);
            self.newest.remove(&task);
            for asked in self.asked.values_mut() {
                asked.tasks.remove(&task);
            }
        }
        if self.reading.wanted.follow {
            let full = |asked: &Asked| asked.logs.len() > FORGOTTEN_PER_ASK + 2 * asked.tasks.len();
            let full = self.asked.iter().filter(|(_, asked)| full(asked));
            for node in full.map(|(node, _)| node.clone()).collect::<Vec<_>>() {
                self.lose(&node);
            }
        }
    }

    fn ask(&mut self, snapshot: &ClusterSnapshot, selection: Selection) {
        self.may_grow = selection.may_grow;
        if !self.reading.wanted.follow {
            let never = selection.unscheduled.iter();
            self.problems.extend(never.map(|task| format!("task {task} has not been scheduled")));
        }
        let now = Instant::now();
        self.paused.retain(|_, until| *until > now);
        for (node, mut tasks) in selection.on_nodes {
            let known = self.asked.get(&node).map(|asked| &asked.tasks);
            tasks
                .retain(|task| !self.ended.contains(task) && known.is_none_or(|known| !known.contains(task)));
            if tasks.is_empty() || self.paused.contains_key(&node) {
                continue;
            }
            if known.is_none() && !is_available(snapshot, &node) {
                self.miss(&node);
                continue;
            }
            let logs: Vec<_> = tasks.iter().map(|task| self.wanted_log(task)).collect();
            let asked = match self.asked.entry(node.clone()) {
                Entry::Occupied(asked) => {
                    let asked = asked.into_mut();
                    asked.ask.extend(logs.clone());
                    asked
                }
                Entry::Vacant(place) => {
                    let reader = self.news_sender.clone();
                    let ask = self.broker.ask(node.clone(), self.reading.wanted, logs.clone(), reader);
                    let open_by = Some(now + OPEN_DEADLINE);
                    place.insert(Asked { ask, logs: Vec::new(), tasks: BTreeSet::new(), open_by })
                }
            };
            asked.logs.extend(logs);
            asked.tasks.extend(tasks);
            let heard_by = snapshot.liveness.get(&node).map(|liveness| &liveness.manager);
            if heard_by != Some(&self.forwarder.manager) {
                let id = asked.ask.id().to_owned();
                self.forwarder.leave(node, id, self.reading.wanted, &asked.logs);
            }
        }
    }

    /// A task with earlier lines continues after its newest one.
    fn wanted_log(&self, task: &TaskId) -> WantedLog {
        let (since, tail) = match self.newest.get(task) {
            Some(newest) => (Some(newest.saturating_add(1)), -1),
            None => (self.reading.since, self.reading.tail),
        };
        let since = since.map(seconds_of).unwrap_or_default();
        WantedLog { task_id: task.to_string(), since, tail }
    }

    /// Handles a message of a node; returns the bytes that the client gets.
    fn take(&mut self, ask: &str, news: News) -> Bytes {
        let asked = self.asked.iter_mut().find(|(_, asked)| asked.ask.id() == ask);
        // A node that was given up may still send.
        let Some((node, asked)) = asked else { return Bytes::new() };
        let node = node.clone();
        match news {
            News::Opened => asked.open_by = None,
            News::Batch(batch) => return self.take_batch(&node, batch),
            News::Closed { whole: true } if !self.reading.wanted.follow => {
                self.asked.remove(&node);
            }
            News::Closed { .. } => self.lose(&node),
        }
        Bytes::new()
    }

    fn take_batch(&mut self, node: &NodeId, batch: LogBatch) -> Bytes {
        let Some(asked) = self.asked.get_mut(node) else { return Bytes::new() };
        let mut out = BytesMut::new();
        for line in &batch.lines {
            let task = TaskId::from(line.task_id.as_str());
            if asked.tasks.contains(&task) {
                let origin = Origin { node, service: &self.reading.service, task: &task };
                self.reading.format.line(&mut out, origin, line);
                self.newest.insert(task, line.unix_ns);
            }
        }
        for end in batch.ends {
            let task = TaskId::from(end.task_id);
            if !asked.tasks.contains(&task) {
                continue;
            }
            if !self.reading.wanted.follow && !end.error.is_empty() {
                self.problems.push(format!("task {task}: {}", end.error));
            }
            if self.reading.wanted.follow && end.again {
                // The log is asked for again.
                asked.tasks.remove(&task);
                self.paused.insert(node.clone(), Instant::now() + PAUSE);
                continue;
            }
            self.ended.insert(task);
        }
        out.freeze()
    }

    /// Gives up a node that can't be asked, or whose stream broke.
    fn lose(&mut self, node: &NodeId) {
        self.asked.remove(node);
        self.miss(node);
        if self.reading.wanted.follow {
            self.paused.insert(node.clone(), Instant::now() + PAUSE);
        }
    }

    fn miss(&mut self, node: &NodeId) {
        // A client that follows gets its lines when the node is back.
        if !self.reading.wanted.follow {
            self.problems.push(format!("node {node} is not available"));
        }
    }

    fn give_up_late(&mut self) {
        let now = Instant::now();
        let late = self.asked.iter().filter(|(_, asked)| asked.open_by.is_some_and(|by| by <= now));
        let late: Vec<NodeId> = late.map(|(node, _)| node.clone()).collect();
        for node in late {
            self.lose(&node);
        }
    }
}

/// Whether a node can be asked: a silent one would not get the request.
fn is_available(snapshot: &ClusterSnapshot, node: &NodeId) -> bool {
    snapshot.nodes.contains_key(node) && snapshot.node_state(node) == NodeState::Ready
}

/// Unix nanoseconds in the form that the engine takes: seconds with a fraction.
fn seconds_of(nanoseconds: i64) -> String {
    const SECOND: i64 = 1_000_000_000;
    format!("{}.{:09}", nanoseconds.div_euclid(SECOND), nanoseconds.rem_euclid(SECOND))
}

#[cfg(test)]
mod tests;
