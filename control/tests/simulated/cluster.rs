//! Two managers and some nodes, and the faults injected into them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_admission::door::Door;
use mesh_admission::figures::Listener;
use mesh_admission::refusals::Refusals;
use mesh_control::bootstrap::open_cluster;
use mesh_control::feed::snapshot::ClusterSnapshot;
use mesh_control::feed::watch::{Feed, feed};
use mesh_control::leader::driver::Driver;
use mesh_control::leader::election::{Candidate, Leadership};
use mesh_control::leader::metrics::ReconcileMetrics;
use mesh_control::node_service::mailbox::Heard;
use mesh_control::node_service::mesh_table::Table;
use mesh_control::node_service::recorder::{Recorder, Reports};
use mesh_control::planners;
use mesh_control::pool::WantedPool;
use mesh_state::ca::ManagerCas;
use mesh_state::ids::{NodeId, ServiceId};
use mesh_state::network::{Network, NetworkSpec};
use mesh_state::node::{Node as NodeRecord, NodeDescription, NodeSpec, NodeState};
use mesh_state::proto::BackendState;
use mesh_state::service::Service;
use mesh_state::spec::{ContainerSpec, PortConfig, ReplicatedMode, RestartPolicy, ServiceMode, ServiceSpec};
use mesh_state::store::{Compare, MemoryStore, Op, Store, TxnOutcome};
use mesh_state::task::TaskState;
use mesh_state::{codec, keys};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::invariants;
use crate::node::Node;

/// The network that every service is on.
const NETWORK: &str = "app";

/// The components of a manager, without its sockets.
struct Manager {
    feed: Feed,
    reports: Reports,
    leadership: watch::Receiver<Option<Leadership>>,
    parts: Vec<AbortHandle>,
}

impl Manager {
    fn start(name: &str, store: &MemoryStore) -> Self {
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let (follower, feed) = feed();
        let never = CancellationToken::new();
        let record = mesh_state::cluster::Manager {
            name: name.to_owned(),
            address: "10.0.0.1:2377".to_owned(),
            since: clock::now(),
            tells_member_keys: true,
            ..mesh_state::cluster::Manager::default()
        };
        let (candidate, leadership) = Candidate::new(
            Arc::clone(&shared),
            feed.clone(),
            record,
            watch::channel(None).1,
            watch::channel(ManagerCas::default()).1,
            Arc::default(),
        );
        let driver = Driver {
            store: Arc::clone(&shared),
            feed: feed.clone(),
            leadership: leadership.clone(),
            planners: planners::ORDER,
            metrics: ReconcileMetrics::register(&prometheus::Registry::new()).unwrap(),
            clock: clock::now,
        };
        let reports = Reports::default();
        let recorder = Recorder {
            store: Arc::clone(&shared),
            feed: feed.clone(),
            manager: name.to_owned(),
            reports: reports.clone(),
            door: Door::new(Listener::Nodes, Listener::Nodes.figures(), Refusals::new().unwrap()),
        };
        let parts = vec![
            tokio::spawn(follower.follow(shared, never.clone())).abort_handle(),
            tokio::spawn(candidate.run(never.clone())).abort_handle(),
            tokio::spawn(driver.run(never.clone())).abort_handle(),
            tokio::spawn(recorder.run(never)).abort_handle(),
        ];
        Self { feed, reports, leadership, parts }
    }

    /// Ends without revoking its lease, which expires by itself.
    fn crash(&self) {
        self.parts.iter().for_each(AbortHandle::abort);
    }
}

/// A played node, whether it has power, and the manager that it has its session with.
struct Member {
    node: Arc<Mutex<Node>>,
    powered: watch::Sender<bool>,
}

/// The simulated cluster.
pub(crate) struct Cluster {
    store: MemoryStore,
    managers: watch::Sender<Vec<Manager>>,
    members: Vec<Member>,
    observer: Feed,
    parts: Vec<AbortHandle>,
    crashes: usize,
    notes: Vec<String>,
}

impl Cluster {
    pub(crate) async fn start(nodes: usize, seed: u64) -> Self {
        let store = MemoryStore::new();
        let directory = tempfile::tempdir().unwrap();
        open_cluster(&store, directory.path(), WantedPool::default(), clock::now()).await.unwrap();
        let (follower, observer) = feed();
        let follower = follower.follow(Arc::new(store.clone()), CancellationToken::new());
        let parts = vec![
            tokio::spawn(follower).abort_handle(),
            tokio::spawn(observe(observer.clone())).abort_handle(),
        ];
        let managers = vec![Manager::start("m1", &store), Manager::start("m2", &store)];
        let managers = watch::Sender::new(managers);
        let mut cluster =
            Self { store, managers, members: Vec::new(), observer, parts, crashes: 0, notes: Vec::new() };
        for number in 0..nodes {
            cluster.add_node(number, seed).await;
        }
        cluster.put_network().await;
        cluster
    }

    async fn add_node(&mut self, number: usize, seed: u64) {
        let id = NodeId::from(format!("node{number}"));
        let record = NodeRecord {
            id: id.clone(),
            spec: NodeSpec::default(),
            description: NodeDescription {
                hostname: id.to_string(),
                nano_cpus: 8_000_000_000,
                memory_bytes: 16 << 30,
                takes_networks: true,
                ..NodeDescription::default()
            },
            address: Some([10, 0, 0, u8::try_from(number).unwrap() + 10].into()),
            subnet: None,
            created_at: clock::now(),
            updated_at: clock::now(),
            spec_written_after: Some(0),
        };
        self.put(keys::node(&id), &record).await;
        let rng = StdRng::seed_from_u64(seed * 1000 + u64::try_from(number).unwrap());
        let node = Arc::new(Mutex::new(Node::new(id, rng)));
        let powered = watch::Sender::new(true);
        let running = live(Arc::clone(&node), number, powered.subscribe(), self.managers.subscribe());
        self.parts.push(tokio::spawn(running).abort_handle());
        self.members.push(Member { node, powered });
    }

    pub(crate) fn nodes(&self) -> usize {
        self.members.len()
    }

    /// Adds an injected fault to the notes, for the message of a failed check.
    pub(crate) fn note(&mut self, what: String) {
        self.notes.push(what);
    }

    async fn put<T: serde::Serialize>(&self, key: String, value: &T) {
        let outcome =
            self.store.txn(vec![], vec![Op::put(key, codec::encode(value).unwrap())]).await.unwrap();
        assert!(matches!(outcome, TxnOutcome::Committed(_)), "a write without compares met a conflict");
    }

    /// The network that every service is on, with fewer addresses than tasks come and go.
    async fn put_network(&self) {
        let network = Network {
            id: NETWORK.into(),
            name: NETWORK.to_owned(),
            ingress: false,
            subnet: "10.0.5.0/26".parse().unwrap(),
            subnet6: None,
            number: 1,
            node_addresses: BTreeMap::new(),
            created_at: clock::now(),
            spec: NetworkSpec::default(),
        };
        self.put(keys::network(&network.id), &network).await;
    }

    pub(crate) async fn put_service(&self, name: &str, replicas: u64) {
        let port = PortConfig { target_port: 80, published_port: 8000, ..PortConfig::default() };
        let port =
            PortConfig { published_port: port.published_port + u16::try_from(name.len()).unwrap(), ..port };
        let mut spec =
            ServiceSpec { name: name.to_owned(), mode: replicated(replicas), ..ServiceSpec::default() };
        let restart = RestartPolicy { delay: Some(1_000_000_000), ..RestartPolicy::default() };
        spec.task_template.restart_policy = Some(restart);
        spec.task_template.extra.insert("Networks".to_owned(), serde_json::json!([{ "Target": NETWORK }]));
        let container = ContainerSpec { image: "nginx".to_owned(), ..ContainerSpec::default() };
        spec.task_template.container_spec = Some(container);
        let service = Service {
            id: name.into(),
            spec,
            previous_spec: None,
            spec_version: 1,
            previous_spec_version: None,
            ports: vec![port],
            created_at: clock::now(),
            updated_at: clock::now(),
            registry_auth: None,
            previous_registry_auth: None,
            virtual_ips: Vec::new(),
            job: None,
            update_status: None,
        };
        self.put(keys::spec(&service.id, 1), &service.spec).await;
        self.put(keys::service(&service.id), &service).await;
    }

    /// Changes the number of replicas, as the API does.
    pub(crate) async fn scale(&self, name: &str, replicas: u64) -> String {
        let key = keys::service(&name.into());
        loop {
            let item = self.store.get(&key).await.unwrap().unwrap();
            let mut service: Service = codec::decode(&item.value).unwrap();
            service.previous_spec = Some(service.spec.clone());
            service.previous_spec_version = Some(service.spec_version);
            service.spec_version += 1;
            service.spec.mode = replicated(replicas);
            let ops = vec![
                Op::put(keys::spec(&service.id, service.spec_version), codec::encode(&service.spec).unwrap()),
                Op::put(key.clone(), codec::encode(&service).unwrap()),
            ];
            let stands = Compare::ModRevision(key.clone(), item.mod_revision);
            if let TxnOutcome::Committed(_) = self.store.txn(vec![stands], ops).await.unwrap() {
                return format!("{name} scaled to {replicas}");
            }
        }
    }

    pub(crate) fn kill_node(&self, number: usize) -> String {
        let member = &self.members[number];
        member.powered.send_replace(false);
        member.node.lock().unwrap().lose_power();
        format!("node{number} lost its power")
    }

    pub(crate) async fn revive_node(&self, number: usize) -> String {
        self.members[number].powered.send_replace(true);
        tokio::task::yield_now().await;
        format!("node{number} has power")
    }

    pub(crate) fn lose_a_container(&self, number: usize) -> String {
        let lost = self.members[number].node.lock().unwrap().lose_a_container();
        format!("node{number} lost the container of {lost:?}")
    }

    /// Crashes the leader; after a while a manager of another name starts in its place.
    pub(crate) async fn crash_leader(&mut self) -> String {
        self.crashes += 1;
        let name = format!("m{}", self.crashes + 2);
        let fresh = Manager::start(&name, &self.store);
        let mut crashed = false;
        self.managers.send_modify(|managers| {
            let leader = managers.iter().position(|manager| manager.leadership.borrow().is_some());
            if let Some(leader) = leader {
                managers.remove(leader).crash();
                crashed = true;
            }
            managers.push(fresh);
        });
        tokio::task::yield_now().await;
        format!("the leader crashed: {crashed}; {name} came")
    }

    pub(crate) async fn cut_store(&self, time: Duration) -> String {
        self.store.set_reachable(false);
        tokio::time::sleep(time).await;
        self.store.set_reachable(true);
        format!("the store was away for {time:?}")
    }

    /// Ends every lasting fault.
    pub(crate) async fn mend(&self) {
        self.store.set_reachable(true);
        for number in 0..self.members.len() {
            self.revive_node(number).await;
        }
    }

    pub(crate) async fn rest(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Checks that every service runs as many tasks as it asks for, spread over living nodes, and
    /// that all of them are in the mesh table.
    pub(crate) fn check_converged(&self, when: &str) {
        assert!(!self.parts[1].is_finished(), "{when}: an invariant broke (see above); {:?}", self.notes);
        let snapshot = self.observer.snapshot();
        for service in snapshot.services.values() {
            let wanted = service.spec.mode.replicas().unwrap_or_default();
            let running = running(&snapshot, &service.id);
            assert_eq!(running, wanted, "{when}: running tasks of {}; {:?}", service.id, self.notes);
        }
        let table = Table::of(&snapshot).whole();
        let on_the_network = table.members.iter().filter(|member| member.state() == BackendState::Active);
        let active = table.backends.iter().filter(|backend| backend.state() == BackendState::Active);
        let wanted: u64 = snapshot.services.values().filter_map(|service| service.spec.mode.replicas()).sum();
        assert_eq!(active.count() as u64, wanted, "{when}: active backends; {:?}", self.notes);
        assert_eq!(on_the_network.count() as u64, wanted, "{when}: active members; {:?}", self.notes);
        for service in &table.services {
            assert_ne!(service.networks[0].virtual_ip, "", "{when}: {} has no virtual IP", service.name);
        }
    }

    pub(crate) async fn stop(self) {
        self.managers.send_modify(|managers| managers.iter().for_each(Manager::crash));
        self.parts.iter().for_each(AbortHandle::abort);
        tokio::task::yield_now().await;
    }
}

fn replicated(replicas: u64) -> ServiceMode {
    ServiceMode { replicated: Some(ReplicatedMode { replicas: Some(replicas) }), ..ServiceMode::default() }
}

fn running(snapshot: &ClusterSnapshot, service: &ServiceId) -> u64 {
    let tasks = snapshot.tasks_of(service).filter(|task| {
        task.desired_state == TaskState::Running && snapshot.state_of(task) == TaskState::Running
    });
    tasks.count() as u64
}

/// Checks the invariants at every snapshot that the feed yields.
async fn observe(feed: Feed) {
    let mut snapshots = feed.snapshots.clone();
    let mut before = feed.snapshot();
    while snapshots.changed().await.is_ok() {
        let after = Arc::clone(&snapshots.borrow_and_update());
        invariants::check(&before, &after);
        before = after;
    }
}

/// Runs a node: while it has power, it has a session with one living manager or another.
async fn live(
    node: Arc<Mutex<Node>>,
    number: usize,
    mut powered: watch::Receiver<bool>,
    managers: watch::Receiver<Vec<Manager>>,
) {
    loop {
        let on = *powered.borrow_and_update();
        let pause = {
            let mut node = node.lock().unwrap();
            let managers = managers.borrow();
            let manager = &managers[number % managers.len()];
            if on {
                node.step(&manager.feed.snapshot(), &manager.reports);
            } else {
                let silent = Heard { state: NodeState::Silent, since: clock::now() };
                manager.reports.leave(|mailbox| mailbox.put_heard(node.id.clone(), silent));
            }
            node.pause()
        };
        tokio::time::sleep(pause).await;
    }
}
