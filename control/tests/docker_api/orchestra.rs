//! Plays the planners and the nodes: gives services the tasks that they ask for and reports them
//! running at once.

use chrono::Utc;
use mesh_control::context::ApiContext;
use mesh_control::feed::snapshot::ClusterSnapshot;
use mesh_control::slots::outdated::OutdatedTasks;
use mesh_state::ids::{BackendId, TaskId};
use mesh_state::network::Attachment;
use mesh_state::node::NodeState;
use mesh_state::service::Service;
use mesh_state::spec::PublishMode;
use mesh_state::store::Op;
use mesh_state::task::{ContainerStatus, Slot, Task, TaskEndpoint, TaskState, TaskStatus};
use mesh_state::{codec, keys};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// Runs until `shutdown`.
pub(crate) async fn play(context: ApiContext, shutdown: CancellationToken) {
    let mut snapshots = context.feed.snapshots.clone();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        for op in moves(&snapshot) {
            // The store may be unreachable: the next snapshot tries again.
            if context.store.txn(vec![], vec![op]).await.is_err() {
                break;
            }
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

fn moves(snapshot: &ClusterSnapshot) -> Vec<Op> {
    let mut ops = Vec::new();
    for task in snapshot.tasks.values().filter(|task| !snapshot.services.contains_key(&task.service_id)) {
        ops.push(Op::delete(keys::task(&task.id)));
        ops.push(Op::delete(keys::status(&task.id)));
    }
    for service in snapshot.services.values() {
        ops.extend(moves_of(snapshot, service));
    }
    ops
}

fn moves_of(snapshot: &ClusterSnapshot, service: &Service) -> Vec<Op> {
    let mut ops = Vec::new();
    let slots = slots(snapshot, service);
    let outdated = OutdatedTasks::new(snapshot, service);
    let wanted = |task: &Task| {
        !outdated.contains(task) && slots.contains(&task.slot) && task.desired_state == TaskState::Running
    };
    for task in snapshot.tasks_of(&service.id) {
        let desired_down = task.desired_state > TaskState::Running;
        if !wanted(task) && !desired_down {
            let stopped = Task { desired_state: TaskState::Shutdown, ..task.value.clone() };
            ops.push(Op::put(keys::task(&task.id), codec::encode(&stopped).unwrap()));
            let status = snapshot.status_of(task).clone();
            ops.push(report(&task.id, &TaskStatus { state: TaskState::Shutdown, ..status }));
        }
    }
    for slot in &slots {
        if !snapshot.tasks_of(&service.id).any(|task| wanted(task) && &task.slot == slot) {
            ops.extend(start(snapshot, service, slot));
        }
    }
    ops
}

fn slots(snapshot: &ClusterSnapshot, service: &Service) -> Vec<Slot> {
    match service.spec.mode.replicas() {
        Some(replicas) => (1..=replicas).map(Slot::Number).collect(),
        None => snapshot.nodes.keys().cloned().map(Slot::Node).collect(),
    }
}

fn start(snapshot: &ClusterSnapshot, service: &Service, slot: &Slot) -> Vec<Op> {
    let ready: Vec<_> =
        snapshot.nodes.values().filter(|node| snapshot.node_state(&node.id) == NodeState::Ready).collect();
    let node = match slot {
        Slot::Node(node) => node.clone(),
        Slot::Number(number) => {
            ready[usize::try_from(*number).unwrap().saturating_sub(1) % ready.len()].id.clone()
        }
    };
    let id = TaskId::random(&mut rand::rng());
    let task = Task {
        id: id.clone(),
        service_id: service.id.clone(),
        slot: slot.clone(),
        spec_version: service.spec_version,
        node_id: Some(node),
        desired_state: TaskState::Running,
        endpoints: endpoints(service),
        attachments: attachments(snapshot, service),
        created_at: Utc::now(),
        job_iteration: None,
        generic_resources: Vec::new(),
        start_after: None,
        shutdown_at: None,
        leader_status: TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() },
    };
    let status = TaskStatus {
        state: TaskState::Running,
        timestamp: Utc::now(),
        message: "started".to_owned(),
        container: Some(ContainerStatus {
            container_id: "c0ffee".to_owned(),
            pid: 7,
            exit_code: 0,
            address: Some([10, 128, 1, 2].into()),
            ..ContainerStatus::default()
        }),
        ..TaskStatus::default()
    };
    vec![Op::put(keys::task(&id), codec::encode(&task).unwrap()), report(&id, &status)]
}

fn endpoints(service: &Service) -> Vec<TaskEndpoint> {
    let ingress = service.ports.iter().filter(|port| port.publish_mode == PublishMode::Ingress);
    ingress
        .map(|port| TaskEndpoint {
            backend_id: BackendId::new(1).unwrap(),
            protocol: port.protocol,
            published_port: port.published_port,
            target_port: port.target_port,
        })
        .collect()
}

/// A free address on each network of the service, from the subnet's tenth on.
fn attachments(snapshot: &ClusterSnapshot, service: &Service) -> Vec<Attachment> {
    let named = service.spec.task_template.extra.get("Networks").and_then(Value::as_array);
    let targets = named.into_iter().flatten().filter_map(|network| network["Target"].as_str());
    let networks = targets.filter_map(|target| snapshot.networks.get(&target.into()));
    let given = networks.map(|network| {
        let used = snapshot.tasks.values().flat_map(|task| &task.attachments);
        let used: Vec<_> = used.filter_map(|attachment| attachment.address).collect();
        let address = network.subnet.hosts().skip(9).find(|address| !used.contains(address));
        Attachment { network_id: network.id.clone(), address, backend_id: None }
    });
    given.collect()
}

fn report(task: &TaskId, status: &TaskStatus) -> Op {
    Op::put(keys::status(task), codec::encode(status).unwrap())
}
