//! Tests of readers against nodes that the test plays, with paused time.

use mesh_state::proto::{LogEnd, LogLine};
use mesh_state::store::MemoryStore;
use mesh_state::task::TaskState;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::fixtures::{World, service, task};

/// A reader of service `web`, which has a running task `on-a` on node a and one on b.
struct Played {
    world: World,
    snapshots: watch::Sender<Arc<ClusterSnapshot>>,
    broker: Arc<LogBroker>,
    out: mpsc::Receiver<Bytes>,
}

impl Played {
    fn start(follow: bool, prepare: impl FnOnce(&mut World)) -> Self {
        let mut world = World::with_nodes(["a", "b"]);
        world.put_service(&service("web", 2));
        for (slot, node) in (1..).zip(["a", "b"]) {
            let mut one = task(&format!("on-{node}"), "web", slot);
            one.node_id = Some(node.into());
            world.put_task(&one);
            world.report(&one.id, TaskState::Running);
        }
        prepare(&mut world);
        let (snapshots, seen) = watch::channel(Arc::new(world.snapshot.clone()));
        let broker = Arc::new(LogBroker::default());
        let reading = Reading {
            subject: Subject::Service("web".into()),
            service: "web".into(),
            wanted: LogSelection { stdout: true, stderr: true, follow },
            since: Some(1_500_000_000),
            tail: 10,
            format: Format { raw: true, timestamps: false, details: false },
        };
        let forwarder = Forwarder {
            store: Arc::new(MemoryStore::new()),
            manager: "m1".to_owned(),
            address: "127.0.0.1:2377".parse().unwrap(),
            stopping: CancellationToken::new(),
        };
        let (sender, out) = mpsc::channel(4);
        tokio::spawn(
            Reader::new(reading, Arc::clone(&broker), forwarder, seen).run(sender, CancellationToken::new()),
        );
        Self { world, snapshots, broker, out }
    }

    fn show(&self) {
        self.snapshots.send_replace(Arc::new(self.world.snapshot.clone()));
    }

    /// Waits until `node` is asked, and opens its stream.
    async fn open(&self, node: &str) -> Node {
        let node = NodeId::from(node);
        let mut changes = self.broker.changes();
        loop {
            let mut asks = self.broker.untold(&node, &mut super::super::broker::SentLogRequests::default());
            let open = asks.pop().and_then(|ask| Some((self.broker.open(&ask.ask_id, &node)?, ask)));
            if let Some(((news, dropped), ask)) = open {
                let opened = Node { id: ask.ask_id, logs: ask.logs, news, dropped };
                opened.say(News::Opened).await;
                return opened;
            }
            changes.changed().await.unwrap();
        }
    }

    /// The rest of the client's stream.
    async fn rest(mut self) -> String {
        let mut text = String::new();
        while let Some(bytes) = self.out.recv().await {
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        text
    }

    async fn next(&mut self) -> String {
        String::from_utf8(self.out.recv().await.expect("more of the stream").to_vec()).unwrap()
    }
}

struct Node {
    id: String,
    logs: Vec<WantedLog>,
    news: mpsc::Sender<NewsOfAsk>,
    dropped: CancellationToken,
}

impl Node {
    async fn say(&self, news: News) {
        self.news.send((self.id.clone(), news)).await.unwrap();
    }

    async fn line(&self, task: &str, unix_ns: i64, text: &str) {
        let line = LogLine {
            task_id: task.to_owned(),
            unix_ns,
            data: text.as_bytes().to_vec(),
            ..LogLine::default()
        };
        self.say(News::Batch(LogBatch { lines: vec![line], ..LogBatch::default() })).await;
    }

    async fn end(&self, task: &str, error: &str) {
        let end = LogEnd { task_id: task.to_owned(), error: error.to_owned(), again: false };
        self.say(News::Batch(LogBatch { ends: vec![end], ..LogBatch::default() })).await;
    }
}

#[tokio::test(start_paused = true)]
async fn all_nodes_are_asked_and_the_stream_ends_when_all_are_complete() {
    let played = Played::start(false, |_| {});
    let (a, b) = (played.open("a").await, played.open("b").await);
    assert_eq!((a.logs[0].since.as_str(), a.logs[0].tail), ("1.500000000", 10));
    a.line("on-a", 1, "one\n").await;
    b.line("on-b", 2, "two\n").await;
    b.line("on-a", 3, "forged\n").await;
    for (node, task) in [(&a, "on-a"), (&b, "on-b")] {
        node.end(task, "").await;
        node.say(News::Closed { whole: true }).await;
    }
    assert_eq!(played.rest().await, "one\ntwo\n", "b was not asked for on-a");
}

#[tokio::test(start_paused = true)]
async fn missing_logs_are_named_at_the_end_and_nothing_hangs() {
    let played = Played::start(false, |world| {
        world.set_liveness(&"a".into(), NodeState::Silent);
        let mut third = task("third", "web", 3);
        third.node_id = Some("b".into());
        world.put_task(&third);
        world.report(&third.id, TaskState::Running);
    });
    let b = played.open("b").await;
    b.line("on-b", 1, "kept\n").await;
    b.end("third", "no engine").await;
    b.say(News::Closed { whole: false }).await;
    let text = played.rest().await;
    assert!(text.starts_with("kept\n") && text.contains("incomplete log stream"), "saw {text}");
    for reason in ["node a is not available", "task third: no engine", "node b is not available"] {
        assert!(text.contains(reason), "expected {reason:?} in {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_answers_is_given_up() {
    let played = Played::start(false, |_| {});
    let a = played.open("a").await;
    a.say(News::Closed { whole: true }).await;
    let text = played.rest().await;
    assert!(text.contains("reasons: node b is not available"), "saw {text}");
}

#[tokio::test(start_paused = true)]
async fn a_follower_gets_new_tasks_and_a_returning_node_continues_after_its_last_line() {
    let mut played = Played::start(true, |_| {});
    let a = played.open("a").await;
    a.line("on-a", 7_000_000_001, "before\n").await;
    assert_eq!(played.next().await, "before\n");
    a.say(News::Closed { whole: false }).await;
    let again = played.open("a").await;
    assert!(a.dropped.is_cancelled(), "the first stream is still open");
    let log = &again.logs[0];
    assert_eq!(
        (log.since.as_str(), log.tail),
        ("7.000000002", -1),
        "it starts again instead of after its last line"
    );

    let mut new = task("new", "web", 3);
    new.node_id = Some("a".into());
    played.world.put_task(&new);
    played.world.report(&new.id, TaskState::Starting);
    let mut changes = played.broker.changes();
    played.show();
    changes.changed().await.unwrap();
    again.line("new", 1, "hello\n").await;
    assert_eq!(played.next().await, "hello\n");
    drop(played.out);
    again.dropped.cancelled().await;
}

#[tokio::test(start_paused = true)]
async fn following_a_service_ends_with_it() {
    let mut played = Played::start(true, |_| {});
    let (a, b) = (played.open("a").await, played.open("b").await);
    a.end("on-a", "").await;
    b.end("on-b", "").await;
    played.world.remove_service("web");
    played.show();
    assert_eq!(played.rest().await, "", "the end names no missing log");
}

#[tokio::test(start_paused = true)]
async fn a_log_that_broke_off_is_asked_for_again_and_one_that_cant_be_read_is_not() {
    let played = Played::start(true, |_| {});
    let a = played.open("a").await;
    let end = |again| LogEnd { task_id: "on-a".to_owned(), error: "no engine".to_owned(), again };
    let mut told = super::super::broker::SentLogRequests::default();
    let node = NodeId::from("a");
    assert_eq!(played.broker.untold(&node, &mut told).len(), 1, "a is asked");
    let mut changes = played.broker.changes();
    a.say(News::Batch(LogBatch { ends: vec![end(true)], ..LogBatch::default() })).await;
    changes.changed().await.unwrap();
    let again = played.broker.untold(&node, &mut told);
    assert_eq!(again[0].logs[0].task_id, "on-a", "the log was not asked for again");
    a.say(News::Batch(LogBatch { ends: vec![end(false)], ..LogBatch::default() })).await;
    let asked = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            changes.changed().await.unwrap();
            if !played.broker.untold(&node, &mut told).is_empty() {
                return;
            }
        }
    });
    assert!(asked.await.is_err(), "an unreadable log was asked for again");
}
