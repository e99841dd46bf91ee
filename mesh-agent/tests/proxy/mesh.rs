//! Two nodes, 127.0.0.1 and 127.0.0.2, in one process, and the tasks of one service.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use mesh_admission::refusals::Refusals;
use mesh_agent::control_link::relay_keys::{RelayKey, RelayKeys};
use mesh_agent::proxy::{Proxy, ProxySettings, UdpLimits};
use mesh_agent::view::NodeView;
use mesh_state::ids::NodeId;
use mesh_state::proto;
use mesh_state::spec::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub(crate) const SOON: Duration = Duration::from_secs(5);

/// Ports for one test's node, outside the kernel's ephemeral range.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 20_000 + u16::try_from(std::process::id() % 8_000).expect("below the limit");
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed);
        if std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

/// A task that answers every connection with its name, then echoes until the client's end and says
/// goodbye.
pub(crate) async fn start_task(name: &'static str) -> SocketAddr {
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
pub(crate) async fn refusing_task() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    listener.local_addr().expect("its address")
}

pub(crate) struct Backend {
    pub(crate) id: u32,
    pub(crate) node: &'static str,
    pub(crate) task: SocketAddr,
}

pub(crate) struct Mesh {
    pub(crate) published: u16,
    pub(crate) protocol: &'static str,
    pub(crate) policy: &'static str,
    /// The settings in the service's labels, as JSON.
    pub(crate) settings: &'static str,
    pub(crate) backends: Vec<Backend>,
}

impl Mesh {
    pub(crate) fn table(&self, generation: u64) -> proto::MeshTable {
        let node = |id: &str, address: &str| proto::MeshNode {
            id: id.into(),
            address: address.into(),
            hostname: id.into(),
            ..proto::MeshNode::default()
        };
        let backend = |backend: &Backend| proto::MeshBackend {
            id: backend.id,
            service_id: "s".into(),
            task_name: format!("web.{}", backend.id),
            node_id: backend.node.into(),
            address: backend.task.ip().to_string(),
            protocol: self.protocol.into(),
            published: self.published.into(),
            target: backend.task.port().into(),
            state: proto::BackendState::Active.into(),
            weight: 1,
            ..proto::MeshBackend::default()
        };
        let port =
            proto::MeshPort { protocol: self.protocol.into(), published: self.published.into(), target: 80 };
        proto::MeshTable {
            generation,
            nodes: vec![node("a", "127.0.0.1"), node("b", "127.0.0.2")],
            services: vec![proto::MeshService {
                networks: Vec::new(),
                id: "s".into(),
                name: "web".into(),
                policy: self.policy.into(),
                settings_json: self.settings.into(),
                ports: vec![port],
            }],
            backends: self.backends.iter().map(backend).collect(),
            ..proto::MeshTable::default()
        }
    }
}

pub(crate) struct Node {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) view: watch::Sender<Arc<NodeView>>,
    pub(crate) keys: watch::Sender<RelayKeys>,
    pub(crate) applied: watch::Receiver<u64>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) running: tokio::task::JoinHandle<()>,
}

pub(crate) fn keys(bytes: &[u8]) -> RelayKeys {
    bytes.iter().fold(RelayKeys::default(), |keys, byte| {
        keys.rotated(RelayKey::from_bytes(&[*byte; 32]).expect("a key"))
    })
}

pub(crate) async fn start_node(id: &str, address: Ipv4Addr, relay_port: u16, mesh: &Mesh) -> Node {
    start_node_that_needs(BTreeMap::new(), id, address, relay_port, mesh).await
}

/// A node that needs some ports for itself.
pub(crate) async fn start_node_that_needs(
    own_ports: BTreeMap<(Protocol, u16), String>,
    id: &str,
    address: Ipv4Addr,
    relay_port: u16,
    mesh: &Mesh,
) -> Node {
    start(own_ports, 64, id, address, relay_port, mesh).await
}

/// A node with room for this many connections of clients and of other nodes each.
pub(crate) async fn start_node_with_room(
    connections_max: usize,
    id: &str,
    address: Ipv4Addr,
    relay_port: u16,
    mesh: &Mesh,
) -> Node {
    start(BTreeMap::new(), connections_max, id, address, relay_port, mesh).await
}

async fn start(
    own_ports: BTreeMap<(Protocol, u16), String>,
    connections_max: usize,
    id: &str,
    address: Ipv4Addr,
    relay_port: u16,
    mesh: &Mesh,
) -> Node {
    let empty = NodeView::new(NodeId::from(id), address);
    let first = empty.apply(&mesh.table(1)).expect("a good table");
    let (view, view_receiver) = watch::channel(Arc::new(first));
    let (keys, keys_receiver) = watch::channel(keys(&[1]));
    let settings = ProxySettings {
        listen_address: IpAddr::V4(address),
        udp_limits: UdpLimits::default(),
        relay_listen: SocketAddr::new(address.into(), relay_port),
        relay_port,
        own_ports,
        connections_max,
        idle_limit: Duration::from_mins(1),
        drain_limit: Duration::from_millis(100),
    };
    let (proxy, relay) = Proxy::bind(
        settings,
        view_receiver,
        keys_receiver,
        Arc::default(),
        Refusals::new().expect("a counter"),
    )
    .expect("the relay's port is free");
    let (applied_sender, mut applied) = watch::channel(0);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(Arc::clone(&proxy).run(relay, applied_sender, shutdown.clone()));
    applied.wait_for(|generation| *generation == 1).await.expect("the proxy runs");
    Node { proxy, view, keys, applied, shutdown, running }
}

impl Node {
    pub(crate) async fn apply(&mut self, table: &proto::MeshTable) {
        let next = self.view.borrow().apply(table).expect("a good table");
        let generation = next.generation;
        self.view.send_replace(Arc::new(next));
        self.applied.wait_for(|applied| *applied == generation).await.expect("the proxy runs");
    }
}

impl Mesh {
    /// A service over TCP with round robin.
    pub(crate) fn tcp(backends: Vec<Backend>) -> Self {
        let published = free_port();
        Self { published, protocol: "tcp", policy: "round-robin", settings: "", backends }
    }
}

/// Two nodes, and a service over TCP.
pub(crate) async fn start_nodes(backends: Vec<Backend>) -> (Mesh, Node, Node) {
    let mesh = Mesh::tcp(backends);
    let (a, b) = start_both(&mesh).await;
    (mesh, a, b)
}

/// Two nodes.
pub(crate) async fn start_both(mesh: &Mesh) -> (Node, Node) {
    let relay_port = free_port();
    let a = start_node("a", Ipv4Addr::LOCALHOST, relay_port, mesh).await;
    let b = start_node("b", Ipv4Addr::new(127, 0, 0, 2), relay_port, mesh).await;
    (a, b)
}

pub(crate) async fn connect(port: u16) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("the published port answers")
}

pub(crate) async fn read_line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    loop {
        match timeout(SOON, stream.read_u8()).await.expect("an answer soon")? {
            b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            byte => line.push(byte),
        }
    }
}

pub(crate) async fn ask_name(port: u16) -> std::io::Result<String> {
    // A reset may come before the connection is seen to be there.
    read_line(&mut TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?).await
}
