//! The mesh table: which services answer on which ports, and which tasks stand behind them. What every agent forwards by.
//!
//! Invariants: pure; the same snapshot gives the same table on every manager, and a table's generation is the store's revision that
//! it was made of, so tables of different managers compare; a backend is in the table exactly while its task is observed running.
//!
//! Left to others: sending it ([`crate::node_service`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use mesh_state::ids::{NodeId, ServiceId, TaskId};
use mesh_state::lb::{LbSettings, node_weight};
use mesh_state::node::NodeState;
use mesh_state::proto::{BackendState, MeshBackend, MeshNode, MeshPort, MeshService, MeshTable};
use mesh_state::service::Service;
use mesh_state::spec::{PublishMode, ServiceSpec};
use mesh_state::task::{Task, TaskEndpoint, TaskState};

use crate::snapshot::ClusterSnapshot;

/// The whole table at one generation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// The revision that it was made of.
    pub generation: u64,
    /// When its newest change was heard of, milliseconds since 1970.
    pub committed_unix_ms: u64,
    entries: Entries,
}

/// A table's contents, by id.
#[derive(Debug, Clone, PartialEq, Default)]
struct Entries {
    nodes: BTreeMap<String, MeshNode>,
    services: BTreeMap<String, MeshService>,
    backends: BTreeMap<u32, MeshBackend>,
}

impl Table {
    /// The table of a snapshot.
    pub fn of(snapshot: &ClusterSnapshot) -> Self {
        let mut entries = Entries::default();
        for node in snapshot.nodes.values() {
            if let Some(IpAddr::V4(address)) = node.address {
                let hostname = node.description.hostname.clone();
                let subnet = node.subnet.map(|subnet| subnet.to_string()).unwrap_or_default();
                let entry =
                    MeshNode { id: node.id.to_string(), address: address.to_string(), hostname, subnet };
                entries.nodes.insert(entry.id.clone(), entry);
            }
        }
        for service in snapshot.services.values() {
            let ports = ingress_ports(service);
            if !ports.is_empty() {
                entries.add(snapshot, &service.id, &service.spec, ports);
            }
        }
        for (service, (spec, ports)) in removed_services(snapshot, &entries) {
            entries.add(snapshot, service, spec, ports);
        }
        Self {
            generation: u64::try_from(snapshot.revision).unwrap_or_default(),
            committed_unix_ms: u64::try_from(snapshot.received_at.timestamp_millis()).unwrap_or_default(),
            entries,
        }
    }

    /// This table without the backends of tasks that ended, each on the node that says so. A node speaks for its own tasks only.
    #[must_use]
    pub fn without(mut self, ended: &BTreeMap<TaskId, NodeId>) -> Self {
        if !ended.is_empty() {
            let says_so = |backend: &MeshBackend| {
                let by = ended.get(&TaskId::from(backend.task_id.as_str()));
                by.is_some_and(|node| node.as_str() == backend.node_id)
            };
            self.entries.backends.retain(|_, backend| !says_so(backend));
        }
        self
    }

    /// The node that a backend's task runs on.
    pub fn node_of(&self, backend: u32) -> Option<&str> {
        self.entries.backends.get(&backend).map(|backend| backend.node_id.as_str())
    }

    /// Whether both say the same, whatever their generations.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.entries == other.entries
    }

    /// The message that holds all of it.
    pub fn whole(&self) -> MeshTable {
        MeshTable {
            generation: self.generation,
            committed_unix_ms: self.committed_unix_ms,
            nodes: self.entries.nodes.values().cloned().collect(),
            services: self.entries.services.values().cloned().collect(),
            backends: self.entries.backends.values().cloned().collect(),
            ..MeshTable::default()
        }
    }

    /// The message that turns `base` into this table; only a generation, if both say the same.
    pub fn since(&self, base: &Self) -> MeshTable {
        let (nodes, removed_node_ids) = changes(&base.entries.nodes, &self.entries.nodes);
        let (services, removed_service_ids) = changes(&base.entries.services, &self.entries.services);
        let (backends, removed_backend_ids) = changes(&base.entries.backends, &self.entries.backends);
        MeshTable {
            generation: self.generation,
            base_generation: base.generation,
            committed_unix_ms: self.committed_unix_ms,
            nodes,
            removed_node_ids,
            services,
            removed_service_ids,
            backends,
            removed_backend_ids,
        }
    }
}

impl Entries {
    /// Adds a service that answers on `ports`, and its backends.
    fn add(&mut self, snapshot: &ClusterSnapshot, id: &ServiceId, spec: &ServiceSpec, ports: Vec<MeshPort>) {
        // Labels were checked when they were written; one from a later version means the default here.
        let settings = LbSettings::from_labels(&spec.labels).unwrap_or_default();
        let backends = snapshot.tasks_of(id).flat_map(|task| backends(snapshot, &spec.name, &settings, task));
        self.backends.extend(backends.map(|backend| (backend.id, backend)));
        let entry = MeshService {
            id: id.to_string(),
            name: spec.name.clone(),
            policy: settings.policy.to_string(),
            ports,
            settings_json: serde_json::to_string(&settings).unwrap_or_default(),
        };
        self.services.insert(entry.id.clone(), entry);
    }

    fn answers_on(&self, port: &MeshPort) -> bool {
        let ports = self.services.values().flat_map(|service| &service.ports);
        ports.into_iter().any(|taken| (&taken.protocol, taken.published) == (&port.protocol, port.published))
    }
}

/// Services that were removed while tasks of theirs still run, with the ports that nobody else has by now: their live flows go on,
/// and new ones are refused, until the tasks have stopped.
fn removed_services<'a>(
    snapshot: &'a ClusterSnapshot,
    entries: &Entries,
) -> BTreeMap<&'a ServiceId, (&'a ServiceSpec, Vec<MeshPort>)> {
    let mut removed: BTreeMap<&ServiceId, (&ServiceSpec, Vec<MeshPort>)> = BTreeMap::new();
    let left = snapshot.tasks.values().filter(|task| {
        !snapshot.services.contains_key(&task.service_id) && snapshot.state_of(task) == TaskState::Running
    });
    for task in left {
        let Some(spec) = snapshot.spec_of(task) else { continue };
        let (_, ports) = removed.entry(&task.service_id).or_insert((spec, Vec::new()));
        for endpoint in &task.endpoints {
            let port = MeshPort {
                protocol: endpoint.protocol.to_string(),
                published: endpoint.published_port.into(),
                target: endpoint.target_port.into(),
            };
            if !ports.contains(&port) && !entries.answers_on(&port) {
                ports.push(port);
            }
        }
    }
    removed.retain(|_, (_, ports)| !ports.is_empty());
    removed
}

/// New and changed values, and keys that are gone.
fn changes<K: Ord + Clone, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> (Vec<V>, Vec<K>) {
    let set = new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(_, value)| value.clone());
    let removed = old.keys().filter(|key| !new.contains_key(key)).cloned();
    (set.collect(), removed.collect())
}

fn ingress_ports(service: &Service) -> Vec<MeshPort> {
    let ingress = service.ports.iter().filter(|port| port.publish_mode == PublishMode::Ingress);
    ingress
        .filter(|port| port.published_port != 0)
        .map(|port| MeshPort {
            protocol: port.protocol.to_string(),
            published: port.published_port.into(),
            target: port.target_port.into(),
        })
        .collect()
}

/// The backends of a task: none unless it is observed running, at a known address, on a known node.
fn backends(
    snapshot: &ClusterSnapshot,
    service_name: &str,
    settings: &LbSettings,
    task: &Task,
) -> Vec<MeshBackend> {
    let status = snapshot.status_of(task);
    let node = task.node_id.as_ref().and_then(|id| snapshot.nodes.get(id));
    let (Some(node), Some(container)) = (node, &status.container) else { return Vec::new() };
    let Some(IpAddr::V4(address)) = container.address else { return Vec::new() };
    if status.state != TaskState::Running {
        return Vec::new();
    }
    let weight = settings.weight_of(&task.slot, node_weight(&node.spec.labels).unwrap_or(NonZeroU32::MIN));
    let is_retired =
        task.desired_state == TaskState::Remove || !snapshot.services.contains_key(&task.service_id);
    let state = match (snapshot.node_state(&node.id), task.desired_state) {
        _ if is_retired => BackendState::Retired,
        (NodeState::Silent | NodeState::Down, _) => BackendState::Silent,
        // A running task tells an error only when it is unwell, and is being stopped for it.
        (NodeState::Ready, TaskState::Running) if status.err.is_empty() => BackendState::Active,
        (NodeState::Ready, _) => BackendState::Draining,
    };
    let backend = |endpoint: &TaskEndpoint| MeshBackend {
        id: endpoint.backend_id.get(),
        service_id: task.service_id.to_string(),
        task_id: task.id.to_string(),
        task_name: format!("{service_name}.{}", task.slot),
        node_id: node.id.to_string(),
        address: address.to_string(),
        protocol: endpoint.protocol.to_string(),
        published: endpoint.published_port.into(),
        target: endpoint.target_port.into(),
        state: state.into(),
        weight: weight.get(),
        container_id: container.container_id.clone(),
    };
    task.endpoints.iter().map(backend).collect()
}

#[cfg(test)]
mod tests {
    use mesh_state::lb::{POLICY_LABEL, WEIGHT_LABEL};
    use mesh_state::spec::Protocol;
    use mesh_state::task::{ContainerStatus, TaskStatus};

    use super::*;
    use crate::fixtures::{World, endpoint, ingress, node, service, task};

    /// Nodes `a` and `b`; a service with a task on `a`, running at 10.128.0.2 behind port 80.
    fn world() -> World {
        let mut world = World::new();
        for (id, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
            let mut node = node(id);
            node.address = Some(address.parse().unwrap());
            world.add_node(&node);
        }
        let mut web = service("web", 1);
        web.ports = vec![ingress(80, 8080)];
        world.put_service(&web);
        let mut first = task("t1", "web", 1);
        first.node_id = Some("a".into());
        first.endpoints = vec![endpoint(7, 80)];
        world.put_task(&first);
        run(&mut world, "t1");
        world
    }

    fn run(world: &mut World, task: &str) {
        let container = ContainerStatus {
            container_id: "c".to_owned(),
            address: Some("10.128.0.2".parse().unwrap()),
            ..ContainerStatus::default()
        };
        let status =
            TaskStatus { state: TaskState::Running, container: Some(container), ..TaskStatus::default() };
        world.report_status(&TaskId::from(task), status);
    }

    fn states(world: &World) -> Vec<(u32, BackendState)> {
        let whole = Table::of(&world.snapshot).whole();
        whole.backends.iter().map(|backend| (backend.id, backend.state())).collect()
    }

    fn desire(world: &mut World, state: TaskState) {
        let mut task = world.snapshot.tasks[&TaskId::from("t1")].value.clone();
        task.desired_state = state;
        world.put_task(&task);
    }

    #[test]
    fn a_running_task_is_an_active_backend() {
        let world = world();
        let table = Table::of(&world.snapshot);
        assert_eq!(table.generation, u64::try_from(world.snapshot.revision).unwrap());
        let whole = table.whole();
        let nodes: Vec<_> =
            whole.nodes.iter().map(|node| (node.id.as_str(), node.address.as_str())).collect();
        assert_eq!(nodes, [("a", "10.0.0.1"), ("b", "10.0.0.2")]);
        assert_eq!(whole.services[0].policy, "round-robin");
        let port = &whole.services[0].ports[0];
        assert_eq!((port.protocol.as_str(), port.published, port.target), ("tcp", 80, 8080));
        let backend = &whole.backends[0];
        let seen = (backend.id, backend.task_name.as_str(), backend.address.as_str(), backend.state());
        assert_eq!(seen, (7, "web.1", "10.128.0.2", BackendState::Active));
    }

    #[test]
    fn what_is_to_stop_drains_and_what_stopped_is_gone() {
        let mut world = world();
        desire(&mut world, TaskState::Shutdown);
        assert_eq!(states(&world), [(7, BackendState::Draining)]);
        world.report(&"t1".into(), TaskState::Shutdown);
        assert_eq!(states(&world), []);
    }

    #[test]
    fn an_unhealthy_task_gets_no_new_flows() {
        let mut world = world();
        let mut status = world.snapshot.statuses[&TaskId::from("t1")].value.clone();
        status.err = "dockerexec: unhealthy container".to_owned();
        world.report_status(&"t1".into(), status);
        assert_eq!(states(&world), [(7, BackendState::Draining)]);
    }

    #[test]
    fn a_reported_end_takes_a_backend_away_if_it_is_its_nodes() {
        let world = world();
        let left = |node: &str| {
            let ended = BTreeMap::from([(TaskId::from("t1"), NodeId::from(node))]);
            Table::of(&world.snapshot).without(&ended).whole().backends.len()
        };
        assert_eq!((left("a"), left("b")), (0, 1), "backends left when a, and when b says so");
    }

    #[test]
    fn a_silent_or_lost_node_silences_its_backends() {
        let mut world = world();
        for state in [NodeState::Silent, NodeState::Down] {
            world.set_liveness(&"a".into(), state);
            assert_eq!(states(&world), [(7, BackendState::Silent)], "while the node is {state:?}");
        }
        world.set_liveness(&"a".into(), NodeState::Ready);
        assert_eq!(states(&world), [(7, BackendState::Active)], "when it speaks again");
    }

    #[test]
    fn a_task_that_does_not_run_yet_is_no_backend() {
        let mut world = world();
        let mut second = task("t2", "web", 2);
        second.node_id = Some("b".into());
        second.endpoints = vec![endpoint(8, 80)];
        world.put_task(&second);
        world.report(&"t2".into(), TaskState::Starting);
        assert_eq!(states(&world), [(7, BackendState::Active)]);
    }

    #[test]
    fn a_removed_services_flows_go_on_until_its_tasks_have_stopped() {
        let mut world = world();
        let mut first = world.snapshot.tasks[&TaskId::from("t1")].value.clone();
        first.desired_state = TaskState::Remove;
        world.put_task(&first);
        assert_eq!(states(&world), [(7, BackendState::Retired)], "a dropped slot's task gets no new flows");
        world.remove_service("web");
        let whole = Table::of(&world.snapshot).whole();
        assert_eq!((whole.services.len(), whole.services[0].ports[0].published), (1, 80), "{whole:?}");
        assert_eq!(states(&world), [(7, BackendState::Retired)]);

        let mut next = service("next", 1);
        next.ports = vec![ingress(80, 8080)];
        world.put_service(&next);
        let whole = Table::of(&world.snapshot).whole();
        let names: Vec<_> = whole.services.iter().map(|service| &*service.name).collect();
        assert_eq!(names, ["next"], "a port has one service");
        world.remove_service("next");
        world.report(&"t1".into(), TaskState::Shutdown);
        assert_eq!(Table::of(&world.snapshot).whole().services, [], "its last task has stopped");
    }

    #[test]
    fn weights_of_slot_service_and_node_meet_in_the_backend() {
        let mut world = world();
        let mut label = |key: &str, value: &str| {
            let ports = world.snapshot.services[&"web".into()].ports.clone();
            world.update_service("web", |spec| drop(spec.labels.insert(key.to_owned(), value.to_owned())));
            let mut web = world.snapshot.services[&"web".into()].value.clone();
            web.ports = ports;
            world.put_service(&web);
            Table::of(&world.snapshot).whole()
        };
        assert_eq!(label("other", "x").backends[0].weight, 1);
        assert_eq!(label(WEIGHT_LABEL, "3").backends[0].weight, 3);
        let whole = label("mesh.lb.weight.1", "5");
        assert_eq!(whole.backends[0].weight, 5);
        let settings: LbSettings = serde_json::from_str(&whole.services[0].settings_json).unwrap();
        assert_eq!(settings.weight.map(NonZeroU32::get), Some(3), "settings travel with the service");
        world.update_node("a", |node| drop(node.spec.labels.insert(WEIGHT_LABEL.to_owned(), "4".to_owned())));
        assert_eq!(Table::of(&world.snapshot).whole().backends[0].weight, 20);
    }

    #[test]
    fn tcp_and_udp_on_one_number_are_two_backends() {
        let mut world = world();
        let mut web = world.snapshot.services[&"web".into()].value.clone();
        let mut udp = ingress(80, 8053);
        udp.protocol = Protocol::Udp;
        web.ports.push(udp);
        world.put_service(&web);
        let mut first = world.snapshot.tasks[&TaskId::from("t1")].value.clone();
        first.endpoints.push(TaskEndpoint { protocol: Protocol::Udp, target_port: 8053, ..endpoint(8, 80) });
        world.put_task(&first);
        let whole = Table::of(&world.snapshot).whole();
        let ports: Vec<_> =
            whole.services[0].ports.iter().map(|port| (&*port.protocol, port.published)).collect();
        assert_eq!(ports, [("tcp", 80), ("udp", 80)]);
        let backends: Vec<_> =
            whole.backends.iter().map(|backend| (backend.id, &*backend.protocol, backend.target)).collect();
        assert_eq!(backends, [(7, "tcp", 80), (8, "udp", 8053)]);
    }

    #[test]
    fn a_delta_holds_what_changed_and_nothing_else() {
        let mut world = world();
        let old = Table::of(&world.snapshot);
        world.update_service("web", |spec| {
            spec.labels.insert(POLICY_LABEL.to_owned(), "least-connections".to_owned());
        });
        let mut web = world.snapshot.services[&"web".into()].value.clone();
        web.ports = vec![ingress(80, 8080)];
        world.put_service(&web);
        let new = Table::of(&world.snapshot);
        assert!(!new.says_the_same(&old));
        let delta = new.since(&old);
        assert_eq!((delta.base_generation, delta.generation), (old.generation, new.generation));
        assert_eq!(delta.services[0].policy, "least-connections");
        let rest = (delta.nodes.len(), delta.backends.len(), delta.removed_backend_ids.len());
        assert_eq!(rest, (0, 0, 0), "nodes, backends, removed backends");

        world.report(&"t1".into(), TaskState::Failed);
        let newest = Table::of(&world.snapshot);
        assert_eq!(newest.since(&new).removed_backend_ids, [7]);
        let same = newest.since(&newest);
        assert!(
            same.services.is_empty() && same.removed_service_ids.is_empty(),
            "a delta to itself: {same:?}"
        );
    }
}
