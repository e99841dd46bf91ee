//! A cluster for tests: builders of objects, and a store that commits plans as the driver would.
//!
//! Invariant: a plan that depends on a stale revision, or creates what exists, fails the test.

mod commits;

use std::collections::BTreeMap;

use chrono::TimeDelta;
use mesh_state::Timestamp;
use mesh_state::cluster::{
    Cluster, Sealed, heartbeat_period_ns, network_pool, network_prefix, node_cert_expiry_ns,
};
use mesh_state::codec;
use mesh_state::dependency::{Dependency, DependencyKind};
use mesh_state::ids::{BackendId, NodeId, ServiceId, TaskId};
use mesh_state::keys;
use mesh_state::network::{Network, NetworkSpec};
use mesh_state::node::{Liveness, Node, NodeDescription, NodeSpec, NodeState};
use mesh_state::service::Service;
use mesh_state::spec::{Labels, PortConfig, PublishMode, ReplicatedMode, ServiceMode, ServiceSpec};
use mesh_state::store::Change;
use mesh_state::task::{Slot, Task, TaskEndpoint, TaskState, TaskStatus};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde::Serialize;

use crate::feed::snapshot::ClusterSnapshot;
use crate::plan::Plan;

/// A cluster without nodes or services, some time after the epoch.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) now: Timestamp,
    pub(crate) snapshot: ClusterSnapshot,
    pub(crate) rng: StdRng,
    created: BTreeMap<String, i64>,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self {
            now: Timestamp::default() + TimeDelta::days(20_000),
            snapshot: ClusterSnapshot::default(),
            rng: StdRng::seed_from_u64(7),
            created: BTreeMap::new(),
        };
        world.put_cluster(&cluster());
        world
    }

    /// A cluster with ready nodes of these ids.
    pub(crate) fn with_nodes<'a>(ids: impl IntoIterator<Item = &'a str>) -> Self {
        let mut world = Self::new();
        for id in ids {
            world.add_node(&node(id));
        }
        world
    }

    /// Adds a node that is heard.
    pub(crate) fn add_node(&mut self, value: &Node) {
        self.put_node(value);
        self.set_liveness(&value.id, NodeState::Ready);
    }

    pub(crate) fn pass(&mut self, seconds: i64) {
        self.now += TimeDelta::seconds(seconds);
    }

    pub(crate) fn put_cluster(&mut self, value: &Cluster) {
        self.put(keys::CLUSTER.to_owned(), value);
    }

    pub(crate) fn put_node(&mut self, value: &Node) {
        self.put(keys::node(&value.id), value);
    }

    /// Writes a service, its spec's version beside it and its ports' claims, as the API does.
    pub(crate) fn put_service(&mut self, value: &Service) {
        self.release_ports(&value.id);
        for port in value.ports.iter().filter(|port| port.publish_mode == PublishMode::Ingress) {
            self.put(keys::port(port.protocol, port.published_port), &value.id);
        }
        self.write_service(value);
    }

    /// Removes a service as the API does: its tasks and their specs stay.
    pub(crate) fn remove_service(&mut self, id: &str) {
        self.release_ports(&id.into());
        self.delete(keys::service(&id.into()));
    }

    fn release_ports(&mut self, service: &ServiceId) {
        let claims = self.snapshot.ports.iter().filter(|(_, owner)| owner.value == *service);
        let claims: Vec<String> =
            claims.map(|((protocol, port), _)| format!("{}ports/{protocol}/{port}", keys::ROOT)).collect();
        for key in claims {
            self.delete(key);
        }
    }

    /// Writes the service, and its spec version if that is new.
    fn write_service(&mut self, value: &Service) {
        let known = self.snapshot.specs.get(&(value.id.clone(), value.spec_version));
        if known.is_none_or(|known| known.value != value.spec) {
            self.put(keys::spec(&value.id, value.spec_version), &value.spec);
        }
        self.put(keys::service(&value.id), value);
    }

    /// Changes a service's spec as the API does on `service update`.
    pub(crate) fn update_service(&mut self, id: &str, change: impl FnOnce(&mut ServiceSpec)) {
        let mut value = self.snapshot.services[&ServiceId::from(id)].value.clone();
        value.previous_spec = Some(value.spec.clone());
        value.previous_spec_version = Some(value.spec_version);
        change(&mut value.spec);
        value.spec_version += 1;
        value.ports = value.spec.endpoint_spec.iter().flat_map(|endpoint| endpoint.ports.clone()).collect();
        value.update_status = None;
        self.put_service(&value);
    }

    pub(crate) fn update_node(&mut self, id: &str, change: impl FnOnce(&mut Node)) {
        let mut value = self.snapshot.nodes[&NodeId::from(id)].value.clone();
        change(&mut value);
        self.put_node(&value);
    }

    pub(crate) fn put_dependency(&mut self, kind: DependencyKind, value: &Dependency) {
        self.put(keys::dependency(kind, &value.id), value);
    }

    pub(crate) fn put_network(&mut self, value: &Network) {
        self.put(keys::network(&value.id), value);
    }

    pub(crate) fn put_task(&mut self, value: &Task) {
        self.put(keys::task(&value.id), value);
    }

    pub(crate) fn set_liveness(&mut self, id: &NodeId, state: NodeState) {
        let liveness = Liveness { state, since: self.now, message: String::new(), manager: "m1".to_owned() };
        self.put(keys::liveness(id), &liveness);
    }

    /// Reports a state of a task as its node would, now.
    pub(crate) fn report(&mut self, id: &TaskId, state: TaskState) {
        self.report_status(id, TaskStatus { state, timestamp: self.now, ..TaskStatus::default() });
    }

    pub(crate) fn report_status(&mut self, id: &TaskId, status: TaskStatus) {
        let old = self.snapshot.statuses.get(id).map(|stored| stored.value.clone()).unwrap_or_default();
        self.put(keys::status(id), &old.advance(status));
    }

    pub(crate) fn put(&mut self, key: String, value: &impl Serialize) {
        self.put_encoded(key, codec::encode(value).unwrap());
    }

    pub(crate) fn delete(&mut self, key: String) {
        self.created.remove(&key);
        let mod_revision = self.snapshot.revision + 1;
        self.snapshot.apply_seen(Change::Deleted { key, mod_revision }, self.now);
    }

    /// Runs one planner and commits its plan.
    pub(crate) fn run(&mut self, plan: fn(Timestamp, &ClusterSnapshot, &mut dyn RngCore) -> Plan) -> Plan {
        let planned = plan(self.now, &self.snapshot, &mut self.rng);
        self.commit(&planned);
        planned
    }

    /// The wanted tasks of a service.
    pub(crate) fn wanted(&self, service: &str) -> Vec<Task> {
        let tasks = self.snapshot.tasks_of(&ServiceId::from(service));
        tasks.filter(|task| task.desired_state <= TaskState::Running).map(|task| task.value.clone()).collect()
    }
}

pub(crate) fn cluster() -> Cluster {
    let sealed = Sealed(String::new());
    Cluster {
        id: "c".into(),
        created_at: Timestamp::default(),
        subnet_pool: "10.128.0.0/12".parse().unwrap(),
        subnet_prefix: 24,
        network_pool: network_pool(),
        network_prefix: network_prefix(),
        task_history_limit: 5,
        heartbeat_period_ns: heartbeat_period_ns(),
        node_cert_expiry_ns: node_cert_expiry_ns(),
        labels: Labels::new(),
        updated_at: None,
        ca_certificate_pem: String::new(),
        ca_key: sealed.clone(),
        worker_token: sealed.clone(),
        manager_token: sealed.clone(),
        relay_key: sealed,
        unlock_key: None,
        ca_rotation: None,
        force_rotate: 0,
        revision_base: 0,
    }
}

/// A worker with 8 CPUs, 16 GiB and a subnet.
pub(crate) fn node(id: &str) -> Node {
    Node {
        id: id.into(),
        spec: NodeSpec::default(),
        description: NodeDescription {
            hostname: format!("host-{id}"),
            nano_cpus: 8_000_000_000,
            memory_bytes: 16 << 30,
            takes_networks: true,
            ..NodeDescription::default()
        },
        address: None,
        subnet: Some("10.129.0.0/24".parse().unwrap()),
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        spec_written_after: None,
    }
}

/// A replicated service of spec version 1 that publishes nothing and restarts without delay.
pub(crate) fn service(id: &str, replicas: u64) -> Service {
    let mut spec = ServiceSpec {
        name: id.to_owned(),
        mode: ServiceMode {
            replicated: Some(ReplicatedMode { replicas: Some(replicas) }),
            ..ServiceMode::default()
        },
        ..ServiceSpec::default()
    };
    spec.task_template.container_spec.get_or_insert_default().image = "nginx".to_owned();
    Service {
        id: id.into(),
        spec,
        previous_spec: None,
        spec_version: 1,
        previous_spec_version: None,
        ports: Vec::new(),
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        registry_auth: None,
        previous_registry_auth: None,
        virtual_ips: Vec::new(),
        job: None,
        update_status: None,
    }
}

/// The same as a global service.
pub(crate) fn global(id: &str) -> Service {
    let mut value = service(id, 1);
    value.spec.mode = ServiceMode { global: Some(mesh_state::spec::GlobalMode {}), ..ServiceMode::default() };
    value
}

/// A secret or config whose id is its name.
pub(crate) fn dependency(name: &str) -> Dependency {
    Dependency {
        id: name.into(),
        name: name.to_owned(),
        labels: mesh_state::spec::Labels::new(),
        templating: None,
        extra: mesh_state::spec::Extra::new(),
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
    }
}

/// An unscheduled task that is to run.
pub(crate) fn task(id: &str, service: &str, slot: u64) -> Task {
    Task {
        id: id.into(),
        service_id: service.into(),
        slot: Slot::Number(slot),
        spec_version: 1,
        node_id: None,
        desired_state: TaskState::Running,
        endpoints: Vec::new(),
        attachments: Vec::new(),
        created_at: Timestamp::default(),
        job_iteration: None,
        generic_resources: Vec::new(),
        start_after: None,
        shutdown_at: None,
        leader_status: TaskStatus { state: TaskState::Pending, ..TaskStatus::default() },
    }
}

/// A user's network whose name is its id.
pub(crate) fn network(id: &str, subnet: &str, number: u32) -> Network {
    Network {
        id: id.into(),
        name: id.to_owned(),
        ingress: false,
        subnet: subnet.parse().unwrap(),
        subnet6: None,
        number,
        node_addresses: BTreeMap::new(),
        created_at: Timestamp::default(),
        spec: NetworkSpec::default(),
    }
}

/// Puts a service on networks.
pub(crate) fn join(spec: &mut ServiceSpec, networks: &[&str]) {
    let named: Vec<_> = networks.iter().map(|id| serde_json::json!({ "Target": id })).collect();
    spec.task_template.extra.insert("Networks".to_owned(), named.into());
}

pub(crate) fn ingress(published: u16, target: u16) -> PortConfig {
    PortConfig { published_port: published, target_port: target, ..PortConfig::default() }
}

pub(crate) fn endpoint(backend: u32, published: u16) -> TaskEndpoint {
    TaskEndpoint {
        backend_id: BackendId::new(backend).unwrap(),
        protocol: mesh_state::spec::Protocol::Tcp,
        published_port: published,
        target_port: 80,
    }
}
