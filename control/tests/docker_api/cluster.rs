//! One manager's API over a store in memory, with three nodes that exist only in the store.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use chrono::Utc;
use http_body_util::BodyExt as _;
use mesh_control::api;
use mesh_control::bootstrap::open_cluster;
use mesh_control::ca::MEMBER_LIFE_MIN;
use mesh_control::context::ApiContext;
use mesh_control::feed::snapshot::ClusterSnapshot;
use mesh_control::feed::watch;
use mesh_control::metrics::api::ApiMetrics;
use mesh_control::own_node::OwnNode;
use mesh_control::pool::WantedPool;
use mesh_state::cluster::Manager;
use mesh_state::node::{Liveness, Node, NodeDescription, NodeRole, NodeSpec, NodeState, OwnPort};
use mesh_state::spec::Protocol;
use mesh_state::store::{MemoryStore, Op, Store};
use mesh_state::{codec, keys};
use prometheus::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::orchestra;

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// The status and Docker's message.
    pub(crate) fn refusal(&self) -> (u16, &str) {
        (self.status.as_u16(), self.body["message"].as_str().unwrap_or("<no message>"))
    }
}

pub(crate) struct Cluster {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) context: ApiContext,
    pub(crate) registry: Registry,
    router: Router,
    directory: TempDir,
    shutdown: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// The port of the nodes' tunnel: not the default.
pub(crate) const TUNNEL_PORT: u16 = 4790;

impl Cluster {
    /// A cluster over a store in memory.
    pub(crate) async fn start() -> Self {
        Self::on(Arc::new(MemoryStore::new())).await
    }

    /// A cluster over `store` of node-1 (manager, this one), node-2 and node-3, whose tasks are
    /// played.
    pub(crate) async fn on(store: Arc<dyn Store>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let opened = open_cluster(
            store.as_ref(),
            &directory.path().join("control"),
            WantedPool::default(),
            Utc::now(),
        )
        .await
        .unwrap();
        let (follower, feed) = watch::feed();
        let shutdown = CancellationToken::new();
        tokio::spawn(follower.follow(store.clone(), shutdown.clone()));
        let own_node = OwnNode::load(directory.path()).unwrap();
        own_node.learn(&node_id(1)).unwrap();
        let context = ApiContext {
            store: store.clone(),
            feed,
            manager_name: "node-1".to_owned(),
            own_node,
            advertise: Ipv4Addr::new(10, 77, 0, 11).into(),
            node_port: 2377,
            sealer: Arc::new(opened.sealer),
            clocks: Arc::default(),
            logs: Arc::default(),
            at_rest: tokio::sync::watch::channel(i64::MAX).1,
            certificate_life_min: MEMBER_LIFE_MIN,
            stopping: shutdown.clone(),
            orders: None,
        };
        let registry = Registry::new();
        let router = api::router(context.clone(), ApiMetrics::register(&registry).unwrap());
        let cluster = Self { store, context, registry, router, directory, shutdown };
        for number in 1..=3 {
            cluster.join(number).await;
        }
        let manager = Manager {
            name: "node-1".to_owned(),
            node: Some(node_id(1).as_str().into()),
            address: "10.77.0.11".to_owned(),
            since: Utc::now(),
            own_ports: vec![OwnPort::new(Protocol::Tcp, 2377, "agents' streams to managers")],
            tells_member_keys: true,
            ..Manager::default()
        };
        let manager = codec::encode(&manager).unwrap();
        let alive = Op::put(keys::manager("node-1"), manager.clone());
        cluster.write(vec![alive, Op::put(keys::LEADER, manager)]).await;
        tokio::spawn(orchestra::play(cluster.context.clone(), cluster.shutdown.clone()));
        cluster
    }

    async fn join(&self, number: u8) {
        let node = Node {
            id: node_id(number).as_str().into(),
            spec: NodeSpec {
                role: if number == 1 { NodeRole::Manager } else { NodeRole::Worker },
                ..NodeSpec::default()
            },
            description: NodeDescription {
                hostname: format!("node-{number}"),
                architecture: "x86_64".to_owned(),
                os: "linux".to_owned(),
                nano_cpus: 2_000_000_000,
                memory_bytes: 1 << 30,
                engine_version: "20.10.24".to_owned(),
                manager_address: (number == 1).then(|| "10.77.0.11:2377".to_owned()),
                own_ports: vec![OwnPort::new(Protocol::Udp, TUNNEL_PORT, OwnPort::TUNNEL)],
                ..NodeDescription::default()
            },
            address: Some(Ipv4Addr::new(10, 77, 0, 10 + number).into()),
            subnet: Some(format!("10.128.{number}.0/24").parse().unwrap()),
            created_at: Utc::now(),
            updated_at: Utc::now(),
            spec_written_after: Some(0),
        };
        self.write(vec![Op::put(keys::node(&node.id), codec::encode(&node).unwrap())]).await;
        self.believe(number, NodeState::Ready).await;
    }

    /// Gives a node a hostname.
    pub(crate) async fn rename(&self, number: u8, hostname: &str) {
        let mut node = self.context.snapshot().nodes[&node_id(number).as_str().into()].value.clone();
        hostname.clone_into(&mut node.description.hostname);
        self.write(vec![Op::put(keys::node(&node.id), codec::encode(&node).unwrap())]).await;
    }

    /// Sets a node's liveness.
    pub(crate) async fn believe(&self, number: u8, state: NodeState) {
        let liveness = Liveness {
            state,
            since: Utc::now(),
            message: if state == NodeState::Down { "heartbeat failure".to_owned() } else { String::new() },
            manager: "node-1".to_owned(),
        };
        let key = keys::liveness(&node_id(number).as_str().into());
        self.write(vec![Op::put(key, codec::encode(&liveness).unwrap())]).await;
    }

    /// Writes to the store directly, and waits until the snapshot shows it.
    pub(crate) async fn write(&self, ops: Vec<Op>) {
        let outcome = self.store.txn(vec![], ops).await.unwrap();
        let mesh_state::store::TxnOutcome::Committed(revision) = outcome else {
            panic!("a write without compares met a conflict")
        };
        self.context.wait_for_revision(revision, Duration::from_secs(10)).await.unwrap();
    }

    /// Waits until the watch on the store is up, or down.
    pub(crate) async fn until_connected(&self, up: bool) {
        let mut connected = self.context.feed.connected.clone();
        let waited = connected.wait_for(|connected| *connected == up);
        let waited = tokio::time::timeout(Duration::from_secs(30), waited).await;
        assert!(matches!(waited, Ok(Ok(_))), "waited in vain for connected = {up}");
    }

    /// Waits until `is_so` holds for the snapshot.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&ClusterSnapshot) -> bool) {
        let mut snapshots = self.context.feed.snapshots.clone();
        let waited = tokio::time::timeout(
            Duration::from_secs(10),
            snapshots.wait_for(|snapshot| is_so(snapshot.as_ref())),
        );
        assert!(matches!(waited.await, Ok(Ok(_))), "waited in vain until {what}");
    }

    /// Sends one request.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { status: head.status, headers: head.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// The objects of an answer with one per line.
    pub(crate) async fn lines(&self, path: &str) -> Vec<Value> {
        let answer = self.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "GET {path}: {}", answer.body);
        match answer.body {
            Value::String(text) => text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
            one => vec![one],
        }
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Request::delete(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        let request = Request::post(path)
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        self.send(request).await
    }

    /// The status of a call whose answer may have no end.
    pub(crate) async fn status_of_post(&self, path: &str) -> StatusCode {
        let request = Request::post(path).body(Body::empty()).unwrap();
        self.router.clone().oneshot(request).await.unwrap().status()
    }

    /// Creates a service and returns its id.
    pub(crate) async fn create(&self, spec: &Value) -> String {
        let answer = self.post("/services/create", spec).await;
        assert_eq!(answer.status, StatusCode::CREATED, "creating {spec}: {}", answer.body);
        answer.body["ID"].as_str().unwrap().to_owned()
    }

    /// A service as the API shows it.
    pub(crate) async fn service(&self, query: &str) -> Value {
        let answer = self.get(&format!("/services/{query}")).await;
        assert_eq!(answer.status, StatusCode::OK, "inspecting {query}: {}", answer.body);
        answer.body
    }

    /// Reads a service, changes its spec and posts it back.
    pub(crate) async fn update(&self, query: &str, change: impl FnOnce(&mut Value)) -> Answer {
        let mut service = self.service(query).await;
        change(&mut service["Spec"]);
        let version = service["Version"]["Index"].as_i64().unwrap();
        self.post(&format!("/services/{query}/update?version={version}"), &service["Spec"]).await
    }

    /// Serves the API on a socket, for clients that need one.
    pub(crate) fn serve(&self) -> PathBuf {
        let path = self.directory.path().join("docker.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let (router, shutdown) = (self.router.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
        });
        path
    }
}

/// The id of node-`number`.
pub(crate) fn node_id(number: u8) -> String {
    format!("{number}nodenodenodenodenodenode")
}

/// The smallest spec, as the CLI sends it, with a number of replicas.
pub(crate) fn spec(name: &str, replicas: u64) -> Value {
    json!({
        "Name": name, "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {"Image": "nginx:latest", "Init": false, "DNSConfig": {}, "Isolation": "default"},
            "Resources": {"Limits": {}, "Reservations": {}}, "Placement": {}, "ForceUpdate": 0,
            "Runtime": "container"
        },
        "Mode": {"Replicated": {"Replicas": replicas}},
        "EndpointSpec": {"Mode": "vip"}
    })
}

/// The smallest spec with one published port.
pub(crate) fn published(name: &str, published: u16) -> Value {
    let mut spec = spec(name, 1);
    spec["EndpointSpec"]["Ports"] =
        json!([{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": published, "PublishMode": "ingress"}]);
    spec
}
