//! The proxy and the relay over real sockets on loopback: two nodes, 127.0.0.1 and 127.0.0.2, in one process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use mesh_agent::control_link::relay_keys::{RelayKey, RelayKeys};
use mesh_agent::proxy::preamble::{Answer, Preamble};
use mesh_agent::proxy::{Proxy, ProxySettings};
use mesh_agent::view::{BackendState, NodeView};
use mesh_state::ids::{BackendId, NodeId};
use mesh_state::proto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(5);

/// Ports for one test's node, outside the range that the kernel hands out to others.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 20_000 + u16::try_from(std::process::id() % 8_000).expect("below the limit");
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed);
        if std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

/// A task that answers every connection with its name, then echoes until the client's end and says goodbye.
async fn start_task(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                write.write_all(format!("{name}\n").as_bytes()).await?;
                tokio::io::copy(&mut read, &mut write).await?;
                write.write_all(b"bye").await?;
                write.shutdown().await
            });
        }
    });
    address
}

/// An address that nothing listens on.
async fn refusing_task() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    listener.local_addr().expect("its address")
}

struct Backend {
    id: u32,
    node: &'static str,
    task: SocketAddr,
}

struct Mesh {
    published: u16,
    backends: Vec<Backend>,
}

impl Mesh {
    fn table(&self, generation: u64) -> proto::MeshTable {
        let node = |id: &str, address: &str| proto::MeshNode {
            id: id.into(),
            address: address.into(),
            hostname: id.into(),
        };
        let backend = |backend: &Backend| proto::MeshBackend {
            id: backend.id,
            service_id: "s".into(),
            task_name: format!("web.{}", backend.id),
            node_id: backend.node.into(),
            address: backend.task.ip().to_string(),
            protocol: "tcp".into(),
            published: self.published.into(),
            target: backend.task.port().into(),
            state: proto::BackendState::Active.into(),
            weight: 1,
            ..proto::MeshBackend::default()
        };
        let port = proto::MeshPort { protocol: "tcp".into(), published: self.published.into(), target: 80 };
        proto::MeshTable {
            generation,
            nodes: vec![node("a", "127.0.0.1"), node("b", "127.0.0.2")],
            services: vec![proto::MeshService {
                id: "s".into(),
                name: "web".into(),
                policy: "round-robin".into(),
                ports: vec![port],
                ..proto::MeshService::default()
            }],
            backends: self.backends.iter().map(backend).collect(),
            ..proto::MeshTable::default()
        }
    }
}

struct Node {
    proxy: Arc<Proxy>,
    view: watch::Sender<Arc<NodeView>>,
    keys: watch::Sender<RelayKeys>,
    applied: watch::Receiver<u64>,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

fn keys(bytes: &[u8]) -> RelayKeys {
    bytes.iter().fold(RelayKeys::default(), |keys, byte| {
        keys.rotated(RelayKey::from_bytes(&[*byte; 32]).expect("a key"))
    })
}

async fn start_node(id: &str, address: Ipv4Addr, relay_port: u16, mesh: &Mesh) -> Node {
    let empty = NodeView::new(NodeId::from(id), address);
    let first = empty.apply(&mesh.table(1)).expect("a good table");
    let (view, view_receiver) = watch::channel(Arc::new(first));
    let (keys, keys_receiver) = watch::channel(keys(&[1]));
    let settings = ProxySettings {
        listen_address: IpAddr::V4(address),
        relay_listen: SocketAddr::new(address.into(), relay_port),
        relay_port,
        connections_max: 64,
        idle_limit: Duration::from_mins(1),
        drain_limit: Duration::from_millis(100),
    };
    let (proxy, relay) =
        Proxy::bind(settings, view_receiver, keys_receiver).expect("the relay's port is free");
    let (applied_sender, mut applied) = watch::channel(0);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(Arc::clone(&proxy).run(relay, applied_sender, shutdown.clone()));
    applied.wait_for(|generation| *generation == 1).await.expect("the proxy runs");
    Node { proxy, view, keys, applied, shutdown, running }
}

impl Node {
    async fn apply(&mut self, table: &proto::MeshTable) {
        let next = self.view.borrow().apply(table).expect("a good table");
        let generation = next.generation;
        self.view.send_replace(Arc::new(next));
        self.applied.wait_for(|applied| *applied == generation).await.expect("the proxy runs");
    }
}

/// Two nodes; `mesh` has its published port chosen here.
async fn start_nodes(backends: Vec<Backend>) -> (Mesh, Node, Node) {
    let mesh = Mesh { published: free_port(), backends };
    let relay_port = free_port();
    let a = start_node("a", Ipv4Addr::LOCALHOST, relay_port, &mesh).await;
    let b = start_node("b", Ipv4Addr::new(127, 0, 0, 2), relay_port, &mesh).await;
    (mesh, a, b)
}

async fn connect(port: u16) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("the published port answers")
}

async fn read_line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    loop {
        match timeout(SOON, stream.read_u8()).await.expect("an answer soon")? {
            b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            byte => line.push(byte),
        }
    }
}

async fn ask_name(port: u16) -> std::io::Result<String> {
    read_line(&mut connect(port).await).await
}

#[tokio::test]
async fn local_and_remote_tasks_share_connections_in_turn() {
    let backends = vec![
        Backend { id: 1, node: "a", task: start_task("here").await },
        Backend { id: 2, node: "b", task: start_task("there").await },
    ];
    let (mesh, a, b) = start_nodes(backends).await;
    let mut names = Vec::new();
    for _ in 0..4 {
        names.push(ask_name(mesh.published).await.expect("a name"));
    }
    assert_eq!(names, ["here", "there", "here", "there"]);
    let opened = |node: &Node, id| {
        let stats = node.proxy.ledger().stats();
        BackendId::new(id).and_then(|id| stats.backends.get(&id).map(|figures| figures.opened))
    };
    assert_eq!((opened(&a, 1), opened(&a, 2)), (Some(2), Some(2)), "counted where they were selected");
    assert_eq!(opened(&b, 2), Some(0), "a relayed connection is not counted again");
}

#[tokio::test]
async fn each_way_ends_by_itself() {
    for node in ["a", "b"] {
        let task = start_task("task").await;
        let (mesh, _a, _b) = start_nodes(vec![Backend { id: 1, node, task }]).await;
        let mut stream = connect(mesh.published).await;
        assert_eq!(read_line(&mut stream).await.expect("a name"), "task");
        let sent = vec![7; 1 << 20];
        let (mut read, mut write) = stream.split();
        let upload = async {
            write.write_all(&sent).await.expect("the task reads");
            write.shutdown().await.expect("our way ends");
        };
        let mut received = Vec::new();
        let download = async { read.read_to_end(&mut received).await.expect("the task's way ends properly") };
        tokio::join!(upload, download);
        assert_eq!(received.len(), sent.len() + 3, "all bytes came back on node {node}");
        assert!(received.ends_with(b"bye"), "what the task says after our end arrives, node {node}");
    }
}

#[tokio::test]
async fn a_refused_backend_is_passed_over() {
    for node in ["a", "b"] {
        let backends = vec![
            Backend { id: 1, node, task: refusing_task().await },
            Backend { id: 2, node, task: start_task("good").await },
        ];
        let (mesh, a, _b) = start_nodes(backends).await;
        for turn in 0..4 {
            assert_eq!(ask_name(mesh.published).await.expect("a name"), "good", "turn {turn}, node {node}");
        }
        let stats = a.proxy.ledger().stats();
        let failures = BackendId::new(1).map(|id| stats.backends[&id].failures);
        assert_eq!(failures, Some([0, 2, 0]), "every second turn was refused, node {node}");
    }
}

#[tokio::test]
async fn without_a_backend_the_client_is_reset() {
    let backends = vec![Backend { id: 1, node: "a", task: refusing_task().await }];
    let (mesh, mut a, _b) = start_nodes(backends).await;
    let error = ask_name(mesh.published).await.expect_err("nobody answers");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    a.apply(&Mesh { backends: vec![], ..mesh }.table(2)).await;
    let error = ask_name(mesh.published).await.expect_err("nobody is there");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let figures: Vec<_> = a.proxy.ledger().stats().frontends.into_values().collect();
    assert_eq!(figures.iter().map(|f| (f.no_backend, f.all_refused)).collect::<Vec<_>>(), [(1, 1)]);
}

#[tokio::test]
async fn live_connections_survive_changes_until_their_backend_is_gone() {
    let backends = |first, second| {
        vec![Backend { id: 1, node: "b", task: first }, Backend { id: 2, node: "a", task: second }]
    };
    let (first, second) = (start_task("first").await, start_task("second").await);
    let (mesh, mut a, mut b) = start_nodes(backends(first, second)).await;
    let mut pinned = connect(mesh.published).await;
    assert_eq!(read_line(&mut pinned).await.expect("a name"), "first");

    let mut table = mesh.table(2);
    table.backends[0].state = proto::BackendState::Draining.into();
    for node in [&mut a, &mut b] {
        node.apply(&table).await;
    }
    let state = a.view.borrow().backends.values().next().map(|backend| backend.state);
    assert_eq!(state, Some(BackendState::Draining));
    for _ in 0..3 {
        assert_eq!(ask_name(mesh.published).await.expect("a name"), "second", "no new flows while draining");
    }
    pinned.write_all(b"still\n").await.expect("the connection lives");
    assert_eq!(read_line(&mut pinned).await.expect("an echo"), "still");

    let mut table = mesh.table(3);
    table.backends.remove(0);
    a.apply(&table).await;
    let error = read_line(&mut pinned).await.expect_err("its backend is gone");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_listener_goes_with_its_service_and_its_connections_stay() {
    let backends = vec![Backend { id: 1, node: "a", task: start_task("task").await }];
    let (mesh, mut a, _b) = start_nodes(backends).await;
    let mut live = connect(mesh.published).await;
    assert_eq!(read_line(&mut live).await.expect("a name"), "task");
    let mut table = mesh.table(2);
    table.services.clear();
    a.apply(&table).await;
    let refused = timeout(SOON, async {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, mesh.published)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    refused.await.expect("the port is closed soon");
    live.write_all(b"on\n").await.expect("the connection lives");
    assert_eq!(read_line(&mut live).await.expect("an echo"), "on");
}

#[tokio::test]
async fn a_port_in_use_is_reported_and_others_go_on() {
    let task = start_task("task").await;
    let (mesh, mut a, _b) = start_nodes(vec![Backend { id: 1, node: "a", task }]).await;
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let taken_port = taken.local_addr().expect("its address").port();
    let mut table = mesh.table(2);
    let port = proto::MeshPort { protocol: "tcp".into(), published: taken_port.into(), target: 80 };
    table.services[0].ports.push(port);
    a.apply(&table).await;
    let listeners = a.proxy.ledger().stats().listeners;
    assert_eq!((listeners[&taken_port], listeners[&mesh.published]), (false, true));
    assert_eq!(ask_name(mesh.published).await.expect("a name"), "task");
}

/// What a relay answers to `preamble`, or nothing if it only hangs up.
async fn ask_relay(relay: SocketAddr, bytes: &[u8]) -> Option<u8> {
    let mut stream = TcpStream::connect(relay).await.expect("the relay listens");
    stream.write_all(bytes).await.expect("the relay reads");
    timeout(SOON, stream.read_u8()).await.expect("an answer soon").ok()
}

fn preamble(backend: u32, nonce: u8, age: Duration) -> Preamble {
    let made =
        (std::time::SystemTime::now() - age).duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    Preamble {
        backend: BackendId::new(backend).expect("an id"),
        client: "192.0.2.1:40000".parse().expect("an address"),
        destination: "127.0.0.1:80".parse().expect("an address"),
        made_unix_ms: u64::try_from(made.as_millis()).expect("a time"),
        nonce: [nonce; 16],
    }
}

#[tokio::test]
async fn a_relay_takes_only_good_fresh_and_new_preambles() {
    let backends = vec![
        Backend { id: 1, node: "b", task: start_task("there").await },
        Backend { id: 2, node: "a", task: start_task("here").await },
    ];
    let (_mesh, _a, b) = start_nodes(backends).await;
    let relay = b.proxy.relay_address();
    let key = |byte| RelayKey::from_bytes(&[byte; 32]).expect("a key");
    let fresh = Duration::ZERO;
    let good = preamble(1, 1, fresh).sign(&key(1));
    let connected = Some(Answer::Connected.to_byte());
    let denied = Some(Answer::Denied.to_byte());
    assert_eq!(ask_relay(relay, &good).await, connected, "a good preamble");
    assert_eq!(ask_relay(relay, &good).await, denied, "the same again");
    assert_eq!(
        ask_relay(relay, &preamble(1, 2, fresh).sign(&key(9))).await,
        denied,
        "signed with another key"
    );
    let old = preamble(1, 3, Duration::from_mins(1)).sign(&key(1));
    assert_eq!(ask_relay(relay, &old).await, denied, "a minute old");
    let elsewhere = preamble(2, 4, fresh).sign(&key(1));
    assert_eq!(
        ask_relay(relay, &elsewhere).await,
        Some(Answer::UnknownBackend.to_byte()),
        "a task of another node"
    );
    let mut strangers = NodeView::clone(&b.view.borrow());
    strangers.nodes.retain(|id, _| id.as_str() == "b");
    b.view.send_replace(Arc::new(strangers));
    assert_eq!(ask_relay(relay, &preamble(1, 5, fresh).sign(&key(1))).await, None, "from no member");
}

#[tokio::test]
async fn keys_rotate_without_a_lost_connection() {
    let task = start_task("there").await;
    let (mesh, a, b) = start_nodes(vec![Backend { id: 1, node: "b", task }]).await;
    for (ours, theirs) in
        [(keys(&[1, 2]), keys(&[1])), (keys(&[1]), keys(&[1, 2])), (keys(&[1, 2]), keys(&[1, 2]))]
    {
        a.keys.send_replace(ours.clone());
        b.keys.send_replace(theirs.clone());
        let name = ask_name(mesh.published).await.expect("a name");
        assert_eq!(name, "there", "with {ours:?} here and {theirs:?} there");
    }
}

#[tokio::test]
async fn a_stopping_proxy_cuts_what_does_not_end() {
    let task = start_task("task").await;
    let (mesh, a, _b) = start_nodes(vec![Backend { id: 1, node: "a", task }]).await;
    let mut live = connect(mesh.published).await;
    assert_eq!(read_line(&mut live).await.expect("a name"), "task");
    a.shutdown.cancel();
    timeout(SOON, a.running).await.expect("the proxy ends").expect("without a panic");
    assert!(read_line(&mut live).await.is_err(), "the connection is cut");
}
