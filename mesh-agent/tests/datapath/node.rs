//! A node of the test: its data plane, the views that it gets, and what it leaves on the disk.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_agent::datapath::{self, Datapath, DatapathConfig, DatapathMode, TableSizes};
use mesh_agent::view::{BackendState, BackendView, NodeView, PeerNode, PortView, ServiceView};
use mesh_state::ids::{BackendId, NodeId, ServiceId, TaskId};
use mesh_state::lb::LbSettings;
use mesh_state::spec::Protocol;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::eventually;
use crate::netlab::{NODES, Netlab, TASK};

/// The port to which clients connect.
pub(crate) const PUBLISHED: u16 = 80;
/// The port that the task listens on.
pub(crate) const TARGET: u16 = 8080;

/// The mesh as node number `node` sees it: one service with one backend for each of `states`, on
/// the second node.
pub(crate) fn view(node: usize, generation: u64, states: &[BackendState]) -> NodeView {
    let mut view = NodeView::new(NodeId::from(format!("node{node}")), NODES[node]);
    view.generation = generation;
    for (number, address) in NODES.iter().enumerate() {
        let id = NodeId::from(format!("node{number}"));
        let node = PeerNode {
            id: id.clone(),
            address: *address,
            hostname: String::new(),
            subnet: None,
            in_userspace: false,
            takes_cookies: true,
            encryption: None,
        };
        view.nodes.insert(id, node);
    }
    let service_id = ServiceId::from("web");
    let port = PortView { protocol: Protocol::Tcp, published: PUBLISHED, target: TARGET };
    view.services.insert(
        service_id.clone(),
        ServiceView {
            networks: Vec::new(),
            id: service_id.clone(),
            name: "web".to_owned(),
            lb: LbSettings::default(),
            ports: vec![port],
        },
    );
    for state in states {
        let id = BackendId::new(7).expect("7 is an id");
        let backend = BackendView {
            id,
            service_id: service_id.clone(),
            task_id: TaskId::from("task1"),
            task_name: "web.1".to_owned(),
            node_id: NodeId::from("node1"),
            address: IpAddr::V4(TASK),
            protocol: Protocol::Tcp,
            published: PUBLISHED,
            target: TARGET,
            state: *state,
            weight: NonZeroU32::MIN,
            container_id: String::new(),
        };
        view.backends.insert(id, backend);
    }
    view
}

/// A running data plane on one of the nodes.
pub(crate) struct Node {
    pub(crate) datapath: Arc<Datapath>,
    views: watch::Sender<Arc<NodeView>>,
    applied: watch::Receiver<u64>,
    shutdown: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Node {
    pub(crate) fn start(lab: &Netlab, node: usize, config: &DatapathConfig) -> Self {
        let config = config.clone();
        lab.nodes[node].call(move || {
            let datapath = datapath::open(config)
                .unwrap_or_else(|error| panic!("{}", mesh_runtime::error_chain(&error)));
            let nothing = NodeView::new(NodeId::from(format!("node{node}")), NODES[node]);
            let (views, view) = watch::channel(Arc::new(nothing));
            let (applied, applications) = watch::channel(0);
            let shutdown = CancellationToken::new();
            let running = datapath.clone().run(view, applied, shutdown.clone());
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(running);
            });
            Self { datapath, views, applied: applications, shutdown, thread: Some(thread) }
        })
    }

    pub(crate) fn apply(&self, view: NodeView) {
        let generation = view.generation;
        self.views.send_replace(Arc::new(view));
        eventually("the view is applied", || *self.applied.borrow() == generation);
    }

    pub(crate) fn stop(mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the loop ends");
        }
    }
}

/// Settings of both nodes.
pub(crate) fn configs(name: &str, mode: DatapathMode) -> [DatapathConfig; 2] {
    [0, 1].map(|node| DatapathConfig {
        mode,
        interfaces: vec!["eth0".to_owned()],
        address: Some(NODES[node]),
        bpffs: PathBuf::from(format!("/run/mesh-test-{}-{name}/{node}", std::process::id())),
        tables: TableSizes { half_open: 4096, established: 8192 },
        sweep_period: Duration::from_secs(1),
        resync_period: Duration::from_secs(2),
        ..DatapathConfig::default()
    })
}

/// Removes the pins' directories when it is dropped.
pub(crate) struct Traces {
    pub(crate) configs: [DatapathConfig; 2],
}

impl Drop for Traces {
    fn drop(&mut self) {
        for config in &self.configs {
            if config.bpffs.exists() {
                drop(std::process::Command::new("umount").arg("-lq").arg(&config.bpffs).status());
            }
        }
        if let Some(directory) = self.configs[0].bpffs.parent() {
            drop(std::fs::remove_dir_all(directory));
        }
    }
}
